//! A pickle, in the archive that `torch.save` writes, with two storages of 64 bytes.

use lora_tool::container::torch;
use lora_tool::layout;
use lora_tool::tensor::MappedFile;

use super::support::{self, Place, zip};

pub fn one(data: &[u8]) {
    let storage: Vec<u8> = (0..64).collect();
    let members: [(&str, &[u8]); 5] = [
        ("archive/data.pkl", data),
        ("archive/byteorder", b"little"),
        ("archive/data/0", &storage),
        ("archive/data/1", &storage),
        ("archive/version", b"3\n"),
    ];
    let place = Place::new();
    let path = place.put("adapter_model.bin", &zip(&members));
    let file = MappedFile::open(&path).unwrap();
    if let Ok((tensors, _)) = torch::read_with_rest(&file) {
        let mut out = Vec::new();
        torch::write(&mut out, &tensors, None).expect("what was read can be written");
        let path = place.put("again.bin", &out);
        let (again, _) =
            torch::read_with_rest(&MappedFile::open(&path).unwrap()).expect("what was written can be read");
        assert!(again.keys().eq(tensors.keys()));
        for (ours, theirs) in again.values().zip(tensors.values()) {
            assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape));
            assert_eq!(ours.bytes.as_slice(), theirs.bytes.as_slice());
        }
    }
    if let Ok(opened) = layout::open(&path, None) {
        support::look_at(&opened);
    }
}
