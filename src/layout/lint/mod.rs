//! Looking for what is wrong with an adapter's files, or may be: every finding of the files as they are, whether or not
//! a reader takes them.
//!
//! Checks come first, file by file and concern by concern (`files`, `keys`, `values`, `config`, `scaling`, `selection`); then
//! the layout's own reader, whose error and notes are findings of their own where no check has said it better
//! (`reading`). `spelling` tells what a key would be in PEFT's own hand, `fix` makes the repairs. What only a base can tell is
//! in `ops/lint`.

mod codes;
mod config;
mod files;
pub mod fix;
mod keys;
mod paths;
mod reading;
mod scaling;
mod selection;
mod spelling;
mod values;

use std::path::Path;

pub use codes::CODES;

use crate::adapter::{Adapter, Finding};
use crate::error::Result;
use crate::layout::peft::config::Config;
use crate::layout::peft::tuner::{self, Tuner};
use crate::layout::{self, Given, Layout, Source};
use crate::tensor::Tensor;

use spelling::Spelling;

/// What came of looking.
#[derive(Debug)]
pub struct Looked {
    /// The files, where they could be opened.
    pub source: Option<Source>,
    /// The layout, where one claims them.
    pub layout: Option<&'static str>,
    /// The adapter, where its reader takes it.
    pub adapter: Option<Adapter>,
    /// What was found.
    pub findings: Vec<Finding>,
}

/// One tensor and its key taken apart.
struct Key<'a> {
    key: &'a str,
    tensor: &'a Tensor,
    spelling: Spelling,
    /// A role that is followed by something no tuner knows.
    broken: bool,
}

/// What the checks look at.
struct Seen<'a> {
    source: &'a Source,
    is_peft: bool,
    tuner: Option<&'static Tuner>,
    config: Option<Config>,
    keys: Vec<Key<'a>>,
}

impl<'a> Seen<'a> {
    fn of(source: &'a Source, layout: Option<&'static str>) -> Seen<'a> {
        let is_peft = layout == Some("peft");
        let raw = source.config.as_ref().filter(|_| is_peft).map(|(_, raw)| raw);
        let config = raw.and_then(|raw| Config::read(raw.clone()).ok());
        let tuner = config.as_ref().and_then(|config| tuner::by_type(&config.peft_type).ok());
        let tuner = tuner.or_else(|| tuner::by_type("LORA").ok().filter(|_| is_peft && raw.is_none()));
        // What cannot be merged has keys of its own making.
        let tuner = tuner.filter(|t| !tuner::none::NOT_MERGEABLE.iter().any(|n| n.peft_type == t.peft_type));
        let key = |(key, tensor): (&'a String, &'a Tensor)| {
            let spelling = match tuner {
                Some(tuner) => Spelling::of(key, tuner.roles),
                None => Some(Spelling::literal(key)),
            };
            let broken = spelling.is_none();
            Key { key, tensor, spelling: spelling.unwrap_or_else(|| Spelling::literal(key)), broken }
        };
        Seen { source, is_peft, tuner, config, keys: source.tensors.iter().map(key).collect() }
    }

    /// The config of PEFT's LoRA; none of any other kind.
    fn lora(&self) -> Option<&Config> {
        self.config.as_ref().filter(|config| config.peft_type.eq_ignore_ascii_case("LORA"))
    }

    /// Keys with a role of the tuner's.
    fn tuned(&self) -> impl Iterator<Item = (&Key<'a>, &str)> {
        self.keys.iter().filter_map(|key| Some((key, key.spelling.role.as_deref()?)))
    }

    /// Tensors of PEFT's that are saved whole, the base's own copies not among them.
    fn saved(&self) -> impl Iterator<Item = &Key<'a>> {
        let is_copy = |key: &Key| key.spelling.path.split('.').any(|c| c == "original_module");
        self.keys
            .iter()
            .filter(move |key| self.tuner.is_some() && key.spelling.role.is_none() && !key.broken && !is_copy(key))
    }
}

/// Opens and checks the adapter at `path`. `from` names its layout; an error only where there is none of that name.
pub fn look(path: &Path, from: Option<&str>, given: Given) -> Result<Looked> {
    let from = from.map(layout::named).transpose()?;
    match Source::open_with(path, given) {
        Ok(source) => Ok(look_at(source, from)),
        Err(e) => {
            let mut finding = Finding::of_error(&codes::UNREADABLE, &e);
            if e.file().is_some_and(files::is_pointer) {
                finding = finding.hint("this is a Git LFS pointer in place of the file: `git lfs pull` fetches it");
            }
            let findings = vec![finding];
            Ok(Looked { source: None, layout: None, adapter: None, findings })
        }
    }
}

/// Checks an adapter whose files are at hand.
fn look_at(source: Source, from: Option<&'static dyn Layout>) -> Looked {
    let mut findings = files::check(&source);
    let layout = match from.map_or_else(|| layout::detect(&source).map(|(layout, _)| layout), Ok) {
        Ok(layout) => Some(layout),
        Err(e) => {
            if !source.tensors.is_empty() {
                findings.push(Finding::of_error(&codes::UNKNOWN_LAYOUT, &e).or_file(&source.tensor_file));
            }
            None
        }
    };
    let seen = Seen::of(&source, layout.map(Layout::name));
    let of_tensors = [keys::check(&seen), values::check(&seen)].concat();
    findings.extend(of_tensors.into_iter().map(|f| f.or_file(&source.tensor_file)));
    let of_config = [config::check(&seen), scaling::check(&seen), selection::check(&seen)].concat();
    let config_path = source.config.as_ref().map_or(source.tensor_file.as_path(), |(path, _)| path);
    findings.extend(of_config.into_iter().map(|f| f.or_file(config_path)));
    let adapter = layout.and_then(|layout| reading::check(&source, layout, &mut findings));
    findings.sort_by_key(|f| (f.code.level, f.code.id));
    Looked { source: Some(source), layout: layout.map(Layout::name), adapter, findings }
}
