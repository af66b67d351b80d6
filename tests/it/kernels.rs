//! The kernels: the fused step's variants against the plain one bit for bit and against f64 within a unit; each
//! backend against the definition of each operation, by normalised error and by multiplying with a random vector.

use half::{bf16, f16};
use lora_tool::kernels;
use lora_tool::kernels::fused::{self, Element, Moved, Term, Variant};
use ndarray::{Array1, Array2, ArrayView2, s};

/// Xorshift, so that every run sees the same numbers.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 16) as usize % n
    }
    /// Roughly normal, deviation one.
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.bits() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
    fn matrix(&mut self, m: usize, n: usize) -> Array2<f32> {
        Array2::from_shape_fn((m, n), |_| self.normal())
    }
}

// --- the fused step ---------------------------------------------------------------------------------------------

const ELEMENTS: [Element; 4] = [Element::F64, Element::F32, Element::F16, Element::BF16];

pub fn stored(element: Element, values: impl Iterator<Item = f32>) -> Vec<u8> {
    values
        .flat_map(|v| match element {
            Element::F64 => f64::from(v).to_le_bytes().to_vec(),
            Element::F32 => v.to_le_bytes().to_vec(),
            Element::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
            Element::BF16 => bf16::from_f32(v).to_le_bytes().to_vec(),
        })
        .collect()
}

/// Factors with rows further apart than they are long.
pub struct Owned {
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    a_stride: usize,
    b_stride: usize,
    rank: usize,
    pub scale: f32,
}

impl Owned {
    pub fn new(random: &mut Random, rows: usize, cols: usize, rank: usize) -> Owned {
        let (a_stride, b_stride) = (cols + random.below(5), rank + random.below(3));
        let (a, b) = (random.normals(rank * a_stride), random.normals(rows * b_stride));
        Owned { a, b, a_stride, b_stride, rank, scale: random.normal() * 0.05 }
    }
    pub fn term(&self, first_row: usize) -> Term<'_> {
        let b = self.b.get(first_row * self.b_stride..).unwrap_or(&[]);
        let Owned { a, a_stride, b_stride, rank, scale, .. } = self;
        Term { a, a_stride: *a_stride, b, b_stride: *b_stride, rank: *rank, scale: *scale }
    }
}

fn run(
    v: Variant,
    e: Element,
    w: &[u8],
    (rows, cols): (usize, usize),
    terms: &[Owned],
    split: usize,
) -> (Vec<u8>, Moved) {
    let mut out = vec![0xaa; w.len()];
    let mut moved = Moved::default();
    let row = cols * e.bytes();
    for first in (0..rows).step_by(split.max(1)) {
        let last = rows.min(first + split);
        let terms: Vec<Term> = terms.iter().map(|t| t.term(first)).collect();
        let (w, out) = (&w[first * row..last * row], &mut out[first * row..last * row]);
        moved.add(&fused::add_products_with(v, e, w, out, last - first, cols, &terms));
    }
    (out, moved)
}

fn close(x: f64, y: f64) -> bool {
    (x - y).abs() <= 1e-4 * x.abs().max(y.abs())
}

#[track_caller]
pub fn same(what: &str, (bytes, moved): &(Vec<u8>, Moved), (plain, expected): &(Vec<u8>, Moved)) {
    let differ = bytes.iter().zip(plain).filter(|(x, y)| x != y).count();
    assert!(differ == 0, "{what}: {differ} of {} bytes differ", bytes.len());
    assert_eq!(
        (moved.elements, moved.still, moved.nonfinite),
        (expected.elements, expected.still, expected.nonfinite),
        "{what}"
    );
    assert!(close(moved.wanted, expected.wanted), "{what}: wanted {} {}", moved.wanted, expected.wanted);
    // Rounding may make `along` a difference of large numbers; its size is that of `wanted`.
    let slack = 1e-4 * expected.wanted.max(expected.along.abs());
    assert!((moved.along - expected.along).abs() <= slack, "{what}: along {} {}", moved.along, expected.along);
}

#[test]
fn variants_give_the_same_bytes() {
    let mut random = Random::new(1);
    let mut shapes =
        vec![(0, 5), (5, 0), (1, 1), (1, 64), (7, 1), (13, 97), (6, 16), (64, 130), (3, 1100), (9, 5053), (300, 70)];
    shapes.extend((0..30).map(|_| (1 + random.below(40), 1 + random.below(300))));
    for (rows, cols) in shapes {
        for element in ELEMENTS {
            let count = [1, 1, 2, 3, 0][random.below(5)];
            let terms: Vec<Owned> = (0..count)
                .map(|_| {
                    let rank = [0, 1, 2, 3, 7, 8, 16, 31, 64][random.below(9)];
                    Owned::new(&mut random, rows, cols, rank)
                })
                .collect();
            let w = stored(element, (0..rows * cols).map(|_| random.normal() * 0.03));
            for split in [rows, 1, 5] {
                // The rows that are measured depend on the split; that the bytes do not, the plain loops show.
                let plain = run(Variant::Plain, element, &w, (rows, cols), &terms, split);
                for variant in Variant::present() {
                    let ranks: Vec<usize> = terms.iter().map(|t| t.rank).collect();
                    let what = format!("{variant:?} {element:?} {rows}x{cols} ranks {ranks:?} split {split}");
                    same(&what, &run(variant, element, &w, (rows, cols), &terms, split), &plain);
                }
            }
        }
    }
}

#[test]
fn large_ranks_give_the_same_bytes() {
    let mut random = Random::new(2);
    for rank in [128, 255, 256, 300, 3000] {
        let (rows, cols) = (11, 157);
        let terms = [Owned::new(&mut random, rows, cols, rank), Owned::new(&mut random, rows, cols, 5)];
        for terms in [&terms[..1], &terms[..]] {
            let w = stored(Element::BF16, (0..rows * cols).map(|_| random.normal()));
            let plain = run(Variant::Plain, Element::BF16, &w, (rows, cols), terms, rows);
            for variant in Variant::present() {
                let what = format!("{variant:?} rank {rank}");
                same(&what, &run(variant, Element::BF16, &w, (rows, cols), terms, 4), &plain);
            }
        }
    }
}

/// Numbers out of the ordinary.
pub fn special_values() -> [f32; 20] {
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-40,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0x7fff_ffff),
        65504.0,
        65520.0,
        6e-8,
        3e-8,
        1e-3,
    ]
}

/// Weights of all 65536 patterns, and factors among which are zeros, subnormals, the largest numbers and infinities.
#[test]
fn special_values_give_the_same_bytes() {
    let mut random = Random::new(3);
    let (rows, cols) = (256, 256);
    for element in ELEMENTS {
        let w: Vec<u8> = match element.bytes() {
            2 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
            4 => (0..65536u32).flat_map(|i| (i.wrapping_mul(65537) ^ (i >> 3)).to_le_bytes()).collect(),
            _ => (0..65536u64).flat_map(|i| (i << 48 | random.bits() >> 16).to_le_bytes()).collect(),
        };
        for scale in [0.0, 1.0, -0.5, 1e-30, 1e38, f32::INFINITY, f32::NAN, f32::from_bits(0x7fff_ffff)] {
            // Mostly ordinary factors first, so that most blocks have only a few elements out of the ordinary.
            for rare in [1, 40, 1 << 40] {
                for count in [1, 2] {
                    let mut terms: Vec<Owned> = (0..count).map(|_| Owned::new(&mut random, rows, cols, 3)).collect();
                    for t in &mut terms {
                        t.scale = scale;
                        for x in t.a.iter_mut().chain(&mut t.b) {
                            if random.below(rare) == 0 {
                                *x = special_values()[random.below(special_values().len())];
                            }
                        }
                    }
                    let (plain, expected) = run(Variant::Plain, element, &w, (rows, cols), &terms, rows);
                    for variant in Variant::present() {
                        let (bytes, moved) = run(variant, element, &w, (rows, cols), &terms, 100);
                        let what = format!("{variant:?} {element:?} scale {scale} rare {rare} terms {count}");
                        let at = bytes.iter().zip(&plain).position(|(x, y)| x != y);
                        assert_eq!(at.map(|i| i / element.bytes()), None, "{what}");
                        assert_eq!((moved.still, moved.nonfinite), (expected.still, expected.nonfinite), "{what}");
                        assert!(!moved.wanted.is_nan() && !moved.along.is_nan(), "{what}");
                    }
                }
            }
        }
    }
}

/// Without a change every number keeps its bits, but for a negative zero plus zero and for NaN, which has one form.
#[test]
fn a_product_of_zero_changes_nothing() {
    let w: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (element, nan) in [(Element::BF16, bf16::from_f32(f32::NAN).to_bits()), (Element::F16, f16::NAN.to_bits())] {
        let (a, b) = (vec![0f32; 256], vec![1f32; 256]);
        let term = Term { a: &a, a_stride: 256, b: &b, b_stride: 1, rank: 1, scale: 1.0 };
        for variant in Variant::present() {
            let mut out = vec![0u8; w.len()];
            fused::add_products_with(variant, element, &w, &mut out, 256, 256, &[term]);
            for (i, word) in out.as_chunks::<2>().0.iter().enumerate() {
                let value = match element {
                    Element::F16 => f16::from_bits(i as u16).to_f32(),
                    _ => bf16::from_bits(i as u16).to_f32(),
                };
                let expected = match (value.is_nan(), i) {
                    (true, _) => nan,
                    (_, 0x8000) => 0,
                    _ => i as u16,
                };
                assert_eq!(u16::from_le_bytes(*word), expected, "{variant:?} {element:?} {i:#x}");
            }
        }
    }
}

/// Against the exact result, rounded once.
#[test]
fn nearly_every_element_is_correctly_rounded() {
    let mut random = Random::new(4);
    let (rows, cols) = (290, 256);
    for rank in [8, 16, 64] {
        let mut term = Owned::new(&mut random, rows, cols, rank);
        term.scale = 0.02;
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() * 0.03).collect();
        let w = stored(Element::BF16, values.iter().copied());
        for variant in Variant::present() {
            let terms = std::slice::from_ref(&term);
            let (out, moved) = run(variant, Element::BF16, &w, (rows, cols), terms, rows);
            let (mut rounded, mut wanted, mut along) = (0, 0f64, 0f64);
            for i in 0..rows {
                for j in 0..cols {
                    let at = 2 * (i * cols + j);
                    let read = |bytes: &[u8]| bf16::from_le_bytes([bytes[at], bytes[at + 1]]);
                    let (old, new) = (read(&w), read(&out));
                    let d: f64 = (0..rank)
                        .map(|k| f64::from(term.b[i * term.b_stride + k]) * f64::from(term.a[k * term.a_stride + j]))
                        .sum();
                    let change = f64::from(term.scale) * d;
                    let exact = bf16::from_f64(f64::from(old.to_f32()) + change);
                    rounded += usize::from(exact == new);
                    assert!((i32::from(exact.to_bits()) - i32::from(new.to_bits())).abs() <= 1, "{variant:?} {i} {j}");
                    // The sums are estimates from the first 16 rows of every 256.
                    if i % 256 < 16 {
                        wanted += change * change * (290.0 / 32.0);
                        along += change * (f64::from(new.to_f32()) - f64::from(old.to_f32())) * (290.0 / 32.0);
                    }
                }
            }
            let share = rounded as f64 / (rows * cols) as f64;
            assert!(share >= 0.999, "{variant:?} rank {rank}: {share}");
            assert!(close(moved.wanted, wanted), "{variant:?} {} {wanted}", moved.wanted);
            assert!(close(moved.along, along), "{variant:?} {} {along}", moved.along);
        }
    }
}

/// A change far below a unit in the last place: the stored value stays, the wanted change is still seen.
#[test]
fn changes_that_rounding_swallows_are_counted() {
    let (a, b) = (vec![1f32; 100], vec![1f32; 4]);
    let term = Term { a: &a, a_stride: 100, b: &b, b_stride: 1, rank: 1, scale: 1e-7 };
    let w = stored(Element::BF16, std::iter::repeat_n(1.0, 400));
    for variant in Variant::present() {
        let mut out = vec![0u8; w.len()];
        let moved = fused::add_products_with(variant, Element::BF16, &w, &mut out, 4, 100, &[term]);
        assert_eq!((moved.elements, moved.still, moved.along), (400, 400, 0.0), "{variant:?}");
        assert!(close(moved.wanted, 400.0 * 1e-14), "{variant:?} {}", moved.wanted);
    }
}

/// A change on a weight of zero comes out as `half` rounds it: all upper halves, with lower halves around every kind of
/// rounding.
#[test]
fn rounding_is_that_of_half() {
    for lower in [0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffffu32] {
        let a: Vec<f32> = (0..=0xffffu32).map(|upper| f32::from_bits(upper << 16 | lower)).collect();
        let term = Term { a: &a, a_stride: a.len(), b: &[1.0], b_stride: 1, rank: 1, scale: 1.0 };
        for element in [Element::BF16, Element::F16] {
            let zeros = vec![0u8; 2 * a.len()];
            for variant in Variant::present() {
                let mut out = zeros.clone();
                fused::add_products_with(variant, element, &zeros, &mut out, 1, a.len(), &[term]);
                for (x, word) in a.iter().zip(out.as_chunks::<2>().0) {
                    // Negative zero plus zero is positive; NaN has one form.
                    let x = if x.is_nan() { f32::NAN } else { *x + 0.0 };
                    let expected = match element {
                        Element::F16 => f16::from_f32(x).to_le_bytes(),
                        _ => bf16::from_f32(x).to_le_bytes(),
                    };
                    assert_eq!(*word, expected, "{variant:?} {element:?} {:#x}", x.to_bits());
                }
            }
        }
    }
}

/// NaN, infinity and what did not move are counted in all rows, not only in those of the sample.
#[test]
fn counts_are_exact() {
    let mut random = Random::new(10);
    let (rows, cols) = (280, 201);
    for element in ELEMENTS {
        for count in [1, 2] {
            let mut terms: Vec<Owned> = (0..count).map(|_| Owned::new(&mut random, rows, cols, 4)).collect();
            // Rows of b that are zero change nothing.
            for t in &mut terms {
                t.scale = 0.5;
                for row in (0..rows).filter(|row| row % 7 == 3) {
                    t.b[row * t.b_stride..][..4].fill(0.0);
                }
            }
            let odd = |at: usize| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3];
            let w = stored(element, (0..rows * cols).map(|at| if at % 997 == 5 { odd(at) } else { random.normal() }));
            let expected = (0..rows * cols).filter(|at| at % 997 == 5).count() as u64;
            let plain = run(Variant::Plain, element, &w, (rows, cols), &terms, rows);
            assert_eq!(plain.1.nonfinite, expected, "{element:?}");
            let still = w.chunks(element.bytes()).zip(plain.0.chunks(element.bytes())).filter(|(x, y)| x == y).count();
            assert_eq!(plain.1.still, still as u64, "{element:?}");
            for variant in Variant::present() {
                let got = run(variant, element, &w, (rows, cols), &terms, rows);
                same(&format!("{variant:?} {element:?} {count}"), &got, &plain);
            }
        }
    }
}

/// A tile in place against the same step from one buffer to another.
#[test]
fn a_tile_in_place_gives_the_same_values() {
    let mut random = Random::new(11);
    for (rows, cols, rank) in [(1, 1, 1), (7, 130, 5), (70, 33, 16), (9, 4200, 3), (3, 5, 0)] {
        for rare in [13, usize::MAX >> 20] {
            let terms = [Owned::new(&mut random, rows, cols, rank), Owned::new(&mut random, rows, cols, 2)];
            let mut number = || if random.below(rare) == 0 { f32::NAN } else { random.normal() };
            let tile: Vec<f32> = (0..rows * cols).map(|_| number()).collect();
            let w = stored(Element::F32, tile.iter().copied());
            for terms in [&terms[..0], &terms[..1], &terms[..]] {
                let (plain, expected) = run(Variant::Plain, Element::F32, &w, (rows, cols), terms, rows);
                let terms: Vec<Term> = terms.iter().map(|t| t.term(0)).collect();
                for variant in Variant::present() {
                    let mut values = tile.clone();
                    let moved = fused::add_products_to_tile_with(variant, &mut values, rows, cols, &terms);
                    let bytes = stored(Element::F32, values.into_iter());
                    let what = format!("{variant:?} {rows}x{cols} terms {}", terms.len());
                    same(&what, &(bytes, moved), &(plain.clone(), expected));
                }
            }
        }
    }
}

#[test]
fn a_double_keeps_its_digits() {
    let (a, b) = ([1f32, 2.0], [0.5f32]);
    let term = Term { a: &a, a_stride: 2, b: &b, b_stride: 1, rank: 1, scale: 2f32.powi(-40) };
    let w: Vec<u8> = [1f64, -3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = vec![0u8; 16];
    let moved = fused::add_products(Element::F64, &w, &mut out, 1, 2, &[term]);
    let values: Vec<f64> = out.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    assert_eq!(values, [1.0 + 2f64.powi(-41), -3.0 + 2f64.powi(-40)]);
    assert_eq!(moved.still, 0);
}

// --- backends ---------------------------------------------------------------------------------------------------

/// ‖x - y‖² / ‖y‖².
fn error(x: ArrayView2<f32>, y: &Array2<f64>) -> f64 {
    assert_eq!(x.dim(), y.dim());
    let off: f64 = x.iter().zip(y).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum();
    let size: f64 = y.iter().map(|y| y * y).sum();
    if off == 0.0 { 0.0 } else { off / size.max(1e-30) }
}

fn wide(x: &ArrayView2<f32>) -> Array2<f64> {
    x.mapv(f64::from)
}

/// ‖(c - a · b) z‖ against ‖a · b · z‖ for a random z, without a second product of matrices.
fn identity(random: &mut Random, c: ArrayView2<f32>, factors: &[Array2<f64>]) -> f64 {
    let z = Array1::from_shape_fn(c.ncols(), |_| f64::from(random.normal()));
    let got = wide(&c).dot(&z);
    let expected = factors.iter().rev().fold(z, |z, m| m.dot(&z));
    let (off, size) = (&got - &expected, expected.dot(&expected).sqrt());
    let off = off.dot(&off).sqrt();
    if off == 0.0 { 0.0 } else { off / size.max(1e-30) }
}

const SHAPES: [(usize, usize, usize); 11] = [
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
    (1, 1, 1),
    (1, 17, 1),
    (7, 13, 5),
    (31, 37, 41),
    (300, 8, 4),
    (4, 8, 300),
    (64, 64, 64),
    (129, 3, 257),
];

#[test]
fn gemm_of_every_backend() {
    let mut random = Random::new(5);
    for kernels in kernels::present() {
        for (m, k, n) in SHAPES {
            for form in 0..8 {
                let (turn_a, turn_b, sparse) = (form & 1 != 0, form & 2 != 0, form & 4 != 0);
                // Transposed views, and views of every second column.
                let step = if sparse { 2 } else { 1 };
                let base_a = if turn_a { random.matrix(k, m * step) } else { random.matrix(m, k * step) };
                let base_b = if turn_b { random.matrix(n, k * step) } else { random.matrix(k, n * step) };
                let (view_a, view_b) = (base_a.slice(s![.., ..; step]), base_b.slice(s![.., ..; step]));
                let a = if turn_a { view_a.reversed_axes() } else { view_a };
                let b = if turn_b { view_b.reversed_axes() } else { view_b };
                let what = format!("{} {m}x{k}x{n} form {form}", kernels.name());
                let product = wide(&a).dot(&wide(&b));

                let mut c = Array2::from_elem((m, n), f32::NAN); // beta = 0 overwrites
                kernels.gemm(1.0, a, b, 0.0, c.view_mut()).unwrap();
                assert!(error(c.view(), &product) < 1e-12, "{what}");
                assert!(identity(&mut random, c.view(), &[wide(&a), wide(&b)]) < 1e-5, "{what}");

                let before = random.matrix(m, n);
                let mut c = before.clone();
                kernels.gemm(0.5, a, b, -2.0, c.view_mut()).unwrap();
                assert!(error(c.view(), &(0.5 * &product - 2.0 * wide(&before.view()))) < 1e-12, "{what}");
            }
        }
        let (a, mut c) = (Array2::zeros((2, 3)), Array2::zeros((2, 2)));
        assert!(kernels.gemm(1.0, a.view(), a.view(), 0.0, c.view_mut()).is_err());
    }
}

/// Matrices to factorise: empty, single, prime, tall, wide, transposed, of deficient rank.
fn to_factorise(random: &mut Random) -> Vec<Array2<f32>> {
    let mut out: Vec<Array2<f32>> =
        [(0, 3), (3, 0), (1, 1), (1, 7), (7, 1), (13, 13), (37, 11), (11, 37), (200, 3), (3, 200), (61, 59)]
            .map(|(m, n)| random.matrix(m, n))
            .into();
    out.push(random.matrix(19, 23).reversed_axes());
    out.push(random.matrix(40, 2).dot(&random.matrix(2, 17)));
    out.push(Array2::zeros((5, 4)));
    out
}

/// Largest entry of |xᵀ · x - 1|.
fn skew(x: &ArrayView2<f32>) -> f64 {
    let x = wide(x);
    let gram = x.t().dot(&x);
    gram.indexed_iter().map(|((i, j), g)| (g - f64::from(u8::from(i == j))).abs()).fold(0.0, f64::max)
}

#[test]
fn qr_of_every_backend() {
    let mut random = Random::new(6);
    let matrices = to_factorise(&mut random);
    for kernels in kernels::present() {
        for a in &matrices {
            let what = format!("{} {:?}", kernels.name(), a.dim());
            let (q, r) = kernels.qr(a.view()).unwrap();
            let k = a.nrows().min(a.ncols());
            assert_eq!((q.dim(), r.dim()), ((a.nrows(), k), (k, a.ncols())), "{what}");
            let product = q.view().mapv(f64::from).dot(&wide(&r.view()));
            assert!(error(a.view(), &product) < 1e-11, "{what}");
            assert!(identity(&mut random, a.view(), &[wide(&q.view()), wide(&r.view())]) < 1e-5, "{what}");
            assert!(r.indexed_iter().all(|((i, j), &x)| i <= j || x == 0.0), "{what}");
            // Where the rank is deficient, the definition may leave columns of q empty.
            let full = r.diag().iter().all(|d| d.abs() > 1e-3);
            assert!(!full || skew(&q.view()) < 1e-5, "{what}: {}", skew(&q.view()));
        }
    }
}

#[test]
fn svd_of_every_backend() {
    let mut random = Random::new(7);
    let matrices = to_factorise(&mut random);
    for kernels in kernels::present() {
        for a in &matrices {
            let what = format!("{} {:?}", kernels.name(), a.dim());
            let svd = kernels.svd(a.view()).unwrap();
            let k = a.nrows().min(a.ncols());
            assert_eq!((svd.u.dim(), svd.s.len(), svd.vt.dim()), ((a.nrows(), k), k, (k, a.ncols())), "{what}");
            let us = wide(&svd.u.view()) * &svd.s.mapv(f64::from);
            let vt = wide(&svd.vt.view());
            assert!(error(a.view(), &us.dot(&vt)) < 1e-10, "{what}");
            assert!(identity(&mut random, a.view(), &[us, vt]) < 1e-5, "{what}");
            assert!(svd.s.windows(2).into_iter().all(|w| w[0] >= w[1]) && svd.s.iter().all(|&s| s >= 0.0), "{what}");
            if svd.s.iter().all(|&s| s > 1e-3) {
                assert!(skew(&svd.u.view()) < 1e-5 && skew(&svd.vt.t()) < 1e-5, "{what}");
            }
            // Σ σ² = ‖a‖², whatever the vectors.
            let (sum, norm): (f64, f64) =
                (svd.s.iter().map(|&s| f64::from(s).powi(2)).sum(), a.iter().map(|&x| f64::from(x).powi(2)).sum());
            assert!(close(sum, norm), "{what}: {sum} {norm}");
        }
    }
}

#[test]
fn inner_products_of_every_backend() {
    let mut random = Random::new(10);
    for kernels in kernels::present() {
        for (p, q, n) in [(0, 3, 4), (3, 0, 4), (2, 3, 0), (1, 1, 1), (7, 5, 13), (4, 9, 1100), (20, 20, 600)] {
            for turned in [false, true] {
                let (a, b) = (random.matrix(p, n), random.matrix(q, n));
                let (by_column, view) = (a.t().as_standard_layout().into_owned(), a.view());
                let view = if turned { by_column.t() } else { view };
                let before = Array2::from_shape_fn((p, q), |_| f64::from(random.normal()));
                let mut out = before.clone();
                kernels.add_inner(view, b.view(), out.view_mut()).unwrap();
                let expected = before + wide(&a.view()).dot(&wide(&b.view()).t());
                let off = (&out - &expected).iter().fold(0.0, |a: f64, v| a.max(v.abs()));
                assert!(off < 1e-11, "{} {p}x{q}x{n}: {off:e}", kernels.name());
            }
        }
        let (a, b) = (random.matrix(2, 3), random.matrix(2, 4));
        assert!(kernels.add_inner(a.view(), b.view(), Array2::zeros((2, 2)).view_mut()).is_err());
        assert!(kernels.add_inner(a.view(), a.view(), Array2::zeros((2, 3)).view_mut()).is_err());
    }
}

#[test]
fn eigenvalues_of_every_backend() {
    let mut random = Random::new(11);
    for kernels in kernels::present() {
        for (n, rank) in [(0, 0), (1, 1), (2, 2), (13, 13), (40, 7), (30, 0), (61, 61)] {
            let x = wide(&random.matrix(n, rank).view());
            // Half of them negative.
            let signs = Array1::from_shape_fn(rank, |i| if i % 2 == 0 { 1.0 } else { -1.0 });
            let a = (&x * &signs).dot(&x.t());
            let size = a.iter().map(|v| v * v).sum::<f64>().sqrt();
            let values = kernels.eigenvalues(a.view()).unwrap();
            for most in [n, n + 3, n / 2, 1, 0] {
                let what = format!("{} order {n} rank {rank} most {most}", kernels.name());
                let found = kernels.eigh(a.view(), most).unwrap();
                assert_eq!((found.values.len(), found.vectors.dim()), (most.min(n), (most.min(n), n)), "{what}");
                assert!(found.values.windows(2).all(|w| w[0] >= w[1]), "{what}");
                let near = found.values.iter().zip(&values).all(|(x, y)| (x - y).abs() <= 1e-12 * size);
                assert!(near, "{what}: {:?} {values:?}", found.values);
                // a·v = λ·v, and the vectors are orthonormal.
                let turned = found.vectors.dot(&a) - Array2::from_diag(&Array1::from(found.values)).dot(&found.vectors);
                let skew = found.vectors.dot(&found.vectors.t()) - Array2::<f64>::eye(most.min(n));
                assert!(turned.iter().all(|v| v.abs() <= 1e-11 * size.max(1e-30)), "{what}");
                assert!(skew.iter().all(|v| v.abs() <= 1e-11), "{what}");
            }
            // What an orthogonal turn keeps: the sums of the values and of their squares.
            let (trace, square) = (a.diag().sum(), values.iter().map(|v| v * v).sum::<f64>());
            assert!((values.iter().sum::<f64>() - trace).abs() <= 1e-11 * size.max(1e-30));
            assert!((square - size * size).abs() <= 1e-11 * size * size);
        }
        assert!(kernels.eigh(Array2::zeros((2, 3)).view(), 1).is_err());
        assert!(kernels.eigenvalues(Array2::from_elem((2, 2), f64::NAN).view()).is_err());
    }
}

#[test]
fn the_merge_step_of_every_backend() {
    let mut random = Random::new(8);
    for (rows, cols, rank) in [(1, 1, 1), (33, 77, 9), (64, 128, 16), (5, 0, 2), (0, 5, 2)] {
        let terms = [Owned::new(&mut random, rows, cols, rank), Owned::new(&mut random, rows, cols, 3)];
        for element in ELEMENTS {
            let w = stored(element, (0..rows * cols).map(|_| random.normal()));
            let plain = run(Variant::Plain, element, &w, (rows, cols), &terms, rows);
            for kernels in kernels::present() {
                let mut out = vec![0; w.len()];
                let terms: Vec<Term> = terms.iter().map(|t| t.term(0)).collect();
                let moved = kernels.add_products(element, &w, &mut out, (rows, cols), &terms);
                same(&format!("{} {element:?} {rows}x{cols}", kernels.name()), &(out, moved), &plain);
            }
        }
    }
}

/// `add_product` on views: a transposed `a`, and tiles that are not contiguous, in the same order of operations.
#[test]
fn the_product_on_a_tile_of_every_backend() {
    let mut random = Random::new(9);
    let (rows, cols, rank) = (21, 45, 6);
    let (a, b, w) = (random.matrix(cols, rank).reversed_axes(), random.matrix(rows, rank), random.matrix(rows, cols));
    let chain = |i: usize, j: usize| (0..rank).fold(0f32, |d, k| b[[i, k]].mul_add(a[[k, j]], d));
    let expected = Array2::from_shape_fn((rows, cols), |(i, j)| 0.3f32.mul_add(chain(i, j), w[[i, j]]));
    for kernels in kernels::present() {
        let mut got = w.clone();
        kernels.add_product(0.3, b.view(), a.view(), got.view_mut()).unwrap();
        assert_eq!(got, expected, "{}", kernels.name());

        // Some columns of a wider matrix, and every second column of a transposed one; the others keep their values.
        let mut wide = Array2::from_elem((rows, cols + 7), 5.0);
        wide.slice_mut(s![.., 3..3 + cols]).assign(&w);
        kernels.add_product(0.3, b.view(), a.view(), wide.slice_mut(s![.., 3..3 + cols])).unwrap();
        assert_eq!(wide.slice(s![.., 3..3 + cols]), expected, "{}", kernels.name());
        assert!(wide.slice(s![.., ..3]).iter().chain(&wide.slice(s![.., 3 + cols..])).all(|&x| x == 5.0));
        let mut turned = Array2::from_elem((2 * cols, rows), 5.0);
        turned.slice_mut(s![..;2, ..]).assign(&w.t());
        kernels.add_product(0.3, b.view(), a.view(), turned.slice_mut(s![..;2, ..]).reversed_axes()).unwrap();
        assert_eq!(turned.slice(s![..;2, ..]).t(), expected, "{}", kernels.name());
        assert!(turned.slice(s![1..;2, ..]).iter().all(|&x| x == 5.0));
    }
}

/// By default a device is taken for long decompositions, once it has passed its self-test, and the CPU for all else.
#[test]
fn by_default_long_decompositions_go_to_a_device() {
    use lora_tool::kernels::choice::{Device, Options, WORTH_A_DEVICE, choose};
    let has_device = kernels::present().iter().any(|k| k.name() == "cuda");
    for (factorising, on_device) in [(0, false), (WORTH_A_DEVICE - 1, false), (WORTH_A_DEVICE, has_device)] {
        let (backend, note) = choose(&Options { factorising, ..Options::default() }).expect("a backend");
        assert_eq!(backend.name() == "cuda", on_device, "{factorising}: {note:?}");
        assert_eq!(backend.notes(), Vec::<String>::new(), "what the self-test did is no part of the run");
    }
    let forced = choose(&Options { device: Device::Cuda(None), ..Options::default() });
    assert_eq!(forced.is_ok(), has_device);
}

/// With room for the vectors and for tiles but not for the matrix, a device reads the matrix in tiles; with less, the host
/// does it. Both are as near as a device that holds it.
#[cfg(feature = "cuda")]
#[test]
fn tiles_of_a_matrix_are_enough() {
    use lora_tool::kernels::cuda::{Cuda, Options};
    use lora_tool::kernels::{Depth, Kernels, Wanted};
    let mut random = Random::new(31);
    let (m, n) = (1900, 1500);
    let (left, right) = (random.matrix(m, 6), random.matrix(6, n));
    let d = left.dot(&right) + random.matrix(m, n) * 0.01;
    let wanted = Wanted { depth: Depth::Rank(6), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 };
    let expected = kernels::OpenBlas::new().truncated_svd(&d, &wanted).unwrap();
    for (megabytes, note) in [(400, ""), (102, "crossed the bus for every pass"), (70, "decomposed on the CPU")] {
        let options = Options { memory: Some(megabytes << 20), ..Options::default() };
        let Ok(device) = Cuda::open(&options) else {
            eprintln!("skipped: no device");
            return;
        };
        let found = device.truncated_svd(&d, &wanted).unwrap();
        let notes = device.notes().join("; ");
        assert!(notes.contains(note) && note.is_empty() != notes.contains("fit"), "{megabytes}: {notes}");
        assert!((found.lost - expected.lost).abs() < 1e-3 * expected.lost, "{megabytes}");
        for exact in [false, true] {
            let found = if exact { device.exact_svd(&d, wanted.depth, 6) } else { device.truncated_svd(&d, &wanted) };
            let s = found.unwrap().s;
            assert!(s.iter().zip(&expected.s).all(|(a, b)| (a - b).abs() < 1e-4 * b), "{megabytes} {exact}");
        }
    }
}

/// A matrix may be computed when it is read, by the same backend, on as many threads as there are, with one lane for all.
#[cfg(feature = "cuda")]
#[test]
fn reading_a_matrix_may_take_the_backend() {
    use lora_tool::error::Result;
    use lora_tool::kernels::cuda::{Cuda, Options};
    use lora_tool::kernels::{Depth, Kernels, RowSource, Wanted};
    struct Product<'a>(&'a Cuda, Array2<f32>, Array2<f32>);
    impl RowSource for Product<'_> {
        fn dim(&self) -> (usize, usize) {
            (self.1.nrows(), self.2.ncols())
        }
        fn read(&self, rows: std::ops::Range<usize>, mut out: ndarray::ArrayViewMut2<f32>) -> Result<()> {
            out.fill(0.0);
            self.0.add_product(1.0, self.1.slice(s![rows.clone(), ..]), self.2.view(), out.view_mut())?;
            self.0.gemm(1.0, self.1.slice(s![rows, ..]), self.2.view(), 1.0, out)
        }
    }
    let Ok(device) = Cuda::open(&Options { memory: Some(120 << 20), always: true, ..Options::default() }) else {
        eprintln!("skipped: no device");
        return;
    };
    let mut random = Random::new(32);
    let source = Product(&device, random.matrix(220, 3), random.matrix(3, 210));
    let wanted = Wanted { depth: Depth::Rank(3), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 };
    let product = source.1.dot(&source.2) * 2.0;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let found = device.truncated_svd(&source, &wanted).unwrap();
                let s: Array1<f32> = found.s.iter().map(|&s| s as f32).collect();
                let off = (&found.u * &s).dot(&found.vt) - &product;
                assert!(off.iter().all(|v| v.abs() < 1e-3));
            });
        }
    });
    let notes = device.notes();
    assert!(notes.iter().all(|note| note.starts_with("computed on")) && notes.len() == 1, "{notes:?}");
}

/// What a source gives as stored elements is what it gives as rows of f32, for all types and row lengths, also where the
/// rows go over the bus in several parts.
#[test]
fn stored_rows_are_the_differences_that_are_read() {
    use lora_tool::error::Result;
    use lora_tool::kernels::{Depth, RowSource, Stored, Wanted};
    use std::ops::Range;
    struct Pair {
        cols: usize,
        after: (Element, Vec<u8>),
        before: (Element, Vec<u8>),
        is_stored: bool,
    }
    impl Pair {
        fn rows(&self, (element, bytes): &(Element, Vec<u8>), rows: &Range<usize>) -> (Element, Range<usize>) {
            let row = self.cols * element.bytes();
            assert!(rows.end * row <= bytes.len());
            (*element, rows.start * row..rows.end * row)
        }
    }
    fn widened(element: Element, bytes: &[u8]) -> Vec<f64> {
        let chunks = bytes.chunks_exact(element.bytes());
        chunks
            .map(|b| match (element, b) {
                (Element::BF16, &[x, y]) => bf16::from_le_bytes([x, y]).to_f64(),
                (Element::F16, &[x, y]) => f16::from_le_bytes([x, y]).to_f64(),
                (Element::F32, &[x, y, z, u]) => f32::from_le_bytes([x, y, z, u]).into(),
                _ => f64::from_le_bytes(b.try_into().unwrap()),
            })
            .collect()
    }
    impl RowSource for Pair {
        fn dim(&self) -> (usize, usize) {
            (self.after.1.len() / self.after.0.bytes() / self.cols, self.cols)
        }
        fn read(&self, rows: Range<usize>, mut out: ndarray::ArrayViewMut2<f32>) -> Result<()> {
            let ((x, from), (y, to)) = (self.rows(&self.after, &rows), self.rows(&self.before, &rows));
            let (after, before) = (widened(x, &self.after.1[from]), widened(y, &self.before.1[to]));
            out.iter_mut().zip(after.iter().zip(&before)).for_each(|(out, (a, b))| *out = (a - b) as f32);
            Ok(())
        }
        fn stored(&self, rows: Range<usize>) -> Option<Stored<'_>> {
            let ((x, from), (y, to)) = (self.rows(&self.after, &rows), self.rows(&self.before, &rows));
            self.is_stored.then(|| Stored { after: (x, &self.after.1[from]), before: (y, &self.before.1[to]) })
        }
    }
    let mut random = Random::new(33);
    let wanted = Wanted { depth: Depth::Rank(3), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 };
    for (m, n, x, y) in [
        (1501, 1001, Element::BF16, Element::BF16),
        (300, 233, Element::F16, Element::F32),
        (260, 301, Element::F64, Element::BF16),
        (240, 247, Element::F32, Element::F16),
    ] {
        let (left, right) = (random.matrix(m, 3), random.matrix(3, n));
        let weights = random.matrix(m, n);
        let tuned = &weights + &left.dot(&right);
        let after = (x, stored(x, tuned.iter().copied()));
        let before = (y, stored(y, weights.iter().copied()));
        let mut pair = Pair { cols: n, after, before, is_stored: false };
        for kernels in kernels::present() {
            if kernels.name() == "reference" {
                continue; // slow, and reads rows
            }
            pair.is_stored = false;
            let read = kernels.truncated_svd(&pair, &wanted).unwrap();
            pair.is_stored = true;
            let given = kernels.truncated_svd(&pair, &wanted).unwrap();
            let what = format!("{} {m}x{n} {x:?} {y:?}", kernels.name());
            assert_eq!((read.u, read.s, read.vt), (given.u, given.s, given.vt), "{what}");
            assert_eq!((read.energy, read.lost), (given.energy, given.lost), "{what}");
            assert!(
                kernels.notes().iter().all(|note| note.starts_with("computed on")),
                "{what}: {:?}",
                kernels.notes()
            );
        }
    }
}

/// What these tests could not be run on is said, with the reason.
#[test]
fn backends_that_are_absent_are_named() {
    let all = kernels::choice::all(&[]);
    let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
    assert!(matches!(names[..], ["reference", "openblas" | "accelerate", "cuda"]), "{names:?}");
    for (name, backend) in all {
        match backend {
            Ok(backend) => assert_eq!(backend.name(), name),
            Err(why) => {
                assert_eq!(name, "cuda", "{why}");
                eprintln!("skipped: {name}: {}", why.what());
            }
        }
    }
}
