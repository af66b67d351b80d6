//! Records of pairs that lie there: whatever the other model is, the base comes back from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{
    Raw, adapter, assert_same, base, cast_copy, contents, copy_folder, merge_plainly, raw, unmerge, write_raw,
};
use crate::fixtures::{Case, Scratch, cases};
use crate::models::{self, Model};
use crate::program::{Ran, command, names};

/// `undo-record BASE MERGED -o RECORD`, not waiting for the disk.
fn record(base: &Path, merged: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("undo-record").arg(base).arg(merged).arg("-o").arg(out).arg("--no-sync").args(more);
    command.output().expect("the program starts").into()
}

/// Makes a record, goes back with it, and gives its size.
#[track_caller]
fn comes_back(base: &Path, merged: &Path, more: &[&str]) -> u64 {
    let scratch = Scratch::new();
    let (file, back) = (scratch.join("base.undo"), scratch.join("back"));
    let said = record(base, merged, &file, &[more, &["--json"]].concat()).expect(0).json();
    let size = fs::metadata(&file).unwrap().len();
    assert_eq!(said["undo"]["bytes"].as_u64(), Some(size));
    unmerge(merged, &back, &file, &["--strict"]).expect(0);
    assert_same(&back, base);
    assert_eq!(names(&scratch.join(".")), ["back", "base.undo"]);
    size
}

fn case(name: &str) -> Case {
    cases("peft").into_iter().find(|c| c.name == name).unwrap()
}

/// What PEFT made of a fixture: one file, with the base's config and other side files beside it.
fn by_peft(case: &Case, to: &Path) {
    copy_folder(&case.base(), to);
    let mut all: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let sources = contents(to).into_iter().filter(|(name, _)| name.extension().is_some_and(|e| e == "safetensors"));
    let expected = fs::read(case.path.join("expected.safetensors")).unwrap();
    for (name, bytes) in sources.chain([(PathBuf::from("none"), expected)]) {
        for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(key, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
        let _ = fs::remove_file(to.join(name));
    }
    let _ = fs::remove_file(to.join("model.safetensors.index.json"));
    let views = all.iter().map(|(k, (dtype, shape, data))| (k, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

#[test]
fn what_another_program_merged_comes_back() {
    for name in
        ["lora", "bf16", "bf16_all", "f16_all", "dora", "ia3", "oft", "phi3", "mixtral_both", "tied_both", "grown"]
    {
        let case = case(name);
        let scratch = Scratch::new();
        let merged = scratch.join("merged");
        by_peft(&case, &merged);
        comes_back(&case.base(), &merged, &[]);
        comes_back(&case.base(), &merged, &["--adapter", case.adapter().to_str().unwrap()]);
    }
}

/// A base of one weight of normal size, and a LoRA on it that makes a small change.
fn larger(scratch: &Scratch) -> (PathBuf, PathBuf, PathBuf) {
    let (base, lora, merged) =
        (scratch.join("base.safetensors"), scratch.join("lora"), scratch.join("merged.safetensors"));
    let mut weight = models::tensor(Dtype::BF16, &[400, 600], 3);
    weight.values.iter_mut().for_each(|v| *v *= 0.05);
    models::write(&base, &[("q_proj.weight".into(), weight)].into(), None);
    models::write_lora(&lora, &[("q_proj", 400, 600)], 2, 9);
    merge_plainly(&base, &[super::at(&lora, 0.001)], &merged, &["--no-provenance"]).expect(0);
    (base, lora, merged)
}

#[test]
fn a_named_adapter_makes_the_record_much_smaller() {
    let scratch = Scratch::new();
    let (base, lora, merged) = larger(&scratch);
    let argument = format!("{}@0.001", lora.display());
    let with = comes_back(&base, &merged, &["--adapter", &argument, "--undo-embed", "never"]);
    let without = comes_back(&base, &merged, &[]);
    println!("with the adapter {with} bytes, without {without}, the model {}", fs::metadata(&base).unwrap().len());
    assert!(4 * with < without, "{with} with the adapter, {without} without");
    // The wrong adapter, or the right one at another strength, costs room and no more.
    comes_back(&base, &merged, &["--adapter", lora.to_str().unwrap()]);
    let other = scratch.join("other");
    models::write_lora(&other, &[("q_proj", 400, 600)], 2, 10);
    comes_back(&base, &merged, &["--adapter", other.to_str().unwrap()]);
    let unmatched = scratch.join("unmatched");
    models::write_lora(&unmatched, &[("q_proj", 400, 600), ("elsewhere", 3, 3)], 2, 10);
    comes_back(&base, &merged, &["--adapter", unmatched.to_str().unwrap()]);
}

fn tuned(model: &Model) -> Model {
    let mut out = model.clone();
    for (n, values) in out.values_mut().enumerate().filter(|(n, _)| n % 3 != 0) {
        let dtype = values.dtype;
        values.values.iter_mut().enumerate().for_each(|(i, v)| {
            *v = models::rounded(dtype, *v * (1.0 + 0.001 * ((i + n) % 17) as f64) + 1e-5 * (i % 5) as f64);
        });
    }
    out
}

#[test]
fn a_fine_tuned_model_comes_back() {
    for name in ["llama", "llama_bf16", "llama_f16", "mixtral"] {
        let scratch = Scratch::new();
        let merged = scratch.join("merged");
        copy_folder(&base(name), &merged);
        for file in names(&merged).into_iter().filter(|n| n.ends_with(".safetensors")) {
            models::write(&merged.join(&file), &tuned(&models::read(&base(name).join(&file))), None);
        }
        comes_back(&base(name), &merged, &[]);
        let other = scratch.join("other");
        for dtype in [Dtype::F32, Dtype::BF16] {
            let _ = fs::remove_dir_all(&other);
            cast_copy(&merged, &other, dtype);
            comes_back(&base(name), &other, &[]);
        }
        // The same model, and the base again as the other one.
        comes_back(&base(name), &base(name), &[]);
    }
}

#[test]
fn models_of_other_files_come_back() {
    let scratch = Scratch::new();
    let (sharded, single) = (scratch.join("sharded"), scratch.join("single"));
    merge_plainly(&base("llama"), &[adapter("lora").into()], &sharded, &["--max-shard-size", "3KB"]).expect(0);
    merge_plainly(&base("llama"), &[adapter("lora").into()], &single, &["--max-shard-size", "3GB"]).expect(0);
    let lora = adapter("lora");
    for more in [&[][..], &["--adapter", lora.to_str().unwrap()]] {
        comes_back(&base("llama"), &sharded, more);
        comes_back(&base("llama"), &single, more);
        // A folder and a file.
        comes_back(&base("llama"), &single.join("model.safetensors"), more);
    }
    let alone = scratch.join("alone.safetensors");
    fs::copy(base("llama_bf16").join("model.safetensors"), &alone).unwrap();
    let merged = scratch.join("bf16");
    merge_plainly(&base("llama_bf16"), &[adapter("bf16").into()], &merged, &[]).expect(0);
    comes_back(&alone, &merged, &[]);
    comes_back(&alone, &merged.join("model.safetensors"), &[]);
}

fn noise(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i * 2_654_435_761 + seed * 97) >> 7) as u8).collect()
}

#[test]
fn whatever_the_other_model_is_the_base_comes_back() {
    use Dtype::*;
    let scratch = Scratch::new();
    let base = scratch.join("base.safetensors");
    let halves =
        |n: usize| (0..n).flat_map(|i| bf16::from_f64(i as f64 * 0.01 - 0.3).to_le_bytes()).collect::<Vec<u8>>();
    write_raw(
        &base,
        &[
            raw("a", BF16, &[4, 6], halves(24)),
            raw("b", F32, &[4, 6], noise(96, 1)),
            raw("c", I64, &[5], noise(40, 2)),
            raw("d", U8, &[7], noise(7, 3)),
            raw("e", F4, &[4, 6], noise(12, 4)),
            raw("f", F8_E4M3, &[4, 6], noise(24, 5)),
            raw("g", F16, &[0, 6], vec![]),
            raw("h", F32, &[], noise(4, 6)),
            raw("i", BOOL, &[3], vec![1, 0, 1]),
            raw("j", C64, &[2], noise(16, 7)),
            raw("k", F6_E2M3, &[4], noise(3, 8)),
            raw("l", F64, &[4, 6], noise(192, 9)),
        ],
    );
    let all = [
        BOOL,
        F4,
        F6_E2M3,
        F6_E3M2,
        U8,
        I8,
        F8_E5M2,
        F8_E4M3,
        F8_E8M0,
        F8_E4M3FNUZ,
        F8_E5M2FNUZ,
        I16,
        U16,
        F16,
        BF16,
        I32,
        U32,
        F32,
        C64,
        F64,
        I64,
        U64,
    ];
    let merged = scratch.join("merged.safetensors");
    // All tensors in one type, of the same shape, of more rows, of fewer, with other columns, or of none at all.
    for dtype in all {
        for (n, shape) in [vec![4, 6], vec![8, 6], vec![2, 6], vec![24]].iter().enumerate() {
            let bytes = noise(shape.iter().product::<usize>() * dtype.bitsize() / 8, n);
            let bytes: Vec<u8> = if dtype == BOOL { bytes.iter().map(|b| b & 1).collect() } else { bytes };
            let keys = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "more"];
            let tensors: Vec<Raw> = keys.iter().map(|key| raw(key, dtype, shape, bytes.clone())).collect();
            let _ = fs::remove_file(&merged);
            write_raw(&merged, &tensors);
            comes_back(&base, &merged, &[]);
        }
    }
    // Other keys altogether, and none.
    let empty = [raw("a", BF16, &[0], vec![]), raw("b", F32, &[4, 2, 3], noise(96, 1))];
    let _ = fs::remove_file(&merged);
    write_raw(&merged, &empty);
    comes_back(&base, &merged, &[]);
    let _ = fs::remove_file(&merged);
    write_raw(&merged, &[raw("z", F32, &[1], noise(4, 1))]);
    comes_back(&base, &merged, &[]);
    // The other way round.
    comes_back(&merged, &base, &[]);
}

#[test]
fn side_files_that_differ_come_back() {
    let scratch = Scratch::new();
    let (own, merged) = (scratch.join("own"), scratch.join("merged"));
    copy_folder(&base("llama"), &own);
    fs::create_dir(own.join("inner")).unwrap();
    fs::write(own.join("inner/missing.txt"), "only the base has this").unwrap();
    fs::write(own.join("same.txt"), "both have this").unwrap();
    fs::write(own.join("other.txt"), "as it was").unwrap();
    fs::write(own.join("blank"), vec![b' '; 3 << 20]).unwrap();
    copy_folder(&own, &merged);
    fs::remove_dir_all(merged.join("inner")).unwrap();
    fs::remove_file(merged.join("blank")).unwrap();
    fs::write(merged.join("other.txt"), "as it is").unwrap();
    fs::write(merged.join("config.json"), "{}").unwrap();
    comes_back(&own, &merged, &[]);
    // What only the other model has is none of the base's; a note says so.
    fs::write(merged.join("training.log"), "done").unwrap();
    comes_back(&own, &merged, &[]);
    let file = scratch.join("base.undo");
    record(&own, &merged, &file, &[]).expect(0);
    let said = unmerge(&merged, &scratch.join("back"), &file, &["--json"]).expect(0).json();
    assert_eq!(said["notes"][0]["key"], "training.log");
    assert_eq!(said["notes"].as_array().unwrap().len(), 1);
}

#[test]
fn the_record_goes_where_it_may() {
    let scratch = Scratch::new();
    let (own, merged) = (scratch.join("own"), scratch.join("merged"));
    copy_folder(&base("llama"), &own);
    merge_plainly(&own, &[adapter("lora").into()], &merged, &[]).expect(0);
    let file = scratch.join("base.undo");
    fs::write(&file, "mine").unwrap();
    record(&own, &merged, &file, &[]).expect(1);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let dry = record(&own, &merged, &file, &["--force", "--dry-run"]).expect(0);
    assert!(dry.out.contains("would write"), "{}", dry.out);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    record(&own, &merged, &file, &["--force"]).expect(0);
    unmerge(&merged, &scratch.join("back"), &file, &[]).expect(0);
    for place in [
        own.join("base.undo"),
        merged.join("base.undo"),
        own.join("config.json"),
        own.clone(),
        scratch.join("no/where"),
    ] {
        record(&own, &merged, &place, &["--force"]).expect(1);
    }
    assert_same(&own, &base("llama"));
    assert_eq!(names(&scratch.join(".")), ["back", "base.undo", "merged", "own"]);
    record(&own, &scratch.join("none"), &scratch.join("x.undo"), &[]).expect(1);
    record(&adapter("lora"), &merged, &scratch.join("x.undo"), &[]).expect(1);
}
