//! `resize` against what PEFT merges, against spectra that are known because the factors were made of them, and against
//! the definitions in f64.

use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use lora_tool::container::SafetensorsFile;
use lora_tool::tensor::Tensor;

use crate::fixtures::{self, Scratch, adapter, cases, text};
use crate::models::{Model, Values, deltas, json_file, read, tensor, write};
use crate::parity;
use crate::program::{Ran, names, run};

fn resize(from: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["resize".to_string(), text(from), "-o".to_string(), text(out), "--no-sync".to_string()];
    args.extend(more.iter().map(ToString::to_string));
    run(args)
}

fn answer(from: &Path, out: &Path, more: &[&str]) -> Value {
    let more: Vec<_> = more.iter().copied().chain(["--json"]).collect();
    resize(from, out, &more).expect(0).json()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[track_caller]
fn close(found: f64, wanted: f64, tolerance: f64) {
    assert!((found - wanted).abs() <= tolerance * wanted.abs(), "{found} against {wanted}");
}

fn ranks(answer: &Value) -> Vec<u64> {
    answer["modules"].as_array().expect("modules").iter().map(|m| m["rank"].as_u64().expect("a rank")).collect()
}

// Against PEFT

#[test]
fn at_full_rank_every_change_is_what_peft_merges() {
    let (mut failed, mut count) = (Vec::new(), 0);
    for case in cases("peft").into_iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let scratch = Scratch::new();
        for alpha in ["rank", "keep"] {
            let out = scratch.join(alpha);
            let ran = resize(&case.adapter(), &out, &["--rank", "4096", "--alpha", alpha, "--dtype", "f32"]);
            if ran.code == Some(1) && WITHOUT_RANK.iter().any(|reason| ran.err.contains(reason)) {
                continue;
            }
            ran.expect(0);
            count += 1;
            failed.extend(parity::differences_of(&case, &out).iter().map(|d| format!("{}, {alpha}: {d}", case.name)));
        }
    }
    assert!(count > 150, "only {count} were resized");
    assert!(failed.is_empty(), "{} of {count}:\n{}", failed.len(), failed.join("\n"));
}

/// Why an adapter is refused: it has no rank, it is for a changed base, PEFT's layout cannot hold it.
const WITHOUT_RANK: [&str; 4] = [
    "has a rank that could be changed",
    "for a changed base",
    "cannot be written in PEFT's layout",
    "whose input is adapted with another rank or scale",
];

#[test]
fn with_the_base_what_has_factors_only_beside_it_is_resized_too() {
    for name in [
        "vera",
        "vera_seed",
        "pvera",
        "gpt2_vera",
        "randlora",
        "randlora_seed",
        "gpt2_randlora",
        "unilora",
        "resnet_loha",
        "resnet_lokr",
        "lora",
        "gpt2",
        "qwen3_moe_up",
    ] {
        let case = cases("peft").into_iter().find(|c| c.name == name).expect("the case");
        let scratch = Scratch::new();
        let out = scratch.join("out");
        resize(&case.adapter(), &out, &["--rank", "4096", "--base", &text(&case.base())]).expect(0);
        let differences = parity::differences_of(&case, &out);
        assert!(differences.is_empty(), "{name}: {}", differences.join("\n"));
        if name.starts_with("resnet") {
            let kernels = read(&out).into_iter().filter(|(key, t)| key.contains("conv") && t.shape.len() != 4).count();
            assert_eq!(kernels, 0, "{name}: factors of convolutions are flat");
        }
    }
    let e = resize(&adapter("vera"), &Scratch::new().join("out"), &["--rank", "1"]).expect(1).err;
    assert!(e.contains("--base"), "{e}");
}

/// Two ways to the same number: from the singular values here, from sums over the factors in `compare`.
#[test]
fn errors_are_those_that_compare_finds() {
    let adapters = [
        "lora",
        "rslora",
        "bf16",
        "f16_all",
        "roberta_embedding",
        "gpt2",
        "resnet",
        "convnext",
        "loha",
        "lokr",
        "lokr_full",
        "whisper_lokr",
        "qwen3_moe_up",
        "gpt_oss_both",
    ];
    for name in adapters {
        let scratch = Scratch::new();
        for rank in ["1", "2"] {
            let out = scratch.join(rank);
            let found = answer(&adapter(name), &out, &["--rank", rank, "--alpha", "keep"]);
            let compared = run(["compare", &text(&adapter(name)), &text(&out), "--json"]).expect(0).json();
            let modules = found["modules"].as_array().expect("modules");
            for module in modules {
                let same = |m: &&Value| m["module"] == module["module"];
                let other = compared["modules"].as_array().expect("modules").iter().find(same).expect("the module");
                let (error, wanted) = (number(&module["relative_error"]), number(&other["relative_difference"]));
                assert!((error - wanted).abs() < 1e-3 * wanted + 1e-6, "{name} {rank}: {error} against {wanted}");
            }
            let (error, wanted) =
                (number(&found["overall"]["relative_error"]), number(&compared["relative_difference"]));
            assert!((error - wanted).abs() < 1e-3 * wanted + 1e-6, "{name} {rank}: {error} against {wanted}");
        }
    }
}

// Against spectra that are known

/// Column k of an orthonormal basis of cosines.
fn cosine(n: usize, i: usize, k: usize) -> f64 {
    let length = if k == 0 { 1.0 } else { 2.0 } / n as f64;
    length.sqrt() * (std::f64::consts::PI * (i as f64 + 0.5) * k as f64 / n as f64).cos()
}

/// A LoRA whose change of each module (rows, columns) has these singular values, mixed by a rotation of the factors.
fn write_known(folder: &Path, dtype: Dtype, modules: &[(&str, usize, usize, &[f64])]) {
    std::fs::create_dir_all(folder).expect("a folder");
    let (mut model, mut patterns) = (Model::new(), serde_json::Map::new());
    for (path, rows, cols, s) in modules {
        let r = s.len();
        let turned = |i: usize, k: usize| cosine(r, i, k); // orthogonal
        // B = U·Q and A = Qᵀ·diag(σ)·Vᵀ, divided by a scale of 4 / r.
        let b = (0..rows * r).map(|at| (0..r).map(|k| cosine(*rows, at / r, k) * turned(at % r, k)).sum());
        let a = (0..r * cols).map(|at| {
            (0..r).map(|k| turned(at / cols, k) * s[k] * cosine(*cols, at % cols, k)).sum::<f64>() * r as f64 / 4.0
        });
        let values = |shape: [usize; 2], values: Vec<f64>| Values { dtype, shape: shape.to_vec(), values };
        model.insert(format!("base_model.model.{path}.lora_A.weight"), values([r, *cols], a.collect()));
        model.insert(format!("base_model.model.{path}.lora_B.weight"), values([*rows, r], b.collect()));
        patterns.insert((*path).to_string(), json!(r));
    }
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let leaves: Vec<_> = modules.iter().filter_map(|(path, ..)| path.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 4, "rank_pattern": patterns, "target_modules": leaves,
    });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
}

/// Squares 16, 4, 4, 1 of 25.
const FIRST: [f64; 4] = [4.0, 2.0, 2.0, 1.0];
/// Squares 9, 1, 0.01, 0.0001.
const SECOND: [f64; 4] = [3.0, 1.0, 0.1, 0.01];

fn known(scratch: &Scratch, dtype: Dtype) -> PathBuf {
    let folder = scratch.join("known");
    write_known(&folder, dtype, &[("layers.0.down", 30, 50, &FIRST), ("layers.0.up", 40, 20, &SECOND)]);
    folder
}

#[test]
fn each_rule_gives_the_ranks_of_the_spectrum() {
    let scratch = Scratch::new();
    let folder = known(&scratch, Dtype::F32);
    // A rank of the first costs 80 parameters, of the second 60. Gains a parameter: 0.2, 0.05, 0.05, 0.0125 and 0.15,
    // 0.0167, 0.0002.
    let size = |parameters: usize| format!("size={}", 4 * parameters);
    let (size_140, size_300) = (size(140), size(300));
    for (more, wanted) in [
        (vec!["2"], [2, 2]),
        (vec!["9"], [9, 9]),
        (vec!["64"], [30, 20]),
        (vec!["energy=0.8"], [2, 1]),
        (vec!["energy=0.95"], [3, 2]),
        (vec!["error=0.2"], [3, 2]),
        (vec!["error=0.05"], [4, 2]),
        (vec!["ratio=0.3"], [3, 2]),
        (vec!["energy=0.8", "--min-rank", "2"], [2, 2]),
        (vec!["energy=0.95", "--rank-multiple", "4"], [4, 4]),
        (vec!["energy=1", "--max-rank", "3"], [3, 3]),
        (vec!["params=140"], [1, 1]),
        (vec!["params=220"], [2, 1]),
        (vec!["params=300"], [3, 1]),
        (vec!["params=260", "--min-rank", "1"], [2, 1]),
        (vec![&size_140], [1, 1]),
        (vec![&size_300], [3, 1]),
    ] {
        let out = scratch.join(&more.join(" "));
        let more: Vec<_> = std::iter::once("--rank").chain(more).collect();
        let found = answer(&folder, &out, &more);
        assert_eq!(ranks(&found), wanted, "{more:?}");
        let tail = |s: &[f64], rank: u64| s.iter().skip(rank as usize).map(|s| s * s).sum::<f64>();
        let energy = tail(&FIRST, 0) + tail(&SECOND, 0);
        let error = ((tail(&FIRST, wanted[0]) + tail(&SECOND, wanted[1])) / energy).sqrt();
        let reported = number(&found["overall"]["relative_error"]);
        assert!((reported - error).abs() < 1e-5 * error + 1e-6, "{more:?}: {reported} against {error}");
        close(number(&found["modules"][0]["sigma_max"]), 4.0, 1e-5);
    }
    let e = resize(&folder, &scratch.join("none"), &["--rank", "params=20"]).expect(1).err;
    assert!(e.contains("60"), "{e}");
}

#[test]
fn the_change_in_the_file_is_the_best_of_its_rank_and_as_far_off_as_reported() {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    let s: Vec<f64> = (0..16).map(|k| 8.0 * f64::powi(0.7, k)).collect();
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        write_known(&folder, dtype, &[("q", 60, 40, &s)]);
        let before = known_change(&folder, 16);
        let norm = before.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (rank, side) in [(4usize, "even"), (12, "a"), (16, "b"), (24, "even")] {
            for alpha in ["rank", "keep"] {
                let out = scratch.join(&format!("{dtype:?} {rank} {alpha}"));
                let rank_text = rank.to_string();
                let found = answer(&folder, &out, &["--rank", &rank_text, "--alpha", alpha, "--balance", side]);
                let after = deltas(&out).remove("q.weight").expect("the module");
                let error = before.iter().zip(&after).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt() / norm;
                let reported = number(&found["modules"][0]["relative_error"]);
                assert!((reported - error).abs() < 5e-3 * error + 1e-6, "{dtype:?} {rank}: {reported} against {error}");
                if dtype == Dtype::F32 {
                    let tail = s.iter().skip(rank).map(|s| s * s).sum::<f64>().sqrt() / norm;
                    assert!((error - tail).abs() < 1e-5 * tail + 1e-6, "{rank}: {error} against {tail}");
                }
                let written = read(&out);
                assert!(written.values().all(|t| t.dtype == dtype));
                let config = json_file(&out.join("adapter_config.json"));
                let wanted = if alpha == "rank" { rank as f64 } else { 4.0 };
                assert_eq!((number(&config["r"]), number(&config["lora_alpha"])), (rank as f64, wanted));
            }
            let _ = std::fs::remove_dir_all(scratch.join(&format!("{dtype:?} {rank} rank")));
        }
    }
}

/// (4 / r) · B · A of the module `q` in f64.
fn known_change(folder: &Path, rank: usize) -> Vec<f64> {
    let model = read(&folder.join("adapter_model.safetensors"));
    let (a, b) = (&model["base_model.model.q.lora_A.weight"], &model["base_model.model.q.lora_B.weight"]);
    let (rows, cols) = (b.shape[0], a.shape[1]);
    let sum = |i: usize, j: usize| (0..rank).map(|k| b.values[i * rank + k] * a.values[k * cols + j]).sum::<f64>();
    (0..rows * cols).map(|at| 4.0 / rank as f64 * sum(at / cols, at % cols)).collect()
}

// What is written

#[test]
fn one_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let scratch = Scratch::new();
    let bytes = |threads: &str| {
        let out = scratch.join(threads);
        resize(&adapter("lora_all_linear"), &out, &["--rank", "energy=0.7", "--threads", threads]).expect(0);
        assert_eq!(names(&out), ["adapter_config.json", "adapter_model.safetensors"]);
        names(&out).into_iter().map(|name| std::fs::read(out.join(name)).expect("a file")).collect::<Vec<_>>()
    };
    assert_eq!(bytes("1"), bytes("4"));
}

#[test]
fn the_file_says_what_was_done_and_keeps_what_it_said() {
    let scratch = Scratch::new();
    let (once, twice) = (scratch.join("once"), scratch.join("twice"));
    resize(&adapter("lora"), &once, &["--rank", "energy=0.9"]).expect(0);
    resize(&once, &twice, &["--rank", "1"]).expect(0);
    let bytes = std::fs::read(twice.join("adapter_model.safetensors")).expect("a file");
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("safetensors");
    let said = header.metadata().as_ref().and_then(|m| m.get("lora_tool.resized")).expect("what was done");
    assert!(said.contains("rank energy=0.9: relative error") && said.contains("; rank 1: relative error"), "{said}");
    let (before, after) =
        (json_file(&adapter("lora").join("adapter_config.json")), json_file(&twice.join("adapter_config.json")));
    for field in ["base_model_name_or_path", "task_type", "lora_dropout"] {
        assert_eq!(before[field], after[field], "{field}");
    }
}

#[test]
fn a_dry_run_answers_and_writes_nothing() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    let found = answer(&adapter("lora"), &out, &["--rank", "1", "--dry-run"]);
    assert_eq!((found["dry_run"].as_bool(), ranks(&found)), (Some(true), vec![1; 4]));
    assert!(!out.exists());
}

// What is refused

#[test]
fn what_has_no_rank_is_refused_or_carried() {
    let scratch = Scratch::new();
    let e = resize(&adapter("ia3"), &scratch.join("a"), &["--rank", "1"]).expect(1).err;
    assert!(e.contains("IA3 × "), "{e}");
    let e = resize(&adapter("pissa"), &scratch.join("b"), &["--rank", "1"]).expect(1).err;
    assert!(e.contains("changed base"), "{e}");
    let ran = resize(&adapter("embedding"), &scratch.join("c"), &["--rank", "1"]).expect(0);
    assert!(ran.err.contains("carried as they are"), "{}", ran.err);
    assert_eq!(names(&scratch.join("c")).len(), 2);
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let folder = scratch.join("large");
    write_known(&folder, Dtype::F32, &[("q", 8, 8, &[1e12, 1.0])]);
    let e = resize(&folder, &scratch.join("out"), &["--rank", "1", "--dtype", "f16"]).expect(1).err;
    assert!(e.contains("does not fit F16") && e.contains("--dtype f32"), "{e}");
    assert!(!scratch.join("out").exists());
    resize(&folder, &scratch.join("out"), &["--rank", "1", "--dtype", "bf16"]).expect(0);
}

#[test]
fn a_few_numbers_that_multiply_to_a_huge_change_are_refused() {
    let scratch = Scratch::new();
    let folder = scratch.join("huge");
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut model = Model::new();
    for (role, shape) in [("w1_a", [50_000, 1]), ("w1_b", [1, 50_000]), ("w2_a", [50_000, 1]), ("w2_b", [1, 50_000])] {
        model.insert(format!("base_model.model.q.lokr_{role}"), tensor(Dtype::F32, &shape, 1));
    }
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let config = json!({ "peft_type": "LOKR", "r": 1, "alpha": 1, "target_modules": ["q"] });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
    let e = resize(&folder, &scratch.join("out"), &["--rank", "1"]).expect(1).err;
    assert!(e.contains("at most 1073741824 elements"), "{e}");
}

#[test]
fn modules_that_lose_everything_are_named() {
    let scratch = Scratch::new();
    let folder = scratch.join("known");
    write_known(&folder, Dtype::F32, &[("layers.0.down", 30, 50, &FIRST), ("layers.0.up", 40, 20, &[0.5, 0.25])]);
    let out = scratch.join("out");
    let ran = resize(&folder, &out, &["--rank", "params=170"]).expect(0);
    assert!(ran.err.contains("warning: layers.0.up: left out"), "{}", ran.err);
    assert_eq!(deltas(&out).len(), 1);
    resize(&folder, &scratch.join("strict"), &["--rank", "params=170", "--strict"]).expect(3);
    assert!(!scratch.join("strict").exists());
    // A change of nothing is left out without a warning.
    let mut model = read(&folder.join("adapter_model.safetensors"));
    let zeros = Values { values: vec![0.0; 100], ..tensor(Dtype::F32, &[2, 50], 1) };
    model.insert("base_model.model.layers.0.down.lora_A.weight".into(), zeros);
    model.insert("base_model.model.layers.0.down.lora_B.weight".into(), tensor(Dtype::F32, &[30, 2], 1));
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let mut config = json_file(&folder.join("adapter_config.json"));
    config["rank_pattern"] = json!({});
    config["r"] = json!(2);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
    let ran = resize(&folder, &scratch.join("zero"), &["--rank", "1", "--strict"]).expect(0);
    assert!(ran.err.contains("it changes nothing"), "{}", ran.err);
}

#[test]
fn outputs_and_bounds_are_checked() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    resize(&adapter("lora"), &out, &["--rank", "1"]).expect(0);
    assert!(resize(&adapter("lora"), &out, &["--rank", "1"]).expect(1).err.contains("--force"));
    resize(&adapter("lora"), &out, &["--rank", "2", "--force"]).expect(0);
    resize(&out, &out, &["--rank", "1", "--force"]).expect(1);
    for bad in [
        vec!["--rank", "0"],
        vec!["--rank", "energy=2"],
        vec!["--rank", "4", "--min-rank", "5", "--max-rank", "4"],
        vec!["--rank", "4", "--rank-multiple", "0"],
        vec![],
    ] {
        resize(&adapter("lora"), &scratch.join("bad"), &bad).expect(2);
    }
}

#[test]
fn convolutions_have_ranks_of_their_own() {
    let scratch = Scratch::new();
    let random = |shape: &[usize], seed: usize| {
        let count = shape.iter().product::<usize>();
        let values: Vec<_> = (0..count).map(|i| ((i * 53 + seed * 71) % 127) as f32 / 64.0 - 1.0).collect();
        Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
    };
    let name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
    let kernel = "lora_unet_down_blocks_0_resnets_0_conv1";
    let tensors = [
        (format!("{name}.lora_down.weight"), random(&[6, 12], 1)),
        (format!("{name}.lora_up.weight"), random(&[12, 6], 2)),
        (format!("{name}.alpha"), Tensor::from_f32(Dtype::F32, Vec::new(), &[3.0]).expect("a number")),
        (format!("{kernel}.lora_down.weight"), random(&[6, 12, 3, 3], 3)),
        (format!("{kernel}.lora_up.weight"), random(&[12, 6, 1, 1], 4)),
    ];
    let adapter = fixtures::file(&scratch.join("adapter.safetensors"), tensors.into_iter().collect());
    let out = scratch.join("small.safetensors");
    resize(&adapter, &out, &["--rank", "2", "--conv-rank", "4"]).expect(0);
    let found = SafetensorsFile::open(&out).expect("tensors").tensors;
    let dims = |key: &str| found[key].shape.dims().to_vec();
    assert_eq!(dims(&format!("{name}.lora_down.weight")), [2, 12]);
    assert_eq!(dims(&format!("{kernel}.lora_down.weight")), [4, 12, 3, 3]);
    assert_eq!(dims(&format!("{kernel}.lora_up.weight")), [12, 4, 1, 1]);
    // Alpha is the new rank, since the old scale went into the factors.
    assert_eq!(found[&format!("{name}.alpha")].to_f32().expect("alpha"), [2.0]);
    let answer = answer(&adapter, &scratch.join("energy.safetensors"), &["--rank", "1", "--conv-rank", "energy=0.9"]);
    let ranks = ranks(&answer);
    assert!(ranks.contains(&1) && ranks.iter().any(|rank| *rank > 1), "{ranks:?}");
}
