//! Files from strangers: every broken one is refused at once, with a message that names the file and the place, and
//! every odd but legal one is read.

mod configs;
mod corpus;
mod headers;
mod indexes;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lora_tool::error::Result;

/// A folder that goes away with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lora-tool-hostile-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    /// Writes a file, whatever was there before.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        let _ = std::fs::remove_file(&path); // a file that is truncated and rewritten goes to disk at once on ext4
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file of this header and data.
fn safetensors(header: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data.as_ref()].concat()
}

/// What a case came to, if that is not the refusal it should be: each part of the message has to be in the error,
/// and it has to come soon.
fn fault<T>(case: &str, parts: &[&str], read: impl FnOnce() -> Result<T>) -> Option<String> {
    let start = Instant::now();
    let result = read().map(|_| ());
    let took = start.elapsed();
    let case = &case[..case.floor_char_boundary(80)];
    match result {
        Ok(()) => Some(format!("{case}\n    accepted, expected {parts:?}")),
        Err(e) => {
            let text = e.to_string();
            let wrong = parts.iter().any(|part| !text.contains(part));
            let long = text.len() > 1000 || took > Duration::from_secs(10);
            (wrong || long).then(|| format!("{case}\n    expected {parts:?}\n    found {text} after {took:?}"))
        }
    }
}

fn require_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
}
