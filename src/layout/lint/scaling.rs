//! Ranks and scales: what the config says of them against the tensors (PEFT).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::adapter::Finding;
use crate::adapter::finding::Repair;
use crate::layout::peft::config::{Config, Patterns, matchers};

use super::config::changes_base;
use super::paths::{is_end, leaf};
use super::{Seen, codes};

/// What PEFT takes where the config says nothing.
const DEFAULT: usize = 8;
/// Scales outside of this range are unusual enough to be named.
const USUAL: std::ops::RangeInclusive<f64> = 1e-3..=64.0;
/// Modules, with their parameters, and pairs of a pattern and a module that are compared one by one, in search of patterns
/// that mean none: about a second.
const MOST_NAMES: usize = 1 << 20;
const MOST_PAIRS: usize = 1 << 26;

/// A module and the rank of its A.
struct Ranked<'a> {
    path: &'a str,
    rank: usize,
}

pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let Some(config) = &seen.config else { return Vec::new() };
    let mut out = idle_patterns(seen, config);
    let Some(config) = seen.lora() else { return out };
    let modules = ranked(seen, config);
    out.extend(missing(config, &modules));
    out.extend(ignored(config));
    if let Ok(patterns) = config.patterns("lora_alpha", DEFAULT) {
        out.extend(wrong_ranks(config, &patterns, &modules));
        // Factors cut out of a weight keep the scale of the rank that was asked for.
        let cut = changes_base(config);
        let rank = |m: &Ranked<'_>| patterns.rank_at(m.path).ok().filter(|r| cut && *r > m.rank).unwrap_or(m.rank);
        let factor = |m: &Ranked<'_>| patterns.scale_at(m.path).factor(rank(m));
        out.extend(odd_scales(modules.iter().map(|m| (m.path, factor(m)))));
        out.extend(scales_differ(config, modules.iter().map(factor)));
        out.extend(lora_bias(seen, config, &patterns, &modules));
    }
    out
}

/// Modules with factors of one layer. Stacks of experts hold several ranks in one matrix and are left to the reader.
fn ranked<'a>(seen: &'a Seen, config: &Config) -> Vec<Ranked<'a>> {
    let parameters = config.names("target_parameters").unwrap_or_default();
    let is_stack = |module: &str| {
        parameters.iter().any(|entry| match entry.rsplit_once('.') {
            Some((of, _)) => is_end(module, of),
            None => true,
        })
    };
    let of_a = seen.tuned().filter(|(_, role)| ["lora_A.weight", "lora_embedding_A"].contains(role));
    of_a.filter(|(key, _)| {
        key.tensor.shape.rank() >= 2 && key.tensor.elements() > 0 && !is_stack(key.spelling.module())
    })
    .filter_map(|(key, _)| Some(Ranked { path: key.spelling.module(), rank: *key.tensor.shape.dims().first()? }))
    .collect()
}

/// Entries of patterns that no module of the adapter matches. Most that do are the end of its path; of the others no more are
/// compared than can be in a moment, and where that is not all of them a finding says so.
fn idle_patterns(seen: &Seen, config: &Config) -> Vec<Finding> {
    if config.peft_type.eq_ignore_ascii_case("ADALORA") {
        return Vec::new(); // its patterns name tensors, and hold masks
    }
    const FIELDS: [&str; 2] = ["rank_pattern", "alpha_pattern"];
    if FIELDS.iter().all(|field| config.value(field).and_then(Value::as_object).is_none_or(Map::is_empty)) {
        return Vec::new();
    }
    let not_all = |field: &str| {
        Finding::new(
            &codes::IDLE_PATTERN,
            field,
            "too many for so many modules: not all were compared with each of them",
        )
    };
    let parameters = config.names("target_parameters").unwrap_or_default();
    let leaves: BTreeSet<&str> = parameters.iter().map(|entry| leaf(entry)).collect();
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (key, _) in seen.tuned() {
        let module = key.spelling.module();
        // The name of a parameter stands behind its module.
        names.extend(leaves.iter().map(|leaf| format!("{module}.{leaf}")));
        names.insert(module.to_string());
        if names.len() > MOST_NAMES {
            return vec![not_all("target_parameters")];
        }
    }
    if names.is_empty() {
        return Vec::new();
    }
    let inner = |name: &str| name.match_indices('.').map(|(at, _)| at + 1).collect::<Vec<_>>();
    let ends: HashSet<&str> =
        names.iter().flat_map(|name| inner(name).into_iter().chain([0]).filter_map(|at| name.get(at..))).collect();
    let mut left = MOST_PAIRS;
    let mut out = Vec::new();
    for field in FIELDS {
        for (text, matches) in matchers(config, field) {
            let Ok(matches) = matches else { continue };
            if ends.contains(text) && matches(text) {
                continue;
            }
            let Some(after) = left.checked_sub(names.len()) else {
                out.push(not_all(field));
                return out;
            };
            left = after;
            if !names.iter().any(|name| matches(name)) {
                let repair = Repair::Remove(field.to_string(), text.to_string());
                let key = format!("{field}.{text}");
                out.push(Finding::new(&codes::IDLE_PATTERN, key, "matches no module of this adapter").repair(repair));
            }
        }
    }
    out
}

fn missing(config: &Config, modules: &[Ranked]) -> Vec<Finding> {
    let mut out = Vec::new();
    if config.value("lora_alpha").is_none() {
        let what = format!("missing, and PEFT takes {DEFAULT}");
        let repair = Repair::Set("lora_alpha".to_string(), json!(DEFAULT));
        out.push(Finding::new(&codes::ALPHA_MISSING, "lora_alpha", what).repair(repair));
    }
    if config.value("r").is_none() {
        let repair = common(modules.iter()).map(|rank| Repair::Set("r".to_string(), json!(rank)));
        let what = match common(modules.iter()) {
            Some(rank) => format!("missing, and the tensors have rank {rank}"),
            None => format!("missing, and PEFT takes {DEFAULT}"),
        };
        out.push(Finding::new(&codes::RANK_MISSING, "r", what).maybe(repair));
    }
    out
}

/// The rank that all of them have.
fn common<'m, 'a: 'm>(mut modules: impl Iterator<Item = &'m Ranked<'a>>) -> Option<usize> {
    let first = modules.next()?.rank;
    modules.all(|m| m.rank == first).then_some(first)
}

fn ignored(config: &Config) -> Option<Finding> {
    let filled = |field: &&&str| config.value(field).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
    let rslora = config.flag("use_rslora").unwrap_or(false).then_some("use_rslora");
    let words: Vec<&str> =
        rslora.into_iter().chain(["rank_pattern", "alpha_pattern"].iter().filter(filled).copied()).collect();
    let first = words.first()?;
    Some(Finding::new(&codes::SCALE_IGNORED, *first, format!("{} set, which some programs ignore", words.join(", "))))
}

fn wrong_ranks(config: &Config, patterns: &Patterns, modules: &[Ranked]) -> Vec<Finding> {
    let cut = changes_base(config); // no more rank than the smaller side of the weight, whatever is asked for
    let blocks = config.value("use_bdlora").is_some();
    if config.value("r").is_none() || blocks {
        return Vec::new();
    }
    let wrong = |m: &&Ranked| patterns.rank_at(m.path).is_ok_and(|rank| rank != m.rank && !(cut && m.rank < rank));
    let wrong: Vec<&Ranked> = modules.iter().filter(wrong).collect();
    let no_patterns = config.value("rank_pattern").and_then(Value::as_object).is_none_or(Map::is_empty);
    let certain = no_patterns && wrong.len() == modules.len() && config.value("lora_alpha").is_some();
    let rank = common(modules.iter()).filter(|_| certain);
    let finding = |m: &&Ranked| {
        let said = patterns.rank_at(m.path).unwrap_or(patterns.rank);
        let what = format!("the config gives rank {said}, the tensors have {}", m.rank);
        let finding = Finding::new(&codes::RANK_WRONG, m.path, what);
        match rank {
            Some(rank) => finding.repair(Repair::Set("r".to_string(), json!(rank))),
            None => finding.hint("the config may belong to another adapter"),
        }
    };
    wrong.iter().map(finding).collect()
}

/// Each unusual factor once, with the first module that has it.
pub(super) fn odd_scales<'a>(factors: impl Iterator<Item = (&'a str, f64)>) -> Vec<Finding> {
    let mut odd: BTreeMap<u64, (&str, usize)> = BTreeMap::new();
    for (path, factor) in factors.filter(|(_, factor)| !USUAL.contains(&factor.abs())) {
        odd.entry(factor.to_bits()).or_insert((path, 0)).1 += 1;
    }
    let finding = |(bits, (path, count)): (u64, (&str, usize))| {
        let factor = f64::from_bits(bits);
        let more = if count > 1 { format!(" of this and {} more modules", count - 1) } else { String::new() };
        Finding::new(&codes::ODD_SCALE, path, format!("scale {factor}{more}, expected 0.001 to 64"))
    };
    odd.into_iter().map(finding).collect()
}

/// Scales that differ although nothing says that they should.
fn scales_differ(config: &Config, factors: impl Iterator<Item = f64>) -> Option<Finding> {
    if config.value("alpha_pattern").and_then(Value::as_object).is_some_and(|map| !map.is_empty()) {
        return None;
    }
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    factors.for_each(|factor| *counts.entry(factor.to_bits()).or_default() += 1);
    let mut counts: Vec<(usize, f64)> = counts.into_iter().map(|(bits, n)| (n, f64::from_bits(bits))).collect();
    counts.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let [(most, usual), .., (least, other)] = counts.as_slice() else { return None };
    let what = format!("scale {usual} for {most} modules, {other} for {least}, and one alpha for all");
    Some(Finding::new(&codes::SCALES_DIFFER, "rank_pattern", what))
}

/// Biases of B that the config does not announce: differences of the bias, to be added as they are.
fn lora_bias(seen: &Seen, config: &Config, patterns: &Patterns, modules: &[Ranked]) -> Vec<Finding> {
    if config.flag("lora_bias").unwrap_or(true) {
        return Vec::new();
    }
    let with: Vec<_> = seen.tuned().filter(|(_, role)| *role == "lora_B.bias").map(|(key, _)| key).collect();
    let ranks: HashMap<&str, usize> = modules.iter().map(|m| (m.path, m.rank)).collect();
    let factor = |path: &str| Some(patterns.scale_at(path).factor(*ranks.get(path)?));
    let same = with.iter().all(|key| factor(key.spelling.module()) == Some(1.0));
    let finding = |key: &&super::Key| {
        let what = "a bias of B, and lora_bias is not set: PEFT drops it";
        let finding = Finding::new(&codes::LORA_BIAS, key.key, what).or_file(&seen.source.tensor_file);
        match same {
            true => finding.repair(Repair::Set("lora_bias".to_string(), json!(true))),
            false => finding.hint("`lora-tool convert --to peft` divides it by the scale and sets lora_bias"),
        }
    };
    with.iter().map(finding).collect()
}
