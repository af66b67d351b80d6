//! What was merged comes back, every file to the last bit: all fixtures in all types, and bases that are odd in every
//! way the format allows.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::{
    Raw, adapter, assert_same, at, base, cast_copy, contents, copy_folder, differences, each, merge, raw, unmerge,
    write_raw,
};
use crate::fixtures::{Case, Scratch, cases};
use crate::models::write_lora;
use crate::program::names;

const DTYPES: [&str; 5] = ["keep", "bf16", "f16", "f32", "f64"];

/// Merges with a record, takes it back, and says what is not as it was.
fn there_and_back(base: &Path, adapters: &[OsString], more: &[&str]) -> Vec<String> {
    let scratch = Scratch::new();
    let (out, back, record) = (scratch.join("out"), scratch.join("back"), scratch.join("base.undo"));
    let merged = merge(base, adapters, &out, &record, &[more, &["--threads", "1"]].concat());
    if merged.code != Some(0) {
        return vec![format!("merge: {}", merged.err)];
    }
    let undone = unmerge(&out, &back, &record, &["--threads", "1"]);
    if undone.code != Some(0) {
        return vec![format!("unmerge: {}", undone.err)];
    }
    differences(&back, base)
}

#[track_caller]
fn comes_back(base: &Path, adapters: &[OsString], more: &[&str]) {
    let wrong = there_and_back(base, adapters, more);
    assert!(wrong.is_empty(), "{adapters:?} {more:?}:\n{}", wrong.join("\n"));
}

#[test]
fn every_fixture_comes_back_in_every_type() {
    let cases: Vec<Case> = cases("peft").into_iter().filter(Case::expects_merge).collect();
    assert!(cases.len() > 150, "only {} fixtures", cases.len());
    let all: Vec<_> = cases.iter().flat_map(|case| DTYPES.map(|dtype| (case, dtype))).collect();
    let failed = each(&all, |(case, dtype)| {
        // A narrow type may not hold all that comes out.
        let wrong = there_and_back(&case.base(), &[case.adapter().into()], &["--dtype", dtype, "--allow-nonfinite"]);
        wrong.into_iter().map(|what| format!("{} as {dtype}: {what}", case.name)).collect()
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), all.len(), failed.join("\n"));
}

/// Kinds that are sums, products, both and neither.
const SOME: [&str; 9] = ["lora", "dora", "ia3", "oft", "lokr", "hira", "save_norms", "fourierft", "embedding"];

#[test]
fn bases_of_other_types_come_back() {
    let mut all = Vec::new();
    for of in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        all.extend(SOME.iter().flat_map(|name| ["keep", "bf16", "f32"].map(|dtype| (of, *name, dtype))));
    }
    let scratch = Scratch::new();
    for of in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        cast_copy(&base("llama"), &scratch.join(&format!("{of:?}")), of);
    }
    let failed = each(&all, |(of, name, dtype)| {
        let base = scratch.join(&format!("{of:?}"));
        let wrong = there_and_back(&base, &[adapter(name).into()], &["--dtype", dtype, "--allow-nonfinite"]);
        wrong.into_iter().map(|what| format!("{name} on {of:?} as {dtype}: {what}")).collect()
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), all.len(), failed.join("\n"));
}

#[test]
fn strengths_and_several_adapters_come_back() {
    let lora = |s: f64| at(&adapter("lora"), s);
    for strength in [0.5, -1.0, 0.1, 2.0, 0.0] {
        comes_back(&base("llama"), &[lora(strength)], &["--dtype", "bf16"]);
        comes_back(&base("llama"), &[at(&adapter("dora"), strength)], &[]);
    }
    for name in ["rslora", "dora", "loha", "ia3", "oft", "vera", "save_norms", "lora_all_linear"] {
        let other = at(&adapter(name), -0.7);
        comes_back(&base("llama"), &[lora(0.5), other.clone()], &[]);
        comes_back(&base("llama"), &[other, lora(0.5), at(&adapter("embedding"), 0.25)], &["--dtype", "bf16"]);
    }
    let bias = [at(&adapter("bias_all"), 0.5), at(&adapter("lora_bias"), -2.0), at(&adapter("qwen2"), 1.0)];
    comes_back(&base("qwen2"), &bias, &["--allow-unmatched"]);
}

#[test]
fn other_files_than_the_base_has_come_back() {
    for size in ["1KB", "5KB", "1GB"] {
        for dtype in ["keep", "bf16"] {
            // Shards from shards, shards from one file, one file from shards; with tensors that are added.
            comes_back(&base("llama"), &[adapter("lora").into()], &["--max-shard-size", size, "--dtype", dtype]);
            for name in ["mixtral_both", "tied_lm_head", "tied_both"] {
                let case = cases("peft").into_iter().find(|c| c.name == name).unwrap();
                let more = ["--max-shard-size", size, "--dtype", dtype];
                comes_back(&case.base(), &[case.adapter().into()], &more);
            }
        }
    }
}

#[test]
fn a_model_of_one_file_comes_back() {
    let scratch = Scratch::new();
    let file = scratch.join("base.safetensors");
    fs::copy(base("qwen2").join("model.safetensors"), &file).unwrap();
    for dtype in DTYPES {
        comes_back(&file, &[adapter("qwen2").into()], &["--dtype", dtype]);
    }
    // Not as the next one of the same name, but in the place of the merged model itself.
    let (out, record) = (scratch.join("out.safetensors"), scratch.join("base.undo"));
    merge(&file, &[adapter("qwen2").into()], &out, &record, &[]).expect(0);
    unmerge(&out, &out, &record, &["--force"]).expect(1);
    unmerge(&out, &scratch.join("back.safetensors"), &record, &[]).expect(0);
    assert_same(&scratch.join("back.safetensors"), &file);
}

#[test]
fn the_answer_says_what_was_done() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    let said = merge(&base("llama"), &[adapter("lora").into()], &out, &record, &["--json"]).expect(0).json();
    let undo = &said["undo"];
    assert_eq!(undo["file"].as_str(), record.to_str());
    assert_eq!(undo["bytes"].as_u64(), Some(fs::metadata(&record).unwrap().len()));
    assert_eq!(undo["needs"], serde_json::json!([]), "a small adapter goes into the record");
    let said = unmerge(&out, &scratch.join("back"), &record, &["--json"]).expect(0).json();
    let count = |name: &str| said[name].as_u64().unwrap();
    assert_eq!(count("restored") + count("copied"), crate::models::read(&base("llama")).len() as u64);
    assert_eq!(said["notes"], serde_json::json!([]));
    let dry = unmerge(&out, &scratch.join("dry"), &record, &["--dry-run"]).expect(0);
    assert!(dry.out.contains("would write"), "{}", dry.out);
    assert_eq!(names(&scratch.join(".")), ["back", "base.undo", "out"]);
}

#[test]
fn side_files_come_along() {
    let scratch = Scratch::new();
    let own = scratch.join("own");
    copy_folder(&base("llama"), &own);
    fs::create_dir_all(own.join("prompts/long")).unwrap();
    fs::write(own.join("prompts/long/a.txt"), "text").unwrap();
    fs::write(own.join("empty"), "").unwrap();
    comes_back(&own, &[adapter("lora").into()], &["--dtype", "f16"]);
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&own, &[adapter("lora").into()], &out, &record, &[]).expect(0);
    fs::write(out.join("prompts/long/a.txt"), "another text").unwrap();
    fs::remove_file(out.join("empty")).unwrap();
    let said = unmerge(&out, &scratch.join("back"), &record, &["--json"]).expect(0).json();
    let notes: Vec<_> = said["notes"].as_array().unwrap().iter().map(|n| n["key"].as_str().unwrap()).collect();
    assert_eq!(notes, ["empty", "prompts/long/a.txt"]);
    let strict = unmerge(&out, &scratch.join("strict"), &record, &["--strict"]).expect(3);
    assert!(strict.err.contains("empty"), "{}", strict.err);
    assert!(!scratch.join("strict").exists());
}

/// All bit patterns of a 16-bit type.
fn all_patterns() -> Vec<u8> {
    (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
}

/// Values that are hard to come back to, as f64.
const HARD: [f64; 14] = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    -1e-45,
    1e-40,
    6e-8,
    -6e-8,
    65504.0,
    -65504.0,
    3.0e38,
    f64::INFINITY,
    f64::NEG_INFINITY,
];

fn hard(dtype: Dtype, count: usize) -> Vec<u8> {
    let value = |i: usize| HARD[i % HARD.len()];
    let bytes = |i: usize| match dtype {
        Dtype::BF16 => bf16::from_f64(value(i)).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(value(i)).to_le_bytes().to_vec(),
        // NaN with a payload, quiet and signalling, of both signs, now and then.
        Dtype::F32 if i.is_multiple_of(61) => {
            (0x7f80_0001u32 | (i as u32) << 3 | (i as u32 & 1) << 31).to_le_bytes().to_vec()
        }
        Dtype::F32 => (value(i) as f32).to_le_bytes().to_vec(),
        _ if i.is_multiple_of(61) => {
            (0x7ff0_0000_0000_0001u64 | (i as u64) << 20 | (i as u64 & 1) << 63).to_le_bytes().to_vec()
        }
        _ => value(i).to_le_bytes().to_vec(),
    };
    (0..count).flat_map(bytes).collect()
}

/// A model whose two weights hold `bytes`, beside tensors that no adapter touches.
fn odd_model(path: &Path, dtype: Dtype, shape: [usize; 2], bytes: &[u8]) {
    let tensor = |key| raw(key, dtype, &shape, bytes.to_vec());
    let others: Vec<Raw> = vec![
        raw("a.empty.weight", dtype, &[0, 4], vec![]),
        raw("b.counter", Dtype::I64, &[3], (0..24).collect()),
        raw("c.flags", Dtype::BOOL, &[2], vec![0, 1]),
        raw("d.scalar", Dtype::F32, &[], vec![1, 2, 3, 0x7f]),
        raw("e.small", Dtype::F8_E4M3, &[5], vec![0, 0x7f, 0x80, 0xff, 3]),
        raw("f.none", Dtype::U8, &[0], vec![]),
        raw("z.packed", Dtype::F4, &[4], vec![0x12, 0xf0]),
    ];
    let all: Vec<Raw> = others.into_iter().chain([tensor("q_proj.weight"), tensor("v_proj.weight")]).collect();
    write_raw(path, &all);
}

#[test]
fn every_bit_pattern_comes_back() {
    let scratch = Scratch::new();
    let lora = scratch.join("lora");
    write_lora(&lora, &[("q_proj", 256, 256)], 3, 11);
    for dtype in [Dtype::BF16, Dtype::F16] {
        let path = scratch.join(&format!("{dtype:?}.safetensors"));
        odd_model(&path, dtype, [256, 256], &all_patterns());
        for out in DTYPES {
            comes_back(&path, &[at(&lora, 0.01)], &["--dtype", out, "--allow-nonfinite"]);
            comes_back(
                &path,
                &[at(&lora, 1e9), at(&lora, -3.0)],
                &["--dtype", out, "--allow-nonfinite", "--allow-repeat"],
            );
        }
    }
}

#[test]
fn hard_values_come_back() {
    let scratch = Scratch::new();
    let lora = scratch.join("lora");
    write_lora(&lora, &[("q_proj", 30, 70)], 3, 12);
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64] {
        let path = scratch.join(&format!("{dtype:?}.safetensors"));
        for bytes in [hard(dtype, 30 * 70), vec![0; 30 * 70 * dtype.bitsize() / 8]] {
            let _ = fs::remove_file(&path);
            odd_model(&path, dtype, [30, 70], &bytes);
            for out in DTYPES {
                for strength in [-0.5, 1e30] {
                    comes_back(&path, &[at(&lora, strength)], &["--dtype", out, "--allow-nonfinite"]);
                }
            }
        }
    }
}

#[test]
fn random_bits_come_back_from_every_kind() {
    // The weights of a fixture replaced by noise: every kind meets NaN, infinities and subnormals.
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u8
    };
    let scratch = Scratch::new();
    let noisy = scratch.join("noisy");
    copy_folder(&base("llama"), &noisy);
    for (name, mut bytes) in contents(&noisy) {
        if name.extension().is_some_and(|e| e == "safetensors") {
            let start = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
            bytes[start..].iter_mut().for_each(|b| *b = next());
            fs::write(noisy.join(name), bytes).unwrap();
        }
    }
    // These look for the singular values of the base's weights, and noise has none.
    let decomposes = |case: &Case| ["osf", "pissa", "kasa"].contains(&case.name.as_str());
    let on_llama = |case: &Case| case.expects_merge() && case.text("base") == Some("llama") && !decomposes(case);
    let cases: Vec<Case> = cases("peft").into_iter().filter(on_llama).collect();
    assert!(cases.len() > 50, "only {} fixtures", cases.len());
    let failed = each(&cases, |case| {
        let wrong = there_and_back(&noisy, &[case.adapter().into()], &["--allow-nonfinite"]);
        wrong.into_iter().map(|what| format!("{}: {what}", case.name)).collect()
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn threads_and_memory_change_nothing() {
    let scratch = Scratch::new();
    let (lora, model) = (scratch.join("lora"), scratch.join("base.safetensors"));
    write_lora(&lora, &[("q_proj", 700, 3000)], 8, 3);
    let q = crate::models::tensor(Dtype::BF16, &[700, 3000], 4);
    let v = crate::models::tensor(Dtype::BF16, &[2000, 3000], 5);
    crate::models::write(&model, &[("q_proj.weight".into(), q), ("v_proj.weight".into(), v)].into(), None);
    let mut records = Vec::new();
    for (threads, memory) in [("1", "256MB"), ("4", "256MB"), ("7", "1MB")] {
        let (out, record) = (scratch.join(&format!("out{threads}")), scratch.join(&format!("{threads}.undo")));
        let more = ["--threads", threads, "--memory", memory];
        merge(&model, &[lora.clone().into()], &out, &record, &more).expect(0);
        records.push(fs::read(&record).unwrap());
        let back = scratch.join(&format!("back{threads}"));
        unmerge(&out, &back, &record, &more).expect(0);
        assert_same(&back, &model);
    }
    assert!(records.iter().all(|r| *r == records[0]), "records depend on threads or memory");
}
