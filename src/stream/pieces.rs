//! A plan cut into pieces of a fixed size. The size depends on nothing but the plan, so neither does what is written.

use std::ops::Range;

use super::plan::{Make, Plan};
use crate::error::Result;
use crate::tensor::{Bytes, Rows};

/// Output bytes of one computed piece. Small enough that input, output and workspace stay in cache near the core,
/// large enough that a write is worth its call.
const TILE_BYTES: usize = 2 << 20;
/// Most bytes of one copied piece.
const COPY_BYTES: usize = 8 << 20;

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

/// All pieces, in the order of the files' bytes.
pub fn cut(plan: &Plan) -> Result<Vec<Piece>> {
    let mut out = Vec::new();
    for (file, planned) in plan.files.iter().enumerate() {
        let mut at = 0u64;
        let mut run: Option<(u64, Bytes)> = None; // copies that have not been cut yet
        for (job, planned) in planned.jobs.iter().enumerate() {
            let len = planned.entry.byte_len()?;
            match &planned.make {
                Make::Copy(tensor) => {
                    let joined = run.take().map(|(start, bytes)| match bytes.followed_by(&tensor.bytes) {
                        Some(both) => (start, both),
                        None => {
                            copies(file, start, &bytes, &mut out);
                            (at, tensor.bytes.clone())
                        }
                    });
                    run = Some(joined.unwrap_or_else(|| (at, tensor.bytes.clone())));
                }
                Make::Compute(produce) => {
                    if let Some((start, bytes)) = run.take() {
                        copies(file, start, &bytes, &mut out);
                    }
                    let (rows, _) = produce.matrix();
                    let row_bytes = len.checked_div(rows).unwrap_or(0).max(1);
                    let step = tile_rows(produce.rows(), rows, row_bytes).max(1);
                    let starts = (0..rows).step_by(step);
                    out.extend(starts.map(|start| {
                        let rows = start..(start + step).min(rows);
                        Piece { file, work: Work::Compute { job, rows } }
                    }));
                }
            }
            at += len as u64;
        }
        if let Some((start, bytes)) = run {
            copies(file, start, &bytes, &mut out);
        }
    }
    Ok(out)
}

fn copies(file: usize, at: u64, bytes: &Bytes, out: &mut Vec<Piece>) {
    for start in (0..bytes.len()).step_by(COPY_BYTES) {
        let source = bytes.slice(start..(start + COPY_BYTES).min(bytes.len()));
        out.push(Piece { file, work: Work::Copy { at: at + start as u64, source } });
    }
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
        let pieces = cut(&Plan { files: vec![file] }).unwrap();
        let places: Vec<(u64, usize)> = pieces
            .iter()
            .map(|p| match &p.work {
                Work::Copy { at, source } => (*at, source.len()),
                Work::Compute { .. } => panic!("nothing is computed"),
            })
            .collect();
        assert_eq!(places, [(0, 30), (30, 10), (40, COPY_BYTES), (40 + COPY_BYTES as u64, COPY_BYTES)]);
    }
}
