//! Where the tensor that a target changes lies in the base, and what a change of it can become.

use std::sync::OnceLock;

use crate::adapter::{Adapter, Target};
use crate::error::{Error, Result};
use crate::model::site::{self, Site};
use crate::model::{BaseModel, conv1d};
use crate::names::{Found, ModulePath};
use crate::ops::orientation::is_transposed;
use crate::tensor::{Shape, dtype};

/// What a change becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One pair of factors.
    Factors,
    /// A pair for each of so many matrices of a stack.
    Stack(usize),
    /// A tensor in place of the old one.
    Whole,
}

/// A tensor of the base, and how the change lies against it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it lies.
    pub found: Found,
    /// Its shape in memory.
    pub stored: Shape,
    /// Whether it is the transpose of what the deltas are written for.
    pub transposed: bool,
    /// What its change becomes.
    pub form: Form,
}

impl Place {
    /// Bytes on disk.
    pub fn bytes(&self, base: &BaseModel) -> u64 {
        let width =
            self.found.pieces.first().and_then(|p| base.tensor(&p.key)).map_or(4, |(_, t)| t.dtype.bitsize() / 8);
        self.stored.dims().iter().fold(width as u64, |all, &n| all.saturating_mul(n as u64))
    }
}

/// Places of all targets of an adapter.
pub struct Places<'a> {
    base: &'a BaseModel,
    adapter: &'a Adapter,
    grouped: OnceLock<Vec<String>>,
}

impl<'a> Places<'a> {
    /// None looked up yet.
    pub fn new(base: &'a BaseModel, adapter: &'a Adapter) -> Places<'a> {
        Places { base, adapter, grouped: OnceLock::new() }
    }

    /// The weight of a target.
    pub fn weight(&self, path: &ModulePath, target: &Target) -> Result<Place> {
        let name = if target.is_parameter() { path.to_string() } else { path.tensor("weight") };
        let names = &self.base.names;
        let found =
            names.find(&name).or_else(|| names.find(&path.tensor("in_proj_weight"))).or_else(|| self.tied(path));
        let found = found.ok_or_else(|| missing(self.base, &name))?;
        require_numbers(self.base, &found)?;
        let stored = Shape::new(found.memory_shape.clone());
        let form = match stored.rank() {
            0 | 1 => Form::Whole,
            2 => Form::Factors,
            3 if target.is_parameter() => Form::Stack(stored.dims()[0]),
            _ if self.is_grouped(&name) => Form::Whole,
            _ => Form::Factors,
        };
        let transposed = match form {
            Form::Stack(_) => conv1d::experts_in_out(self.base),
            _ => is_transposed(self.base, self.adapter, path, &stored)?,
        };
        Ok(Place { found, stored, transposed, form })
    }

    /// The input embedding, for a use of it that the base leaves out.
    fn tied(&self, path: &ModulePath) -> Option<Found> {
        let embeddings = self.base.embeddings();
        let is_use = |of: &str| path.as_str() == of || path.as_str().strip_suffix(of).is_some_and(|p| p.ends_with('.'));
        let input = embeddings.input.filter(|_| embeddings.tied && embeddings.uses.iter().any(|u| is_use(&u.path)))?;
        let (_, tensor) = self.base.tensor(&input)?;
        Some(Found::whole(&input, tensor.shape.dims()))
    }

    /// Whether it is a convolution of several groups, or may be one: an A there sees the inputs of all groups, so that
    /// no product of two factors has the form of the weight.
    fn is_grouped(&self, name: &str) -> bool {
        let grouped = self.grouped.get_or_init(|| {
            let sites = site::of_model(self.base, &self.base.names.memory());
            let several = |site: &Site| matches!(site, Site::Conv { groups, .. } if *groups != Some(1));
            sites.into_iter().filter(|(_, site)| several(site)).map(|(name, _)| name).collect()
        });
        grouped.iter().any(|g| g == name)
    }
}

/// The error for a tensor that the base does not have.
pub fn missing(base: &BaseModel, name: &str) -> Error {
    let nearest =
        base.names.nearest(name).map_or_else(String::new, |n| format!("the nearest key of the base is `{n}`; "));
    Error::missing(format!("the base {} has no tensor `{name}`", base.path.display()))
        .hint(format!("{nearest}is this the base model the adapter was trained on?"))
}

/// An error where a weight is stored in a way of which the values alone are not the numbers.
pub fn require_numbers(base: &BaseModel, found: &Found) -> Result<()> {
    for piece in &found.pieces {
        base.scaled().of(&piece.key)?;
        let Some((_, tensor)) = base.tensor(&piece.key) else { continue };
        if !dtype::is_float(tensor.dtype) {
            let scheme = base.quantisation().map_or_else(String::new, |s| format!(" ({s})"));
            let what = format!("the weight is quantised{scheme}: a change of {} is no change of weights", tensor.dtype);
            return Err(Error::unsupported(what).in_file(&base.path).hint("take the 16-bit model it was made from"));
        }
    }
    Ok(())
}
