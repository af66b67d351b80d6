//! What an instruction set brings to the step ([`Lanes`]), and what an element type is to it ([`Kind`]).

use super::Element;

/// Columns of the widest register block.
pub(super) const MOST_COLS: usize = 64;
/// Rows of the tallest register block.
pub(super) const MOST_ROWS: usize = 8;

/// The instructions of one variant. A *pair* is two vectors that hold neighbouring columns: first half and second
/// half, or, where the element type is [`Kind::INTERLEAVED`], the even and the odd ones.
///
/// # Safety
///
/// Every method needs the processor features of the variant, and its pointers must be good for a pair of the element
/// in question; none needs to be aligned but those of `load`.
pub(super) trait Lanes: Copy {
    /// f32 lanes of a vector.
    const WIDTH: usize;
    /// A vector of f32.
    type F: Copy;
    /// A vector of integers.
    type N: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn none() -> Self::N;
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads an aligned vector.
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn loadu(p: *const f32) -> Self::F;
    unsafe fn storeu(p: *mut f32, x: Self::F);
    /// Asks for a cache line, where the processor has an instruction for it; the address may be any.
    unsafe fn fetch(p: *const u8);
    unsafe fn add(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn sub(x: Self::F, y: Self::F) -> Self::F;
    /// `x · y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    /// True where no lane is NaN or infinite.
    unsafe fn finite(x: Self::F) -> bool;
    /// The even and the odd columns of two neighbouring vectors, and back.
    unsafe fn deinterleave(pair: [Self::F; 2]) -> [Self::F; 2];
    unsafe fn interleave(pair: [Self::F; 2]) -> [Self::F; 2];

    unsafe fn read_f32(p: *const u8) -> [Self::F; 2];
    unsafe fn read_f16(p: *const u8) -> [Self::F; 2];
    unsafe fn read_bf16(p: *const u8) -> [Self::F; 2];
    /// Rounds a pair to `out`, notes in `seen` what is stored in `old` already and how large it is, and returns what is
    /// stored now. `old` is read before `out` is written.
    unsafe fn write_f32(out: *mut u8, v: [Self::F; 2], old: *const u8, seen: &mut Seen<Self>) -> [Self::F; 2];
    unsafe fn write_f16(out: *mut u8, v: [Self::F; 2], old: *const u8, seen: &mut Seen<Self>) -> [Self::F; 2];
    unsafe fn write_bf16(out: *mut u8, v: [Self::F; 2], old: *const u8, seen: &mut Seen<Self>) -> [Self::F; 2];
    /// The sum of counters of 16 bits, and of 32.
    unsafe fn count16(n: Self::N) -> u64;
    unsafe fn count32(n: Self::N) -> u64;
    /// True where every lane of 16 bits, without sign, is below a limit, and the same for 32.
    unsafe fn below16(n: Self::N, limit: i16) -> bool;
    unsafe fn below32(n: Self::N, limit: i32) -> bool;
}

/// What is noted of the elements of a block, in integers: those operations are free beside the multiply-adds.
#[derive(Clone, Copy)]
pub(super) struct Seen<L: Lanes> {
    /// Elements whose stored bits are what they were.
    pub still: L::N,
    /// Bits of the largest magnitude: of what is stored, or, for bf16, of the upper half of what was rounded, as the
    /// rounding of a NaN can wrap to a number.
    pub top: L::N,
}

/// Defines the methods of [`Lanes`], each always inlined into the function that has the features.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $type),*) $(-> $out)? {
                // SAFETY: the caller has the features of the variant, and pointers to what is read or written.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use methods;

/// An element type, as the blocks see it. Safety as for [`Lanes`].
pub(super) trait Kind {
    const ELEMENT: Element;
    const BYTES: usize;
    /// Whether a pair holds even and odd columns, which for bf16 makes widening and rounding shifts and masks.
    const INTERLEAVED: bool;
    unsafe fn read<L: Lanes>(p: *const u8) -> [L::F; 2];
    unsafe fn write<L: Lanes>(out: *mut u8, v: [L::F; 2], old: *const u8, seen: &mut Seen<L>) -> [L::F; 2];
    unsafe fn count<L: Lanes>(still: L::N) -> u64;
    /// True where no element with these magnitudes was stored as NaN or infinity.
    unsafe fn finite<L: Lanes>(top: L::N) -> bool;
}

macro_rules! kind {
    (
        $name:ident, bytes: $bytes:literal, interleaved: $interleaved:literal, $read:ident, $write:ident, $count:ident,
        $below:ident($limit:literal)
    ) => {
        pub(super) struct $name;
        impl Kind for $name {
            const ELEMENT: Element = Element::$name;
            const BYTES: usize = $bytes;
            const INTERLEAVED: bool = $interleaved;
            #[inline(always)]
            unsafe fn read<L: Lanes>(p: *const u8) -> [L::F; 2] {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$read(p) }
            }
            #[inline(always)]
            unsafe fn write<L: Lanes>(out: *mut u8, v: [L::F; 2], old: *const u8, seen: &mut Seen<L>) -> [L::F; 2] {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$write(out, v, old, seen) }
            }
            #[inline(always)]
            unsafe fn count<L: Lanes>(still: L::N) -> u64 {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$count(still) }
            }
            #[inline(always)]
            unsafe fn finite<L: Lanes>(top: L::N) -> bool {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$below(top, $limit) }
            }
        }
    };
}
kind!(F32, bytes: 4, interleaved: false, read_f32, write_f32, count32, below32(0x7f80_0000));
kind!(F16, bytes: 2, interleaved: false, read_f16, write_f16, count16, below16(0x7c00));
// From 2^127 on, since rounding may still go up to infinity.
kind!(BF16, bytes: 2, interleaved: true, read_bf16, write_bf16, count16, below16(0x7f00));
