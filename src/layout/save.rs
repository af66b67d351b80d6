//! A draft on disk, whole or not at all: a folder where the layout has side files, else one file.

use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use super::{Draft, Format};
use crate::container::atomic::{self, Form, Pending};
use crate::container::{Entry, Manifest, SafetensorsWriter, gguf, tar, torch};
use crate::error::Result;
use crate::tensor::{Bytes, StateDict, parallel};

/// Refuses a place that is an input or taken, before the work. What it will be is not known yet: it is taken for what
/// is there, and whether that can be replaced is looked at again when it is written.
pub fn check(destination: &Path, inputs: &[&Path], replace: bool) -> Result<()> {
    atomic::refuse_input(destination, inputs)?;
    let form = if destination.is_file() { Form::File } else { Form::Folder };
    atomic::refuse_existing(destination, form, replace)
}

/// Writes `draft` beside `destination` and gives it its name at the end. An existing output is refused without
/// `replace`; one that is or holds one of `inputs`, or a file the draft's tensors lie in, is always refused. With `sync`
/// everything is on disk before the name is.
pub fn save(draft: &Draft, destination: &Path, inputs: &[&Path], replace: bool, sync: bool) -> Result<()> {
    let form = if draft.texts.is_empty() { Form::File } else { Form::Folder };
    let sources: Vec<_> = draft.tensors.values().filter_map(|t| t.bytes.file()).collect();
    let paths: Vec<&Path> = inputs.iter().copied().chain(sources.iter().map(|file| file.path())).collect();
    atomic::refuse_input(destination, &paths)?;
    atomic::refuse_existing(destination, form, replace)?;
    let mut sealed = draft.clone();
    if let Some(seal) = draft.seal {
        seal(&mut sealed)?;
    }
    let draft = &sealed;
    let data: u64 = draft.tensors.values().map(|t| t.bytes.len() as u64).sum();
    let head = match &draft.format {
        Format::Gguf(metadata) => gguf::head(metadata, &draft.tensors)?,
        Format::Safetensors => manifest(draft).head()?,
        Format::Torch { .. } | Format::Tar { .. } => Vec::new(),
    };
    let size = match &draft.format {
        Format::Torch { under } => torch::size(&draft.tensors, *under)?,
        Format::Tar { .. } => tar::size(&members(draft))?,
        _ => head.len() as u64 + data,
    };
    atomic::require_room(destination, size)?;

    let pending = Pending::new(destination, form, replace, sync)?;
    pending.build(|place| {
        for (name, text) in &draft.texts {
            atomic::write_whole(&place.join(name), text, sync)?;
        }
        let path = if form == Form::Folder { place.join(&draft.tensor_file) } else { place.to_path_buf() };
        match &draft.format {
            Format::Safetensors => write_safetensors(draft, &path, &head, sync),
            Format::Gguf(_) => atomic::write_with(&path, sync, |out| gguf::write(out, &head, &draft.tensors)),
            Format::Torch { under } => atomic::write_with(&path, sync, |out| torch::write(out, &draft.tensors, *under)),
            Format::Tar { .. } => atomic::write_with(&path, sync, |out| tar::write(out, &members(draft))),
        }
    })?;
    for file in sources {
        file.unchanged()?;
    }
    pending.commit()
}

/// What goes into a tar archive, the texts first.
fn members(draft: &Draft) -> Vec<(&str, &dyn tar::Content)> {
    let Format::Tar { texts, tensors } = &draft.format else { return Vec::new() };
    let texts = texts.iter().map(|(name, text)| (name.as_str(), text as &dyn tar::Content));
    texts.chain([(*tensors, &draft.tensors as &dyn tar::Content)]).collect()
}

impl tar::Content for StateDict {
    fn size(&self) -> Result<u64> {
        torch::size(self, None)
    }

    fn write(&self, out: &mut dyn Write) -> Result<()> {
        torch::write(out, self, None)
    }
}

/// Bytes after which the disk may begin.
const PART: usize = 16 << 20;

/// Tensors that lie behind one another in a file and here are copied as one, inside the kernel where that works. What is
/// made from others is made and written on all threads, and no more of it is in memory than is being written.
fn write_safetensors(draft: &Draft, path: &Path, head: &[u8], sync: bool) -> Result<()> {
    let writer = SafetensorsWriter::create(path, &manifest(draft), head, None, (sync, false))?;
    let mut runs: Vec<(u64, Bytes)> = Vec::new();
    let mut at = 0;
    for tensor in draft.tensors.values() {
        match runs.last_mut().and_then(|(_, run)| Some((run.followed_by(&tensor.bytes)?, run))) {
            Some((longer, run)) => *run = longer,
            None => runs.push((at, tensor.bytes.clone())),
        }
        at += tensor.bytes.len() as u64;
    }
    parallel::on_all(|| runs.par_iter().try_for_each(|(at, bytes)| copy(&writer, *at, bytes)))?;
    writer.finish()
}

fn copy(writer: &SafetensorsWriter, at: u64, bytes: &Bytes) -> Result<()> {
    if bytes.origin().is_none() {
        return writer.copy(at, bytes);
    }
    for start in (0..bytes.len()).step_by(PART) {
        writer.copy(at + start as u64, &bytes.slice(start..(start + PART).min(bytes.len())))?;
    }
    Ok(())
}

fn manifest(draft: &Draft) -> Manifest {
    let entry = |(name, t): (&String, &crate::tensor::Tensor)| Entry {
        name: name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
    };
    Manifest { entries: draft.tensors.iter().map(entry).collect(), metadata: draft.metadata.iter().cloned().collect() }
}
