//! The fingerprint of a base model: one hash that is the same for the same tensors, however they are dealt out to files,
//! and that costs next to no reading, whatever the size. It tells models apart that came about differently; it is no
//! proof that two are the same, since most bytes do not go into it.
//!
//! BLAKE3 over a text, then for each tensor in the order of the bytes of its name: name, element type and
//! shape (as [`Hasher::form`] puts them), and of those that are sampled some bytes. Written down for others in
//! `docs/numerics.md`; `fixtures/make/fingerprint.py` is the same once more.

use std::ops::Range;

use crate::container::Sharded;
use crate::tensor::hash::Hasher;
use crate::tensor::{Bytes, Hash, Tensor};

/// The first thing that goes in. Another definition has another text.
const FORM: &str = "lora-tool base fingerprint 1";
/// Most tensors that are sampled. Dense models have fewer; those with an entry for each expert may have 100,000, and a
/// disk answers a hundred questions in the time that one of 2 MB takes.
const SAMPLED: usize = 4096;
/// Bytes of each of the three parts of a sample.
const PART: usize = 1024;
/// Tensors whose samples are announced before the first of them is read: a disk answers many questions at once faster
/// than one after the other.
const AHEAD: usize = 256;

/// Of the tensors in these files.
pub fn of(files: &Sharded) -> Hash {
    let mut tensors: Vec<(&str, &Tensor)> = files.tensors().map(|(_, name, t)| (name.as_str(), t)).collect();
    tensors.sort_unstable_by_key(|(name, _)| *name);
    let sampled = sampled(&tensors);
    let mut all = Hasher::default();
    all.text(FORM);
    for (some, sampled) in tensors.chunks(AHEAD).zip(sampled.chunks(AHEAD)) {
        let both = some.iter().zip(sampled);
        both.clone().filter(|(_, sampled)| **sampled).for_each(|((_, tensor), _)| announce(&tensor.bytes));
        for ((name, tensor), sampled) in both {
            all.form(name, tensor);
            if *sampled {
                take(&tensor.bytes, &mut all);
            }
        }
    }
    all.finish()
}

/// Which of them are sampled: those whose names have the smallest hashes, so that no kind of tensor is left out as a
/// whole.
fn sampled(tensors: &[(&str, &Tensor)]) -> Vec<bool> {
    if tensors.len() <= SAMPLED {
        return vec![true; tensors.len()];
    }
    let mut hashes: Vec<_> = tensors.iter().enumerate().map(|(i, (name, _))| (Hash::of(name.as_bytes()), i)).collect();
    hashes.select_nth_unstable(SAMPLED);
    let mut out = vec![false; tensors.len()];
    hashes.iter().take(SAMPLED).for_each(|(_, i)| out[*i] = true);
    out
}

/// Which of so many bytes are the sample: all where they are few, else the first, the middle and the last ones.
fn sample(len: usize) -> [Range<usize>; 3] {
    if len <= 3 * PART {
        return [0..len, len..len, len..len];
    }
    let middle = (len - PART) / 2;
    [0..PART, middle..middle + PART, len - PART..len]
}

fn announce(bytes: &Bytes) {
    sample(bytes.len()).into_iter().filter(|part| !part.is_empty()).for_each(|part| bytes.announce(part));
}

fn take(bytes: &Bytes, all: &mut Hasher) {
    for part in sample(bytes.len()) {
        all.raw(&bytes.as_slice()[part]);
    }
    bytes.release(0..bytes.len());
}
