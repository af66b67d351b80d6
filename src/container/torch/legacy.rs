//! The format that `torch.save` wrote before PyTorch 1.6, and still does on request: five pickles in a row (a magic
//! number, a protocol number, facts on the machine, the object, the keys of its storages), then the storages, each
//! with its number of elements in front.
//!
//! Defined by pytorch/pytorch:torch/serialization.py, `_legacy_save`.

use std::ops::Range;

use indexmap::IndexMap;

use super::ADVICE;
use super::objects::Form;
use super::objects::{Object, Storage, Value};
use super::pickle::{self, Pickle};
use crate::error::{Context, Error, Result};

/// 0x1950a86a20f9469cfc6c.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;

/// The object, and where its storages lie.
pub fn read(all: &[u8]) -> Result<(Pickle<'_>, IndexMap<&str, Range<usize>>)> {
    let magic = pickle::load(all, 0, Form::Legacy)?;
    if magic.root != Value::Wide(&MAGIC) {
        return Err(Error::unsupported("a Python pickle that torch.save did not write").hint(ADVICE));
    }
    let protocol = pickle::load_next(all, &magic)?;
    if protocol.root != Value::Int(PROTOCOL) {
        return Err(Error::unsupported(format!("not version {PROTOCOL} of the old PyTorch format")));
    }
    let machine = pickle::load_next(all, &protocol)?;
    require_little_endian(&machine)?;
    let object = pickle::load_next(all, &machine)?;
    let keys = pickle::load_next(all, &object)?;
    let places = places(all, keys.end, &storage_keys(&keys)?, &object)?;
    Ok((object, places))
}

fn require_little_endian(machine: &Pickle) -> Result<()> {
    let Some(Object::Dict(dict)) = machine.objects.get(machine.root) else {
        return Err(Error::malformed("the third pickle is no dict"));
    };
    match dict.items.iter().find(|(key, _)| *key == Value::Text("little_endian")) {
        Some((_, Value::Bool(true))) => Ok(()),
        _ => Err(Error::unsupported("not from a little-endian machine").at_key("little_endian")),
    }
}

fn storage_keys<'a>(keys: &Pickle<'a>) -> Result<Vec<&'a str>> {
    let bad = || Error::malformed("the fifth pickle is no list of storage keys");
    let Some(Object::List(list)) = keys.objects.get(keys.root) else { return Err(bad()) };
    list.iter().map(|key| if let Value::Text(key) = key { Ok(*key) } else { Err(bad()) }).collect()
}

fn places<'a>(
    all: &[u8],
    mut at: usize,
    keys: &[&'a str],
    object: &Pickle<'a>,
) -> Result<IndexMap<&'a str, Range<usize>>> {
    let mut known: IndexMap<&str, Storage> = IndexMap::new();
    for storage in object.objects.storages() {
        if *known.entry(storage.key).or_insert(storage) != storage {
            return Err(Error::malformed("two sizes or types for one storage").at_key(storage.key));
        }
    }
    let mut places = IndexMap::with_capacity(keys.len().min(known.len()));
    for key in keys {
        let storage = known.get(key).ok_or_else(|| Error::malformed("a storage that no tensor uses").at_key(*key))?;
        let place = place(all, at, storage).at_key(*key)?;
        at = place.end;
        if places.insert(*key, place).is_some() {
            return Err(Error::malformed("listed twice among the storages").at_key(*key));
        }
    }
    if at != all.len() {
        return Err(Error::malformed(format!("{} bytes after the last storage", all.len() - at)));
    }
    Ok(places)
}

/// A storage in the file: eight bytes with the number of elements, then the elements.
fn place(all: &[u8], at: usize, storage: &Storage) -> Result<Range<usize>> {
    let cut = || {
        Error::malformed(format!("storage of {} elements does not fit into the file", storage.count))
            .hint("the download may have been cut short; compare the size with its source")
    };
    let (count, _) = all.get(at..).and_then(|rest| rest.split_first_chunk::<8>()).ok_or_else(cut)?;
    let count = i64::from_le_bytes(*count);
    if usize::try_from(count).ok() != Some(storage.count) {
        return Err(Error::malformed(format!("storage of {count} elements, the pickle says {}", storage.count)));
    }
    let width = storage.dtype.map_or(1, |d| d.bitsize() / 8);
    let len = storage.count.checked_mul(width).ok_or_else(cut)?;
    let start = at + 8;
    let end = start.checked_add(len).filter(|&end| end <= all.len()).ok_or_else(cut)?;
    Ok(start..end)
}
