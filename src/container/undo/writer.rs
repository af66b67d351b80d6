//! Writing a record: the corrections while they come, everything else at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::{CORRECTIONS, FORMAT, SEAL, SEAL_BYTES, VERSION, seal};
use crate::error::{Context, Error, Result};
use crate::tensor::Hash;
use crate::tensor::hash::Hasher;

/// A record on its way.
pub struct RecordWriter {
    path: PathBuf,
    file: File,
    names: Vec<String>,
    head_bytes: usize,
    spool: Mutex<Spool>,
}

/// Corrections in the order of their pieces. The few that come before their turn wait.
#[derive(Default)]
struct Spool {
    next: usize,
    waiting: BTreeMap<usize, Vec<u8>>,
    written: u64,
    hash: Hasher,
}

impl RecordWriter {
    /// Creates the file. `names` are those of the sections that [`finish`](RecordWriter::finish) will be given.
    pub fn create(path: &Path, names: &[impl AsRef<str>]) -> Result<RecordWriter> {
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| Error::io("cannot create", e))
            .in_file(path)?;
        let names: Vec<String> = names.iter().map(|n| n.as_ref().to_string()).collect();
        // Room for the head with every number as long as it can be.
        let widest = names.iter().map(|_| u64::MAX / 2).collect::<Vec<_>>();
        let head_bytes = head_text(&names, u64::MAX / 2, &widest)?.len().next_multiple_of(8) + 8;
        Ok(RecordWriter { path: path.to_path_buf(), file, names, head_bytes, spool: Mutex::default() })
    }

    /// The corrections of piece `number`. Every number from 0 on has to come once.
    pub fn put(&self, number: usize, blob: &[u8]) -> Result<()> {
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        if number != spool.next {
            spool.waiting.insert(number, blob.to_vec());
            return Ok(());
        }
        self.append(&mut spool, blob)?;
        spool.next += 1;
        loop {
            let next = spool.next;
            let Some(blob) = spool.waiting.remove(&next) else { return Ok(()) };
            self.append(&mut spool, &blob)?;
            spool.next += 1;
        }
    }

    fn append(&self, spool: &mut Spool, bytes: &[u8]) -> Result<()> {
        let at = self.head_bytes as u64 + spool.written;
        self.write(bytes, at)?;
        spool.hash.raw(bytes);
        spool.written += bytes.len() as u64;
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|e| Error::io("cannot write", e)).in_file(&self.path)
    }

    /// Writes the other sections, the seal and the head, and with `sync` brings all to disk. Gives the size of the
    /// file.
    pub fn finish(self, sections: &[Vec<u8>], sync: bool) -> Result<u64> {
        let spool = std::mem::take(&mut *self.spool.lock().unwrap_or_else(PoisonError::into_inner));
        if !spool.waiting.is_empty() || sections.len() != self.names.len() {
            return Err(Error::missing("a piece of the model has no corrections").in_file(&self.path));
        }
        let lengths: Vec<u64> = sections.iter().map(|s| s.len() as u64).collect();
        let mut head = head_text(&self.names, spool.written, &lengths)?;
        head.resize(self.head_bytes - 8, b' ');
        head.splice(0..0, (self.head_bytes as u64 - 8).to_le_bytes());
        let (mut hash, mut at) = (spool.hash, self.head_bytes as u64 + spool.written);
        for section in sections {
            self.write(section, at)?;
            hash.raw(section);
            at += section.len() as u64;
        }
        let data: Hash = hash.finish();
        self.write(&seal(&head, &data).0, at)?;
        self.write(&head, 0)?;
        if sync {
            self.file.sync_all().map_err(|e| Error::io("cannot bring to disk", e)).in_file(&self.path)?;
        }
        Ok(at + SEAL_BYTES as u64)
    }
}

fn head_text(names: &[String], corrections: u64, lengths: &[u64]) -> Result<Vec<u8>> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": FORMAT, "version": VERSION }));
    let mut at = 0u64;
    let own = [(CORRECTIONS, corrections)].into_iter();
    let others = names.iter().map(String::as_str).zip(lengths.iter().copied());
    for (name, length) in own.chain(others).chain([(SEAL, SEAL_BYTES as u64)]) {
        let end = at.saturating_add(length);
        header.insert(name.into(), json!({ "dtype": "U8", "shape": [length], "data_offsets": [at, end] }));
        at = end;
    }
    serde_json::to_vec(&Value::Object(header)).map_err(|e| Error::malformed(e.to_string()))
}
