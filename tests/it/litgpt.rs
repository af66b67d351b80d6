//! LitGPT's layout: merged weights against LitGPT's own, and the way from PEFT to LitGPT and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::{Delta, LowRank};
use lora_tool::adapter::{Adapter, Facts, Note, Scale, Severity, Target};
use lora_tool::container::{json, yaml};
use lora_tool::layout::{self, Given, Layout};
use lora_tool::tensor::{Dtype, StateDict, Tensor};
use serde_json::{Map, Value, json};

use crate::fixtures::{self, Case, Scratch, cases};
use crate::parity;

fn named(name: &str) -> &'static dyn Layout {
    layout::named(name).expect("a layout")
}

fn folder(case: &str) -> PathBuf {
    fixtures::root().join("adapters/litgpt").join(case)
}

fn settings(folder: &Path, file: &str) -> Map<String, Value> {
    yaml::read_object(&folder.join(file), 1 << 20).expect("settings")
}

fn sorted(all: &StateDict) -> BTreeMap<String, Tensor> {
    all.clone().into_iter().collect()
}

fn merged_cases() -> Vec<Case> {
    let all: Vec<_> = cases("litgpt").into_iter().filter(Case::expects_merge).collect();
    assert!(all.len() > 15);
    all
}

fn save(layout: &str, adapter: &Adapter, path: &Path) -> (StateDict, Vec<Note>) {
    let (draft, notes) = named(layout).write(adapter).expect("a draft");
    layout::save(&draft, path, &[], false, false).expect("a written adapter");
    (draft.tensors, notes)
}

#[test]
fn merged_weights_are_those_of_litgpt() {
    let mut failed = Vec::new();
    for case in merged_cases() {
        let found = parity::differences_of(&case, &case.path);
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("litgpt").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let e = layout::open(&case.path, None).expect_err(&case.name);
        assert!(e.to_string().to_lowercase().contains(&word.to_lowercase()), "{}: {e}", case.name);
    }
    assert!(count > 7, "only {count} fixtures were found");
}

#[test]
fn a_folder_is_recognised_and_a_file_alone_as_well() {
    assert_eq!(layout::open(&folder("llama"), None).expect("an adapter").layout, "litgpt");
    assert!(layout::source::looks_like_adapter(&folder("llama")));
    // Which parts are trained shows in the sizes here; alpha and the base are said.
    let scratch = Scratch::new();
    let alone = scratch.join("lit_model.pth.lora");
    std::fs::copy(folder("falcon").join("lit_model.pth.lora"), &alone).expect("a copy");
    let config = fixtures::base("falcon").join("config.json");
    let base = Some((config.clone(), json::read_object(&config, 1 << 20).expect("a config")));
    let opened = layout::open_with(&alone, None, Given { base, alpha: Some(6.0) }).expect("an adapter");
    assert_eq!(opened.adapter.targets, layout::open(&folder("falcon"), None).expect("an adapter").adapter.targets);
}

#[test]
fn an_adapter_read_and_written_is_the_same_also_by_way_of_peft() {
    let mut count = 0;
    for case in merged_cases() {
        let scratch = Scratch::new();
        let given = layout::open(&case.path, None).expect("an adapter");
        let (tensors, notes) = save("litgpt", &given.adapter, &scratch.join("again"));
        let lossy: Vec<_> = notes.iter().filter(|n| n.severity == Severity::Lossy).collect();
        assert!(lossy.is_empty(), "{}: {lossy:?}", case.name);
        let again = layout::open(&scratch.join("again"), None).expect("an adapter");
        // Files of before December 2024 become those of today, with A in another place.
        if case.name.starts_with("old_") && given.source.tensors.keys().any(|key| key.contains("attn.attn")) {
            let found = parity::differences_of(&case, &scratch.join("again"));
            assert!(found.is_empty(), "{}: {found:?}", case.name);
            continue;
        }
        count += 1;
        assert_eq!(sorted(&tensors), sorted(&given.source.tensors), "{}", case.name);
        assert_eq!(again.adapter.targets, given.adapter.targets, "{}", case.name);
        let (old, new) =
            (settings(&case.path, "hyperparameters.yaml"), settings(&scratch.join("again"), "hyperparameters.yaml"));
        old.iter().for_each(|(name, value)| assert_eq!(new.get(name), Some(value), "{}: {name}", case.name));
        if case.path.join("model_config.yaml").exists() {
            let model = "model_config.yaml";
            assert_eq!(settings(&scratch.join("again"), model), settings(&case.path, model), "{}", case.name);
        }

        save("peft", &given.adapter, &scratch.join("peft"));
        let mut there = layout::open(&scratch.join("peft"), None).expect("an adapter").adapter;
        there.base = given.adapter.base.clone();
        there.base.family = Some(family_of(&case));
        let (draft, _) = named("litgpt").write(&there).expect("a draft");
        assert_eq!(sorted(&draft.tensors), sorted(&given.source.tensors), "{}", case.name);
    }
    assert!(count > 10, "only {count} cases");
}

fn family_of(case: &Case) -> String {
    let config = json::read_object(&case.base().join("config.json"), 1 << 20).expect("a config");
    config["model_type"].as_str().expect("a family").to_string()
}

#[test]
fn from_peft_to_litgpt_and_back_nothing_is_lost() {
    let mut kept = Vec::new();
    let mut refused = BTreeMap::new();
    for case in cases("peft") {
        let path = case.base().join("config.json");
        let base = json::read_object(&path, 1 << 20).ok().map(|config| (path, config));
        let Ok(opened) = layout::open_with(&case.adapter(), None, Given { base, alpha: None }) else { continue };
        let Ok((direct, _)) = named("peft").write(&opened.adapter) else { continue };
        let (draft, notes) = match named("litgpt").write(&opened.adapter) {
            Ok(written) => written,
            Err(e) => {
                refused.insert(case.name, e.to_string());
                continue;
            }
        };
        if notes.iter().any(|n| ["folded into", "filled up", "taken apart"].iter().any(|word| n.text.contains(word))) {
            continue;
        }
        let scratch = Scratch::new();
        layout::save(&draft, &scratch.join("there"), &[], false, false).expect("a written adapter");
        // Without the base: what is needed of it is beside the tensors.
        let there = layout::open(&scratch.join("there"), None).expect("an adapter").adapter;
        let (back, _) = named("peft").write(&there).expect("a draft");
        // Names of experts are those of the files.
        let plain = |all: &StateDict| {
            let name = |key: &String| key.replace(".block_sparse_moe.", ".mlp.");
            all.iter().map(|(key, tensor)| (name(key), tensor.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(plain(&back.tensors), plain(&direct.tensors), "{}", case.name);
        for name in ["base_model_name_or_path", "revision", "task_type"] {
            assert_eq!(there.about.get(name), opened.adapter.about.get(name), "{}: {name}", case.name);
        }
        kept.push(case.name);
    }
    for name in ["lora", "rslora", "bf16", "qwen2", "phi3", "gpt_neox", "falcon", "mixtral_old"] {
        assert!(kept.iter().any(|k| k == name), "{name} was not kept: {:?}; kept: {kept:?}", refused.get(name));
    }
    let said = |name: &str| refused.get(name).map(String::as_str).unwrap_or_default();
    for (name, word) in [
        ("embedding", "embedding"),
        ("dora", "magnitude"),
        ("lora_bias", "bias"),
        ("gpt2", "gpt2"),
        ("save_norms", "whole"),
        ("loha", "LoHa"),
        ("pissa", "changed"),
    ] {
        assert!(said(name).contains(word), "{name}: {:?}", refused.get(name));
    }
}

/// What LitGPT holds of PEFT's fixtures gives PEFT's own merged weights.
#[test]
fn an_adapter_of_peft_merges_the_same_from_litgpt() {
    let mut failed = Vec::new();
    let mut done = Vec::new();
    let all = cases("peft");
    for case in all.iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let path = case.base().join("config.json");
        let base = json::read_object(&path, 1 << 20).ok().map(|config| (path, config));
        let given = Given { base, alpha: None };
        let adapter = layout::open_with(&case.adapter(), None, given).expect("an adapter").adapter;
        let Ok((draft, _)) = named("litgpt").write(&adapter) else { continue };
        let scratch = Scratch::new();
        layout::save(&draft, &scratch.join("there"), &[], false, false).expect("a written adapter");
        done.push(case.name.as_str());
        let found = parity::differences_of(case, &scratch.join("there"));
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(failed.is_empty(), "{} faults in {} cases:\n{}", failed.len(), done.len(), failed.join("\n"));
    for name in ["lora_all_linear", "mixtral_old", "qwen3_moe_both", "gpt_neox", "falcon", "phi3"] {
        assert!(done.contains(&name), "{name} is not among {done:?}");
    }
}

fn tensor(dtype: Dtype, shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) % 101) as f32 - 50.0).collect();
    Tensor::from_f32(dtype, shape, &values).expect("a tensor")
}

fn lora(dtype: Dtype, out: usize, rank: usize, input: usize, scale: f64) -> Target {
    let (a, b) = (tensor(dtype, &[rank, input], rank), tensor(dtype, &[out, rank], out));
    let delta = Delta::LowRank(LowRank { a, b, scale: Scale::direct(scale), experts: None, name: "LoRA" });
    Target { weight: vec![delta], ..Target::default() }
}

fn adapter(family: &str, targets: impl IntoIterator<Item = (&'static str, Target)>) -> Adapter {
    let base = Facts {
        family: Some(family.to_string()),
        heads: Some(4),
        key_heads: Some(2),
        head_width: Some(4),
        hidden: Some(16),
        layers: Some(2),
        ..Facts::default()
    };
    Adapter { targets: targets.into_iter().map(|(path, t)| (path.into(), t)).collect(), base, ..Adapter::default() }
}

#[test]
fn modules_of_all_layers_and_switches_are_there() {
    let given = adapter(
        "llama",
        [
            ("model.layers.0.self_attn.q_proj", lora(Dtype::BF16, 16, 2, 16, 0.3)),
            ("model.layers.1.self_attn.v_proj", lora(Dtype::BF16, 8, 1, 16, 0.1)),
            ("model.layers.1.mlp.down_proj", lora(Dtype::BF16, 16, 2, 24, 0.3)),
        ],
    );
    let scratch = Scratch::new();
    let (tensors, notes) = save("litgpt", &given, &scratch.join("out"));
    assert_eq!(tensors.len(), 2 * 4 * 2, "two layers, the attention and three of the feed-forward part");
    assert_eq!(tensors["transformer.h.0.attn.qkv.lora_A"].shape.dims(), [4, 16]);
    assert_eq!(tensors["transformer.h.0.attn.qkv.lora_B"].shape.dims(), [24, 2]);
    assert_eq!(tensors["transformer.h.0.mlp.fc_2.lora_B"].shape.dims(), [24, 2]);
    assert!(tensors.values().all(|t| t.dtype == Dtype::F32), "one type for all");
    let said = settings(&scratch.join("out"), "hyperparameters.yaml");
    for (name, value) in [
        ("lora_r", json!(2)),
        ("lora_alpha", json!(0.6)),
        ("lora_query", json!(true)),
        ("lora_key", json!(false)),
        ("lora_value", json!(true)),
        ("lora_projection", json!(false)),
        ("lora_mlp", json!(true)),
        ("lora_head", json!(false)),
    ] {
        assert_eq!(said[name], value, "{name}");
    }
    let texts: Vec<_> = notes.iter().map(|n| n.text.as_str()).collect();
    for word in ["filled up with zeros to 2", "folded into B", "modules of zeros added", "in f32", "not written"] {
        assert!(texts.iter().any(|text| text.contains(word)), "{word}: {texts:?}");
    }
    let back = layout::open(&scratch.join("out"), None).expect("an adapter").adapter;
    assert_eq!(back.targets.keys().collect::<Vec<_>>(), given.targets.keys().collect::<Vec<_>>());
}

#[test]
fn what_has_no_place_in_the_files_is_an_error() {
    let q = "model.layers.0.self_attn.q_proj";
    let plain = || lora(Dtype::F32, 16, 2, 16, 1.0);
    let with = |change: &dyn Fn(&mut Adapter)| {
        let mut given = adapter("llama", [(q, plain())]);
        change(&mut given);
        given
    };
    let norm = || lora(Dtype::F32, 4, 1, 4, 1.0);
    let refused = [
        ("family of the base", with(&|a| a.base = Facts::default())),
        ("are not known", with(&|a| a.base.heads = None)),
        ("the base has 24 here", with(&|a| a.base.head_width = Some(6))),
        ("make no attention", with(&|a| a.base.key_heads = Some(3))),
        ("nothing to write", with(&|a| a.targets.clear())),
        ("no module that LitGPT adapts", with(&|a| drop(a.targets.insert("model.norm".into(), norm())))),
        ("magnitude", with(&|a| a.targets.get_mut(q).unwrap().magnitude = Some(tensor(Dtype::F32, &[16], 3)))),
        ("finite", with(&|a| drop(a.targets.insert(q.into(), lora(Dtype::F32, 16, 2, 16, f64::NAN))))),
        ("`gpt2`", with(&|a| a.base.family = Some("gpt2".to_string()))),
    ];
    for (word, given) in refused {
        let e = named("litgpt").write(&given).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
    }
}

#[test]
fn the_fingerprint_of_the_base_is_kept() {
    let hash = "0123456789abcdef".repeat(4);
    let mut given = adapter("llama", [("model.layers.0.self_attn.q_proj", lora(Dtype::F32, 16, 2, 16, 1.0))]);
    given.about.insert("lora_tool.base_fingerprint".to_string(), hash.clone());
    for name in ["litgpt", "torchtune"] {
        let scratch = Scratch::new();
        save(name, &given, &scratch.join("out"));
        let opened = layout::open(&scratch.join("out"), None).expect("an adapter");
        assert_eq!(opened.base_fingerprint.map(|h| h.to_string()), Some(hash.clone()), "{name}");
    }
}
