//! The zip archives that `torch.save` writes: stored members, found by the central directory.
//!
//! Our own reader and not a general one, because a general one is lenient by design: of two members with one name
//! it keeps the last, it finds archives behind other text, it takes sizes from whichever of the two headers it looks
//! at first. Scanners for pickles have been deceived by each of these. Here the directory and the local headers have
//! to say the same, members may not overlap, and nothing may stand before or after the archive.
//!
//! Format: PKWARE, APPNOTE.TXT 6.3.10, sections 4.3 and 4.4; what PyTorch makes of it:
//! pytorch/pytorch:caffe2/serialize/inline_container.cc.

use std::ops::Range;

use indexmap::IndexMap;

use crate::error::{Context, Error, Result};
use crate::tensor::Bytes;

pub(super) const LOCAL: u32 = 0x0403_4b50;
pub(super) const CENTRAL: u32 = 0x0201_4b50;
pub(super) const END: u32 = 0x0605_4b50;
pub(super) const END_64: u32 = 0x0606_4b50;
pub(super) const END_64_LOCATOR: u32 = 0x0706_4b50;

const LOCAL_LEN: usize = 30;
const CENTRAL_LEN: usize = 46;
const END_LEN: usize = 22;
const END_64_LEN: usize = 56;
const END_64_LOCATOR_LEN: usize = 20;

/// Sizes follow the data, so that the local header may leave them out.
const FLAG_SIZES_FOLLOW: u16 = 1 << 3;
/// The name is UTF-8.
const FLAG_UTF8: u16 = 1 << 11;
/// Bytes whose checksum is formed at a time.
const PIECE: usize = 4 << 20;
/// A 32-bit field whose value stands in the 64-bit extra field.
pub(super) const IN_EXTRA: u32 = u32::MAX;

/// A member of the archive.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where its bytes lie in the file.
    pub range: Range<usize>,
    crc: u32,
}

/// Members by name, in the order of the directory.
#[derive(Debug)]
pub struct Archive<'a> {
    all: &'a [u8],
    members: IndexMap<&'a str, Member>,
}

impl<'a> Archive<'a> {
    /// Reads the directory and checks every local header against it.
    pub fn open(all: &'a [u8]) -> Result<Archive<'a>> {
        let directory = Directory::find(all)?;
        let mut members = IndexMap::new();
        let mut spans = Vec::new();
        let mut at = directory.range.start;
        while at < directory.range.end {
            let record = Record::read(all, at, directory.range.end)?;
            at = record.end;
            let name = record.name;
            let span = record.member(all, directory.range.start).at_key(name)?;
            let member = Member { range: span.end - record.size..span.end, crc: record.crc };
            spans.push((span.start, span.end, name));
            if members.insert(name, member).is_some() {
                return Err(Error::malformed("two members of this name in the archive").at_key(name));
            }
        }
        if members.len() as u64 != directory.count {
            let what = format!("{} members in the directory, its end says {}", members.len(), directory.count);
            return Err(Error::malformed(what));
        }
        refuse_overlap(spans)?;
        Ok(Archive { all, members })
    }

    /// The member of this name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.members.get(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.members.keys().copied()
    }

    /// Compares every member with its checksum. `place` gives the bytes of a range, whose pages are let go again.
    pub fn check(&self, place: impl Fn(Range<usize>) -> Result<Bytes>) -> Result<()> {
        for (name, member) in self.members.iter().filter(|(_, member)| member.crc != 0) {
            let bytes = place(member.range.clone()).at_key(*name)?;
            let mut hasher = crc32fast::Hasher::new();
            for start in (0..bytes.len()).step_by(PIECE) {
                let piece = start..bytes.len().min(start + PIECE);
                hasher.update(bytes.as_slice().get(piece.clone()).unwrap_or_default());
                bytes.release(piece);
            }
            member.compare(hasher.finalize()).at_key(*name)?;
        }
        Ok(())
    }

    /// The bytes of a small member, compared with their checksum. Zero stands for one that was not computed
    /// (`torch.serialization.set_crc32_options(False)`).
    pub fn checked(&self, name: &str) -> Result<Option<&'a [u8]>> {
        let Some(member) = self.get(name) else { return Ok(None) };
        let bytes = self.all.get(member.range.clone()).unwrap_or_default();
        member.compare(crc32fast::hash(bytes)).at_key(name)?;
        Ok(Some(bytes))
    }
}

impl Member {
    fn compare(&self, found: u32) -> Result<()> {
        if self.crc != 0 && self.crc != found {
            return Err(Error::malformed(format!("checksum {found:08x}, the archive says {:08x}", self.crc)));
        }
        Ok(())
    }
}

/// Where the central directory lies.
struct Directory {
    range: Range<usize>,
    count: u64,
}

impl Directory {
    fn find(all: &[u8]) -> Result<Directory> {
        let end_at = all.len().checked_sub(END_LEN).filter(|&at| u32_at(all, at) == Some(END));
        let end_at = end_at.ok_or_else(|| {
            Error::malformed("no end of a zip archive at the end of the file")
                .hint("the download may have been cut short; compare the size with its source")
        })?;
        let cut = || Error::malformed("the end of the zip archive is cut");
        let field16 = |at| u16_at(all, end_at + at).map(u64::from).ok_or_else(cut);
        let field32 = |at| u32_at(all, end_at + at).map(u64::from).ok_or_else(cut);
        let (disk, directory_disk) = (field16(4)?, field16(6)?);
        let (here, count, size, offset) = (field16(8)?, field16(10)?, field32(12)?, field32(16)?);
        let locator = end_at.checked_sub(END_64_LOCATOR_LEN).filter(|&at| u32_at(all, at) == Some(END_64_LOCATOR));
        let narrow = [here, count, size, offset];
        let (close, [here, count, size, offset]) = match locator {
            None => (end_at, narrow),
            Some(at) => Self::read_64(all, at, narrow)?,
        };
        if disk != 0 || directory_disk != 0 || here != count {
            return Err(Error::unsupported("a zip archive of several parts"));
        }
        let start = usize::try_from(offset)
            .ok()
            .filter(|start| usize::try_from(size).ok().and_then(|size| start.checked_add(size)) == Some(close));
        let start = start.ok_or_else(|| {
            Error::malformed(format!(
                "zip directory of {size} bytes at {offset}, expected it to end at {close}: something stands before or \
                 inside the archive"
            ))
        })?;
        Ok(Directory { range: start..close, count })
    }

    /// The 64-bit end record, which PyTorch writes as well: where it starts, and the same four fields. Those of the
    /// narrow record are equal or say that they are too narrow.
    fn read_64(all: &[u8], locator: usize, narrow: [u64; 4]) -> Result<(usize, [u64; 4])> {
        let bad = || Error::malformed("the 64-bit end of the zip archive is not where its locator says");
        let at = locator.checked_sub(END_64_LEN).ok_or_else(bad)?;
        let says = u64_at(all, locator + 8).ok_or_else(bad)?;
        if says != at as u64 || u32_at(all, at) != Some(END_64) || u32_at(all, locator + 4) != Some(0) {
            return Err(bad());
        }
        let field = |offset| u64_at(all, at + offset).ok_or_else(bad);
        let wide = [field(24)?, field(32)?, field(40)?, field(48)?];
        let limits = [u64::from(u16::MAX), u64::from(u16::MAX), u64::from(u32::MAX), u64::from(u32::MAX)];
        for ((narrow, wide), limit) in narrow.into_iter().zip(wide).zip(limits) {
            if narrow != limit && narrow != wide {
                return Err(Error::malformed(format!("the two ends of the zip archive say {narrow} and {wide}")));
            }
        }
        Ok((at, wide))
    }
}

/// One entry of the directory.
struct Record<'a> {
    name: &'a str,
    flags: u16,
    crc: u32,
    size: usize,
    header: usize,
    end: usize,
}

impl<'a> Record<'a> {
    fn read(all: &'a [u8], at: usize, limit: usize) -> Result<Record<'a>> {
        let cut = || Error::malformed(format!("zip directory entry at {at} is cut or damaged"));
        let fixed = all.get(at..limit).and_then(|d| d.get(..CENTRAL_LEN)).ok_or_else(cut)?;
        let field16 = |offset| u16_at(fixed, offset).ok_or_else(cut);
        let field32 = |offset| u32_at(fixed, offset).ok_or_else(cut);
        if field32(0)? != CENTRAL {
            return Err(cut());
        }
        let lengths = [28, 30, 32].map(|offset| u16_at(fixed, offset).map_or(0, usize::from));
        let name_at = at + CENTRAL_LEN;
        let extra_at = name_at + lengths[0];
        let end = extra_at + lengths[1] + lengths[2];
        if end > limit {
            return Err(cut());
        }
        let name = all.get(name_at..extra_at).and_then(|n| std::str::from_utf8(n).ok());
        let name = name.ok_or_else(|| Error::malformed(format!("zip member name at {name_at} is not UTF-8")))?;
        let (flags, method) = (field16(8)?, field16(10)?);
        require_stored(flags, method).at_key(name)?;
        let extra = all.get(extra_at..extra_at + lengths[1]).ok_or_else(cut)?;
        let mut wide = Wide::find(extra);
        let whole = wide.or_next(field32(24)?).ok_or_else(cut)?;
        let packed = wide.or_next(field32(20)?).ok_or_else(cut)?;
        let header = wide.or_next(field32(42)?).ok_or_else(cut)?;
        if packed != whole {
            let what = format!("stored in {packed} bytes, but {whole} bytes long");
            return Err(Error::malformed(what).at_key(name));
        }
        let size = usize::try_from(whole).map_err(|_| cut())?;
        let header = usize::try_from(header).map_err(|_| cut())?;
        Ok(Record { name, flags, crc: field32(16)?, size, header, end })
    }

    /// From the start of the local header to the end of the data, once that header has said the same.
    fn member(&self, all: &[u8], directory: usize) -> Result<Range<usize>> {
        let lie = |what: &str| Error::malformed(format!("{what} in the local header differs from the zip directory"));
        let local = all.get(self.header..directory).and_then(|d| d.get(..LOCAL_LEN));
        let local = local.filter(|l| u32_at(l, 0) == Some(LOCAL));
        let local = local.ok_or_else(|| Error::malformed(format!("no local zip header at {}", self.header)))?;
        let field16 = |offset| u16_at(local, offset).unwrap_or_default();
        let field32 = |offset| u32_at(local, offset).unwrap_or_default();
        let name_at = self.header + LOCAL_LEN;
        let extra_at = name_at + usize::from(field16(26));
        let data_at = extra_at + usize::from(field16(28));
        if all.get(name_at..extra_at) != Some(self.name.as_bytes()) {
            return Err(lie("name"));
        }
        if field16(6) != self.flags || field16(8) != 0 {
            return Err(lie("flag or method"));
        }
        let mut wide = Wide::find(all.get(extra_at..data_at).unwrap_or_default());
        let whole = wide.or_next(field32(22)).ok_or_else(|| lie("size"))?;
        let packed = wide.or_next(field32(18)).ok_or_else(|| lie("size"))?;
        let left_out = self.flags & FLAG_SIZES_FOLLOW != 0 && whole == 0 && packed == 0;
        if !left_out && (whole != self.size as u64 || packed != self.size as u64) {
            return Err(lie("size"));
        }
        let crc_left_out = self.flags & FLAG_SIZES_FOLLOW != 0 && field32(14) == 0;
        if !crc_left_out && field32(14) != self.crc {
            return Err(lie("checksum"));
        }
        let end = data_at.checked_add(self.size).filter(|&end| end <= directory);
        let end = end.ok_or_else(|| Error::malformed(format!("{} bytes do not fit into the archive", self.size)))?;
        Ok(self.header..end)
    }
}

/// The values of the 64-bit extra field (tag 1), which stand there only for the fields that point to it.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    fn find(mut extra: &'a [u8]) -> Wide<'a> {
        while let (Some(tag), Some(len)) = (u16_at(extra, 0), u16_at(extra, 2)) {
            let Some(body) = extra.get(4..4 + usize::from(len)) else { break };
            if tag == 1 {
                return Wide(body);
            }
            extra = extra.get(4 + usize::from(len)..).unwrap_or_default();
        }
        Wide(&[])
    }

    fn or_next(&mut self, narrow: u32) -> Option<u64> {
        if narrow != IN_EXTRA {
            return Some(u64::from(narrow));
        }
        let (value, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*value))
    }
}

fn require_stored(flags: u16, method: u16) -> Result<()> {
    if flags & 1 != 0 {
        return Err(Error::unsupported("this member of the zip archive is encrypted"));
    }
    if method != 0 {
        return Err(Error::unsupported(format!(
            "compressed by zip method {method}; PyTorch stores without compression"
        ))
        .hint("unpack the archive and pack it again without compression (zip -0)"));
    }
    if flags & !(FLAG_SIZES_FOLLOW | FLAG_UTF8) != 0 {
        return Err(Error::unsupported(format!("zip flags {flags:#06x}, expected those of a plain stored member")));
    }
    Ok(())
}

fn refuse_overlap(mut spans: Vec<(usize, usize, &str)>) -> Result<()> {
    spans.sort_unstable();
    if let Some((start @ 1.., ..)) = spans.first() {
        return Err(Error::malformed(format!("{start} bytes stand before the archive")));
    }
    let mut free = 0;
    for (start, end, name) in spans {
        if start < free {
            return Err(Error::malformed("lies inside another member of the archive").at_key(name));
        }
        free = end;
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_archive_and_no_archive() {
        let mut end = vec![0; END_LEN];
        end[..4].copy_from_slice(&END.to_le_bytes());
        assert_eq!(Archive::open(&end).unwrap().names().count(), 0);
        for bad in [&b""[..], b"PK\x03\x04", &end[1..], &[end.as_slice(), b"x"].concat()] {
            assert!(Archive::open(bad).is_err());
        }
    }
}
