//! A whole file of PyTorch's: the zip archive, or the row of pickles before it.

use lora_tool::container::torch;
use lora_tool::layout;
use lora_tool::tensor::MappedFile;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    let place = Place::new();
    let path = place.put("adapter_model.bin", data);
    let file = MappedFile::open(&path).unwrap();
    if let Ok((tensors, _)) = torch::read_with_rest(&file) {
        for tensor in tensors.values() {
            assert!(tensor.bytes.len() <= data.len() + lora_tool::limits::PICKLE_COPY_BYTES);
        }
    }
    if let Ok(opened) = layout::open(&path, None) {
        support::look_at(&opened);
    }
}
