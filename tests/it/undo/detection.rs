//! What was altered is noticed: bits of the record, bits of the merged model, files that are cut short, and a model or
//! an adapter that is another one.

use std::fs;
use std::path::{Path, PathBuf};

use lora_tool::container::undo::Record;

use super::{adapter, assert_same, at, base, copy_folder, merge, undo, unmerge};
use crate::fixtures::{Scratch, cases};
use crate::program::names;

/// Writes a file anew: one that is truncated and rewritten goes to disk at once on some file systems.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[bit / 8] ^= 1 << (bit % 8);
    out
}

#[test]
fn every_bit_of_a_record_counts() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    let adapters = [adapter("lora").into(), at(&adapter("dora"), 0.5)];
    merge(&base("llama"), &adapters, &out, &record, &["--dtype", "bf16"]).expect(0);
    let good = fs::read(&record).unwrap();
    let bad = scratch.join("bad.undo");
    let bits = 8 * good.len();
    // The head and the seal whole, the sections in strides.
    let head = 8 * (8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize);
    let tried = (0..head).step_by(3).chain((head..bits).step_by(97)).chain(bits - 256..bits);
    for bit in tried {
        put(&bad, &flipped(&good, bit));
        assert!(Record::open(&bad).is_err(), "bit {bit} of {bits}");
    }
    for length in (0..good.len()).step_by(good.len() / 60).chain([good.len() - 1]) {
        put(&bad, &good[..length]);
        assert!(Record::open(&bad).is_err(), "{length} bytes of {}", good.len());
    }
    put(&bad, &[good.as_slice(), &[0]].concat());
    assert!(Record::open(&bad).is_err(), "a byte more");
    for bit in (0..bits).step_by(bits / 15) {
        put(&bad, &flipped(&good, bit));
        unmerge(&out, &scratch.join("back"), &bad, &[]).expect(1);
        assert_eq!(names(&scratch.join(".")), ["bad.undo", "base.undo", "out"]);
    }
    let said = unmerge(&out, &scratch.join("back"), &bad, &[]).expect(1);
    assert!(said.err.contains("bad.undo"), "{}", said.err);
}

/// Flips bits all over the tensor files of a merged model, one at a time.
fn flip_the_model(case: &str, more: &[&str]) {
    let case = cases("peft").into_iter().find(|c| c.name == case).unwrap();
    let scratch = Scratch::new();
    let (out, record, back) = (scratch.join("out"), scratch.join("base.undo"), scratch.join("back"));
    merge(&case.base(), &[case.adapter().into()], &out, &record, more).expect(0);
    let files: Vec<_> = names(&out).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(!files.is_empty());
    for file in files {
        let path = out.join(&file);
        let good = fs::read(&path).unwrap();
        let head = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
        let bits = 8 * good.len();
        for bit in
            (0..8 * head).step_by(8 * head / 12).chain((8 * head..bits).step_by(8 * (good.len() - head) / 30 + 3))
        {
            put(&path, &flipped(&good, bit));
            let e = undo(&out, &record, &back).expect_err(&format!("{}: {file}: bit {bit}", case.name));
            let place = e.to_string();
            assert!(8 * head > bit || place.contains("other bytes"), "{}: {file}: bit {bit}: {e}", case.name);
            assert_eq!(names(&scratch.join(".")), ["base.undo", "out"]);
        }
        put(&path, &good[..good.len() - 1]);
        undo(&out, &record, &back).expect_err("cut short");
        put(&path, &good);
    }
    undo(&out, &record, &back).unwrap();
    assert_same(&back, &case.base());
}

#[test]
fn every_bit_of_the_merged_model_counts() {
    flip_the_model("lora", &[]);
    flip_the_model("dora", &["--dtype", "f16"]);
    // Tensors that are added, rows that are added, tensors that are replaced, experts.
    flip_the_model("tied_lm_head", &[]);
    flip_the_model("grown_saved", &["--max-shard-size", "2KB"]);
    flip_the_model("resnet_save_norm", &[]);
    flip_the_model("mixtral_both", &[]);
}

#[test]
fn an_altered_model_is_named() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&base("llama"), &[adapter("lora").into()], &out, &record, &[]).expect(0);
    let path = out.join("model-00002-of-00003.safetensors");
    let good = fs::read(&path).unwrap();
    put(&path, &flipped(&good, 8 * good.len() - 5));
    let said = unmerge(&out, &scratch.join("back"), &record, &[]).expect(1);
    for word in ["model.layers", "changed or damaged"] {
        assert!(said.err.contains(word), "{}", said.err);
    }
    fs::remove_file(&path).unwrap();
    unmerge(&out, &scratch.join("back"), &record, &[]).expect(1);
    assert_eq!(names(&scratch.join(".")), ["base.undo", "out"]);
}

#[test]
fn the_record_of_another_merge_says_what_it_is_of() {
    let scratch = Scratch::new();
    let make = |name: &str, adapters: &[std::ffi::OsString], more: &[&str]| -> (PathBuf, PathBuf) {
        let (out, record) = (scratch.join(name), scratch.join(&format!("{name}.undo")));
        merge(&base("llama"), adapters, &out, &record, more).expect(0);
        (out, record)
    };
    let (lora, lora_record) = make("lora", &[at(&adapter("lora"), 0.5)], &[]);
    let (dora, dora_record) = make("dora", &[adapter("dora").into()], &[]);
    let (half, _) = make("half", &[at(&adapter("lora"), 0.25)], &[]);
    let (bare, bare_record) = make("bare", &[at(&adapter("lora"), 0.5)], &["--no-provenance"]);
    let (other, _) = make("other", &[at(&adapter("lora"), 0.25)], &["--no-provenance"]);
    let back = scratch.join("back");
    for (model, record, parts) in [
        (&dora, &lora_record, ["not the model", "llama after merging lora@0.5"]),
        (&lora, &dora_record, ["not the model", "llama after merging dora@1"]),
        (&half, &lora_record, ["not the model", "lora@0.5"]),
        (&bare, &lora_record, ["not the model", "lora@0.5"]),
        (&base("llama"), &lora_record, ["not the model", "lora@0.5"]),
        (&base("qwen2"), &lora_record, ["not the model", "lora@0.5"]),
        // Only the values tell these apart.
        (&other, &bare_record, ["not the merged model of this record", "rows"]),
        (&base("llama"), &bare_record, ["not the merged model of this record", "rows"]),
    ] {
        let said = unmerge(model, &back, record, &[]).expect(1);
        for part in parts {
            assert!(said.err.contains(part), "expected `{part}` in: {}", said.err);
        }
        assert!(!back.exists());
    }
    unmerge(&bare, &back, &bare_record, &[]).expect(0);
    assert_same(&back, &base("llama"));
}

#[test]
fn files_of_other_names_are_not_the_model() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&base("qwen2"), &[adapter("qwen2").into()], &out, &record, &[]).expect(0);
    // The folder may have any name and lie anywhere; a file of it given by itself is another thing.
    copy_folder(&out, &scratch.join("moved/anywhere"));
    unmerge(&scratch.join("moved/anywhere"), &scratch.join("back"), &record, &[]).expect(0);
    assert_same(&scratch.join("back"), &base("qwen2"));
    // As a single file in a base of one file.
    let file = scratch.join("base.safetensors");
    fs::copy(base("qwen2").join("model.safetensors"), &file).unwrap();
    let (single, record) = (scratch.join("single.safetensors"), scratch.join("single.undo"));
    merge(&file, &[adapter("qwen2").into()], &single, &record, &[]).expect(0);
    fs::rename(&single, scratch.join("renamed.safetensors")).unwrap();
    unmerge(&scratch.join("renamed.safetensors"), &scratch.join("again.safetensors"), &record, &[]).expect(0);
    assert_same(&scratch.join("again.safetensors"), &file);
}
