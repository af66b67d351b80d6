//! An adapter as a command is given it: opened, with its strength and what it is known by.

use std::path::{Path, PathBuf};

use super::args::{ReadAs, adapter_and_strength};
use crate::error::{Context, Error, Result};
use crate::layout::Opened;
use crate::model::BaseModel;
use crate::ops::merge::{Applied, Identity};
use crate::ops::shares::Shares;
use crate::tensor::Hash;

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
    /// What its modules' shares of the strength were told by.
    pub shares: Shares,
}

impl Loaded {
    /// Opens an adapter given as `PATH[@STRENGTH]`, for this base where there is one.
    pub fn open(
        (argument, strength): (&Path, f64),
        (read, shares): (&ReadAs, &Shares),
        base: Option<&BaseModel>,
        allow_nonfinite: bool,
    ) -> Result<Loaded> {
        let (path, strength) = adapter_and_strength(argument, strength)?;
        let opened = read.open_finite(&path, base, allow_nonfinite)?;
        let (label, name) = (path.display().to_string(), last_name(&path));
        Loaded::of(opened, (label, name), strength, path, shares.clone())
    }

    /// An adapter that is open, with parts at strengths of their own. It is another one then than without them.
    pub fn of(
        mut opened: Opened,
        (label, name): (String, String),
        strength: f64,
        path: PathBuf,
        shares: Shares,
    ) -> Result<Loaded> {
        let hash = opened.hash();
        let notes = shares.apply(&mut opened.adapter).in_file(&path)?;
        opened.notes.extend(notes);
        let base = opened.base_fingerprint;
        let identity = match shares.words() {
            [] => Identity { name, hash, base },
            words => {
                let words = words.join(", ");
                Identity {
                    hash: Hash::of(format!("{hash} {words}").as_bytes()),
                    name: format!("{name} ({words})"),
                    base,
                }
            }
        };
        Ok(Loaded { label, strength, path, opened, identity, shares })
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
pub fn open_finite(path: &Path, read: &ReadAs, base: Option<&BaseModel>) -> Result<Opened> {
    let opened = read.open(path, base)?;
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
