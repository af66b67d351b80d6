//! The tensors of a result dealt out to files of a given size.
//!
//! A model by itself gets the file names of transformers. A pipeline keeps those of each component, as diffusers numbers
//! them, and a component whose files are small enough keeps its files.

use std::collections::BTreeMap;

use super::report::Change;
use crate::error::Result;
use crate::model::{INDEX_NAME, SINGLE_NAME};
use crate::stream::{IndexFile, Job, PlannedFile, component_of};

const ENDING: &str = ".safetensors";
/// What stands in the name of an index, before a variant and the ending `json`.
const INDEX_MIDDLE: &str = ".safetensors.index.";

/// Files with their indexes.
pub struct Dealt {
    /// Files of tensors.
    pub files: Vec<PlannedFile>,
    /// The indexes over them.
    pub indexes: Vec<IndexFile>,
}

/// Deals the tensors out anew, in order, so that no file exceeds `limit` (unless a single tensor does).
pub fn deal(files: Vec<PlannedFile>, mut indexes: Vec<IndexFile>, limit: u64, changes: &mut [Change]) -> Result<Dealt> {
    let mut out = Dealt { files: Vec::new(), indexes: Vec::new() };
    let mut moved_to = BTreeMap::new();
    for group in groups(files) {
        let name = group.first().map_or_else(String::new, |(_, file)| file.name.clone());
        let component = component_of(&name);
        let sizes = group.iter().map(|(_, file)| file.data_bytes()).collect::<Result<Vec<_>>>()?;
        let own = indexes.iter().position(|index| component_of(&index.name) == component);
        let index = own.map(|at| indexes.remove(at));
        if component.is_some() && sizes.iter().all(|bytes| *bytes <= limit) {
            for (number, file) in group {
                moved_to.extend((0..file.jobs.len()).map(|job| ((number, job), (out.files.len(), job))));
                out.files.push(file);
            }
            out.indexes.extend(index);
            continue;
        }
        let names = Names::of(&name, index.as_ref());
        let metadata = group.first().map(|(_, file)| file.metadata.clone()).unwrap_or_default();
        let dealt = split(group, limit, out.files.len(), &mut moved_to)?;
        let count = dealt.len();
        if count > 1 {
            let metadata = index.map(|index| index.metadata).unwrap_or_default();
            out.indexes.push(IndexFile { name: names.index(), metadata });
        }
        let file = |(number, jobs)| {
            let name = if count == 1 { names.single() } else { names.shard(number, count) };
            PlannedFile { name, metadata: metadata.clone(), head: None, jobs }
        };
        out.files.extend(dealt.into_iter().enumerate().map(file));
    }
    for change in changes.iter_mut() {
        if let Some(place) = moved_to.get(&change.place) {
            change.place = *place;
        }
    }
    Ok(out)
}

/// The files of each component, or all of a model by itself, with their numbers.
fn groups(files: Vec<PlannedFile>) -> Vec<Vec<(usize, PlannedFile)>> {
    let mut groups: Vec<Vec<(usize, PlannedFile)>> = Vec::new();
    for (number, file) in files.into_iter().enumerate() {
        let is_new = groups
            .last()
            .and_then(|group| group.last())
            .is_none_or(|(_, last)| component_of(&last.name) != component_of(&file.name));
        if is_new {
            groups.push(Vec::new());
        }
        if let Some(group) = groups.last_mut() {
            group.push((number, file));
        }
    }
    groups
}

type Place = (usize, usize);

/// The jobs of these files in groups of at most so many bytes; notes where each is, the first group being number `first`.
fn split(
    files: Vec<(usize, PlannedFile)>,
    limit: u64,
    first: usize,
    moved_to: &mut BTreeMap<Place, Place>,
) -> Result<Vec<Vec<Job>>> {
    let mut groups: Vec<Vec<Job>> = vec![Vec::new()];
    let mut used = 0u64;
    for (file, planned) in files {
        for (job, made) in planned.jobs.into_iter().enumerate() {
            let size = made.entry.byte_len()? as u64;
            if used + size > limit && groups.last().is_some_and(|g| !g.is_empty()) {
                groups.push(Vec::new());
                used = 0;
            }
            used += size;
            let number = first + groups.len() - 1;
            if let Some(group) = groups.last_mut() {
                moved_to.insert((file, job), (number, group.len()));
                group.push(made);
            }
        }
    }
    Ok(groups)
}

/// What the files of a component, or of a model by itself, are called.
struct Names {
    /// The folder, with a slash at the end.
    folder: String,
    /// What stands before the number and the ending.
    stem: String,
    /// `.fp16` of the variant with that name.
    variant: String,
}

impl Names {
    /// Those of a component by its index, or by its only file.
    fn of(file: &str, index: Option<&IndexFile>) -> Names {
        let Some(component) = component_of(file) else {
            let stem = SINGLE_NAME.trim_end_matches(ENDING).to_string();
            return Names { folder: String::new(), stem, variant: String::new() };
        };
        let folder = format!("{component}/");
        let split = |name: &str| match name.split_once('.') {
            Some((stem, variant)) => (stem.to_string(), format!(".{variant}")),
            None => (name.to_string(), String::new()),
        };
        let (stem, variant) = match index.and_then(|i| i.name.strip_prefix(&folder)?.split_once(INDEX_MIDDLE)) {
            Some((stem, "json")) => (stem.to_string(), String::new()),
            Some((stem, variant)) => (stem.to_string(), format!(".{}", variant.trim_end_matches(".json"))),
            None => split(file.strip_prefix(&folder).unwrap_or(file).trim_end_matches(ENDING)),
        };
        Names { folder, stem, variant }
    }

    fn single(&self) -> String {
        format!("{}{}{}{ENDING}", self.folder, self.stem, self.variant)
    }

    fn shard(&self, number: usize, count: usize) -> String {
        let Names { folder, stem, variant } = self;
        format!("{folder}{stem}{variant}-{:05}-of-{count:05}{ENDING}", number + 1)
    }

    fn index(&self) -> String {
        if self.folder.is_empty() {
            return INDEX_NAME.to_string();
        }
        let variant = self.variant.strip_prefix('.').map_or_else(String::new, |variant| format!("{variant}."));
        format!("{}{}{INDEX_MIDDLE}{variant}json", self.folder, self.stem)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn files_keep_the_names_of_their_component() {
        let names = |file: &str, index: Option<&str>| {
            let index = index.map(|name| IndexFile { name: name.to_string(), metadata: Map::default() });
            let names = Names::of(file, index.as_ref());
            [names.single(), names.shard(0, 2), names.index()]
        };
        let unet = |rest: &str| format!("unet/diffusion_pytorch_model{rest}");
        let plain = ["", "-00001-of-00002"].map(|n| unet(&format!("{n}.safetensors")));
        let plain = [plain[0].clone(), plain[1].clone(), unet(".safetensors.index.json")];
        assert_eq!(names(&plain[0], None), plain);
        assert_eq!(names(&plain[1], Some(&plain[2])), plain);
        let variant = ["", "-00001-of-00002"].map(|n| unet(&format!(".fp16{n}.safetensors")));
        let variant = [variant[0].clone(), variant[1].clone(), unet(".safetensors.index.fp16.json")];
        assert_eq!(names(&variant[0], None), variant);
        assert_eq!(names(&variant[1], Some(&variant[2])), variant);
        let alone = ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"];
        assert_eq!(names("anything.safetensors", None), alone.map(str::to_string));
    }
}
