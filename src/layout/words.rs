//! What trainers call the tensors of a module, in the words of [kohya](super::kohya): PEFT's, and those that diffusers had
//! before it.

use super::{Source, kohya};
use crate::error::{Error, Result};
use crate::tensor::StateDict;

/// Endings and the words of kohya for the same.
const ENDINGS: [(&str, &str); 15] = [
    (".lora_A.weight", "lora_down.weight"),
    (".lora_B.weight", "lora_up.weight"),
    (".lora_B.bias", "lora_up.bias"),
    (".lora_A", "lora_down.weight"),
    (".lora_B", "lora_up.weight"),
    (".lora.down.weight", "lora_down.weight"),
    (".lora.up.weight", "lora_up.weight"),
    ("_lora.down.weight", "lora_down.weight"),
    ("_lora.up.weight", "lora_up.weight"),
    (".lora_linear_layer.down.weight", "lora_down.weight"),
    (".lora_linear_layer.up.weight", "lora_up.weight"),
    (".lora_magnitude_vector.weight", "dora_scale"),
    (".lora_magnitude_vector", "dora_scale"),
    (".magnitude", "dora_scale"),
    (".lora_B.default.bias", "lora_up.bias"),
];

/// Module and word of a key that ends in one of these; an adapter's name between factor and `weight` is left out.
pub fn split(key: &str) -> Option<(&str, &'static str)> {
    let known = ENDINGS.iter().find_map(|(end, word)| Some((key.strip_suffix(end)?, *word)));
    let named = || {
        let (head, _) = key.strip_suffix(".weight")?.rsplit_once('.')?;
        let of = |end: &str, word| Some((head.strip_suffix(end)?, word));
        of(".lora_A", "lora_down.weight").or_else(|| of(".lora_B", "lora_up.weight"))
    };
    known.or_else(named).filter(|(module, _)| !module.is_empty())
}

/// Whether the key ends as one of a module's tensors, in any words.
pub fn is_word(key: &str) -> bool {
    split(key).is_some() || kohya::claims(key)
}

/// All tensors of `source` under the words of kohya; `rename` is given the names of the modules. Two keys that mean the
/// same are an error, whatever is in them.
pub fn in_words_of_kohya(source: &Source, rename: impl Fn(&str) -> String) -> Result<StateDict> {
    let mut out = StateDict::with_capacity(source.tensors.len());
    let mut keys = Vec::with_capacity(source.tensors.len());
    for (key, tensor) in &source.tensors {
        let renamed = match split(key).or_else(|| kohya::split(key)) {
            Some((module, word)) => format!("{}.{word}", rename(module)),
            None => key.clone(),
        };
        let (place, before) = out.insert_full(renamed, tensor.clone());
        if let (Some(_), Some(other)) = (before, keys.get(place)) {
            let what = format!("means the same as `{other}`");
            return Err(Error::malformed(what).at_key(key).in_file(&source.tensor_file));
        }
        keys.push(key);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_all_trainers_mean_the_same() {
        for (key, word) in [
            ("blocks.0.q.lora_A.weight", "lora_down.weight"),
            ("blocks.0.q.lora_B.default.weight", "lora_up.weight"),
            ("blocks.0.q.lora_A.mine.weight", "lora_down.weight"),
            ("blocks.0.q.lora_B", "lora_up.weight"),
            ("blocks.0.q.lora_B.bias", "lora_up.bias"),
            ("blocks.0.q_lora.down.weight", "lora_down.weight"),
            ("blocks.0.q.lora.up.weight", "lora_up.weight"),
            ("blocks.0.q.lora_linear_layer.up.weight", "lora_up.weight"),
            ("blocks.0.q.lora_magnitude_vector", "dora_scale"),
            ("blocks.0.q.magnitude", "dora_scale"),
        ] {
            assert_eq!(split(key), Some(("blocks.0.q", word)), "{key}");
        }
        for key in ["blocks.0.q.weight", ".lora_A.weight", "blocks.0.q.lora_down.weight", "lora_A"] {
            assert_eq!(split(key), None, "{key}");
        }
    }
}
