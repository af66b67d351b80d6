//! A safetensors file against the reference implementation: the same verdict, and the same tensors. The exceptions are those of
//! `docs/robustness.md`: a key that stands twice, and limits.

use lora_tool::container::SafetensorsFile;
use lora_tool::error::Kind;
use safetensors::SafeTensors;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    let bytes = support::safetensors(data);
    let place = Place::new();
    let ours = SafetensorsFile::open(&place.put("model.safetensors", &bytes));
    let theirs = SafeTensors::deserialize(&bytes);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.tensors.len(), theirs.len());
            for (name, view) in theirs.tensors() {
                let tensor = ours.tensors.get(&name).expect("a tensor of the same name");
                assert_eq!((tensor.dtype, tensor.shape.dims()), (view.dtype(), view.shape()), "{name}");
                assert_eq!(tensor.bytes.as_slice(), view.data(), "{name}");
            }
        }
        (Ok(_), Err(e)) => panic!("accepted, and the reference says: {e}"),
        (Err(e), Ok(_)) => {
            let is_known = e.kind() == Kind::Limit || e.what().contains("stands twice");
            assert!(is_known, "the reference accepts what is refused: {e}");
        }
        (Err(_), Err(_)) => {}
    }
}
