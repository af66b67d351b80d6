//! Tied embeddings: one matrix in the file, used in two or more places of the model.
//!
//! An adapter on one of the uses leaves the others as they are, so the merged model needs a matrix for each. What PEFT
//! does in each case is in `docs/layouts/peft.md`.

use std::collections::{BTreeMap, BTreeSet};

use super::Applied;
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::adapter::{Adapter, Note, Target};
use crate::model::embedding::{self, TiedUse};
use crate::model::{BaseModel, Embeddings};

/// What becomes of the uses.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Module paths in memory of uses that the adapter changes, and the keys they have or get as tensors of their own.
    own: BTreeMap<String, String>,
    /// Module paths of uses whose change is that of the input once more.
    repeated: BTreeSet<String>,
    /// Module paths of uses that keep to the input, and the bias that is tied with them.
    biases: BTreeMap<String, String>,
    /// Module path of the target whose change counts for every use.
    everywhere: Option<String>,
    /// The keys that such a change applies to as well, and what they copy, where another adapter parts the uses.
    also: Vec<(String, String)>,
    /// Tensors that the base leaves out and the merged model has, each a copy of another: key and what it copies.
    pub untied: Vec<(String, String)>,
    /// The case, in words.
    pub note: Option<Note>,
}

impl Plan {
    /// The key on disk of the embedding for the target at `path`, where the adapter names a use that the file leaves out.
    pub fn own_key(&self, path: &str) -> Option<&str> {
        self.own.get(path).map(String::as_str)
    }

    /// The tensors of other uses that the change of the target at `path` reaches as well: key and what it copies.
    pub fn also_at(&self, path: &str) -> &[(String, String)] {
        if self.everywhere.as_deref() == Some(path) { &self.also } else { &[] }
    }

    /// The tensor that a use of the embedding has as its bias, where the two are tied as well.
    pub fn tied_bias(&self, path: &str) -> Option<&str> {
        self.biases.get(path).map(String::as_str)
    }

    /// Whether the target at `path` says what another one says already.
    pub fn is_repeated(&self, path: &str) -> bool {
        self.repeated.contains(path)
    }
}

/// Decides for all adapters: where one parts the uses, what another one changes at all of them is written to each.
pub fn plans(base: &BaseModel, adapters: &[Applied]) -> Vec<Plan> {
    let mut plans: Vec<_> = adapters.iter().map(|a| plan(base, a.adapter)).collect();
    let shared = base.embeddings().input.unwrap_or_default();
    let parted: BTreeSet<_> = plans.iter().flat_map(|p| &p.untied).filter(|(_, of)| *of == shared).cloned().collect();
    // What the file holds by itself is kept in step, too.
    let stored = base.embeddings().uses.into_iter().filter(|u| base.tensor(&u.key).is_some());
    let parted: Vec<_> = parted.into_iter().chain(stored.map(|u| (u.key, shared.clone()))).collect();
    plans.iter_mut().for_each(|p| p.also.clone_from(&parted));
    plans
}

/// Decides for one adapter.
fn plan(base: &BaseModel, adapter: &Adapter) -> Plan {
    let mut embeddings = base.embeddings();
    let Some(shared) = embeddings.input.clone().filter(|_| embeddings.tied && !embeddings.uses.is_empty()) else {
        return Plan::default();
    };
    let shared = shared.as_str();
    // An adapter of the same bare model calls the embedding what the file calls it; one of a model around it does not.
    if adapter.targets.keys().any(|p| p.tensor("weight") == shared) {
        embeddings.uses.retain(|tied| !tied.around);
    }
    let targets = || adapter.targets.iter().filter(|(_, t)| !t.weight.is_empty());
    let used: Vec<_> = targets()
        .filter_map(|(p, t)| Some((p.as_str(), t, embeddings.uses.iter().position(|u| is_at(p.as_str(), u))?)))
        .collect();
    let input = targets().find(|(p, _)| {
        let found = || base.names.find(&p.tensor("weight"));
        !used.iter().any(|(path, ..)| *path == p.as_str()) && found().is_some_and(|f| f.plain() == Some(shared))
    });
    let everywhere = input.map(|(path, _)| path.to_string());
    let input = input.map(|(_, target)| target);
    let follows = |target: &Target| adapter.ties_embeddings || input.is_some_and(|i| same(i, target));
    let all_follow = used.iter().map(|(.., n)| n).collect::<BTreeSet<_>>().len() == embeddings.uses.len()
        && used.iter().all(|(_, target, _)| follows(target));
    let Some(first) = embeddings.uses.first() else { return Plan::default() };
    let say = |text: &str| Some(Note::info(&first.key, text));
    match (input, used.as_slice()) {
        (None, []) => Plan::default(),
        (Some(i), []) if changes_both(i, base) => Plan {
            everywhere,
            note: say("tied to the input embedding, which the adapter changes for both uses"),
            ..Plan::default()
        },
        (None, [(path, target, _)]) if changes_both(target, base) => Plan {
            own: BTreeMap::from([((*path).to_string(), shared.to_string())]),
            everywhere: Some((*path).to_string()),
            note: Some(Note::info(shared, format!("tied to `{path}`, which the adapter changes for every use"))),
            ..Plan::default()
        },
        (Some(_), []) if adapter.ties_embeddings => Plan {
            everywhere,
            note: say("tied to the input embedding; the adapter asks for both uses to follow (ensure_weight_tying)"),
            ..Plan::default()
        },
        (Some(_), _) if all_follow => Plan {
            everywhere,
            repeated: used.iter().map(|(path, ..)| (*path).to_string()).collect(),
            biases: used
                .iter()
                .filter_map(|(path, _, n)| {
                    let (_, of) = embeddings.uses.get(*n)?.bias.clone()?;
                    Some(((*path).to_string(), of))
                })
                .collect(),
            note: say("tied to the input embedding, and the adapter changes both uses alike; merged once"),
            ..Plan::default()
        },
        (input, _) => Plan {
            own: used
                .iter()
                .filter_map(|(p, _, n)| Some(((*p).to_string(), embeddings.uses.get(*n)?.key.clone())))
                .collect(),
            untied: apart(&embeddings, shared),
            note: say(match (input, used.is_empty()) {
                (_, true) => {
                    "the base ties it to the input embedding and the adapter changes only that; written by itself with \
                     the base's values, tie_word_embeddings becomes false"
                }
                (None, _) => {
                    "the base ties it to the input embedding and the adapter changes only the output; written by \
                     itself, tie_word_embeddings becomes false"
                }
                _ => {
                    "the base ties it to the input embedding and the adapter changes both differently; written by \
                     itself, tie_word_embeddings becomes false"
                }
            }),
            ..Plan::default()
        },
    }
}

/// Every use as a tensor of its own.
fn apart(embeddings: &Embeddings, shared: &str) -> Vec<(String, String)> {
    let biases = embeddings.uses.iter().filter_map(|u| u.bias.clone());
    embeddings.uses.iter().map(|u| (u.key.clone(), shared.to_string())).chain(biases).collect()
}

/// Whether a module path in memory is this use, whatever wraps the model.
fn is_at(path: &str, tied: &TiedUse) -> bool {
    let ends = path == tied.path || path.strip_suffix(&tied.path).is_some_and(|rest| rest.ends_with('.'));
    ends || (tied.path == "lm_head" && embedding::is_output(path))
}

/// New rows for tokens, and a replacement of another size, stand for both uses: PEFT keeps the tie for them.
fn changes_both(target: &Target, base: &BaseModel) -> bool {
    let input = base.embeddings().input.unwrap_or_default();
    let rows = base.tensor(&input).map(|(_, t)| t.shape.clone());
    target.weight.iter().all(|delta| match delta {
        Delta::TokenRows(_) => true,
        Delta::Full(Full { tensor, mode: Mode::Replace }) => Some(&tensor.shape) != rows.as_ref(),
        _ => false,
    })
}

/// Whether two targets hold the same values.
fn same(a: &Target, b: &Target) -> bool {
    let (a, b) = (a.tensors(), b.tensors());
    a.len() == b.len() && a.iter().zip(&b).all(|((_, x), (_, y))| x.bytes.as_slice() == y.bytes.as_slice())
}
