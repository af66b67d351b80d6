//! Weights in 8-bit floats, and the tensors beside them that say what to multiply them by. No arithmetic is done here.
//!
//! | form | beside `layer.weight` | source |
//! |---|---|---|
//! | plain | nothing: the elements are the weights | |
//! | scaled | `layer.scale_weight`, perhaps `layer.scale_input`; a marker `scaled_fp8` for the model | Comfy-Org/ComfyUI:comfy/ops.py, 2025 |
//! | by metadata | `layer.weight_scale`, perhaps `layer.input_scale`; the format in `layer.comfy_quant` or in the header's `_quantization_metadata` | Comfy-Org/ComfyUI:comfy/quant_ops.py |
//! | of language models | `layer.weight_scale`, one or one a row; `layer.weight_scale_inv`, one a block | deepseek-ai/DeepSeek-V3, neuralmagic/compressed-tensors |
//!
//! In all of them a weight is element × scale, also where the scale is called an inverse. Other formats of the same
//! metadata (`mxfp8`, `nvfp4`, `int8_tensorwise` …) are refused by their names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::BaseModel;
use crate::container::{Sharded, json};
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{Bytes, Dtype, Scales, Shape, Tensor, cast};

/// The key of ComfyUI's description in the metadata of a header.
pub const METADATA: &str = "_quantization_metadata";
/// What helps where a weight cannot be used.
const HINT: &str = "take the 16-bit model it was made from";
/// Rows and columns of a block where the config does not say: those of DeepSeek's.
const USUAL_BLOCK: usize = 128;
/// Ends of what makes a second scale, or a shift: with these the product is not all.
const MORE: [&str; 3] = ["weight_scale_2", "pre_quant_scale", "weight_zero_point"];
/// Ends of what says nothing of the weight itself.
const BESIDE: [&str; 3] = ["scale_input", "input_scale", "comfy_quant"];

/// What a tensor beside a weight is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The scale of the weight of this key.
    Scale(String),
    /// Something about the inputs of its layer, or a description.
    About(String),
    /// The mark of a checkpoint with scales.
    Marker,
}

/// All 8-bit weights of a model.
#[derive(Clone, Debug, Default)]
pub struct Scaled {
    weights: BTreeMap<String, Weight>,
    roles: HashMap<String, Role>,
    /// Formats by layer, from the headers; or why they cannot be read.
    formats: Formats,
    unreadable: Option<String>,
    /// The scheme that the config names, and the extents of its blocks.
    scheme: Option<String>,
    block: (usize, usize),
}

/// The format of each layer.
type Formats = HashMap<String, String>;

/// A weight and what lies beside it.
#[derive(Clone, Debug)]
struct Weight {
    dtype: Dtype,
    shape: Shape,
    scales: Vec<(String, Tensor)>,
    description: Option<Tensor>,
    more: Option<String>,
}

/// True for the two 8-bit floats that are merged into.
pub fn is_eight(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

impl Scaled {
    /// Looks through the names of all tensors. Nothing but headers is read.
    pub fn find(files: &Sharded, config: Option<&Map<String, Value>>) -> Scaled {
        let mut out = Scaled { block: (USUAL_BLOCK, USUAL_BLOCK), ..Scaled::default() };
        (out.formats, out.unreadable) = formats(files);
        if !files.tensors().any(|(_, _, tensor)| is_eight(tensor.dtype)) {
            return out;
        }
        let about = config.and_then(|c| c.get("quantization_config"));
        out.scheme = about.map(|a| a.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed scheme").into());
        if let Some([rows, cols]) = about.and_then(|a| a.get("weight_block_size")?.as_array()).map(Vec::as_slice) {
            let extent = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            out.block = (extent(rows), extent(cols));
        }
        let all: HashMap<&str, &Tensor> = files.tensors().map(|(_, key, t)| (key.as_str(), t)).collect();
        for (key, tensor) in &all {
            if key.rsplit('.').next() == Some("scaled_fp8") {
                out.roles.insert((*key).to_string(), Role::Marker);
            } else if is_eight(tensor.dtype) {
                out.add(key, tensor, &all);
            }
        }
        out
    }

    fn add(&mut self, key: &str, tensor: &Tensor, all: &HashMap<&str, &Tensor>) {
        let mut scales = vec![format!("{key}_scale"), format!("{key}_scale_inv")];
        let mut own = Weight {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            scales: Vec::new(),
            description: None,
            more: None,
        };
        if let Some(layer) = layer(key) {
            scales.push(format!("{layer}.scale_weight"));
            for end in BESIDE {
                let name = format!("{layer}.{end}");
                let Some(found) = all.get(name.as_str()) else { continue };
                if end == "comfy_quant" {
                    own.description = Some((*found).clone());
                }
                self.roles.insert(name, Role::About(key.to_string()));
            }
            let more = MORE.map(|end| format!("{layer}.{end}"));
            own.more = more.into_iter().find(|name| all.contains_key(name.as_str()));
        }
        for name in scales {
            if let Some(found) = all.get(name.as_str()) {
                own.scales.push((name.clone(), (*found).clone()));
                self.roles.insert(name, Role::Scale(key.to_string()));
            }
        }
        self.weights.insert(key.to_string(), own);
    }

    /// What a tensor is that lies beside a weight and is none of the model's own.
    pub fn role(&self, key: &str) -> Option<&Role> {
        self.roles.get(key)
    }

    /// Keys of the 8-bit weights, and of those with a scale.
    pub fn counts(&self) -> (usize, usize) {
        (self.weights.len(), self.weights.values().filter(|w| !w.scales.is_empty()).count())
    }

    /// Whether there are 8-bit weights, and the first few of them are understood.
    fn is_understood(&self) -> bool {
        const FEW: usize = 8;
        !self.weights.is_empty() && self.weights.iter().take(FEW).all(|(key, weight)| self.scales(key, weight).is_ok())
    }

    /// What the elements of a tensor are multiplied by; none where they are the numbers themselves. An error where
    /// there is more to it, or where the scale is missing.
    pub fn of(&self, key: &str) -> Result<Option<Arc<Scales>>> {
        let Some(weight) = self.weights.get(key) else { return Ok(None) };
        self.scales(key, weight).map_err(|e| e.at_key(key).hint(HINT))
    }

    fn scales(&self, key: &str, weight: &Weight) -> Result<Option<Arc<Scales>>> {
        if let Some(why) = &self.unreadable {
            return Err(Error::malformed(format!("{METADATA} cannot be read: {why}")));
        }
        let format = match &weight.description {
            Some(text) => Some(described(text)?),
            None => layer(key).and_then(|layer| self.formats.get(layer).cloned()),
        };
        let wanted = if weight.dtype == Dtype::F8_E4M3 { "float8_e4m3fn" } else { "float8_e5m2" };
        if let Some(format) = format.as_ref().filter(|format| *format != wanted) {
            let what = format!("the weight is quantised as {format}: dtype {} with other scales", weight.dtype);
            return Err(Error::unsupported(what));
        }
        if let Some(more) = &weight.more {
            return Err(Error::unsupported(format!("the weight is quantised with more than a scale: `{more}`")));
        }
        match weight.scales.as_slice() {
            [] => {
                let scheme = format.as_ref().or(self.scheme.as_ref());
                let what = |scheme| format!("the weight is quantised ({scheme}), and no scale lies beside it");
                scheme.map_or(Ok(None), |scheme| Err(Error::missing(what(scheme))))
            }
            [(name, stored)] => {
                let scales = Scales::read(stored, &weight.shape, self.block);
                scales.map(|scales| Some(Arc::new(scales))).map_err(|e| {
                    let scheme = self.scheme.as_ref().map_or_else(String::new, |s| format!(" ({s})"));
                    let what = format!("the weight is quantised{scheme}, and `{name}` is not understood: {}", e.what());
                    Error::new(e.kind(), what)
                })
            }
            [(one, _), (other, _), ..] => {
                Err(Error::unsupported(format!("the weight is quantised with two scales: `{one}` and `{other}`")))
            }
        }
    }
}

/// The module whose weight it is.
fn layer(key: &str) -> Option<&str> {
    key.strip_suffix(".weight")
}

/// What the headers say of the format of each layer.
fn formats(files: &Sharded) -> (Formats, Option<String>) {
    let mut out = Formats::new();
    for shard in &files.shards {
        let Some(text) = shard.contents.metadata.get(METADATA) else { continue };
        match json::parse_object(text) {
            Ok(map) => {
                let layers = map.get("layers").and_then(Value::as_object).into_iter().flatten();
                out.extend(layers.filter_map(|(layer, about)| Some((layer.clone(), format_in(about)?))));
            }
            Err(e) => return (out, Some(e.to_string())),
        }
    }
    (out, None)
}

fn format_in(about: &Value) -> Option<String> {
    about.get("format")?.as_str().map(str::to_string)
}

/// The format in a `comfy_quant` tensor.
fn described(text: &Tensor) -> Result<String> {
    let bytes = text.bytes.as_slice();
    let odd = |what: String| Error::malformed(format!("`comfy_quant` beside it cannot be read: {what}"));
    if bytes.len() > limits::SCALED_TEXT_BYTES {
        let found = format!("{} bytes of `comfy_quant` beside it", bytes.len());
        return Err(Error::limit(found, limits::SCALED_TEXT_BYTES));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| odd(e.to_string()))?;
    let map = json::parse_object(text).map_err(|e| odd(e.to_string()))?;
    format_in(&Value::Object(map)).ok_or_else(|| odd("no `format`".to_string()))
}

/// The description in a header without the layers that are 8-bit floats no longer; none where nothing is left of it.
pub fn without(text: &str, gone: &dyn Fn(&str) -> bool) -> Result<Option<String>> {
    let mut map = json::parse_object(text).at_key(METADATA)?;
    let Some(Value::Object(layers)) = map.get_mut("layers") else { return Ok(None) };
    layers.retain(|layer, _| !gone(layer));
    if layers.is_empty() {
        return Ok(None);
    }
    Ok(Some(Value::Object(map).to_string()))
}

impl BaseModel {
    /// How the weights are quantised, as the config names it, where they cannot be used as they are.
    pub fn closed_by(&self) -> Option<&str> {
        self.quantisation().filter(|_| !self.scaled().is_understood())
    }

    /// The format that a tensor is said to be quantised in, whatever its type.
    pub fn format_of(&self, key: &str) -> Option<String> {
        let layer = layer(key)?;
        let described = self.tensor(&format!("{layer}.comfy_quant")).and_then(|(_, text)| described(text).ok());
        described.or_else(|| self.scaled().formats.get(layer).cloned())
    }

    /// The numbers that a tensor stands for: itself, unless it has scales; then their products in f32, made when they
    /// are wanted.
    pub fn numbers(&self, key: &str) -> Result<Option<Tensor>> {
        let Some((_, tensor)) = self.tensor(key) else { return Ok(None) };
        let Some(scales) = self.scaled().of(key)? else { return Ok(Some(tensor.clone())) };
        let dtype = tensor.dtype;
        let make = move |stored: &[u8]| {
            let mut values = vec![0f32; stored.len()];
            let mut out = vec![0u8; 4 * stored.len()];
            if cast::widen(dtype, stored, &mut values).is_ok() {
                scales.multiply(0, &mut values);
                out.as_chunks_mut::<4>().0.iter_mut().zip(&values).for_each(|(out, v)| *out = v.to_le_bytes());
            }
            out
        };
        let bytes = Bytes::made(&tensor.bytes, 4 * tensor.elements(), make);
        Tensor::new(Dtype::F32, tensor.shape.clone(), bytes).map(Some)
    }
}
