//! Files of an output that is being built, and bringing them to disk.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::container::folder;
use crate::container::system::{self, WRITE_BYTES};
use crate::error::{Context, Error, Result};

/// Creates a file inside an output that is being built, writes `bytes` and brings them to disk.
pub fn write_whole(path: &Path, bytes: &[u8], sync: bool) -> Result<()> {
    let write = || {
        let mut file = File::options().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        if sync { file.sync_all() } else { Ok(()) }
    };
    write().map_err(|e| Error::io("cannot write", e)).in_file(path)
}

/// Creates a file inside an output that is being built, lets `write` fill it, and brings it to disk.
pub fn write_with(path: &Path, sync: bool, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::options().write(true).create_new(true).open(path);
    let file = file.map_err(|e| Error::io("cannot create", e).in_file(path))?;
    let mut out = BufWriter::with_capacity(WRITE_BYTES, InPieces { file, written: 0, begun: 0, sync });
    write(&mut out).in_file(path)?;
    let file = out.into_inner().map_err(|e| Error::io("cannot write", e.into_error()).in_file(path))?.file;
    if sync {
        file.sync_all().map_err(|e| Error::io("cannot bring to disk", e).in_file(path))?;
    }
    Ok(())
}

/// A file that is written from its start to its end, a piece in each call; while it is written the disk begins.
struct InPieces {
    file: File,
    written: u64,
    /// So much the disk has been told of.
    begun: u64,
    sync: bool,
}

/// Bytes after which the disk begins.
const BEGIN_BYTES: u64 = 16 << 20;

impl Write for InPieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(&bytes[..bytes.len().min(WRITE_BYTES)])?;
        self.written += n as u64;
        if self.sync && self.written - self.begun >= BEGIN_BYTES {
            system::start_writeback(&self.file, self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Copies a side file into an output that is being built.
pub fn copy_whole(from: &Path, to: &Path, sync: bool) -> Result<()> {
    let copy = || {
        let mut source = File::open(from)?;
        let mut file = File::options().write(true).create_new(true).open(to)?;
        std::io::copy(&mut source, &mut file)?; // copy_file_range inside
        if sync { file.sync_all() } else { Ok(()) }
    };
    copy().map_err(|e| Error::io(&format!("cannot copy {} here", from.display()), e)).in_file(to)
}

pub(super) fn sync_folders(path: &Path) -> std::io::Result<()> {
    for inner in folder::entries(path)? {
        if inner.symlink_metadata()?.is_dir() {
            sync_folders(&inner)?;
        }
    }
    File::open(path)?.sync_all()
}
