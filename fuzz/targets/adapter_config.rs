//! PEFT's config beside tensors that are in order: what it makes of them can be looked at and written, and what is written can
//! be read again.

use lora_tool::layout::{self, Given, lint};

use super::support::{self, Part, Place, file_of, floats};

pub fn one(data: &[u8]) {
    let place = Place::new();
    place.put("adapter/adapter_config.json", data);
    place.put("adapter/adapter_model.safetensors", &tensors());
    let folder = place.join("adapter");
    if let Ok(mut looked) = lint::look(&folder, None, Given::default()) {
        looked.findings.truncate(1);
    }
    let Ok(opened) = layout::open(&folder, None) else { return };
    support::look_at(&opened);
    let layout = layout::named("peft").unwrap();
    if let Ok((draft, _)) = layout.write(&opened.adapter) {
        let out = place.join("written");
        layout::save(&draft, &out, &[], false, false).expect("what can be written can be saved");
        layout::open(&out, Some("peft")).expect("what was written can be read");
    }
}

/// Pairs of two modules in two layers, an embedding, and a whole tensor.
fn tensors() -> Vec<u8> {
    let values = floats(&[0.5, -1.0, 2.0, 0.25, 1.0, -0.5, 0.125, 1.5]);
    let mut names = Vec::new();
    for layer in 0..2 {
        for module in ["self_attn.q_proj", "mlp.up_proj"] {
            names.push((format!("base_model.model.model.layers.{layer}.{module}.lora_A.weight"), vec![2, 4]));
            names.push((format!("base_model.model.model.layers.{layer}.{module}.lora_B.weight"), vec![4, 2]));
        }
    }
    let parts: Vec<Part> =
        names.iter().map(|(name, shape)| (name.as_str(), "F32", shape.clone(), values.clone())).collect();
    file_of(&parts)
}
