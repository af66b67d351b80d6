//! NeMo's layout: merged weights against its formulas, and the way from PEFT to NeMo and back.

use std::path::PathBuf;

use lora_tool::adapter::{Adapter, Note, Severity};
use lora_tool::layout::{self, Given, Layout};

use crate::fixtures::{self, Scratch, cases};
use crate::parity;

fn nemo() -> &'static dyn Layout {
    layout::named("nemo").expect("a layout")
}

fn case(name: &str) -> PathBuf {
    let found = cases("nemo").into_iter().find(|case| case.name == name).expect("a case");
    found.adapter()
}

/// Written and read again.
fn through(adapter: &Adapter) -> (Adapter, Vec<Note>) {
    let (draft, notes) = nemo().write(adapter).expect("a draft");
    let scratch = Scratch::new();
    let path = scratch.join("written.nemo");
    layout::save(&draft, &path, &[], false, false).expect("a written adapter");
    let opened = layout::open(&path, None).expect("what was written can be read");
    assert_eq!(opened.layout, "nemo");
    (opened.adapter, notes)
}

#[test]
fn merged_weights_are_those_of_the_formulas() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("nemo").iter().filter(|case| case.expects_merge()) {
        count += 1;
        let found = parity::differences_of(case, &case.adapter());
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 10, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("nemo").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let e = layout::open(&case.adapter(), None).expect_err(&case.name);
        assert!(e.to_string().to_lowercase().contains(word), "{}: {e}", case.name);
    }
    assert!(count > 8, "only {count} fixtures were found");
}

#[test]
fn an_archive_is_recognised_and_a_guess_is_noted() {
    let opened = layout::open(&case("fused"), None).expect("an adapter");
    assert_eq!(opened.layout, "nemo");
    assert!(opened.because.contains("Megatron"), "{}", opened.because);
    assert_eq!(opened.notes, []);
    let notes = layout::open(&case("tensor_parallel"), None).expect("an adapter").notes;
    assert!(notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains("as in Llama")), "{notes:?}");
    let notes = layout::open(&case("no_alpha"), None).expect("an adapter").notes;
    assert!(notes.iter().any(|n| n.text.contains("the rank 3, as in NeMo")), "{notes:?}");
    let notes = layout::open(&case("local_experts"), None).expect("an adapter").notes;
    assert!(notes.iter().any(|n| n.text.contains("uses its own only")), "{notes:?}");
}

#[test]
fn what_no_file_says_can_be_given() {
    let bare = case("no_settings");
    let e = layout::open(&bare, None).expect_err("no alpha");
    assert!(e.advice().is_some_and(|hint| hint.contains("--assume-alpha")), "{e}");
    let alpha = Given { alpha: Some(8.0), ..Given::default() };
    let e = layout::open_with(&bare, None, alpha.clone()).expect_err("no heads");
    assert!(e.advice().is_some_and(|hint| hint.contains("--base")), "{e}");
    let config = fixtures::base("llama_groups").join("config.json");
    let text = std::fs::read_to_string(&config).expect("a config");
    let base = Some((config, serde_json::from_str(&text).expect("JSON")));
    let opened = layout::open_with(&bare, None, Given { base, ..alpha }).expect("an adapter");
    let factors: Vec<_> = opened.adapter.targets.values().map(lora_tool::adapter::Target::kind).collect();
    assert_eq!(factors, ["LoRA"; 3]);
}

#[test]
fn an_adapter_of_a_known_base_comes_back_as_it_was() {
    // PEFT's adapters are of another base; these of NeMo have one scale and rank, and nothing has to be filled up.
    for name in ["canonical", "fused", "bridge"] {
        let mut given = layout::open(&case(name), None).expect("an adapter").adapter;
        given.base.layers = None;
        let (again, notes) = through(&given);
        assert!(notes.iter().all(|n| n.severity == Severity::Info), "{name}: {notes:?}");
        assert_eq!(again.targets, given.targets, "{name}");
    }
}

#[test]
fn what_nemo_wants_besides_is_zero() {
    let given = layout::open(&case("bridge_canonical"), None).expect("an adapter").adapter;
    let (again, notes) = through(&given);
    assert!(notes.iter().any(|n| n.text.contains("adapters of zeros added")), "{notes:?}");
    // Query, key and value, gate and up in all four layers.
    assert_eq!(again.targets.len(), 20);
    for (path, target) in &given.targets {
        assert_eq!(again.targets.get(path), Some(target), "{path}");
    }
    let others = again.targets.iter().filter(|(path, _)| !given.targets.contains_key(*path));
    for (path, target) in others {
        let zero = target.tensors().iter().all(|(_, t)| t.to_f32().expect("numbers").iter().all(|v| *v == 0.0));
        assert!(zero, "{path}");
    }
}

#[test]
fn what_nemo_cannot_hold_is_refused() {
    let dora = layout::open(&case("bridge_dora"), None).expect("an adapter").adapter;
    for (adapter, word) in [
        (dora, "DoRA"),
        (layout::open(&case("experts_shared"), None).expect("an adapter").adapter, "no adapter for"),
        (layout::open(&case("phi3"), None).expect("an adapter").adapter, "fused layers"),
        (layout::open(&fixtures::adapter("lora"), None).expect("an adapter").adapter, "a query of 24 rows"),
    ] {
        let e = nemo().write(&adapter).expect_err(word);
        assert!(e.to_string().contains(word), "{e}");
    }
}

#[test]
fn scales_and_ranks_that_differ_are_made_one() {
    let mut given = layout::open(&case("canonical"), None).expect("an adapter").adapter;
    let scale = lora_tool::adapter::Scale::direct(0.3);
    let path = given.targets.keys().next().expect("a module").clone();
    let target = given.targets.get_mut(&path).expect("a module");
    let [lora_tool::adapter::Delta::LowRank(factors)] = target.weight.as_mut_slice() else { panic!("LoRA") };
    factors.scale = scale;
    let before = factors.clone();
    let (again, notes) = through(&given);
    assert!(notes.iter().any(|n| n.text.contains("scale 0.3 folded")), "{notes:?}");
    let lora_tool::adapter::Delta::LowRank(after) = &again.targets[&path].weight[0] else { panic!("LoRA") };
    assert_eq!(after.factor(), 8.0);
    let (old, new) = (before.b.to_f32().expect("numbers"), after.b.to_f32().expect("numbers"));
    for (old, new) in old.iter().zip(new) {
        assert!((f64::from(*old) * 0.3 - f64::from(new) * 8.0).abs() < 1e-7);
    }
}

#[test]
fn a_spoilt_archive_is_an_error_or_an_adapter() {
    let scratch = Scratch::new();
    let path = scratch.join("spoilt.nemo");
    let whole = std::fs::read(case("tensor_parallel")).expect("an archive");
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut refused = 0;
    for round in 0..400 {
        let mut all = whole.clone();
        if round % 4 == 0 {
            all.truncate(next(all.len()));
        }
        for _ in 0..=next(3) {
            // Headers and the beginnings of members more often than numbers.
            let at = if round % 2 == 0 { next(all.len().max(1)) } else { next(2048).min(all.len().saturating_sub(1)) };
            if let Some(byte) = all.get_mut(at) {
                *byte = next(256) as u8;
            }
        }
        std::fs::write(&path, &all).expect("a file");
        refused += usize::from(layout::open(&path, None).is_err());
    }
    assert!(refused > 200, "only {refused} were refused");
}
