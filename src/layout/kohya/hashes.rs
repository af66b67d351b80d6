//! The hashes that sd-scripts writes into the metadata (kohya-ss/sd-scripts, `library/train_util.py`,
//! `precalculate_safetensors_hashes`). Both are of the file as it would be with no metadata but the `ss_` keys.
//!
//! `sshs_model_hash`, which is also Civitai's AutoV3, takes the bytes of the tensors alone. `sshs_legacy_hash` takes 64 KiB
//! that begin at 1 MiB of the file: the header moves them, and the order of the metadata, which is left to chance, only
//! matters where the header reaches that far.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::container::{Entry, Manifest};
use crate::error::Result;
use crate::tensor::{StateDict, Tensor};

const WINDOW: std::ops::Range<usize> = 0x10_0000..0x11_0000;

/// SHA-256 of all tensors in order, in lower-case hexadecimal.
pub fn model(tensors: &StateDict) -> String {
    let mut hash = Sha256::new();
    for tensor in tensors.values() {
        hash.update(tensor.bytes.as_slice());
        tensor.bytes.release(0..tensor.bytes.len());
    }
    hexadecimal(&hash.finalize())
}

/// The first eight digits of that of the window; none where the header reaches into it.
pub fn legacy(tensors: &StateDict, metadata: &[(String, String)]) -> Result<Option<String>> {
    let entry = |(name, t): (&String, &Tensor)| Entry { name: name.clone(), dtype: t.dtype, shape: t.shape.clone() };
    let own = metadata.iter().filter(|(key, _)| key.starts_with("ss_")).cloned().collect();
    let head = Manifest { entries: tensors.iter().map(entry).collect(), metadata: own }.head()?.len();
    if head > WINDOW.start {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    let mut at = head;
    for tensor in tensors.values() {
        let bytes = tensor.bytes.as_slice();
        let (from, to) = (WINDOW.start.max(at), WINDOW.end.min(at.saturating_add(bytes.len())));
        if let Some(part) = bytes.get(from.saturating_sub(at)..to.saturating_sub(at)).filter(|_| from < to) {
            hash.update(part);
        }
        at = at.saturating_add(bytes.len());
    }
    Ok(hexadecimal(&hash.finalize()).get(..8).map(str::to_string))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes whatever is written
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn hashes_are_those_of_sd_scripts() {
        let up: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let down: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let tensors: StateDict = [
            ("m.lora_up.weight", Tensor::from_f32(Dtype::F32, [3, 2], &up).unwrap()),
            ("m.alpha", Tensor::from_f32(Dtype::F16, [], &[1.0]).unwrap()),
            ("m.lora_down.weight", Tensor::from_f32(Dtype::F16, [2, 4], &down).unwrap()),
        ]
        .into_iter()
        .map(|(key, tensor)| (key.to_string(), tensor))
        .collect();
        assert_eq!(model(&tensors), "4c2111c3921c54e2bf298e58fbb9c1e6c6ed03b8413e216c8c859ceeaedb99af");
        assert_eq!(legacy(&tensors, &[]).unwrap().as_deref(), Some("e3b0c442"));
        let long = vec![("ss_tag_frequency".to_string(), "a".repeat(WINDOW.start))];
        assert_eq!(legacy(&tensors, &long).unwrap(), None);
    }
}
