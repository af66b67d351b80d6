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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::tensor::{Shape, Tensor};

    fn fitting(rows: usize) -> Fitting {
        let stored = Tensor::from_f32(Dtype::F32, [1], &[1.0]).unwrap();
        Fitting::new(Arc::new(Scales::read(&stored, &Shape::new([rows, 1]), (1, 1)).unwrap()), Dtype::F8_E4M3)
    }

    #[test]
    fn every_row_is_looked_at_once_by_whoever_comes() {
        for threads in [1, 8] {
            let (fitting, seen) = (fitting(1000), AtomicUsize::new(0));
            let look = |rows: Range<usize>, peaks: &mut [f32]| {
                seen.fetch_add(rows.len(), Ordering::Relaxed);
                peaks[0] = rows.end as f32;
                Ok(())
            };
            assert_eq!(fitting.grown(), None);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| assert_eq!(fitting.settle((1000, 7), &look).unwrap().largest(), 4.0));
                }
            });
            assert_eq!((seen.load(Ordering::Relaxed), fitting.grown()), (1000, Some((1, 4.0))));
        }
    }

    #[test]
    fn nobody_waits_for_one_that_fails_or_panics() {
        for panics in [false, true] {
            let fitting = fitting(100);
            let look = |rows: Range<usize>, _: &mut [f32]| {
                if rows.start == 50 {
                    assert!(!panics, "as asked");
                    return Err(Error::missing("row 50"));
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
                Ok(())
            };
            let failed = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| fitting.settle((100, 10), &look).is_err())).collect();
                all.into_iter().all(|one| one.join().unwrap_or(true))
            });
            assert!(failed, "{panics}");
        }
    }
}
