//! Families whose linear layers are transformers' `Conv1D`: the weight is stored `[in, out]`.
//!
//! Source: huggingface/transformers, `src/transformers/pytorch_utils.py` (`Conv1D`) and the models that use it.

use super::BaseModel;
use crate::names::ModulePath;

/// `model_type`s with `Conv1D` layers.
const FAMILIES: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"];
/// The layers, by the last component of their path.
const LAYERS: [&str; 4] = ["c_attn", "c_proj", "c_fc", "q_attn"];

/// What is known of how the weight of the layer at this path is stored: `Some(true)` for `[in, out]`, none without a
/// config.
pub fn stores_in_out(base: &BaseModel, path: &ModulePath) -> Option<bool> {
    let component = base.component_of(path.as_str()).and_then(|c| c.config.as_ref());
    base.config.as_ref().or(component)?;
    Some(is_in_out(base.types_at(path.as_str()), path.leaf()))
}

/// Whether the module of this name is such a layer in a model of these types.
pub fn is_in_out(model_types: &[String], module_leaf: &str) -> bool {
    model_types.iter().any(|t| FAMILIES.contains(&t.as_str())) && LAYERS.contains(&module_leaf)
}

/// Models whose stacks of experts are `[experts, in, out]`; all others store `[experts, out, in]`. PEFT's reading of
/// an adapter on experts depends on it (huggingface/peft, `src/peft/tuners/lora/layer.py`, `ParamWrapper`).
pub fn experts_in_out(base: &BaseModel) -> bool {
    const TRANSPOSED: [&str; 4] = ["gpt_oss", "aria", "aria_text", "openai_privacy_filter"];
    base.model_types().iter().any(|t| TRANSPOSED.contains(&t.as_str()))
}
