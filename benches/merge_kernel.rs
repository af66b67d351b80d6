//! The fused merge step against a plain copy of the same bytes, and against BLAS on tiles of f32: in one run, so that
//! the figures share the state of the machine. Best and median of many, since others may be using it.
//!
//! Every run takes the next of [`MATRICES`] matrices, so that each comes from memory, as the weights of a model do. A
//! single one and its result (64 MiB) may sit in the last-level cache once the work is split over cores with a cache
//! each, and then the copy is several times faster than memory.
//!
//! What is compared takes turns, one run each, so that a slow spell of the machine meets all of them.
//!
//! A ratio says something only where the machine was idle: a best copy that is not faster on two threads than on one,
//! or a median far above the best, tells that it was not.
//!
//! `cargo bench --bench merge_kernel -- [SECONDS [RANK...]]`, SECONDS being the time spent on each figure (0.3).

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints its figures and stops at a mistake")]

use std::time::{Duration, Instant};

use half::bf16;
use lora_tool::kernels::fused::{self, Element, Term, Variant};
use lora_tool::kernels::{Kernels, OpenBlas};
use lora_tool::tensor::{Dtype, cast};
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

const SIZE: usize = 4096;
/// Matrices that are gone through in turn: 512 MiB with their results.
const MATRICES: usize = 8;
/// Rows of a tile of the fused step: the pieces of 2 MiB that the streaming engine deals out.
const TILE: usize = 256;
/// Rows of a tile given to BLAS.
const BLAS_TILE: usize = 128;
const RANKS: [usize; 5] = [8, 16, 64, 128, 256];

fn main() {
    let numbers: Vec<f64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let budget = Duration::from_secs_f64(numbers.first().copied().unwrap_or(0.3));
    let asked: Vec<usize> = numbers.iter().skip(1).map(|&rank| rank as usize).collect();
    let ranks = if asked.is_empty() { RANKS.to_vec() } else { asked };
    let one: Vec<u8> = normal(1, SIZE * SIZE).iter().flat_map(|x| bf16::from_f32(x * 0.03).to_le_bytes()).collect();
    let ws = vec![one; MATRICES];
    let mut outs: Vec<Vec<u8>> = ws.iter().map(|w| vec![1u8; w.len()]).collect();
    println!("{SIZE} x {SIZE}, bf16 weights, f32 factors; GB/s counts bytes read and written once each");
    for threads in [1, 2] {
        let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(threads).build() else { return };
        let copying = |w: &[u8], out: &mut [u8]| {
            let tile = TILE * SIZE * 2;
            out.par_chunks_mut(tile).zip(w.par_chunks(tile)).for_each(|(out, w)| out.copy_from_slice(w));
        };
        let casts = |w: &[u8], out: &mut [u8]| {
            let tile = TILE * SIZE * 2;
            out.par_chunks_mut(tile).zip(w.par_chunks(tile)).for_each_init(
                || vec![0f32; TILE * SIZE],
                |wide, (out, w)| {
                    cast::widen(Dtype::BF16, w, wide).expect("sizes");
                    cast::narrow(Dtype::BF16, wide, out).expect("sizes");
                },
            );
        };
        let mut measure = |rank: usize, all: &[(&str, Run)]| {
            let times = pool.install(|| best(budget, all, |f, i| f(&ws[i % MATRICES], &mut outs[i % MATRICES])));
            for ((what, _), time) in all.iter().zip(&times) {
                row(threads, what, rank, *time, times[0]);
            }
        };
        measure(0, &[("copy", &copying), ("widen and narrow", &casts)]);
        let blas = OpenBlas::new();
        for &rank in &ranks {
            let (a, b) = (normal(2, rank * SIZE), normal(3, rank * SIZE));
            let variants: Vec<Variant> = Variant::present().into_iter().filter(|v| *v != Variant::Plain).collect();
            let steps: Vec<_> = variants
                .iter()
                .map(|&v| {
                    let (a, b) = (&a, &b);
                    move |w: &[u8], out: &mut [u8]| step(v, w, out, a, b, rank)
                })
                .collect();
            let product = |w: &[u8], out: &mut [u8]| tiles(&blas, w, out, &a, &b, rank);
            let mut all: Vec<(&str, Run)> = vec![("copy", &copying)];
            all.extend(variants.iter().zip(&steps).rev().map(|(v, step)| (v.name(), step as Run)));
            all.push(("BLAS on f32 tiles", &product));
            measure(rank, &all);
        }
    }
}

/// Something that makes a result of weights.
type Run<'a> = &'a (dyn Fn(&[u8], &mut [u8]) + Sync);

/// Best and median of the runs.
type Times = [f64; 2];

fn row(threads: usize, what: &str, rank: usize, [best, median]: Times, [copy, _]: Times) {
    println!(
        "{threads} thread(s)  rank {rank:3}  {what:18} {:7.2} ms (median {:7.2})  {:6.2} GB/s  {:4.0} % of copy",
        best * 1e3,
        median * 1e3,
        (SIZE * SIZE * 4) as f64 / 1e9 / best,
        copy / best * 100.0
    );
}

/// The fused step over tiles of rows.
fn step(variant: Variant, w: &[u8], out: &mut [u8], a: &[f32], b: &[f32], rank: usize) {
    let tile = TILE * SIZE * 2;
    out.par_chunks_mut(tile).zip(w.par_chunks(tile)).enumerate().for_each(|(i, (out, w))| {
        let b = &b[i * TILE * rank..(i + 1) * TILE * rank];
        let term = Term { a, a_stride: SIZE, b, b_stride: rank, rank, scale: 0.5 };
        std::hint::black_box(fused::add_products_with(variant, Element::BF16, w, out, TILE, SIZE, &[term]));
    });
}

/// The same result by widening a tile, one GEMM, and rounding.
fn tiles(blas: &OpenBlas, w: &[u8], out: &mut [u8], a: &[f32], b: &[f32], rank: usize) {
    let tile = BLAS_TILE * SIZE * 2;
    let a = ArrayView2::from_shape((rank, SIZE), a).expect("shape");
    out.par_chunks_mut(tile).zip(w.par_chunks(tile)).enumerate().for_each_init(
        || vec![0f32; BLAS_TILE * SIZE],
        |wide, (i, (out, w))| {
            cast::widen(Dtype::BF16, w, wide).expect("sizes");
            let b = &b[i * BLAS_TILE * rank..(i + 1) * BLAS_TILE * rank];
            let b = ArrayView2::from_shape((BLAS_TILE, rank), b).expect("shape");
            let c = ArrayViewMut2::from_shape((BLAS_TILE, SIZE), wide.as_mut_slice()).expect("shape");
            blas.gemm(0.5, b, a, 1.0, c).expect("gemm");
            cast::narrow(Dtype::BF16, wide, out).expect("sizes");
        },
    );
}

/// Times everything in turn until the budget is spent, after one run over all matrices to warm up.
fn best(budget: Duration, all: &[(&str, Run)], mut run: impl FnMut(Run, usize)) -> Vec<Times> {
    (0..MATRICES).for_each(|i| all.iter().for_each(|(_, f)| run(f, i)));
    let start = Instant::now();
    let mut times = vec![Vec::new(); all.len()];
    let mut next = 0; // matrix
    while start.elapsed() < budget * all.len() as u32 || times[0].len() < MATRICES {
        for ((_, f), times) in all.iter().zip(&mut times) {
            let one = Instant::now();
            run(f, next);
            times.push(one.elapsed().as_secs_f64());
            next += 1;
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            [times[0], times[times.len() / 2]]
        })
        .collect()
}

/// Roughly normal numbers: sums of uniform ones from a xorshift generator.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.7).collect()
}
