//! Any set of keys with shapes, as an adapter and as a checkpoint: a line a tensor, its name and behind a tab its extents.

use std::collections::BTreeMap;

use lora_tool::layout::{self, Given, Source};
use lora_tool::names::Index;
use lora_tool::tensor::{Bytes, Dtype, MappedFile, Shape, StateDict, Tensor};

use super::support::{self, Place};

/// Extents and elements that a line may ask for, and lines that are looked at.
const MOST: usize = 64;
const MOST_ELEMENTS: usize = 1 << 10;
const MOST_LINES: usize = 200;

pub fn one(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tensors: StateDict = text.lines().take(MOST_LINES).map(tensor).collect();
    let shapes = || tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.dims().to_vec()));
    // One model a run: compiling its rules takes longer than all the rest.
    let types: &[&str] = [&[][..], &["llama"], &["mixtral"], &["qwen2_vl"]][data.len() % 4];
    let types: Vec<String> = types.iter().map(ToString::to_string).collect();
    let index = Index::new(shapes(), &types);
    let _ = index.memory();
    for name in tensors.keys() {
        let _ = index.find(name);
        let _ = index.find(name.trim_end_matches(".weight"));
    }
    let _ = tensors.keys().next().map(|name| index.nearest(name));
    let place = Place::new();
    let source = Source {
        path: place.path().to_path_buf(),
        tensor_file: place.join("adapter.safetensors"),
        file: MappedFile::open(&place.put("adapter.safetensors", b"")).unwrap(),
        shards: Vec::new(),
        tensors,
        metadata: Vec::new(),
        other_values: Vec::new(),
        gguf: None,
        config: None,
        settings: BTreeMap::new(),
        given: Given { base: None, alpha: Some(4.0) },
    };
    if let Ok(opened) = layout::open_source(source, None) {
        support::look_at(&opened);
    }
}

/// A tensor of halves.
fn tensor(line: &str) -> (String, Tensor) {
    let (name, extents) = line.split_once('\t').unwrap_or((line, "2,2"));
    let extents: Vec<usize> =
        extents.split(',').filter_map(|n| n.trim().parse().ok()).map(|n: usize| n.min(MOST)).collect();
    let shape =
        if extents.iter().product::<usize>() > MOST_ELEMENTS || extents.len() > 5 { vec![2, 2] } else { extents };
    let bytes = half::f16::from_f32(0.5).to_le_bytes().repeat(shape.iter().product());
    (name.to_string(), Tensor::new(Dtype::F16, Shape::new(shape), Bytes::from(bytes)).unwrap())
}
