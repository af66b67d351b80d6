//! The scales of a merged tensor, found before its first element is written: the old ones where every merged value fits,
//! larger ones where one does not.
//!
//! That takes a look at all of the tensor, and the pieces that are to be written do not wait for one another. So the
//! first that comes begins to look, those that come meanwhile help, each with the next rows that nobody has, and all wait
//! for the last of them. Nobody waits for work that has not begun. Memory is that of the pieces. What is found does not
//! depend on who looked.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Kind, Result};
use crate::tensor::scales::Grown;
use crate::tensor::{Dtype, Scales};

/// The scales of one tensor, before and after.
#[derive(Debug)]
pub struct Fitting {
    /// Those of the base.
    pub before: Arc<Scales>,
    dtype: Dtype,
    state: Mutex<State>,
    settled: Condvar,
}

/// Raises the peak under each scale to what is in some rows.
pub type Look<'a> = dyn Fn(Range<usize>, &mut [f32]) -> Result<()> + 'a;

#[derive(Debug, Default)]
struct State {
    /// The next row that nobody has looked at, and how many have been.
    next: usize,
    seen: usize,
    peaks: Vec<f32>,
    after: Option<Arc<Scales>>,
    grown: Option<(usize, f64)>,
    /// Why there is no saying.
    failed: Option<(Kind, String)>,
}

impl Fitting {
    /// For elements of `dtype` with these scales.
    pub fn new(before: Arc<Scales>, dtype: Dtype) -> Fitting {
        let state = State { peaks: vec![0.0; before.len()], ..State::default() };
        Fitting { before, dtype, state: Mutex::new(state), settled: Condvar::new() }
    }

    /// How many scales became larger, and by what factor at most; none where the old ones stay, or as long as nobody
    /// has looked.
    pub fn grown(&self) -> Option<(usize, f64)> {
        self.lock().grown
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scales to write. `rows` are all rows, `step` is how many are looked at together, and `look` raises peaks to
    /// what is in some of them.
    pub fn settle(&self, (rows, step): (usize, usize), look: &Look) -> Result<Arc<Scales>> {
        loop {
            let mut state = self.lock();
            if let Some(after) = &state.after {
                return Ok(Arc::clone(after));
            }
            if let Some((kind, what)) = &state.failed {
                return Err(Error::new(*kind, what.clone()));
            }
            if state.next >= rows && state.seen < rows {
                drop(self.settled.wait(state).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let part = state.next..(state.next + step.max(1)).min(rows);
            state.next = part.end;
            drop(state);
            let turn = Turn { of: self, done: false };
            let mut peaks = vec![0f32; self.before.len()];
            match look(part.clone(), &mut peaks) {
                Ok(()) => turn.done(part.len(), rows, &peaks)?,
                Err(e) => {
                    self.lock().failed = Some((e.kind(), e.what().to_string()));
                    return Err(e);
                }
            }
        }
    }
}

/// Some rows that somebody looks at. Whatever happens to him, nobody waits for him afterwards.
struct Turn<'a> {
    of: &'a Fitting,
    done: bool,
}

impl Turn<'_> {
    fn done(mut self, count: usize, rows: usize, peaks: &[f32]) -> Result<()> {
        let mut state = self.of.lock();
        state.seen += count;
        for (all, own) in state.peaks.iter_mut().zip(peaks) {
            *all = all.max(*own);
        }
        if state.seen >= rows {
            match self.of.before.grown(self.of.dtype, &state.peaks) {
                Ok(None) => state.after = Some(Arc::clone(&self.of.before)),
                Ok(Some(Grown { scales, count, factor })) => {
                    state.grown = Some((count, factor));
                    state.after = Some(Arc::new(scales));
                }
                Err(e) => {
                    state.failed = Some((e.kind(), e.what().to_string()));
                    drop(state);
                    return Err(e);
                }
            }
            self.of.settled.notify_all();
        }
        self.done = true;
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.of.lock();
        let unknown = || (Kind::Unsupported, "the scales of the tensor were not found".to_string());
        state.failed.get_or_insert_with(unknown);
        self.of.settled.notify_all();
    }
}
