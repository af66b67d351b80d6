//! Small builders of files, good and bad: the bytes, with nothing checked.

use super::safetensors;

/// A tensor for [`tensors`]: name, dtype, shape, bytes.
pub type Entry = (String, &'static str, Vec<usize>, Vec<u8>);

/// A model of two layers. Extents differ from each other, so that whatever is turned is seen.
pub const BASE_CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":8,
"intermediate_size":12,"num_hidden_layers":2,"num_attention_heads":2,"num_key_value_heads":1,"vocab_size":16}"#;

/// A safetensors file of these tensors, one after the other.
pub fn tensors(entries: &[Entry]) -> Vec<u8> {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, shape, bytes) in entries {
        let at = data.len();
        data.extend(bytes);
        let end = data.len();
        let name = serde_json::Value::from(name.as_str());
        header.push(format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
    }
    safetensors(format!("{{{}}}", header.join(",")), data)
}

/// Numbers of either sign, the same for the same name.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    let start = name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    (0..count as u32).map(|i| (start.wrapping_add(i * 37) % 61) as f32 / 32.0 - 0.95).collect()
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// An F32 tensor with values of its own.
pub fn f32_tensor(name: impl Into<String>, shape: &[usize]) -> Entry {
    let name = name.into();
    let bytes = f32s(&values(&name, shape.iter().product()));
    (name, "F32", shape.to_vec(), bytes)
}

/// Linear layers of one layer of the base: name, outputs, inputs.
const LAYERS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 8, 8),
    ("self_attn.k_proj", 4, 8),
    ("self_attn.v_proj", 4, 8),
    ("self_attn.o_proj", 8, 8),
    ("mlp.gate_proj", 12, 8),
    ("mlp.up_proj", 12, 8),
    ("mlp.down_proj", 8, 12),
];

/// Tensors of the base.
pub fn base_entries() -> Vec<Entry> {
    let mut out = vec![f32_tensor("model.embed_tokens.weight", &[16, 8])];
    for layer in 0..2 {
        for (name, rows, cols) in LAYERS {
            out.push(f32_tensor(format!("model.layers.{layer}.{name}.weight"), &[rows, cols]));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            out.push(f32_tensor(format!("model.layers.{layer}.{norm}.weight"), &[8]));
        }
    }
    out.push(f32_tensor("model.norm.weight", &[8]));
    out.push(f32_tensor("lm_head.weight", &[16, 8]));
    out
}

pub fn base() -> Vec<u8> {
    tensors(&base_entries())
}

/// A module of the good adapter, and its name in PEFT's keys.
pub const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";
/// Another.
pub const K: &str = "base_model.model.model.layers.1.self_attn.k_proj";

/// Both factors of a module, of rank 2.
pub fn pair(module: &str, rows: usize, cols: usize) -> Vec<Entry> {
    vec![
        f32_tensor(format!("{module}.lora_A.weight"), &[2, cols]),
        f32_tensor(format!("{module}.lora_B.weight"), &[rows, 2]),
    ]
}

pub fn good_entries() -> Vec<Entry> {
    [pair(Q, 8, 8), pair(K, 4, 8)].concat()
}

/// Config and tensors of a good adapter.
pub fn good_adapter() -> (String, Vec<u8>) {
    (config(""), tensors(&good_entries()))
}

/// A config of PEFT with these fields beside type, rank and alpha.
pub fn config(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { "," };
    format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj","k_proj"]{comma}{fields}}}"#)
}
