//! The truncated decomposition on one thread: time, excess of the error over the optimum, and the time of its own
//! matrix products by themselves in the same run.
//!
//! Three spectra, [`SIZE`] on both sides: (a) rank 16 and noise of 1e-3 of the norm; (b) σₖ = k^-½; (c) what rounding
//! to bf16 leaves of a weak update of rank 16, noise about as large as the update. The singular values of (a) and (b)
//! are planted by orthogonal transforms in f64, so the optimum is known; that of (c) comes from the eigenvalues of its
//! Gram matrix in f64.
//!
//! `cargo bench --bench factorise -- [--full] [--sweep] [RANK...]`: `--full` times LAPACK's sgesdd and the exact route
//! beside it (half a minute), `--sweep` goes through more spectra and shapes instead and says how the estimate of the
//! excess compares with the excess.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints its figures and stops at a mistake")]

use std::time::Instant;

use half::bf16;
use lora_tool::kernels::{Depth, Kernels, OpenBlas, Truncated, Wanted};
use lora_tool::linalg::svd;
use ndarray::{Array1, Array2, Axis, s};

const SIZE: usize = 4096;
const RUNS: usize = 7;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut ranks: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    if ranks.is_empty() {
        ranks = vec![16, 64, 128];
    }
    let blas = OpenBlas::new();
    if words.iter().any(|w| w == "--sweep") {
        return sweep(&blas);
    }
    for (what, d, squares) in spectra(&blas) {
        for &rank in &ranks {
            one(&blas, what, &d, &squares, rank);
        }
        if words.iter().any(|w| w == "--full") {
            let (time, _) = timed(1, || svd::exact(&blas, &d, Depth::Rank(ranks[0]), usize::MAX).expect("exact"));
            println!("{what}  exact, rank {:3} {:8.0} ms", ranks[0], time * 1e3);
            let (time, _) = timed(1, || blas.svd(d.view()).expect("svd"));
            println!("{what}  sgesdd          {:8.0} ms", time * 1e3);
        }
    }
}

type Spectrum = (&'static str, Array2<f32>, Vec<f64>);

fn spectra(blas: &OpenBlas) -> Vec<Spectrum> {
    let noisy: Vec<f64> = rank_and_noise(SIZE, 16, 1e-3);
    let power: Vec<f64> = (1..=SIZE).map(|k| (k as f64).powf(-0.5)).collect();
    let rounded = rounded_update(SIZE, SIZE, 16);
    let of_rounded = squares_of(blas, &rounded);
    let planted = |s: &[f64]| (planted((SIZE, SIZE), s), s.iter().map(|s| s * s).collect());
    let ((a, of_a), (b, of_b)) = (planted(&noisy), planted(&power));
    vec![("(a)", a, of_a), ("(b)", b, of_b), ("(c)", rounded, of_rounded)]
}

/// Times one decomposition and the products it is made of.
fn one(blas: &OpenBlas, what: &str, d: &Array2<f32>, squares: &[f64], rank: usize) {
    for tolerance in [1e-2, 1e-3] {
        let wanted = Wanted { depth: Depth::Rank(rank), ceiling: usize::MAX, tolerance, seed: 1 };
        let (time, found) = timed(RUNS, || blas.truncated_svd(d, &wanted).expect("truncated"));
        let (products, _) = timed(RUNS, || products(blas, d, found.vectors));
        println!(
            "{what}  rank {rank:3}  tolerance {tolerance:5.0e}  {:7.1} ms  {:2} passes {:4} vectors  excess {:8.1e} (said {:7.1e})  products {:6.1} ms  ratio {:.2}",
            time * 1e3,
            found.passes,
            found.vectors,
            excess(d, &found, squares),
            found.excess,
            products * 1e3,
            time / products
        );
    }
}

/// d·K and dᵀ·Y for so many vectors, in one piece.
fn products(blas: &OpenBlas, d: &Array2<f32>, vectors: usize) {
    let (m, n) = d.dim();
    let k = Array2::<f32>::from_elem((vectors, n), 0.5);
    let (mut y, mut z) = (Array2::zeros((vectors, m)), Array2::zeros((vectors, n)));
    blas.gemm(1.0, k.view(), d.t(), 0.0, y.view_mut()).expect("gemm");
    blas.gemm(1.0, y.view(), d.view(), 0.0, z.view_mut()).expect("gemm");
    std::hint::black_box(z);
}

/// The best of several runs, in seconds.
fn timed<T>(runs: usize, mut run: impl FnMut() -> T) -> (f64, T) {
    let mut best = f64::INFINITY;
    let mut out = None;
    for _ in 0..runs {
        let start = Instant::now();
        out = Some(std::hint::black_box(run()));
        best = best.min(start.elapsed().as_secs_f64());
    }
    (best, out.expect("at least one run"))
}

/// ‖d − u·s·vt‖ over the optimum, less one: measured, in f64 sums.
fn excess(d: &Array2<f32>, found: &Truncated, squares: &[f64]) -> f64 {
    let us = &found.u * &found.s.iter().map(|&s| s as f32).collect::<Array1<f32>>();
    let mut sum = 0.0;
    for (rows, us) in d.axis_chunks_iter(Axis(0), 256).zip(us.axis_chunks_iter(Axis(0), 256)) {
        let rest = &rows - &us.dot(&found.vt);
        sum += rest.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    }
    let best: f64 = squares.iter().skip(found.s.len()).sum();
    (sum / best).sqrt() - 1.0
}

/// Many spectra, shapes and ranks at both tolerances: is the excess what was asked for, and what was said?
fn sweep(blas: &OpenBlas) {
    let (mut worst, mut count) = (0.0f64, 0);
    for dim in [(1024, 1024), (2048, 512), (512, 2048), (2048, 1024), (8192, 256)] {
        let short = dim.0.min(dim.1);
        let decaying: Vec<(String, Vec<f64>)> = vec![
            ("rank 16 + noise".into(), rank_and_noise(short, 16, 1e-3)),
            ("rank 16 + much noise".into(), rank_and_noise(short, 16, 0.7)),
            ("k^-0.5".into(), (1..=short).map(|k| (k as f64).powf(-0.5)).collect()),
            ("k^-1".into(), (1..=short).map(|k| (k as f64).recip()).collect()),
            ("k^-2".into(), (1..=short).map(|k| (k as f64).powi(-2)).collect()),
            ("0.9^k".into(), (1..=short).map(|k| 0.9f64.powi(k as i32)).collect()),
            ("0.98^k".into(), (1..=short).map(|k| 0.98f64.powi(k as i32)).collect()),
            ("0.5^k".into(), (1..=short).map(|k| 0.5f64.powi(k as i32)).collect()),
            ("steps".into(), (0..short).map(|k| 10f64.powi(-((k / 40) as i32))).collect()),
            ("equal".into(), vec![1.0; short]),
        ];
        let mut all: Vec<(String, Array2<f32>, Vec<f64>)> =
            decaying.into_iter().map(|(what, s)| (what, planted(dim, &s), s.iter().map(|s| s * s).collect())).collect();
        let noise = normal(5, dim);
        let rounded = rounded_update(dim.0, dim.1, 16);
        for (what, d) in [("noise", noise), ("bf16", rounded)] {
            let squares = squares_of(blas, &d);
            all.push((what.into(), d, squares));
        }
        for (what, d, squares) in &all {
            for rank in [1, 4, 8, 16, 24, 32, 48, 64, 96, 128] {
                for tolerance in [1e-2, 1e-3] {
                    let wanted = Wanted { depth: Depth::Rank(rank), ceiling: usize::MAX, tolerance, seed: 1 };
                    let start = Instant::now();
                    let found = blas.truncated_svd(d, &wanted).expect("truncated");
                    let time = start.elapsed().as_secs_f64();
                    let best: f64 = squares.iter().skip(rank).sum::<f64>() / found.energy;
                    let (excess, lost) = (excess(d, &found, squares), found.lost / found.energy);
                    // Below about 1e-6 of the norm the error is rounding of f32.
                    let is_rounding = best.sqrt() < 2e-6;
                    if found.vectors > 0 && !is_rounding {
                        worst = worst.max(excess / tolerance);
                        count += 1;
                    }
                    let mark = if excess > tolerance && !is_rounding { "  MISSED" } else { "" };
                    let low = if excess > found.excess + 1e-4 && !is_rounding { "  understated" } else { "" };
                    println!(
                        "{dim:?} {what:20} rank {rank:3} tol {tolerance:5.0e} {:7.1} ms {:2} passes {:4} vectors  error {:8.1e} excess {excess:8.1e} said {:8.1e} lost off {:8.1e}{mark}{low}",
                        time * 1e3,
                        found.passes,
                        found.vectors,
                        lost.sqrt(),
                        found.excess,
                        lost / (best * (1.0 + excess).powi(2)) - 1.0,
                    );
                }
            }
        }
    }
    println!("{count} by iteration; the worst excess is {worst:.2} of the tolerance");
}

// --- matrices -----------------------------------------------------------------------------------------------------

/// A matrix of given singular values, in f64 by orthogonal transforms, rounded to f32. Extents are powers of two.
fn planted((m, n): (usize, usize), s: &[f64]) -> Array2<f32> {
    let short = m.min(n);
    let mut d = Array2::<f64>::zeros((m, n));
    d.slice_mut(s![..short, ..short]).diag_mut().assign(&Array1::from(s.to_vec()));
    for round in 0..2 {
        let signs = normal(10 + round, (2, m.max(n)));
        for (mut row, sign) in d.rows_mut().into_iter().zip(signs.row(0)) {
            row *= f64::from(sign.signum());
            row.iter_mut().zip(signs.row(1)).for_each(|(v, sign)| *v *= f64::from(sign.signum()));
            hadamard(row.as_slice_mut().expect("contiguous"));
        }
        let mut turned = d.t().as_standard_layout().into_owned();
        turned.rows_mut().into_iter().for_each(|mut row| hadamard(row.as_slice_mut().expect("contiguous")));
        d = turned.t().as_standard_layout().into_owned();
    }
    d.mapv(|v| v as f32)
}

/// Walsh and Hadamard's transform, orthonormal.
fn hadamard(x: &mut [f64]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let scale = (x.len() as f64).sqrt().recip();
    x.iter_mut().for_each(|v| *v *= scale);
}

/// `rank` equal values and equal noise of so much of their norm.
fn rank_and_noise(short: usize, rank: usize, noise: f64) -> Vec<f64> {
    let rest = noise * (rank as f64 / (short - rank) as f64).sqrt();
    (0..short).map(|k| if k < rank { 1.0 + 0.1 * (rank - k) as f64 } else { rest }).collect()
}

/// The difference of weights of deviation 0.02 in bf16 before and after a weak update.
fn rounded_update(m: usize, n: usize, rank: usize) -> Array2<f32> {
    let w = normal(1, (m, n)) * 0.02;
    let update = (normal(2, (m, rank)) * 3e-3).dot(&(normal(3, (rank, n)) * 3e-3));
    let narrow = |v: f32| bf16::from_f32(v).to_f32();
    let w = w.mapv(narrow);
    (&w + &update).mapv(narrow) - &w
}

/// Squared singular values, largest first, from the Gram matrix in f64.
fn squares_of(blas: &OpenBlas, d: &Array2<f32>) -> Vec<f64> {
    let turned = if d.nrows() < d.ncols() { d.view() } else { d.t() };
    let mut gram = Array2::zeros((turned.nrows(), turned.nrows()));
    blas.add_inner(turned, turned, gram.view_mut()).expect("gram");
    blas.eigenvalues(gram.view()).expect("eigenvalues").into_iter().map(|v| v.max(0.0)).collect()
}

/// Roughly normal numbers: sums of uniform ones from a xorshift generator.
fn normal(seed: u64, dim: (usize, usize)) -> Array2<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..20).for_each(|_| {
        uniform();
    });
    Array2::from_shape_simple_fn(dim, || (0..4).map(|_| uniform()).sum::<f32>() * 1.7)
}
