//! Tensors in another type: one rounding, to nearest even, and nothing finite becomes infinite. Whole numbers, 8-bit
//! floats and packed types stay as they are.

use crate::adapter::{Adapter, Delta, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::tensor::{Dtype, Shape, StateDict, Tensor, cast, dtype};

/// How much was rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounded {
    /// Values that were given another type.
    pub values: u64,
    /// Those of them that are others now.
    pub changed: u64,
}

impl Rounded {
    /// Adds what another tensor came to.
    pub fn add(&mut self, other: Rounded) {
        self.values += other.values;
        self.changed += other.changed;
    }
}

/// A tensor of these values, all of which have to fit the type; NaN and infinity among them stay what they are.
pub fn narrowed(to: Dtype, shape: &Shape, values: &[f64]) -> Result<Tensor> {
    let mut bytes = vec![0; dtype::byte_len(to, values.len())?];
    cast::narrow_f64(to, values, &mut bytes)?;
    let tensor = Tensor::new(to, shape.clone(), bytes.into())?;
    if tensor.nonfinite()?.is_some() {
        let found = cast::widen_f64(to, tensor.bytes.as_slice())?;
        if let Some((value, _)) = values.iter().zip(found).find(|(v, found)| v.is_finite() && !found.is_finite()) {
            return Err(no_room(*value, to));
        }
    }
    Ok(tensor)
}

/// The tensor in another type, if it has one of those that are rounded and not that one already.
pub fn tensor(tensor: &Tensor, to: Dtype) -> Result<Option<(Tensor, Rounded)>> {
    if tensor.dtype == to || !dtype::is_plain_float(tensor.dtype) {
        return Ok(None);
    }
    let (changed, lost) = cast::losses(tensor.dtype, to, tensor.bytes.as_slice())?;
    tensor.bytes.release(0..tensor.bytes.len());
    lost.map_or(Ok(()), |value| Err(no_room(value, to)))?;
    Ok(Some((tensor.converted(to)?, Rounded { values: tensor.elements() as u64, changed })))
}

fn no_room(value: f64, to: Dtype) -> Error {
    let what = format!("a value of {value:.4e} does not fit {to}");
    Error::new(Kind::Nonfinite, what).hint("--dtype f32 or bf16 has room for it")
}

/// Casts the tensors that every layout stores as they are: factors, magnitudes, whole tensors. A layout may say their
/// type beside them, so it has to be right before they are written.
pub fn adapter(adapter: &mut Adapter, to: Dtype) -> Result<Rounded> {
    let mut sum = Rounded::default();
    for (path, target) in &mut adapter.targets {
        for stored in stored(target) {
            if let Some((cast, rounded)) = tensor(stored, to).at_key(path.as_str())? {
                *stored = cast;
                sum.add(rounded);
            }
        }
    }
    Ok(sum)
}

fn stored(target: &mut Target) -> Vec<&mut Tensor> {
    let changes = target.weight.iter_mut().chain(&mut target.bias);
    let mut out: Vec<_> = changes
        .flat_map(|delta| match delta {
            Delta::LowRank(d) => vec![&mut d.a, &mut d.b],
            Delta::Kasa(d) => vec![&mut d.factors.a, &mut d.factors.b, &mut d.diagonal],
            Delta::Qalora(d) => vec![&mut d.factors.a, &mut d.factors.b],
            Delta::Full(d) => vec![&mut d.tensor],
            Delta::TokenRows(d) => vec![&mut d.rows],
            _ => Vec::new(),
        })
        .collect();
    out.extend(&mut target.magnitude);
    out
}

/// Casts whatever is still of another type among tensors that are ready to be written. A tensor of a single number is a
/// scale: it stays as it is where the type does not hold it.
pub fn tensors(tensors: &mut StateDict, to: Dtype) -> Result<Rounded> {
    let mut sum = Rounded::default();
    for (key, stored) in tensors {
        let is_number = matches!(stored.shape.dims(), [] | [1]);
        if let Some((cast, rounded)) = tensor(stored, to).at_key(key.as_str())?
            && !(is_number && rounded.changed > 0)
        {
            *stored = cast;
            sum.add(rounded);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dtype: Dtype, values: &[f32]) -> Tensor {
        Tensor::from_f32(dtype, [values.len()], values).unwrap()
    }

    #[test]
    fn values_are_rounded_to_nearest_even_once() {
        // bf16 has 8 bits: 1 + 2⁻⁸ lies in the middle and goes to the even neighbour, 1 + 3·2⁻⁸ to 1 + 2⁻⁶.
        let (middle, upper) = (1.0 + f32::powi(2.0, -8), 1.0 + 3.0 * f32::powi(2.0, -8));
        let (out, rounded) = tensor(&of(Dtype::F32, &[1.0, middle, upper, -0.0]), Dtype::BF16).unwrap().unwrap();
        assert_eq!(out.to_f32().unwrap(), [1.0, 1.0, 1.0 + f32::powi(2.0, -6), -0.0]);
        assert_eq!(rounded, Rounded { values: 4, changed: 2 });
        // Not by way of f32: 1 + 2⁻¹¹ + 2⁻⁴⁰ is above the middle of two f16.
        let shape = Shape::new([1]);
        let out = narrowed(Dtype::F16, &shape, &[1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40)]).unwrap();
        assert_eq!(out.to_f32().unwrap(), [1.0 + f32::powi(2.0, -10)]);
    }

    #[test]
    fn scales_are_not_rounded() {
        let number = |v: f32| Tensor::from_f32(Dtype::F32, [], &[v]).unwrap();
        let given = [("a.alpha", number(301.0)), ("b.alpha", number(4.0)), ("b.w", of(Dtype::F32, &[301.0, 1.0]))];
        let mut all: StateDict = given.into_iter().map(|(key, tensor)| (key.to_string(), tensor)).collect();
        tensors(&mut all, Dtype::BF16).unwrap();
        let found: Vec<_> = all.values().map(|tensor| (tensor.dtype, tensor.to_f32().unwrap()[0])).collect();
        assert_eq!(found, [(Dtype::F32, 301.0), (Dtype::BF16, 4.0), (Dtype::BF16, 300.0)]);
    }

    #[test]
    fn nothing_finite_becomes_infinite() {
        let e = tensor(&of(Dtype::F32, &[1.0, 70000.0]), Dtype::F16).unwrap_err();
        assert!(e.what().contains("7.0000e4 does not fit F16"), "{e}");
        let (out, _) = tensor(&of(Dtype::F32, &[f32::INFINITY, f32::NAN]), Dtype::F16).unwrap().unwrap();
        assert!(out.to_f32().unwrap().iter().all(|v| !v.is_finite()));
    }

    #[test]
    fn what_has_the_type_or_holds_whole_numbers_is_left_alone() {
        assert!(tensor(&of(Dtype::F32, &[1.0]), Dtype::F32).unwrap().is_none());
        let whole = Tensor::new(Dtype::I64, Shape::new([1]), vec![1, 0, 0, 0, 0, 0, 0, 0].into()).unwrap();
        assert!(tensor(&whole, Dtype::F32).unwrap().is_none());
    }
}
