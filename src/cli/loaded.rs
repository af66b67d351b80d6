//! An adapter as a command is given it: opened, with its strength and what it is known by.

use std::path::{Path, PathBuf};

use super::args::adapter_and_strength;
use crate::error::{Error, Result};
use crate::layout::{self, Opened};
use crate::ops::merge::{Applied, Identity};

/// An adapter, opened.
pub struct Loaded {
    /// Its name in messages.
    pub label: String,
    /// The user's multiplier.
    pub strength: f64,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is.
    pub opened: Opened,
    /// How it is told from others.
    pub identity: Identity,
}

impl Loaded {
    /// Opens an adapter given as `PATH[@STRENGTH]`.
    pub fn open(argument: &Path, strength: f64, from: Option<&str>, allow_nonfinite: bool) -> Result<Loaded> {
        let (path, strength) = adapter_and_strength(argument, strength)?;
        let opened = layout::open(&path, from)?;
        if !allow_nonfinite {
            opened.source.require_finite()?;
        }
        let identity = Identity { name: last_name(&path), hash: opened.hash(), base: opened.base_fingerprint };
        Ok(Loaded { label: path.display().to_string(), strength, path, opened, identity })
    }

    /// The adapter as an operation takes it.
    pub fn applied(&self) -> Applied<'_> {
        Applied {
            label: self.label.clone(),
            strength: self.strength,
            adapter: &self.opened.adapter,
            identity: Some(self.identity.clone()),
        }
    }
}

/// Opens an adapter whose values all have to be finite, for commands that cannot let others through.
pub fn open_finite(path: &Path, from: Option<&str>) -> Result<Opened> {
    let opened = layout::open(path, from)?;
    opened.source.require_finite().map_err(|e| {
        // Without the hint for a merge, which can.
        let error = Error::new(e.kind(), e.what()).in_file(e.file().unwrap_or(path));
        match e.key() {
            Some(key) => error.at_key(key),
            None => error,
        }
    })?;
    Ok(opened)
}

/// The last component of a path, of `..` that of the folder it stands for.
pub fn last_name(path: &Path) -> String {
    let full = path.file_name().is_none().then(|| path.canonicalize().ok()).flatten();
    let name = full.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| "adapter".to_string(), |name| name.to_string_lossy().into_owned())
}
