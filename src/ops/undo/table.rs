//! The table of a record's pieces: for each the hash after, the checksum before, and where its corrections lie.

use std::ops::Range;

use super::manifest::damaged;
use crate::error::Result;
use crate::tensor::hash::{Checksum, Hash};

/// Bytes of a row: a hash, a checksum and a length.
const ROW: usize = 32 + 16 + 8;
/// Stands for a hash that is not there.
const NONE: [u8; 32] = [0; 32];

/// One piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PieceRow {
    /// Hash of its bytes in the merged model.
    pub merged: Option<Hash>,
    /// Checksum of its bytes in the base, where they are others.
    pub base: Option<Checksum>,
    /// Bytes of its corrections.
    pub packed: usize,
}

/// All pieces, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<PieceRow>,
    /// Where the corrections of each begin.
    starts: Vec<usize>,
}

impl Table {
    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Sets the row of piece `number`.
    pub fn set(&mut self, number: usize, row: PieceRow) {
        if self.rows.len() <= number {
            self.rows.resize(number + 1, PieceRow::default());
        }
        self.rows[number] = row;
    }

    /// One more at the end.
    pub fn push(&mut self, row: PieceRow) {
        self.rows.push(row);
    }

    /// The row of a piece, and where its corrections lie; an error where there is none of this number.
    pub fn get(&self, number: usize) -> Result<(PieceRow, Range<usize>)> {
        let row = self.rows.get(number).ok_or_else(|| damaged(&format!("no piece {number}")))?;
        let start = self.starts.get(number).copied().unwrap_or(0);
        Ok((*row, start..start + row.packed))
    }

    /// The bytes of the section.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROW * self.rows.len());
        for row in &self.rows {
            out.extend(row.merged.map_or(NONE, |h| h.0));
            out.extend(row.base.map_or([0; 16], |c| c.0));
            out.extend((row.packed as u64).to_le_bytes());
        }
        out
    }

    /// The table in such bytes, with corrections of so many bytes in all.
    pub fn parse(bytes: &[u8], corrections: usize) -> Result<Table> {
        let (rows, rest) = bytes.as_chunks::<ROW>();
        if !rest.is_empty() {
            return Err(damaged("the table of pieces ends within one"));
        }
        let mut table = Table::default();
        let mut start = 0usize;
        for row in rows {
            let (hash, rest) = row.split_at(32);
            let (checksum, packed) = rest.split_at(16);
            let hash: [u8; 32] = hash.try_into().unwrap_or(NONE);
            let checksum: [u8; 16] = checksum.try_into().unwrap_or_default();
            let packed = u64::from_le_bytes(packed.try_into().unwrap_or_default());
            let end = usize::try_from(packed).ok().and_then(|n| start.checked_add(n)).filter(|&end| end <= corrections);
            let end = end.ok_or_else(|| damaged("corrections beyond their section"))?;
            let merged = (hash != NONE).then_some(Hash(hash));
            let base = (checksum != [0; 16]).then_some(Checksum(checksum));
            table.rows.push(PieceRow { merged, base, packed: end - start });
            table.starts.push(start);
            start = end;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back() {
        let mut table = Table::default();
        let row =
            |n: usize| PieceRow { merged: Some(Hash::of(b"m")), base: (n > 0).then(|| Checksum::of(b"b")), packed: n };
        table.set(1, row(3));
        table.set(0, row(0));
        table.push(row(4));
        let again = Table::parse(&table.bytes(), 7).unwrap();
        assert_eq!((again.len(), again.get(1).unwrap(), again.get(2).unwrap()), (3, (row(3), 0..3), (row(4), 3..7)));
        assert!(again.get(3).is_err());
        assert!(Table::parse(&table.bytes(), 6).is_err());
        assert!(Table::parse(&table.bytes()[1..], 7).is_err());
    }
}
