//! Files that look like adapters and change no weight of a model, or not as they are stored: known by their keys, and
//! refused by name.

use crate::tensor::StateDict;

/// What the file is, where it is one of these.
pub fn looks_like(tensors: &StateDict) -> Option<&'static str> {
    let any = |test: &dyn Fn(&str) -> bool| tensors.keys().any(|key| test(key));
    if any(&|key| key == "lora_controlnet") {
        return Some(
            "a control-lora of Stability's: a ControlNet, told as a difference to the U-Net, and no adapter of it",
        );
    }
    if any(&|key| key.starts_with("lllite_")) {
        return Some("a ControlNet-LLLite, which changes no weight");
    }
    let packed = |key: &str| (key.contains(".mlp_fc") || key.contains(".mlp_context_fc")) && key.contains("lora_");
    if any(&packed) {
        return Some(
            "an adapter that nunchaku has packed for its kernels, whose factors are not in order; convert the original",
        );
    }
    None
}
