//! NumPy's archive of arrays; an input that is no zip archive is the only member of one.

use lora_tool::container::npz;
use lora_tool::layout;
use lora_tool::tensor::MappedFile;

use super::support::{self, Place, zip};

pub fn one(data: &[u8]) {
    let name = "model.layers.0.self_attn.q_proj.lora_a.npy";
    let bytes = if data.starts_with(b"PK") { data.to_vec() } else { zip(&[(name, data)]) };
    let place = Place::new();
    place.put("adapter_config.json", br#"{"lora_parameters": {"rank": 2, "scale": 2.0}, "num_layers": 1}"#);
    let path = place.put("adapters.npz", &bytes);
    if let Ok(arrays) = npz::read(&MappedFile::open(&path).unwrap()) {
        let all: usize = arrays.values().map(|array| array.bytes.len()).sum();
        assert!(all <= bytes.len(), "arrays lie in the file, each by itself");
    }
    if let Ok(opened) = layout::open(place.path(), None) {
        support::look_at(&opened);
    }
}
