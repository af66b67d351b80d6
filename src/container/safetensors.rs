//! safetensors files: mapped reading and header-first writing.
//!
//! Format: <https://github.com/huggingface/safetensors>, README. Eight bytes with the length of a JSON header, the
//! header, then the tensors without gaps. `header` reads and checks the entries so that errors have names; the
//! `safetensors` crate defines them and gives its verdict on the whole.
//!
//! The writer is our own because an output may be larger than memory, is written by several threads at once, and has
//! to come out the same byte for byte each time: its metadata is ordered.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use safetensors::tensor::Metadata;

use super::header::{self, FileMetadata, Header};
use super::system::{self, WRITE_BYTES};
use super::torch;
use crate::error::{Context, Error, Kind, Result};
use crate::limits;
use crate::tensor::{Bytes, Dtype, MappedFile, Shape, StateDict, Tensor, dtype};

/// A file opened for reading. Nothing but its header has been touched.
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    /// The mapped file.
    pub file: Arc<MappedFile>,
    /// The eight length bytes and the header, as they stand in the file.
    pub head: Bytes,
    /// Tensors in the order of their data.
    pub tensors: StateDict,
    /// `__metadata__`, empty where there is none.
    pub metadata: FileMetadata,
}

impl SafetensorsFile {
    /// Maps the file and reads its header.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        let file = MappedFile::open(path)?;
        let all = 0..file.as_slice().len();
        Self::within(file, all).in_file(path)
    }

    /// Reads a file that lies as a whole in a range of another one.
    pub fn within(file: Arc<MappedFile>, range: Range<usize>) -> Result<SafetensorsFile> {
        let whole = Bytes::mapped(&file, range)?;
        let all = whole.as_slice();
        let Some((length, rest)) = all.split_first_chunk::<8>() else {
            return Err(not_safetensors(all, format!("{} bytes, too short for a safetensors file", all.len())));
        };
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length).ok().and_then(|n| rest.get(..n)).ok_or_else(|| {
            let what = format!("header of {length} bytes does not fit into the file of {} bytes", all.len());
            not_safetensors(all, what)
        })?;
        if header.len() > limits::HEADER_BYTES {
            let found = format!("header of {length} bytes in a file of {}", all.len());
            return Err(kind_of(all).unwrap_or_else(|| Error::limit(found, limits::HEADER_BYTES)));
        }
        if header.is_empty() {
            return Err(not_safetensors(all, format!("header of 0 bytes in a file of {} bytes", all.len())));
        }
        let Header { entries, metadata } = header::parse(header).map_err(|e| kind_of(all).unwrap_or(e))?;
        let data_start = 8 + header.len();
        header::check(&entries, all.len() - data_start)?;

        let mut tensors = StateDict::with_capacity(entries.len());
        for (name, info) in &entries {
            let (from, to) = info.data_offsets;
            let bytes = whole.slice(data_start + from..data_start + to);
            let tensor = Tensor::new(info.dtype, Shape::new(info.shape.clone()), bytes).at_key(name)?;
            tensors.insert(name.clone(), tensor);
        }
        // The crate's own verdict on the whole, as a second opinion.
        let hashed = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect::<HashMap<_, _>>());
        Metadata::new(hashed, entries).map_err(|e| Error::malformed(e.to_string()))?;
        let head = whole.slice(0..data_start);
        Ok(SafetensorsFile { file, head, tensors, metadata })
    }

    /// What this file holds, for writing another of the same form.
    pub fn manifest(&self) -> Manifest {
        let entries = self
            .tensors
            .iter()
            .map(|(name, t)| Entry { name: name.clone(), dtype: t.dtype, shape: t.shape.clone() })
            .collect();
        Manifest { entries, metadata: self.metadata.clone() }
    }
}

/// An error for a file whose header cannot be found; says what the file is, if that can be seen.
fn not_safetensors(all: &[u8], what: String) -> Error {
    kind_of(all).unwrap_or_else(|| {
        Error::malformed(what).hint("the download may have been cut short; compare the size with its source")
    })
}

/// What a file is that does not begin like safetensors: the start of it, the words, and what to do.
const KINDS: [(&[u8], &str, &str); 8] = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch the real file with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch .bin file", "give it the ending .bin if it is one"),
    (b"GGUF", "a GGUF file", "this command reads safetensors"),
    (b"\x93NUMPY", "a NumPy array", "this command reads safetensors"),
    (b"\x1f\x8b\x08", "compressed by gzip", "decompress it first"),
    (b"<", "an HTML or XML page", "the download probably failed; fetch the file again"),
    (b"{", "JSON text", "the download probably failed; fetch the file again"),
    (b"[", "JSON text", "the download probably failed; fetch the file again"),
];

fn kind_of(all: &[u8]) -> Option<Error> {
    if torch::claims(all) && !all.starts_with(b"PK") {
        let hint = "give it the ending .bin if it is a PyTorch file";
        return Some(Error::malformed("a Python pickle; expected safetensors").hint(hint));
    }
    let head = &all[..all.len().min(256)];
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    // A length can begin with the bytes of a short mark, but then zeros follow, and after them a JSON object.
    let is_length =
        head.iter().take(8).any(|&b| b == 0) && head.get(8).is_none_or(|&b| b == b'{' || b.is_ascii_whitespace());
    let known = KINDS
        .iter()
        .filter(|(start, ..)| start.len() >= 4 || !is_length)
        .find(|(start, ..)| head.starts_with(start) || text.starts_with(start))
        .map(|(_, kind, hint)| Error::malformed(format!("{kind}; expected safetensors")).hint(*hint));
    let is_text = || head.len() >= 8 && head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | b' '..=b'~'));
    known.or_else(|| {
        let hint = "was another file meant, or is it a link that was saved as text?";
        is_text().then(|| Error::malformed("a text file; expected safetensors").hint(hint))
    })
}

/// One tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents.
    pub shape: Shape,
}

impl Entry {
    /// Bytes of data.
    pub fn byte_len(&self) -> Result<usize> {
        dtype::byte_len(self.dtype, self.shape.elements()?).at_key(&self.name)
    }
}

/// What a file to be written holds: tensors in the order of their data, and metadata in the order it is printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Tensors.
    pub entries: Vec<Entry>,
    /// `__metadata__`; left out of the file where empty.
    pub metadata: FileMetadata,
}

/// What a head says: tensors in the order of their data, and the metadata.
pub fn parse_head(head: &[u8]) -> Result<(Vec<Entry>, FileMetadata)> {
    let text = head.get(8..).filter(|text| (text.len() as u64).to_le_bytes() == head[..8]);
    let text = text.ok_or_else(|| Error::malformed("a head of another length than it says"))?;
    let Header { entries, metadata } = header::parse(text)?;
    let data = entries.iter().map(|(_, info)| info.data_offsets.1).max().unwrap_or(0);
    header::check(&entries, data)?;
    let entry = |(name, info): (String, safetensors::tensor::TensorInfo)| Entry {
        name,
        dtype: info.dtype,
        shape: Shape::new(info.shape),
    };
    Ok((entries.into_iter().map(entry).collect(), metadata))
}

impl Manifest {
    /// The length bytes and the header, padded with spaces so that the data starts at a multiple of eight.
    pub fn head(&self) -> Result<Vec<u8>> {
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".into(), serde_json::json!(self.metadata));
        }
        let mut start = 0usize;
        for entry in &self.entries {
            let end = start
                .checked_add(entry.byte_len()?)
                .ok_or_else(|| Error::new(Kind::Limit, "the file would be too large").at_key(&entry.name))?;
            let info = serde_json::json!({
                "dtype": entry.dtype, "shape": entry.shape.dims(), "data_offsets": [start, end],
            });
            if header.insert(entry.name.clone(), info).is_some() {
                return Err(Error::malformed("two tensors of this name in one file").at_key(&entry.name));
            }
            start = end;
        }
        let mut text = serde_json::to_vec(&header).map_err(|e| Error::malformed(e.to_string()))?;
        text.resize(text.len().next_multiple_of(8), b' ');
        if text.len() > limits::HEADER_BYTES {
            return Err(Error::limit(format!("header of {} bytes", text.len()), limits::HEADER_BYTES));
        }
        let mut head = (text.len() as u64).to_le_bytes().to_vec();
        head.append(&mut text);
        Ok(head)
    }
}

/// A file being written: the header is on disk, tensors land at their offsets in any order and from any thread.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: File,
    ranges: Vec<Range<u64>>,
    sync: bool,
    shared: bool, // the file shares its blocks with the input it copies
}

impl SafetensorsWriter {
    /// Creates the file and writes its head. `head` may be the bytes of another file's head, where the manifest is
    /// the same, so that nothing of its form is lost. `whole` is an input that the file will be a copy of: where the
    /// file system can share the blocks of the two, that is all there is to do. With `sync` the disk begins while the
    /// file is written, and [`finish`](Self::finish) waits for it. Where `begun`, a file that an earlier run has left is
    /// gone on with.
    pub fn create(
        path: &Path,
        manifest: &Manifest,
        head: &[u8],
        whole: Option<&MappedFile>,
        (sync, begun): (bool, bool),
    ) -> Result<SafetensorsWriter> {
        let fail = |what: &str, e: std::io::Error| Error::io(what, e).in_file(path);
        let mut at = head.len() as u64;
        let mut ranges = Vec::with_capacity(manifest.entries.len());
        for entry in &manifest.entries {
            let end = at + entry.byte_len()? as u64;
            ranges.push(at..end);
            at = end;
        }
        let mut options = File::options();
        match begun {
            true => options.read(true).write(true).create(true).truncate(false),
            false => options.write(true).create_new(true),
        };
        let file = options.open(path).map_err(|e| fail("cannot create", e))?;
        let shared = whole.and_then(MappedFile::reopen).is_some_and(|input| system::share_blocks(&input, &file));
        if shared {
            return Ok(SafetensorsWriter { path: path.to_path_buf(), file, ranges, shared, sync });
        }
        // Room for the whole file now, so that a full disk is found before the work. Not all file systems can.
        match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, at.max(1)) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(e) => return Err(fail("cannot make room", e.into())),
        }
        file.set_len(at).map_err(|e| fail("cannot set the size", e))?;
        file.write_all_at(head, 0).map_err(|e| fail("cannot write", e))?;
        Ok(SafetensorsWriter { path: path.to_path_buf(), file, ranges, shared, sync })
    }

    /// Writes `bytes` of tensor number `index`, `offset` bytes after its start.
    pub fn put(&self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let at = self.place(index, offset, bytes.len());
        self.write(at, bytes)?;
        self.written(at, bytes.len());
        Ok(())
    }

    /// Copies `source` to `offset` bytes after the start of the data, inside the kernel where that works. It may span
    /// several tensors.
    pub fn copy(&self, offset: u64, source: &Bytes) -> Result<()> {
        if self.shared {
            return Ok(());
        }
        let (first, last) = (self.ranges.first().map_or(0, |r| r.start), self.ranges.last().map_or(0, |r| r.end));
        let at = first + offset;
        assert!(at + source.len() as u64 <= last, "copy outside of the data");
        let input = source.origin().and_then(|(file, from)| Some((file.reopen()?, from)));
        let done = match input {
            Some((file, from)) => {
                system::copy_in_kernel(&file, from, &self.file, at, source.len()).in_file(&self.path)?
            }
            None => 0,
        };
        if done < source.len() {
            self.write(at + done as u64, &source.read()[done..]).map_err(|e| {
                // Writing from a part of the map that its file has lost is a bad address: the input is to blame.
                source.origin().and_then(|(file, _)| file.unchanged().err()).unwrap_or(e)
            })?;
            source.release(done..source.len());
        }
        self.written(at, source.len());
        Ok(())
    }

    /// Reads what was written of tensor number `index`; false where that cannot be.
    pub fn read_back(&self, index: usize, offset: u64, out: &mut [u8]) -> bool {
        self.file.read_exact_at(out, self.place(index, offset, out.len())).is_ok()
    }

    /// Whether what was written `offset` bytes after the start of the data is `source`.
    pub fn holds(&self, offset: u64, source: &Bytes) -> bool {
        let at = self.ranges.first().map_or(0, |r| r.start) + offset;
        let mut block = vec![0; WRITE_BYTES];
        let is_same = self.shared
            || source.read().chunks(WRITE_BYTES).zip((at..).step_by(WRITE_BYTES)).all(|(part, at)| {
                let block = &mut block[..part.len()];
                self.file.read_exact_at(block, at).is_ok() && block == part
            });
        source.release(0..source.len());
        is_same
    }

    fn place(&self, index: usize, offset: u64, len: usize) -> u64 {
        let range = &self.ranges[index];
        let at = range.start + offset;
        assert!(at + len as u64 <= range.end, "write outside of its tensor");
        at
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        for (part, at) in bytes.chunks(WRITE_BYTES).zip((at..).step_by(WRITE_BYTES)) {
            self.file.write_all_at(part, at).map_err(|e| Error::io("cannot write", e).in_file(&self.path))?;
        }
        Ok(())
    }

    fn written(&self, at: u64, len: usize) {
        if self.sync {
            system::start_writeback(&self.file, at, len as u64);
        }
    }

    /// Makes the file durable, if it was asked to be.
    pub fn finish(&self) -> Result<()> {
        if self.sync {
            self.file.sync_all().map_err(|e| Error::io("cannot bring to disk", e).in_file(&self.path))?;
        }
        Ok(())
    }
}
