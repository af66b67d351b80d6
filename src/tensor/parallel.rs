//! Threads for what is done to many values at once, outside of a run that deals its work out itself: as many as there are
//! cores, or as many as the system gives. rayon's own pool would end the program where it cannot have all of them.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of `threads`, or of as many as the system lets us have; none where it is not even one.
pub fn pool(mut threads: usize) -> Option<ThreadPool> {
    while threads > 0 {
        if let Ok(pool) = ThreadPoolBuilder::new().num_threads(threads).build() {
            return Some(pool);
        }
        threads /= 2;
    }
    None
}

/// Does `work`, which deals itself out, on the threads it is on, else on all.
pub fn on_all<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    static ALL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return work();
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    match ALL.get_or_init(|| pool(cores())) {
        Some(pool) => pool.install(work),
        // A pool of this thread alone.
        None => match ThreadPoolBuilder::new().num_threads(1).use_current_thread().build() {
            Ok(pool) => pool.install(work),
            Err(_) => work(), // it is one of another pool
        },
    }
}
