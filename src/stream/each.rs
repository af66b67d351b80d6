//! Work dealt to the threads of a run: results in order, the first error ends it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Progress;
use crate::error::{Error, Result};
use crate::tensor::parallel::pool;

/// Does `work` for every number below `count` on `threads` threads. A signal of `progress` ends it between two numbers.
pub fn each<T: Send>(
    count: usize,
    threads: usize,
    progress: &dyn Progress,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first_error: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(result) = results.get(number) else { break };
            let step = match progress.stop() {
                0 => work(number),
                signal => Err(super::stopped(signal)),
            };
            match step {
                Ok(value) => *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(value),
                Err(e) => {
                    failed.store(true, Ordering::Relaxed);
                    // The one of the lowest number, which is the same on any number of threads: all below it have begun.
                    let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(earlier, _)| number < *earlier) {
                        *first = Some((number, e));
                    }
                }
            }
        }
    };
    match pool(threads.min(count)) {
        Some(pool) => drop(pool.broadcast(|_| work())),
        None => work(), // not even one more thread: this one does it all
    }
    if let Some((_, e)) = first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(e);
    }
    Ok(results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::stream::Unwatched;

    #[test]
    fn results_come_in_order_and_the_first_error_ends_it() {
        for threads in [1, 4] {
            let squares = each(100, threads, &Unwatched, |i| Ok(i * i)).unwrap();
            assert_eq!(squares, (0..100).map(|i| i * i).collect::<Vec<_>>());
            let e = each(100, threads, &Unwatched, |i| if i == 7 { Err(Error::missing("7")) } else { Ok(i) });
            assert_eq!(e.unwrap_err().what(), "7");
            // Whichever comes first in time, the error is that of the lowest number.
            let late = each(4, threads, &Unwatched, |i| {
                std::thread::sleep(std::time::Duration::from_millis(if i == 0 { 20 } else { 0 }));
                Err::<(), _>(Error::missing(i.to_string()))
            });
            assert_eq!(late.unwrap_err().what(), "0");
        }
        assert!(each(0, 2, &Unwatched, Ok).unwrap().is_empty());
    }

    struct Signalled;

    impl Progress for Signalled {
        fn advance(&self, _: u64) {}
        fn stop(&self) -> i32 {
            2
        }
    }

    #[test]
    fn a_signal_ends_it() {
        assert_eq!(each(3, 2, &Signalled, Ok).unwrap_err().kind(), Kind::Stopped(2));
    }
}
