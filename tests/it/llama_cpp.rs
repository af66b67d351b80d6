//! Adapters against what llama.cpp's own converters make of them: `fixtures/llama_cpp`, made by its
//! `convert_lora_to_gguf.py` where that is right, and by its conversion of the base, applied to the update, elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::{Delta, LowRank};
use lora_tool::adapter::{Adapter, Severity, SiteKind};
use lora_tool::container::gguf::{GgufFile, Value};
use lora_tool::container::{SafetensorsFile, json};
use lora_tool::layout::{self, gguf::base};
use lora_tool::tensor::{Dtype, Shape, StateDict, Tensor};

use crate::fixtures::{self, Scratch};

/// The keys that llama.cpp's loader looks at.
const LOADER_KEYS: &[&str] = &["general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"];

fn cases() -> Vec<PathBuf> {
    let folders = std::fs::read_dir(fixtures::root().join("llama_cpp")).expect("fixtures");
    let mut all: Vec<_> = folders.map(|entry| entry.expect("an entry").path()).collect();
    all.retain(|path| path.join("adapter_model.safetensors").exists());
    all.sort();
    assert!(all.len() > 20);
    all
}

/// PEFT's adapter of a case, told what the config of its base says.
fn of_peft(folder: &Path) -> Adapter {
    let mut adapter = layout::open(folder, Some("peft")).expect("an adapter").adapter;
    base::tell(&mut adapter, &json::read_object(&folder.join("config.json"), 1 << 20).expect("a config"));
    adapter
}

fn written(adapter: &Adapter, path: &Path) -> GgufFile {
    let (draft, _) = layout::named("gguf").expect("a layout").write(adapter).expect("a draft");
    layout::save(&draft, path, &[], false, false).expect("a file");
    GgufFile::open(path).expect("GGUF")
}

/// Rows, columns and elements.
type Matrix = (usize, usize, Vec<f64>);

fn product(a: &Tensor, b: &Tensor, scale: f64) -> Matrix {
    let (&[rank, cols], &[rows, other]) = (a.shape.dims(), b.shape.dims()) else { panic!("matrices") };
    assert_eq!(rank, other);
    let (a, b) = (a.to_f32().expect("numbers"), b.to_f32().expect("numbers"));
    let one = |row: usize, col: usize| {
        scale * (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * cols + col])).sum::<f64>()
    };
    (rows, cols, (0..rows * cols).map(|at| one(at / cols, at % cols)).collect())
}

/// One matrix of a stack, or the matrix itself.
fn slice(tensor: &Tensor, number: usize) -> Tensor {
    match *tensor.shape.dims() {
        [count, rows, cols] => {
            let size = tensor.bytes.len() / count;
            let bytes = tensor.bytes.slice(number * size..(number + 1) * size);
            Tensor::new(tensor.dtype, Shape::new([rows, cols]), bytes).expect("a matrix")
        }
        _ => tensor.clone(),
    }
}

/// What the tensors of a file add to those of the base, expert by expert.
fn updates(file: &GgufFile) -> BTreeMap<String, Vec<Matrix>> {
    let Some(Value::F32(alpha)) = file.metadata.get("adapter.lora.alpha") else { panic!("alpha") };
    let mut out = BTreeMap::new();
    for (key, a) in &file.tensors {
        let Some(name) = key.strip_suffix(".lora_a") else { continue };
        let b = &file.tensors[&format!("{name}.lora_b")];
        let rank = *b.shape.dims().last().expect("a rank");
        let scale = if *alpha == 0.0 { 1.0 } else { f64::from(*alpha) / rank as f64 };
        let count = if b.shape.rank() == 3 { b.shape.dims()[0] } else { 1 };
        let all = (0..count).map(|number| product(&slice(a, number), &slice(b, number), scale));
        out.insert(name.to_string(), all.collect());
    }
    out
}

fn assert_close(found: &[Matrix], wanted: &[Matrix], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    for ((rows, cols, found), (other_rows, other_cols, wanted)) in found.iter().zip(wanted) {
        assert_eq!((rows, cols), (other_rows, other_cols), "{what}");
        let largest = wanted.iter().fold(1.0f64, |most, v| most.max(v.abs()));
        for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
            assert!((found - wanted).abs() <= 2e-6 * largest, "{what} [{at}]: {found} against {wanted}");
        }
    }
}

fn safetensors(path: &Path) -> StateDict {
    SafetensorsFile::open(path).expect("tensors").tensors
}

#[test]
fn what_is_written_is_what_its_converter_writes() {
    let (mut same, mut other) = (0, 0);
    for folder in cases() {
        let scratch = Scratch::new();
        let ours = written(&of_peft(&folder), &scratch.join("a.gguf"));
        let name = folder.display().to_string();
        if folder.join("upstream.gguf").exists() {
            same += 1;
            let theirs = GgufFile::open(&folder.join("upstream.gguf")).expect("GGUF");
            for key in LOADER_KEYS {
                assert_eq!(ours.metadata.get(*key), theirs.metadata.get(*key), "{name}: {key}");
            }
            let (mut ours, mut theirs) = (ours.tensors, theirs.tensors);
            ours.sort_keys();
            theirs.sort_keys();
            assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
            for (key, tensor) in &theirs {
                assert_eq!(&ours[key], tensor, "{name}: {key}");
            }
        } else {
            other += 1;
            let (ours, wanted) = (updates(&ours), safetensors(&folder.join("update.safetensors")));
            let mut keys: Vec<_> = wanted.keys().collect();
            keys.sort();
            assert_eq!(ours.keys().collect::<Vec<_>>(), keys, "{name}");
            for (key, tensor) in &wanted {
                let count = if tensor.shape.rank() == 3 { tensor.shape.dims()[0] } else { 1 };
                let matrix = |number: usize| {
                    let one = slice(tensor, number);
                    let values = one.to_f32().expect("numbers").into_iter().map(f64::from).collect();
                    (one.shape.dims()[0], one.shape.dims()[1], values)
                };
                assert_close(&ours[key], &(0..count).map(matrix).collect::<Vec<_>>(), &format!("{name}: {key}"));
            }
        }
    }
    assert!(same >= 14 && other >= 8, "{same} and {other}");
}

/// What each expert of a target adds, or the target itself.
fn products(factors: &LowRank) -> Vec<Matrix> {
    let one = |f: lora_tool::adapter::delta::low_rank::Factors| {
        let tensor = |m: &ndarray::Array2<f32>| {
            let values: Vec<f32> = m.iter().copied().collect();
            Tensor::from_f32(Dtype::F32, vec![m.nrows(), m.ncols()], &values).expect("a matrix")
        };
        product(&tensor(&f.a), &tensor(&f.b), f.scale)
    };
    factors.expert_factors().expect("factors").into_iter().map(one).collect()
}

#[test]
fn the_way_back_leads_to_the_adapter_of_peft() {
    for folder in cases() {
        let (scratch, name) = (Scratch::new(), folder.display().to_string());
        let origin = of_peft(&folder);
        let path = scratch.join("a.gguf");
        let first = written(&origin, &path);
        let beside = scratch.join("config.json");
        let theirs = folder.join("upstream.gguf");
        std::fs::copy(folder.join("config.json"), beside).expect("a copy");
        for path in [path, theirs].into_iter().filter(|path| path.exists()) {
            let again = scratch.join(if path.starts_with(&folder) { "theirs.gguf" } else { "ours.gguf" });
            let back = layout::open(&path, None).expect("an adapter").adapter;
            let again = updates(&written(&back, &again));
            for (key, wanted) in updates(&first) {
                assert_close(&again[&key], &wanted, &format!("{name}: {key}"));
            }
            let stacks = |a: &Adapter| a.targets.values().filter(|t| t.site == SiteKind::Parameter).count();
            if stacks(&origin) != stacks(&back) {
                continue; // each expert became a module of its own, as models had them before transformers 5
            }
            assert_eq!(back.targets.keys().collect::<Vec<_>>(), origin.targets.keys().collect::<Vec<_>>(), "{name}");
            for (path, target) in &origin.targets {
                let ([Delta::LowRank(old)], [Delta::LowRank(new)]) =
                    (target.weight.as_slice(), back.targets[path].weight.as_slice())
                else {
                    panic!("{name}: {path}: one LoRA each");
                };
                assert_eq!(back.targets[path].site, target.site, "{name}: {path}");
                assert_close(&products(new), &products(old), &format!("{name}: {path}"));
            }
        }
    }
}

#[test]
fn what_belongs_to_one_module_is_joined_whatever_its_factors() {
    let folder = fixtures::root().join("llama_cpp/internlm2");
    let scratch = Scratch::new();
    let (mut draft, _) = layout::named("gguf").expect("a layout").write(&of_peft(&folder)).expect("a draft");
    std::fs::copy(folder.join("config.json"), scratch.join("config.json")).expect("a copy");
    // Another A for the keys, and a file without values: an update of rank 4, whose last rows are zero.
    let [q, k] = ["attn_q", "attn_k"].map(|leaf| format!("blk.0.{leaf}.weight"));
    let a = draft.tensors[&format!("{k}.lora_a")].clone();
    let turned: Vec<f32> = a.to_f32().expect("numbers").into_iter().rev().collect();
    let turned = Tensor::from_f32(Dtype::F32, a.shape.dims(), &turned).expect("a matrix");
    draft.tensors.insert(format!("{k}.lora_a"), turned);
    draft.tensors.retain(|key, _| !key.contains("attn_v"));
    layout::save(&draft, &scratch.join("a.gguf"), &[], false, false).expect("a file");
    let before = updates(&GgufFile::open(&scratch.join("a.gguf")).expect("GGUF"));
    let back = layout::open(&scratch.join("a.gguf"), None).expect("an adapter").adapter;
    let [Delta::LowRank(factors)] = back.targets["model.layers.0.attention.wqkv"].weight.as_slice() else { panic!() };
    assert_eq!((factors.rank(), factors.b.shape.dims()), (4, &[32, 4][..]));
    let after = updates(&written(&back, &scratch.join("b.gguf")));
    for key in [&q, &k] {
        assert_close(&after[key], &before[key], key);
    }
    assert!(after["blk.0.attn_v.weight"][0].2.iter().all(|v| *v == 0.0));
}

#[test]
fn factors_in_q8_0_have_the_values_of_the_gguf_package() {
    let folder = fixtures::root().join("llama_cpp/q8_0");
    let opened = layout::open(&folder.join("adapter.gguf"), None).expect("an adapter");
    assert!(opened.notes.iter().any(|note| note.key == "Q8_0" && note.text.starts_with("2 ")));
    let [Delta::LowRank(factors)] = opened.adapter.targets["model.layers.0.self_attn.v_proj"].weight.as_slice() else {
        panic!()
    };
    let values = safetensors(&folder.join("values.safetensors"));
    assert_eq!(factors.a, values["blk.0.attn_v.weight.lora_a"]);
    assert_eq!(factors.b, values["blk.0.attn_v.weight.lora_b"]);
}

#[test]
fn what_llama_cpp_would_not_use_is_refused_or_noted() {
    let mut adapter = of_peft(&fixtures::root().join("llama_cpp/deepseek3"));
    let target = adapter.targets.values().next().expect("a target").clone();
    adapter.targets.insert("model.layers.0.self_attn.kv_b_proj".into(), target);
    let said = layout::named("gguf").expect("a layout").write(&adapter).expect_err("a refusal").to_string();
    assert!(said.contains("kv_b_proj") && said.contains("attn_k_b"), "{said}");
    adapter.targets.retain(|path, _| !path.as_str().ends_with("kv_b_proj"));
    let (_, notes) = layout::named("gguf").expect("a layout").write(&adapter).expect("a draft");
    let idle = notes.iter().find(|note| note.key == "attn_kv_a_mqa.weight").expect("a note");
    assert_eq!(idle.severity, Severity::Lossy);
}

#[test]
fn no_damage_makes_a_reader_panic() {
    let scratch = Scratch::new();
    let mut state = 5u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for (number, folder) in cases().into_iter().enumerate() {
        written(&of_peft(&folder), &scratch.join(&format!("{number}.gguf")));
        let whole = std::fs::read(scratch.join(&format!("{number}.gguf"))).expect("a file");
        let config = std::fs::read_to_string(folder.join("config.json")).expect("a config");
        for _ in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=next(2) {
                let at = next(bytes.len().min(1500)); // the header
                bytes[at] = if next(2) == 0 { next(256) as u8 } else { bytes[at] ^ (1 << next(8)) };
            }
            std::fs::write(scratch.join("damaged.gguf"), bytes).expect("a file");
            let digits = ["0", "1", "3", "7", "9999999999"][next(5)];
            let config = config.replacen(["2,", "4,", "8,", "16,"][next(4)], &format!("{digits},"), next(4));
            std::fs::write(scratch.join("config.json"), config).expect("a config");
            if let Ok(opened) = layout::open(&scratch.join("damaged.gguf"), None) {
                let _ = layout::named("gguf").expect("a layout").write(&opened.adapter);
            }
        }
    }
}
