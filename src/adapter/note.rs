//! What was lost, guessed or worth knowing, with its key. Notes are returned, never printed here.

use std::fmt;

use crate::error::printable;

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing was lost.
    Info,
    /// Something was left out or guessed; `--strict` makes it an error.
    Lossy,
}

/// One remark on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How much it matters.
    pub severity: Severity,
    /// Tensor, module or config field; empty where it concerns the whole.
    pub key: String,
    /// One sentence without a full stop.
    pub text: String,
}

impl Note {
    /// Something worth knowing.
    pub fn info(key: impl Into<String>, text: impl Into<String>) -> Note {
        Note { severity: Severity::Info, key: key.into(), text: text.into() }
    }

    /// Something left out or guessed.
    pub fn lossy(key: impl Into<String>, text: impl Into<String>) -> Note {
        Note { severity: Severity::Lossy, key: key.into(), text: text.into() }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", printable(&self.key))?;
        }
        f.write_str(&printable(&self.text))
    }
}
