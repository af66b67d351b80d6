//! Outputs that appear whole or not at all.
//!
//! A result is built in a temporary folder beside its final place and takes its name by a single rename, after
//! everything in it is on disk. The folder is locked while its run is alive, so that the next run can tell a dead one
//! apart and remove it, or go on with what is in it. Beside the result there is room in it for a journal of what is done.

mod left;
mod refuse;
#[cfg(test)]
mod tests;
mod write;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

pub use left::remove_others;
use left::{journal_in, locked_folder, old_name, remove_dead, restore_old};
use refuse::{exists, parent_of, split};
pub use refuse::{refuse_existing, refuse_input, require_room};
use write::sync_folders;
pub use write::{copy_whole, write_whole, write_with};

use super::{folder, kept};
use crate::error::{Error, Kind, Result};

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
            let _ = folder::remove(&self.temporary);
        }
        unfinished().retain(|path| *path != self.temporary);
    }
}

/// Removes what this process has begun and not finished, for an end without destructors. Threads that still write are
/// in the way of it and find nothing to write to.
pub fn remove_unfinished() {
    for path in unfinished().iter() {
        for _ in 0..10 {
            let _ = folder::remove(path);
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
