//! Tuners that change nothing but whole tensors, and those that cannot become part of a weight at all.

use super::{Tuner, Writing, take_modules};
use crate::adapter::delta::{Delta, Opaque};
use crate::error::{Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Role;
use crate::layout::peft::saved::{TOKENS_OF_TUNER, target};
use crate::layout::peft::writer::Writer;

/// Rows of an embedding; the shared reader has taken them before this is called.
pub static TRAINABLE_TOKENS: Tuner = Tuner {
    peft_type: "TRAINABLE_TOKENS",
    roles: &[],
    fields: &[],
    read: |_| Ok(()),
    writing: Some(Writing { fields: TOKENS_FIELDS, write: write_tokens }),
};

/// The config as PEFT 0.21 writes it.
const TOKENS_FIELDS: &[(&str, &str)] = &[("init_weights", "true"), ("token_indices", "[]")];

const INPUT: &str = "it adds to the input of the model, not to its weights";
const ROUTED: &str = "what it adds depends on the input";
const STRUCTURE: &str = "it changes the structure of the model, not its weights";
const CLUSTERED: &str = "it needs a clustering of the base that is not in the file";

/// Tuners whose adapters can be inspected and nothing more.
pub static NOT_MERGEABLE: &[&Tuner] = &[
    &opaque("PROMPT_TUNING", |r| put(r, "prompt tuning", INPUT)),
    &opaque("MULTITASK_PROMPT_TUNING", |r| put(r, "multitask prompt tuning", INPUT)),
    &opaque("P_TUNING", |r| put(r, "p-tuning", INPUT)),
    &opaque("PREFIX_TUNING", |r| put(r, "prefix tuning", INPUT)),
    &opaque("CARTRIDGE", |r| put(r, "cartridge", INPUT)),
    &opaque("CPT", |r| put(r, "context-aware prompt tuning", INPUT)),
    &opaque("ADAPTION_PROMPT", |r| put(r, "adaption prompt", INPUT)),
    &opaque("XLORA", |r| put(r, "X-LoRA", ROUTED)),
    &opaque("POLY", |r| put(r, "Poly", ROUTED)),
    &opaque("LILY", |r| put(r, "Lily", ROUTED)),
    &opaque("SHADOW", |r| put(r, "SHADOW", STRUCTURE)),
    &opaque("ADAMSS", |r| put(r, "AdaMSS", CLUSTERED)),
    &opaque("PSOFT", |r| put(r, "PSOFT", SIGNS)),
    &opaque("FROD", |r| put(r, "FRoD", "it needs a factorisation of the base that is not in the file")),
];

/// `W + U S (R − 1) Vᵀ` over the first singular vectors of W (huggingface/peft, `src/peft/tuners/psoft`): an element of R
/// off the diagonal couples two of them, so its sign depends on theirs, which a decomposition leaves open. PEFT
/// decomposes the base anew when it loads such an adapter.
const SIGNS: &str = "it depends on the signs of the base's singular vectors, which are not in the file and differ \
                     between the libraries that compute them";

const ANY: &[Role] = &[];

const fn opaque(peft_type: &'static str, read: fn(&mut Reader) -> Result<()>) -> Tuner {
    Tuner { peft_type, roles: ANY, fields: &[], read, writing: None }
}

/// Everything in the file under one name: the saved tensors were read as replacements and are taken back.
fn put(reader: &mut Reader, kind: &'static str, reason: &'static str) -> Result<()> {
    let mut tensors: Vec<_> =
        take_modules(reader).into_iter().flat_map(|(_, parts)| parts).map(|(_, p)| p.tensor).collect();
    tensors.extend(std::mem::take(&mut reader.modules.shared).into_iter().map(|(_, p)| p.tensor));
    for (_, old) in std::mem::take(&mut reader.adapter.targets) {
        tensors.extend(old.tensors().into_iter().map(|(_, t)| t.clone()));
    }
    target(reader, "").weight.push(Delta::Opaque(Opaque { kind, reason, tensors }));
    Ok(())
}

/// Says the ids; the shared writer of whole tensors writes the rows.
fn write_tokens(writer: &mut Writer) -> Result<()> {
    let mut listed: Option<&Vec<usize>> = None;
    for (path, target) in &writer.adapter.targets {
        let Some(Delta::TokenRows(rows)) = target.weight.first() else { continue };
        if *listed.get_or_insert(&rows.ids) != &rows.ids {
            let what = "other token ids than those of another module; PEFT has one list for the whole adapter";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        writer.selection.modules.insert(path.to_string());
    }
    writer.set(TOKENS_OF_TUNER, listed.cloned().unwrap_or_default());
    Ok(())
}
