//! A dict of tensors as `torch.save` writes it: a zip archive of stored members, one of them a pickle that says what the
//! tensors are, the others their bytes.
//!
//! Members and pickle are those of pytorch/pytorch:torch/serialization.py (`_save`) and
//! caffe2/serialize/inline_container.cc; the archive is that of APPNOTE.TXT 6.3.10. It is the same, byte for byte, for the
//! same tensors. A tensor may take up to 4 GiB, the file may be larger.

use std::io::Write;

use super::globals;
use super::zip::{CENTRAL, END, END_64, END_64_LOCATOR, IN_EXTRA, LOCAL};
use crate::error::{Context, Error, Result};
use crate::tensor::{StateDict, Tensor};

/// The folder all members are in.
const ROOT: &str = "archive";
/// What the bytes of tensors begin at multiples of, so that they can be mapped.
const ALIGNMENT: u64 = 64;
/// Version of the archive's members.
const VERSION: &[u8] = b"3\n";
/// Id of an extra field that is there for its length only.
const PADDING: &[u8; 2] = b"FB";

/// Bytes of the file.
pub fn size(tensors: &StateDict, under: Option<&str>) -> Result<u64> {
    let mut counter = Counter(0);
    write_with(&mut counter, tensors, under, |_| 0)?;
    Ok(counter.0)
}

/// Writes the file. With `under` the tensors' dict is the value of that key in another.
pub fn write(out: &mut dyn Write, tensors: &StateDict, under: Option<&str>) -> Result<()> {
    write_with(out, tensors, under, crc32fast::hash)
}

/// Counts what is written, and keeps nothing.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_with(out: &mut dyn Write, tensors: &StateDict, under: Option<&str>, crc: fn(&[u8]) -> u32) -> Result<()> {
    let pickle = pickle(tensors, under)?;
    let mut archive = Archive { out, at: 0, directory: Vec::new(), members: 0 };
    archive.small("data.pkl", &pickle)?;
    archive.small("byteorder", b"little")?;
    for (number, (key, tensor)) in tensors.iter().enumerate() {
        let bytes = tensor.bytes.as_slice();
        archive.member(&format!("data/{number}"), bytes, crc(bytes)).at_key(key)?;
        tensor.bytes.release(0..tensor.bytes.len());
    }
    archive.small("version", VERSION)?;
    archive.finish()
}

/// An archive under construction.
struct Archive<'a> {
    out: &'a mut dyn Write,
    at: u64,
    directory: Vec<u8>,
    members: u64,
}

impl Archive<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("cannot write", e))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.member(name, bytes, crc32fast::hash(bytes))
    }

    fn member(&mut self, name: &str, bytes: &[u8], crc: u32) -> Result<()> {
        let name = format!("{ROOT}/{name}");
        let too_large = || Error::unsupported("more than 4 GiB in one tensor of a PyTorch file");
        let size = u32::try_from(bytes.len()).ok().filter(|n| *n != IN_EXTRA).ok_or_else(too_large)?;
        let head = 30 + name.len() as u64 + 4;
        let padding = (ALIGNMENT - (self.at + head) % ALIGNMENT) % ALIGNMENT;
        let start = self.at;

        let mut local = LOCAL.to_le_bytes().to_vec();
        local.extend(fields(crc, size, &name));
        local.extend((padding as u16 + 4).to_le_bytes());
        local.extend(name.as_bytes());
        local.extend(PADDING);
        local.extend((padding as u16).to_le_bytes());
        local.resize(local.len() + padding as usize, b'Z');
        self.put(&local)?;
        self.put(bytes)?;

        // Where the offset does not fit its field, it stands in an extra field.
        let far = start >= u64::from(IN_EXTRA);
        self.directory.extend(CENTRAL.to_le_bytes());
        self.directory.extend([0, 0]); // made by: an unknown system
        self.directory.extend(fields(crc, size, &name));
        self.directory.extend(if far { 12u16 } else { 0 }.to_le_bytes());
        self.directory.extend([0; 10]); // comment, disk, attributes
        self.directory.extend(if far { IN_EXTRA } else { start as u32 }.to_le_bytes());
        self.directory.extend(name.as_bytes());
        if far {
            self.directory.extend([1, 0, 8, 0]);
            self.directory.extend(start.to_le_bytes());
        }
        self.members += 1;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        let directory = std::mem::take(&mut self.directory);
        let (start, size) = (self.at, directory.len() as u64);
        self.put(&directory)?;
        let end = self.at;
        let far = start >= u64::from(IN_EXTRA) || self.members >= u64::from(u16::MAX);
        if far {
            let mut out = END_64.to_le_bytes().to_vec();
            out.extend(44u64.to_le_bytes());
            out.extend([45, 0, 45, 0]);
            out.extend([0; 8]);
            for number in [self.members, self.members, size, start] {
                out.extend(number.to_le_bytes());
            }
            out.extend(END_64_LOCATOR.to_le_bytes());
            out.extend([0; 4]);
            out.extend(end.to_le_bytes());
            out.extend(1u32.to_le_bytes());
            self.put(&out)?;
        }
        let members = if far { u16::MAX } else { self.members as u16 };
        let mut out = END.to_le_bytes().to_vec();
        out.extend([0; 4]);
        out.extend(members.to_le_bytes());
        out.extend(members.to_le_bytes());
        out.extend((if far { IN_EXTRA } else { size as u32 }).to_le_bytes());
        out.extend((if far { IN_EXTRA } else { start as u32 }).to_le_bytes());
        out.extend([0; 2]);
        self.put(&out)
    }
}

/// What local header and directory have in common, up to the length of the name.
fn fields(crc: u32, size: u32, name: &str) -> Vec<u8> {
    let mut out = vec![0; 2]; // version needed to read it
    out.extend([0, 0]); // flags
    out.extend([0, 0]); // stored
    out.extend([0, 0, 0x21, 0]); // the first day there is: 1980-01-01
    out.extend(crc.to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend((name.len() as u16).to_le_bytes());
    out
}

/// The pickle of the dict, protocol 2.
fn pickle(tensors: &StateDict, under: Option<&str>) -> Result<Vec<u8>> {
    let mut out = b"\x80\x02".to_vec();
    if let Some(key) = under {
        out.push(b'}');
        put_text(&mut out, key);
    }
    out.extend(b"}(");
    for (number, (key, tensor)) in tensors.iter().enumerate() {
        put_text(&mut out, key);
        put_tensor(&mut out, number, tensor).at_key(key)?;
    }
    out.push(b'u');
    if under.is_some() {
        out.push(b's');
    }
    out.push(b'.');
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, number: usize) {
    match i32::try_from(number) {
        Ok(number) => {
            out.push(b'J');
            out.extend(number.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 9]);
            out.extend((number as u64).to_le_bytes());
            out.push(0);
        }
    }
}

fn put_tuple(out: &mut Vec<u8>, numbers: &[usize]) {
    out.push(b'(');
    numbers.iter().for_each(|n| put_number(out, *n));
    out.push(b't');
}

fn put_tensor(out: &mut Vec<u8>, number: usize, tensor: &Tensor) -> Result<()> {
    let storage = globals::storage(tensor.dtype)
        .ok_or_else(|| Error::unsupported(format!("{}, for which PyTorch has no storage", tensor.dtype)))?;
    let dims = tensor.shape.dims();
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis].max(1);
    }
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
    out.push(b'(');
    put_text(out, "storage");
    out.extend(format!("ctorch\n{storage}\n").as_bytes());
    put_text(out, &number.to_string());
    put_text(out, "cpu");
    put_number(out, tensor.elements());
    out.extend(b"tQ");
    put_number(out, 0);
    put_tuple(out, dims);
    put_tuple(out, &strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    Ok(())
}
