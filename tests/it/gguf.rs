//! Adapters as llama.cpp has them. The fixtures were written by its own `gguf` package from PEFT's; what is read from them
//! has to be PEFT's adapter, and what is written of PEFT's has to be them.

use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::{Delta, Experts, LowRank, Packing, low_rank::Facing};
use lora_tool::adapter::{Adapter, Scale, ScaleRule, Severity, SiteKind, Target};
use lora_tool::container::gguf::{GgufFile, Value};
use lora_tool::container::json;
use lora_tool::error::Kind;
use lora_tool::layout::gguf::base;
use lora_tool::layout::{self, Draft, Format, Layout};
use lora_tool::tensor::{Dtype, Tensor};

use crate::fixtures::{self, Case, Scratch, cases};

fn gguf() -> &'static dyn Layout {
    layout::named("gguf").expect("a layout")
}

fn merged_cases() -> Vec<Case> {
    let all: Vec<_> = cases("gguf").into_iter().filter(Case::expects_merge).collect();
    assert!(all.len() > 10);
    all
}

/// PEFT's adapter that a case was made of, with what its base's config says.
fn of_peft(case: &Case) -> Adapter {
    let path = fixtures::adapter(case.text("peft").expect("its origin"));
    let mut adapter = layout::open(&path, None).expect("an adapter").adapter;
    base::tell(&mut adapter, &config(case));
    adapter
}

fn config(case: &Case) -> serde_json::Map<String, serde_json::Value> {
    json::read_object(&case.base().join("config.json"), 1 << 20).expect("a config")
}

fn save(draft: &Draft, path: &Path) {
    layout::save(draft, path, &[], false, false).expect("a written adapter");
}

fn file(path: &Path) -> GgufFile {
    GgufFile::open(path).expect("GGUF")
}

fn written(adapter: &Adapter, scratch: &Scratch) -> PathBuf {
    let (draft, _) = gguf().write(adapter).expect("a draft");
    let path = scratch.join("written.gguf");
    save(&draft, &path);
    path
}

#[test]
fn what_is_written_is_what_the_package_of_llama_cpp_writes() {
    for case in merged_cases() {
        let scratch = Scratch::new();
        let ours = file(&written(&of_peft(&case), &scratch));
        let theirs = file(&case.adapter());
        // One alpha can be right without folding: then the two files say the same in two ways.
        if case.name == "llama_folded" {
            continue;
        }
        for (key, value) in &theirs.metadata {
            assert_eq!(ours.metadata.get(key), Some(value), "{}: {key}", case.name);
        }
        assert_eq!(ours.tensors.len(), theirs.tensors.len(), "{}", case.name);
        for (key, tensor) in &theirs.tensors {
            assert_eq!(ours.tensors.get(key), Some(tensor), "{}: {key}", case.name);
        }
    }
}

#[test]
fn there_and_back_the_tensors_are_those_of_peft_byte_for_byte() {
    for name in ["llama", "embedding", "f16", "gpt2", "qwen2", "qwen2_moe", "gemma3", "phi3", "mixtral", "llama_rslora"]
    {
        let case = merged_cases().into_iter().find(|case| case.name == name).expect("a case");
        let scratch = Scratch::new();
        // Without the base's config: the file itself has to say what is needed.
        let back = layout::open(&written(&of_peft(&case), &scratch), None).expect("an adapter");
        assert_eq!(back.layout, "gguf");
        let (draft, _) = layout::named("peft").expect("a layout").write(&back.adapter).expect("a draft");
        save(&draft, &scratch.join("peft"));
        let read = |folder: &Path| {
            let all = lora_tool::container::SafetensorsFile::open(&folder.join("adapter_model.safetensors"));
            let mut all = all.expect("tensors").tensors;
            all.retain(|key, _| !key.contains("base_layer.weight")); // a copy of the base's embedding
            all.sort_keys();
            all
        };
        let origin = fixtures::adapter(case.text("peft").expect("its origin"));
        assert_eq!(read(&scratch.join("peft")), read(&origin), "{name}");
        if name != "embedding" {
            let bytes = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).expect("a file");
            assert!(bytes(&scratch.join("peft")) == bytes(&origin), "{name}");
        }
    }
}

#[test]
fn a_file_read_and_written_is_the_same_file() {
    for case in merged_cases() {
        let scratch = Scratch::new();
        let opened = layout::open(&case.adapter(), None).expect("an adapter");
        let again = file(&written(&opened.adapter, &scratch));
        let mut before = opened.source.tensors.clone();
        let mut after = again.tensors;
        before.sort_keys();
        after.sort_keys();
        assert_eq!(before, after, "{}", case.name);
        assert_eq!(file(&case.adapter()).metadata["adapter.lora.alpha"], again.metadata["adapter.lora.alpha"]);
    }
}

fn tensor(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (i * 31 % 101) as f32 - 50.0).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("a tensor")
}

fn lora(rank: usize, scale: Scale) -> Target {
    let factors = LowRank { a: tensor(&[rank, 6]), b: tensor(&[4, rank]), scale, experts: None, name: "LoRA" };
    Target { weight: vec![Delta::LowRank(factors)], ..Target::default() }
}

fn adapter(architecture: &str, targets: impl IntoIterator<Item = (&'static str, Target)>) -> Adapter {
    let mut out =
        Adapter { targets: targets.into_iter().map(|(path, t)| (path.into(), t)).collect(), ..Adapter::default() };
    out.about.insert(base::ARCHITECTURE.to_string(), architecture.to_string());
    out
}

#[test]
fn scales_of_several_alphas_are_folded() {
    let root = Scale { alpha: 5.0, rule: ScaleRule::AlphaOverRootRank };
    let all = [
        ("model.layers.0.mlp.up_proj", lora(3, root)),
        ("model.layers.1.mlp.up_proj", lora(2, Scale { alpha: 7.0, rule: ScaleRule::AlphaOverRank })),
    ];
    let scratch = Scratch::new();
    let (draft, notes) = gguf().write(&adapter("qwen2", all.clone())).expect("a draft");
    assert!(notes.iter().any(|n| n.key == "adapter.lora.alpha" && n.severity == Severity::Info));
    let Format::Gguf(metadata) = &draft.format else { panic!("a GGUF file") };
    assert_eq!(metadata["adapter.lora.alpha"], Value::F32(0.0));
    save(&draft, &scratch.join("a.gguf"));
    let back = layout::open(&scratch.join("a.gguf"), None).expect("an adapter").adapter;
    for (path, target) in &all {
        let [Delta::LowRank(old)] = target.weight.as_slice() else { panic!() };
        let [Delta::LowRank(new)] = back.targets[*path].weight.as_slice() else { panic!() };
        assert_eq!((new.factor(), &new.a), (1.0, &old.a));
        let folded: Vec<f32> = old.b.to_f32().unwrap().iter().map(|v| (f64::from(*v) * old.factor()) as f32).collect();
        assert_eq!(new.b.to_f32().unwrap(), folded);
    }
}

#[test]
fn experts_that_are_not_adapted_are_zero() {
    let scale = Scale { alpha: 4.0, rule: ScaleRule::AlphaOverRank };
    let mut some = adapter("qwen3moe", [("model.layers.0.mlp.experts.1.up_proj", lora(2, scale))]);
    let (_, notes) = gguf().write(&some).expect("a draft");
    assert!(notes.iter().any(|n| n.severity == Severity::Lossy), "the number of experts was guessed");
    some.about.insert(base::EXPERTS.to_string(), "3".to_string());
    let (draft, notes) = gguf().write(&some).expect("a draft");
    assert!(notes.is_empty());
    let a = &draft.tensors["blk.0.ffn_up_exps.weight.lora_a"];
    assert_eq!(a.shape.dims(), [3, 2, 6]);
    let values = a.to_f32().unwrap();
    assert!(values[..12].iter().chain(&values[24..]).all(|v| *v == 0.0) && values[12] != 0.0);
    some.about.insert(base::EXPERTS.to_string(), "1".to_string());
    assert_eq!(gguf().write(&some).unwrap_err().kind(), Kind::Mismatch);
}

#[test]
fn what_a_file_cannot_hold_is_refused_with_the_reason() {
    let scale = Scale::direct(0.5);
    let path = "model.layers.0.mlp.up_proj";
    let refused = |adapter: &Adapter| gguf().write(adapter).expect_err("a refusal").to_string();
    let mut magnitude = lora(2, scale);
    magnitude.magnitude = Some(tensor(&[4]));
    let mut bias = lora(2, scale);
    bias.bias = lora(2, scale).weight;
    let mut stack = lora(2, scale);
    let experts = Some(Experts { count: 2, packing: Packing::RankMajor, facing: Facing::Unknown });
    stack.weight =
        vec![Delta::LowRank(LowRank { a: tensor(&[4, 6]), b: tensor(&[4, 4]), scale, experts, name: "LoRA" })];
    stack.site = SiteKind::Parameter;
    for (adapter, word) in [
        (adapter("qwen2", [(path, magnitude)]), "DoRA"),
        (adapter("qwen2", [(path, bias)]), "bias"),
        (adapter("qwen2", [("model.norm", lora(2, scale))]), "no name in GGUF"),
        (adapter("qwen2", [("model.embed_tokens", lora(2, scale))]), "embedding"),
        (adapter("qwen3moe", [("model.layers.0.mlp.experts.gate_up_proj", stack)]), "not known what"),
        (adapter("bloom", [(path, lora(2, scale))]), "bloom"),
        (adapter("llama", [("model.layers.0.self_attn.q_proj", lora(2, scale))]), "num_attention_heads"),
        (adapter("qwen2", []), "without tensors"),
        (Adapter::default(), "architecture"),
    ] {
        let said = refused(&adapter);
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn without_the_number_of_heads_it_can_be_looked_at() {
    let path = fixtures::root().join("adapters/gguf/no_heads/adapter.gguf");
    let opened = layout::open(&path, None).expect("it can be inspected");
    let opaque = opened.adapter.targets.values().filter(|t| matches!(t.weight[0], Delta::Opaque(_))).count();
    assert_eq!((opaque, opened.adapter.targets.len()), (2, 4), "the queries of two layers, not the values");
}

#[test]
fn no_damage_makes_a_reader_panic() {
    let scratch = Scratch::new();
    let path = scratch.join("a.gguf");
    let mut state = 11u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for case in merged_cases() {
        let whole = std::fs::read(case.adapter()).expect("a file");
        std::fs::copy(case.path.join("config.json"), scratch.join("config.json")).expect("a config");
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..=next(2) {
                let at = next(bytes.len().min(1200)); // the header
                bytes[at] = if next(2) == 0 { next(256) as u8 } else { bytes[at] ^ (1 << next(8)) };
            }
            std::fs::write(&path, bytes).expect("a file");
            if let Ok(opened) = layout::open(&path, None) {
                let _ = gguf().write(&opened.adapter);
            }
        }
    }
}
