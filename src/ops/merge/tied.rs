//! Tied embeddings: one matrix, used at both ends of the model.
//!
//! An adapter on one of the two uses leaves the other as it is, so the merged model needs two matrices. What PEFT does
//! in each case is in `docs/layouts/peft.md`.

use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::adapter::{Adapter, Note, Target};
use crate::model::{BaseModel, Embeddings, embedding};

/// What one adapter means for the two uses.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Module path in memory of the output embedding, which becomes a tensor of its own.
    output: Option<String>,
    /// Module path of an output embedding whose change is that of the input once more.
    repeated: Option<String>,
    /// Module path of an input embedding whose change is meant for both uses.
    both: Option<String>,
    /// Whether the two uses part.
    pub parts: bool,
    /// Key of the output embedding as a tensor of its own.
    pub key: String,
    /// The case, in words.
    pub note: Option<Note>,
}

impl Plan {
    /// The key of the output embedding, for the target at `path`, where it becomes a tensor of its own.
    pub fn own_output(&self, path: &str) -> Option<&str> {
        (self.output.as_deref() == Some(path)).then_some(self.key.as_str())
    }

    /// Whether the target at `path` says what another one says already.
    pub fn is_repeated(&self, path: &str) -> bool {
        self.repeated.as_deref() == Some(path)
    }

    /// The key that the change of the target at `path` also belongs to, once the two uses have parted.
    pub fn also_changes(&self, path: &str) -> Option<&str> {
        (self.parts && self.both.as_deref() == Some(path)).then_some(self.key.as_str())
    }
}

/// Decides for all adapters together: what parts the two uses for one parts them for all.
pub fn plans<'a>(base: &BaseModel, adapters: impl Iterator<Item = &'a Adapter>) -> Vec<Plan> {
    let embeddings = base.embeddings();
    let mut plans: Vec<Plan> = adapters.map(|adapter| plan(base, &embeddings, adapter)).collect();
    // A file that holds both matrices of a tied model leaves the tie to the config: a change of one only ends it.
    let stored = embeddings.tied && embeddings.output.is_some() && plans.iter().any(|p| p.both.is_some());
    let parts = stored || plans.iter().any(|p| p.parts);
    plans.iter_mut().for_each(|p| p.parts = parts);
    plans
}

fn plan(base: &BaseModel, embeddings: &Embeddings, adapter: &Adapter) -> Plan {
    if !embeddings.tied || embeddings.input.is_none() {
        return Plan::default();
    }
    let on = |test: fn(&str) -> bool| {
        adapter.targets.iter().find(|(p, t)| test(p.as_str()) && !t.weight.is_empty() && names_tied(base, p.as_str()))
    };
    let key = embeddings.output.clone().unwrap_or_else(|| embeddings.output_key());
    let told = |text: &str| Plan { key: key.clone(), note: Some(Note::info(&key, text)), ..Plan::default() };
    match (on(embedding::is_input), on(embedding::is_output)) {
        (None, None) => Plan { key: key.clone(), ..Plan::default() },
        (Some((path, i)), None) if changes_both(i, base, embeddings) => Plan {
            both: Some(path.to_string()),
            ..told("tied to the input embedding, which the adapter changes for both uses")
        },
        (Some((path, _)), None) if adapter.ties_embeddings => Plan {
            both: Some(path.to_string()),
            ..told("tied to the input embedding; the adapter asks for both uses to follow (ensure_weight_tying)")
        },
        (Some(_), None) => Plan {
            parts: true,
            ..told(
                "the base ties it to the input embedding and the adapter changes only that; written by itself with the \
                 base's values, tie_word_embeddings becomes false",
            )
        },
        (None, Some((path, _))) => Plan {
            output: Some(path.to_string()),
            parts: true,
            ..told(
                "the base ties it to the input embedding and the adapter changes only the output; written by itself, \
                 tie_word_embeddings becomes false",
            )
        },
        (Some((input, i)), Some((path, o))) if adapter.ties_embeddings || same(i, o) => Plan {
            repeated: Some(path.to_string()),
            both: Some(input.to_string()),
            ..told("tied to the input embedding, and the adapter changes both uses alike; merged once")
        },
        (Some(_), Some((path, _))) => Plan {
            output: Some(path.to_string()),
            parts: true,
            ..told(
                "the base ties it to the input embedding and the adapter changes both differently; written by itself, \
                 tie_word_embeddings becomes false",
            )
        },
    }
}

/// Input embeddings are found by name; the output often by none, since the file has no such tensor.
fn names_tied(base: &BaseModel, path: &str) -> bool {
    embedding::is_output(path) || base.names.find(&format!("{path}.weight")).is_some()
}

/// New rows for tokens, and a replacement of another size, stand for both uses: PEFT keeps the tie for them.
fn changes_both(target: &Target, base: &BaseModel, embeddings: &Embeddings) -> bool {
    let input = embeddings.input.as_deref().unwrap_or_default();
    let rows = base.tensor(input).map(|(_, t)| t.shape.clone());
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
