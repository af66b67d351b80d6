//! The names of a checkpoint on disk, and the way between them and the names in memory.
//!
//! When the index is made (`build`), the names are sorted into kinds (see `outline`), the rules of the family say what
//! each kind is called in memory, and every such spelling is noted as a claim: "a name of this form means that kind".
//! `search` goes from a name in memory to the tensors on disk, `listing` from all tensors on disk to those in memory;
//! `parts` does both for the components of a pipeline, and `naming` has the other names of an image model's modules.

mod build;
mod listing;
mod naming;
mod parts;
mod search;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use indexmap::IndexMap;

use super::equivalent::{self, Loose};
use super::outline::Slot;
use super::place::How;
use super::rewrite::Conversion;

pub use listing::Listing;
pub use naming::Spelt;

/// The names of a checkpoint with their shapes.
#[derive(Clone, Debug, Default)]
pub struct Index {
    shapes: IndexMap<String, Vec<usize>>,
    kinds: Vec<Kind>,
    kind_of: HashMap<String, usize>,
    claims: Vec<Claim>,
    /// The claims by the form of their name, one table for each level.
    by_form: [HashMap<String, Vec<usize>>; LEVELS],
    /// For a kind of expert tensors: how many experts are there, given the other numbers of the name.
    experts: HashMap<(usize, Vec<usize>), Count>,
    loose: Loose,
    /// Whether gate and up alternate in fused tensors, so that no range is one of them.
    interleaved: bool,
    /// The components of a pipeline, each with names of its own; then there is nothing in the fields above.
    parts: Vec<(String, Index)>,
    /// Whose names the denoiser of an image model has.
    spelt: Option<Spelt>,
}

/// Names that differ in their counting numbers only.
#[derive(Clone, Debug)]
struct Kind {
    /// The name with its numbers marked.
    text: String,
    /// The name with its numbers struck out.
    bare: String,
    marks: usize,
    /// The first of these names.
    example: usize,
    /// What becomes of it in memory by the rules of the family: one name, or one for each target of a conversion.
    memory: Vec<String>,
    /// Whether the tensor that has this very name in memory is made of others, or of this one in another layout.
    other_in_memory: bool,
}

/// A name in memory and the kind of tensors that it takes in.
#[derive(Clone, Debug)]
struct Claim {
    kind: usize,
    /// The numbers of the name in memory.
    slots: Vec<Slot>,
    /// Where the tensor goes, if it is not the whole: the conversion and which of its targets this name is, of how many.
    part: Option<(Conversion, (usize, usize))>,
    by: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    number: usize,
    highest: usize,
}

/// How many forms of a name are compared.
const LEVELS: usize = 3;

impl Index {
    /// The forms in which a name is compared, from the strictest to the loosest, and what it means to be found so.
    fn forms(&self, bare: &str) -> [(String, How); LEVELS] {
        [
            (bare.to_owned(), How::Renamed("")),
            (equivalent::form(bare), How::Equivalent),
            (self.loose.core(bare), How::Suffix),
        ]
    }
}
