//! An adapter made of the input, written in every layout that takes it and read back: the same products on the same modules.

use std::collections::BTreeMap;

use half::{bf16, f16};
use lora_tool::adapter::{Adapter, Delta, Severity};
use lora_tool::layout;

use super::support::{Bits, Part, Place, file_of};

const MODULES: [(&str, bool, bool); 7] = [
    ("self_attn.q_proj", false, false),
    ("self_attn.k_proj", false, false),
    ("self_attn.v_proj", false, false),
    ("self_attn.o_proj", false, false),
    ("mlp.gate_proj", false, true),
    ("mlp.up_proj", false, true),
    ("mlp.down_proj", true, false),
];
/// Widths of the model, and of its feed-forward layers. Two heads of four.
const WIDTH: usize = 8;
const INNER: usize = 12;

pub fn one(data: &[u8]) {
    let place = Place::new();
    let folder = made(&place, data);
    let opened = layout::open(&folder, None).expect("an adapter in order");
    let wanted = products(&opened.adapter).expect("plain LoRA");
    for layout in layout::LAYOUTS.iter().filter(|layout| layout.can_write()) {
        let Ok((draft, notes)) = layout.write(&opened.adapter) else { continue };
        if notes.iter().any(|note| note.severity == Severity::Lossy) {
            continue;
        }
        let name = layout.name();
        let out = place.join(name).join(if draft.texts.is_empty() { draft.tensor_file.as_str() } else { "folder" });
        std::fs::create_dir_all(place.join(name)).unwrap();
        layout::save(&draft, &out, &[], false, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        let again = layout::open(&out, Some(name)).unwrap_or_else(|e| panic!("{name}, written and read: {e}"));
        let found = products(&again.adapter).unwrap_or_else(|what| panic!("{name}: {what}"));
        compare(name, &wanted, &found);
    }
}

/// The adapter in PEFT's layout, with the config of a small llama beside it.
fn made(place: &Place, data: &[u8]) -> std::path::PathBuf {
    let mut bits = Bits::new(data);
    let layers = 1 + bits.below(2);
    let which = bits.byte() | 1; // at least one module
    let dtype = ["F32", "BF16", "F16"][bits.below(3)];
    let (rank, alpha) = (1 + bits.below(4), 1 + bits.below(32));
    let root = bits.below(4) == 3;
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for (i, (module, from_inner, to_inner)) in MODULES.iter().enumerate() {
            if which & (1 << i) == 0 {
                continue;
            }
            let path = format!("model.layers.{layer}.{module}");
            let about = bits.byte();
            let own = if about & 3 == 1 { 1 + usize::from(about >> 6) } else { rank };
            if own != rank {
                ranks.insert(path.clone(), own.into());
            }
            if about & 12 == 4 {
                alphas.insert(path.clone(), (1 + (about >> 4)).into());
            }
            let (inputs, outputs) = (if *from_inner { INNER } else { WIDTH }, if *to_inner { INNER } else { WIDTH });
            tensors.push((format!("base_model.model.{path}.lora_A.weight"), vec![own, inputs]));
            tensors.push((format!("base_model.model.{path}.lora_B.weight"), vec![outputs, own]));
        }
    }
    let names: Vec<String> = tensors.iter().map(|(name, _)| name.clone()).collect();
    let parts: Vec<Part> = names
        .iter()
        .zip(&tensors)
        .map(|(name, (_, shape))| {
            (name.as_str(), dtype, shape.clone(), values(&mut bits, dtype, shape.iter().product()))
        })
        .collect();
    let targets: Vec<_> = MODULES
        .iter()
        .enumerate()
        .filter(|(i, _)| which & (1 << i) != 0)
        .filter_map(|(_, m)| m.0.split('.').nth(1))
        .collect();
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "use_rslora": root,
        "target_modules": targets, "rank_pattern": ranks, "alpha_pattern": alphas,
    });
    let model = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": layers, "vocab_size": 16,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "max_position_embeddings": 32,
    });
    place.put("adapter/adapter_model.safetensors", &file_of(&parts));
    place.put("adapter/adapter_config.json", config.to_string().as_bytes());
    place.put("adapter/config.json", model.to_string().as_bytes());
    place.join("adapter")
}

/// Sixteenths, which every type holds.
fn values(bits: &mut Bits, dtype: &str, count: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..count {
        let value = f32::from(bits.byte() as i8) / 16.0;
        match dtype {
            "F32" => out.extend(value.to_le_bytes()),
            "BF16" => out.extend(bf16::from_f32(value).to_le_bytes()),
            _ => out.extend(f16::from_f32(value).to_le_bytes()),
        }
    }
    out
}

/// Of each module scale · B · A, and the sum of the sizes of its terms, element by element.
type Products = BTreeMap<String, Vec<(f64, f64)>>;

fn products(adapter: &Adapter) -> Result<Products, String> {
    let mut out = Products::new();
    for (path, target) in &adapter.targets {
        let [Delta::LowRank(delta)] = target.weight.as_slice() else { return Err(format!("{path:?}: no LoRA")) };
        let (a, b) = (delta.a.to_matrix().map_err(|e| e.to_string())?, delta.b.to_matrix().map_err(|e| e.to_string())?);
        let scale = delta.scale.factor(delta.rank());
        let mut all = Vec::with_capacity(b.nrows() * a.ncols());
        for row in 0..b.nrows() {
            for col in 0..a.ncols() {
                let terms = (0..a.nrows()).map(|k| scale * f64::from(b[[row, k]]) * f64::from(a[[k, col]]));
                all.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
            }
        }
        out.insert(path.as_str().to_string(), all);
    }
    Ok(out)
}

/// Layouts that hold no scale multiply it into a factor, which rounds: in bf16 by up to 2⁻⁸ of it.
fn compare(layout: &str, wanted: &Products, found: &Products) {
    // Where a layout wants every module of a layer, those that are missing are zeros, and the other way round.
    let is_zero = |all: &[(f64, f64)]| all.iter().all(|(value, _)| *value == 0.0);
    for (path, wanted) in wanted {
        let Some(found) = found.get(path) else {
            assert!(is_zero(wanted), "{layout}: {path} is gone");
            continue;
        };
        assert_eq!(found.len(), wanted.len(), "{layout}: {path}");
        for ((found, _), (wanted, size)) in found.iter().zip(wanted) {
            let tolerance = size * f64::powi(2.0, -7) + 1e-30;
            assert!((found - wanted).abs() <= tolerance, "{layout}: {path}: {found}, expected {wanted}");
        }
    }
    for (path, found) in found {
        assert!(wanted.contains_key(path) || is_zero(found), "{layout}: {path} came from nowhere");
    }
}
