//! A pickle in the archive that `torch.save` writes. In front of it stand the sizes of the archive's storages, as a byte with
//! their number and two bytes for each.

use lora_tool::container::torch;
use lora_tool::layout;
use lora_tool::tensor::MappedFile;

use super::support::{self, Bits, Place, zip};

const MOST_STORAGES: usize = 16;

pub fn one(data: &[u8]) {
    let mut bits = Bits::new(data);
    let count = bits.below(MOST_STORAGES + 1);
    let storages: Vec<(String, Vec<u8>)> =
        (0..count).map(|n| (format!("archive/data/{n}"), vec![0x3c; usize::from(bits.two())])).collect();
    let pickle = data.get(1 + 2 * count..).unwrap_or_default();
    let mut members: Vec<(&str, &[u8])> = vec![("archive/data.pkl", pickle), ("archive/byteorder", b"little")];
    members.extend(storages.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    members.push(("archive/version", b"3\n"));
    let place = Place::new();
    let path = place.put("adapter_model.bin", &zip(&members));
    let file = MappedFile::open(&path).unwrap();
    if let Ok((tensors, _)) = torch::read_with_rest(&file) {
        let mut out = Vec::new();
        if torch::write(&mut out, &tensors, None).is_ok() {
            let path = place.put("again.bin", &out);
            let again = torch::read_with_rest(&MappedFile::open(&path).unwrap());
            let (again, _) = again.expect("what was written can be read");
            assert!(again.keys().eq(tensors.keys()));
            for (ours, theirs) in again.values().zip(tensors.values()) {
                assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape));
                assert_eq!(ours.bytes.as_slice(), theirs.bytes.as_slice());
            }
        }
    }
    if let Ok(opened) = layout::open(&path, None) {
        support::look_at(&opened);
    }
}
