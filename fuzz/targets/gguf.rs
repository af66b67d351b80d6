//! A GGUF file: what is accepted can be written, and is the same when it is read again.

use lora_tool::container::gguf::{self, GgufFile};
use lora_tool::layout;
use lora_tool::tensor::Bytes;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    let Ok(file) = GgufFile::parse(&Bytes::from(data.to_vec())) else { return };
    if file.others.is_empty()
        && let Ok(head) = gguf::head(&file.metadata, &file.tensors)
    {
        let mut out = Vec::new();
        gguf::write(&mut out, &head, &file.tensors).expect("written to memory");
        let again = GgufFile::parse(&Bytes::from(out)).expect("what was written can be read");
        // By text: values may be NaN.
        assert_eq!(format!("{:?}", again.metadata), format!("{:?}", file.metadata));
        assert!(again.tensors.keys().eq(file.tensors.keys()));
        for (ours, theirs) in again.tensors.values().zip(file.tensors.values()) {
            assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape));
            assert_eq!(ours.bytes.as_slice(), theirs.bytes.as_slice());
        }
    }
    let place = Place::new();
    if let Ok(opened) = layout::open(&place.put("adapter.gguf", data), None) {
        support::look_at(&opened);
    }
}
