//! A whole result on disk: tensor files, their index, side files, and the one rename that makes it appear.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Limits, Outcomes, Place, Plan, Progress, Watch, run};
use crate::container::atomic::{self, Form, Pending};
use crate::container::pipeline::{component_of, in_file};
use crate::container::sharded::index_text;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::MappedFile;

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

    /// Writes everything beside `destination` and gives it its name at the end.
    pub fn write(
        &self,
        destination: &Path,
        writing: Writing,
        kernels: &dyn Kernels,
        progress: &dyn Progress,
    ) -> Result<Outcomes> {
        let pending = self.begin(destination, writing)?;
        let outcomes = self.fill(&pending, writing, kernels, Watch::from(progress))?;
        pending.commit()?;
        Ok(outcomes)
    }

    /// The place beside `destination` where the result is built.
    pub fn begin(&self, destination: &Path, writing: Writing) -> Result<Pending> {
        Pending::new(destination, self.form(), writing.replace, writing.sync)
    }

    /// Writes everything there; committing it gives the result its name.
    pub fn fill(&self, pending: &Pending, writing: Writing, kernels: &dyn Kernels, watch: Watch) -> Result<Outcomes> {
        let place = if self.is_folder { Place::Folder(pending.path()) } else { Place::File(pending.path()) };
        if self.is_folder {
            self.write_side_files(pending.path(), writing.sync)?;
        }
        let outcomes = run(&self.plan, place, kernels, writing.limits, writing.sync, watch)?;
        for input in &self.inputs {
            input.unchanged()?;
        }
        if watch.progress.stop() != 0 {
            return Err(super::stopped(watch.progress.stop()));
        }
        Ok(outcomes)
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
