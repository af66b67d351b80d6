//! A place in a GGUF header. Whatever is read is checked against what is left first, and errors name the field.

use crate::error::{Error, Result};

/// Bytes and how far they have been read.
pub struct Cursor<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `all`.
    pub fn new(all: &'a [u8]) -> Cursor<'a> {
        Cursor { all, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What was read since `from`.
    pub fn since(&self, from: usize) -> &'a [u8] {
        self.all.get(from..self.at).unwrap_or_default()
    }

    fn left(&self) -> &'a [u8] {
        self.all.get(self.at..).unwrap_or_default()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8]> {
        let left = self.left();
        let taken = left.get(..len).ok_or_else(|| {
            Error::malformed(format!("{field} of {len} bytes, but only {} are left of the file", left.len()))
                .hint("the download may have been cut short; compare the size with its source")
        })?;
        self.at += len;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, field)?;
        Ok(bytes.first_chunk().copied().unwrap_or([0; N])) // `take` gave exactly N
    }

    /// A number of 4 bytes.
    pub fn u32(&mut self, field: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// A number of 8 bytes.
    pub fn u64(&mut self, field: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A number of things that take at least `least` bytes each, and of which there may be `most`.
    pub fn count(&mut self, least: usize, most: usize, field: &str) -> Result<usize> {
        let number = self.u64(field)?;
        let left = self.left().len();
        match usize::try_from(number).ok().filter(|n| *n <= left / least.max(1)) {
            None => Err(Error::malformed(format!("{field} {number}, more than the {left} bytes left can hold"))),
            Some(n) if n > most => Err(Error::limit(format!("{field} {n}"), most)),
            Some(n) => Ok(n),
        }
    }

    /// A length and so many bytes of text.
    pub fn text(&mut self, most: usize, field: &str) -> Result<&'a str> {
        let len = self.count(1, most, &format!("{field}: length"))?;
        let bytes = self.take(len, field)?;
        std::str::from_utf8(bytes)
            .map_err(|e| Error::malformed(format!("{field} is not UTF-8 at byte {}", e.valid_up_to())))
    }
}
