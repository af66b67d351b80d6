//! The fingerprint of a base model: one hash that is the same for the same tensors, however they are dealt out to files,
//! and that takes next to no reading. It tells models apart that were made differently; it is no proof that two are the
//! same, since most bytes do not go into it.
//!
//! BLAKE3 over the text [`FORM`], then for each tensor in the order of the bytes of its name: name, element type, shape
//! (as [`Hasher::form`] puts them) and a sample of its bytes. Written down for others in `docs/numerics.md`.

use std::ops::Range;

use crate::container::Sharded;
use crate::tensor::hash::Hasher;
use crate::tensor::{Bytes, Hash, Tensor};

/// The first thing that goes in. Another definition has another text.
const FORM: &str = "lora-tool base fingerprint 1";
/// Bytes of each of the three parts of a sample.
const PART: usize = 1024;
/// Tensors whose samples are announced before the first of them is read: a disk answers many questions at once faster
/// than one after the other.
const AHEAD: usize = 256;

/// Of the tensors in these files.
pub fn of(files: &Sharded) -> Hash {
    let mut tensors: Vec<(&String, &Tensor)> = files.tensors().map(|(_, name, tensor)| (name, tensor)).collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    let mut all = Hasher::default();
    all.text(FORM);
    for some in tensors.chunks(AHEAD) {
        for (_, tensor) in some {
            announce(&tensor.bytes);
        }
        for (name, tensor) in some {
            all.form(name, tensor);
            for part in sample(tensor.bytes.len()) {
                all.raw(&tensor.bytes.as_slice()[part]);
            }
            tensor.bytes.release(0..tensor.bytes.len());
        }
    }
    all.finish()
}

/// Which of so many bytes go in: all where they are few, else the first, the middle and the last ones.
fn sample(len: usize) -> [Range<usize>; 3] {
    if len <= 3 * PART {
        return [0..len, len..len, len..len];
    }
    let middle = (len - PART) / 2;
    [0..PART, middle..middle + PART, len - PART..len]
}

fn announce(bytes: &Bytes) {
    // Small tensors lie beside one another, where the kernel reads ahead by itself.
    if bytes.len() > 3 * PART {
        sample(bytes.len()).into_iter().for_each(|part| bytes.announce(part));
    }
}
