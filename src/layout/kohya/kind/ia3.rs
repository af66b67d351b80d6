//! IA³: a factor, less one, for every input or every output. `weight` alone is anybody's suffix; `on_input` is the mark.

use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::Rescale;
use crate::adapter::delta::rescale::Along;
use crate::error::{Context, Error, Result};
use crate::tensor::{Dtype, Tensor};

pub const KIND: Kind = Kind { marks: &["on_input"], read, write };

fn read(parts: &mut Parts) -> Result<Delta> {
    let on_input = need(parts, "on_input")?.to_number().at_key("on_input")? != 0.0;
    let factors = need(parts, "weight")?;
    let axis = if on_input { Along::Cols } else { Along::Rows };
    Ok(Delta::Rescale(Rescale { factors, axis, less_one: true }))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::Rescale(d) = delta else { return Ok(None) };
    if !d.less_one {
        let what = "IA3 as PEFT stores it; this layout stores the factors less one, which would round them";
        return Err(Error::unsupported(what));
    }
    let on_input = i64::from(d.axis == Along::Cols).to_le_bytes().to_vec();
    let on_input = Tensor::new(Dtype::I64, Vec::new().as_slice().into(), on_input.into())?;
    Ok(Some(Written::of([("weight", &d.factors), ("on_input", &on_input)])))
}
