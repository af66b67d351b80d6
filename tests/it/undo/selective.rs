//! One of several adapters taken out: what stays is what a merge of the others would have given, to the last bit.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{adapter, assert_same, at, base, copy_folder, merge, merge_plainly, unmerge};
use crate::fixtures::Scratch;
use crate::program::names;

/// Merges adapters, takes out every one and every two of them, and compares with merges of the rest.
fn take_out(base: &Path, adapters: &[(&str, f64)], merge_options: &[&str], record_options: &[&str]) {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    let of = |(name, strength): &(&str, f64)| at(&adapter(name), *strength);
    let all: Vec<OsString> = adapters.iter().map(of).collect();
    merge(base, &all, &out, &record, &[merge_options, record_options].concat()).expect(0);
    let single: Vec<Vec<usize>> = (0..adapters.len()).map(|n| vec![n]).collect();
    let pairs = (0..adapters.len()).flat_map(|a| (a + 1..adapters.len()).map(move |b| vec![a, b]));
    for removed in single.into_iter().chain(pairs) {
        let rest: Vec<OsString> =
            (0..adapters.len()).filter(|n| !removed.contains(n)).map(|n| all[n].clone()).collect();
        let (found, wanted) = (scratch.join("found"), scratch.join("wanted"));
        let more: Vec<&str> = removed.iter().flat_map(|&n| ["--adapter", adapters[n].0]).collect();
        unmerge(&out, &found, &record, &more).expect(0);
        if rest.is_empty() {
            assert_same(&found, base);
        } else {
            merge_plainly(base, &rest, &wanted, merge_options).expect(0);
            assert_same(&found, &wanted);
        }
        for path in [found, wanted].iter().filter(|path| path.exists()) {
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        assert_eq!(names(&scratch.join(".")), ["base.undo", "out"]);
    }
}

#[test]
fn the_rest_is_what_a_merge_of_the_rest_gives() {
    let sums = [("lora", 1.0), ("rslora", -0.5), ("lora_all_linear", 0.25)];
    let mixed = [("lora", 0.5), ("dora", 1.0), ("ia3", 0.7)];
    let others = [("oft", 1.0), ("embedding", 0.5), ("save_norms", 1.0), ("lora", 2.0)];
    for adapters in [&sums[..], &mixed, &others] {
        for (dtype, embed) in [("keep", "always"), ("bf16", "never")] {
            take_out(&base("llama"), adapters, &["--dtype", dtype], &["--undo-embed", embed]);
        }
    }
    take_out(&base("llama"), &sums, &["--max-shard-size", "5KB", "--no-provenance"], &[]);
    take_out(&base("llama_bf16"), &[("bf16", 1.0), ("bf16_all", 0.5)], &[], &[]);
    take_out(&base("llama_tied"), &[("tied_lm_head", 1.0), ("tied_embedding", 0.5)], &[], &[]);
    take_out(&base("qwen2"), &[("bias_all", 1.0), ("qwen2", 0.5)], &["--allow-unmatched"], &[]);
}

#[test]
fn a_file_whose_config_lies_beside_it() {
    // The config says that the embeddings are tied, and how names are spelt; it does not go along.
    let scratch = Scratch::new();
    copy_folder(&base("llama_tied"), &scratch.join("base"));
    let file = scratch.join("base/model.safetensors");
    take_out(&file, &[("tied_lm_head", 1.0), ("tied_embedding", 0.5)], &[], &[]);
}

#[test]
fn the_adapter_is_named_by_its_path_or_its_name() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    let (lora, dora) = (adapter("lora"), adapter("dora"));
    merge(&base("llama"), &[lora.clone().into(), dora.clone().into()], &out, &record, &[]).expect(0);
    merge_plainly(&base("llama"), &[dora.clone().into()], &scratch.join("wanted"), &[]).expect(0);
    copy_folder(&lora, &scratch.join("a copy"));
    for (n, name) in [lora.as_path(), Path::new("lora"), &scratch.join("a copy")].into_iter().enumerate() {
        let found = scratch.join(&format!("found{n}"));
        unmerge(&out, &found, &record, &["--adapter", name.to_str().unwrap()]).expect(0);
        assert_same(&found, &scratch.join("wanted"));
    }
    // All of them is the base.
    unmerge(&out, &scratch.join("all"), &record, &["--adapter", "lora", "--adapter", "dora"]).expect(0);
    assert_same(&scratch.join("all"), &base("llama"));
    for other in ["ia3", adapter("ia3").to_str().unwrap()] {
        let said = unmerge(&out, &scratch.join("none"), &record, &["--adapter", other]).expect(1);
        assert!(said.err.contains("ia3") && said.err.contains("lora, dora"), "{}", said.err);
    }
    assert!(!scratch.join("none").exists());
}

#[test]
fn two_of_one_name_are_told_apart_by_their_paths() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a/style"), scratch.join("b/style"));
    copy_folder(&adapter("lora"), &a);
    copy_folder(&adapter("rslora"), &b);
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&base("llama"), &[a.clone().into(), b.clone().into()], &out, &record, &[]).expect(0);
    let said = unmerge(&out, &scratch.join("found"), &record, &["--adapter", "style"]).expect(1);
    assert!(said.err.contains("several"), "{}", said.err);
    unmerge(&out, &scratch.join("found"), &record, &["--adapter", a.to_str().unwrap()]).expect(0);
    merge_plainly(&base("llama"), &[b.into()], &scratch.join("wanted"), &[]).expect(0);
    assert_same(&scratch.join("found"), &scratch.join("wanted"));
}

#[test]
fn an_adapter_that_is_not_in_the_record_is_looked_for() {
    let scratch = Scratch::new();
    let (lora, dora) = (scratch.join("lora"), scratch.join("dora"));
    copy_folder(&adapter("lora"), &lora);
    copy_folder(&adapter("dora"), &dora);
    let (out, record) = (scratch.join("out"), scratch.join("records/base.undo"));
    fs::create_dir(scratch.join("records")).unwrap();
    let both = [lora.clone().into(), dora.clone().into()];
    let said = merge(&base("llama"), &both, &out, &record, &["--undo-embed", "never"]).expect(0);
    assert!(said.out.contains("lora, dora"), "{}", said.out);
    let back = |n: usize| scratch.join(&format!("back{n}"));
    unmerge(&out, &back(0), &record, &[]).expect(0);
    assert_same(&back(0), &base("llama"));

    // Moved: named in the error, and found where --look-in says, as itself or in a folder, or beside the record.
    fs::create_dir(scratch.join("shelf")).unwrap();
    let moved = scratch.join("shelf/lora");
    fs::rename(&lora, &moved).unwrap();
    let said = unmerge(&out, &back(1), &record, &[]).expect(1);
    for word in ["lora is needed", lora.to_str().unwrap(), "--look-in"] {
        assert!(said.err.contains(word), "expected `{word}` in {}", said.err);
    }
    for (n, place) in [(2, moved.clone()), (3, scratch.join("shelf"))] {
        unmerge(&out, &back(n), &record, &["--look-in", place.to_str().unwrap()]).expect(0);
        assert_same(&back(n), &base("llama"));
    }
    copy_folder(&moved, &scratch.join("records/lora"));
    unmerge(&out, &back(4), &record, &[]).expect(0);
    assert_same(&back(4), &base("llama"));
    fs::remove_dir_all(scratch.join("records/lora")).unwrap();

    // Another one in its place.
    copy_folder(&adapter("rslora"), &lora);
    let said = unmerge(&out, &back(5), &record, &[]).expect(1);
    assert!(said.err.contains("another one at"), "{}", said.err);
    // The same tensors with another scale: not found out by their hash.
    for (n, more) in [(6, &[][..]), (7, &["--adapter", "dora"]), (8, &["--adapter", "lora"])] {
        fs::remove_dir_all(&lora).unwrap();
        copy_folder(&moved, &lora);
        let config = lora.join("adapter_config.json");
        let text = fs::read_to_string(&config).unwrap();
        let mut about: serde_json::Value = serde_json::from_str(&text).unwrap();
        about["lora_alpha"] = serde_json::json!(about["lora_alpha"].as_f64().unwrap() * 2.0);
        fs::write(&config, about.to_string()).unwrap();
        let said = unmerge(&out, &back(n), &record, more).expect(1);
        assert!(said.err.contains("lora"), "{}", said.err);
        assert!(!back(n).exists());
    }
}

#[test]
fn the_config_of_an_adapter_that_stays_counts_as_well() {
    // A kind that is not taken back from its factors, so that nothing but the config tells.
    let scratch = Scratch::new();
    let (lora, hira) = (scratch.join("lora"), scratch.join("hira"));
    copy_folder(&adapter("lora"), &lora);
    copy_folder(&adapter("hira"), &hira);
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    let both = [lora.into(), hira.clone().into()];
    merge(&base("llama"), &both, &out, &record, &["--undo-embed", "never"]).expect(0);
    let config = hira.join("adapter_config.json");
    let mut about: serde_json::Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    // Written in another order, it is the same.
    about.as_object_mut().unwrap().sort_keys();
    fs::write(&config, serde_json::to_string_pretty(&about).unwrap()).unwrap();
    unmerge(&out, &scratch.join("same"), &record, &["--adapter", "lora"]).expect(0);
    about["fan_in_fan_out"] = serde_json::json!(true);
    fs::write(&config, about.to_string()).unwrap();
    // All are taken out without it; to stay it has to be the same.
    unmerge(&out, &scratch.join("back"), &record, &[]).expect(0);
    let said = unmerge(&out, &scratch.join("other"), &record, &["--adapter", "lora"]).expect(1);
    assert!(said.err.contains("hira"), "{}", said.err);
    assert!(!scratch.join("other").exists());
}

#[test]
fn nothing_is_left_beside_the_result() {
    let scratch = Scratch::new();
    let file = scratch.join("base.safetensors");
    fs::copy(base("qwen2").join("model.safetensors"), &file).unwrap();
    let long = format!("{}.safetensors", "x".repeat(240));
    let folder = scratch.join("folder");
    fs::create_dir(&folder).unwrap();
    let (out, record): (PathBuf, _) = (scratch.join("out.safetensors"), scratch.join("base.undo"));
    let both = [adapter("qwen2").into(), at(&adapter("bias_all"), 0.5)];
    merge(&file, &both, &out, &record, &[]).expect(0);
    unmerge(&out, &folder.join(&long), &record, &["--adapter", "bias_all"]).expect(0);
    merge_plainly(&file, &both[..1], &scratch.join("wanted.safetensors"), &[]).expect(0);
    assert_same(&folder.join(&long), &scratch.join("wanted.safetensors"));
    assert_eq!(names(&folder), std::slice::from_ref(&long));
    unmerge(&out, &folder.join(&long), &record, &["--adapter", "bias_all"]).expect(1);
    unmerge(&out, &folder.join(&long), &record, &["--adapter", "qwen2", "--force"]).expect(0);
    assert_eq!(names(&folder), [long]);
}
