//! What is wrong with an adapter beside a base, or may be: modules that match nothing, changes that do not fit, tied
//! embeddings, vocabularies, another base than the one it was made for.
//!
//! Nothing is calculated. Whether a module fits is asked of the merge itself, one module at a time.

mod codes;

use std::collections::{BTreeMap, BTreeSet};

pub use codes::CODES;

use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::adapter::finding::Level;
use crate::adapter::{Adapter, Finding, Target};
use crate::error::{Error, Kind, Result};
use crate::model::{BaseModel, TiedUse, embedding};
use crate::names::{How, ModulePath};
use crate::ops::merge::{self, Applied, Options};
use crate::tensor::{Hash, Tensor};

/// An adapter and what it is known by.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What it does.
    pub adapter: &'a Adapter,
    /// Hash of its tensors.
    pub hash: Hash,
    /// Fingerprint of the base it was made for, where it names one.
    pub base: Option<Hash>,
}

/// Everything that can be seen.
pub fn check(base: &BaseModel, subject: &Subject) -> Vec<Finding> {
    let mut out = Vec::new();
    out.extend(quantised(base));
    out.extend(other_base(base, subject));
    out.extend(merged_before(base, subject));
    out.extend(other_name(base, subject.adapter));
    out.extend(tied(base, subject.adapter));
    let sizes = subject.adapter.targets.iter().flat_map(|(path, target)| embeddings(base, path, target));
    out.extend(sizes);
    out.extend(subject.adapter.targets.iter().filter_map(|(path, target)| unchanged(base, path, target)));
    out.extend(subject.adapter.targets.iter().filter_map(|(path, target)| other_start(base, path, target)));
    out.extend(saved_by_letters(base, subject.adapter));
    if base.closed_by().is_none() {
        modules(base, subject.adapter, &mut out);
    }
    out
}

fn quantised(base: &BaseModel) -> Option<Finding> {
    let scheme = base.closed_by()?;
    let what = format!("the base is quantised ({scheme}), and nothing can be merged into it");
    Some(Finding::new(&codes::QUANTISED, "", what).hint("name the 16-bit model it was made from"))
}

fn other_base(base: &BaseModel, subject: &Subject) -> Option<Finding> {
    let (named, own) = (subject.base?, base.fingerprint());
    let before = base.provenance().provenance.is_some_and(|p| p.base == named);
    let what = format!("made for the base with fingerprint {named}, this one has {own}");
    (named != own && !before).then(|| Finding::new(&codes::OTHER_BASE, "", what))
}

fn merged_before(base: &BaseModel, subject: &Subject) -> Option<Finding> {
    let strengths = base.provenance().provenance?.strengths_of(subject.hash);
    let all = strengths.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    (strengths.iter().sum::<f64>() != 0.0)
        .then(|| Finding::new(&codes::MERGED_BEFORE, "", format!("merged into this base before, at strength {all}")))
}

fn other_name(base: &BaseModel, adapter: &Adapter) -> Option<Finding> {
    let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let named = adapter.about.get("base_model_name_or_path").filter(|name| !name.is_empty())?;
    let own = base.config.as_ref()?.get("_name_or_path")?.as_str().filter(|name| !name.is_empty())?;
    let what = format!("the adapter names `{named}`, the base is called `{own}`");
    (last(named) != last(own)).then(|| Finding::new(&codes::OTHER_NAME, "base_model_name_or_path", what))
}

/// A change of one use of a tied embedding, the other left as it is.
fn tied(base: &BaseModel, adapter: &Adapter) -> Option<Finding> {
    let embeddings = base.embeddings();
    let input = embeddings.input.as_deref().filter(|_| embeddings.tied)?;
    let uses: Vec<_> = embeddings.uses.iter().filter(|u| !u.around).collect();
    let changed = || adapter.targets.iter().filter(|(_, t)| !t.weight.is_empty());
    let at_use =
        |path: &str| uses.iter().any(|u| is_end(path, &u.path) || u.path == "lm_head" && embedding::is_output(path));
    let output = changed().find(|(path, _)| at_use(path.as_str()));
    let at_input = |path: &ModulePath| {
        !at_use(path.as_str()) && base.names.find(&path.tensor("weight")).is_some_and(|f| f.plain() == Some(input))
    };
    let both = |target: &Target| target.weight.iter().all(|delta| changes_both(base, input, delta));
    let (path, other) = match (changed().find(|(path, _)| at_input(path)), output) {
        (Some((path, target)), None) if !both(target) && !adapter.ties_embeddings => (path, "output"),
        (None, Some((path, target))) if !both(target) => (path, "input"),
        _ => return None,
    };
    let what = format!("the base ties input and output, and the adapter leaves the {other} as it is");
    let finding = Finding::new(&codes::TIED, path.as_str(), what);
    Some(finding.hint("merge writes a matrix for each; train both together (ensure_weight_tying) to keep one"))
}

/// New rows for tokens, and a replacement of another size, stand for both uses.
fn changes_both(base: &BaseModel, input: &str, delta: &Delta) -> bool {
    match delta {
        Delta::TokenRows(_) => true,
        Delta::Full(Full { tensor, mode: Mode::Replace }) => {
            base.tensor(input).is_none_or(|(_, stored)| stored.shape != tensor.shape)
        }
        _ => false,
    }
}

fn is_end(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The tensor of the base that a target's weight is, where it is one as a whole.
fn stored<'b>(base: &'b BaseModel, path: &ModulePath, target: &Target) -> Option<&'b Tensor> {
    let name = if target.is_parameter() { path.to_string() } else { path.tensor("weight") };
    let found = base.names.find(&name)?;
    base.tensor(found.plain()?).map(|(_, tensor)| tensor)
}

/// Rows of embeddings: those that are brought, and those that are replaced.
fn embeddings(base: &BaseModel, path: &ModulePath, target: &Target) -> Vec<Finding> {
    let is_embedding = embedding::is_input(path.as_str()) || embedding::is_output(path.as_str());
    let uses = base.embeddings();
    let input = || uses.input.as_ref().and_then(|key| base.tensor(key)).map(|(_, tensor)| tensor);
    let Some(rows) = stored(base, path, target).or_else(input).and_then(|t| t.shape.dims().first().copied()) else {
        return Vec::new();
    };
    let finding = |delta: &Delta| match delta {
        Delta::Full(Full { tensor, mode: Mode::Replace }) if is_embedding => {
            let own = tensor.shape.dims().first().copied().unwrap_or(0);
            let what = format!("{own} rows, and the base has {rows}");
            let finding = Finding::new(&codes::VOCABULARY, path.as_str(), what);
            (own != rows).then(|| finding.hint("use the tokenizer that lies beside the adapter"))
        }
        Delta::TokenRows(tokens) => {
            let beyond = tokens.ids.iter().filter(|id| **id >= rows).count();
            let what = format!("{beyond} of {} ids are not below the {rows} rows of the base", tokens.ids.len());
            (beyond > 0).then(|| Finding::new(&codes::TOKENS_BEYOND, path.as_str(), what))
        }
        _ => None,
    };
    target.weight.iter().filter_map(finding).collect()
}

/// A replacement that replaces nothing.
fn unchanged(base: &BaseModel, path: &ModulePath, target: &Target) -> Option<Finding> {
    let [Delta::Full(Full { tensor, mode: Mode::Replace })] = target.weight.as_slice() else { return None };
    let same = stored(base, path, target).is_some_and(|stored| stored == tensor);
    let what = "saved whole, and the same as the base's to the bit";
    same.then(|| Finding::new(&codes::UNCHANGED, path.as_str(), what))
}

/// A module whose name in the base begins in another way.
fn other_start(base: &BaseModel, path: &ModulePath, target: &Target) -> Option<Finding> {
    let name = if target.is_parameter() { path.to_string() } else { path.tensor("weight") };
    let found = base.names.find(&name).filter(|found| found.how == How::Suffix)?;
    let key = &found.pieces.first()?.key;
    Some(Finding::new(&codes::OTHER_START, path.as_str(), format!("no `{name}` in the base, only `{key}`")))
}

/// Entries of PEFT's `modules_to_save` that are the end of modules which the adapter does not bring.
fn saved_by_letters(base: &BaseModel, adapter: &Adapter) -> Vec<Finding> {
    let field = "modules_to_save";
    let text = adapter.carried.fields.iter().find(|(name, _)| adapter.carried.layout == "peft" && name == field);
    let listed: Vec<String> = text.and_then(|(_, text)| serde_json::from_str(text).ok()).unwrap_or_default();
    if listed.is_empty() {
        return Vec::new();
    }
    let brought: BTreeSet<String> = adapter
        .targets
        .keys()
        .filter_map(|path| base.names.find(&path.tensor("weight"))?.plain().map(str::to_string))
        .collect();
    let weights = base.weights();
    let finding = |entry: &String| {
        let more =
            |path: &&ModulePath| path.as_str().ends_with(entry.as_str()) && !brought.contains(&path.tensor("weight"));
        let mut others = weights.iter().map(|(path, _)| path).filter(more);
        let first = others.next()?;
        let what = format!("`{entry}` is also the end of `{first}`, of which the file has nothing");
        Some(Finding::new(&codes::SAVED_BY_LETTERS, field, what).hint("write the paths of the modules in full"))
    };
    listed.iter().filter_map(finding).collect()
}

/// Asks the merge: first for all, then, where it refuses, for each module by itself.
fn modules(base: &BaseModel, adapter: &Adapter, out: &mut Vec<Finding>) {
    if adapter.targets.values().any(|t| t.weight.iter().chain(&t.bias).any(|d| matches!(d, Delta::Opaque(_)))) {
        return; // said already
    }
    let Err(whole) = try_merge(base, adapter) else { return };
    let errors = out.iter().filter(|f| f.code.level == Level::Error);
    let known: BTreeSet<String> = errors.map(|f| f.key.clone()).collect();
    let uses = base.embeddings().uses;
    let alone = |paths: &[&ModulePath]| {
        let targets: BTreeMap<_, _> =
            paths.iter().filter_map(|p| Some(((*p).clone(), adapter.targets.get(*p)?.clone()))).collect();
        let residual_base = adapter.residual_base.clone();
        let part = Adapter { targets, residual_base, ties_embeddings: adapter.ties_embeddings, ..Adapter::default() };
        try_merge(base, &part)
    };
    // What goes beside a module that fits is judged beside it: a head, for one.
    let fits = adapter.targets.keys().find(|path| alone(&[path]).is_ok());
    let mut failed = Vec::new();
    for (path, target) in &adapter.targets {
        if known.contains(path.as_str()) || Some(path) == fits {
            continue;
        }
        if is_absent(base, path, target, &uses) {
            failed.push((path, target, Error::missing("no such tensor")));
            continue;
        }
        let both: Vec<&ModulePath> = fits.into_iter().chain([path]).collect();
        if let Err(e) = alone(&both) {
            failed.push((path, target, e));
        }
    }
    let same = failed.len() > 1 && failed.iter().all(|(.., e)| e.key() == whole.key() && e.what() == whole.what());
    if same || failed.is_empty() && known.is_empty() {
        out.push(Finding { file: None, ..Finding::of_error(&codes::REFUSED, &whole) });
        return;
    }
    out.extend(failed.iter().map(|(path, target, e)| misfit(base, path, target, e)));
}

/// Whether nothing can be meant in the base, so that the merge need not be asked.
fn is_absent(base: &BaseModel, path: &ModulePath, target: &Target, uses: &[TiedUse]) -> bool {
    let replaced = target.weight.iter().any(|d| matches!(d, Delta::Full(Full { mode: Mode::Replace, .. })));
    let tied = uses.iter().any(|u| is_end(path.as_str(), &u.path)) || embedding::is_output(path.as_str());
    let names = [path.to_string(), path.tensor("weight"), path.tensor("in_proj_weight")];
    !target.weight.is_empty() && !replaced && !tied && names.iter().all(|name| base.names.find(name).is_none())
}

fn try_merge(base: &BaseModel, adapter: &Adapter) -> Result<()> {
    let applied = Applied { label: String::new(), strength: 1.0, adapter, identity: None };
    merge::merge(base, &[applied], &Options { allow_other_base: true, allow_repeat: true, ..Options::default() })
        .map(drop)
}

fn misfit(base: &BaseModel, path: &ModulePath, target: &Target, e: &Error) -> Finding {
    let name = if target.is_parameter() {
        path.to_string()
    } else if target.weight.is_empty() {
        path.tensor("bias")
    } else {
        path.tensor("weight")
    };
    let there = base.names.find(&name).is_some() || base.names.find(&path.tensor("weight")).is_some();
    if e.kind() != Kind::Missing {
        let mut finding = Finding::new(&codes::MISFIT, path.as_str(), e.what());
        finding.hint = e.advice().map(str::to_string);
        return finding;
    }
    if there {
        let what = "the adapter changes the bias of this layer, and the base has none there";
        return Finding::new(&codes::BIAS_UNMATCHED, path.as_str(), what);
    }
    let finding = Finding::new(&codes::UNMATCHED, path.as_str(), format!("no tensor `{name}` in the base"));
    match base.names.nearest(&name) {
        Some(nearest) => finding.hint(format!("the nearest is `{nearest}`")),
        None => finding.hint("is this the base model the adapter was trained on?"),
    }
}
