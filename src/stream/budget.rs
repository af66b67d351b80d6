//! Memory and threads: who may run beside whom.

use std::sync::{Condvar, Mutex, PoisonError};

/// What a run may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Worker threads.
    pub threads: usize,
    /// Bytes of working memory over all workers.
    pub memory: u64,
}

/// A counter of bytes. Work is admitted while the sum stays below the limit; a piece that is larger than all of it
/// runs alone.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Budget { limit, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until `bytes` fit, and takes them until the ticket is dropped.
    pub fn admit(&self, bytes: u64) -> Ticket<'_> {
        let bytes = bytes.min(self.limit);
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while *used + bytes > self.limit && *used > 0 {
            used = self.freed.wait(used).unwrap_or_else(PoisonError::into_inner);
        }
        *used += bytes;
        Ticket { budget: self, bytes }
    }
}

/// Bytes taken from a budget.
#[derive(Debug)]
pub struct Ticket<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        *self.budget.used.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_above_the_limit_runs_alone() {
        let budget = Budget::new(10);
        drop(budget.admit(100));
        let first = budget.admit(6);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| drop(budget.admit(6)));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!second.is_finished(), "12 bytes in a budget of 10");
            drop(first);
            second.join().unwrap();
        });
    }
}
