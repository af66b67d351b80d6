//! A scale multiplied into a tensor, for layouts that have one scale, or none, for the whole file.

use super::delta::LowRank;
use super::{Scale, ScaleRule};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor, cast, dtype};

/// A tensor times a scale, and what that took.
#[derive(Clone, Debug)]
pub struct Folded {
    /// The product.
    pub tensor: Tensor,
    /// Whether every value is the exact product.
    pub exact: bool,
    /// Whether the type is a wider one than before.
    pub widened: bool,
}

/// `tensor` times `scale`, in f64 and rounded once. The type stays where it holds the products exactly, as it does for a
/// scale that is a power of two; else 16-bit types become f32.
pub fn scaled(tensor: &Tensor, scale: f64) -> Result<Folded> {
    if !scale.is_finite() {
        return Err(Error::unsupported(format!("a scale of {scale}, expected a finite number")));
    }
    if scale == 1.0 {
        return Ok(Folded { tensor: tensor.clone(), exact: true, widened: false });
    }
    if let Some(tensor) = tensor.shifted(scale) {
        return Ok(Folded { tensor, exact: true, widened: false });
    }
    let mut values = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
    values.iter_mut().for_each(|v| *v *= scale);
    if dtype::is_plain_float(tensor.dtype) {
        let kept = narrowed(tensor.dtype, tensor, &values)?;
        if is_exact(&values, &kept)? {
            return Ok(Folded { tensor: kept, exact: true, widened: false });
        }
    }
    let wide = if tensor.dtype == Dtype::F64 { Dtype::F64 } else { Dtype::F32 };
    let out = narrowed(wide, tensor, &values)?;
    let lost = cast::widen_f64(wide, out.bytes.as_slice())?.iter().zip(&values).any(|(out, v)| {
        // What was finite has to stay that.
        v.is_finite() && !out.is_finite()
    });
    if lost {
        return Err(Error::unsupported(format!("a value times the scale {scale} does not fit {wide}")));
    }
    Ok(Folded { exact: is_exact(&values, &out)?, tensor: out, widened: wide != tensor.dtype })
}

fn narrowed(to: Dtype, like: &Tensor, values: &[f64]) -> Result<Tensor> {
    let mut bytes = vec![0; dtype::byte_len(to, values.len())?];
    cast::narrow_f64(to, values, &mut bytes)?;
    Tensor::new(to, like.shape.clone(), bytes.into())
}

fn is_exact(values: &[f64], tensor: &Tensor) -> Result<bool> {
    let found = cast::widen_f64(tensor.dtype, tensor.bytes.as_slice())?;
    Ok(values.iter().zip(found).all(|(v, found)| *v == found || v.is_nan()))
}

impl LowRank {
    /// The same change with `scale`, which the layout wants: what is left of the old one goes into B. None of it moves
    /// where the two come to the same number.
    pub fn rescaled(&self, scale: Scale) -> Result<(LowRank, Option<Folded>)> {
        let (old, new) = (self.factor(), scale.factor(self.rank()));
        if old == new {
            return Ok((LowRank { scale, ..self.clone() }, None));
        }
        if new == 0.0 || !new.is_finite() {
            return Err(Error::unsupported(format!("a scale of {new}, which no factor can be divided by")));
        }
        let folded = scaled(&self.b, old / new)?;
        Ok((LowRank { b: folded.tensor.clone(), scale, ..self.clone() }, Some(folded)))
    }

    /// The same change with alpha equal to the rank.
    pub fn unscaled(&self) -> Result<(LowRank, Option<Folded>)> {
        self.rescaled(Scale { alpha: self.rank() as f64, rule: ScaleRule::AlphaOverRank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_stays_where_it_holds_the_product() {
        let tensor = Tensor::from_f32(Dtype::BF16, [2], &[1.5, -0.25]).unwrap();
        let half = scaled(&tensor, 0.5).unwrap();
        assert!(half.exact && !half.widened && half.tensor.dtype == Dtype::BF16);
        assert_eq!(half.tensor.to_f32().unwrap(), [0.75, -0.125]);
        let third = scaled(&tensor, 1.0 / 3.0).unwrap();
        assert!(third.widened && third.tensor.dtype == Dtype::F32);
        assert_eq!(third.tensor.to_f32().unwrap()[0], 0.5);
        assert!(scaled(&tensor, f64::NAN).is_err() && scaled(&tensor, 1e300).is_err());
    }

    #[test]
    fn the_change_is_what_stays() {
        let (a, b) = ([2, 3], [4, 2]);
        let of = |shape: [usize; 2]| Tensor::from_f32(Dtype::F32, shape, &vec![1.0; shape[0] * shape[1]]).unwrap();
        let given = LowRank { a: of(a), b: of(b), scale: Scale::direct(3.0), experts: None, name: "LoRA" };
        let (out, folded) = given.unscaled().unwrap();
        assert_eq!((out.factor(), out.b.to_f32().unwrap()[0]), (1.0, 3.0));
        assert!(folded.unwrap().exact);
        assert!(given.rescaled(Scale { alpha: 6.0, rule: ScaleRule::AlphaOverRank }).unwrap().1.is_none());
        assert!(given.rescaled(Scale::direct(0.0)).is_err());
    }
}
