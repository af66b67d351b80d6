//! A CUDA device beside the CPU backend of the same machine, in one run, and beside the bus.
//!
//! - *bus*: copies from and to pinned memory, each way by itself, as the limit of all that follows;
//! - *decompositions*: differences of two bf16 matrices at a rank, on one thread and on all of them at once, in milliseconds
//!   for each, on the device and on the CPU, with the errors of both and the time that the stored elements take on the bus;
//! - *merge step*: bf16 weights in memory in the pieces of the streaming engine, as a share of the bus.
//!
//! `cargo bench --bench device -- [--size N] [--rank R] [--threads T] [--matrices M]`. Without a device it says so and ends.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark prints its figures and stops at a mistake")]

use std::ops::Range;
use std::time::Instant;

use half::bf16;
use lora_tool::error::Result;
use lora_tool::kernels::cuda::{Cuda, Options};
use lora_tool::kernels::{Depth, Element, Kernels, OpenBlas, RowSource, Stored, Term, Wanted};
use ndarray::ArrayViewMut2;
use rayon::prelude::*;

/// Bytes of a piece of the streaming engine.
const PIECE: usize = 2 << 20;
/// Distinct matrices; the runs take them in turn.
const DISTINCT: usize = 4;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str, default: usize| {
        let at = words.iter().position(|w| w == flag);
        at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(default)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (size, rank, threads) = (number("--size", 4096), number("--rank", 64), number("--threads", cores));
    let device = match Cuda::open(&Options::default()) {
        Ok(device) => device,
        Err(why) => {
            println!("skipped: {}", why.what());
            return;
        }
    };
    for about in device.devices() {
        println!("cuda:{} {}, {} threads", about.number, about.name, threads);
    }
    let (up, down) = device.bus_rates().expect("the bus");
    println!("bus: {:.1} GB/s to the device, {:.1} GB/s from it", up / 1e9, down / 1e9);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let pairs: Vec<Pair> = (0..DISTINCT).map(|i| Pair::new(size, rank, i as u64)).collect();
    let blas = OpenBlas::new();
    pool.install(|| {
        decompositions(&device, &blas, &pairs, rank, up, number("--matrices", 8 * threads));
        merge_step(&device, &blas, &pairs, rank.min(64), up);
    });
    for note in device.notes() {
        println!("note: {note}");
    }
}

fn decompositions(device: &Cuda, blas: &OpenBlas, pairs: &[Pair], rank: usize, up: f64, count: usize) {
    let wanted = Wanted { depth: Depth::Rank(rank), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 };
    let one = |kernels: &dyn Kernels, i: usize| kernels.truncated_svd(&pairs[i % DISTINCT], &wanted).expect("factors");
    let error = |found: &lora_tool::kernels::Truncated| (found.lost / found.energy).sqrt();
    let bytes = 2.0 * pairs[0].after.len() as f64;
    println!("decompositions of [{0}, {0}] at rank {rank}; {1:.2} ms on the bus", pairs[0].size, bytes / up * 1e3);
    let mut each = Vec::new();
    for (name, kernels, count) in [("cuda", device as &dyn Kernels, count), ("cpu", blas, count.min(2 * DISTINCT * 4))]
    {
        let found = one(kernels, 0); // also warms up
        let alone = (0..3).map(|i| timed(|| drop(one(kernels, i)))).fold(f64::INFINITY, f64::min);
        let together = timed(|| (0..count).into_par_iter().for_each(|i| drop(one(kernels, i)))) / count as f64;
        println!(
            "  {name:5} {:9.2} ms alone, {:9.2} ms each of {count} in flight; relative error {:.6}, {} passes",
            alone * 1e3,
            together * 1e3,
            error(&found),
            found.passes
        );
        each.push(together);
    }
    println!("  cuda is {:.1} x the CPU in flight, {:.2} x the bus", each[1] / each[0], each[0] / (bytes / up));
}

fn merge_step(device: &Cuda, blas: &OpenBlas, pairs: &[Pair], rank: usize, up: f64) {
    let size = pairs[0].size;
    let (a, b) = (normals(7, rank * size), normals(8, size * rank));
    let rows = (PIECE / (2 * size)).max(1);
    let mut out: Vec<Vec<u8>> = pairs.iter().map(|p| vec![0; p.after.len()]).collect();
    let bytes: usize = pairs.iter().map(|p| p.after.len()).sum();
    let mut results = Vec::new();
    println!("merge step at rank {rank} on {:.0} MB of bf16, in memory", bytes as f64 / 1e6);
    for (name, kernels) in [("cuda", device as &dyn Kernels), ("cpu", blas)] {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let seconds = timed(|| {
                out.par_iter_mut().zip(pairs).for_each(|(out, pair)| {
                    let pieces = out.par_chunks_mut(2 * rows * size).zip(pair.after.par_chunks(2 * rows * size));
                    pieces.enumerate().for_each(|(i, (out, w))| {
                        let here = w.len() / (2 * size);
                        let b = &b[i * rows * rank..(i * rows + here) * rank];
                        let term = Term { a: &a, a_stride: size, b, b_stride: rank, rank, scale: 1e-3 };
                        kernels.add_products(Element::BF16, w, out, (here, size), &[term]);
                    });
                });
            });
            best = best.min(seconds);
        }
        println!("  {name:5} {:6.1} GB/s, {:.2} of the bus", bytes as f64 / best / 1e9, bytes as f64 / best / up);
        results.push(out.clone());
    }
    assert!(results[0] == results[1], "the device and the CPU give different bytes");
}

fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// Two stored matrices: one random, the other with a change of rank 16 and noise.
struct Pair {
    size: usize,
    after: Vec<u8>,
    before: Vec<u8>,
}

impl Pair {
    fn new(size: usize, rank: usize, seed: u64) -> Pair {
        let (left, right) = (normals(seed * 10 + 1, size * 16), normals(seed * 10 + 2, 16 * size));
        let weights = normals(seed * 10 + 3, size * size);
        let noise = normals(seed * 10 + 4, size * size);
        let scale = 0.01 / (rank as f32).sqrt();
        let stored = |x: f32| bf16::from_f32(x).to_le_bytes();
        let before = weights.iter().flat_map(|w| stored(w * 0.03)).collect();
        let after = (0..size * size).into_par_iter().flat_map_iter(|at| {
            let (i, j) = (at / size, at % size);
            let change: f32 = (0..16).map(|k| left[i * 16 + k] * right[k * size + j]).sum();
            stored(weights[at] * 0.03 + change * scale + noise[at] * 1e-3)
        });
        Pair { size, after: after.collect(), before }
    }
}

impl RowSource for Pair {
    fn dim(&self) -> (usize, usize) {
        (self.size, self.size)
    }

    fn read(&self, rows: Range<usize>, mut out: ArrayViewMut2<f32>) -> Result<()> {
        let bytes = 2 * rows.start * self.size..2 * rows.end * self.size;
        let value = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32();
        let (after, before) = (self.after[bytes.clone()].as_chunks::<2>().0, self.before[bytes].as_chunks::<2>().0);
        out.iter_mut().zip(after.iter().zip(before)).for_each(|(out, (x, y))| *out = value(x) - value(y));
        Ok(())
    }

    fn stored(&self, rows: Range<usize>) -> Option<Stored<'_>> {
        let bytes = 2 * rows.start * self.size..2 * rows.end * self.size;
        Some(Stored {
            after: (Element::BF16, &self.after[bytes.clone()]),
            before: (Element::BF16, &self.before[bytes]),
        })
    }
}

/// Roughly normal numbers, the same in every run.
fn normals(seed: u64, count: usize) -> Vec<f32> {
    lora_tool::kernels::truncated::random::normals(seed, 0, (1, count)).into_raw_vec_and_offset().0
}
