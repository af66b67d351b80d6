//! AdapterHub's layout: merged weights against those of `merge_adapter`.

use std::path::PathBuf;

use lora_tool::adapter::Severity;
use lora_tool::layout;

use crate::fixtures::{self, Scratch, cases};
use crate::parity;

fn folder(case: &str) -> PathBuf {
    fixtures::root().join("adapters/adapterhub").join(case)
}

#[test]
fn merged_weights_are_those_of_the_library() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("adapterhub").iter().filter(|case| case.expects_merge()) {
        count += 1;
        let found = parity::differences_of(case, &case.path);
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 10, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("adapterhub").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let e = layout::open(&case.path, None).expect_err(&case.name);
        assert!(e.to_string().to_lowercase().contains(word), "{}: {e}", case.name);
    }
    assert!(count > 4, "only {count} fixtures were found");
}

#[test]
fn a_layout_is_recognised_by_config_or_keys() {
    let opened = layout::open(&folder("safetensors"), None).expect("an adapter");
    assert_eq!(opened.layout, "adapterhub");
    assert!(opened.because.contains("no peft_type"), "{}", opened.because);
    assert_eq!(opened.adapter.about.get("base_model_name_or_path").map(String::as_str), Some("models/bert"));
    let scratch = Scratch::new();
    let alone = scratch.join("pytorch_adapter.bin");
    std::fs::copy(folder("lora").join("pytorch_adapter.bin"), &alone).expect("a copy");
    let e = layout::open(&alone, None).expect_err("no config");
    assert!(e.to_string().contains("only there"), "{e}");
}

#[test]
fn what_is_left_out_or_decided_is_noted() {
    let notes = |case: &str| layout::open(&folder(case), None).expect("an adapter").notes;
    for (case, severity, word) in [
        ("lora", Severity::Lossy, "a head beside"),
        ("dora_alpha", Severity::Lossy, "without alpha"),
        ("old_version", Severity::Info, "had no effect"),
        ("vera", Severity::Info, "multiplied out"),
    ] {
        let notes = notes(case);
        assert!(notes.iter().any(|n| n.severity == severity && n.text.contains(word)), "{case}: {notes:?}");
    }
    for case in ["safetensors", "gpt2", "dora", "ia3"] {
        assert_eq!(notes(case), [], "{case}");
    }
}

#[test]
fn what_it_becomes_can_be_written_for_peft() {
    let peft = layout::named("peft").expect("a layout");
    for case in cases("adapterhub").iter().filter(|case| case.expects_merge()) {
        let given = layout::open(&case.path, None).expect("an adapter");
        let (draft, _) = peft.write(&given.adapter).expect(&case.name);
        let scratch = Scratch::new();
        let path = scratch.join("written");
        layout::save(&draft, &path, &[], false, false).expect("a written adapter");
        assert_eq!(parity::differences_of(case, &path), [""; 0], "{}", case.name);
    }
    assert!(layout::named("adapterhub").expect("a layout").write(&Default::default()).is_err());
}
