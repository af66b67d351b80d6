//! What a check of an adapter found: a code with its explanation, the place, one sentence, and what can be done.
//!
//! The codes themselves stand beside the checks, in `layout/lint/codes.rs` and `ops/lint/codes.rs`; numbers are never
//! given to another meaning.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::Error;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The adapter does not do what it is for, or cannot be read.
    Error,
    /// It may do something else than meant, or do it in some programs only.
    Warning,
    /// Worth knowing.
    Info,
}

impl Level {
    /// The word in messages and in `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
        }
    }
}

/// One kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `L` and three digits; the first says where it is seen: 0 files, 1 keys, 2 values, 3 config, 4 beside a base.
    pub id: &'static str,
    /// How much it matters.
    pub level: Level,
    /// A few words.
    pub title: &'static str,
    /// What it means and where it comes from, in sentences.
    pub why: &'static str,
    /// What a repair does, where there is one.
    pub repair: Option<&'static str>,
}

/// A change of the files that leaves what the adapter does as it is, or makes it what it certainly is meant to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Repair {
    /// The tensor gets this key.
    Rename(String),
    /// The tensor is left out: what it says is said elsewhere.
    Drop,
    /// The values that are no tensors stay behind.
    LeaveBehind,
    /// The tensors are written as safetensors.
    Container,
    /// The field of the config gets this value.
    Set(String, Value),
    /// This entry is taken out of the field's list or object.
    Remove(String, String),
    /// This entry is added to the field's list.
    Append(String, String),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::Rename(key) => write!(f, "renamed to `{key}`"),
            Repair::Drop => f.write_str("left out"),
            Repair::LeaveBehind => f.write_str("left out of the safetensors file"),
            Repair::Container => f.write_str("written as safetensors"),
            Repair::Set(field, value) => write!(f, "`{field}` set to {value}"),
            Repair::Remove(field, entry) => write!(f, "`{entry}` taken out of `{field}`"),
            Repair::Append(field, entry) => write!(f, "`{entry}` added to `{field}`"),
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What kind it is.
    pub code: &'static Code,
    /// The file, where one is meant and not the adapter as a whole.
    pub file: Option<PathBuf>,
    /// Tensor, module or field; empty where it concerns the whole.
    pub key: String,
    /// One sentence without a full stop: what was found, what was expected.
    pub what: String,
    /// What the user can do, where no repair is certain.
    pub hint: Option<String>,
    /// The repair, where it is certain.
    pub repair: Option<Repair>,
}

impl Finding {
    /// A finding at a key.
    pub fn new(code: &'static Code, key: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding { code, file: None, key: key.into(), what: what.into(), hint: None, repair: None }
    }

    /// An error as a finding, with its place and its hint.
    pub fn of_error(code: &'static Code, e: &Error) -> Finding {
        let mut out = Finding::new(code, e.key().unwrap_or_default(), e.what());
        out.file = e.file().map(Path::to_path_buf);
        out.hint = e.advice().map(str::to_string);
        out
    }

    /// In this file, unless one is named already.
    #[must_use]
    pub fn or_file(mut self, file: &Path) -> Finding {
        self.file.get_or_insert_with(|| file.to_path_buf());
        self
    }

    /// With something the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Finding {
        self.hint = Some(hint.into());
        self
    }

    /// With a repair.
    #[must_use]
    pub fn repair(mut self, repair: Repair) -> Finding {
        self.repair = Some(repair);
        self
    }

    /// With a repair, where there is one.
    #[must_use]
    pub fn maybe(mut self, repair: Option<Repair>) -> Finding {
        self.repair = repair;
        self
    }

    /// Whether a place is this one, or lies in it, or holds it: a module and its tensors, a field and its entries.
    pub fn is_at(&self, place: &str) -> bool {
        let within =
            |outer: &str, inner: &str| !inner.is_empty() && format!(".{outer}.").contains(&format!(".{inner}."));
        self.key == place || within(&self.key, place) || within(place, &self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CODE: Code = Code { id: "L999", level: Level::Info, title: "", why: "", repair: None };

    #[test]
    fn a_module_and_its_tensors_are_one_place() {
        let finding = Finding::new(&CODE, "base_model.model.a.q_proj.lora_A.weight", "");
        assert!(finding.is_at("a.q_proj") && finding.is_at("base_model.model.a.q_proj.lora_A.weight"));
        assert!(!finding.is_at("a.q") && !finding.is_at("") && !finding.is_at("b.q_proj"));
        assert!(Finding::new(&CODE, "rank_pattern", "").is_at("rank_pattern.a.b"));
        assert!(Finding::new(&CODE, "", "").is_at("") && !Finding::new(&CODE, "", "").is_at("r"));
    }
}
