//! Reading a record: everything is checked against the seal before anything is believed.

use std::path::Path;
use std::sync::Arc;

use super::{CORRECTIONS, FORMAT, SEAL, SEAL_BYTES, VERSION, seal};
use crate::container::SafetensorsFile;
use crate::error::{Context, Error, Result};
use crate::tensor::{Bytes, Hash, MappedFile};

/// A record, opened and found whole.
#[derive(Debug)]
pub struct Record {
    opened: SafetensorsFile,
    corrections: Bytes,
}

impl Record {
    /// Opens a record. An error where it is none, of another version, or altered.
    pub fn open(path: &Path) -> Result<Record> {
        let opened = SafetensorsFile::open(path)?;
        Self::check(opened).in_file(path)
    }

    fn check(opened: SafetensorsFile) -> Result<Record> {
        let says = |key: &str| opened.metadata.get(key).map(String::as_str);
        if says("format") != Some(FORMAT) {
            return Err(
                Error::unrecognised("not an undo record").hint("`merge --undo FILE` and `undo-record` write them")
            );
        }
        if says("version") != Some(VERSION) {
            let found = says("version").unwrap_or("none");
            return Err(Error::unsupported(format!("undo record of version {found}, this program reads {VERSION}")));
        }
        let (all, head) = (opened.file.as_slice(), opened.head.as_slice());
        let end = all.len().checked_sub(SEAL_BYTES).filter(|&end| end >= head.len());
        let (data, found) = end.map_or((&[][..], &[][..]), |end| (&all[head.len()..end], &all[end..]));
        let last = opened.tensors.last().is_some_and(|(name, tensor)| name == SEAL && tensor.bytes.len() == SEAL_BYTES);
        if !last || found != seal(head, &Hash::of(data)).0 {
            return Err(Error::malformed("the undo record is damaged: it does not match its seal")
                .hint("compare it with another copy"));
        }
        let corrections = opened.tensors.get(CORRECTIONS).map(|t| t.bytes.clone());
        let corrections = corrections.ok_or_else(|| Error::malformed("the undo record has no corrections"))?;
        Ok(Record { opened, corrections })
    }

    /// The mapped file.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.opened.file
    }

    /// The section that was written piece by piece.
    pub fn corrections(&self) -> &Bytes {
        &self.corrections
    }

    /// A section by its name.
    pub fn section(&self, name: &str) -> Result<&Bytes> {
        let found = self.opened.tensors.get(name).map(|t| &t.bytes);
        found.ok_or_else(|| {
            Error::missing("the undo record has no such section").at_key(name).in_file(self.file().path())
        })
    }
}
