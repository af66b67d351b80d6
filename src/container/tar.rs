//! Tar archives: where their members lie, and a new one of members given.
//!
//! Only plain files and folders, each name once, none that leads out of the archive: nothing here is unpacked, but
//! another program may do that with the same file. Format: POSIX.1-2017, pax; the headers are read by the `tar` crate.

use std::io::{Cursor, Write};
use std::ops::Range;

use indexmap::IndexMap;

use crate::error::{Error, Result};
use crate::limits;

/// Headers, and what members are filled up to multiples of.
const BLOCK: usize = 512;
/// Where the first header says that it is one.
const MAGIC: Range<usize> = 257..262;

/// True for a file that begins with a header of POSIX or GNU.
pub fn claims(all: &[u8]) -> bool {
    all.get(MAGIC) == Some(b"ustar".as_slice())
}

/// True for a file that gzip made.
pub fn is_gzip(all: &[u8]) -> bool {
    all.starts_with(&[0x1f, 0x8b, 0x08])
}

/// The files in the archive and where their bytes lie, by name without a leading `./`.
pub fn members(all: &[u8]) -> Result<IndexMap<String, Range<usize>>> {
    let damaged = |e: std::io::Error| Error::malformed(format!("not a sound tar archive: {e}"));
    let mut archive = ::tar::Archive::new(Cursor::new(all));
    let mut out = IndexMap::new();
    for (count, entry) in archive.entries_with_seek().map_err(damaged)?.enumerate() {
        let entry = entry.map_err(damaged)?;
        if count == limits::TAR_MEMBERS {
            return Err(Error::too_many(limits::TAR_MEMBERS, "members in a tar archive"));
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = name(&entry.path_bytes())?;
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() || entry.header().as_gnu().is_some_and(::tar::GnuHeader::is_extended) {
            return Err(Error::unsupported("a link, a sparse file or a device, expected plain files").at_key(name));
        }
        let start = usize::try_from(entry.raw_file_position()).ok();
        let size = usize::try_from(entry.size()).ok();
        let end = start.zip(size).and_then(|(start, size)| start.checked_add(size)).filter(|end| *end <= all.len());
        let (Some(start), Some(end)) = (start, end) else {
            let what = format!("{} bytes do not fit into the archive of {}", entry.size(), all.len());
            return Err(Error::malformed(what).at_key(name));
        };
        if out.insert(name.clone(), start..end).is_some() {
            return Err(Error::malformed("two members of this name in the archive").at_key(name));
        }
    }
    Ok(out)
}

/// A member's name: text, relative, and without a way up.
fn name(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::malformed("a name in a tar archive is not UTF-8"))?;
    if text.len() > limits::NAME_BYTES {
        return Err(Error::limit(format!("a name of {} bytes", text.len()), limits::NAME_BYTES));
    }
    if text.starts_with('/') || text.contains(['\\', '\0']) || text.split('/').any(|part| part == "..") {
        return Err(Error::malformed("a name that leads out of the archive").at_key(text));
    }
    let parts: Vec<_> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(parts.join("/"))
}

/// What a member of a new archive is made of.
pub trait Content {
    /// Its bytes in number.
    fn size(&self) -> Result<u64>;
    /// Writes them.
    fn write(&self, out: &mut dyn Write) -> Result<()>;
}

impl Content for Vec<u8> {
    fn size(&self) -> Result<u64> {
        Ok(self.len() as u64)
    }

    fn write(&self, out: &mut dyn Write) -> Result<()> {
        put(out, self)
    }
}

/// Bytes of an archive of these members.
pub fn size(members: &[(&str, &dyn Content)]) -> Result<u64> {
    let block = BLOCK as u64;
    let mut out = 2 * block;
    for (name, content) in members {
        let padded = content.size()?.checked_next_multiple_of(block);
        let sum = padded.and_then(|n| n.checked_add(out + block));
        out = sum.ok_or_else(|| Error::unsupported("too large for a tar archive").at_key(*name))?;
    }
    Ok(out)
}

/// Writes an archive of these members: the same bytes for the same contents.
pub fn write(out: &mut dyn Write, members: &[(&str, &dyn Content)]) -> Result<()> {
    for (name, content) in members {
        let size = content.size()?;
        let mut header = ::tar::Header::new_gnu();
        // As it is given: the crate's own way takes a leading `./` off, which programs may look for.
        let too_long = || Error::unsupported("a name of more than 99 bytes in a tar archive").at_key(*name);
        let field = header.as_old_mut().name.get_mut(..name.len()).filter(|_| name.len() < 100);
        field.ok_or_else(too_long)?.copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        put(out, header.as_bytes())?;
        content.write(out)?;
        put(out, &vec![0; (size.next_multiple_of(BLOCK as u64) - size) as usize])?;
    }
    put(out, &[0; 2 * BLOCK])
}

fn put(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|e| Error::io("cannot write", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let owned: Vec<_> = members.iter().map(|(name, bytes)| (*name, bytes.to_vec())).collect();
        let members: Vec<(&str, &dyn Content)> =
            owned.iter().map(|(name, bytes)| (*name, bytes as &dyn Content)).collect();
        let mut out = Vec::new();
        write(&mut out, &members).unwrap();
        assert_eq!(out.len() as u64, size(&members).unwrap());
        out
    }

    /// One member whose header is changed before its checksum is made.
    fn changed(change: impl Fn(&mut ::tar::Header)) -> Vec<u8> {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(3);
        change(&mut header);
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend(b"abc");
        out.resize(4 * BLOCK, 0);
        out
    }

    #[test]
    fn what_is_written_is_found() {
        let all = archive(&[("./model_config.yaml", b"a: 1\n"), ("./b/c", &[7; 513]), ("empty", b"")]);
        assert!(claims(&all) && !is_gzip(&all));
        let found = members(&all).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["model_config.yaml", "b/c", "empty"]);
        assert_eq!(&all[found["model_config.yaml"].clone()], b"a: 1\n");
        assert_eq!(found["b/c"].len(), 513);
        assert!(all.starts_with(b"./model_config.yaml\0"));
        assert!(found["empty"].is_empty());
        assert!(!claims(b"PK\x03\x04") && is_gzip(&[0x1f, 0x8b, 8, 0]));
    }

    #[test]
    fn hostile_archives_are_refused() {
        let rename =
            |name: &'static str| changed(move |h| h.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes()));
        for name in ["../a", "/etc/passwd", "a/../../b", "a\\b"] {
            let e = members(&rename(name)).unwrap_err();
            assert!(e.what().contains("leads out"), "{name}: {e}");
        }
        let twice = archive(&[("a", b"1"), ("./a", b"2")]);
        assert!(members(&twice).unwrap_err().what().contains("two members"));
        for kind in [::tar::EntryType::Symlink, ::tar::EntryType::Link, ::tar::EntryType::Fifo, ::tar::EntryType::Char]
        {
            assert!(members(&changed(|h| h.set_entry_type(kind))).is_err(), "{kind:?}");
        }
        assert!(members(&changed(|h| h.set_entry_type(::tar::EntryType::GNUSparse))).is_err());
        for size in [1 << 20, u64::MAX, 1 << 62] {
            assert!(members(&changed(|h| h.set_size(size))).is_err(), "{size}");
        }
        let mut spoilt = archive(&[("a", b"1")]);
        spoilt[0] = b'b';
        assert!(members(&spoilt).unwrap_err().what().contains("sound"));
    }

    #[test]
    fn an_archive_that_is_cut_is_refused_or_holds_less() {
        let all = archive(&[("a", &[1; 600]), ("b", &[2; 600])]);
        for end in 0..all.len() {
            if let Ok(found) = members(&all[..end]) {
                assert!(found.values().all(|range| range.end <= end));
            }
        }
    }
}
