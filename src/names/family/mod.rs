//! What is called differently on disk and in memory: the rule sets of the model families, one file for each group.
//!
//! A model type that is not here has the same names in both. These tables are data: what their words mean is in
//! `rewrite`, and the order of the files is the order in which rules of several parts of one model are applied.

pub mod checkpoint;
mod detection;
mod encoder;
mod hybrid;
mod legacy;
mod llava;
mod moe;
mod multimodal;
mod text;
mod tower;

use super::rewrite::{Set, stack};

/// The groups, composite models first: their rules put the parts in place, and the rules of a part come after.
const GROUPS: &[&[Set]] = &[
    checkpoint::SETS,
    llava::SETS,
    multimodal::SETS,
    text::SETS,
    moe::SETS,
    hybrid::SETS,
    encoder::SETS,
    detection::SETS,
    tower::SETS,
];

/// The rule sets for these model types, each with the type that called for it. What holds for every model comes last.
pub fn sets(model_types: &[String]) -> Vec<(&'static Set, Option<&'static str>)> {
    let known = |set: &'static Set| {
        let name = model_types.iter().find_map(|wanted| set.names.iter().find(|name| *name == wanted))?;
        Some((set, Some(*name)))
    };
    let mut found: Vec<_> = GROUPS.iter().flat_map(|group| group.iter()).filter_map(known).collect();
    found.extend(legacy::SETS.iter().map(|set| (set, None)));
    if !model_types.iter().any(|name| interleaved(name)) {
        found.push((&ANY_EXPERTS, None));
    }
    found
}

/// Whether models of this type have gate and up in alternate columns, so that neither is a range.
pub fn interleaved(model_type: &str) -> bool {
    matches!(model_type, "gpt_oss" | "GptOssForCausalLM" | "GptOssModel" | "GptOssForSequenceClassification")
}

/// Experts as almost every family spells them, for the families that are too new for the tables.
const ANY_EXPERTS: Set = Set::whole(
    &["experts"],
    &[
        stack(&[r"\.experts\.\d+\.gate_proj\.weight", r"\.experts\.\d+\.up_proj\.weight"], &[".experts.gate_up_proj"]),
        stack(&[r"\.experts\.\d+\.down_proj\.weight"], &[".experts.down_proj"]),
        stack(&[r"\.experts\.\d+\.w1\.weight", r"\.experts\.\d+\.w3\.weight"], &[".experts.gate_up_proj"]),
        stack(&[r"\.experts\.\d+\.w2\.weight"], &[".experts.down_proj"]),
    ],
);

/// Every rule of every table.
#[cfg(test)]
pub fn all() -> impl Iterator<Item = &'static super::rewrite::Rule> {
    GROUPS.iter().flat_map(|group| group.iter()).chain(legacy::SETS).chain([&ANY_EXPERTS]).flat_map(|set| set.rules)
}
