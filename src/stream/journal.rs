//! What of an output is done: a list beside it, so that a run that was killed can be taken up.
//!
//! One row for each piece, added when the piece is written. Rows are not brought to disk, and neither need the pieces be:
//! whoever goes on compares every piece with its row before it counts. A row carries what the report needs of its piece.
//! The list begins with the identity of the run, a hash over everything its bytes follow from; a list of another run is
//! none.
//!
//! The file: eight bytes of a mark, 32 of the identity, then rows of ten little-endian words: kind, number of the piece,
//! what moved (five), a checksum of the piece (two), one of the row. Whatever does not check ends the list.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::pieces::{Piece, Work};
use super::plan::Plan;
use crate::error::{Context, Result};
use crate::kernels::Moved;
use crate::tensor::Hash;
use crate::tensor::hash::{Checksum, Hasher};

const MARK: &[u8; 8] = b"LTjrnl01";
const HEAD_BYTES: usize = MARK.len() + 32;
const WORDS: usize = 10;
const ROW_BYTES: usize = 8 * WORDS;
const COPIED: u64 = 1;
const COMPUTED: u64 = 2;

/// One piece that is said to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Row {
    /// Copied: its source says what it has to be.
    Copied,
    /// Computed: its checksum, and what moved.
    Computed(Checksum, Moved),
}

/// The list of a run. Rows come from several threads.
#[derive(Debug)]
pub struct Journal {
    /// None where it could not be begun: then nothing is noted.
    file: Option<File>,
    is_broken: AtomicBool,
    before: HashMap<usize, Row>,
    found: AtomicU64,
}

impl Journal {
    /// Begins a list, after those rows of the one at `path` that are of the same run. That it cannot be written is no
    /// error: the run is one that cannot be taken up then.
    pub fn open(path: &Path, identity: &Hash) -> Journal {
        let before = rows(path, identity).unwrap_or_default();
        let file = begin(path, identity, &before).ok();
        Journal { file, is_broken: AtomicBool::new(false), before, found: AtomicU64::new(0) }
    }

    /// Whether there is a list of the same run at `path`, with something in it.
    pub fn is_of(path: &Path, identity: &Hash) -> bool {
        rows(path, identity).is_some_and(|rows| !rows.is_empty())
    }

    /// What an earlier run said of a piece.
    pub fn before(&self, number: usize) -> Option<Row> {
        self.before.get(&number).copied()
    }

    /// Whether an earlier run has done anything.
    pub fn goes_on(&self) -> bool {
        !self.before.is_empty()
    }

    /// Counts bytes that were found as their row says.
    pub fn count(&self, bytes: usize) {
        self.found.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that were found as their rows say.
    pub fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Notes a piece that is written now. `bytes` are those of a computed one, and what moved.
    pub fn note(&self, number: usize, computed: Option<(&[u8], &Moved)>) {
        let Some(mut file) = self.file.as_ref().filter(|_| !self.is_broken.load(Ordering::Relaxed)) else { return };
        let row = match computed {
            None => Row::Copied,
            Some((bytes, moved)) => Row::Computed(Checksum::of(bytes), *moved),
        };
        // In one call, so that rows of several threads lie behind one another. After half of one no other could be read.
        if !matches!(file.write(&row.bytes(number)), Ok(ROW_BYTES)) {
            self.is_broken.store(true, Ordering::Relaxed);
        }
    }
}

fn begin(path: &Path, identity: &Hash, before: &HashMap<usize, Row>) -> std::io::Result<File> {
    let mut all = [MARK.as_slice(), &identity.0].concat();
    let mut numbers: Vec<_> = before.iter().collect();
    numbers.sort_by_key(|(number, _)| **number);
    for (number, row) in numbers {
        all.extend(row.bytes(*number));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options().append(true).create_new(true).open(path)?;
    file.write_all(&all)?;
    Ok(file)
}

/// The rows of the list at `path`, if it is one of this run.
fn rows(path: &Path, identity: &Hash) -> Option<HashMap<usize, Row>> {
    let mut all = Vec::new();
    File::open(path).ok()?.read_to_end(&mut all).ok()?;
    let (head, rows) = all.split_at_checked(HEAD_BYTES)?;
    if head != [MARK.as_slice(), &identity.0].concat() {
        return None;
    }
    Some(rows.chunks_exact(ROW_BYTES).map_while(Row::read).collect())
}

impl Row {
    fn bytes(&self, number: usize) -> [u8; ROW_BYTES] {
        let (kind, moved, sum) = match self {
            Row::Copied => (COPIED, Moved::default(), [0; 16]),
            Row::Computed(sum, moved) => (COMPUTED, *moved, sum.0),
        };
        let Moved { elements, still, wanted, along, nonfinite } = moved;
        let words = [kind, number as u64, elements, still, wanted.to_bits(), along.to_bits(), nonfinite];
        let mut out = [0; ROW_BYTES];
        for (place, word) in out.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out[56..72].copy_from_slice(&sum);
        let check = Checksum::of(&out[..72]);
        out[72..].copy_from_slice(&check.0[..8]);
        out
    }

    fn read(bytes: &[u8]) -> Option<(usize, Row)> {
        let (row, check) = bytes.split_at_checked(72)?;
        if Checksum::of(row).0[..8] != *check {
            return None;
        }
        let word = |n: usize| u64::from_le_bytes(row[8 * n..8 * n + 8].try_into().unwrap_or_default());
        let moved = Moved {
            elements: word(2),
            still: word(3),
            wanted: f64::from_bits(word(4)),
            along: f64::from_bits(word(5)),
            nonfinite: word(6),
        };
        let row = match word(0) {
            COPIED => Row::Copied,
            COMPUTED => Row::Computed(Checksum(row[56..72].try_into().ok()?), moved),
            _ => return None,
        };
        Some((usize::try_from(word(1)).ok()?, row))
    }
}

/// The identity of a run: that of what goes in, and how the plan is cut.
pub fn identity(inputs: &Hash, plan: &Plan, pieces: &[Piece]) -> Result<Hash> {
    let mut all = Hasher::default();
    all.raw(&inputs.0).number(plan.files.len() as u64);
    for file in &plan.files {
        all.text(&file.name);
        match &file.head {
            Some(head) => all.text("kept").raw(&Hash::of(head.as_slice()).0),
            None => all.text("made").raw(&Hash::of(&file.manifest().head().at_key(&file.name)?).0),
        };
    }
    all.number(pieces.len() as u64);
    for piece in pieces {
        all.number(piece.file as u64);
        match &piece.work {
            Work::Copy { job, offset, at, source } => {
                all.number(COPIED).number(*job as u64).number(*offset as u64).number(*at).number(source.len() as u64)
            }
            Work::Compute { job, rows } => {
                all.number(COMPUTED).number(*job as u64).number(rows.start as u64).number(rows.end as u64)
            }
        };
    }
    Ok(all.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("lora-tool-journal-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    #[test]
    fn what_was_noted_is_found_again_by_the_same_run_only() {
        let (path, run) = (path("again"), Hash::of(b"run"));
        let moved = Moved { elements: 7, still: 3, wanted: 0.1, along: -2.5, nonfinite: 1 };
        let journal = Journal::open(&path, &run);
        assert!(!journal.goes_on() && !Journal::is_of(&path, &run), "nothing is in it yet");
        journal.note(4, Some((b"piece", &moved)));
        journal.note(0, None);
        assert!(Journal::is_of(&path, &run));
        assert!(!Journal::is_of(&path, &Hash::of(b"another")));
        for _ in 0..2 {
            let again = Journal::open(&path, &run);
            assert_eq!(again.before(4), Some(Row::Computed(Checksum::of(b"piece"), moved)));
            assert_eq!((again.before(0), again.before(1)), (Some(Row::Copied), None));
        }
        assert_eq!(Journal::open(&path, &Hash::of(b"another")).before(4), None);
        assert!(!Journal::is_of(&path, &run), "and the list is the other run's now");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn every_bit_of_a_row_counts_and_half_a_row_ends_the_list() {
        let (path, run) = (path("bits"), Hash::of(b"run"));
        let journal = Journal::open(&path, &run);
        (0..3).for_each(|n| journal.note(n, Some((b"piece", &Moved::default()))));
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), HEAD_BYTES + 3 * ROW_BYTES);
        for bit in 0..8 * whole.len() {
            let mut other = whole.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &other).unwrap();
            let found = rows(&path, &run).map_or(0, |rows| rows.len());
            let expected = if bit / 8 < HEAD_BYTES { 0 } else { (bit / 8 - HEAD_BYTES) / ROW_BYTES };
            assert_eq!(found, expected, "bit {bit}");
        }
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let found = rows(&path, &run).map_or(0, |rows| rows.len());
            assert_eq!(found, len.saturating_sub(HEAD_BYTES) / ROW_BYTES, "{len} bytes");
        }
        std::fs::remove_file(path).unwrap();
    }
}
