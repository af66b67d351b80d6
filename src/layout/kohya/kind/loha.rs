//! LoHa: two products, each with a core of its own where a convolution is decomposed.

use super::super::alpha;
use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::Delta;
use crate::adapter::delta::{Hadamard, Product};
use crate::error::Result;

pub const KIND: Kind =
    Kind { marks: &["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"], read, write };

/// Suffixes of a product: a, b, core.
const W1: [&str; 3] = ["hada_w1_a", "hada_w1_b", "hada_t1"];
const W2: [&str; 3] = ["hada_w2_a", "hada_w2_b", "hada_t2"];

fn read(parts: &mut Parts) -> Result<Delta> {
    let scale = alpha::take(parts)?;
    let mut product = |[a, b, core]: [&'static str; 3]| -> Result<Product> {
        let out = Product { a: need(parts, a)?, b: need(parts, b)?, core: parts.remove(core) };
        out.shape()?;
        Ok(out)
    };
    let (w1, w2) = (product(W1)?, product(W2)?);
    Ok(Delta::Hadamard(Hadamard { w1, w2, scale }))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::Hadamard(d) = delta else { return Ok(None) };
    let product = |[a, b, core]: [&'static str; 3], p: &Product| {
        let core = p.core.clone().map(|tensor| (core, tensor));
        [(a, p.a.clone()), (b, p.b.clone())].into_iter().chain(core).collect::<Vec<_>>()
    };
    let tensors = [product(W1, &d.w1), product(W2, &d.w2)].concat();
    Ok(Some(Written { tensors, ..Written::default() }.scaled(d.scale, d.w1.rank())))
}
