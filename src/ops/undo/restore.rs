//! Using an undo record: merged model + record → the plan of the base as it was.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::manifest::{
    AdapterNote, Blocks, How, MANIFEST, Manifest, PIECES, TensorNote, damaged, unpack, unpack_at_most,
};
use super::predict::Predictor;
use super::table::Table;
use super::{adapter_section, head_section, text_section};
use crate::adapter::{Adapter, Note};
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::{Kernels, Moved};
use crate::model::BaseModel;
use crate::ops::merge::source::Edit;
use crate::stream::undo::Record;
use crate::stream::undo::residual::{self, Elements};
use crate::stream::{self, COPY_BYTES, Job, Make, Output, PieceOf, Plan, PlannedFile, Produce, Progress, Witness};
use crate::tensor::hash::Checksum;
use crate::tensor::{Bytes, Hash, MappedFile, Rows, Shape, Tensor, dtype};

/// A record and what it says.
pub struct Restore {
    record: Arc<Record>,
    manifest: Manifest,
    table: Arc<Table>,
}

/// A base that is ready to be written again.
pub struct Undone {
    /// What will be written.
    pub output: Output,
    /// Compares what is copied with the record.
    pub check: CopyCheck,
    /// Remarks.
    pub notes: Vec<Note>,
    /// Tensors found again from others.
    pub restored: usize,
    /// Tensors copied as they are.
    pub copied: usize,
}

impl Restore {
    /// Reads what the record says.
    pub fn new(record: Record) -> Result<Restore> {
        let path = record.file().path().to_path_buf();
        let read = || {
            let manifest = Manifest::unpack(record.section(MANIFEST)?.as_slice())?;
            let table = Table::parse(record.section(PIECES)?.as_slice(), record.corrections().len())?;
            Ok((manifest, Arc::new(table)))
        };
        let (manifest, table) = read().in_file(&path)?;
        Ok(Restore { record: Arc::new(record), manifest, table })
    }

    /// What it says in words.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The adapters that were merged.
    pub fn adapters(&self) -> &[AdapterNote] {
        &self.manifest.adapters
    }

    /// Whether the base cannot be found again without the adapter.
    pub fn needs(&self, adapter: usize) -> bool {
        self.manifest.tensors.iter().any(|t| t.edits.iter().any(|e| e.adapter() == adapter))
    }

    /// The record's file, and the place in it of an adapter's tensors.
    pub fn embedded(&self, adapter: usize) -> Result<Bytes> {
        self.record.section(&adapter_section(adapter)).cloned()
    }

    /// An error unless `merged` is the model this record was made for, as far as its heads tell.
    fn require_same(&self, merged: &BaseModel) -> Result<()> {
        let theirs = &self.manifest.merged;
        let same = theirs.len() == merged.shards().len()
            && merged.shards().iter().enumerate().zip(theirs).all(|((number, shard), file)| {
                let named = !merged.is_folder || shard.name == file.name;
                named && Hash::of(merged.head(number).as_slice()).to_string() == file.head
            });
        if same {
            return Ok(());
        }
        Err(Error::mismatch("not the model that the undo record was made for: its tensors or metadata are others")
            .in_file(&merged.path)
            .hint(format!("the record is of {} after merging {}", self.manifest.name, self.list())))
    }

    /// An error where it names files that are none of a base's, or weights that no model of this size has.
    fn require_sense(&self, merged: &BaseModel) -> Result<()> {
        let files = &self.manifest.base;
        if !self.manifest.is_folder && files.len() != 1 {
            return Err(damaged(&format!("a base of one file with {} files", files.len())));
        }
        let mut names = std::collections::HashSet::new();
        for name in files.iter().map(|f| &f.name).chain(&self.manifest.texts) {
            plain_path(name)?;
            if !names.insert(name) {
                return Err(damaged(&format!("two files of the name `{name}`")));
            }
        }
        // In folders lie the components of a pipeline, and nothing else.
        let is_component = |folder: &str| merged.components().iter().any(|c| c.name == folder);
        if let Some(file) = files.iter().find(|f| f.name.rsplit_once('/').is_some_and(|(to, _)| !is_component(to))) {
            return Err(damaged(&format!("a file of the name `{}`", file.name)));
        }
        let mut elements = 0usize;
        for (_, _, tensor) in merged.files.tensors() {
            elements = elements.saturating_add(tensor.elements());
        }
        self.manifest.tensors.iter().flat_map(|t| &t.edits).try_for_each(|edit| edit.require_size(elements))
    }

    fn list(&self) -> String {
        let names: Vec<_> = self.adapters().iter().map(|a| format!("{}@{}", a.name, a.strength)).collect();
        if names.is_empty() { "something unnamed".to_string() } else { names.join(", ") }
    }

    /// Plans the base. `adapters` are those of the record, in its order; one that is not needed may be empty.
    pub fn plan(&self, merged: &BaseModel, mut adapters: Vec<Adapter>) -> Result<Undone> {
        self.require_same(merged)?;
        self.require_sense(merged).in_file(self.record.file().path())?;
        for (number, adapter) in adapters.iter_mut().enumerate() {
            let edits = || self.manifest.tensors.iter().flat_map(|t| &t.edits);
            adapter.complete(&|path| edits().find_map(|e| e.shape_of(number, path)))?;
        }
        let adapters: Vec<_> =
            self.adapters().iter().map(|a| a.strength).zip(adapters.into_iter().map(Arc::new)).collect();
        let file_of_record = self.record.file().path().to_path_buf();
        let theirs: HashMap<&str, (usize, usize, &Tensor)> = merged
            .shards()
            .iter()
            .enumerate()
            .flat_map(|(f, s)| s.contents.tensors.iter().enumerate().map(move |(j, (k, t))| (k.as_str(), (f, j, t))))
            .collect();
        let mut notes = self.manifest.tensors.iter();
        let mut remarks = Vec::new();
        let mut undone = Undone {
            output: self.frame(merged, &mut remarks)?,
            check: CopyCheck { table: Arc::clone(&self.table), blocks: Vec::new(), rest: Vec::new() },
            notes: remarks,
            restored: 0,
            copied: 0,
        };
        let mut marks = vec![Mark::Free; self.table.len()];
        for (number, file) in self.manifest.base.iter().enumerate() {
            let head = unpack(self.record.section(&head_section(number))?.as_slice()).in_file(&file_of_record)?;
            let (entries, metadata) = stream::parse_head(&head).in_file(&file_of_record)?;
            if entries.len() != file.tensors {
                return Err(damaged("a head with another number of tensors").in_file(&file_of_record));
            }
            let (mut jobs, mut blocks) = (Vec::with_capacity(entries.len()), Vec::with_capacity(entries.len()));
            for mut entry in entries {
                entry.name = stream::known_as(&file.name, &entry.name);
                let note = notes.next().filter(|n| n.key == entry.name);
                let note =
                    note.ok_or_else(|| damaged("its tensors are not those of its heads")).in_file(&file_of_record)?;
                let other = theirs.get(entry.name.as_str()).map(|(_, _, tensor)| *tensor);
                let make =
                    self.make(note, &entry.shape, entry.dtype, other, &adapters, &mut marks).at_key(&entry.name)?;
                match make {
                    Make::Copy(_) => undone.copied += 1,
                    Make::Compute(_) => undone.restored += 1,
                }
                jobs.push(Job { entry, make });
                blocks.push(note.blocks.clone());
            }
            undone.check.blocks.push(blocks);
            undone.output.plan.files.push(PlannedFile {
                name: file.name.clone(),
                metadata,
                head: Some(head.into()),
                jobs,
            });
        }
        for (key, tensor, blocks) in self.unused(&theirs, &marks) {
            undone.check.rest.push((key, tensor, blocks));
        }
        self.compare_sides(merged, &mut undone);
        Ok(undone)
    }

    /// The output without its tensors.
    fn frame(&self, merged: &BaseModel, notes: &mut Vec<Note>) -> Result<Output> {
        let mut texts = Vec::new();
        for name in &self.manifest.texts {
            let text = unpack(self.record.section(&text_section(name))?.as_slice())?;
            texts.push((plain_path(name)?, text));
        }
        let own = self.record.file().path().canonicalize().ok();
        let of_base = |path: &PathBuf| self.manifest.sides.iter().any(|(name, _)| path.to_string_lossy() == *name);
        let mut side = merged.side_files()?;
        // Other copies of weights that the merge took along, since they stayed right.
        side.copied.extend(side.left.extract_if(.., |path| of_base(path)));
        let (copies, others): (Vec<_>, Vec<_>) = side.copied.into_iter().partition(of_base);
        for path in others {
            let known = texts.iter().any(|(name, _)| *name == path);
            if !known && self.manifest.is_folder && merged.path.join(&path).canonicalize().ok() != own {
                notes.push(Note::info(path.to_string_lossy(), "was not beside the base; not copied"));
            }
        }
        let mut inputs: Vec<_> = merged.shards().iter().map(|s| Arc::clone(&s.contents.file)).collect();
        inputs.push(Arc::clone(self.record.file()));
        let plan = Plan { files: Vec::new() };
        let is_folder = self.manifest.is_folder;
        Ok(Output { plan, indexes: Vec::new(), texts, copies, copied_from: merged.path.clone(), is_folder, inputs })
    }

    fn make(
        &self,
        note: &TensorNote,
        shape: &Shape,
        dtype: dtype::Dtype,
        merged: Option<&Tensor>,
        adapters: &[(f64, Arc<Adapter>)],
        marks: &mut [Mark],
    ) -> Result<Make> {
        let Blocks { first, step, count, .. } = note.blocks;
        let numbers = first..first.saturating_add(count);
        let marks = marks.get_mut(numbers).ok_or_else(|| damaged("pieces that are not in its table"))?;
        if marks.iter().any(|mark| *mark != Mark::Free) {
            return Err(damaged("pieces of two tensors"));
        }
        marks.fill(Mark::Compared);
        let pieces = Pieces { table: Arc::clone(&self.table), record: Arc::clone(&self.record), first, count };
        if note.how == How::Stored {
            let tensor_bytes = dtype::byte_len(dtype, shape.elements()?)?;
            if step != COPY_BYTES || count != tensor_bytes.div_ceil(COPY_BYTES) {
                return Err(damaged("a stored tensor of another size"));
            }
            return Ok(Make::Compute(Arc::new(Stored { pieces, bytes: tensor_bytes })));
        }
        let merged = merged.ok_or_else(|| Error::missing("the merged model does not have this tensor"))?;
        if note.how == How::Same {
            if merged.shape != *shape || merged.dtype != dtype || count != merged.bytes.len().div_ceil(COPY_BYTES) {
                return Err(damaged("a tensor that did not change has another form"));
            }
            return Ok(Make::Copy(merged.clone()));
        }
        let whole_bytes = |d: dtype::Dtype| d.bitsize().is_multiple_of(8);
        if !whole_bytes(dtype) || !whole_bytes(merged.dtype) {
            return Err(damaged("elements of less than a byte"));
        }
        let edits = note.edits.iter().map(|e| e.edit(&note.key, adapters)).collect::<Result<Vec<Edit>>>()?;
        let predictor = Predictor::new(dtype, merged.dtype, shape, note.how, edits);
        let (rows, cols) = predictor.matrix();
        let row_bytes = dtype::byte_len(merged.dtype, cols)?;
        let merged_rows = merged.bytes.len().checked_div(row_bytes).unwrap_or(0);
        let rows_of_piece = step.checked_div(row_bytes).unwrap_or(0);
        let fits = rows > 0
            && merged_rows >= rows
            && merged_rows * row_bytes == merged.bytes.len()
            && (1..=merged_rows).contains(&rows_of_piece)
            && rows_of_piece * row_bytes == step
            && count == merged_rows.div_ceil(rows_of_piece);
        let counted = rows_of_piece.checked_mul(cols).is_some_and(|n| u32::try_from(n).is_ok());
        if !fits || (note.how == How::Sum && !counted) {
            return Err(damaged("pieces of another size than the merged tensor's"));
        }
        // Rows the base does not have are compared with the record by themselves.
        marks[rows.div_ceil(rows_of_piece)..].fill(Mark::Left);
        let elements = Elements { size: dtype.bitsize() / 8, float: dtype::is_float(dtype) };
        Ok(Make::Compute(Arc::new(Restored { pieces, merged: merged.clone(), predictor, elements, rows_of_piece })))
    }

    /// Pieces of the merged model that nothing is made of, by tensor.
    fn unused(&self, theirs: &HashMap<&str, (usize, usize, &Tensor)>, marks: &[Mark]) -> Vec<(String, Tensor, Blocks)> {
        let mut out = Vec::new();
        let all = self.manifest.tensors.iter().filter(|t| t.how != How::Stored).map(|t| (&t.key, &t.blocks));
        for (key, blocks) in all.chain(self.manifest.added.iter().map(|b| (&b.key, b))) {
            let range = blocks.first..blocks.first.saturating_add(blocks.count);
            let idle = marks.get(range).is_some_and(|m| m.iter().any(|mark| *mark != Mark::Compared));
            if let (true, Some((_, _, tensor))) = (idle, theirs.get(key.as_str())) {
                out.push((key.clone(), (*tensor).clone(), blocks.clone()));
            }
        }
        out
    }

    /// Side files that are not what they were get a note; they are copied as they are.
    fn compare_sides(&self, merged: &BaseModel, undone: &mut Undone) {
        for (name, hash) in &self.manifest.sides {
            let path = undone.output.copies.iter().find(|path| path.to_string_lossy() == *name);
            let found = path.and_then(|path| MappedFile::open(&merged.path.join(path)).ok());
            let text = match found {
                None => "was beside the base and is not beside the merged model; not restored",
                Some(file) if Hash::of(file.as_slice()).to_string() != *hash => {
                    "changed since the merge; copied as it is now"
                }
                Some(_) => continue,
            };
            undone.notes.push(Note::lossy(name, text));
        }
    }
}

/// What becomes of a piece of the merged model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// Nothing so far.
    Free,
    /// It is compared with the record when it is used.
    Compared,
    /// Nothing is made of it: it has to be compared by itself.
    Left,
}

/// A path that stays in its folder.
fn plain_path(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    let plain = !name.is_empty() && path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    if plain { Ok(path) } else { Err(damaged(&format!("a file of the name `{name}`"))) }
}

/// The error for bytes that are not those the record knows.
fn altered(rows: &Range<usize>) -> Error {
    Error::new(Kind::Mismatch, format!("not the merged model of this record: rows {rows:?} have other bytes"))
        .hint("the file was changed or damaged after the merge")
}

/// Consecutive pieces of a record.
struct Pieces {
    table: Arc<Table>,
    record: Arc<Record>,
    first: usize,
    count: usize,
}

impl Pieces {
    fn get(&self, number: usize) -> Result<(Option<Hash>, Option<Checksum>, &[u8])> {
        if number >= self.count {
            return Err(damaged("a tensor with too few pieces"));
        }
        let (row, range) = self.table.get(self.first + number)?;
        let packed =
            self.record.corrections().as_slice().get(range).ok_or_else(|| damaged("corrections are cut short"))?;
        Ok((row.merged, row.base, packed))
    }
}

/// A tensor found again from its merged rows.
struct Restored {
    pieces: Pieces,
    merged: Tensor,
    predictor: Predictor,
    elements: Elements,
    rows_of_piece: usize,
}

impl Restored {
    fn piece(&self, kernels: &dyn Kernels, number: usize, out: &mut [u8]) -> Result<()> {
        let (merged_hash, checksum, packed) = self.pieces.get(number)?;
        let (base_rows, cols) = self.predictor.matrix();
        let row_bytes = dtype::byte_len(self.merged.dtype, cols)?;
        let merged_rows = self.merged.bytes.len() / row_bytes.max(1);
        let all = number * self.rows_of_piece..((number + 1) * self.rows_of_piece).min(merged_rows);
        let range = all.start * row_bytes..all.end * row_bytes;
        self.merged.bytes.fetch(range.clone());
        let bytes = &self.merged.bytes.as_slice()[range.clone()];
        if merged_hash != Some(Hash::of(bytes)) {
            return Err(altered(&all));
        }
        let rows = all.start..all.end.min(base_rows);
        let mut doubtful = Vec::new();
        let (factors, packed) = packed
            .split_at_checked(4 * self.predictor.factor_count(rows.len()))
            .ok_or_else(|| damaged("factors are cut short"))?;
        let factors: Vec<f32> = factors.as_chunks::<4>().0.iter().map(|f| f32::from_le_bytes(*f)).collect();
        let bytes = &bytes[..rows.len() * row_bytes];
        self.predictor.predict(kernels, rows.clone(), (bytes, &factors), out, &mut doubtful)?;
        residual::decode(self.elements, packed, &doubtful, out)?;
        if checksum != Some(Checksum::of(out)) {
            return Err(Error::malformed(format!("rows {rows:?} do not come out as they were before the merge")).hint(
                "are these the adapters that were merged, and is the program one that reads this record's version?",
            ));
        }
        self.merged.bytes.release(range);
        Ok(())
    }
}

impl Produce for Restored {
    fn matrix(&self) -> (usize, usize) {
        self.predictor.matrix()
    }

    fn rows(&self) -> Rows {
        Rows::Multiple(self.rows_of_piece)
    }

    fn footprint(&self, rows: usize) -> u64 {
        self.predictor.footprint(rows)
    }

    fn produce(&self, kernels: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        let row_bytes = out.len().checked_div(rows.len()).unwrap_or(0);
        for (piece, part) in out.chunks_mut((self.rows_of_piece * row_bytes).max(1)).enumerate() {
            self.piece(kernels, rows.start / self.rows_of_piece + piece, part)?;
        }
        Ok(Moved::default())
    }
}

/// A tensor that lies in the record.
struct Stored {
    pieces: Pieces,
    bytes: usize,
}

impl Produce for Stored {
    /// Bytes are rows here, so that its pieces are groups of rows.
    fn matrix(&self) -> (usize, usize) {
        (self.bytes, 1)
    }

    fn rows(&self) -> Rows {
        Rows::Multiple(COPY_BYTES)
    }

    fn footprint(&self, _: usize) -> u64 {
        COPY_BYTES as u64
    }

    fn produce(&self, _: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        for (number, part) in (rows.start / COPY_BYTES..).zip(out.chunks_mut(COPY_BYTES)) {
            let (_, checksum, packed) = self.pieces.get(number)?;
            let bytes = unpack_at_most(packed, part.len())?;
            if bytes.len() != part.len() || checksum != Some(Checksum::of(&bytes)) {
                return Err(damaged("a stored tensor is not what it was"));
            }
            part.copy_from_slice(&bytes);
        }
        Ok(Moved::default())
    }
}

/// Compares copied tensors with what the record says of them.
pub struct CopyCheck {
    table: Arc<Table>,
    blocks: Vec<Vec<Blocks>>,
    rest: Vec<(String, Tensor, Blocks)>,
}

impl CopyCheck {
    /// Compares those tensors, and rows of tensors, that only the merged model has.
    pub fn rest(&self, threads: usize, progress: &dyn Progress) -> Result<()> {
        stream::each(self.rest.len(), threads, progress, |number| {
            let (key, tensor, blocks) = &self.rest[number];
            for (i, chunk) in tensor.bytes.as_slice().chunks(blocks.step.max(1)).enumerate() {
                self.compare(blocks, i, chunk).at_key(key)?;
            }
            tensor.bytes.release(0..tensor.bytes.len());
            Ok(())
        })
        .map(drop)
    }

    fn compare(&self, blocks: &Blocks, number: usize, bytes: &[u8]) -> Result<()> {
        let row = if number < blocks.count { self.table.get(blocks.first + number)?.0.merged } else { None };
        if row == Some(Hash::of(bytes)) {
            return Ok(());
        }
        Err(Error::new(Kind::Mismatch, format!("not the merged model of this record: block {number} has other bytes"))
            .hint("the file was changed or damaged after the merge"))
    }
}

impl Witness for CopyCheck {
    fn computed(&self, _: &dyn Kernels, _: PieceOf, _: Range<usize>, _: &[u8]) -> Result<()> {
        Ok(()) // compares itself
    }

    fn copied(&self, piece: PieceOf, offset: usize, bytes: &Bytes) -> Result<()> {
        bytes.fetch(0..bytes.len());
        let compared = self.compare(&self.blocks[piece.file][piece.job], offset / COPY_BYTES, bytes.as_slice());
        bytes.release(0..bytes.len());
        compared
    }
}
