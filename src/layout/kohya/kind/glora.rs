//! GLoRA: a product on the inputs and one that is added.

use super::super::alpha;
use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::InputGlora;
use crate::error::{Error, Result};

pub const KIND: Kind = Kind { marks: &["a1.weight", "a2.weight", "b1.weight", "b2.weight"], read, write };

fn read(parts: &mut Parts) -> Result<Delta> {
    if parts.contains_key("bm.weight") {
        return Err(Error::unsupported("GLoRA with a core bm, which no release of LyCORIS writes"));
    }
    let scale = alpha::take(parts)?;
    let (a1, a2) = (need(parts, "a1.weight")?, need(parts, "a2.weight")?);
    let (b1, b2) = (need(parts, "b1.weight")?, need(parts, "b2.weight")?);
    let old = InputGlora::is_old(&a1, &a2, &b1, &b2);
    Ok(Delta::InputGlora(InputGlora { a1, a2, b1, b2, old, scale }))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::InputGlora(d) = delta else { return Ok(None) };
    let all = [("a1.weight", &d.a1), ("a2.weight", &d.a2), ("b1.weight", &d.b1), ("b2.weight", &d.b2)];
    Ok(Some(Written::of(all).scaled(d.scale, d.rank())))
}
