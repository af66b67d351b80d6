//! Out of core: the only place where model-sized data moves.
//!
//! [`run`] cuts every job of a plan into pieces of a fixed size and deals them to the threads. The size depends on
//! nothing but the job, and sums over pieces are taken in order, so neither bytes nor report depend on the number of
//! threads. Reading is mapping: a piece touches its input when its turn comes and lets the pages go afterwards.

pub mod budget;
mod each;
pub mod journal;
pub mod output;
mod pieces;
pub mod plan;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use budget::{Budget, Limits};
pub use each::each;
pub use journal::Journal;
pub use output::{Building, IndexFile, Output, Resuming, Writing};
pub use plan::{Job, Make, Plan, PlannedFile, Produce};

pub use pieces::{COPY_BYTES, rows_at_once};

pub use crate::container::pipeline::{component_of, known_as};
pub use crate::container::{Entry, FileMetadata, parse_head, undo};

use crate::container::SafetensorsWriter;
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::{Kernels, Moved};
use crate::tensor::hash::Checksum;
use crate::tensor::{Bytes, parallel};

use journal::Row;
use pieces::{Piece, Work};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Told how a run gets on.
pub trait Progress: Sync {
    /// `bytes` more of the output are written.
    fn advance(&self, bytes: u64);
    /// The number of a signal that asks the run to end, or zero.
    fn stop(&self) -> i32 {
        0
    }
}

/// Which piece of a run.
#[derive(Clone, Copy, Debug)]
pub struct PieceOf {
    /// Its number among all.
    pub number: usize,
    /// File in the plan.
    pub file: usize,
    /// Job of the file.
    pub job: usize,
}

/// Sees every piece of a run before it is written. Pieces are numbered in the order of the files' bytes; several
/// threads come at once, and later pieces may come before earlier ones.
pub trait Witness: Sync {
    /// Rows of a computed tensor.
    fn computed(&self, kernels: &dyn Kernels, piece: PieceOf, rows: Range<usize>, bytes: &[u8]) -> Result<()>;
    /// Has rows of a tensor computed, and sees them: for a witness that wants to know more than the result.
    fn compute(
        &self,
        kernels: &dyn Kernels,
        piece: PieceOf,
        produce: &dyn Produce,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<Moved> {
        let moved = produce.produce(kernels, rows.clone(), out)?;
        self.computed(kernels, piece, rows, out)?;
        Ok(moved)
    }
    /// Bytes of a copied tensor, from `offset` on.
    fn copied(&self, piece: PieceOf, offset: usize, bytes: &Bytes) -> Result<()>;
}

/// Where a run writes to, and what it may leave out because it is there already.
pub struct Target<'a> {
    /// Where the files go.
    pub place: Place<'a>,
    /// They are brought to disk.
    pub sync: bool,
    /// Pieces are noted in it when they are written; those that an earlier run has noted are looked at first.
    pub journal: Option<&'a Journal>,
}

/// Progress that nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn advance(&self, _bytes: u64) {}
}

/// Who looks on while a plan is run.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told how it gets on.
    pub progress: &'a dyn Progress,
    /// Shown every piece.
    pub witness: Option<&'a dyn Witness>,
}

impl<'a> From<&'a dyn Progress> for Watch<'a> {
    fn from(progress: &'a dyn Progress) -> Self {
        Watch { progress, witness: None }
    }
}

/// Where the files of a plan go.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A plan of one file, written to this path.
    File(&'a Path),
    /// A folder, which exists.
    Folder(&'a Path),
}

/// What each job did, in the shape of the plan: `[file][job]`; none for copies.
pub type Outcomes = Vec<Vec<Option<Moved>>>;

/// Writes every file of `plan` and, with `sync`, brings them to disk.
pub fn run(plan: &Plan, target: &Target, kernels: &dyn Kernels, limits: Limits, watch: Watch) -> Result<Outcomes> {
    let pieces = pieces::cut(plan, watch.witness.is_none())?;
    let files = Files::new(plan, target, &pieces)?;
    let budget = Budget::new(limits.memory);
    let results = each(pieces.len(), limits.threads, watch.progress, |number| {
        run_piece(plan, (number, &pieces[number]), &files, kernels, &budget, watch)
    })?;
    let mut outcomes: Outcomes = plan.files.iter().map(|f| vec![None; f.jobs.len()]).collect();
    for (piece, moved) in pieces.iter().zip(results) {
        if let (Some(moved), Work::Compute { job, .. }) = (moved, &piece.work) {
            outcomes[piece.file][*job].get_or_insert_with(Moved::default).add(&moved);
        }
    }
    Ok(outcomes)
}

/// The threads of a run, for work that deals itself out.
#[derive(Debug, Default)]
pub struct Workers(Option<rayon::ThreadPool>);

impl Workers {
    /// So many threads.
    pub fn new(threads: usize) -> Workers {
        Workers(parallel::pool(threads))
    }

    /// Does `work` on them; where there are none, on those it is on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => parallel::on_all(work),
        }
    }
}

/// The files being written. One is opened for its first piece and brought to disk after its last, so that a model of
/// many shards needs few of them open at a time.
struct Files<'a> {
    plan: &'a Plan,
    target: &'a Target<'a>,
    open: Vec<Mutex<Option<Arc<SafetensorsWriter>>>>,
    left: Vec<AtomicUsize>,
}

impl<'a> Files<'a> {
    fn new(plan: &'a Plan, target: &'a Target<'a>, pieces: &[Piece]) -> Result<Files<'a>> {
        let left: Vec<AtomicUsize> = plan.files.iter().map(|_| AtomicUsize::new(0)).collect();
        for piece in pieces {
            left[piece.file].fetch_add(1, Ordering::Relaxed);
        }
        let open = plan.files.iter().map(|_| Mutex::new(None)).collect();
        for (file, left) in plan.files.iter().zip(&left) {
            if left.load(Ordering::Relaxed) == 0 {
                create(file, target)?.finish()?; // only tensors without bytes
            }
        }
        Ok(Files { plan, target, open, left })
    }

    fn writer(&self, file: usize) -> Result<Arc<SafetensorsWriter>> {
        let mut open = self.open[file].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = &*open {
            return Ok(Arc::clone(writer));
        }
        let writer = Arc::new(create(&self.plan.files[file], self.target)?);
        *open = Some(Arc::clone(&writer));
        Ok(writer)
    }

    fn piece_done(&self, file: usize) -> Result<()> {
        if self.left[file].fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let writer = self.open[file].lock().unwrap_or_else(PoisonError::into_inner).take();
        writer.map_or(Ok(()), |writer| writer.finish())
    }
}

/// The error of a run that a signal ended.
fn stopped(signal: i32) -> Error {
    Error::new(Kind::Stopped(signal), format!("stopped by signal {signal}; nothing was written"))
}

fn create(file: &PlannedFile, target: &Target) -> Result<SafetensorsWriter> {
    let manifest = file.manifest();
    let own_head;
    let head = match &file.head {
        Some(head) => head.as_slice(),
        None => {
            own_head = manifest.head().at_key(&file.name)?;
            &own_head
        }
    };
    let path = match target.place {
        Place::File(path) => path.to_path_buf(),
        Place::Folder(folder) => folder.join(&file.name),
    };
    let begun = target.journal.is_some_and(Journal::goes_on);
    SafetensorsWriter::create(&path, &manifest, head, file.whole_copy().as_deref(), (target.sync, begun)).map_err(|e| {
        // A head that cannot be written because its file was cut short under the map.
        let input = file.head.as_ref().and_then(Bytes::origin);
        input.and_then(|(input, _)| input.unchanged().err()).unwrap_or(e)
    })
}

fn run_piece(
    plan: &Plan,
    (number, piece): (usize, &Piece),
    files: &Files,
    kernels: &dyn Kernels,
    budget: &Budget,
    watch: Watch,
) -> Result<Option<Moved>> {
    let of = |job| PieceOf { number, file: piece.file, job };
    let writer = files.writer(piece.file)?;
    let journal = files.target.journal;
    let before = journal.and_then(|journal| journal.before(number));
    let (bytes, moved) = match &piece.work {
        Work::Copy { job, offset, at, source } => {
            if let Some(witness) = watch.witness {
                let name = &plan.files[piece.file].jobs[*job].entry.name;
                witness.copied(of(*job), *offset, source).at_key(name)?;
            }
            if before != Some(Row::Copied) || !writer.holds(*at, source) {
                writer.copy(*at, source)?;
                journal.inspect(|journal| journal.note(number, None));
            } else {
                journal.inspect(|journal| journal.count(source.len()));
            }
            (source.len(), None)
        }
        Work::Compute { job: index, rows } => {
            let job = &plan.files[piece.file].jobs[*index];
            let Make::Compute(produce) = &job.make else { return Ok(None) };
            let (all, _) = produce.matrix();
            let row_bytes = job.entry.byte_len()? / all;
            let bytes = rows.len() * row_bytes;
            let _ticket = budget.admit(produce.footprint(rows.len()) + bytes as u64);
            // On a boundary of cache lines, where vector stores are fastest.
            let mut buffer = vec![0u8; bytes + LINE_BYTES];
            let start = buffer.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES);
            let out = &mut buffer[start..start + bytes];
            let offset = (rows.start * row_bytes) as u64;
            let done = match before {
                Some(Row::Computed(sum, moved)) if produce.can_be_taken_up() => {
                    (writer.read_back(*index, offset, out) && Checksum::of(out) == sum).then_some(moved)
                }
                _ => None,
            };
            let moved = match (done, watch.witness) {
                (Some(moved), witness) => {
                    witness.map_or(Ok(()), |w| w.computed(kernels, of(*index), rows.clone(), out)).map(|()| moved)
                }
                (None, Some(witness)) => witness.compute(kernels, of(*index), &**produce, rows.clone(), out),
                (None, None) => produce.produce(kernels, rows.clone(), out),
            }
            .at_key(&job.entry.name)?;
            produce.release(rows.clone());
            if done.is_none() {
                writer.put(*index, offset, out)?;
                journal.inspect(|journal| journal.note(number, Some((out, &moved))));
            } else {
                journal.inspect(|journal| journal.count(bytes));
            }
            (bytes, Some(moved))
        }
    };
    drop(writer);
    files.piece_done(piece.file)?;
    watch.progress.advance(bytes as u64);
    Ok(moved)
}
