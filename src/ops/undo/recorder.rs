//! Writing an undo record: looks on while a model is merged and notes what would be missing to get back.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::manifest::{
    AdapterNote, BaseFile, Blocks, EditNote, How, MANIFEST, Manifest, MergeOptions, MergedFile, PIECES, TensorNote,
    pack, pack_piece,
};
use super::predict::Predictor;
use super::table::{PieceRow, Table};
use crate::error::{Context, Result};
use crate::kernels::{Guess, Kernels, Moved};
use crate::model::BaseModel;
use crate::ops::merge::place::{Grid, is_stacked};
use crate::ops::merge::source::{Edit, Ready, Source};
use crate::ops::merge::{Merge, Merged};
use crate::stream::undo::RecordWriter;
use crate::stream::undo::residual::{self, Elements, InDoubt, Predicted};
use crate::stream::{COPY_BYTES, Job, Make, PieceOf, Plan, Produce, Witness};
use crate::tensor::hash::Checksum;
use crate::tensor::{Bytes, Hash, MappedFile, Rows, Tensor, dtype};

/// What a record says beside its corrections.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Program and version.
    pub tool: String,
    /// The last component of the base's path.
    pub name: String,
    /// The adapters, in order.
    pub adapters: Vec<AdapterNote>,
    /// Whether each can be opened later as it is: what the base alone can tell of it is not in the record.
    pub rebuildable: Vec<bool>,
    /// The tensor files of those that lie in the record.
    pub embedded: Vec<(usize, Vec<u8>)>,
    /// How they were applied.
    pub options: MergeOptions,
    /// Texts of the base that the merged model does not have as they were, by path in the folder.
    pub texts: Vec<(String, Vec<u8>)>,
    /// Side files and their hashes.
    pub sides: Vec<(String, Hash)>,
}

/// The record of a run.
pub struct Recorder {
    writer: RecordWriter,
    entries: Vec<Vec<Entry>>,
    table: Mutex<Table>,
    manifest: Manifest,
    sections: Vec<Vec<u8>>,
    stored: Vec<(usize, Tensor)>, // note, tensor
    /// Room for guesses, for the next piece of any thread.
    guesses: Mutex<Vec<Guess>>,
}

/// One tensor of the merged model.
struct Entry {
    key: String,
    /// Number of the base's tensor in the manifest.
    note: Option<usize>,
    /// Where rows of the base are found again from it.
    rows: Option<RowsOf>,
    seen: Mutex<Blocks>,
}

/// A tensor of the base that is found again from merged rows.
struct RowsOf {
    base: Tensor,
    predictor: Predictor,
    merged_rows: usize,
    rule: Rows,
    /// Whether the merge, if it can, tells on its way what the predictor would find.
    is_told: bool,
}

/// The model that a record is of.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The base.
    pub base: &'a BaseModel,
    /// The merged model, as it is written or as it lies there.
    pub merged: &'a Plan,
    /// How tensors came about, where that is known.
    pub merge: Option<&'a Merge>,
    /// Whether the merged model is written now from that merge, so that its copies are the base's own tensors.
    pub written: bool,
}

impl Recorder {
    /// Begins a record at `path`.
    pub fn new(path: &Path, pair: Pair, about: About) -> Result<Recorder> {
        let (base, plan) = (pair.base, pair.merged);
        let mut names = vec![MANIFEST.to_string(), PIECES.to_string()];
        let mut sections = Vec::new();
        for (number, _) in base.shards().iter().enumerate() {
            names.push(super::head_section(number));
            sections.push(pack(base.head(number).as_slice())?);
        }
        for (name, text) in &about.texts {
            names.push(super::text_section(name));
            sections.push(pack(text)?);
        }
        for (number, file) in &about.embedded {
            names.push(super::adapter_section(*number));
            sections.push(file.clone());
        }
        let mut merged = Vec::with_capacity(plan.files.len());
        for file in &plan.files {
            let head = match &file.head {
                Some(head) => Hash::of(head.as_slice()),
                None => Hash::of(&file.manifest().head().at_key(&file.name)?),
            };
            merged.push(MergedFile { name: file.name.clone(), head: head.to_string() });
        }
        let mut manifest = Manifest {
            tool: about.tool,
            base: Vec::new(),
            name: about.name,
            is_folder: base.is_folder,
            texts: about.texts.into_iter().map(|(name, _)| name).collect(),
            sides: about.sides.into_iter().map(|(name, hash)| (name, hash.to_string())).collect(),
            merged,
            adapters: about.adapters,
            options: about.options,
            tensors: Vec::new(),
            added: Vec::new(),
        };
        let mut numbers = std::collections::HashMap::new();
        for shard in base.shards() {
            manifest.base.push(BaseFile { name: shard.name.clone(), tensors: shard.contents.tensors.len() });
            for (key, _) in &shard.contents.tensors {
                numbers.insert(key.as_str(), manifest.tensors.len());
                let note =
                    TensorNote { key: key.clone(), blocks: Blocks::default(), how: How::Stored, edits: Vec::new() };
                manifest.tensors.push(note);
            }
        }
        let mut entries = Vec::with_capacity(plan.files.len());
        for file in &plan.files {
            let mut of_file = Vec::with_capacity(file.jobs.len());
            for job in &file.jobs {
                let note = numbers.get(job.entry.name.as_str()).copied();
                let rows = match note {
                    Some(note) => begin(pair, job, &about.rebuildable, &mut manifest.tensors[note]),
                    None => None,
                };
                of_file.push(Entry { key: job.entry.name.clone(), note, rows, seen: Mutex::default() });
            }
            entries.push(of_file);
        }
        let mut stored = Vec::new();
        for (number, note) in manifest.tensors.iter().enumerate().filter(|(_, note)| note.how == How::Stored) {
            stored.extend(base.tensor(&note.key).map(|(_, tensor)| (number, tensor.clone())));
        }
        let writer = RecordWriter::create(path, &names)?;
        Ok(Recorder { writer, entries, table: Mutex::default(), manifest, sections, stored, guesses: Mutex::default() })
    }

    /// Where the base is found again from rows of a merged tensor: the number of the merged rows, and which of them
    /// belong together.
    pub fn rows_of(&self, file: usize, job: usize) -> Option<(usize, Rows)> {
        let of = self.entries[file][job].rows.as_ref()?;
        Some((of.merged_rows, of.rule))
    }

    /// Says that `rows` of a tensor are shown next, where nobody else has read the base's.
    pub fn fetch(&self, file: usize, job: usize, rows: Range<usize>) {
        self.with_base(file, job, rows, Bytes::fetch);
    }

    /// Lets them go again.
    pub fn release(&self, file: usize, job: usize, rows: Range<usize>) {
        self.with_base(file, job, rows, Bytes::release);
    }

    fn with_base(&self, file: usize, job: usize, rows: Range<usize>, f: impl Fn(&Bytes, Range<usize>)) {
        if let Some(of) = &self.entries[file][job].rows {
            let (base_rows, _) = of.predictor.matrix();
            let row_bytes = of.base.bytes.len() / base_rows.max(1);
            f(&of.base.bytes, rows.start.min(base_rows) * row_bytes..rows.end.min(base_rows) * row_bytes);
        }
    }

    /// Ends the record: what has to be stored whole, the manifest, and with `sync` all of it on disk. Gives its size.
    pub fn finish(mut self, sync: bool) -> Result<u64> {
        let mut table = std::mem::take(&mut *self.table.lock().unwrap_or_else(PoisonError::into_inner));
        for entry in self.entries.iter().flatten() {
            let blocks = entry.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let note = entry.note.filter(|&n| self.manifest.tensors[n].how != How::Stored);
            match note {
                Some(note) => self.manifest.tensors[note].blocks = Blocks { key: String::new(), ..blocks },
                None => self.manifest.added.push(blocks),
            }
        }
        for (note, tensor) in &self.stored {
            let bytes = tensor.bytes.as_slice();
            let blocks = Blocks {
                key: String::new(),
                first: table.len(),
                step: COPY_BYTES,
                count: bytes.len().div_ceil(COPY_BYTES),
            };
            for chunk in bytes.chunks(COPY_BYTES) {
                let blob = pack_piece(chunk)?;
                self.writer.put(table.len(), &blob)?;
                table.push(PieceRow { merged: None, base: Some(Checksum::of(chunk)), packed: blob.len() });
            }
            self.manifest.tensors[*note].blocks = blocks;
        }
        let mut sections = vec![self.manifest.pack()?, table.bytes()];
        sections.append(&mut self.sections);
        self.writer.finish(&sections, sync)
    }

    /// Notes what one piece was, `from` bytes into its tensor, and what it takes to get back.
    fn note(&self, piece: PieceOf, from: usize, len: usize, row: PieceRow, blob: &[u8]) -> Result<()> {
        let entry = &self.entries[piece.file][piece.job];
        {
            let mut seen = entry.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.count += 1;
            if from == 0 {
                (seen.first, seen.step) = (piece.number, len);
                seen.key.clone_from(&entry.key);
            }
        }
        self.table.lock().unwrap_or_else(PoisonError::into_inner).set(piece.number, row);
        self.writer.put(piece.number, blob)
    }

    /// Shows it rows of a merged tensor.
    pub fn rows(&self, kernels: &dyn Kernels, piece: PieceOf, rows: Range<usize>, bytes: &[u8]) -> Result<()> {
        let merged = Some(Hash::of(bytes));
        let row_bytes = bytes.len().checked_div(rows.len()).unwrap_or(0);
        let from = rows.start * row_bytes;
        let entry = &self.entries[piece.file][piece.job];
        let Some(of) = &entry.rows else {
            return self.note(piece, from, bytes.len(), PieceRow { merged, ..PieceRow::default() }, &[]);
        };
        let (base_rows, cols) = of.predictor.matrix();
        let rows = rows.start.min(base_rows)..rows.end.min(base_rows);
        let size = of.base.dtype.bitsize() / 8;
        let range = rows.start * cols * size..rows.end * cols * size;
        let truth = &of.base.bytes.as_slice()[range];
        let (mut guess, mut doubtful) = (vec![0u8; truth.len()], Vec::new());
        let merged_bytes = &bytes[..rows.len() * row_bytes];
        let factors = of.predictor.factors(kernels, rows.clone(), &of.base)?;
        of.predictor.predict(kernels, rows, (merged_bytes, &factors), &mut guess, &mut doubtful)?;
        let elements = Elements { size, float: dtype::is_float(of.base.dtype) };
        let mut blob: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        blob.append(&mut residual::encode(elements, Predicted { bytes: &mut guess, doubtful: &doubtful }, truth)?);
        let row = PieceRow { merged, base: Some(Checksum::of(truth)), packed: blob.len() };
        self.note(piece, from, bytes.len(), row, &blob)
    }

    /// Shows it rows of a merged tensor with what could be told of the base's while they were made: what
    /// [`rows`](Recorder::rows) would have found.
    fn guessed(&self, of: &RowsOf, piece: PieceOf, rows: Range<usize>, bytes: &[u8], guess: &Guess) -> Result<()> {
        let row_bytes = bytes.len() / rows.len().max(1);
        let range = rows.start * row_bytes..rows.end * row_bytes;
        let merged = Some(Hash::of(bytes));
        let truth = &of.base.bytes.as_slice()[range.clone()];
        let mut in_doubt = InDoubt::default();
        in_doubt.reserve(guess.count());
        guess.doubtful().for_each(|pairs| in_doubt.extend(pairs));
        let blob = in_doubt.finish()?;
        let row = PieceRow { merged, base: Some(Checksum::of(truth)), packed: blob.len() };
        self.note(piece, range.start, bytes.len(), row, &blob)
    }

    /// Shows it bytes of a merged tensor that are not computed.
    pub fn bytes(&self, piece: PieceOf, offset: usize, bytes: &[u8]) -> Result<()> {
        let row = PieceRow { merged: Some(Hash::of(bytes)), ..PieceRow::default() };
        self.note(piece, offset, bytes.len(), row, &[])
    }
}

impl Witness for Recorder {
    fn computed(&self, kernels: &dyn Kernels, piece: PieceOf, rows: Range<usize>, bytes: &[u8]) -> Result<()> {
        self.rows(kernels, piece, rows, bytes)
    }

    fn compute(
        &self,
        kernels: &dyn Kernels,
        piece: PieceOf,
        produce: &dyn Produce,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<Moved> {
        let entry = &self.entries[piece.file][piece.job];
        let Some(of) = entry.rows.as_ref().filter(|of| of.is_told) else {
            let moved = produce.produce(kernels, rows.clone(), out)?;
            self.rows(kernels, piece, rows, out)?;
            return Ok(moved);
        };
        let mut guess = self.guesses.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let (moved, guessed) = produce.produce_and_guess(kernels, rows.clone(), out, &mut guess)?;
        if guessed && guess.is_right() {
            self.guessed(of, piece, rows.clone(), out, &guess)?;
            of.predictor.finished(rows.len());
        } else {
            self.rows(kernels, piece, rows, out)?;
        }
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner).push(guess);
        Ok(moved)
    }

    fn copied(&self, piece: PieceOf, offset: usize, bytes: &Bytes) -> Result<()> {
        // Read through the map here, though it is copied inside the kernel: mapped in one call, and let go at once.
        bytes.fetch(0..bytes.len());
        let noted = self.bytes(piece, offset, bytes.as_slice());
        bytes.release(0..bytes.len());
        noted
    }
}

/// Decides how a tensor of the base will be found again from `job`, and says so in its note.
fn begin(pair: Pair, job: &Job, rebuildable: &[bool], note: &mut TensorNote) -> Option<RowsOf> {
    let (_, base) = pair.base.tensor(&note.key)?;
    if let Make::Copy(tensor) = &job.make
        && pair.written
    {
        // A copy of something else, as the counter of a batch norm that is replaced, is stored.
        if place_of(tensor) == place_of(base) {
            note.how = How::Same;
        }
        return None;
    }
    let work = pair.merge.and_then(|m| m.work.get(&note.key));
    let edits = work.map_or(&[][..], |w| w.edits());
    let known = edits.iter().all(|e| rebuildable.get(e.source.number) == Some(&true) && e.source.companion.is_none());
    let how = match work {
        // Of 8 bits so few move that the merged ones are the best guess; those of a scale would need it, too.
        Some(work) if known && dtype::is_plain_float(base.dtype) => how_of(work),
        _ => How::Near,
    };
    let rule = work.map_or(Rows::Any, |w| w.rows());
    let counted = matches!(how, How::Sum | How::Rows | How::Cols);
    let how = if counted && !can_be_counted(rule, job) { How::Near } else { how };
    let of_use = how != How::Near;
    let stacked = is_stacked(edits);
    let (before, after) = (Grid::of(&base.shape, stacked), Grid::of(&job.entry.shape, stacked));
    // Rows of the same length, none of them lost; elements of whole bytes.
    let whole_bytes = |d: dtype::Dtype| matches!(d.bitsize(), 8 | 16 | 32 | 64);
    let packed = !whole_bytes(base.dtype) || !whole_bytes(job.entry.dtype);
    if before.cols != after.cols || before.rows > after.rows || packed || base.bytes.is_empty() {
        return None;
    }
    note.how = how;
    let edits: Vec<Edit> = if of_use { edits.iter().map(again).collect() } else { Vec::new() };
    note.edits = edits.iter().map(EditNote::of).collect();
    let predictor = Predictor::new(base.dtype, job.entry.dtype, &base.shape, how, edits);
    let rule = if of_use { rule } else { Rows::Any };
    // Its products are then of the very bytes that the corrections lead back to.
    let own = work.and_then(|work| work.base()).and_then(place_of);
    let is_own = own.is_some() && own == place_of(base);
    let is_told = pair.written && is_own && before == after && predictor.is_one_pass();
    Some(RowsOf { base: base.clone(), predictor, merged_rows: after.rows, rule, is_told })
}

/// Where the bytes of a tensor lie: file, offset and length; none where they are in no file.
fn place_of(tensor: &Tensor) -> Option<(*const MappedFile, u64, usize)> {
    tensor.bytes.origin().map(|(file, at)| (Arc::as_ptr(file), at, tensor.bytes.len()))
}

/// The way for the changes of a tensor. A factor needs the whole tensor to itself, at full strength.
fn how_of(work: &Merged) -> How {
    match (How::of(work.reversal()), work.edits()) {
        (how @ (How::Rows | How::Cols), [only]) => {
            let whole = only.piece.memory.is_all() && only.piece.disk.is_all() && only.source.total() == 1.0;
            match how {
                how if whole => how,
                How::Rows => How::Steps,
                _ => How::Near,
            }
        }
        (How::Rows, _) => How::Steps,
        (How::Cols, _) => How::Near,
        (how, _) => how,
    }
}

/// Elements in doubt are counted with 32 bits within their piece, which is small unless rows belong together.
fn can_be_counted(rule: Rows, job: &Job) -> bool {
    rule == Rows::Any || job.entry.shape.elements().is_ok_and(|n| u32::try_from(n).is_ok())
}

/// The same edit with an action of its own: the merge lets go of its own after its last row.
fn again(edit: &Edit) -> Edit {
    let s = &edit.source;
    let source = Source {
        adapter: s.adapter.clone(),
        number: s.number,
        path: s.path.clone(),
        target: Arc::clone(&s.target),
        part: s.part,
        stored: s.stored.clone(),
        transposed: s.transposed,
        companion: None,
        strength: s.strength,
        ready: Ready::default(),
    };
    source.expect_user();
    Edit { source: Arc::new(source), piece: edit.piece.clone() }
}
