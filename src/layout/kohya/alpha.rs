//! The scale of a module: `alpha` over the rank, or `scale` as it stands.
//!
//! A tensor of one number, in whatever type and shape the trainer had; without one the scale is 1. Metadata
//! (`ss_network_alpha`) only describes and is not asked, as nobody asks it.

use super::keys::Parts;
use crate::adapter::{Scale, ScaleRule};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor, cast, dtype};

/// Takes the scale of a module out of its parts.
pub fn take(parts: &mut Parts) -> Result<Scale> {
    // The key of such an error is that of the module.
    let named = |suffix, e: Error| Error::new(e.kind(), format!("{suffix}: {}", e.what()));
    let mut number =
        |suffix| parts.remove(suffix).map(|tensor| tensor.to_number().map_err(|e| named(suffix, e))).transpose();
    // LyCORIS multiplies its learnable scalar into a factor when it saves; some files have it still.
    let (alpha, scale, scalar) = (number("alpha")?, number("scale")?, number("scalar")?.unwrap_or(1.0));
    Ok(match (scale, alpha) {
        (Some(scale), _) => Scale::direct(scale * scalar),
        (None, Some(alpha)) => Scale { alpha: alpha * scalar, rule: ScaleRule::AlphaOverRank },
        (None, None) => Scale::direct(scalar),
    })
}

/// A tensor whose number over `rank` is the factor, in the first type that holds it of that of the factors, f32 and f64;
/// and whether it is exactly that.
pub fn tensor(scale: Scale, rank: usize, narrow: Dtype) -> Result<(Tensor, bool)> {
    let (factor, over) = (scale.factor(rank), rank as f64);
    let alpha = if scale.rule == ScaleRule::AlphaOverRank { scale.alpha } else { factor * over };
    if !alpha.is_finite() {
        return Err(Error::unsupported(format!("a scale of {factor}, expected a finite number")));
    }
    let narrow = Some(narrow).filter(|found| dtype::is_plain_float(*found));
    for dtype in narrow.into_iter().chain([Dtype::F32, Dtype::F64]) {
        // The product may be the neighbour of the number that gives the factor back.
        for alpha in [alpha, alpha.next_up(), alpha.next_down()] {
            let tensor = of(dtype, alpha)?;
            if tensor.to_number().is_ok_and(|found| found / over == factor) {
                return Ok((tensor, true));
            }
        }
    }
    Ok((of(Dtype::F64, alpha)?, false))
}

fn of(dtype: Dtype, alpha: f64) -> Result<Tensor> {
    let mut bytes = vec![0; dtype::byte_len(dtype, 1)?];
    cast::narrow_f64(dtype, &[alpha], &mut bytes)?;
    Tensor::new(dtype, Vec::new().as_slice().into(), bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_type_and_shape_is_a_number() {
        let whole = Tensor::new(Dtype::I64, [1].as_slice().into(), 7i64.to_le_bytes().to_vec().into()).unwrap();
        assert_eq!(whole.to_number().unwrap(), 7.0);
        assert_eq!(Tensor::from_f32(Dtype::F16, [], &[0.5]).unwrap().to_number().unwrap(), 0.5);
        assert!(Tensor::from_f32(Dtype::F32, [2], &[1.0, 2.0]).unwrap().to_number().is_err());
        assert!(Tensor::from_f32(Dtype::F32, [], &[f32::NAN]).unwrap().to_number().is_err());
    }

    #[test]
    fn the_narrow_type_is_taken_where_it_holds_the_number() {
        let of = |factor, rank, narrow| {
            let (tensor, exact) = tensor(Scale::direct(factor), rank, narrow).unwrap();
            (tensor.dtype, exact, tensor.to_number().unwrap())
        };
        assert_eq!(of(0.5, 16, Dtype::F16), (Dtype::F16, true, 8.0));
        assert_eq!(of(1.0, 257, Dtype::BF16), (Dtype::F32, true, 257.0));
        assert_eq!(of(0.1, 8, Dtype::F16), (Dtype::F64, true, 0.8));
        // There is no number whose third is this one.
        assert!(!of(0.1, 3, Dtype::F32).1);
    }
}
