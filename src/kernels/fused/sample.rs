//! The rows of a call that are measured: every variant takes the same.

use super::Moved;

/// Calls of fewer rows are measured whole.
const ALL: usize = 64;
/// Of so many rows, the first [`TAKEN`] are measured: in long runs, since each change between the code with the sums
/// and the code without them costs some thousand cycles.
const EVERY: usize = 256;
const TAKEN: usize = 16;

/// Whether row i of `rows` belongs to the sample, and the end of the rows that are with it in a run.
pub(super) fn run(i: usize, rows: usize) -> (bool, usize) {
    if rows < ALL {
        return (true, rows);
    }
    let place = i % EVERY;
    let sampled = place < TAKEN;
    let to_end = if sampled { TAKEN - place } else { EVERY - place };
    (sampled, i.saturating_add(to_end).min(rows))
}

impl Moved {
    /// Scales the sums over the sample up to all rows of a call.
    pub(in crate::kernels) fn scaled_up(mut self, rows: usize) -> Moved {
        let measured = if rows < ALL { rows } else { rows / EVERY * TAKEN + (rows % EVERY).min(TAKEN) };
        let weight = rows as f64 / measured.max(1) as f64;
        self.wanted *= weight;
        self.along *= weight;
        self
    }
}
