//! What sort of module holds a tensor of the model in memory, told by its name and shape, since no model is built here.
//!
//! Who writes an adapter has to know it: PEFT wraps linear layers, embeddings and convolutions by the path of the module
//! (`target_modules`), a loose parameter by its own name (`target_parameters`), and refuses to load an adapter that names
//! a module of another sort. The matrix of a linear layer or of an embedding is a parameter like any other, so
//! [`Site::Parameter`] is what a matrix is taken for where the words do not tell: that loads either way.
//!
//! Sources: the modules of huggingface/transformers:src/transformers/models (5.24); what can be wrapped:
//! huggingface/peft:src/peft/tuners/lora/layer.py (0.21), `dispatch_default` and `ParamWrapper`.

mod words;

use std::collections::{BTreeMap, HashMap};

use super::{BaseModel, conv1d};
use crate::names::{Listing, checkpoint};
pub use words::DENOISERS;
use words::*;

/// The sort of place a tensor has in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The weight of a linear layer, [out, in].
    Linear,
    /// The weight of transformers' `Conv1D`, [in, out].
    LinearInOut,
    /// The weight of an embedding, [n, d]. The `shared` embedding of a model with encoder and decoder is called through
    /// the modules that [`super::embedding`] finds as its uses, never by itself.
    Embedding,
    /// The weight of a convolution over so many axes, [out, in / groups, kernel …].
    Conv {
        /// Number of kernel axes: 1, 2 or 3.
        axes: usize,
        /// The number of groups where name and shape tell it: as many as there are channels, or one.
        groups: Option<usize>,
    },
    /// `in_proj_weight` of torch's `MultiheadAttention`, [3 d, d]. PEFT wraps the module as a whole.
    AttentionIn,
    /// The weight of `out_proj` inside it. The module reads it without calling the layer, so an adapter of the layer by
    /// itself would load and do nothing.
    AttentionOut,
    /// A parameter that PEFT can adapt by its own name, a matrix or a stack of matrices: of experts or a router, or one
    /// of which is not known what it is. Its module does nothing but use it.
    Parameter,
    /// A parameter of a module that does other things as well, or of the model itself: a class token, a table of
    /// positions, a decay. PEFT would put its own module in the place of that one, and the model would not run.
    Loose,
    /// The one-dimensional weight of a module, a norm above all.
    Vector,
    /// A bias.
    Bias {
        /// Whether its module has a weight that is one of a layer: linear, convolution or attention.
        of_layer: bool,
    },
    /// A weight that no adapter changes: that of a transposed convolution or a recurrent layer, or of a layer whose weight
    /// the model reads without calling it, such as the convolution of a state space model: an adapter would load and do
    /// nothing.
    Fixed,
    /// A buffer: counted or computed, not trained.
    Buffer,
}

impl Site {
    /// Whether PEFT can add a product of two factors to a tensor of this rank.
    pub fn takes_low_rank(self, rank: usize) -> bool {
        match self {
            Site::Linear | Site::LinearInOut | Site::Embedding | Site::Conv { .. } => true,
            Site::AttentionIn | Site::AttentionOut => true,
            Site::Parameter => matches!(rank, 2 | 3),
            Site::Vector | Site::Bias { .. } | Site::Loose | Site::Fixed | Site::Buffer => false,
        }
    }
}

/// The sites of all tensors of a model that have a place in memory, by their names there: of a pipeline each component by
/// itself.
pub fn of_model(model: &BaseModel, listing: &Listing) -> HashMap<String, Site> {
    let tensors = || listing.tensors.iter().map(|(name, found)| (name.as_str(), found.memory_shape.as_slice()));
    let mut groups: BTreeMap<Option<&str>, Vec<(&str, &[usize])>> = BTreeMap::new();
    for (name, shape) in tensors() {
        groups.entry(model.component_of(name).map(|c| c.name.as_str())).or_default().push((name, shape));
    }
    let mut out = HashMap::new();
    for group in groups.into_values() {
        let Some((first, _)) = group.first() else { continue };
        let mut types = model.types_at(first).to_vec();
        // One of a class that is not known here is like the others.
        types
            .extend(model.component_of(first).filter(|c| c.is_denoiser()).map(|_| checkpoint::TRANSFORMER.to_string()));
        let sites = Sites::new(group.iter().copied(), &types);
        out.extend(group.iter().filter_map(|(name, _)| Some((name.to_string(), sites.of(name)?))));
    }
    out
}

/// The tensors of a model in memory, to tell their sites by themselves and by their neighbours.
#[derive(Clone, Debug)]
pub struct Sites<'a> {
    shapes: HashMap<&'a str, &'a [usize]>,
    model_types: &'a [String],
}

impl<'a> Sites<'a> {
    /// The sites of these tensors: names in memory and shapes. `model_types` as in [`crate::names::Index::new`].
    pub fn new(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>, model_types: &'a [String]) -> Sites<'a> {
        Sites { shapes: tensors.into_iter().collect(), model_types }
    }

    /// The site of a tensor by its name in memory. `None`: there is no such tensor.
    pub fn of(&self, name: &str) -> Option<Site> {
        let shape = *self.shapes.get(name)?;
        let (path, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        Some(match parameter {
            "weight" | "bias" if self.is_frozen_norm(path) => Site::Buffer,
            "weight" if !path.is_empty() => self.weight(path, shape),
            "bias" if !path.is_empty() => Site::Bias { of_layer: self.is_layer(path) },
            "in_proj_weight" if shape.len() == 2 => Site::AttentionIn,
            "in_proj_bias" => Site::Bias { of_layer: true },
            _ if is_recurrent(parameter) => Site::Fixed,
            _ if path.ends_with(".parametrizations.weight") => Site::Fixed,
            _ if BUFFERS.contains(&parameter) => Site::Buffer,
            _ if shape.len() == 3 && leaf(path) == "experts" => Site::Parameter,
            _ => Site::Loose,
        })
    }

    fn is_layer(&self, path: &str) -> bool {
        match self.shapes.get(format!("{path}.weight").as_str()) {
            Some(shape) => {
                !matches!(self.weight(path, shape), Site::Vector | Site::Fixed | Site::Loose | Site::Parameter)
            }
            None => false,
        }
    }

    fn has(&self, path: &str, parameter: &str) -> bool {
        self.shapes.contains_key(format!("{path}.{parameter}").as_str())
    }

    /// A batch norm whose weight and bias are buffers as well; torch's own counts its batches.
    fn is_frozen_norm(&self, path: &str) -> bool {
        self.has(path, "running_mean") && !self.has(path, "num_batches_tracked")
    }

    fn weight(&self, path: &str, shape: &[usize]) -> Site {
        let leaf = leaf(path);
        match shape.len() {
            0 => Site::Loose,
            1 => Site::Vector,
            2 => self.matrix(path, leaf),
            3 if STACKS.contains(&leaf) => Site::Parameter,
            // A stack of matrices may hang anywhere; the words for one-dimensional convolutions are few.
            3 if !has_word(leaf, CONV_WORDS) => Site::Parameter,
            3..=5 => self.convolution(path, shape),
            _ => Site::Fixed,
        }
    }

    fn matrix(&self, path: &str, leaf: &str) -> Site {
        let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
        if leaf == "out_proj" && self.has(parent, "in_proj_weight") {
            return Site::AttentionOut;
        }
        if self.is_in_denoiser(path) {
            return if TABLES.contains(&leaf) { Site::Embedding } else { Site::Linear };
        }
        let read = |(end, types): &(&str, &[&str])| path.ends_with(end) && self.is_one_of(types);
        let refused = leaf == "out_proj" && self.is_one_of(STATE_SPACE);
        if refused || READ_EMBEDDINGS.contains(&leaf) || READ_MATRICES.iter().any(read) {
            return Site::Fixed;
        }
        if conv1d::is_in_out(self.model_types, leaf) {
            return Site::LinearInOut;
        }
        let said_by =
            |table: &[(&str, &[&str])]| table.iter().any(|(word, types)| *word == leaf && self.is_one_of(types));
        if said_by(BOTH) {
            return Site::Embedding;
        }
        if ROUTERS.contains(&leaf)
            || CALLED_OTHERWISE.contains(&leaf)
            || BOTH.iter().any(|(word, _)| *word == leaf)
            || said_by(UNLIKE)
        {
            return Site::Parameter;
        }
        if EMBEDDINGS.contains(&leaf) {
            return Site::Embedding;
        }
        if LINEARS.contains(&leaf) || has_word(leaf, LINEAR_WORDS) { Site::Linear } else { Site::Parameter }
    }

    /// Whether a module is one of an image model's denoiser.
    fn is_in_denoiser(&self, path: &str) -> bool {
        let is_image_model = || self.model_types.iter().any(|name| checkpoint::naming(name).is_some());
        DENOISERS.iter().any(|part| path.strip_prefix(part).is_some_and(|rest| rest.starts_with('.')))
            && is_image_model()
    }

    fn convolution(&self, path: &str, shape: &[usize]) -> Site {
        let &[out, per_group, ..] = shape else { return Site::Fixed };
        // [in, out, kernel …], so the bias has the length of the second axis.
        let bias = self.shapes.get(format!("{path}.bias").as_str()).and_then(|shape| shape.first());
        let transposed =
            path.split('.').any(|component| TRANSPOSED.contains(&component)) || bias.is_some_and(|bias| *bias != out);
        let read = READ.contains(&leaf(path)) || (leaf(path).starts_with("conv") && self.is_one_of(READ_IN));
        // [1, 1, 1, d] is a norm's.
        if transposed || read || shape.iter().rev().skip(1).all(|n| *n == 1) {
            return Site::Fixed;
        }
        let deep = path.split('.').any(|component| has_word(component, DEPTHWISE));
        // One channel a group may also be one channel in all, as in sound.
        let groups = match per_group {
            1 if deep => Some(out),
            1 => None,
            _ => Some(1).filter(|_| !self.is_one_of(GROUPED)),
        };
        Site::Conv { axes: shape.len() - 2, groups }
    }

    fn is_one_of(&self, types: &[&str]) -> bool {
        self.model_types.iter().any(|model_type| types.contains(&model_type.as_str()))
    }
}

/// The name of a module inside its parent; for one of a list that of the list.
fn leaf(path: &str) -> &str {
    let is_number = |c: &&str| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit());
    path.rsplit('.').find(|component| !is_number(component)).unwrap_or_default()
}

/// Whether a part of the name between underscores, less a number at its end, is one of the words.
fn has_word(leaf: &str, words: &[&str]) -> bool {
    leaf.split('_').any(|part| words.contains(&part.trim_end_matches(|c: char| c.is_ascii_digit())))
}

/// Parameters of torch's recurrent layers: `weight_ih_l0`.
fn is_recurrent(parameter: &str) -> bool {
    ["weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l"].iter().any(|start| parameter.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_a_denoiser_are_linear_layers_whatever_they_are_called() {
        let names = ["unet.mid_block.ff.net.2.weight", "unet.emb.embedding_table.weight", "text_encoder.net.2.weight"];
        let sites = |types: &[String]| {
            let sites = Sites::new(names.map(|name| (name, [8, 8].as_slice())), types);
            names.map(|name| sites.of(name))
        };
        let some = |sites: [Site; 3]| sites.map(Some);
        let of_image_model = sites(&["UNet2DConditionModel".to_string()]);
        assert_eq!(of_image_model, some([Site::Linear, Site::Embedding, Site::Parameter]));
        assert_eq!(sites(&["llama".to_string()])[0], Some(Site::Parameter));
    }

    /// A model of `fixtures/sites.tsv`; `fixtures/make/sites.py` says how to read one.
    #[derive(Default)]
    struct Model {
        types: Vec<String>,
        /// Name, shape, the site it has in the model.
        rows: Vec<(String, Vec<usize>, String)>,
    }

    fn models() -> Vec<Model> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/sites.tsv");
        let mut models = Vec::new();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            match *line.split('\t').collect::<Vec<_>>().as_slice() {
                ["#", ref types @ ..] => models
                    .push(Model { types: types.iter().map(|word| (*word).to_owned()).collect(), ..Model::default() }),
                [site, name, dims] => {
                    let shape = dims.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
                    models.last_mut().unwrap().rows.push((name.to_owned(), shape, site.to_owned()));
                }
                _ => panic!("{line}"),
            }
        }
        models
    }

    fn word(site: Site) -> String {
        match site {
            Site::Bias { of_layer } => if of_layer { "LayerBias" } else { "Bias" }.into(),
            Site::Conv { axes, groups } => format!("Conv{axes} {}", groups.map_or("?".into(), |n| n.to_string())),
            site => format!("{site:?}"),
        }
    }

    /// Whether it is no harm to take the one for the other: a matrix is a parameter too, groups may be left open, and a
    /// layer that is not adapted is no layer.
    fn is_careful(got: &str, real: &str) -> bool {
        match got {
            "Parameter" => matches!(real, "Linear" | "Embedding"),
            "Loose" => real == "Parameter",
            "Bias" => real == "LayerBias",
            "Fixed" => real.starts_with("Conv") || matches!(real, "Linear" | "Embedding"),
            "Buffer" => matches!(real, "Loose" | "Parameter"),
            _ => got.strip_suffix('?').is_some_and(|axes| real.starts_with(axes)),
        }
    }

    #[test]
    fn sites_are_those_of_real_models() {
        let (mut all, mut careful, mut wrong) = (0, Vec::new(), Vec::new());
        for Model { types, rows } in models() {
            let sites = Sites::new(rows.iter().map(|(name, shape, _)| (name.as_str(), shape.as_slice())), &types);
            for (name, shape, real) in rows.iter().filter(|(_, _, real)| real != "Beside") {
                let got = word(sites.of(name).unwrap());
                let text = format!("{name} {shape:?} of {types:?} is {real}, taken for {got}");
                all += 1;
                match got == *real {
                    true => {}
                    false if is_careful(&got, real) => careful.push(text),
                    false => wrong.push(text),
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(all > 100 && careful.len() * 10 < all, "{all}\n{}", careful.join("\n"));
    }

    #[test]
    fn an_unknown_matrix_is_a_parameter() {
        let shapes: [(&str, &[usize]); 4] =
            [("x.thing.weight", &[4, 8]), ("x.q_proj.weight", &[4, 8]), ("x.thing.kernel", &[3, 4, 8]), ("", &[])];
        let sites = Sites::new(shapes, &[]);
        assert_eq!(sites.of("x.thing.weight"), Some(Site::Parameter));
        assert_eq!(sites.of("x.q_proj.weight"), Some(Site::Linear));
        assert_eq!(sites.of("x.thing.kernel"), Some(Site::Loose));
        assert_eq!(sites.of(""), Some(Site::Loose));
        assert_eq!(sites.of("x"), None);
    }
}
