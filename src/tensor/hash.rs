//! Content hashes: BLAKE3 (<https://github.com/BLAKE3-team/BLAKE3-specs>), 32 bytes. Checksums: XXH3
//! (<https://github.com/Cyan4973/xxHash>), 16 bytes.

use std::fmt;

use super::{StateDict, Tensor};

/// The BLAKE3 hash of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }

    /// Of what a text of 64 hexadecimal digits says; none for any other text.
    pub fn from_hex(text: &str) -> Option<Hash> {
        blake3::Hash::from_hex(text).ok().map(|hash| Hash(*hash.as_bytes()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The XXH3 checksum of some bytes: for what is calculated again from parts whose hashes agree, several times as fast.
/// It finds mistakes, not forgeries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub [u8; 16]);

impl Checksum {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum(twox_hash::XxHash3_128::oneshot(bytes).to_le_bytes())
    }
}

/// A hash that is fed piece by piece. Texts and lists go in with their length before them, so that no two different
/// sequences look alike.
#[derive(Clone, Default)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// Bytes as they stand.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Hasher {
        self.0.update(bytes);
        self
    }

    /// A number.
    pub fn number(&mut self, value: u64) -> &mut Hasher {
        self.raw(&value.to_le_bytes())
    }

    /// A text.
    pub fn text(&mut self, text: &str) -> &mut Hasher {
        self.number(text.len() as u64).raw(text.as_bytes())
    }

    /// Name, element type and shape of a tensor.
    pub fn form(&mut self, name: &str, tensor: &Tensor) -> &mut Hasher {
        self.text(name).text(&tensor.dtype.to_string()).number(tensor.shape.rank() as u64);
        for &extent in tensor.shape.dims() {
            self.number(extent as u64);
        }
        self
    }

    /// The hash of all that went in.
    pub fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// The hash of some tensors: names, types, shapes and bytes, in the order of the names.
pub fn of_tensors(tensors: &StateDict) -> Hash {
    let mut names: Vec<_> = tensors.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let mut all = Hasher::default();
    for (name, tensor) in names {
        all.form(name, tensor).raw(tensor.bytes.as_slice());
        tensor.bytes.release(0..tensor.bytes.len());
    }
    all.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    /// The first test vector of the BLAKE3 team: no input.
    #[test]
    fn the_hash_is_blake3() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Hash::of(b"").to_string(), empty);
        assert_eq!(Hash::from_hex(empty), Some(Hash::of(b"")));
        assert_eq!(Hash::from_hex("af"), None);
    }

    #[test]
    fn order_does_not_count_and_everything_else_does() {
        let tensor = |v: f32| Tensor::from_f32(Dtype::F32, [1], &[v]).unwrap();
        let dict =
            |pairs: &[(&str, f32)]| -> StateDict { pairs.iter().map(|(k, v)| (k.to_string(), tensor(*v))).collect() };
        let one = of_tensors(&dict(&[("a", 1.0), ("b", 2.0)]));
        assert_eq!(one, of_tensors(&dict(&[("b", 2.0), ("a", 1.0)])));
        assert_ne!(one, of_tensors(&dict(&[("a", 2.0), ("b", 1.0)])));
        let mut other = dict(&[("a", 1.0), ("b", 2.0)]);
        other["a"].shape = Shape::new([1, 1]);
        assert_ne!(one, of_tensors(&other));
    }
}
