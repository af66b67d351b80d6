//! Undo records: files from which a change of a model can be taken back.
//!
//! A record is a safetensors file of `U8` tensors, here called sections. The first, `corrections`, is as long as it
//! turns out to be and is written piece by piece while the model is; the others follow in a fixed order. The last,
//! `seal`, is the BLAKE3 hash of the head followed by the BLAKE3 hash of all data before it, so that a single altered
//! bit anywhere is noticed. What the sections mean is known to `ops::undo`; this is only the file.

mod reader;
pub mod residual;
mod writer;

pub use reader::Record;
pub use writer::RecordWriter;

use crate::tensor::Hash;
use crate::tensor::hash::Hasher;

/// What `__metadata__` says a record is.
pub const FORMAT: &str = "lora-tool undo record";
/// The version of the sections. A reader refuses every other.
pub const VERSION: &str = "2";
/// The section that is written piece by piece.
const CORRECTIONS: &str = "corrections";
/// The section that holds the hash of all else.
const SEAL: &str = "seal";
const SEAL_BYTES: usize = 32;

/// So many bytes of a file tell whether it is a record, as far as its beginning goes.
pub const BEGIN_BYTES: u64 = 128;

/// Whether a file that begins like this is a record.
pub fn begins(bytes: &[u8]) -> bool {
    let text = bytes.get(8..).unwrap_or_default();
    text.starts_with(b"{") && text.windows(FORMAT.len()).any(|part| part == FORMAT.as_bytes())
}

fn seal(head: &[u8], data: &Hash) -> Hash {
    Hasher::default().raw(head).raw(&data.0).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("lora-tool-undo-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    fn write(path: &std::path::Path) {
        let writer = RecordWriter::create(path, &["one", "two"]).unwrap();
        // Pieces come in any order and lie in their own.
        for (number, blob) in [(1, &b"second"[..]), (0, b"first"), (2, b""), (3, b"last")] {
            writer.put(number, blob).unwrap();
        }
        writer.finish(&[b"section one".to_vec(), Vec::new()], true).unwrap();
    }

    #[test]
    fn what_is_written_is_read() {
        let path = scratch("round");
        write(&path);
        assert!(begins(&std::fs::read(&path).unwrap()[..usize::try_from(BEGIN_BYTES).unwrap()]));
        let record = Record::open(&path).unwrap();
        assert_eq!(record.corrections().as_slice(), b"firstsecondlast");
        assert_eq!(record.section("one").unwrap().as_slice(), b"section one");
        assert!(record.section("two").unwrap().is_empty());
        assert!(record.section("three").is_err());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn altered_bits_are_noticed() {
        let path = scratch("bits");
        write(&path);
        let good = std::fs::read(&path).unwrap();
        for bit in (0..8 * good.len()).step_by(11) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(Record::open(&path).is_err(), "bit {bit}");
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Record::open(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
