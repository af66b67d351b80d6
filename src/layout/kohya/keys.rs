//! Keys: the name of a module, a dot, and what the tensor is to it.
//!
//! Names of sd-scripts have no dot in them; ComfyUI writes the same suffixes behind dotted paths. So a key is parted at
//! the longest suffix that is known.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::tensor::{StateDict, Tensor};

/// The tensors of one module by their suffixes.
pub type Parts = BTreeMap<&'static str, Tensor>;

/// Suffixes that no other layout has.
const MARKS: &[&str] = &[
    "lora_up.weight",
    "lora_down.weight",
    "lora_mid.weight",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "diff",
    "diff_b",
    "w_norm",
    "b_norm",
    "a1.weight",
    "a2.weight",
    "b1.weight",
    "b2.weight",
    "oft_blocks",
    "oft_diag",
    "oft_R.weight",
    "on_input",
    "set_weight",
    "q_layer.weight",
    "p_layer.weight",
    "lambda_layer",
];

/// Suffixes that say more of a module, and are found elsewhere as well.
const OTHERS: &[&str] = &[
    "alpha",
    "bias_indices",
    "bias_size",
    "bias_values",
    "bm.weight",
    "diff_m",
    "dora_scale",
    "lokr_t1",
    "lora_up.bias",
    "oft_R.scaled_oft",
    "rescale",
    "reshape_weight",
    "row_offset",
    "scalar",
    "scale",
    "weight",
];

/// Suffixes of single numbers and the like, which are kept as they are for writing.
pub const SMALL: [&str; 5] = ["alpha", "on_input", "reshape_weight", "scalar", "scale"];

/// What stands before the keys of textual inversions that are packed into the file.
pub const EMBEDDINGS: &str = "bundle_emb.";
/// The same of what some tools for sliders keep for themselves.
pub const BOOKKEEPING: &str = "_aux.";

/// Takes a key apart: module and suffix.
pub fn split(key: &str) -> Option<(&str, &'static str)> {
    let fits = |suffix: &&&'static str| key.strip_suffix(**suffix).is_some_and(|module| module.ends_with('.'));
    let longest = MARKS.iter().chain(OTHERS).filter(fits).max_by_key(|suffix| suffix.len())?;
    let module = key.strip_suffix(longest)?.strip_suffix('.')?;
    (!module.is_empty()).then_some((module, *longest))
}

/// Whether the key is one that only this layout has.
pub fn is_mark(key: &str) -> bool {
    split(key).is_some_and(|(_, suffix)| MARKS.contains(&suffix)) || is_partial_rotation(key)
}

/// Whether the key is that of a rotation of some of the outputs, as all are numbered in files of
/// kohya-ss/sd-scripts:networks/oft_flux.py.
fn is_partial_rotation(key: &str) -> bool {
    key.rsplit_once(".oft_blocks.").is_some_and(|(_, part)| part.parse::<u32>().is_ok())
}

/// What a file of this layout consists of.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Modules by their names.
    pub modules: BTreeMap<String, Parts>,
    /// Keys of embeddings.
    pub embeddings: Vec<String>,
    /// Keys of bookkeeping.
    pub bookkeeping: Vec<String>,
}

/// Takes all keys apart.
pub fn sort(tensors: &StateDict) -> Result<Sorted> {
    let mut out = Sorted::default();
    for (key, tensor) in tensors {
        if key.starts_with(EMBEDDINGS) {
            out.embeddings.push(key.clone());
        } else if key.starts_with(BOOKKEEPING) {
            out.bookkeeping.push(key.clone());
        } else {
            let (module, suffix) = split(key).ok_or_else(|| unknown(key, tensor))?;
            // LightX2V's word for the difference of a block's modulation, which is a parameter by itself.
            let (module, suffix) = match suffix {
                "diff_m" => (format!("{module}.modulation"), "diff"),
                _ => (module.to_string(), suffix),
            };
            if out.modules.entry(module).or_default().insert(suffix, tensor.clone()).is_some() {
                return Err(Error::malformed("another tensor of the file means the same").at_key(key));
            }
        }
    }
    Ok(out)
}

fn unknown(key: &str, tensor: &Tensor) -> Error {
    if is_partial_rotation(key) {
        let what = "a rotation for a part of the outputs, of which only sd-scripts' Flux network knows the rows";
        return Error::unsupported(what).at_key(key);
    }
    Error::unrecognised(format!("a tensor {} with a suffix that no network of this layout has", tensor.shape))
        .at_key(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn rotations_of_parts_are_known_and_refused() {
        let key = "oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0";
        assert!(is_mark(key) && !is_mark("q.oft_blocks.weight"));
        let blocks = Tensor::from_f32(Dtype::F32, [4, 2, 2], &[0.0; 16]).unwrap();
        let error = sort(&[(key.to_string(), blocks)].into_iter().collect()).unwrap_err();
        assert!(error.to_string().contains("rotation for a part"), "{error}");
    }

    #[test]
    fn the_longest_suffix_counts() {
        for (key, module, suffix) in [
            ("lora_unet_q.lora_up.weight", "lora_unet_q", "lora_up.weight"),
            ("lora_unet_q.a1.weight", "lora_unet_q", "a1.weight"),
            ("lora_unet_q.weight", "lora_unet_q", "weight"),
            ("diffusion_model.blocks.0.q.lora_down.weight", "diffusion_model.blocks.0.q", "lora_down.weight"),
            ("lora_unet_diff.diff", "lora_unet_diff", "diff"),
            ("x.alpha.alpha", "x.alpha", "alpha"),
        ] {
            assert_eq!(split(key), Some((module, suffix)), "{key}");
        }
        assert_eq!(split("alpha"), None);
        assert_eq!(split(".alpha"), None);
        assert_eq!(split("q.lora_A.bias"), None);
        assert!(is_mark("q.on_input") && !is_mark("q.alpha") && !is_mark("q.weight"));
    }
}
