//! Outputs that appear whole or not at all.
//!
//! A result is built in a temporary folder beside its final place and takes its name by a single rename, after
//! everything in it is on disk. The folder is locked while its run is alive, so that the next run can tell a dead one
//! apart and remove it, or go on with what is in it. Beside the result there is room in it for a journal of what is done.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::system::{self, WRITE_BYTES};
use super::{Pipeline, folder, kept};
use crate::error::{Context, Error, Kind, Result};

const MARK: &str = ".lora-tool.";
/// Longest file name that file systems take, with room to spare.
const MAX_NAME: usize = 250;
/// Bytes of [`MARK`] with a process number and a count behind it, at most.
const MAX_TAIL: usize = MARK.len() + 24;

/// Names a journal can have beside the result: the first that is not the result's own.
const JOURNALS: [&str; 2] = [".journal", ".log"];

/// Ending of what the old output is called while a file system without an exchange takes two steps to replace it.
const OLD: &str = "old";

/// Temporary folders of this process, for [`remove_unfinished`].
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// What an output will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One file.
    File,
    /// A folder of files.
    Folder,
}

/// An output on its way. Dropping it without [`commit`](Pending::commit) removes every trace.
#[derive(Debug)]
pub struct Pending {
    form: Form,
    temporary: PathBuf, // the folder that the output is built in, under its own name
    building: PathBuf,
    destination: PathBuf,
    replace: bool,
    parent: Option<File>, // to be synced at the end; opened early, so that nothing else can fail then
    committed: bool,
    kept: AtomicBool,   // what is done stays for the next run
    lock: Option<File>, // held until the end
}

/// Says of a journal whether it is of the run that is about to begin.
pub type Fits<'a> = dyn Fn(&Path) -> bool + 'a;

impl Pending {
    /// Prepares an output at `destination`. Without `replace` an existing one is refused, except for an empty
    /// folder. Left-overs of runs that were killed are removed.
    pub fn new(destination: &Path, form: Form, replace: bool, sync: bool) -> Result<Pending> {
        Pending::going_on(destination, form, (replace, sync), None)
    }

    /// The same with what a killed run has left, if there is one whose journal fits. What is in it has to be checked:
    /// it may not have come to disk.
    pub fn going_on(
        destination: &Path,
        form: Form,
        (replace, sync): (bool, bool),
        fits: Option<&Fits>,
    ) -> Result<Pending> {
        let (parent, name) = split(destination)?;
        if !parent.is_dir() {
            return Err(Error::missing("the folder it should go into does not exist").in_file(destination));
        }
        restore_old(&parent, &name);
        refuse_existing(destination, form, replace)?;
        let opened = sync.then(|| File::open(&parent)).transpose();
        let opened = opened.map_err(|e| {
            Error::io("cannot open the folder it goes into", e).in_file(destination).hint("--no-sync does without")
        })?;
        let fail = |e: std::io::Error| Error::io("cannot create the output beside it", e).in_file(destination);
        let found = remove_dead(&parent, &name, fits);
        let (temporary, lock) = match found {
            Some((temporary, lock)) => (temporary, Some(lock)),
            None => locked_folder(&parent, &name).map_err(fail)?,
        };
        if fits.is_none() {
            unfinished().push(temporary.clone());
        }
        let pending = Pending {
            form,
            building: temporary.join(&name),
            temporary,
            destination: parent.join(&name),
            replace,
            parent: opened,
            committed: false,
            kept: AtomicBool::new(false),
            lock,
        };
        if form == Form::Folder && !pending.building.is_dir() {
            fs::create_dir(&pending.building).map_err(fail)?;
        }
        Ok(pending)
    }

    /// Where a journal of the run can be: it goes when the output has its name.
    pub fn journal(&self) -> PathBuf {
        journal_in(&self.temporary, &self.building)
    }

    /// Has what is done stay where it is if it never gets its name, for a run that goes on with it.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Where to build: the path of the file, or an empty folder to put files into.
    pub fn path(&self) -> &Path {
        &self.building
    }

    /// Builds there. Errors name the place that the result would have had.
    pub fn build<T>(&self, build: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        build(&self.building).map_err(|e| e.moved(&self.building, &self.destination))
    }

    /// Where the result will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether files have to be on disk before the rename.
    pub fn sync(&self) -> bool {
        self.parent.is_some()
    }

    /// Gives the output its name. Every file in it has to be written and synced.
    pub fn commit(self) -> Result<()> {
        commit_all(vec![self])
    }

    /// Brings to disk what the rename needs.
    fn settle(&self) -> Result<()> {
        if self.form == Form::Folder && self.replace && self.destination.is_dir() {
            kept::keep_others(&self.destination, &self.building)?;
        }
        if self.form == Form::Folder && self.parent.is_some() {
            sync_folders(&self.building).map_err(|e| self.fail("cannot bring to disk", e))?;
        }
        Ok(())
    }

    /// The one step that makes the output appear.
    fn appear(&self) -> Result<Step> {
        let existing = self.destination.symlink_metadata().is_ok();
        match (self.form, existing) {
            (Form::File, true) if self.replace => {
                // An exchange keeps the old file until the new name is on disk.
                if exchange(&self.building, &self.destination).is_ok() {
                    Ok(Step::Exchanged)
                } else {
                    fs::rename(&self.building, &self.destination).map_err(|e| self.fail("cannot replace", e))?;
                    Ok(Step::Over)
                }
            }
            (Form::Folder, true) => self.exchange(),
            _ => self.rename_onto_nothing().map(|()| Step::OntoNothing),
        }
    }

    /// Removes what is left over. Failing to do so does not undo the result.
    fn clear(&self, step: Step) {
        if let Step::Aside(old) = &step {
            let _ = folder::remove(old);
        }
        if matches!(step, Step::Exchanged) && self.form == Form::Folder {
            let _ = kept::keep_others(&self.building, &self.destination); // what somebody has put there meanwhile
        }
        let _ = folder::remove(&self.temporary); // with the old output, where the two were exchanged
    }

    fn fail(&self, what: &str, e: std::io::Error) -> Error {
        Error::io(what, e).in_file(&self.destination)
    }

    fn take_back(&self, step: &Step) -> std::io::Result<()> {
        match step {
            Step::Over => Ok(()), // the old file is gone
            Step::OntoNothing => fs::rename(&self.destination, &self.building),
            Step::Exchanged => exchange(&self.building, &self.destination).map_err(Into::into),
            Step::Aside(old) => {
                fs::rename(&self.destination, &self.building)?;
                fs::rename(old, &self.destination)
            }
        }
    }

    fn rename_onto_nothing(&self) -> Result<()> {
        let step = rustix::fs::renameat_with(CWD, &self.building, CWD, &self.destination, RenameFlags::NOREPLACE);
        match step {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(Error::new(Kind::Exists, "appeared while the output was being made")
                .in_file(&self.destination)
                .hint("another run may have written it; use --force to replace it")),
            // File systems without the flag: the existence was checked, a race remains.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(&self.building, &self.destination)
                .map_err(|e| Error::io("cannot give the output its name", e).in_file(&self.destination)),
            Err(e) => Err(Error::io("cannot give the output its name", e).in_file(&self.destination)),
        }
    }

    /// Puts the new folder in the place of the old one, in one step where that can be.
    fn exchange(&self) -> Result<Step> {
        let fail = |e: std::io::Error| Error::io("cannot replace", e).in_file(&self.destination);
        let empty = folder::names(&self.destination).map_err(fail)?.is_empty();
        if empty {
            return fs::rename(&self.building, &self.destination).map(|()| Step::OntoNothing).map_err(fail);
        }
        if !self.replace {
            return Err(exists(&self.destination));
        }
        match exchange(&self.building, &self.destination) {
            Ok(()) => Ok(Step::Exchanged),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.replace_in_two_steps().map_err(fail),
            Err(e) => Err(fail(e.into())),
        }
    }

    /// For file systems that cannot exchange. Between the two steps there is no output; [`restore_old`] undoes the
    /// first where the second never came.
    fn replace_in_two_steps(&self) -> std::io::Result<Step> {
        let (parent, name) = (parent_of(&self.destination), self.destination.file_name().unwrap_or_default());
        let old = old_name(&parent, name);
        fs::rename(&self.destination, &old)?;
        if let Err(e) = fs::rename(&self.building, &self.destination) {
            let _ = fs::rename(&old, &self.destination);
            return Err(e);
        }
        Ok(Step::Aside(old))
    }
}

/// Gives several outputs their names, one directly after the other once all of them are on disk; after a power cut the
/// first of them are there, if any. Where one cannot take its name, those before it give theirs back.
pub fn commit_all(mut all: Vec<Pending>) -> Result<()> {
    for pending in &all {
        pending.settle()?;
    }
    let mut steps = Vec::with_capacity(all.len());
    // The names come to disk before the old folders go: after a power cut there has to be one of the two.
    let result = all.iter().try_for_each(|pending| {
        steps.push(pending.appear()?);
        match &pending.parent {
            Some(parent) => parent.sync_all().map_err(|e| pending.fail("cannot bring the name to disk", e)),
            None => Ok(()),
        }
    });
    for (pending, step) in all.iter_mut().zip(steps).rev() {
        match &result {
            Ok(()) => {
                pending.committed = true;
                pending.clear(step);
            }
            Err(_) => pending.committed = pending.take_back(&step).is_err(), // what cannot be taken back stays as it is
        }
    }
    result
}

/// How an output got its name.
#[derive(Debug)]
enum Step {
    /// There was nothing of the name.
    OntoNothing,
    /// Over an old file.
    Over,
    /// The old one has the temporary name now.
    Exchanged,
    /// The old folder has this name now.
    Aside(PathBuf),
}

fn exchange(a: &Path, b: &Path) -> std::result::Result<(), Errno> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.lock = None; // where no more files can be opened, the removal needs its place
        if !self.committed && !self.kept.load(Ordering::Relaxed) {
            remove_entry(&self.temporary);
        }
        unfinished().retain(|path| *path != self.temporary);
    }
}

/// Removes what this process has begun and not finished, for an end without destructors. Threads that still write are
/// in the way of it and find nothing to write to.
pub fn remove_unfinished() {
    for path in unfinished().iter() {
        for _ in 0..10 {
            remove_entry(path);
            if !path.exists() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

fn unfinished() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

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

/// Refuses an output that is one of the inputs, lies inside one, or would replace a folder that holds one.
pub fn refuse_input(destination: &Path, inputs: &[&Path]) -> Result<()> {
    let (parent, name) = split(destination)?;
    let Ok(parent) = parent.canonicalize() else { return Ok(()) }; // a missing parent is reported by `new`
    let there = parent.join(name);
    let target = there.canonicalize().unwrap_or(there);
    for input in inputs {
        let Ok(source) = input.canonicalize() else { continue };
        let same_file = match (target.metadata(), source.metadata()) {
            (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
            _ => false,
        };
        let inside = source.is_dir() && target.starts_with(&source);
        let around = source.starts_with(&target);
        if same_file || inside || around {
            let what = format!("the output is, lies in or would replace the input {}", input.display());
            return Err(Error::new(Kind::Exists, what)
                .in_file(destination)
                .hint("inputs are never changed; write to another place"));
        }
    }
    Ok(())
}

/// Refuses to begin where `needed` bytes do not fit beside `destination`.
pub fn require_room(destination: &Path, needed: u64) -> Result<()> {
    let (parent, name) = split(destination)?;
    let Ok(about) = rustix::fs::statvfs(&parent) else { return Ok(()) };
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    if needed > free && needed > free.saturating_add(bytes_of_the_dead(&parent, &name)) {
        let what = format!("no space: the output takes {needed} bytes, {free} are free");
        return Err(Error::new(Kind::Io, what).in_file(destination).hint("free some space or choose another disk"));
    }
    Ok(())
}

fn split(destination: &Path) -> Result<(PathBuf, std::ffi::OsString)> {
    let name = destination
        .file_name()
        .ok_or_else(|| Error::new(Kind::Usage, "not a name an output can have").in_file(destination))?;
    Ok((parent_of(destination), name.to_os_string()))
}

fn parent_of(destination: &Path) -> PathBuf {
    match destination.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Refuses what stands at `destination`, unless it may be replaced.
pub fn refuse_existing(destination: &Path, form: Form, replace: bool) -> Result<()> {
    let about = match destination.symlink_metadata() {
        Ok(about) => about,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("cannot be an output", e).in_file(destination)),
    };
    match form {
        Form::Folder if about.is_symlink() && destination.is_dir() => {
            Err(Error::new(Kind::Exists, "a link of this name exists, the output is a folder")
                .in_file(destination)
                .hint("name the folder it leads to"))
        }
        Form::Folder if about.is_symlink() && !destination.exists() => {
            Err(Error::new(Kind::Exists, "a link to nothing of this name exists, the output is a folder")
                .in_file(destination))
        }
        Form::Folder if !about.is_dir() => {
            Err(Error::new(Kind::Exists, "a file of this name exists, the output is a folder").in_file(destination))
        }
        Form::File if about.is_dir() => {
            Err(Error::new(Kind::Exists, "a folder of this name exists, the output is a file").in_file(destination))
        }
        Form::File if !about.is_file() && !about.is_symlink() => {
            Err(Error::new(Kind::Exists, "a device or a pipe of this name exists, the output is a file")
                .in_file(destination))
        }
        Form::Folder if replace => refuse_what_is_no_result(destination),
        Form::File if replace => Ok(()),
        Form::Folder if folder::names(destination).is_ok_and(|names| names.is_empty()) => Ok(()),
        _ => Err(exists(destination)),
    }
}

/// A slip of the hand must not replace a home folder: only an empty folder, one with tensors in it, a pipeline with
/// tensors in a component, or one that holds results and nothing else.
fn refuse_what_is_no_result(destination: &Path) -> Result<()> {
    let is_tensors = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let is_result = |path: &PathBuf| {
        let is_file = path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        is_file || folder::entries(path).is_ok_and(|inner| inner.iter().any(is_tensors))
    };
    let names = folder::entries(destination).map_err(|e| Error::io("cannot list", e)).in_file(destination)?;
    let is_pipeline = || Pipeline::is_in(destination) && names.iter().any(is_result);
    if names.iter().any(is_tensors) || names.iter().all(is_result) || is_pipeline() {
        return Ok(());
    }
    Err(Error::new(Kind::Exists, "a folder without a .safetensors file, which is no result that could be replaced")
        .in_file(destination)
        .hint("choose another name, or empty the folder"))
}

fn exists(destination: &Path) -> Error {
    Error::new(Kind::Exists, "exists already").in_file(destination).hint("--force replaces it")
}

/// A new temporary folder for an output of this name, and its lock (none where the file system has no locks).
fn locked_folder(parent: &Path, name: &std::ffi::OsStr) -> std::io::Result<(PathBuf, Option<File>)> {
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
fn temporary_name(name: &std::ffi::OsStr) -> std::ffi::OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let tail = format!("{MARK}{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut out = b".".to_vec();
    out.extend_from_slice(cut(name.as_bytes()));
    out.extend_from_slice(tail.as_bytes());
    std::ffi::OsString::from_vec(out)
}

fn old_name(parent: &Path, name: &std::ffi::OsStr) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let name = [b".", cut(name.as_bytes()), MARK.as_bytes(), OLD.as_bytes()].concat();
    parent.join(std::ffi::OsString::from_vec(name))
}

/// Finishes or undoes a replacement in two steps that was killed.
fn restore_old(parent: &Path, name: &std::ffi::OsStr) {
    let (destination, old) = (parent.join(name), old_name(parent, name));
    if old.symlink_metadata().is_err() {
        return;
    }
    if destination.symlink_metadata().is_ok() {
        remove_entry(&old);
    } else {
        let _ = fs::rename(&old, &destination);
    }
}

fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(MAX_NAME - MAX_TAIL)]
}

/// Temporary folders for this output whose run is no longer alive, each with its lock.
fn dead(parent: &Path, name: &std::ffi::OsStr) -> Vec<(PathBuf, File)> {
    use std::os::unix::ffi::OsStrExt;
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
fn remove_dead(parent: &Path, name: &std::ffi::OsStr, fits: Option<&Fits>) -> Option<(PathBuf, File)> {
    let mut found = None;
    for (path, lock) in dead(parent, name) {
        let journal = journal_in(&path, &path.join(name));
        if found.is_none() && fits.is_some_and(|fits| is_only_ours(&path) && fits(&journal)) {
            found = Some((path, lock));
        } else {
            remove_entry(&path);
        }
    }
    found
}

fn journal_in(temporary: &Path, building: &Path) -> PathBuf {
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
fn bytes_of_the_dead(parent: &Path, name: &std::ffi::OsStr) -> u64 {
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

fn remove_entry(path: &Path) {
    let _ = folder::remove(path);
}

fn sync_folders(path: &Path) -> std::io::Result<()> {
    for inner in folder::entries(path)? {
        if inner.symlink_metadata()?.is_dir() {
            sync_folders(&inner)?;
        }
    }
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lora-tool-atomic-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut out: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        out.sort();
        out
    }

    #[test]
    fn a_dropped_output_leaves_nothing() {
        let folder = scratch("drop");
        let pending = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
        write_whole(&pending.path().join("a"), b"x", true).unwrap();
        assert_eq!(names(&folder).len(), 1);
        drop(pending);
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn a_folder_is_replaced_whole_and_only_when_asked() {
        let folder = scratch("replace");
        let out = folder.join("out");
        fs::create_dir(&out).unwrap();
        write_whole(&out.join("old"), b"x", false).unwrap();
        for replace in [false, true] {
            let refused = Pending::new(&out, Form::Folder, replace, true).unwrap_err();
            assert_eq!(refused.kind(), Kind::Exists, "it holds no tensors");
        }
        write_whole(&out.join("old.safetensors"), b"x", false).unwrap();
        assert_eq!(Pending::new(&out, Form::Folder, false, true).unwrap_err().kind(), Kind::Exists);
        let pending = Pending::new(&out, Form::Folder, true, true).unwrap();
        write_whole(&pending.path().join("new"), b"y", true).unwrap();
        pending.commit().unwrap();
        let both = vec!["new".to_string(), "old".to_string()];
        assert_eq!((names(&folder), names(&out)), (vec!["out".to_string()], both), "what is no part of a result stays");
    }

    #[test]
    fn left_overs_of_dead_runs_go_and_those_of_live_ones_stay() {
        let folder = scratch("dead");
        fs::create_dir(folder.join(".out.lora-tool.1.0")).unwrap();
        fs::write(folder.join(".out.lora-tool.1.0/part"), b"dead").unwrap();
        let alive = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
        let second = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
        assert_eq!(names(&folder).len(), 2, "both live ones, not the dead one");
        second.commit().unwrap();
        assert_eq!(alive.commit().map_err(|e| e.kind()), Ok(()), "an empty folder counts as absent");
    }

    #[test]
    fn runs_that_write_files_beside_each_other_leave_each_other_alone() {
        let folder = scratch("beside");
        let long = "x".repeat(240);
        let runs: Vec<_> = ["out", "out", "out2", &long]
            .iter()
            .map(|name| {
                let pending = Pending::new(&folder.join(name), Form::File, true, false).unwrap();
                write_whole(pending.path(), name.as_bytes(), false).unwrap();
                pending
            })
            .collect();
        runs.into_iter().for_each(|run| run.commit().unwrap());
        assert_eq!(names(&folder), ["out", "out2", &long]);
    }

    #[test]
    fn where_nothing_can_be_exchanged_the_old_folder_is_back_after_a_kill() {
        let folder = scratch("two-steps");
        let (out, old) = (folder.join("out"), old_name(&folder, "out".as_ref()));
        fs::create_dir(&out).unwrap();
        write_whole(&out.join("old.safetensors"), b"x", false).unwrap();
        let pending = Pending::new(&out, Form::Folder, true, false).unwrap();
        write_whole(&pending.path().join("new"), b"y", false).unwrap();
        let step = pending.replace_in_two_steps().unwrap();
        assert_eq!((names(&out), names(&old)), (vec!["new".to_string()], vec!["old.safetensors".to_string()]));
        pending.take_back(&step).unwrap();
        assert_eq!(
            (names(&out), names(pending.path())),
            (vec!["old.safetensors".to_string()], vec!["new".to_string()])
        );
        drop(pending);
        assert_eq!(names(&folder), ["out"]);

        fs::rename(&out, &old).unwrap(); // killed after the first step
        assert_eq!(Pending::new(&out, Form::Folder, false, false).unwrap_err().kind(), Kind::Exists);
        assert_eq!((names(&folder), names(&out)), (vec!["out".to_string()], vec!["old.safetensors".to_string()]));
        fs::create_dir(&old).unwrap(); // killed after the second
        assert!(Pending::new(&out, Form::Folder, false, false).is_err());
        assert_eq!(names(&folder), ["out"]);
    }

    #[test]
    fn what_cannot_be_a_name_is_found_before_the_work() {
        let folder = scratch("name");
        let long = folder.join("x".repeat(256));
        assert!(refuse_existing(&long, Form::File, true).unwrap_err().what().contains("too long"));
        std::os::unix::fs::symlink("nowhere", folder.join("link")).unwrap();
        let refused = refuse_existing(&folder.join("link"), Form::Folder, true).unwrap_err();
        assert!(refused.what().contains("link to nothing"), "{refused}");
    }

    #[test]
    fn an_input_is_never_an_output() {
        let folder = scratch("alias");
        let input = folder.join("model");
        fs::create_dir(&input).unwrap();
        std::os::unix::fs::symlink(&input, folder.join("link")).unwrap();
        for output in ["model", "link", "model/inside"] {
            assert!(refuse_input(&folder.join(output), &[&input]).is_err(), "{output}");
        }
        assert!(refuse_input(&folder, &[&input]).is_err(), "the folder around it");
        assert!(refuse_input(&folder.join("other"), &[&input]).is_ok());
    }
}
