//! `convert` against what PEFT merges, and against the definitions in f64.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Scratch, adapter, base, cases, text};
use crate::models::{Model, Values, deltas, json_file, read, rounded, tensor, write, write_lora};
use crate::parity;
use crate::program::{Ran, names, run};

fn convert(from: &Path, out: &Path, more: &[&str]) -> Ran {
    convert_all(&[from.to_path_buf()], out, more)
}

fn convert_all(from: &[PathBuf], out: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["convert".to_string()];
    args.extend(from.iter().map(|path| text(path)));
    args.extend(["-o".to_string(), text(out), "--to".into(), "peft".into(), "--no-sync".into()]);
    args.extend(more.iter().map(ToString::to_string));
    run(args)
}

// Against PEFT

/// Why an adapter is refused as it is: PEFT's layout has no place for it.
const NOT_WRITTEN: [&str; 2] = ["cannot be written in PEFT's layout", "are read, not written"];
/// Why it is refused as plain LoRA.
const NOT_PLAIN: [&str; 5] = [
    "DoRA: ",
    "no low-rank change by its own data",
    "known only beside its base",
    "for a changed base",
    "whose input is adapted with another rank or scale",
];

#[test]
fn every_conversion_is_what_peft_merges() {
    let (mut failed, mut count) = (Vec::new(), [0, 0]);
    for case in cases("peft").into_iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let scratch = Scratch::new();
        for (i, more) in [&[][..], &["--normalise"]].into_iter().enumerate() {
            let out = scratch.join(&i.to_string());
            let ran = convert(&case.adapter(), &out, more);
            let mut reasons = NOT_WRITTEN.iter().chain(&NOT_PLAIN[..i * NOT_PLAIN.len()]);
            if ran.code == Some(1) && reasons.any(|reason| ran.err.contains(reason)) {
                continue;
            }
            ran.expect(0);
            count[i] += 1;
            failed.extend(parity::differences_of(&case, &out).iter().map(|d| format!("{}, {i}: {d}", case.name)));
            if i == 1 {
                failed.extend(not_plain(&out).map(|what| format!("{}: {what}", case.name)));
            }
        }
    }
    assert!(count[0] > 130 && count[1] > 70, "only {count:?} were converted");
    assert!(failed.is_empty(), "{} of {count:?}:\n{}", failed.len(), failed.join("\n"));
}

/// What about the config is not that of a plain LoRA of scale 1.
fn not_plain(out: &Path) -> Option<String> {
    let config = json_file(&out.join("adapter_config.json"));
    if config["peft_type"] != "LORA" {
        return (!["LN_TUNING", "TRAINABLE_TOKENS", "BEFT"].map(Value::from).contains(&config["peft_type"]))
            .then(|| config["peft_type"].to_string());
    }
    let plain = config["use_rslora"] == json!(false) && config["use_dora"] == json!(false);
    // One pattern of alphas is left: where ranks differ, they have to follow.
    let same = config["alpha_pattern"] == config["rank_pattern"]
        && (config["lora_alpha"] == config["r"] || config["target_modules"] == json!("dummy-target-modules"));
    (!(plain && same)).then(|| config.to_string())
}

#[test]
fn with_the_base_shared_factors_become_plain_lora() {
    for name in ["vera", "vera_seed", "pvera", "gpt2_vera", "randlora", "randlora_seed", "unilora"] {
        let case = cases("peft").into_iter().find(|c| c.name == name).expect("the case");
        let scratch = Scratch::new();
        let out = scratch.join("out");
        convert(&case.adapter(), &out, &["--normalise", "--base", &text(&case.base())]).expect(0);
        let differences = parity::differences_of(&case, &out);
        assert!(differences.is_empty(), "{name}: {}", differences.join("\n"));
        assert_eq!(not_plain(&out), None, "{name}");
    }
    let scratch = Scratch::new();
    let e = convert(&adapter("vera"), &scratch.join("a"), &["--normalise"]).expect(1).err;
    assert!(e.contains("--base"), "{e}");
}

// Against the definitions

/// Module, rows, columns, rank, alpha.
const MODULES: [(&str, usize, usize, usize, f64); 4] = [
    ("layers.0.q", 12, 8, 4, 16.0),
    ("layers.0.v", 6, 8, 3, 5.0),
    ("layers.1.q", 12, 8, 2, 1.0),
    ("layers.1.v", 6, 8, 5, -0.3),
];

/// A LoRA with a rank and an alpha for each module, and what it adds to each in f64.
fn patterned(folder: &Path, dtype: Dtype, root: bool) -> BTreeMap<String, Vec<f64>> {
    std::fs::create_dir_all(folder).expect("a folder");
    let (mut model, mut changes) = (Model::new(), BTreeMap::new());
    let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
    for (i, (path, rows, cols, r, alpha)) in MODULES.into_iter().enumerate() {
        let (a, b) = (tensor(dtype, &[r, cols], 7 + i as u64), tensor(dtype, &[rows, r], 70 + i as u64));
        let scale = alpha / if root { (r as f64).sqrt() } else { r as f64 };
        changes.insert(path.to_string(), product(scale, &b, &a));
        model.insert(format!("base_model.model.{path}.lora_A.weight"), a);
        model.insert(format!("base_model.model.{path}.lora_B.weight"), b);
        ranks.insert(path.to_string(), json!(r));
        alphas.insert(path.to_string(), json!(alpha));
    }
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let config = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 8, "use_rslora": root,
        "rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": ["q", "v"] });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
    changes
}

fn product(scale: f64, b: &Values, a: &Values) -> Vec<f64> {
    let (rank, cols) = (a.shape[0], a.shape[1]);
    let sum = |i: usize, j: usize| (0..rank).map(|k| b.values[i * rank + k] * a.values[k * cols + j]).sum::<f64>();
    (0..b.shape[0] * cols).map(|at| scale * sum(at / cols, at % cols)).collect()
}

#[test]
fn the_change_is_the_same_in_f64_where_every_scale_is_one() {
    for (dtype, root) in [(Dtype::F32, false), (Dtype::BF16, true), (Dtype::F16, false), (Dtype::F64, true)] {
        let scratch = Scratch::new();
        let (folder, out) = (scratch.join("in"), scratch.join("out"));
        let wanted = patterned(&folder, dtype, root);
        convert(&folder, &out, &["--normalise"]).expect(0);
        assert_eq!(not_plain(&out), None);
        let (old, new) = (read(&folder), read(&out));
        for (path, _, _, r, alpha) in MODULES {
            let key = |side: &str| format!("base_model.model.{path}.lora_{side}.weight");
            let (a, b) = (&new[&key("A")], &new[&key("B")]);
            assert_eq!(a, &old[&key("A")], "A is never touched");
            // The scale of 4 in the first is a power of two, as is that of 0.5 in the third.
            let scale = alpha / if root { (r as f64).sqrt() } else { r as f64 };
            let exact = scale.abs().log2().fract() == 0.0;
            let kept = exact || matches!(dtype, Dtype::F32 | Dtype::F64);
            assert_eq!(b.dtype, if kept { dtype } else { Dtype::F32 }, "{path}");
            for (old, new) in old[&key("B")].values.iter().zip(&b.values) {
                assert_eq!(*new, rounded(b.dtype, old * scale), "{path}: one rounding");
            }
            let tolerance = if dtype == Dtype::F64 { 1e-14 } else { 1e-6 };
            for (found, wanted) in product(1.0, b, a).iter().zip(&wanted[path]) {
                assert!((found - wanted).abs() <= if exact { 0.0 } else { tolerance * 10.0 }, "{path}");
            }
        }
    }
}

#[test]
fn to_its_own_layout_every_tensor_keeps_its_bytes() {
    for name in
        ["lora", "bf16", "f16_all", "dora", "rslora", "no_prefix", "nested", "orig_mod", "pickled", "loha", "vera"]
    {
        let scratch = Scratch::new();
        let (once, twice) = (scratch.join("once"), scratch.join("twice"));
        convert(&adapter(name), &once, &[]).expect(0);
        convert(&once, &twice, &[]).expect(0);
        assert_eq!(names(&once), ["adapter_config.json", "adapter_model.safetensors"]);
        for file in names(&once) {
            let bytes = |folder: &Path| std::fs::read(folder.join(&file)).expect("a file");
            assert_eq!(bytes(&once), bytes(&twice), "{name}: {file}");
        }
        let bits = |path: &Path| {
            let opened = lora_tool::layout::open(path, None).expect("an adapter");
            opened.adapter.targets
        };
        assert_eq!(bits(&adapter(name)), bits(&once), "{name}");
        assert!(read(&once).keys().all(|key| key.starts_with("base_model.model.") || key.contains("vera")), "{name}");
    }
}

#[test]
fn a_cast_rounds_once_and_refuses_what_does_not_fit() {
    let scratch = Scratch::new();
    let folder = scratch.join("in");
    patterned(&folder, Dtype::F32, false);
    for (word, dtype) in [("bf16", Dtype::BF16), ("f16", Dtype::F16), ("f64", Dtype::F64), ("f32", Dtype::F32)] {
        for more in [vec!["--dtype", word], vec!["--dtype", word, "--normalise"]] {
            let out = scratch.join(&more.join(" "));
            let ran = convert(&folder, &out, &more).expect(0);
            let rounds = word.ends_with("16") || (word == "f32" && more.len() == 3);
            assert_eq!(ran.err.contains("values were rounded"), rounds, "{word}: {}", ran.err);
            let (old, new) = (read(&folder), read(&out));
            for (path, _, _, r, alpha) in MODULES {
                for (side, scale) in [("A", 1.0), ("B", if more.len() == 3 { alpha / r as f64 } else { 1.0 })] {
                    let key = format!("base_model.model.{path}.lora_{side}.weight");
                    assert_eq!(new[&key].dtype, dtype);
                    let wanted = old[&key].values.iter().map(|v| rounded(dtype, v * scale)).collect::<Vec<_>>();
                    assert_eq!(new[&key].values, wanted, "{key} {word}");
                }
            }
        }
    }
    let mut model = read(&folder);
    model.get_mut("base_model.model.layers.0.q.lora_B.weight").expect("B").values[3] = 1e5;
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let e = convert(&folder, &scratch.join("none"), &["--dtype", "f16"]).expect(1).err;
    assert!(e.contains("layers.0.q") && e.contains("1.0000e5 does not fit F16"), "{e}");
    let e = convert(&folder, &scratch.join("none"), &["--dtype", "f16", "--normalise"]).expect(1).err;
    assert!(e.contains("4.0000e5 does not fit F16"), "{e}");
    assert!(!scratch.join("none").exists());
}

// What is written, and where

#[test]
fn several_adapters_go_into_a_folder_that_appears_whole() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    let given = [adapter("lora"), adapter("bf16"), adapter("pickled")];
    let answer = convert_all(&given, &out, &["--json"]).expect(0).json();
    assert_eq!(names(&out), ["bf16", "lora", "pickled"]);
    assert_eq!(answer["adapters"].as_array().map(Vec::len), Some(3));
    assert_eq!(answer["adapters"][1]["out"], json!(out.join("bf16")));
    assert_eq!(deltas(&adapter("lora")), deltas(&out.join("lora")));
    let e = convert_all(&given, &out, &[]).expect(1).err;
    assert!(e.contains("exists already"), "{e}");
    convert_all(&given[..2], &out, &["--force"]).expect(0);
    assert_eq!(names(&out), ["bf16", "lora", "pickled"], "what has no successor stays");
    // One that fails takes the others with it, and nothing is left beside them.
    let none = scratch.join("none");
    convert_all(&[adapter("lora"), adapter("nan")], &none, &[]).expect(1);
    assert_eq!(names(&scratch.join(".")), ["out"]);
    let twice = convert_all(&[adapter("lora"), out.join("lora")], &none, &[]).expect(2).err;
    assert!(twice.contains(&text(&adapter("lora"))) && twice.contains(&text(&out.join("lora"))), "{twice}");
    convert_all(&given, &none, &["--dry-run"]).expect(0);
    assert_eq!(names(&scratch.join(".")), ["out"]);
    // A folder with anything else in it is no result.
    std::fs::write(out.join("notes.txt"), "mine").expect("a file");
    let e = convert_all(&given, &out, &["--force"]).expect(1).err;
    assert!(e.contains("no result that could be replaced"), "{e}");
    let e = convert_all(&[out.join("lora"), out.join("bf16")], &out, &["--force"]).expect(1).err;
    assert!(e.contains("input"), "{e}");
}

#[test]
fn files_of_a_folder_are_converted_at_once() {
    let scratch = Scratch::new();
    let files = |folder: &str, ending: &str, count: usize, from: &Path| -> Vec<PathBuf> {
        std::fs::create_dir_all(scratch.join(folder)).expect("a folder");
        let paths: Vec<_> = (0..count).map(|i| scratch.join(&format!("{folder}/a{i:02}.{ending}"))).collect();
        for path in &paths {
            std::fs::copy(from, path).expect("a copy");
        }
        paths
    };
    // GGUF to PEFT and back; on one thread and on several the same, in the same order.
    let gguf = crate::fixtures::root().join("adapters/gguf/llama/adapter.gguf");
    let many = files("gguf", "gguf", 12, &gguf);
    let base = text(&base("llama"));
    let (one, several) = (scratch.join("one"), scratch.join("several"));
    let first = convert_all(&many, &one, &["--base", &base, "--threads", "1"]).expect(0);
    let second = convert_all(&many, &several, &["--base", &base, "--threads", "4", "--memory", "1KB"]).expect(0);
    let without_time = |ran: &Ran| {
        let lines: Vec<_> = ran.out.lines().filter(|l| !l.contains("adapters in")).map(str::to_string).collect();
        lines.join("\n").replace("/one/", "/several/")
    };
    assert_eq!(without_time(&first), without_time(&second));
    assert_eq!(names(&one), names(&several));
    assert_eq!((names(&one).len(), names(&one)[0].as_str()), (12, "a00"));
    for name in names(&one) {
        assert_eq!(read(&one.join(&name)), read(&several.join(&name)));
    }
    let out = scratch.join("back");
    let args = ["convert", "--to", "gguf", "--base", &base, "-o"].map(String::from).into_iter().chain([text(&out)]);
    run(args.chain(names(&one).into_iter().map(|name| text(&one.join(name))))).expect(0);
    assert_eq!(names(&out)[11], "a11.gguf");
    // Tensors without a config, where alpha is said; one that fails takes the others with it.
    let many = files("tensors", "safetensors", 5, &adapter("lora").join("adapter_model.safetensors"));
    let plain = scratch.join("plain");
    convert_all(&many, &plain, &["--assume-alpha", "4"]).expect(0);
    assert_eq!(names(&plain), ["a00", "a01", "a02", "a03", "a04"]);
    assert_eq!(json_file(&plain.join("a03/adapter_config.json"))["lora_alpha"], 4);
    std::fs::write(&many[2], "x").expect("a file");
    std::fs::write(&many[4], "x").expect("a file");
    let e = convert_all(&many, &scratch.join("none"), &["--assume-alpha", "4"]).expect(1).err;
    assert!(e.contains("a02.safetensors"), "the first that fails: {e}");
    assert!(!names(&scratch.join(".")).iter().any(|name| name.contains("none")));
}

#[test]
fn what_is_lost_is_said_and_refused_with_strict() {
    let scratch = Scratch::new();
    let folder = scratch.join("in");
    write_lora(&folder, &[("layers.0.q", 8, 8)], 2, 1);
    let mut config = json_file(&folder.join("adapter_config.json"));
    config["future_setting"] = json!("yes");
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
    let ran = convert(&folder, &scratch.join("out"), &[]).expect(0);
    assert!(ran.err.contains("warning: future_setting"), "{}", ran.err);
    let ran = convert(&folder, &scratch.join("strict"), &["--strict", "--json"]).expect(3);
    assert_eq!(ran.json()["error"]["kind"], "strict");
    assert!(!scratch.join("strict").exists());
    for to in ["--dry-run", "-q"] {
        convert(&folder, &scratch.join(to), &[to]).expect(0);
    }
    assert_eq!(names(&scratch.join(".")), ["-q", "in", "out"]);
    let e = run(["convert", &text(&folder), "-o", &text(&scratch.join("x")), "--to", "nothing"]).expect(2).err;
    assert!(e.contains("no layout named `nothing`; known: "), "{e}");
}

#[test]
fn values_that_are_not_finite_go_through_only_when_they_may() {
    let scratch = Scratch::new();
    let e = convert(&adapter("nan"), &scratch.join("a"), &[]).expect(1).err;
    assert!(e.contains("--allow-nonfinite"), "{e}");
    for more in [&["--allow-nonfinite"][..], &["--allow-nonfinite", "--normalise", "--dtype", "f16"]] {
        let out = scratch.join(&more.len().to_string());
        convert(&adapter("nan"), &out, more).expect(0);
        assert!(read(&out).values().any(|t| t.values.iter().any(|v| v.is_nan())));
    }
}

#[test]
fn the_base_tells_what_gguf_has_to_know() {
    let scratch = Scratch::new();
    let (base, lora) = (base("llama"), adapter("lora"));
    let args = |from: &Path, to: &str, out: &str| {
        let out = scratch.join(out);
        ["convert", &text(from), "--to", to, "-o", &text(&out), "--no-sync"].map(String::from).to_vec()
    };
    let with_base = |args: Vec<String>| [args, vec!["--base".to_string(), text(&base)]].concat();
    let ran = run(args(&lora, "gguf", "none.gguf")).expect(1);
    assert!(ran.err.contains("config.json"), "{}", ran.err);
    run(with_base(args(&lora, "gguf", "lora.gguf"))).expect(0);
    run(with_base(args(&scratch.join("lora.gguf"), "peft", "back"))).expect(0);
    assert_eq!(read(&lora.join("adapter_model.safetensors")), read(&scratch.join("back")));
    run(args(&scratch.join("lora.gguf"), "mlx", "mlx")).expect(0);
    run(args(&scratch.join("mlx"), "peft", "again")).expect(0);
    assert_eq!(read(&scratch.join("back")), read(&scratch.join("again")));
}

// Beside a base

#[test]
fn a_wrong_base_is_refused_and_nothing_is_written() {
    for (case, model, what) in [
        ("lora", "gpt2", "match nothing in the base"),
        ("lora", "qwen2", "for a weight"),
        ("mixtral_old", "llama", "matches nothing in the base|match nothing in the base"),
    ] {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let ran = convert(&adapter(case), &out, &["--base", &text(&base(model))]);
        let refused = ran.code == Some(1) && what.split('|').any(|what| ran.err.contains(what));
        // Where some modules have a place the rest are named, and --strict refuses that.
        let noted = ran.code == Some(0) && what.split('|').any(|what| ran.err.contains(what));
        assert!(refused || noted && case == "mixtral_old", "{case} on {model}: {}", ran.err);
        assert_eq!(out.exists(), noted, "{case} on {model}");
        let strict = scratch.join("strict");
        let ran = convert(&adapter(case), &strict, &["--base", &text(&base(model)), "--strict"]);
        assert!(matches!(ran.code, Some(1 | 3)) && !strict.exists(), "{case} on {model}: {}", ran.err);
    }
}

#[test]
fn every_adapter_is_for_the_base_it_was_made_on() {
    let mut failed = Vec::new();
    for case in cases("peft").into_iter().filter(crate::fixtures::Case::expects_merge) {
        let scratch = Scratch::new();
        let ran = convert(&case.adapter(), &scratch.join("out"), &["--base", &text(&case.base())]);
        if ran.code != Some(0) && !NOT_WRITTEN.iter().any(|reason| ran.err.contains(reason))
            || ran.err.contains("match nothing")
        {
            failed.push(format!("{}: {}", case.name, ran.err));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_config_alone_will_do_where_no_more_is_asked() {
    let scratch = Scratch::new();
    let folder = scratch.join("config");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::copy(base("llama").join("config.json"), folder.join("config.json")).expect("a config");
    let whole = scratch.join("whole.gguf");
    let args = |out: &Path, base: &Path| {
        ["convert", &text(&adapter("lora")), "-o", &text(out), "--to", "gguf", "--base", &text(base)]
            .map(str::to_string)
    };
    run(args(&whole, &base("llama"))).expect(0);
    for (name, given) in [("a", folder.clone()), ("b", folder.join("config.json"))] {
        let out = scratch.join(name);
        run(args(&out, &given)).expect(0);
        assert!(std::fs::read(&out).expect("a file") == std::fs::read(&whole).expect("a file"), "{name}");
    }
    let out = scratch.join("out");
    let ran = convert(&adapter("dora"), &out, &["--base", &text(&folder), "--normalise", "--rank", "2"]);
    assert!(ran.code == Some(1) || ran.code == Some(2), "{}", ran.err);
    assert!(!out.exists());
}
