//! loralib's layout: merged weights against those of its layers in eval mode.

use std::path::PathBuf;

use lora_tool::adapter::{Delta, Severity, SiteKind};
use lora_tool::layout::{self, Given};
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{self, Scratch, cases};
use crate::parity;

fn file(case: &str) -> PathBuf {
    fixtures::root().join("adapters/loralib").join(case).join("lora.pt")
}

#[test]
fn merged_weights_are_those_of_the_layers() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("loralib").iter().filter(|case| case.expects_merge()) {
        count += 1;
        let found = parity::differences_of(case, &case.adapter());
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 5, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("loralib").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let e = layout::open(&case.adapter(), None).expect_err(&case.name);
        assert!(e.to_string().to_lowercase().contains(word), "{}: {e}", case.name);
    }
    assert!(count > 3, "only {count} fixtures were found");
}

#[test]
fn alpha_is_given_or_noted() {
    let opened = layout::open(&file("linear"), None).expect("an adapter");
    assert_eq!(opened.layout, "loralib");
    assert!(opened.notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains("--assume-alpha")));
    let given = Given { alpha: Some(6.0), ..Given::default() };
    let opened = layout::open_with(&file("linear"), None, given).expect("an adapter");
    assert_eq!(opened.notes, []);
    for target in opened.adapter.targets.values() {
        let [Delta::LowRank(factors)] = target.weight.as_slice() else { panic!("LoRA") };
        assert_eq!(factors.factor(), 2.0);
    }
}

#[test]
fn what_the_shapes_leave_open_is_noted() {
    let opened = layout::open(&file("conv1d"), None).expect("an adapter");
    assert!(opened.notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains("query and value")));
    assert!(opened.adapter.targets.values().all(|target| target.site == SiteKind::FanInFanOut));
    let opened = layout::open(&file("merged_all"), None).expect("an adapter");
    assert!(opened.notes.iter().all(|n| n.key == "alpha"), "{:?}", opened.notes);
    let opened = layout::open(&file("embedding"), None).expect("an adapter");
    assert_eq!(opened.adapter.targets["model.embed_tokens"].site, SiteKind::Embedding);
}

/// A pickled file with these keys.
fn saved(scratch: &Scratch, keys: &[&str]) -> PathBuf {
    let tensor = Tensor::from_f32(Dtype::F32, [2, 2], &[1.0; 4]).expect("a tensor");
    let tensors: StateDict = keys.iter().map(|key| (key.to_string(), tensor.clone())).collect();
    let path = scratch.join("adapter.pt");
    let mut out = std::fs::File::create(&path).expect("a file");
    lora_tool::container::torch::write(&mut out, &tensors, None).expect("a pickle");
    path
}

#[test]
fn keys_of_other_programs_are_not_taken_for_its_own() {
    for keys in [
        // PEFT's AdaLoRA.
        &["base_model.model.q.lora_A", "base_model.model.q.lora_B", "base_model.model.q.lora_E"][..],
        // LitGPT.
        &["transformer.h.0.attn.qkv.lora_A", "transformer.h.0.attn.qkv.lora_B"],
        &["transformer.h.0.mlp.fc_1.lora_A", "transformer.h.0.mlp.fc_1.lora_B"],
    ] {
        let scratch = Scratch::new();
        let found = layout::open(&saved(&scratch, keys), None);
        assert!(found.as_ref().map_or(true, |opened| opened.layout != "loralib"), "{keys:?}");
    }
    let scratch = Scratch::new();
    let path = saved(&scratch, &["transformer.h.0.attn.c_attn.lora_A", "transformer.h.0.attn.c_attn.lora_B"]);
    assert_eq!(layout::open(&path, None).expect("an adapter").layout, "loralib");
    // AdapterHub's keys are its own, whatever config is missing.
    let scratch = Scratch::new();
    let e = layout::open(&saved(&scratch, &["a.loras.b.lora_A", "a.loras.b.lora_B"]), None).expect_err("no config");
    assert!(e.to_string().contains("adapter_config.json"), "{e}");
}

#[test]
fn a_convolution_is_told_by_the_base() {
    let scratch = Scratch::new();
    let (adapter, base) = (file("convolution"), fixtures::base("resnet"));
    let convert = |out: &str, more: &[&str]| {
        let mut args = vec!["convert".to_string(), fixtures::text(&adapter), "--to".to_string(), "peft".to_string()];
        args.extend(["--out".to_string(), fixtures::text(&scratch.join(out))]);
        args.extend(more.iter().map(ToString::to_string));
        crate::program::run(args)
    };
    let said = convert("alone", &[]).expect(0);
    assert!(said.err.contains("factors of linear layers"), "{}", said.err);
    let said = convert("based", &["--base", &fixtures::text(&base)]).expect(0);
    assert!(!said.err.contains("factors of linear layers"), "{}", said.err);
    let case = cases("loralib").into_iter().find(|case| case.name == "convolution").expect("a case");
    assert_eq!(parity::differences_of(&case, &scratch.join("based")), [""; 0]);
}
