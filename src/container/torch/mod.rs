//! Pickled PyTorch files (`.bin`, `.pt`, `.pth`), read by a closed list of opcodes and names. Nothing is ever
//! executed, imported or fetched, and there is no other way in: what this reader refuses stays unread.
//!
//! Two containers: the zip archive of PyTorch 1.6 and later (`zip`) and the row of pickles before it (`legacy`).
//! In both, one pickle (`pickle`, `globals`) says which tensors are views of which storages (`view`), and the
//! storages are plain bytes in the file, which is where the tensors stay until they are used.

mod calls;
mod globals;
mod legacy;
mod objects;
mod pickle;
mod view;
mod write;
pub(super) mod zip;

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{Bytes, MappedFile, StateDict, Tensor};

use objects::Form;
use objects::{Object, Objects, Value};
use pickle::Pickle;
use view::Maker;
pub use write::{size, write};

/// What to do about a pickle that is refused.
const ADVICE: &str = "if you trust the file, load it in Python and save its tensors as safetensors";

/// True for a file that begins like one `torch.save` writes, or like any other pickle.
pub fn claims(head: &[u8]) -> bool {
    let is_pickle = matches!(head, [0x80, 2..=5, ..]);
    // The length in front of a safetensors header can begin the same way, but then it is a small number.
    let length = head.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
    let is_zip = head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06");
    is_zip || (is_pickle || is_of_text_protocol(head)) && length > limits::HEADER_BYTES as u64
}

/// True for the start of a pickle of protocol 0 or 1, which is not read: a global of two lines, or a mark and what may
/// follow one.
fn is_of_text_protocol(head: &[u8]) -> bool {
    let is_name = |line: &[u8]| !line.is_empty() && line.iter().all(|b| b.is_ascii_alphanumeric() || b"._".contains(b));
    match head {
        [b'c', rest @ ..] => rest.splitn(3, |b| *b == b'\n').take(2).filter(|line| is_name(line)).count() == 2,
        [b'(', next, rest @ ..] => b"dltcSVI(".contains(next) && rest.contains(&b'\n'),
        _ => false,
    }
}

/// Tensors by key in the order of the file, and the keys of values that are no tensors.
///
/// Where the outermost dict holds no tensor and exactly one of its values is a dict that does, that one is read in
/// its place.
pub fn read_with_rest(file: &Arc<MappedFile>) -> Result<(StateDict, Vec<String>)> {
    read_within(file, 0..file.as_slice().len())
}

/// The same of a file that lies in another, at `range`.
pub fn read_within(file: &Arc<MappedFile>, range: Range<usize>) -> Result<(StateDict, Vec<String>)> {
    let outside = || Error::malformed("lies outside of the file it is in");
    let inner = Inner { file, all: file.as_slice().get(range.clone()).ok_or_else(outside)?, at: range.start };
    let read = if inner.all.starts_with(b"PK") { read_zip(&inner) } else { read_legacy(&inner) };
    read.in_file(file.path())
}

/// A PyTorch file and where it begins in the file that holds it.
struct Inner<'f> {
    file: &'f Arc<MappedFile>,
    all: &'f [u8],
    at: usize,
}

impl Inner<'_> {
    /// A range of this file in the one that holds it.
    fn place(&self, range: Range<usize>) -> Range<usize> {
        self.at + range.start..self.at + range.end // inside the file, as `all` is
    }
}

fn read_zip(inner: &Inner) -> Result<(StateDict, Vec<String>)> {
    let all = inner.all;
    let archive = zip::Archive::open(all)?;
    let root = root_folder(&archive)?;
    if let Some(order) = archive.checked(&format!("{root}/byteorder"))?
        && order != b"little"
    {
        let order = String::from_utf8_lossy(&order[..order.len().min(16)]).into_owned();
        return Err(Error::unsupported(format!("byte order `{order}`, expected `little`")).at_key("byteorder"));
    }
    let name = format!("{root}/data.pkl");
    let data = archive.checked(&name)?.unwrap_or_default();
    let pickle = pickle::load(data, 0, Form::Zip)?;
    if pickle.end != data.len() {
        let what = format!("{} bytes after the end of the pickle", data.len() - pickle.end);
        return Err(Error::malformed(what).at_key(name));
    }
    archive.check(|range| Bytes::mapped(inner.file, inner.place(range)))?;
    tensors(inner.file, &pickle, |key| {
        archive.get(&format!("{root}/data/{key}")).map(|member| inner.place(member.range.clone()))
    })
}

/// The folder all members of the archive are in.
fn root_folder<'a>(archive: &zip::Archive<'a>) -> Result<&'a str> {
    let mut roots = archive.names().filter_map(|n| n.strip_suffix("/data.pkl")).filter(|r| !r.contains('/'));
    let root = roots.next().ok_or_else(|| {
        Error::unrecognised("a zip archive without a data.pkl in its folder, expected one that torch.save wrote")
    })?;
    if roots.next().is_some() {
        return Err(Error::malformed("more than one data.pkl in the archive"));
    }
    if archive.get(&format!("{root}/constants.pkl")).is_some() {
        return Err(Error::unsupported("a TorchScript program, expected tensors").hint(ADVICE));
    }
    Ok(root)
}

fn read_legacy(inner: &Inner) -> Result<(StateDict, Vec<String>)> {
    let (pickle, places) = legacy::read(inner.all)?;
    tensors(inner.file, &pickle, |key| places.get(key).map(|range| inner.place(range.clone())))
}

/// The tensors of the dict that holds them. `find` says where a storage lies.
fn tensors<'a>(
    file: &Arc<MappedFile>,
    pickle: &Pickle<'a>,
    find: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<(StateDict, Vec<String>)> {
    let objects = &pickle.objects;
    let (items, mut rest) = choose_dict(objects, pickle.root)?;
    let mut maker = Maker::new(file);
    let mut make = |value: Value<'a>| -> Result<Option<Tensor>> {
        let Some(Object::Tensor(call)) = objects.get(value) else { return Ok(None) };
        let view = view::of_call(objects, *call)?;
        let place = find(view.storage.key)
            .ok_or_else(|| Error::missing(format!("its storage `{}` is not in the file", view.storage.key)))?;
        maker.tensor(&view, &place).map(Some)
    };
    let mut tensors = StateDict::new();
    for &(key, value) in items {
        let name = key_text(key);
        let Some(tensor) = make(value).at_key(&name)? else {
            rest.push(name);
            continue;
        };
        if !matches!(key, Value::Text(_)) {
            return Err(Error::malformed("a tensor under a key that is not text").at_key(name));
        }
        if name.len() > limits::NAME_BYTES {
            return Err(Error::limit(format!("a key of {} bytes", name.len()), limits::NAME_BYTES));
        }
        if tensors.len() == limits::TENSORS {
            return Err(Error::too_many(limits::TENSORS, "tensors"));
        }
        if tensors.contains_key(&name) {
            return Err(Error::malformed("this key stands twice").at_key(name));
        }
        tensors.insert(name, tensor);
    }
    Ok((tensors, rest))
}

type Items<'p, 'a> = &'p [(Value<'a>, Value<'a>)];

/// The items to read tensors from, and the keys that are passed over on the way.
fn choose_dict<'p, 'a>(objects: &'p Objects<'a>, root: Value<'a>) -> Result<(Items<'p, 'a>, Vec<String>)> {
    let items = dict(objects, root).ok_or_else(|| {
        Error::unsupported(format!("holds {}, expected a dict of tensors", objects.type_name(root))).hint(ADVICE)
    })?;
    let inner = |value| dict(objects, value).filter(|items| holds_tensors(objects, items));
    let dicts: Vec<_> = items.iter().filter_map(|&(key, value)| Some((key, inner(value)?))).collect();
    match dicts.as_slice() {
        _ if holds_tensors(objects, items) => Ok((items, Vec::new())),
        [] => Ok((items, Vec::new())),
        &[(chosen, inner)] => {
            let passed = items.iter().map(|&(key, _)| key).filter(|&key| key != chosen).map(key_text).collect();
            Ok((inner, passed))
        }
        several => {
            let names: Vec<_> = several.iter().take(5).map(|&(key, _)| format!("`{}`", key_text(key))).collect();
            Err(Error::unsupported(format!("{} dicts of tensors, expected one: {}", several.len(), names.join(", ")))
                .hint("save the one that is meant into a file of its own"))
        }
    }
}

fn dict<'p, 'a>(objects: &'p Objects<'a>, value: Value<'a>) -> Option<Items<'p, 'a>> {
    match objects.get(value) {
        Some(Object::Dict(dict)) => Some(&dict.items),
        _ => None,
    }
}

fn holds_tensors(objects: &Objects, items: Items) -> bool {
    items.iter().any(|(_, value)| matches!(objects.get(*value), Some(Object::Tensor(_))))
}

fn key_text(key: Value) -> String {
    match key {
        Value::Text(text) => text.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        _ => "(a key that is not text)".to_string(),
    }
}

#[cfg(test)]
mod tests;
