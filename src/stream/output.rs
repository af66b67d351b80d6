//! A whole result on disk: tensor files, their index, side files, and the one rename that makes it appear.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Journal, Limits, Outcomes, Place, Plan, Progress, Target, Watch, journal, pieces, run};
use crate::container::atomic::{self, Fits, Form, Pending};
use crate::container::pipeline::{component_of, in_file};
use crate::container::sharded::index_text;
use crate::error::{Error, Kind, Result};
use crate::kernels::Kernels;
use crate::tensor::{Hash, MappedFile};

/// The index beside the tensor files of a folder.
#[derive(Clone, Debug)]
pub struct IndexFile {
    /// Its name, as that of a file of the plan.
    pub name: String,
    /// Its `metadata` object before the totals are brought up to date.
    pub metadata: Map<String, Value>,
}

/// Everything a result consists of.
pub struct Output {
    /// Tensor files.
    pub plan: Plan,
    /// The indexes over them, each over those of its own folder.
    pub indexes: Vec<IndexFile>,
    /// Side files with new text, by path inside the folder.
    pub texts: Vec<(PathBuf, Vec<u8>)>,
    /// Side files copied as they are, by path inside the folder.
    pub copies: Vec<PathBuf>,
    /// The folder they are copied from.
    pub copied_from: PathBuf,
    /// A folder, or a single file.
    pub is_folder: bool,
    /// Mapped inputs, which must not change while they are read.
    pub inputs: Vec<Arc<MappedFile>>,
}

/// How a result is written.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// An existing result is replaced.
    pub replace: bool,
    /// Files and names are brought to disk before the run ends.
    pub sync: bool,
    /// Threads and memory.
    pub limits: Limits,
    /// Whether a run that is cut short can be taken up.
    pub resuming: Resuming,
}

/// What becomes of a run that is cut short.
#[derive(Clone, Copy, Debug)]
pub enum Resuming {
    /// The next one begins anew.
    Never,
    /// The next one can go on, where it is told to; this hash is over all that goes in and how. A run that fails or is
    /// asked to end removes what it has done.
    Later(Hash),
    /// This one goes on with what is there, and leaves what it has done for the next if it is asked to end, or the
    /// machine fails it.
    Now(Hash),
}

/// Outputs smaller than this are made anew sooner than a journal is worth while.
const JOURNAL_FROM: u64 = 64 << 20;

/// A result on its way.
pub struct Building {
    /// Where it is built.
    pub pending: Pending,
    journal: Option<Journal>,
}

impl Building {
    /// Bytes that an earlier run had done.
    pub fn found(&self) -> u64 {
        self.journal.as_ref().map_or(0, Journal::found)
    }

    /// Gives the result its name.
    pub fn commit(self) -> Result<()> {
        self.pending.commit()
    }
}

impl Output {
    /// Refuses what can be refused before any work: a destination that is an input, exists, or has no room.
    pub fn check(&self, destination: &Path, inputs: &[&Path], replace: bool) -> Result<()> {
        let files = self.files();
        let all: Vec<_> = inputs.iter().copied().chain(files.iter().map(PathBuf::as_path)).collect();
        atomic::refuse_input(destination, &all)?;
        atomic::refuse_existing(destination, self.form(), replace)?;
        atomic::require_room(destination, self.plan.data_bytes()?)
    }

    /// The files that are read. Links lead out of the inputs' folders: they may lie anywhere.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = self.inputs.iter().map(|file| file.path().to_path_buf());
        files.chain(self.copies.iter().map(|path| self.copied_from.join(path))).collect()
    }

    /// Writes everything beside `destination` and gives it its name at the end. Says also how many bytes an earlier run
    /// had done.
    pub fn write(
        &self,
        destination: &Path,
        writing: Writing,
        kernels: &dyn Kernels,
        progress: &dyn Progress,
    ) -> Result<(Outcomes, u64)> {
        let building = self.begin(destination, writing, false)?;
        let outcomes = self.fill(&building, writing, kernels, Watch::from(progress))?;
        let found = building.found();
        building.commit()?;
        Ok((outcomes, found))
    }

    /// The place beside `destination` where the result is built, `watched` by a witness or not.
    pub fn begin(&self, destination: &Path, writing: Writing, watched: bool) -> Result<Building> {
        let (form, how) = (self.form(), (writing.replace, writing.sync));
        let inputs = match writing.resuming {
            Resuming::Later(inputs) if self.plan.data_bytes()? >= JOURNAL_FROM => inputs,
            Resuming::Now(inputs) => inputs,
            _ => {
                return Ok(Building {
                    pending: Pending::new(destination, form, writing.replace, writing.sync)?,
                    journal: None,
                });
            }
        };
        let identity = journal::identity(&inputs, &self.plan, &pieces::cut(&self.plan, !watched)?)?;
        let fits = |journal: &Path| Journal::is_of(journal, &identity);
        let fits: Option<&Fits> = if matches!(writing.resuming, Resuming::Now(_)) { Some(&fits) } else { None };
        let pending = Pending::going_on(destination, form, how, fits)?;
        let journal = Some(Journal::open(&pending.journal(), &identity));
        if self.is_folder {
            self.remove_side_files(pending.path())?;
        }
        Ok(Building { pending, journal })
    }

    /// Writes everything there; committing it gives the result its name.
    pub fn fill(&self, building: &Building, writing: Writing, kernels: &dyn Kernels, watch: Watch) -> Result<Outcomes> {
        let done = self.fill_in(building, writing, kernels, watch);
        match (done, writing.resuming) {
            (Err(e), Resuming::Now(_)) if matches!(e.kind(), Kind::Io | Kind::Stopped(_)) => {
                building.pending.keep();
                Err(match e.kind() {
                    Kind::Stopped(signal) => {
                        Error::new(e.kind(), format!("stopped by signal {signal}; --resume goes on from here"))
                    }
                    _ => e.hint("what was done is kept: the same command goes on with it"),
                })
            }
            (done, _) => done,
        }
    }

    fn fill_in(&self, building: &Building, writing: Writing, kernels: &dyn Kernels, watch: Watch) -> Result<Outcomes> {
        let written = building.pending.build(|path| {
            let place = if self.is_folder { Place::Folder(path) } else { Place::File(path) };
            if self.is_folder {
                self.write_side_files(path, writing.sync)?;
            }
            let target = Target { place, sync: writing.sync, journal: building.journal.as_ref() };
            run(&self.plan, &target, kernels, writing.limits, watch)
        });
        let unchanged = self.inputs.iter().try_for_each(|input| input.unchanged());
        let outcomes = match (written, unchanged) {
            // Whatever else was found may come of it.
            (Ok(_), Err(changed)) => return Err(changed),
            (Err(e), Err(changed)) if !matches!(e.kind(), Kind::Io | Kind::Stopped(_)) => return Err(changed),
            (written, _) => written?,
        };
        if watch.progress.stop() != 0 {
            return Err(super::stopped(watch.progress.stop()));
        }
        Ok(outcomes)
    }

    /// Removes everything but the tensor files from what an earlier run has left: the rest is made anew.
    fn remove_side_files(&self, folder: &Path) -> Result<()> {
        let planned: BTreeSet<PathBuf> = self.plan.files.iter().map(|file| folder.join(&file.name)).collect();
        atomic::remove_others(folder, &|path| planned.contains(path))
    }

    fn form(&self) -> Form {
        if self.is_folder { Form::Folder } else { Form::File }
    }

    fn write_side_files(&self, folder: &Path, sync: bool) -> Result<()> {
        for path in &self.copies {
            make_parent(folder, path)?;
            atomic::copy_whole(&self.copied_from.join(path), &folder.join(path), sync)?;
        }
        for (path, text) in &self.texts {
            make_parent(folder, path)?;
            atomic::write_whole(&folder.join(path), text, sync)?;
        }
        for index in &self.indexes {
            make_parent(folder, Path::new(&index.name))?;
            atomic::write_whole(&folder.join(&index.name), &self.index_text(index)?, sync)?;
        }
        // The rest is written in their places.
        self.plan.files.iter().try_for_each(|file| make_parent(folder, Path::new(&file.name)))
    }

    fn index_text(&self, index: &IndexFile) -> Result<Vec<u8>> {
        let mut weight_map = BTreeMap::new();
        let (mut bytes, mut parameters) = (0u64, 0u64);
        let component = component_of(&index.name);
        for file in self.plan.files.iter().filter(|file| component_of(&file.name) == component) {
            let name = file.name.rsplit('/').next().unwrap_or(&file.name);
            bytes += file.data_bytes()?;
            for job in &file.jobs {
                weight_map.insert(in_file(&file.name, &job.entry.name).to_string(), name.to_string());
                parameters += job.entry.shape.elements()? as u64;
            }
        }
        index_text(&index.metadata, bytes, parameters, &weight_map)
    }
}

fn make_parent(folder: &Path, path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else { return Ok(()) };
    let parent = folder.join(parent);
    std::fs::create_dir_all(&parent).map_err(|e| Error::io("cannot create", e).in_file(&parent))
}
