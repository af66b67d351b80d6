//! torchtune: `adapter_model.pt` (earlier `adapter_N.pt`), a pickled dict of the adapter's parameters under the names of
//! torchtune's own models.
//!
//! Defined by meta-pytorch/torchtune, `torchtune/modules/peft/*` (what is saved and how it is merged),
//! `torchtune/models/convert_weights.py` and `torchtune/models/*/_convert_weights.py` (names and the order of rows); written
//! down in `docs/layouts/torchtune.md`. The PEFT files that torchtune saves beside are the layout `peft`.

mod config;
mod names;
mod read;
mod write;

use crate::adapter::{Adapter, Note};
use crate::error::Result;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::tensor::StateDict;

/// The layout.
pub struct Torchtune;

/// The tensor file of current versions; earlier ones count epochs, `adapter_0.pt`.
pub const TENSOR_FILE: &str = "adapter_model.pt";

/// How many of these tensors have torchtune's keys.
pub fn own_keys(tensors: &StateDict) -> usize {
    tensors.keys().filter(|key| names::parse(key).is_some()).count()
}

impl Layout for Torchtune {
    fn name(&self) -> &'static str {
        "torchtune"
    }

    fn about(&self) -> &'static str {
        "torchtune: adapter_model.pt or adapter_N.pt, best with the base's config"
    }

    fn looks_aside(&self) -> bool {
        true
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Experts => Holding::Yes,
            Content::Ranks | Content::Scales => Holding::Folded,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        match own_keys(&source.tensors) {
            0 => Verdict::No,
            ours => {
                let because = format!("{ours} of {} keys are parameters of torchtune's models", source.tensors.len());
                Verdict::Likely { score: 95, because }
            }
        }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read::read(source)
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}
