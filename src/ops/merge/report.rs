//! What a merge did, tensor by tensor: how much of the wanted change is left after rounding.

use crate::kernels::Moved;
use crate::stream::Outcomes;

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
    pub fn new(mut changes: Vec<Change>, totals: Totals, outcomes: &Outcomes) -> Report {
        let mut moved = Moved::default();
        for change in &mut changes {
            let (file, job) = change.place;
            if let Some(outcome) = outcomes.get(file).and_then(|jobs| jobs.get(job)).copied().flatten() {
                change.moved = outcome;
                moved.add(&outcome);
            }
        }
        Report { changes, moved, totals }
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
