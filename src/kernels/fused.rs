//! The merge step on stored elements, in one defined order of operations.
//!
//! For every element: each term's product is a chain of fused multiply-adds over the rank, from zero; the chain is
//! added to the widened weight by one more, with the scale; the sum is rounded once to the stored type, to nearest
//! even. The order is the same for every variant, so all give the same bytes.

use half::{bf16, f16};

/// Element types the step works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl Element {
    /// The element type of a dtype, where the step works on it.
    pub fn of(dtype: crate::tensor::Dtype) -> Option<Element> {
        match dtype {
            crate::tensor::Dtype::F32 => Some(Element::F32),
            crate::tensor::Dtype::F16 => Some(Element::F16),
            crate::tensor::Dtype::BF16 => Some(Element::BF16),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }
}

/// One low-rank term `scale · b · a`, a: [rank, cols], b: [rows, rank], each with the distance between its rows.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Values of a.
    pub a: &'a [f32],
    /// Distance between rows of a.
    pub a_stride: usize,
    /// Values of b.
    pub b: &'a [f32],
    /// Distance between rows of b.
    pub b_stride: usize,
    /// Rank.
    pub rank: usize,
    /// Multiplier of the product.
    pub scale: f32,
}

/// What a step did, for the report: sums over its elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Number of elements.
    pub elements: u64,
    /// Elements whose stored value is what it was.
    pub still: u64,
    /// Σ wanted², wanted being the change before rounding.
    pub wanted: f64,
    /// Σ wanted · realised, realised being the change after rounding.
    pub along: f64,
    /// Elements that came out as NaN or infinity.
    pub nonfinite: u64,
}

impl Moved {
    /// Adds the sums of another part.
    pub fn add(&mut self, other: &Moved) {
        self.elements += other.elements;
        self.still += other.still;
        self.wanted += other.wanted;
        self.along += other.along;
        self.nonfinite += other.nonfinite;
    }
}

/// The implementations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Plain loops.
    Plain,
}

/// Runs the step with the fastest variant here.
pub fn add_products(element: Element, w: &[u8], out: &mut [u8], rows: usize, cols: usize, terms: &[Term]) -> Moved {
    add_products_with(Variant::Plain, element, w, out, rows, cols, terms)
}

/// Runs the step with one variant.
pub fn add_products_with(
    _variant: Variant,
    element: Element,
    w: &[u8],
    out: &mut [u8],
    rows: usize,
    cols: usize,
    terms: &[Term],
) -> Moved {
    let size = element.bytes();
    assert!(w.len() == rows * cols * size && out.len() == w.len(), "buffers of another size");
    let mut moved = Moved { elements: (rows * cols) as u64, ..Moved::default() };
    for i in 0..rows {
        for j in 0..cols {
            let at = (i * cols + j) * size;
            let old = load(element, &w[at..at + size]);
            let mut v = old;
            for t in terms {
                let mut d = 0f32;
                for k in 0..t.rank {
                    d = t.b[i * t.b_stride + k].mul_add(t.a[k * t.a_stride + j], d);
                }
                v = t.scale.mul_add(d, v);
            }
            let new = store(element, v, &mut out[at..at + size]);
            let (wanted, realised) = (f64::from(v - old), f64::from(new - old));
            moved.wanted += wanted * wanted;
            moved.along += wanted * realised;
            moved.still += u64::from(w[at..at + size] == out[at..at + size]);
            moved.nonfinite += u64::from(!new.is_finite());
        }
    }
    moved
}

fn load(element: Element, b: &[u8]) -> f32 {
    match element {
        Element::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Element::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Element::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
    }
}

fn store(element: Element, v: f32, out: &mut [u8]) -> f32 {
    match element {
        Element::F32 => {
            out.copy_from_slice(&v.to_le_bytes());
            v
        }
        Element::F16 => {
            let h = f16::from_f32(v);
            out.copy_from_slice(&h.to_le_bytes());
            h.to_f32()
        }
        Element::BF16 => {
            let h = bf16::from_f32(v);
            out.copy_from_slice(&h.to_le_bytes());
            h.to_f32()
        }
    }
}
