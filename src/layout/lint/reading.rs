//! What the layout's own reader makes of the files: its error and its notes, where no check has said it better.

use std::collections::HashSet;

use crate::adapter::finding::Level;
use crate::adapter::{Adapter, Delta, Finding, Severity};
use crate::error::Kind;
use crate::layout::{Layout, Source};

use super::{codes, scaling};

/// Findings that a note is compared with beyond their exact keys: a file may have very many of both.
const MAX_COMPARED: usize = 1024;

/// Reads the adapter and adds what the reader says.
pub(super) fn check(source: &Source, layout: &dyn Layout, findings: &mut Vec<Finding>) -> Option<Adapter> {
    let (adapter, notes) = match layout.read(source) {
        Ok(read) => read,
        Err(e) => {
            let said = |f: &Finding| {
                f.code.level == Level::Error && (f.is_at(e.key().unwrap_or_default()) || e.key().is_none())
            };
            if !findings.iter().any(said) {
                let code = if e.kind() == Kind::Unsupported { &codes::NOT_MERGEABLE } else { &codes::REFUSED };
                findings.push(Finding::of_error(code, &e).or_file(&source.tensor_file));
            }
            if e.kind() == Kind::Unsupported {
                findings.retain(|f| f.code != &codes::NO_TENSORS); // they may be elsewhere
            }
            return None;
        }
    };
    if let Some(opaque) = opaque(&adapter) {
        // Neither its fields nor its files are known.
        findings.retain(|f| f.code != &codes::NO_TENSORS);
        findings.push(opaque.or_file(&source.tensor_file));
        return Some(adapter);
    }
    let exact: HashSet<String> = findings.iter().map(|f| f.key.clone()).collect();
    let checked = findings.len().min(MAX_COMPARED);
    for note in notes {
        let near = || findings.iter().take(checked).any(|f| f.is_at(&note.key));
        if !note.key.is_empty() && (exact.contains(&note.key) || near()) {
            continue;
        }
        let code = if note.severity == Severity::Lossy { &codes::LEFT_OUT } else { &codes::REMARK };
        findings.push(Finding::new(code, note.key, note.text).or_file(&source.tensor_file));
    }
    let by_config = layout.name() == "peft" && adapter.declared.eq_ignore_ascii_case("LORA"); // `scaling` looks there
    if !by_config {
        findings.extend(odd_scales(&adapter).into_iter().map(|f| f.or_file(&source.tensor_file)));
    }
    Some(adapter)
}

/// Each unusual factor of an adapter of any layout once.
fn odd_scales(adapter: &Adapter) -> Vec<Finding> {
    let factors = adapter.targets.iter().flat_map(|(path, target)| {
        let factor = |delta: &Delta| match delta {
            Delta::LowRank(factors) => Some(factors.factor()),
            _ => None,
        };
        target.weight.iter().filter_map(factor).map(|factor| (path.as_str(), factor))
    });
    scaling::odd_scales(factors)
}

/// One finding for all that cannot be merged: it is the same for every module.
fn opaque(adapter: &Adapter) -> Option<Finding> {
    let mut all = adapter.targets.iter().flat_map(|(path, t)| t.weight.iter().chain(&t.bias).map(move |d| (path, d)));
    all.find_map(|(path, delta)| match delta {
        Delta::Opaque(opaque) => {
            Some(Finding::new(&codes::NOT_MERGEABLE, path.as_str(), format!("{}: {}", opaque.kind, opaque.reason)))
        }
        _ => None,
    })
}
