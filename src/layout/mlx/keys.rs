//! MLX's keys: module path and leaf, and where the paths of its models differ from those of transformers.
//!
//! Models of mlx-lm keep the experts of a layer in one module with a stack for each projection
//! (ml-explore/mlx-lm:mlx_lm/models/switch_layers.py). Here every expert is a module of its own, under the name it has
//! in the base's files; `names` finds it there or in a fused tensor.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::tensor::{StateDict, Tensor};

/// Leaves of the tensors of an adapted module.
pub const LEAVES: [&str; 3] = ["lora_a", "lora_b", "m"];

/// Names of embeddings in models of mlx-lm; their factors have the shapes of a linear layer's.
const EMBEDDINGS: [&str; 14] = [
    "embed",
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "embed_tokens_per_layer",
    "embedding",
    "embeddings",
    "ngram_embeddings",
    "position_embeddings",
    "tok_embeddings",
    "token_embeddings",
    "word_embeddings",
    "wpe",
    "wte",
];
/// Layers that GPT-2 stores `[in, out]` and its MLX model the other way.
const TURNED: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

/// The module that holds a layer's experts in most models.
const SWITCH: &str = "switch_mlp";
/// Families whose models have it under the name of the base's files
/// (ml-explore/mlx-lm:mlx_lm/models/{afmoe,dots1,gpt_oss,Klear,llama4}.py).
const CALLED_EXPERTS: [&str; 6] = ["afmoe", "dots1", "gpt_oss", "Klear", "llama4", "llama4_text"];
/// Module around the experts, names of the projections in MLX and in the base's files.
const PROJECTIONS: [(&str, &str, &str); 8] = [
    ("block_sparse_moe", "gate_proj", "w1"),
    ("block_sparse_moe", "up_proj", "w3"),
    ("block_sparse_moe", "down_proj", "w2"),
    ("feed_forward", "gate_proj", "w1"),
    ("feed_forward", "up_proj", "w3"),
    ("feed_forward", "down_proj", "w2"),
    ("mixer", "fc1", "up_proj"),
    ("mixer", "fc2", "down_proj"),
];

/// The tensors of one module.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// `lora_a`.
    pub a: Option<Tensor>,
    /// `lora_b`.
    pub b: Option<Tensor>,
    /// DoRA's magnitude.
    pub m: Option<Tensor>,
}

/// True for keys of MLX's factors.
pub fn is_lora_key(key: &str) -> bool {
    key.ends_with(".lora_a") || key.ends_with(".lora_b")
}

/// Takes every key apart.
pub fn sort(tensors: &StateDict) -> Result<BTreeMap<String, Parts>> {
    let mut out: BTreeMap<String, Parts> = BTreeMap::new();
    for (key, tensor) in tensors {
        let Some((path, leaf)) = key.rsplit_once('.').filter(|(_, leaf)| LEAVES.contains(leaf)) else {
            return Err(unknown(key, tensor));
        };
        let parts = out.entry(path.to_string()).or_default();
        let place = match leaf {
            "lora_a" => &mut parts.a,
            "lora_b" => &mut parts.b,
            _ => &mut parts.m,
        };
        *place = Some(tensor.clone());
    }
    Ok(out)
}

fn unknown(key: &str, tensor: &Tensor) -> Error {
    if key.ends_with(".A") || key.ends_with(".B") {
        return Error::unsupported("the older form of mlx-vlm, whose versions disagree on the scale").at_key(key);
    }
    let what = format!("a tensor {} that is none of {}", tensor.shape, LEAVES.join(", "));
    Error::unrecognised(what).at_key(key).hint("mlx-lm itself refuses such a file; whole tensors are of type `full`")
}

/// Whether the module is an embedding, by its name.
pub fn is_embedding(path: &str) -> bool {
    EMBEDDINGS.contains(&leaf(path))
}

/// Whether the base may store the weight of this module the other way than MLX's model does.
fn may_be_turned(path: &str) -> bool {
    TURNED.contains(&leaf(path))
}

/// An error for whole weights that MLX's models may hold in another order than the base's files.
pub fn check_orientation(path: &str, tensor: &Tensor) -> Result<()> {
    if tensor.shape.rank() > 2 {
        let what = format!("a whole weight {}, whose axes MLX's models have in another order", tensor.shape);
        return Err(Error::unsupported(what));
    }
    if tensor.shape.rank() == 2 && may_be_turned(path) {
        let what = "a whole weight of a layer that some bases store [in, out]; which way round this is, is not told";
        return Err(Error::unsupported(what));
    }
    Ok(())
}

/// The path of one expert of a stack at `path`; none where no experts are expected there.
pub fn expert(path: &str, number: usize) -> Option<String> {
    let (module, projection) = path.rsplit_once('.')?;
    let (holder, name) = module.rsplit_once('.')?;
    match name {
        SWITCH => {
            let around = leaf(holder);
            let known = PROJECTIONS.iter().find(|(module, mlx, _)| *module == around && *mlx == projection);
            Some(format!("{holder}.experts.{number}.{}", known.map_or(projection, |(_, _, base)| base)))
        }
        "experts" => Some(format!("{module}.{number}.{projection}")),
        _ => None,
    }
}

/// The path of the stack that holds an expert in most models, and the expert's number.
pub fn stack(path: &str) -> Option<(String, usize)> {
    let (holder, number, projection) = numbered(path)?;
    let around = leaf(holder);
    let known = PROJECTIONS.iter().find(|(module, _, base)| *module == around && *base == projection);
    Some((format!("{holder}.{SWITCH}.{}", known.map_or(projection, |(_, mlx, _)| mlx)), number))
}

/// The same in models that call the module `experts`.
pub fn stack_called_experts(path: &str) -> Option<String> {
    let (holder, _, projection) = numbered(path)?;
    Some(format!("{holder}.experts.{projection}"))
}

/// Whether the models of this family call the module so.
pub fn calls_it_experts(family: &str) -> bool {
    CALLED_EXPERTS.contains(&family)
}

/// `HOLDER.experts.NUMBER.PROJECTION`.
fn numbered(path: &str) -> Option<(&str, usize, &str)> {
    let (rest, projection) = path.rsplit_once('.')?;
    let (module, number) = rest.rsplit_once('.')?;
    Some((module.strip_suffix(".experts")?, number.parse().ok()?, projection))
}

/// What `keys` of the config has to say for a module: its path inside its layer, or the whole path where it is in none.
pub fn selector(path: &str) -> &str {
    let mut at = 0;
    for component in path.split('.') {
        at += component.len() + 1;
        if component.bytes().all(|b| b.is_ascii_digit()) {
            return path.get(at..).filter(|rest| !rest.is_empty()).unwrap_or(path);
        }
    }
    path
}

/// Whether the models of mlx-lm are known to have this path as transformers' have it.
pub fn is_common(path: &str) -> bool {
    let plain = path.starts_with("model.layers.") && stack_called_experts(path).is_none();
    plain || ["model.embed_tokens", "model.norm", "lm_head"].contains(&path)
}

fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_have_the_names_of_the_base() {
        for (mlx, base) in [
            ("model.layers.1.mlp.switch_mlp.gate_proj", "model.layers.1.mlp.experts.7.gate_proj"),
            ("model.layers.1.block_sparse_moe.switch_mlp.gate_proj", "model.layers.1.block_sparse_moe.experts.7.w1"),
            ("model.layers.1.block_sparse_moe.switch_mlp.up_proj", "model.layers.1.block_sparse_moe.experts.7.w3"),
            ("backbone.layers.1.mixer.switch_mlp.fc2", "backbone.layers.1.mixer.experts.7.down_proj"),
        ] {
            assert_eq!(expert(mlx, 7).as_deref(), Some(base));
            assert_eq!(stack(base), Some((mlx.to_string(), 7)));
        }
        let path = "model.layers.1.mlp.experts.down_proj";
        assert_eq!(expert(path, 2).as_deref(), Some("model.layers.1.mlp.experts.2.down_proj"));
        assert_eq!(stack_called_experts("model.layers.1.mlp.experts.2.down_proj").as_deref(), Some(path));
        assert_eq!(expert("model.layers.1.self_attn.embed_q", 2), None);
        assert_eq!(stack("model.layers.1.mlp.shared_experts.up_proj"), None);
    }

    #[test]
    fn modules_are_selected_inside_their_layer() {
        assert_eq!(selector("model.layers.10.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(selector("model.layers.1.mlp.switch_mlp.up_proj"), "mlp.switch_mlp.up_proj");
        assert_eq!(selector("model.embed_tokens"), "model.embed_tokens");
        assert_eq!(selector("layers.3"), "layers.3");
    }
}
