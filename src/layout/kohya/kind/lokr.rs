//! LoKr: two factors of a Kronecker product, each whole or a product itself.
//!
//! Where both are whole there is no rank, and the scale is 1 whatever alpha says (KohakuBlueleaf/LyCORIS,
//! `lycoris/modules/lokr.py`).

use super::super::alpha;
use super::super::keys::Parts;
use super::{Kind, Written, need};
use crate::adapter::delta::kronecker::{Factor, Padding};
use crate::adapter::delta::{Kronecker, Product};
use crate::adapter::fold::{self, Folded};
use crate::adapter::{Delta, Note, Scale};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub const KIND: Kind =
    Kind { marks: &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"], read, write };

/// Suffixes of a factor: whole, a, b, core.
const W1: [&str; 4] = ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1"];
const W2: [&str; 4] = ["lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"];

fn read(parts: &mut Parts) -> Result<Delta> {
    let stored = alpha::take(parts)?;
    let (w1, w2) = (factor(parts, W1)?, factor(parts, W2)?);
    let whole = [&w1, &w2].iter().all(|factor| matches!(factor, Factor::Whole(_)));
    let scale = if whole { Scale::direct(1.0) } else { stored };
    Ok(Delta::Kronecker(Kronecker { w1, w2, scale, padding: Padding::Behind }))
}

fn factor(parts: &mut Parts, [whole, a, b, core]: [&'static str; 4]) -> Result<Factor> {
    if let Some(tensor) = parts.remove(whole) {
        return Ok(Factor::Whole(tensor));
    }
    let product = Product { a: need(parts, a)?, b: need(parts, b)?, core: parts.remove(core) };
    product.shape()?;
    Ok(Factor::Product(product))
}

fn write(delta: &Delta) -> Result<Option<Written>> {
    let Delta::Kronecker(d) = delta else { return Ok(None) };
    if d.mixes_axes() {
        let what = "LoKr of PEFT's on a convolution along one axis, whose product is reshaped to the weight's axes";
        return Err(Error::unsupported(what));
    }
    let mut out = Written::default();
    match (&d.w1, &d.w2) {
        (Factor::Whole(w1), Factor::Whole(w2)) => {
            let w1 = folded(w1, d.scale.factor(d.rank()), &mut out.notes)?;
            out.tensors = vec![(W1[0], w1), (W2[0], w2.clone())];
            // Read as no scale; LyCORIS itself writes the rank it was told.
            return Ok(Some(out.scaled(Scale::direct(1.0), 1)));
        }
        (w1, w2) => {
            out.tensors = [tensors(W1, w1), tensors(W2, w2)].concat();
        }
    }
    Ok(Some(out.scaled(d.scale, d.rank())))
}

fn tensors([whole, a, b, core]: [&'static str; 4], factor: &Factor) -> Vec<(&'static str, Tensor)> {
    match factor {
        Factor::Whole(tensor) => vec![(whole, tensor.clone())],
        Factor::Product(p) => {
            let core = p.core.clone().map(|tensor| (core, tensor));
            [(a, p.a.clone()), (b, p.b.clone())].into_iter().chain(core).collect()
        }
    }
}

fn folded(w1: &Tensor, factor: f64, notes: &mut Vec<Note>) -> Result<Tensor> {
    if factor == 1.0 {
        return Ok(w1.clone());
    }
    let Folded { tensor, exact, widened } = fold::scaled(w1, factor)?;
    let text = format!("scale {factor} folded into lokr_w1, since two whole factors have none in this layout");
    notes.push(match (exact, widened) {
        (true, false) => Note::info("", text),
        (true, true) => Note::info("", format!("{text}; it becomes {}", tensor.dtype)),
        (false, _) => Note::lossy("", format!("{text}; rounded to {}", tensor.dtype)),
    });
    Ok(tensor)
}
