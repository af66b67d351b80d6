//! The merge step on stored elements, in one defined order of operations.
//!
//! For every element, with w the widened weight:
//!
//! * each term's product is a chain of f32 fused multiply-adds over the rank, from zero: `d ← fma(b[k], a[k], d)`;
//! * the products are added to the weight in the order of the terms: `v ← fma(scale, d, v)`, from `v = w`;
//! * v is rounded once to the stored type, to nearest, ties to even; every NaN becomes the one positive quiet NaN of
//!   the type, since processors differ in the sign and payload they produce.
//!
//! For f64 the same, in f64. No operation depends on a neighbour, so all variants give the same bytes for any split
//! into rows and any width of strip. The plain loops are the definition; the vector variants are held to them
//! bit for bit by `tests/it/kernels.rs`.

#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod back;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod blocks;
pub mod guess;
pub mod inverse;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod lanes;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod plain;
mod sample;
mod stored;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod strips;
#[cfg(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))]
mod way;
#[cfg(target_arch = "x86_64")]
mod x86;

use guess::Found;

use crate::tensor::Dtype;

/// Element types the step works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE 754 double precision; the sums are f64, too.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl Element {
    /// The element type of a tensor, where the step works on it.
    pub fn of(dtype: Dtype) -> Option<Element> {
        match dtype {
            Dtype::F64 => Some(Element::F64),
            Dtype::F32 => Some(Element::F32),
            Dtype::F16 => Some(Element::F16),
            Dtype::BF16 => Some(Element::BF16),
            _ => None,
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Element::F64 => 8,
            Element::F32 => 4,
            Element::F16 | Element::BF16 => 2,
        }
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

impl Term<'_> {
    /// True where both factors hold what a step over `rows` and `cols` reads.
    fn covers(&self, rows: usize, cols: usize) -> bool {
        holds(self.a.len(), self.rank, self.a_stride, cols) && holds(self.b.len(), rows, self.b_stride, self.rank)
    }
}

/// True where `len` values hold `rows` rows of `cols`, `stride` apart.
fn holds(len: usize, rows: usize, stride: usize, cols: usize) -> bool {
    if rows == 0 || cols == 0 {
        return true;
    }
    (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols)).is_some_and(|end| end <= len)
}

/// What a step did, for the report. The wanted change of an element is `Σ scale · d` from zero, not `v - w`, which
/// cancels where the change is small beside the weight; the realised change is the difference of the stored values.
/// Elements that came out as NaN or infinity are left out of both sums.
///
/// The counts are exact. The sums are estimates where a call has 64 rows or more: sums over a sample of the rows, the
/// first 16 of every 256, scaled to all. They are taken in short f32 runs and depend, in their last digits, on the
/// variant, and with the sample on the split into calls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Number of elements.
    pub elements: u64,
    /// Elements whose stored bits are what they were.
    pub still: u64,
    /// Σ wanted², from the sample.
    pub wanted: f64,
    /// Σ wanted · realised, from the sample.
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

/// The implementations, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Plain loops: the definition.
    Plain,
    /// x86-64 with AVX2, FMA and F16C: 8 f32 lanes.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL: 16 f32 lanes.
    Avx512,
    /// 64-bit ARM: 4 f32 lanes.
    Neon,
}

impl Variant {
    const ALL: [Variant; 4] = [Variant::Plain, Variant::Neon, Variant::Avx2, Variant::Avx512];

    /// The name reports use.
    pub fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Avx2 => "avx2",
            Variant::Avx512 => "avx512",
            Variant::Neon => "neon",
        }
    }

    /// Those that can run on this machine, slowest first; never empty.
    pub fn present() -> Vec<Variant> {
        Variant::ALL.into_iter().filter(|v| v.runs_here()).collect()
    }

    /// The fastest that can run on this machine.
    pub fn fastest() -> Variant {
        Variant::ALL.into_iter().rev().find(|v| v.runs_here()).unwrap_or(Variant::Plain)
    }

    fn runs_here(self) -> bool {
        match self {
            Variant::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Variant::Avx2 => x86::has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Variant::Avx512 => x86::has_avx512(),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Variant::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which variants exist depends on the processor family")]
            _ => false,
        }
    }
}

/// Runs the step with the fastest variant here.
///
/// # Panics
///
/// As [`add_products_with`].
pub fn add_products(element: Element, w: &[u8], out: &mut [u8], rows: usize, cols: usize, terms: &[Term]) -> Moved {
    add_products_with(Variant::fastest(), element, w, out, rows, cols, terms)
}

/// Runs the step with one variant; one that cannot run here, or does not know the element type, is replaced by the
/// plain one. Starts no threads.
///
/// # Panics
///
/// Where a buffer does not have the size that `rows`, `cols` and the ranks ask for: shapes are checked by the callers,
/// before any number is touched.
pub fn add_products_with(
    variant: Variant,
    element: Element,
    w: &[u8],
    out: &mut [u8],
    rows: usize,
    cols: usize,
    terms: &[Term],
) -> Moved {
    check_sizes(element, (w.len(), out.len()), (rows, cols), terms);
    if w.is_empty() {
        return Moved::default();
    }
    dispatch(variant, Step { element, weights: Weights::Apart { w, out }, rows, cols, terms, found: None })
}

/// The step on a tile of f32 in place, with the fastest variant here: `rows` rows of `cols` values.
///
/// # Panics
///
/// As [`add_products_with`].
pub fn add_products_to_tile(values: &mut [f32], rows: usize, cols: usize, terms: &[Term]) -> Moved {
    add_products_to_tile_with(Variant::fastest(), values, rows, cols, terms)
}

/// [`add_products_to_tile`] with one variant.
///
/// # Panics
///
/// As [`add_products_with`].
pub fn add_products_to_tile_with(
    variant: Variant,
    values: &mut [f32],
    rows: usize,
    cols: usize,
    terms: &[Term],
) -> Moved {
    check_sizes(Element::F32, (size_of_val(values), size_of_val(values)), (rows, cols), terms);
    if values.is_empty() {
        return Moved::default();
    }
    dispatch(variant, Step { element: Element::F32, weights: Weights::Tile(values), rows, cols, terms, found: None })
}

/// Panics where the bytes of the weights and of the result are not those of so many elements, or a factor is too short.
pub(super) fn check_sizes(element: Element, bytes: (usize, usize), (rows, cols): (usize, usize), terms: &[Term]) {
    let expected = rows.checked_mul(cols).and_then(|n| n.checked_mul(element.bytes()));
    assert!(expected == Some(bytes.0) && bytes.0 == bytes.1, "weights of another size");
    assert!(terms.iter().all(|t| t.covers(rows, cols)), "a factor is too short");
}

/// Runs a step whose sizes have been checked.
fn dispatch(variant: Variant, step: Step) -> Moved {
    // The vector variants tell NaN and infinity by their sums, too, and for that a scale has to be finite.
    let ordinary = step.element != Element::F64 && step.terms.iter().all(|t| t.scale.is_finite());
    match variant {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs, and all sizes were checked above.
        Variant::Avx2 if ordinary && variant.runs_here() => unsafe { x86::avx2(step) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs, and all sizes were checked above.
        Variant::Avx512 if ordinary && variant.runs_here() => unsafe { x86::avx512(step) },
        #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
        // SAFETY: the processor has what the variant needs, and all sizes were checked above.
        Variant::Neon if ordinary && variant.runs_here() => unsafe { neon::neon(step) },
        _ => plain::run(step),
    }
}

/// One call, with its sizes checked.
struct Step<'a> {
    element: Element,
    weights: Weights<'a>,
    rows: usize,
    cols: usize,
    terms: &'a [Term<'a>],
    /// Where the weights go that are found back from the result, where that is asked for.
    found: Option<Found<'a>>,
}

/// Where a step finds its weights and leaves its result.
enum Weights<'a> {
    /// Stored elements, rows one after the other.
    Apart { w: &'a [u8], out: &'a mut [u8] },
    /// Values that are replaced.
    Tile(&'a mut [f32]),
}
