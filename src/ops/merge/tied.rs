//! Tied embeddings: one matrix in the file, used at both ends of the model.
//!
//! An adapter on one of the two uses leaves the other as it is, so the merged model needs two matrices. What PEFT does
//! in each case is in `docs/layouts/peft.md`.

use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::adapter::{Adapter, Note, Target};
use crate::model::{BaseModel, embedding};

/// What becomes of the two uses.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Module path in memory of the output embedding, and the key it gets as a tensor of its own.
    output: Option<(String, String)>,
    /// Module path of an output embedding whose change is that of the input once more.
    repeated: Option<String>,
    /// Whether the output keeps the base's values, which then have to be written under its key.
    pub keep_output: Option<String>,
    /// The case, in words.
    pub note: Option<Note>,
}

impl Plan {
    /// The key of the output embedding, for the target at `path`, where it becomes a tensor of its own.
    pub fn own_output(&self, path: &str) -> Option<String> {
        self.output.as_ref().filter(|(p, _)| p == path).map(|(_, key)| key.clone())
    }

    /// Whether the target at `path` says what another one says already.
    pub fn is_repeated(&self, path: &str) -> bool {
        self.repeated.as_deref() == Some(path)
    }
}

/// Decides for one adapter.
pub fn plan(base: &BaseModel, adapter: &Adapter) -> Plan {
    let embeddings = base.embeddings();
    if !embeddings.tied || embeddings.output.is_some() || embeddings.input.is_none() {
        return Plan::default();
    }
    let on = |test: fn(&str) -> bool| {
        adapter.targets.iter().find(|(p, t)| test(p.as_str()) && !t.weight.is_empty() && names_tied(base, p.as_str()))
    };
    let input = on(embedding::is_input);
    let output = on(embedding::is_output);
    let key = embeddings.output_key();
    let tied = |text: &str| Plan { note: Some(Note::info(&key, text)), ..Plan::default() };
    match (input, output) {
        (None, None) => Plan::default(),
        (Some((_, i)), None) if changes_both(i, base) => {
            tied("tied to the input embedding, which the adapter changes for both uses")
        }
        (Some(_), None) if adapter.ties_embeddings => {
            tied("tied to the input embedding; the adapter asks for both uses to follow (ensure_weight_tying)")
        }
        (Some(_), None) => Plan {
            keep_output: Some(key.clone()),
            note: Some(Note::info(
                &key,
                "the base ties it to the input embedding and the adapter changes only that; written by itself with the \
                 base's values, tie_word_embeddings becomes false",
            )),
            ..Plan::default()
        },
        (None, Some((path, _))) => Plan {
            output: Some((path.to_string(), key.clone())),
            note: Some(Note::info(
                &key,
                "the base ties it to the input embedding and the adapter changes only the output; written by itself, \
                 tie_word_embeddings becomes false",
            )),
            ..Plan::default()
        },
        (Some((_, i)), Some((path, o))) => {
            if adapter.ties_embeddings || same(i, o) {
                let text = "tied to the input embedding, and the adapter changes both uses alike; merged once";
                return Plan { repeated: Some(path.to_string()), ..tied(text) };
            }
            Plan {
                output: Some((path.to_string(), key.clone())),
                note: Some(Note::info(
                    &key,
                    "the base ties it to the input embedding and the adapter changes both differently; written by \
                     itself, tie_word_embeddings becomes false",
                )),
                ..Plan::default()
            }
        }
    }
}

/// Input embeddings are found by name; the output by none, since the file has no such tensor.
fn names_tied(base: &BaseModel, path: &str) -> bool {
    embedding::is_output(path) || base.names.find(&format!("{path}.weight")).is_some()
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
