//! kohya: the flat files of sd-scripts and LyCORIS, and of all who imitate them: one safetensors file, a name with
//! underscores for every module, a suffix for every tensor of it.
//!
//! Defined by kohya-ss/sd-scripts, `networks/*.py`, and KohakuBlueleaf/LyCORIS, `lycoris/modules/*.py`; written down in
//! `docs/layouts/kohya.md`. What a name stands for is settled in `names`; all else here takes paths as they come. Not
//! here: the keys of PEFT (`lora_A`), whatever comes before them.

mod alpha;
mod hashes;
mod keys;
mod kind;
mod metadata;
mod names;
mod read;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Container, Family, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct Kohya;

/// Its name, and that of what it carries.
pub const NAME: &str = "kohya";
/// Layouts that have the same networks under other names, and carry the same of their files.
pub const RELATIVES: [&str; 6] = [NAME, "ai-toolkit", "comfyui", "native", "omi", "onetrainer"];

/// Whether a key ends as only those of this layout do.
pub fn claims(key: &str) -> bool {
    keys::is_mark(key)
}

/// Module and suffix of a key.
pub fn split(key: &str) -> Option<(&str, &'static str)> {
    keys::split(key)
}

/// The adapter of a file of `layout`, one of the [`RELATIVES`], in which `tensors` are those of `source` in the words of
/// this layout.
pub fn read_tensors(source: &Source, tensors: &StateDict, layout: &str) -> Result<(Adapter, Vec<Note>)> {
    let (mut adapter, notes) = read::read(source, tensors)?;
    adapter.carried.layout = layout.to_string();
    Ok((adapter, notes))
}

/// What the names of each component begin with in files of a container: component and prefix. A prefix that ends in a
/// dot is followed by a dotted path, any other by a flat one.
pub fn prefixes(adapter: &Adapter, container: Container) -> Vec<(String, String)> {
    names::Resolver::known(adapter.spelling).prefixes(container)
}

/// The file of an adapter in the words of this layout, as one of `layout`, one of the [`RELATIVES`]. Names are those of
/// the adapter's own file if that was of the same layout, and else begin with `prefixes`.
pub fn write_as(layout: &str, adapter: &Adapter, prefixes: Vec<(String, String)>) -> Result<(Draft, Vec<Note>)> {
    let own = adapter.carried.layout.as_str();
    let mut adapter = match RELATIVES.contains(&own) && own != layout {
        true => metadata::respelled(adapter, prefixes.clone()),
        false => adapter.clone(),
    };
    if RELATIVES.contains(&adapter.carried.layout.as_str()) {
        adapter.carried.layout = NAME.to_string();
    }
    write::write(&adapter, prefixes)
}

impl Layout for Kohya {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "sd-scripts and LyCORIS: one safetensors file of lora_unet_… names"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear
            | Content::Ranks
            | Content::Scales
            | Content::Dora
            | Content::Convolutions
            | Content::Experts
            | Content::Biases
            | Content::Whole
            | Content::Products => Holding::Yes,
            Content::Embeddings | Content::Tokens | Content::Rotations | Content::Rescaling | Content::Shared => {
                Holding::No
            }
        }
    }

    fn naming(&self, family: &Family) -> Option<Naming> {
        Some(family.denoiser()?.homes(Container::Kohya).next()?.naming)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| keys::is_mark(key)).count();
        // Dotted names are of other layouts.
        let dotted = |key: &&String| keys::split(key).is_some_and(|(module, _)| module.contains('.'));
        if ours == 0 || source.tensors.keys().filter(dotted).count() * 2 > all {
            return Verdict::No;
        }
        Verdict::Likely {
            score: 80,
            because: format!("{ours} of {all} keys end as only those of sd-scripts and LyCORIS"),
        }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source, &source.tensors)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write_as(NAME, adapter, prefixes(adapter, Container::Kohya))
    }
}
