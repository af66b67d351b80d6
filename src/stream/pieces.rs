//! A plan cut into pieces of a fixed size. The size depends on nothing but the plan, so neither does what is written.

use std::ops::Range;

use super::plan::{Make, Plan};
use crate::error::Result;
use crate::tensor::{Bytes, Rows};

/// Output bytes of one computed piece. Small enough that input, output and workspace stay in cache near the core,
/// large enough that a write is worth its call.
const TILE_BYTES: usize = 2 << 20;
/// Most bytes of one copied piece.
pub const COPY_BYTES: usize = 8 << 20;

/// A piece of one file.
pub struct Piece {
    /// Number of the file in the plan.
    pub file: usize,
    /// What is to be done.
    pub work: Work,
}

/// The two kinds of work.
pub enum Work {
    /// Bytes of an input, perhaps of several tensors that lie behind one another in both files.
    Copy {
        /// Number of the first of those tensors.
        job: usize,
        /// Where in it they begin.
        offset: usize,
        /// Where they go, in bytes from the start of the file's data.
        at: u64,
        /// The bytes.
        source: Bytes,
    },
    /// Rows of a computed tensor.
    Compute {
        /// Number of its job.
        job: usize,
        /// The rows.
        rows: Range<usize>,
    },
}

/// Bytes to copy that have not been cut yet.
struct Run {
    job: usize,
    at: u64,
    bytes: Bytes,
}

/// All pieces, in the order of the files' bytes. Where `joined`, tensors that lie behind one another in both files are
/// copied together.
pub fn cut(plan: &Plan, joined: bool) -> Result<Vec<Piece>> {
    let mut out = Vec::new();
    for (file, planned) in plan.files.iter().enumerate() {
        let mut at = 0u64;
        let mut run: Option<Run> = None;
        for (job, planned) in planned.jobs.iter().enumerate() {
            let len = planned.entry.byte_len()?;
            match &planned.make {
                Make::Copy(tensor) => {
                    let next = Run { job, at, bytes: tensor.bytes.clone() };
                    run = Some(match run.take() {
                        None => next,
                        Some(before) => match before.bytes.followed_by(&next.bytes).filter(|_| joined) {
                            Some(bytes) => Run { bytes, ..before },
                            None => {
                                copies(file, &before, &mut out);
                                next
                            }
                        },
                    });
                }
                Make::Compute(produce) => {
                    if let Some(run) = run.take() {
                        copies(file, &run, &mut out);
                    }
                    let (rows, _) = produce.matrix();
                    let step = rows_at_once(produce.rows(), rows, len);
                    let starts = (0..rows).step_by(step);
                    out.extend(starts.map(|start| {
                        let rows = start..(start + step).min(rows);
                        Piece { file, work: Work::Compute { job, rows } }
                    }));
                }
            }
            at += len as u64;
        }
        if let Some(run) = run {
            copies(file, &run, &mut out);
        }
    }
    Ok(out)
}

fn copies(file: usize, run: &Run, out: &mut Vec<Piece>) {
    for offset in (0..run.bytes.len()).step_by(COPY_BYTES) {
        let source = run.bytes.slice(offset..(offset + COPY_BYTES).min(run.bytes.len()));
        out.push(Piece { file, work: Work::Copy { job: run.job, offset, at: run.at + offset as u64, source } });
    }
}

/// How many rows of a tensor with `rows` rows in `len` bytes are made at once.
pub fn rows_at_once(rule: Rows, rows: usize, len: usize) -> usize {
    let row_bytes = len.checked_div(rows).unwrap_or(0).max(1);
    tile_rows(rule, rows, row_bytes).max(1)
}

fn tile_rows(rule: Rows, rows: usize, row_bytes: usize) -> usize {
    let wanted = (TILE_BYTES / row_bytes).max(1);
    match rule {
        Rows::Any => wanted,
        Rows::Multiple(n) => wanted.next_multiple_of(n.max(1)),
        Rows::Whole => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Entry, FileMetadata};
    use crate::stream::{Job, PlannedFile};
    use crate::tensor::{Dtype, Shape, Tensor};

    fn copied(name: &str, bytes: Bytes) -> Job {
        let shape = Shape::new(vec![bytes.len()]);
        let entry = Entry { name: name.to_string(), dtype: Dtype::U8, shape: shape.clone() };
        Job { entry, make: Make::Copy(Tensor::new(Dtype::U8, shape, bytes).unwrap()) }
    }

    #[test]
    fn neighbours_in_both_files_are_copied_together() {
        let all = Bytes::from(vec![0u8; 3 * COPY_BYTES]);
        let third = |i: usize| all.slice(i * COPY_BYTES..(i + 1) * COPY_BYTES);
        let small = |from: usize, to: usize| all.slice(from..to);
        let jobs = vec![
            copied("a", small(0, 10)),
            copied("b", small(10, 30)),
            copied("c", small(90, 100)),
            copied("d", third(1)),
            copied("e", third(2)),
        ];
        let file = PlannedFile { name: String::new(), metadata: FileMetadata::new(), head: None, jobs };
        let pieces = cut(&Plan { files: vec![file] }, true).unwrap();
        let places: Vec<(u64, usize)> = pieces
            .iter()
            .map(|p| match &p.work {
                Work::Copy { at, source, .. } => (*at, source.len()),
                Work::Compute { .. } => panic!("nothing is computed"),
            })
            .collect();
        assert_eq!(places, [(0, 30), (30, 10), (40, COPY_BYTES), (40 + COPY_BYTES as u64, COPY_BYTES)]);
    }
}
