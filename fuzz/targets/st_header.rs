//! A safetensors file, or the text of its header: what is accepted lies inside the file, and can be written again.

use lora_tool::container::{Entry, SafetensorsFile, parse_head};
use lora_tool::layout;
use lora_tool::model::BaseModel;
use lora_tool::ops::inspect;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    let place = Place::new();
    let path = place.put("model.safetensors", &support::safetensors(data));
    let Ok(file) = SafetensorsFile::open(&path) else { return };
    let all = file.file.as_slice().len();
    let data: usize = file.tensors.values().map(|t| t.bytes.len()).sum();
    assert_eq!(file.head.len() + data, all, "tensors and header are all of the file");
    let manifest = file.manifest();
    let head = manifest.head().expect("what was read can be written");
    let (entries, metadata) = parse_head(&head).expect("what was written can be read");
    let entry = |(name, tensor): (&String, &lora_tool::tensor::Tensor)| Entry {
        name: name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    };
    let by_name = |mut all: Vec<Entry>| {
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    };
    assert_eq!(by_name(entries), by_name(file.tensors.iter().map(entry).collect()));
    assert_eq!(metadata, file.metadata);
    if let Ok(base) = BaseModel::open(&path) {
        let _ = inspect::base::summarise(&base);
    }
    if let Ok(opened) = layout::open(&path, None) {
        support::look_at(&opened);
    }
}
