//! What layouts say they hold is what they hold: a small adapter of each content, written and read again.

use std::collections::BTreeMap;

use lora_tool::adapter::delta::{Full, LowRank, TokenRows, full::Mode};
use lora_tool::adapter::{Adapter, Delta, Scale, ScaleRule, SiteKind, Spelling, Target};
use lora_tool::layout::{self, Content, Given, Holding, LAYOUTS, Layout};
use lora_tool::names::diffusion::Naming;
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{self, Scratch};

/// Sizes of the model that all of it is for: eight wide, two heads, one of keys.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "num_hidden_layers": 2,
    "vocab_size": 10, "tie_word_embeddings": false}"#;
const MOE: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 8,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_experts": 2, "vocab_size": 10, "tie_word_embeddings": false}"#;

/// Whole numbers, so that scales that are powers of two fold exactly.
fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<_> = (0..count).map(|i| ((i * 7 + seed) % 13) as f32 + 1.0).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
}

fn lora(outputs: usize, inputs: usize, rank: usize, alpha: f64) -> Delta {
    let scale = Scale { alpha, rule: ScaleRule::AlphaOverRank };
    let (a, b) = (tensor(&[rank, inputs], 1), tensor(&[outputs, rank], 5));
    Delta::LowRank(LowRank { a, b, scale, experts: None, name: "LoRA" })
}

fn on(site: SiteKind, delta: Delta) -> Target {
    Target { weight: vec![delta], site, ..Target::default() }
}

fn layer(delta: Delta) -> Target {
    on(SiteKind::Layer, delta)
}

/// Output projection of attention and the way back of the feed-forward part.
fn two(first: Target, second: Target) -> Vec<(&'static str, Target)> {
    vec![("model.layers.0.self_attn.o_proj", first), ("model.layers.1.mlp.down_proj", second)]
}

/// Small adapters that have this content.
fn probes(content: Content) -> Vec<(&'static str, Target)> {
    match content {
        Content::Linear => two(layer(lora(8, 8, 2, 4.0)), layer(lora(8, 12, 2, 4.0))),
        Content::Ranks => two(layer(lora(8, 8, 2, 4.0)), layer(lora(8, 12, 4, 8.0))),
        Content::Scales => two(layer(lora(8, 8, 2, 4.0)), layer(lora(8, 12, 2, 16.0))),
        Content::Dora => {
            let target = |delta| Target { magnitude: Some(tensor(&[8], 3)), ..layer(delta) };
            two(target(lora(8, 8, 2, 4.0)), target(lora(8, 12, 2, 4.0)))
        }
        Content::Embeddings => vec![("model.embed_tokens", on(SiteKind::Embedding, lora(8, 10, 2, 4.0)))],
        Content::Convolutions => {
            let scale = Scale { alpha: 4.0, rule: ScaleRule::AlphaOverRank };
            let (a, b) = (tensor(&[2, 3, 3, 3], 1), tensor(&[4, 2, 1, 1], 5));
            vec![("model.stem.conv", layer(Delta::LowRank(LowRank { a, b, scale, experts: None, name: "LoRA" })))]
        }
        Content::Experts => {
            let each = |number: usize| {
                [("gate_proj", 12, 8), ("up_proj", 12, 8), ("down_proj", 8, 12)].map(|(name, outputs, inputs)| {
                    let path: &'static str =
                        Box::leak(format!("model.layers.0.mlp.experts.{number}.{name}").into_boxed_str());
                    (path, layer(lora(outputs, inputs, 2, 4.0)))
                })
            };
            (0..2).flat_map(each).collect()
        }
        Content::Biases => {
            let bias = Delta::Full(Full { tensor: tensor(&[8], 2), mode: Mode::Add(2.0) });
            vec![("model.layers.0.self_attn.o_proj", Target { bias: vec![bias], ..layer(lora(8, 8, 2, 4.0)) })]
        }
        Content::Whole => {
            let whole = Delta::Full(Full { tensor: tensor(&[10, 8], 2), mode: Mode::Replace });
            vec![("model.layers.0.self_attn.o_proj", layer(lora(8, 8, 2, 4.0))), ("lm_head", layer(whole))]
        }
        Content::Tokens => {
            let rows = TokenRows { rows: tensor(&[2, 8], 2), ids: vec![1, 7] };
            vec![
                ("model.layers.0.self_attn.o_proj", layer(lora(8, 8, 2, 4.0))),
                ("model.embed_tokens", on(SiteKind::Layer, Delta::TokenRows(rows))),
            ]
        }
        Content::Products | Content::Rotations | Content::Rescaling | Content::Shared => Vec::new(),
    }
}

/// Fixtures of kinds that are no LoRA.
fn of_kind(content: Content) -> &'static [&'static str] {
    match content {
        Content::Products => &["loha", "lokr"],
        Content::Rotations => &["oft", "boft", "hra"],
        Content::Rescaling => &["ia3"],
        Content::Shared => &["vera", "randlora"],
        _ => &[],
    }
}

/// Layouts that know an adapter's model by its names.
const OF_FAMILIES: [&str; 3] = ["ai-toolkit", "omi", "onetrainer"];

/// The adapter with its modules in a part of a pipeline, for layouts of those; as one of FLUX.1, where names are told.
fn placed(layout: &dyn Layout, adapter: &Adapter) -> Adapter {
    if OF_FAMILIES.contains(&layout.name()) {
        let leaves = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"];
        let path =
            |n: usize| format!("transformer.transformer_blocks.{}.{}", n / leaves.len(), leaves[n % leaves.len()]);
        let targets = adapter.targets.values().enumerate().map(|(n, t)| (path(n).as_str().into(), t.clone())).collect();
        let spelling = Some(Spelling { family: "flux1", naming: Naming::Diffusers, extents: &[] });
        return Adapter { targets, spelling, ..adapter.clone() };
    }
    if layout.name() != "diffusers" {
        return adapter.clone();
    }
    let inside = |(path, t): (&lora_tool::names::ModulePath, &Target)| {
        (format!("transformer.{path}").as_str().into(), t.clone())
    };
    Adapter { targets: adapter.targets.iter().map(inside).collect(), ..adapter.clone() }
}

fn given(config: &str) -> Given {
    let map = serde_json::from_str(config).expect("a config");
    Given { base: Some(("config.json".into(), map)), alpha: Some(4.0) }
}

fn adapter(content: Content) -> Vec<(Adapter, Given)> {
    let config = if content == Content::Experts { MOE } else { CONFIG };
    let targets: BTreeMap<_, _> = probes(content).into_iter().map(|(path, t)| (path.into(), t)).collect();
    if targets.is_empty() {
        let open = |name: &&str| layout::open(&fixtures::adapter(name), None).expect("a fixture").adapter;
        return of_kind(content).iter().map(|name| (open(name), given(CONFIG))).collect();
    }
    let facts = layout::facts::of_config(&serde_json::from_str(config).expect("a config"));
    let mut adapter = Adapter { targets, declared: "LORA".into(), base: facts, ..Adapter::default() };
    layout::gguf::base::tell(&mut adapter, &serde_json::from_str(config).expect("a config"));
    vec![(adapter, given(config))]
}

/// What every module is changed by: its factors and their scale. Modules whose B is all zeros, with which some layouts
/// fill up what is not adapted, change nothing.
fn factors(adapter: &Adapter) -> BTreeMap<String, (Vec<f32>, Vec<f32>, f64)> {
    let of = |(path, target): (&lora_tool::names::ModulePath, &Target)| match target.weight.first() {
        Some(Delta::LowRank(d)) => {
            let b = d.b.to_f32().expect("B");
            let changes = b.iter().any(|v| *v != 0.0);
            changes.then(|| (path.to_string(), (d.a.to_f32().expect("A"), b, d.factor())))
        }
        _ => None,
    };
    adapter.targets.iter().filter_map(of).collect()
}

fn product((a, b, scale): &(Vec<f32>, Vec<f32>, f64), outputs: usize, inputs: usize) -> Vec<f64> {
    let rank = a.len() / inputs.max(1);
    let entry = |i: usize, j: usize| {
        (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * inputs + j])).sum::<f64>() * scale
    };
    (0..outputs).flat_map(|i| (0..inputs).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn check(layout: &dyn Layout, content: Content, adapter: &Adapter, given: Given) -> Option<String> {
    let holding = layout.holds(content);
    let written = layout.write(adapter);
    let (draft, _) = match (holding, written) {
        (Holding::No, Err(_)) => return None,
        (Holding::No, Ok(_)) => return Some("is written, and said not to be held".into()),
        // Of some families only.
        (_, Err(e)) if e.what().contains("are not known here") => return None,
        (_, Err(e)) => return Some(format!("is said to be held, and {e}")),
        (_, Ok(written)) => written,
    };
    let scratch = Scratch::new();
    let path = scratch.join("adapter");
    layout::save(&draft, &path, &[], false, false).expect("saved");
    let again = match layout::open_with(&path, Some(layout.name()), given) {
        Ok(again) => again.adapter,
        Err(e) => return Some(format!("is written, and cannot be read again: {e}")),
    };
    let (before, after) = (factors(adapter), factors(&again));
    if before.keys().ne(after.keys()) {
        return Some(format!("is {:?}, was {:?}", after.keys(), before.keys()));
    }
    let others = |adapter: &Adapter| adapter.tensor_count() - 2 * factors(adapter).len();
    let same = before == after && (others(adapter) == others(&again) || content == Content::Linear);
    if (holding == Holding::Yes) != same {
        return Some(format!("is said to be held as {holding:?}, and what is read is the same: {same}"));
    }
    for (path, factors) in &before {
        let Some(Delta::LowRank(d)) = adapter.targets[path.as_str()].weight.first() else { continue };
        let (outputs, inputs) = (d.b.shape.matrix().0, d.a.shape.matrix().1);
        if product(factors, outputs, inputs) != product(&after[path], outputs, inputs) {
            return Some(format!("{path} is another change"));
        }
    }
    None
}

#[test]
fn layouts_hold_what_they_say() {
    let mut failed = Vec::new();
    let mut count = 0;
    for layout in LAYOUTS.iter().filter(|l| l.can_write()) {
        for content in Content::ALL {
            for (adapter, given) in adapter(content) {
                count += 1;
                let found = check(*layout, content, &placed(*layout, &adapter), given);
                failed.extend(found.map(|what| format!("{}, {}: {what}", layout.name(), content.word())));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {count}:\n{}", failed.len(), failed.join("\n"));
}

/// Reads what `layout` wrote of an adapter; none where it holds no such thing.
fn through(
    layout: &dyn Layout,
    adapter: &Adapter,
    given: &Given,
    scratch: &Scratch,
    name: &str,
) -> Option<(Adapter, StateDict)> {
    let mut adapter = adapter.clone();
    if let Some((_, config)) = &given.base {
        layout::gguf::base::tell(&mut adapter, config);
    }
    let (draft, _) = layout.write(&adapter).ok()?;
    let path = scratch.join(name);
    layout::save(&draft, &path, &[], false, false).expect("saved");
    let opened = layout::open_with(&path, Some(layout.name()), given.clone()).expect("what was written can be read");
    Some((opened.adapter, opened.source.tensors))
}

#[test]
fn from_every_layout_through_every_other_and_back() {
    let writers: Vec<_> = LAYOUTS.iter().copied().filter(|l| l.can_write()).collect();
    let (mut failed, mut count) = (Vec::new(), 0);
    for content in Content::ALL {
        for (adapter, given) in adapter(content) {
            for one in &writers {
                let scratch = Scratch::new();
                let Some((first, tensors)) = through(*one, &adapter, &given, &scratch, "first") else { continue };
                for other in writers.iter().filter(|other| other.name() != one.name()) {
                    let there = through(*other, &first, &given, &scratch, &format!("{}-there", other.name()));
                    let Some((there, _)) = there else { continue };
                    let Some((back, again)) =
                        through(*one, &there, &given, &scratch, &format!("{}-back", other.name()))
                    else {
                        failed.push(format!("{}: {} to {}: no way back", content.word(), one.name(), other.name()));
                        continue;
                    };
                    count += 1;
                    let what = format!("{}: {} to {} and back", content.word(), one.name(), other.name());
                    let kept = [one, other].iter().all(|l| l.holds(content) == Holding::Yes);
                    // Zeros for what is not adapted may have come along.
                    if kept && tensors.iter().any(|(key, tensor)| again.get(key) != Some(tensor)) {
                        failed.push(format!("{what}: other tensors"));
                    }
                    let (before, after) = (factors(&first), factors(&back));
                    if before.keys().ne(after.keys()) {
                        failed.push(format!("{what}: other modules"));
                        continue;
                    }
                    for (path, factors) in &before {
                        let Some(Delta::LowRank(d)) = first.targets[path.as_str()].weight.first() else { continue };
                        let (outputs, inputs) = (d.b.shape.matrix().0, d.a.shape.matrix().1);
                        if product(factors, outputs, inputs) != product(&after[path], outputs, inputs) {
                            failed.push(format!("{what}: {path} is another change"));
                        }
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} faults in {count}:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 20, "only {count} ways were gone");
}

#[test]
fn the_readme_has_the_table() {
    let said = crate::program::run(["layouts"]).expect(0).out;
    let readme = std::fs::read_to_string(fixtures::root().join("../README.md")).expect("the README");
    for layout in LAYOUTS {
        let cells: Vec<_> = Content::ALL.iter().map(|c| layout.holds(*c).word()).collect();
        let mode = if layout.can_write() { "read, write" } else { "read" };
        let link = format!("[{name}](docs/layouts/{name}.md)", name = layout.name());
        let row = format!("| {link} | {mode} | {} |", cells.join(" | "));
        assert!(readme.contains(&row), "README.md lacks\n{row}");
        assert!(said.contains(layout.about()), "{said}");
    }
    let heads: Vec<_> = Content::ALL.iter().map(|c| c.word()).collect();
    let head = format!("| layout | | {} |", heads.join(" | "));
    assert!(readme.contains(&head), "README.md lacks\n{head}");
}
