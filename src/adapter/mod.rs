//! The representation everything meets in: what is adapted, by which delta, at which scale.
//!
//! No key spelling and no file is known here. Tensors are handles on mapped files, so an adapter of any size costs
//! its headers.

pub mod delta;
pub mod experts;
pub mod facts;
pub mod finding;
pub mod fold;
pub mod fused;
pub mod kernel;
pub mod note;
pub mod order;
mod prepare;
pub mod scale;
pub mod selection;

use std::collections::BTreeMap;

pub use delta::{Act, Action, Before, Delta, Inverse, Reversal, Site};
pub use facts::Facts;
pub use finding::Finding;
pub use note::{Note, Severity};
pub use scale::{Scale, ScaleRule};

use crate::error::{Context, Error, Result};
use crate::names::ModulePath;
use crate::names::diffusion::{Candidate, Extent, Naming};
use crate::tensor::Tensor;

use delta::Residual;
use delta::derived::{Projection, Seed};
pub use delta::rescale::Along;
use delta::residual::Method;

/// An adapter as a whole.
#[derive(Clone, Debug, Default)]
pub struct Adapter {
    /// What is adapted, by in-memory module path.
    pub targets: BTreeMap<ModulePath, Target>,
    /// The layout's word for what kind of adapter it says it is (`LORA`, `LOHA` …).
    pub declared: String,
    /// Base model, task, training notes: carried, never interpreted.
    pub about: BTreeMap<String, String>,
    /// What is known of the base beside that.
    pub base: Facts,
    /// How the modules of an image model's denoiser are called; none for other models, and where it is not known.
    pub spelling: Option<Spelling>,
    /// Where the adapter needs another base than the one it names: the method that changed the base before training.
    pub residual_base: Option<String>,
    /// Whether the adapter says that the two uses of a tied embedding are adapted together.
    pub ties_embeddings: bool,
    /// Whether factors of a convolution are those of its kernel read row by row ([`kernel`]), which only the base's
    /// shapes tell.
    pub kernels_by_row: bool,
    /// What its files said beyond all this; only the layout that put it there looks at it again.
    pub carried: Carried,
}

/// The naming of a denoiser's modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// The family of the model, by its name in [`crate::names::diffusion`].
    pub family: &'static str,
    /// Whose names they are.
    pub naming: Naming,
    /// The numbers of blocks and the widths, as far as they are known: some modules of the last block have names of their
    /// own.
    pub extents: &'static [Extent],
}

impl Spelling {
    /// Of a family that was recognised, with its numbers where all sizes it can be of agree.
    pub fn of(found: &Candidate, naming: Naming) -> Spelling {
        let extents = match found.variants.as_slice() {
            [one, others @ ..] if others.iter().all(|other| other.extents == one.extents) => one.extents,
            _ => &[],
        };
        Spelling { family: found.family.name, naming, extents }
    }
}

/// What the files of an adapter said that changes nothing it does: settings of the training, how it chose its modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carried {
    /// Name of the layout whose words these are; empty where nothing is carried.
    pub layout: String,
    /// Fields of the config and their values as JSON, in order.
    pub fields: Vec<(String, String)>,
    /// Metadata of the tensor file, in order.
    pub metadata: Vec<(String, String)>,
    /// [`Adapter::outline`] of the adapter as it was read: what was said of its modules holds while this is the same.
    pub outline: Vec<String>,
    /// Tensors that change no weight, by their keys.
    pub tensors: Vec<(String, Tensor)>,
}

/// Everything an adapter does to one module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// Changes of the weight, in the order they are applied.
    pub weight: Vec<Delta>,
    /// DoRA's magnitude, applied after them.
    pub magnitude: Option<Tensor>,
    /// What the magnitude has a number for: each output, as in the paper, or each input.
    pub magnitude_along: Along,
    /// Changes of the bias, in order.
    pub bias: Vec<Delta>,
    /// What kind of place the module path names.
    pub site: SiteKind,
    /// The part of the adapter's strength that it gets.
    pub share: Share,
}

/// A factor of the strength, 1 where nothing was said.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(pub f64);

impl Default for Share {
    fn default() -> Share {
        Share(1.0)
    }
}

/// What a module path names, as far as the adapter tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SiteKind {
    /// A layer whose weight is `[out, in]`, or a convolution `[out, in, kernel …]`.
    #[default]
    Layer,
    /// A layer whose weight the adapter says is stored `[in, out]`.
    FanInFanOut,
    /// An embedding: the weight `[n, d]` is the transpose of the delta.
    Embedding,
    /// A parameter by its own name, such as a stack of experts; no `.weight` follows.
    Parameter,
}

impl Target {
    /// Whether the module path names a parameter by its own name.
    pub fn is_parameter(&self) -> bool {
        self.site == SiteKind::Parameter
    }

    /// All tensors of the target with the words for their roles.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out: Vec<_> = self.weight.iter().chain(&self.bias).flat_map(Delta::tensors).collect();
        out.extend(self.magnitude.iter().map(|m| ("magnitude", m)));
        out
    }

    /// An error where the magnitude is one of inputs, for layouts that know only those of outputs.
    pub fn require_magnitude_of_outputs(&self) -> Result<()> {
        if self.magnitude.is_none() || self.magnitude_along == Along::Rows {
            return Ok(());
        }
        let what = "DoRA with a magnitude for each input, and this layout has room for one of each output only";
        Err(Error::unsupported(what).hint("which is no matter of form: norms of columns are others than norms of rows"))
    }

    /// The name of what is done to the weight, or to the bias where only that changes.
    pub fn kind(&self) -> &'static str {
        let main = self.weight.last().or(self.bias.last());
        match (main, &self.magnitude) {
            (Some(Delta::LowRank(_)), Some(_)) => "DoRA",
            (Some(delta), _) => delta.kind(),
            (None, _) => "none",
        }
    }
}

impl Adapter {
    /// Every target with the kinds of its changes, in order: the same for adapters that change the same things in the
    /// same ways.
    pub fn outline(&self) -> Vec<String> {
        let words = |deltas: &[Delta]| deltas.iter().map(Delta::kind).collect::<Vec<_>>().join(" + ");
        let line = |(path, target): (&ModulePath, &Target)| {
            let magnitude = match (&target.magnitude, target.magnitude_along) {
                (None, _) => "",
                (Some(_), Along::Rows) => " with magnitude",
                (Some(_), Along::Cols) => " with magnitude of inputs",
            };
            format!("{path}: {}{magnitude}; bias: {}", words(&target.weight), words(&target.bias))
        };
        self.targets.iter().map(line).collect()
    }

    /// Number of tensors used by its targets.
    pub fn tensor_count(&self) -> usize {
        self.targets.values().map(|t| t.tensors().len()).sum()
    }

    /// Whether reading it again, without a base, gives all that is needed to take it back: not where parts of the change
    /// are found in the base.
    pub fn can_be_read_again(&self) -> bool {
        self.residual_base.is_none() && !self.targets.contains_key("")
    }

    // Before deltas are prepared, an operation that has a base calls `restore_base`, `place` and `complete`, in this
    // order. Each does nothing where there is nothing to do.

    /// Makes an adapter for a changed base right for the base as it was: what its method took out of each weight is
    /// taken out before the factors are added. An error where that cannot be found again; nothing where
    /// [`Adapter::residual_base`] is not set.
    pub fn restore_base(&mut self) -> Result<()> {
        let Some(name) = &self.residual_base else { return Ok(()) };
        let method = Method::named(name).ok_or_else(|| {
            Error::unsupported(format!("what `{name}` took out of the base cannot be found again from the base")).hint(
                "convert it with PEFT (path_initial_model_for_weight_conversion), or merge it into the changed base \
                     with init_lora_weights set to true in a copy of the config",
            )
        })?;
        for (path, target) in &mut self.targets {
            let Some(at) = target.weight.iter().position(|delta| matches!(delta, Delta::LowRank(_))) else { continue };
            let Delta::LowRank(factors) = &target.weight[at] else { continue };
            if factors.experts.is_some() || !matches!(target.site, SiteKind::Layer | SiteKind::FanInFanOut) {
                return Err(
                    Error::unsupported(format!("`{name}` starts from linear layers only")).at_key(path.as_str())
                );
            }
            let residual = Residual { method, rank: factors.rank(), scale: factors.factor() };
            target.weight.insert(at, Delta::Residual(residual));
        }
        self.residual_base = None;
        Ok(())
    }

    /// Finds the targets of an adapter that does not list them, among all modules of the base and their weights. Call
    /// it before [`Adapter::complete`]; it does nothing where the targets are known.
    pub fn place(&mut self, weights: &[(ModulePath, Tensor)]) -> Result<Vec<Note>> {
        let Some(target) = self.targets.get("") else { return Ok(Vec::new()) };
        let Some(Delta::Scattered(scattered)) = target.weight.first() else { return Ok(Vec::new()) };
        let placed = scattered.place(weights)?;
        let site = if scattered.transposed { SiteKind::FanInFanOut } else { SiteKind::Layer };
        self.targets.remove("");
        for (path, factors) in placed.factors {
            let target = self.targets.entry(path).or_default();
            target.weight.push(Delta::LowRank(factors));
            target.site = site;
        }
        let uncertain = "the order of some modules in the model is not known here; taken by name";
        Ok(if placed.certain { Vec::new() } else { vec![Note::lossy("target_modules", uncertain)] })
    }

    /// Makes what depends on the shapes of the base: shared projections of which the file has only a seed. Call it
    /// before the deltas are prepared; `shape_of` gives the stored shape of a module's weight. It does nothing, and
    /// asks for nothing, where all is in the file.
    ///
    /// A projection is as large as the largest adapted module, so the shapes of all targets are needed, also of those
    /// that will not be merged.
    pub fn complete(&mut self, shape_of: &dyn Fn(&ModulePath) -> Option<Vec<usize>>) -> Result<()> {
        self.read_kernels(shape_of)?;
        let Some(seed) = self.projections().find_map(|(_, _, p)| seed_of(p)) else { return Ok(()) };
        let (mut outputs, mut inputs) = (0, 0);
        for (path, site, _) in self.projections() {
            let (rows, cols) = module_shape(path, site, shape_of)?;
            (outputs, inputs) = (outputs.max(rows), inputs.max(cols));
        }
        let made = seed.expand(outputs, inputs)?;
        for (_, _, projection) in self.projections() {
            if seed_of(projection) == Some(seed) {
                *projection = made.clone();
            }
        }
        Ok(())
    }

    /// Makes factors of kernels that are read row by row those of the flattened kernel; part of [`Adapter::complete`].
    pub fn read_kernels(&mut self, shape_of: &dyn Fn(&ModulePath) -> Option<Vec<usize>>) -> Result<()> {
        if !std::mem::take(&mut self.kernels_by_row) {
            return Ok(());
        }
        for (path, target) in self.targets.iter_mut().filter(|(_, target)| target.site == SiteKind::Layer) {
            let Some(shape) = shape_of(path).filter(|shape| shape.len() > 2) else { continue };
            for delta in &mut target.weight {
                if let Delta::LowRank(d) = delta
                    && let Some(new) = kernel::factors(d, &shape).at_key(path.as_str())?
                {
                    *d = new;
                }
            }
        }
        Ok(())
    }

    /// What an operation that writes the adapter has to say where it was not completed.
    pub fn unsettled(&self) -> Option<Note> {
        let what =
            "taken for factors of linear layers; those of a convolution mean something else, and --base tells which";
        self.kernels_by_row.then(|| Note::lossy("", what))
    }

    /// Every use of a shared projection.
    fn projections(&mut self) -> impl Iterator<Item = (&ModulePath, SiteKind, &mut Projection)> {
        self.targets.iter_mut().flat_map(|(path, target)| {
            let site = target.site;
            target.weight.iter_mut().filter_map(Delta::projection_mut).map(move |p| (path, site, p))
        })
    }
}

fn seed_of(projection: &Projection) -> Option<Seed> {
    match projection {
        Projection::Seeded(seed) => Some(*seed),
        Projection::Stored { .. } => None,
    }
}

/// Outputs and inputs of a module.
fn module_shape(
    path: &ModulePath,
    site: SiteKind,
    shape_of: &dyn Fn(&ModulePath) -> Option<Vec<usize>>,
) -> Result<(usize, usize)> {
    let missing = || {
        Error::missing("not in the base, but its shape is needed: the file has only the seed of the shared projection")
            .hint("is this the base model the adapter was trained on?")
    };
    match (shape_of(path).ok_or_else(missing).at_key(path.as_str())?.as_slice(), site) {
        (&[inputs, outputs], SiteKind::FanInFanOut) => Ok((outputs, inputs)),
        (&[outputs, inputs], _) => Ok((outputs, inputs)),
        (other, _) => Err(Error::mismatch(format!("shape {other:?}, expected a matrix")).at_key(path.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::derived::{Vera, projection::Scheme};
    use crate::adapter::delta::{Derived, Site};
    use crate::tensor::{Dtype, Shape};

    fn vera(out: usize) -> Delta {
        let ones = |n| Tensor::from_f32(Dtype::F32, vec![n], &vec![1.0; n]).unwrap();
        let projection = Projection::Seeded(Seed { key: 0, rank: 2, scheme: Scheme::Vera });
        Delta::Derived(Derived::Vera(Vera { b: ones(out), d: ones(2), projection, probabilistic: false }))
    }

    fn adapter() -> Adapter {
        let target = |out| Target { weight: vec![vera(out)], ..Target::default() };
        Adapter { targets: [("q".into(), target(4)), ("v".into(), target(3))].into(), ..Adapter::default() }
    }

    #[test]
    fn a_projection_is_as_large_as_the_largest_module() {
        let mut adapter = adapter();
        let shape = Shape::new([3, 7]);
        let site = Site { shape: &shape, companion: None };
        let e = adapter.targets["v"].weight[0].prepare(&site).err().unwrap();
        assert!(e.to_string().contains("save_projection"), "{e}");
        let shapes = [("q", vec![4, 5]), ("v", vec![3, 7])];
        let shape_of = |path: &ModulePath| shapes.iter().find(|(p, _)| *p == path.as_str()).map(|(_, s)| s.clone());
        adapter.complete(&shape_of).unwrap();
        let target = adapter.targets.get_mut("q").unwrap();
        let (a, b) = target.weight[0].projection_mut().unwrap().stored().unwrap();
        assert_eq!((a.shape.dims(), b.shape.dims()), (&[2, 7][..], &[4, 2][..]));
        assert!(adapter.targets["v"].weight[0].prepare(&site).is_ok());
    }

    #[test]
    fn every_adapted_module_is_needed_for_its_size() {
        let e = adapter().complete(&|path| (path.as_str() == "q").then(|| vec![4, 5])).unwrap_err();
        assert_eq!(e.key(), Some("v"));
        let e = adapter().complete(&|_| Some(vec![4, 5, 3])).unwrap_err();
        assert!(e.to_string().contains("[4, 5, 3]"), "{e}");
    }
}
