//! In which form an adapter can change a tensor.

use std::collections::HashMap;

use crate::adapter::SiteKind;
use crate::model::site::{self, Site};
use crate::model::{BaseModel, embedding};
use crate::names::{Found, ModulePath};

/// Layers that PEFT looks for among the experts wherever the model has stacks of them, although others bear the name as
/// well (huggingface/peft:src/peft/utils/transformers_weight_conversion.py, `_MOE_TARGET_MODULE_MAPPING`). By the name of
/// the parameter they are found.
const TAKEN_FOR_EXPERTS: [&str; 7] = ["gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"];

/// A tensor of the model in memory as a part of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The module, or the parameter itself where it goes by its own name.
    pub path: ModulePath,
    /// What it is.
    pub sort: Sort,
}

/// Sorts of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A matrix: the weight of a linear layer, of one that is stored `[in, out]`, of an embedding, or a parameter.
    Matrix(SiteKind),
    /// The weight of a convolution that sees all its inputs.
    Kernel,
    /// A stack of matrices, `[experts, …, …]`.
    Stack,
    /// Another weight of a module: a norm's, a convolution's in groups.
    Weight,
    /// The bias of a module.
    Bias,
    /// A parameter that is neither weight nor bias of a module.
    Loose,
    /// What is no parameter: positions, counts, running means.
    Buffer,
    /// A tensor whose place in memory is not known.
    Unknown,
}

impl Place {
    /// Whether it is a stack of matrices.
    pub fn is_stack(&self) -> bool {
        self.sort == Sort::Stack
    }

    /// Whether it is an embedding, of which rows can be replaced.
    pub fn is_embedding(&self) -> bool {
        self.sort == Sort::Matrix(SiteKind::Embedding)
    }

    /// Whether it is no parameter.
    pub fn is_buffer(&self) -> bool {
        self.sort == Sort::Buffer
    }

    /// Whether it has a row for each token, so that their number may grow.
    pub fn may_grow(&self) -> bool {
        self.is_embedding() || embedding::is_output(self.path.as_str())
    }
}

/// The tensors of a model by their names in memory, and what each of them is.
pub struct Listed {
    /// Name, where it lies, and what it is, in the order of the files; last those whose place in memory is not known, by
    /// their own names.
    pub tensors: Vec<(String, Found, Place)>,
}

impl Listed {
    /// Lists the tensors of a model.
    pub fn new(model: &BaseModel) -> Listed {
        let listing = model.names.memory();
        let has_stacks = listing.tensors.iter().any(|(name, _)| name.ends_with(".experts.gate_up_proj"));
        let sites = site::of_model(model, &listing);
        let in_out = sites.values().any(|site| *site == Site::LinearInOut);
        let about = Model { has_stacks, in_out };
        let places: HashMap<String, Place> = listing
            .tensors
            .iter()
            .map(|(name, found)| (name.clone(), place(name, &found.memory_shape, sites.get(name).copied(), about)))
            .collect();
        let known = listing.tensors.into_iter().filter_map(|(name, found)| {
            let place = places.get(&name)?.clone();
            Some((name, found, place))
        });
        let unknown = listing.unplaced.into_iter().filter_map(|key| {
            let (_, tensor) = model.tensor(&key)?;
            let found = Found::whole(&key, tensor.shape.dims());
            let place = Place { path: ModulePath::from(key.as_str()), sort: Sort::Unknown };
            Some((key, found, place))
        });
        Listed { tensors: known.chain(unknown).collect() }
    }
}

/// What decides for all of a model's tensors.
#[derive(Clone, Copy)]
struct Model {
    /// It has stacks of experts.
    has_stacks: bool,
    /// It has layers that are stored `[in, out]`: PEFT has one word for those of an adapter, and with it refuses parameters
    /// that go by their own names.
    in_out: bool,
}

fn place(name: &str, shape: &[usize], site: Option<Site>, about: Model) -> Place {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let of_module = |sort| Place { path: ModulePath::from(module), sort };
    let by_itself = |sort| Place { path: ModulePath::from(name), sort };
    let last = module.rsplit('.').next().unwrap_or(module);
    match site {
        Some(Site::Linear) if about.has_stacks && TAKEN_FOR_EXPERTS.contains(&last) => {
            by_itself(Sort::Matrix(SiteKind::Parameter))
        }
        Some(Site::Linear | Site::AttentionIn | Site::AttentionOut) => of_module(Sort::Matrix(SiteKind::Layer)),
        Some(Site::LinearInOut) => of_module(Sort::Matrix(SiteKind::FanInFanOut)),
        Some(Site::Embedding) => of_module(Sort::Matrix(SiteKind::Embedding)),
        Some(Site::Conv { groups: Some(1), .. }) => of_module(Sort::Kernel),
        Some(Site::Parameter) if shape.len() == 3 && !about.in_out => by_itself(Sort::Stack),
        Some(Site::Parameter) if shape.len() == 2 && !about.in_out => by_itself(Sort::Matrix(SiteKind::Parameter)),
        Some(Site::Conv { .. } | Site::Vector | Site::Fixed | Site::Parameter) if leaf == "weight" => {
            of_module(Sort::Weight)
        }
        Some(Site::Bias { .. }) if leaf == "bias" => of_module(Sort::Bias),
        Some(Site::Buffer) => by_itself(Sort::Buffer),
        _ => by_itself(Sort::Loose),
    }
}
