//! What a merge did, tensor by tensor: how much of the wanted change is left after rounding.

use std::sync::Arc;

use super::fitting::Fitting;
use crate::kernels::Moved;
use crate::stream::Outcomes;
use crate::tensor::Dtype;

/// One changed tensor.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its key on disk.
    pub key: String,
    /// Its file and job in the plan.
    pub place: (usize, usize),
    /// The adapters' module paths that change it.
    pub modules: Vec<String>,
    /// The kind of each.
    pub kinds: Vec<&'static str>,
    /// The type it is written in.
    pub dtype: Dtype,
    /// Its scales, where it has some.
    pub(super) fitting: Option<Arc<Fitting>>,
    /// What happened; zeros before it is written.
    pub moved: Moved,
}

/// Numbers over the whole merge.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Tensors of the adapters.
    pub adapter_tensors: usize,
    /// Those that were used.
    pub adapter_tensors_used: usize,
    /// Tensors written that differ from the base's.
    pub changed: usize,
    /// Tensors of the base that are only cast to another type.
    pub cast: usize,
    /// Tensors copied byte for byte.
    pub copied: usize,
    /// Tensors the base does not have.
    pub added: usize,
    /// Bytes of tensors written.
    pub bytes: u64,
}

/// What a merge did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Changed tensors.
    pub changes: Vec<Change>,
    /// Sums over them.
    pub moved: Moved,
    /// Counts.
    pub totals: Totals,
}

impl Change {
    /// Share of the wanted change that the stored values realise: ⟨realised, wanted⟩ / ⟨wanted, wanted⟩. None where
    /// nothing was wanted.
    pub fn survived(&self) -> Option<f64> {
        survived(&self.moved)
    }

    /// How many of its scales became larger, and by what factor at most; none where the old ones stay, or before it is
    /// written.
    pub fn grown(&self) -> Option<(usize, f64)> {
        self.fitting.as_ref()?.grown()
    }
}

/// See [`Change::survived`].
pub fn survived(moved: &Moved) -> Option<f64> {
    (moved.wanted > 0.0).then(|| moved.along / moved.wanted)
}

/// Share of the elements whose stored value did not move.
pub fn unmoved(moved: &Moved) -> Option<f64> {
    (moved.elements > 0).then(|| moved.still as f64 / moved.elements as f64)
}

impl Report {
    /// Puts the outcomes of a run beside the planned changes.
    pub fn new(mut changes: Vec<Change>, mut totals: Totals, outcomes: &Outcomes) -> Report {
        let mut moved = Moved::default();
        for change in &mut changes {
            let (file, job) = change.place;
            if let Some(outcome) = outcomes.get(file).and_then(|jobs| jobs.get(job)).copied().flatten() {
                change.moved = outcome;
                moved.add(&outcome);
            }
        }
        // A scale that stays is a copy; only now is it known which became larger.
        let grown = changes.iter().filter(|change| change.grown().is_some()).count();
        totals.copied = totals.copied.saturating_sub(grown);
        totals.changed += grown;
        Report { changes, moved, totals }
    }

    /// How many tensors have a scale that became larger, and by what factor at most.
    pub fn grown(&self) -> Option<(usize, f64)> {
        let all: Vec<f64> = self.changes.iter().filter_map(|change| Some(change.grown()?.1)).collect();
        Some((all.len(), all.iter().copied().fold(1.0, f64::max))).filter(|(count, _)| *count > 0)
    }

    /// Whether something that changed is written in 8-bit floats.
    pub fn is_eight(&self) -> bool {
        self.changes.iter().any(|change| change.dtype.bitsize() == 8)
    }

    /// Share of the wanted change over all tensors.
    pub fn survived(&self) -> Option<f64> {
        survived(&self.moved)
    }

    /// Share of the elements of changed tensors that did not move.
    pub fn unmoved(&self) -> Option<f64> {
        unmoved(&self.moved)
    }
}
