//! Adapters that other programs write under PEFT's file names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::low_rank::{Facing, Packing};
use lora_tool::adapter::{Delta, SiteKind};
use lora_tool::layout::{self, Draft, Given, Opened};
use lora_tool::tensor::{Dtype, StateDict, Tensor};
use serde_json::json;

use crate::fixtures::Scratch;

/// A tensor of numbers that start at `start`.
fn numbers(shape: &[usize], start: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    Tensor::from_f32(Dtype::F32, shape, &(start..start + count).map(|i| i as f32).collect::<Vec<_>>()).expect("floats")
}

fn tensors<const N: usize>(all: [(&str, Tensor); N]) -> StateDict {
    all.into_iter().map(|(key, tensor)| (key.to_string(), tensor)).collect()
}

/// A folder with these tensors, and a config where there is one.
fn folder(scratch: &Scratch, name: &str, tensors: StateDict, config: Option<serde_json::Value>) -> PathBuf {
    let texts = config.iter().map(|c| ("adapter_config.json".to_string(), c.to_string().into_bytes())).collect();
    let draft = Draft { tensor_file: "adapter_model.safetensors".into(), tensors, texts, ..Draft::default() };
    let path = scratch.join(name);
    if config.is_none() {
        std::fs::create_dir(&path).expect("a folder");
        layout::save(&draft, &path.join(&draft.tensor_file), &[], false, false).expect("a file");
    } else {
        layout::save(&draft, &path, &[], false, false).expect("a folder");
    }
    path
}

fn open(path: &Path) -> Opened {
    layout::open(path, None).expect("an adapter")
}

/// A and B of every module, and its scale.
fn factors(opened: &Opened) -> BTreeMap<String, (Vec<f32>, Vec<f32>, f64)> {
    let of = |(path, target): (&lora_tool::names::ModulePath, &lora_tool::adapter::Target)| {
        let [Delta::LowRank(d)] = target.weight.as_slice() else { panic!("{path}: {:?}", target.weight) };
        (path.to_string(), (d.a.to_f32().expect("A"), d.b.to_f32().expect("B"), d.factor()))
    };
    opened.adapter.targets.iter().map(of).collect()
}

fn values(from: usize, count: usize) -> Vec<f32> {
    (from..from + count).map(|i| i as f32).collect()
}

#[test]
fn stacks_of_experts_come_apart_and_what_is_shared_is_shared() {
    let scratch = Scratch::new();
    let at = |name: &str, half: &str| format!("base_model.model.model.layers.0.mlp.experts.{name}.lora_{half}.weight");
    let given = tensors([
        (&at("w1", "A"), numbers(&[1, 2, 3], 0)),
        (&at("w1", "B"), numbers(&[2, 4, 2], 10)),
        (&at("w2", "A"), numbers(&[2, 2, 4], 40)),
        (&at("w2", "B"), numbers(&[2, 3, 2], 60)),
        (&at("w3", "A"), numbers(&[1, 2, 3], 80)),
        (&at("w3", "B"), numbers(&[2, 4, 2], 90)),
    ]);
    let config = json!({"r": 2, "lora_alpha": 8, "target_modules": "all-linear"});
    let opened = open(&folder(&scratch, "tinker", given, Some(config)));
    let found = factors(&opened);
    let module = |expert: usize, name: &str| format!("model.layers.0.mlp.experts.{expert}.{name}");
    assert_eq!(found.len(), 6);
    assert_eq!(found[&module(1, "gate_proj")], (values(0, 6), values(18, 8), 4.0));
    assert_eq!(found[&module(1, "down_proj")], (values(48, 8), values(66, 6), 4.0));
    assert_eq!(found[&module(0, "up_proj")], (values(80, 6), values(90, 8), 4.0));
    let notes: Vec<_> = opened.notes.iter().map(|note| note.key.as_str()).collect();
    assert_eq!(notes, ["peft_type", "experts"]);
    assert!(opened.notes[1].text.contains("shared by all"), "{}", opened.notes[1].text);
}

#[test]
fn empty_stacks_are_placeholders_and_say_that_there_is_no_gate() {
    let scratch = Scratch::new();
    let at = |name: &str, half: &str| format!("base_model.model.layers.0.mixer.experts.{name}.lora_{half}.weight");
    let given = tensors([
        (&at("w1", "A"), numbers(&[2, 1, 3], 0)),
        (&at("w1", "B"), numbers(&[2, 4, 1], 10)),
        (&at("w3", "A"), numbers(&[0, 1, 3], 0)),
        (&at("w3", "B"), numbers(&[0, 4, 1], 0)),
    ]);
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
    let opened = open(&folder(&scratch, "ungated", given, Some(config)));
    let names: Vec<_> = opened.adapter.targets.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["layers.0.mixer.experts.0.up_proj", "layers.0.mixer.experts.1.up_proj"]);
    assert_eq!(opened.notes.len(), 2);
}

#[test]
fn a_pair_for_all_experts_needs_their_number() {
    let scratch = Scratch::new();
    let at = |half: &str| format!("base_model.model.layers.0.mlp.experts.w2.lora_{half}.weight");
    let given = || tensors([(&at("A"), numbers(&[1, 1, 3], 0)), (&at("B"), numbers(&[1, 4, 1], 10))]);
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
    let path = folder(&scratch, "shared", given(), Some(config));
    let e = layout::open(&path, None).expect_err("no number");
    assert!(e.to_string().contains("number is not known"), "{e}");
    let base = json!({"num_experts": 3}).as_object().cloned().expect("an object");
    let known = Given { base: Some((PathBuf::from("config.json"), base)), alpha: None };
    assert_eq!(layout::open_with(&path, None, known).expect("an adapter").adapter.targets.len(), 3);
}

#[test]
fn the_output_has_the_name_that_transformers_gives_it() {
    let scratch = Scratch::new();
    let at = |half: &str| format!("base_model.model.model.unembed_tokens.lora_{half}.weight");
    let given = tensors([(&at("A"), numbers(&[1, 3], 0)), (&at("B"), numbers(&[4, 1], 10))]);
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 2});
    let opened = open(&folder(&scratch, "output", given, Some(config)));
    assert_eq!(factors(&opened)["lm_head"], (values(0, 3), values(10, 4), 2.0));
}

#[test]
fn experts_of_gpt_oss_become_the_parameter_they_are_in() {
    let scratch = Scratch::new();
    let at = |expert: usize, half: &str| {
        format!("base_model.model.model.layers.0.mlp.experts.gate_up_projs.{expert}.lora_{half}.weight")
    };
    let given = tensors([
        (&at(0, "A"), numbers(&[2, 3], 0)),
        (&at(0, "B"), numbers(&[4, 2], 10)),
        (&at(2, "A"), numbers(&[2, 3], 20)),
        (&at(2, "B"), numbers(&[4, 2], 30)),
    ]);
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["0", "2"]});
    let opened = open(&folder(&scratch, "gpt-oss", given, Some(config)));
    let target = &opened.adapter.targets["model.layers.0.mlp.experts.gate_up_proj"];
    let [Delta::LowRank(d)] = target.weight.as_slice() else { panic!("one change") };
    let experts = d.experts.expect("a stack");
    assert_eq!((experts.count, experts.packing, experts.facing), (3, Packing::RankMajor, Facing::Input));
    assert_eq!((target.site, d.rank(), d.factor()), (SiteKind::Parameter, 2, 2.0));
    let all = d.expert_factors().expect("factors");
    assert_eq!(all[2].a.iter().copied().collect::<Vec<_>>(), values(20, 6));
    assert_eq!(all[2].b.iter().copied().collect::<Vec<_>>(), values(30, 8));
    assert!(all[1].b.iter().all(|v| *v == 0.0));
    // And it is written as PEFT has it.
    let (draft, _) = layout::named("peft").and_then(|peft| peft.write(&opened.adapter)).expect("a draft");
    assert!(draft.tensors.contains_key("base_model.model.model.layers.0.mlp.experts.lora_A.weight"));
}

#[test]
fn tensors_without_a_config_are_read_where_alpha_is_given() {
    let scratch = Scratch::new();
    let at = |half: &str| format!("base_model.model.q_proj.lora_{half}.weight");
    let given = tensors([(&at("A"), numbers(&[2, 3], 0)), (&at("B"), numbers(&[4, 2], 10))]);
    let path = folder(&scratch, "bare", given, None);
    let e = layout::open(&path, None).expect_err("no alpha");
    assert!(e.to_string().contains("alpha is only there"), "{e}");
    let known = Given { alpha: Some(6.0), ..Given::default() };
    let opened = layout::open_with(&path, None, known).expect("an adapter");
    assert_eq!(factors(&opened)["q_proj"].2, 3.0);
    assert!(opened.notes.iter().any(|note| note.text.contains("alpha 6")));
}

#[test]
fn shards_are_one_adapter() {
    let scratch = Scratch::new();
    let at = |module: &str, half: &str| format!("base_model.model.{module}.lora_{half}.weight");
    let of = |module: &str, n: usize| {
        tensors([(&at(module, "A"), numbers(&[2, 3], n)), (&at(module, "B"), numbers(&[4, 2], n + 10))])
    };
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
    let all: StateDict = of("q_proj", 0).into_iter().chain(of("v_proj", 50)).collect();
    let whole = folder(&scratch, "whole", all, Some(config.clone()));
    let parts = scratch.join("parts");
    std::fs::create_dir(&parts).expect("a folder");
    std::fs::write(parts.join("adapter_config.json"), config.to_string()).expect("a config");
    let mut map = serde_json::Map::new();
    for (number, (module, n)) in [("q_proj", 0), ("v_proj", 50)].into_iter().enumerate() {
        let name = format!("adapter_model-0000{}-of-00002.safetensors", number + 1);
        let draft = Draft { tensor_file: name.clone(), tensors: of(module, n), ..Draft::default() };
        layout::save(&draft, &parts.join(&name), &[], false, false).expect("a shard");
        draft.tensors.keys().for_each(|key| drop(map.insert(key.clone(), json!(name))));
    }
    let index = parts.join("adapter_model.safetensors.index.json");
    std::fs::write(index, json!({"metadata": {}, "weight_map": map}).to_string()).expect("an index");
    let opened = open(&parts);
    assert_eq!(factors(&opened), factors(&open(&whole)));
    assert_eq!(opened.source.files().count(), 2);
    std::fs::remove_file(parts.join("adapter_model-00002-of-00002.safetensors")).expect("removed");
    let e = layout::open(&parts, None).expect_err("a missing shard");
    assert!(e.to_string().contains("adapter_model-00002"), "{e}");
}
