//! What targets have in common: a folder for their files, bytes taken as numbers, and files made of parts.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use lora_tool::kernels::OpenBlas;
use lora_tool::layout::{self, Opened};
use lora_tool::ops::inspect;
use lora_tool::stream::{Limits, Resuming, Writing};

/// A folder in memory where there is such a place, removed when the value goes.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let within = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = within.join(format!("lora-tool-fuzz-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file, whose folder is made where it is not there.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Bytes taken one after another; zeros where there are no more.
pub struct Bits<'a>(&'a [u8]);

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Bits<'a> {
        Bits(bytes)
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub fn two(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }
}

/// One tensor of a file: name, type as the header writes it, shape, bytes.
pub type Part<'a> = (&'a str, &'a str, Vec<usize>, Vec<u8>);

/// A safetensors file.
pub fn file_of(parts: &[Part]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in parts {
        let offsets = [data.len(), data.len() + bytes.len()];
        let info = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert((*name).to_string(), info);
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// Floats as bytes.
pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A safetensors file from an input: the input itself, or, where it begins as a header's text does, that text with its length
/// in front and as many zeros behind as it speaks of.
pub fn safetensors(data: &[u8]) -> Vec<u8> {
    const MOST_ZEROS: u64 = 1 << 16;
    if !data.first().is_some_and(|b| b"{ \t\r\n".contains(b)) {
        return data.to_vec();
    }
    let end = |value: &serde_json::Value| value.get("data_offsets")?.get(1)?.as_u64();
    let zeros = match serde_json::from_slice(data) {
        Ok(serde_json::Value::Object(map)) => map.values().filter_map(end).max().unwrap_or(0).min(MOST_ZEROS),
        _ => 0,
    };
    [&(data.len() as u64).to_le_bytes()[..], data, &vec![0; zeros as usize]].concat()
}

/// A zip archive of stored members, without checksums.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let (size, at) = ((bytes.len() as u32).to_le_bytes(), (out.len() as u32).to_le_bytes());
        let length = (name.len() as u16).to_le_bytes();
        // Version to read it by, flags, method, time, date; checksum and both sizes; lengths of name and extra field.
        let about = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0; 4], &size, &size, &length, &[0, 0]].concat();
        out.extend([&b"PK\x03\x04"[..], &about, name.as_bytes(), bytes].concat());
        // The version of the writer before; lengths of the comment, disk and attributes behind, and the place.
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &about, &[0; 10], &at, name.as_bytes()].concat());
    }
    let (at, length) = ((out.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    let count = (members.len() as u16).to_le_bytes();
    [&out[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &length, &at, &[0, 0]].concat()
}

/// What is done with an adapter that could be read: all that looks at it, and every way to write it.
pub fn look_at(opened: &Opened) {
    let _ = inspect::adapter::summarise(&opened.adapter, &OpenBlas::new());
    let _ = opened.source.require_finite();
    for layout in layout::LAYOUTS.iter().filter(|layout| layout.can_write()) {
        let _ = layout.write(&opened.adapter);
    }
}

/// One thread, little memory, no waiting for the disk.
pub fn writing() -> Writing {
    Writing { replace: true, sync: false, limits: Limits { threads: 1, memory: 64 << 20 }, resuming: Resuming::Never }
}
