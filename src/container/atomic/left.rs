//! The names beside an output while it is made, and what runs that were killed have left under them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Fits;
use crate::container::folder;
use crate::error::{Error, Result};

const MARK: &str = ".lora-tool.";

/// Longest file name that file systems take, with room to spare.
const MAX_NAME: usize = 250;

/// Bytes of [`MARK`] with a process number and a count behind it, at most.
const MAX_TAIL: usize = MARK.len() + 24;

/// Names a journal can have beside the result: the first that is not the result's own.
const JOURNALS: [&str; 2] = [".journal", ".log"];

/// Ending of what the old output is called while a file system without an exchange takes two steps to replace it.
const OLD: &str = "old";

/// A new temporary folder for an output of this name, and its lock (none where the file system has no locks).
pub(super) fn locked_folder(parent: &Path, name: &OsStr) -> std::io::Result<(PathBuf, Option<File>)> {
    const TRIES: usize = 100;
    let mut error = ErrorKind::WouldBlock.into();
    for _ in 0..TRIES {
        let folder = parent.join(temporary_name(name));
        match fs::create_dir(&folder) {
            Ok(()) => {}
            // Left by a dead run with our process number, which could not be removed.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                error = e;
                continue;
            }
            Err(e) => return Err(e),
        }
        let lock = File::open(&folder).ok(); // a read-only handle is enough
        // Another run may have taken it for a dead one before it was locked: then it holds the lock, or it is done.
        let taken = lock.as_ref().is_some_and(|l| matches!(l.try_lock(), Err(TryLockError::WouldBlock)));
        if !taken && folder.is_dir() {
            return Ok((folder, lock));
        }
        let _ = fs::remove_dir(&folder);
    }
    Err(error)
}

/// `.name.lora-tool.<pid>.<n>`, with the name cut so that the whole stays within what file systems allow.
fn temporary_name(name: &OsStr) -> OsString {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tail = format!("{MARK}{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut out = b".".to_vec();
    out.extend_from_slice(cut(name.as_bytes()));
    out.extend_from_slice(tail.as_bytes());
    OsString::from_vec(out)
}

pub(super) fn old_name(parent: &Path, name: &OsStr) -> PathBuf {
    let name = [b".", cut(name.as_bytes()), MARK.as_bytes(), OLD.as_bytes()].concat();
    parent.join(OsString::from_vec(name))
}

/// Finishes or undoes a replacement in two steps that was killed.
pub(super) fn restore_old(parent: &Path, name: &OsStr) {
    let (destination, old) = (parent.join(name), old_name(parent, name));
    if old.symlink_metadata().is_err() {
        return;
    }
    if destination.symlink_metadata().is_ok() {
        let _ = folder::remove(&old);
    } else {
        let _ = fs::rename(&old, &destination);
    }
}

fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(MAX_NAME - MAX_TAIL)]
}

/// Temporary folders for this output whose run is no longer alive, each with its lock.
fn dead(parent: &Path, name: &OsStr) -> Vec<(PathBuf, File)> {
    let prefix = [b".", cut(name.as_bytes()), MARK.as_bytes()].concat();
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let number = name.strip_prefix(prefix.as_slice());
        number.is_some_and(|n| !n.is_empty() && n.iter().all(|b| b.is_ascii_digit() || *b == b'.'))
    };
    let of_a_dead_run = |path: PathBuf| {
        let lock = File::open(&path).ok().filter(|f| f.try_lock().is_ok())?;
        Some((path, lock))
    };
    folder::entries(parent).unwrap_or_default().into_iter().filter(is_ours).filter_map(of_a_dead_run).collect()
}

/// Removes what dead runs have left for this output. With `fits`, one whose journal fits is left and given, with its lock.
pub(super) fn remove_dead(parent: &Path, name: &OsStr, fits: Option<&Fits>) -> Option<(PathBuf, File)> {
    let mut found = None;
    for (path, lock) in dead(parent, name) {
        let journal = journal_in(&path, &path.join(name));
        if found.is_none() && fits.is_some_and(|fits| is_only_ours(&path) && fits(&journal)) {
            found = Some((path, lock));
        } else {
            let _ = folder::remove(&path);
        }
    }
    found
}

pub(super) fn journal_in(temporary: &Path, building: &Path) -> PathBuf {
    let free = JOURNALS.iter().map(|name| temporary.join(name)).find(|path| path != building);
    free.unwrap_or_default()
}

/// Whether everything in a folder is a folder or a plain file of this user's under one name: nobody has put anything in
/// it that leads elsewhere.
fn is_only_ours(path: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let Ok(about) = path.symlink_metadata() else { return false };
    about.uid() == user
        && match about.is_dir() {
            true => folder::entries(path).is_ok_and(|all| all.iter().all(|path| is_only_ours(path))),
            false => about.is_file() && about.nlink() == 1,
        }
}

/// Bytes that are free again when what dead runs have left for this output is gone.
pub(super) fn bytes_of_the_dead(parent: &Path, name: &OsStr) -> u64 {
    fn held(path: &Path) -> u64 {
        let Ok(about) = path.symlink_metadata() else { return 0 };
        match about.is_dir() {
            true => folder::entries(path).unwrap_or_default().iter().map(|path| held(path)).sum(),
            false => about.blocks().saturating_mul(512),
        }
    }
    dead(parent, name).iter().map(|(path, _)| held(path)).sum()
}

/// Removes all files in and below an output that is being built, but for those to be kept.
pub fn remove_others(inside: &Path, keep: &dyn Fn(&Path) -> bool) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("cannot remove what an earlier run has left", e).in_file(inside);
    for path in folder::entries(inside).map_err(fail)? {
        if path.is_dir() {
            remove_others(&path, keep)?;
        } else if !keep(&path) {
            fs::remove_file(&path).map_err(fail)?;
        }
    }
    Ok(())
}
