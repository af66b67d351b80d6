//! Layouts: how each ecosystem stores an adapter. One file (or folder, for the largest) per layout.
//!
//! A layout reads keys and config into an [`Adapter`] and knows nothing of bases or of what will be done with it.

pub mod adapterhub;
pub mod ai_toolkit;
pub mod cloneofsimo;
pub mod comfyui;
pub mod consumer;
pub mod diffusers;
pub mod even;
pub mod facts;
pub mod gguf;
mod grouped;
mod holding;
pub mod kohya;
pub mod lint;
pub mod litgpt;
pub mod loralib;
pub mod mlx;
pub mod native;
pub mod nemo;
pub mod omi;
pub mod onetrainer;
pub mod peft;
mod refused;
mod save;
pub mod source;
mod spelling;
mod stacks;
pub mod torchtune;
mod words;
pub mod xlabs;

use std::path::Path;

pub use holding::{Content, Holding};
pub use save::{check, save};
pub use source::{Given, SideFile, Source};

use crate::adapter::{Adapter, Delta, Note};
use crate::container::gguf::Metadata;
use crate::error::{Context, Error, Kind, Result};
use crate::names::diffusion::{self, Family, Naming};
use crate::tensor::{Hash, StateDict, hash};

/// How sure a layout is that a source is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not mine.
    No,
    /// Mine, with a score to compare with other layouts' and the reason in words.
    Likely {
        /// 1 to 100.
        score: u8,
        /// "because …", without the word.
        because: String,
    },
}

/// One way to store an adapter.
pub trait Layout: Sync {
    /// The word after `--from` and `--to`.
    fn name(&self) -> &'static str;
    /// One line for `lora-tool layouts`.
    fn about(&self) -> &'static str;
    /// Looks at the source; opens nothing further.
    fn detect(&self, source: &Source) -> Verdict;
    /// Reads the adapter. Every tensor is used or named in a note or an error.
    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)>;
    /// Whether its reader looks at more than the tensors and the adapter's config: settings of the training, the base's
    /// config.
    fn looks_aside(&self) -> bool {
        false
    }
    /// Whether and how it holds a content: what can be read of it, and written where there is a way back.
    fn holds(&self, content: Content) -> Holding;
    /// Whose names for the denoiser of this family of image models it has; none where that is no business of it.
    fn naming(&self, family: &Family) -> Option<Naming> {
        let _ = family;
        None
    }
    /// Whether its adapters are for pipelines of image models, whose parts it tells apart.
    fn is_of_pipelines(&self) -> bool {
        diffusion::FAMILIES.iter().any(|family| self.naming(family).is_some())
    }
    /// Whether there is a way back; [`Layout::write`] is an error otherwise.
    fn can_write(&self) -> bool {
        true
    }
    /// What its files would be. Everything of the adapter is in there, or named in a note or an error.
    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)>;
}

/// An adapter in the form of one layout, not yet written.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Name of the file of the tensors.
    pub tensor_file: String,
    /// The tensors, in the order of the file.
    pub tensors: StateDict,
    /// Header metadata of a safetensors file, in order.
    pub metadata: Vec<(String, String)>,
    /// What kind of file it is.
    pub format: Format,
    /// Other files of the folder: name and text. A layout that is one file has none.
    pub texts: Vec<(String, Vec<u8>)>,
    /// Completes metadata that depends on the tensors as they are written, such as their hash.
    pub seal: Option<fn(&mut Draft) -> Result<()>>,
}

/// The kind of file that tensors are written to.
#[derive(Clone, Debug, Default)]
pub enum Format {
    /// safetensors.
    #[default]
    Safetensors,
    /// GGUF, with its metadata.
    Gguf(Metadata),
    /// PyTorch's, for programs that read no other.
    Torch {
        /// The key whose value the tensors' dict is; none where it is the outermost.
        under: Option<&'static str>,
    },
    /// A tar archive of texts and the tensors in PyTorch's form.
    Tar {
        /// Names of the texts and what they say.
        texts: Vec<(String, Vec<u8>)>,
        /// Name of the member with the tensors.
        tensors: &'static str,
    },
}

/// All layouts.
pub const LAYOUTS: &[&dyn Layout] = &[
    &adapterhub::AdapterHub,
    &ai_toolkit::AiToolkit,
    &cloneofsimo::Cloneofsimo,
    &comfyui::ComfyUi,
    &diffusers::Diffusers,
    &gguf::Gguf,
    &kohya::Kohya,
    &litgpt::LitGpt,
    &loralib::Loralib,
    &mlx::Mlx,
    &native::Native,
    &nemo::Nemo,
    &omi::Omi,
    &onetrainer::OneTrainer,
    &peft::Peft,
    &torchtune::Torchtune,
    &xlabs::XLabs,
];

/// An adapter and how it was recognised.
#[derive(Debug)]
pub struct Opened {
    /// What it does.
    pub adapter: Adapter,
    /// What reading it brought up.
    pub notes: Vec<Note>,
    /// Name of its layout.
    pub layout: &'static str,
    /// Why it was taken for that.
    pub because: String,
    /// Fingerprint of the base it was made for, where it names one.
    pub base_fingerprint: Option<Hash>,
    /// The files themselves.
    pub source: Source,
}

impl Opened {
    /// What its layout has to know to read it again, besides tensors and config; none where that is all.
    pub fn aside(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        self.source.aside(named(self.layout).is_ok_and(Layout::looks_aside))
    }

    /// The hash of its tensors, the same whatever file or config they are stored with.
    pub fn hash(&self) -> Hash {
        hash::of_tensors(&self.source.tensors)
    }
}

/// Opens an adapter file or folder. `from` names the layout; without it the content decides.
pub fn open(path: &Path, from: Option<&str>) -> Result<Opened> {
    open_with(path, from, Given::default())
}

/// The same, where more is known than the files say.
pub fn open_with(path: &Path, from: Option<&str>, given: Given) -> Result<Opened> {
    let source = Source::open_with(path, given)?;
    open_source(source, from).in_file(path)
}

/// Opens an adapter whose files are at hand; see [`open`].
pub fn open_source(source: Source, from: Option<&str>) -> Result<Opened> {
    let (layout, because) = match from {
        Some(name) => (named(name)?, "named on the command line".to_string()),
        None => detect(&source)?,
    };
    let (mut adapter, notes) = layout.read(&source)?;
    for (path, target) in &adapter.targets {
        let mut deltas = target.weight.iter().chain(&target.bias);
        deltas.try_for_each(Delta::holds_together).at_key(path.as_str()).in_file(&source.tensor_file)?;
    }
    adapter.base = std::mem::take(&mut adapter.base).or(source.facts());
    // Kinds that are refused may keep their tensors elsewhere: then the reason is better than this.
    if source.tensors.is_empty() && adapter.targets.is_empty() {
        return Err(Error::missing("no tensors in this adapter").in_file(&source.tensor_file));
    }
    // A layout may keep it in a file of another kind.
    let named = adapter.about.get(source::BASE_FINGERPRINT).and_then(|text| Hash::from_hex(text));
    let base_fingerprint = source.base_fingerprint()?.or(named);
    Ok(Opened { adapter, notes, layout: layout.name(), because, base_fingerprint, source })
}

/// The layout of this name.
pub fn named(name: &str) -> Result<&'static dyn Layout> {
    LAYOUTS.iter().find(|l| l.name() == name).copied().ok_or_else(|| {
        let known: Vec<_> = LAYOUTS.iter().map(|l| l.name()).collect();
        Error::new(Kind::Usage, format!("no layout named `{name}`; known: {}", known.join(", ")))
    })
}

/// The layout with the best claim; two claims of nearly the same weight are an error that lists both.
pub fn detect(source: &Source) -> Result<(&'static dyn Layout, String)> {
    if let Some(what) = refused::looks_like(&source.tensors) {
        return Err(Error::unsupported(what).in_file(&source.tensor_file));
    }
    let mut claims: Vec<(u8, &'static dyn Layout, String)> = LAYOUTS
        .iter()
        .filter_map(|layout| match layout.detect(source) {
            Verdict::No => None,
            Verdict::Likely { score, because } => Some((score, *layout, because)),
        })
        .collect();
    claims.sort_by_key(|(score, ..)| std::cmp::Reverse(*score));
    if let [(first, a, _), (second, b, _), ..] = claims.as_slice()
        && first - second < 10
    {
        return Err(
            Error::unrecognised(format!("could be {} or {}", a.name(), b.name())).hint("--from names the layout")
        );
    }
    claims.into_iter().next().map(|(_, layout, because)| (layout, because)).ok_or_else(|| {
        let sample: Vec<_> = source.tensors.keys().take(3).map(|k| format!("`{k}`")).collect();
        let what = match sample.is_empty() {
            true => "no tensors in it, and so no adapter".to_string(),
            false => format!("not an adapter of a known layout; first keys: {}", sample.join(", ")),
        };
        Error::unrecognised(what)
            .hint("an adapter file needs its config beside it; `lora-tool layouts` lists what can be read")
    })
}
