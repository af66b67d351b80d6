//! What is written for a program, read as that program reads it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lora_tool::adapter::{Adapter, Delta, Facts};
use lora_tool::layout::{self, Given, consumer};
use lora_tool::model::BaseModel;
use lora_tool::tensor::Tensor;
use serde_json::Value;

use crate::fixtures::{Case, Scratch, cases};
use crate::parity::differences_of;
use crate::program;

/// A product in f64 by module.
type Products = BTreeMap<String, Vec<f64>>;

fn read(case: &Case) -> Option<Adapter> {
    let base = BaseModel::open(&case.base()).expect("a base");
    let given = Given { base: base.config_path().zip(base.config.clone()), alpha: None };
    Some(layout::open_with(&case.adapter(), None, given).ok()?.adapter)
}

fn product(a: &Tensor, b: &Tensor, scale: f64) -> Vec<f64> {
    let ((rank, inputs), outputs) = (a.shape.matrix(), b.shape.matrix().0);
    let (a, b) = (a.to_f32().expect("A"), b.to_f32().expect("B"));
    let term = |i: usize, j: usize, k: usize| f64::from(b[i * rank + k]) * f64::from(a[k * inputs + j]);
    let entry = |i, j| scale * (0..rank).map(|k| term(i, j, k)).sum::<f64>();
    (0..outputs).flat_map(|i| (0..inputs).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn meant(adapter: &Adapter) -> Products {
    let of = |(path, target): (&lora_tool::names::ModulePath, &lora_tool::adapter::Target)| match target.weight.first()
    {
        Some(Delta::LowRank(d)) if d.experts.is_none() => Some((path.to_string(), product(&d.a, &d.b, d.factor()))),
        _ => None,
    };
    adapter.targets.iter().filter_map(of).collect()
}

/// What a program makes of the files that multiplies every pair with the one alpha over the one rank.
fn naive(folder: &std::path::Path) -> Products {
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).expect("text"))
            .expect("a config");
    let scale = config["lora_alpha"].as_f64().expect("alpha") / config["r"].as_f64().expect("r");
    let file = lora_tool::container::SafetensorsFile::open(&folder.join("adapter_model.safetensors")).expect("tensors");
    let mut out = Products::new();
    for (key, a) in &file.tensors {
        let Some(path) = key.strip_suffix(".lora_A.weight") else { continue };
        let b = &file.tensors[&format!("{path}.lora_B.weight")];
        let path = path.strip_prefix("base_model.model.").expect("the prefix");
        assert_eq!(a.shape.dims()[0] as f64, config["r"].as_f64().expect("r"), "{path}");
        out.insert(path.to_string(), product(a, b, scale));
        let leaf = path.rsplit('.').next().expect("a leaf");
        let targets = config["target_modules"].as_array().expect("a list");
        assert!(targets.iter().any(|t| t == leaf), "{leaf} in {targets:?}");
    }
    assert_eq!(config["use_rslora"], false);
    out
}

fn close(found: &Products, wanted: &Products) -> Vec<String> {
    let mut out = Vec::new();
    for (path, wanted) in wanted {
        let Some(found) = found.get(path) else {
            out.push(format!("{path} is missing"));
            continue;
        };
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut found.iter().zip(wanted).map(|(f, w)| f - w));
        // One rounding of B to f32.
        if found.len() != wanted.len() || error > 1e-6 * norm(&mut wanted.iter().copied()) {
            out.push(format!("{path}: {error:.1e}"));
        }
    }
    for (path, found) in found.iter().filter(|(path, _)| !wanted.contains_key(*path)) {
        if found.iter().any(|v| *v != 0.0) {
            out.push(format!("{path} is not of the adapter"));
        }
    }
    out
}

fn written(adapter: &Adapter, name: &str, scratch: &Scratch) -> Result<PathBuf, lora_tool::Error> {
    let consumer = consumer::named(name)?;
    let (adapter, _) = consumer.fit(adapter)?;
    let (mut draft, _) = layout::named(consumer.layout)?.write(&adapter)?;
    consumer.finish(&mut draft)?;
    let path = scratch.join(name);
    layout::save(&draft, &path, &[], false, false)?;
    Ok(path)
}

#[test]
fn one_alpha_and_one_rank_are_enough_to_read_what_is_written() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("peft").into_iter().filter(Case::expects_merge) {
        let Some(adapter) = read(&case) else { continue };
        for name in ["sglang", "lmdeploy"] {
            let scratch = Scratch::new();
            let Ok(path) = written(&adapter, name, &scratch) else { continue };
            count += 1;
            let all_layers = adapter.targets.values().all(|t| !t.is_parameter());
            let found = if all_layers { close(&naive(&path), &meant(&adapter)) } else { Vec::new() };
            failed.extend(
                found.into_iter().chain(differences_of(&case, &path)).map(|e| format!("{} {name}: {e}", case.name)),
            );
        }
    }
    assert!(failed.is_empty(), "{} faults in {count} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 30, "only {count} were written");
}

#[test]
fn for_vllm_the_adapter_does_what_it_did() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("peft").into_iter().filter(Case::expects_merge) {
        let Some(adapter) = read(&case) else { continue };
        let scratch = Scratch::new();
        let Ok(path) = written(&adapter, "vllm", &scratch) else { continue };
        count += 1;
        failed.extend(differences_of(&case, &path).into_iter().map(|e| format!("{}: {e}", case.name)));
        // vllm/lora/lora_model.py: anything else is "unsupported LoRA weight".
        let file =
            lora_tool::container::SafetensorsFile::open(&path.join("adapter_model.safetensors")).expect("tensors");
        let known = [".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"];
        for key in file.tensors.keys().filter(|key| !known.iter().any(|k| key.ends_with(k))) {
            let saved = ["score", "classifier"].iter().any(|m| key.contains(&format!(".{m}.")));
            if !saved {
                failed.push(format!("{}: {key}", case.name));
            }
        }
    }
    assert!(failed.is_empty(), "{} faults in {count} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 40, "only {count} were written");
}

#[test]
fn what_a_program_cannot_read_is_an_error_that_says_what() {
    for (name, case, what) in [
        ("vllm", "dora", "DoRA"),
        ("sglang", "dora", "DoRA"),
        ("vllm", "lora_bias", "bias"),
        ("sglang", "loha", "LoHa"),
        ("lmdeploy", "embedding", "replacement"),
        ("vllm", "resnet", "convolution"),
        ("lmdeploy", "mixtral_old", "experts"),
        ("vllm", "olora", "olora"),
    ] {
        let case = cases("peft").into_iter().find(|c| c.name == case).expect("a case");
        let e = written(&read(&case).expect("an adapter"), name, &Scratch::new()).expect_err(name);
        assert!(e.what().contains(what) && e.what().contains(name), "{name} {}: {e}", case.name);
    }
}

#[test]
fn what_is_missing_is_zeros() {
    let case = cases("peft").into_iter().find(|c| c.name == "mixtral_old").expect("a case");
    let mut adapter = read(&case).expect("an adapter");
    let last = adapter.targets.keys().rfind(|p| p.as_str().contains("experts")).cloned().expect("an expert");
    adapter.targets.remove(&last);
    let (fitted, notes) = consumer::named("vllm").and_then(|c| c.fit(&adapter)).expect("fits");
    let Some(Delta::LowRank(d)) = fitted.targets[&last].weight.first() else { panic!("factors") };
    assert!(d.b.to_f32().expect("B").iter().all(|v| *v == 0.0));
    assert!(notes.iter().any(|note| note.key == "experts"));

    let case = cases("peft").into_iter().find(|c| c.name == "lora").expect("a case");
    let mut adapter = read(&case).expect("an adapter");
    adapter.targets.retain(|path, _| path.leaf() == "q_proj");
    let (fitted, _) = consumer::named("sglang").and_then(|c| c.fit(&adapter)).expect("fits");
    assert_eq!(fitted.targets.len(), 2 * adapter.targets.len());
    // Attention with latent keys has no projection of values.
    adapter.base.family = Some("deepseek_v3".to_string());
    let (fitted, _) = consumer::named("sglang").and_then(|c| c.fit(&adapter)).expect("fits");
    assert_eq!(fitted.targets.len(), adapter.targets.len());
    adapter.base = Facts::default();
    let e = consumer::named("sglang").and_then(|c| c.fit(&adapter)).expect_err("no sizes");
    assert!(e.advice().is_some_and(|hint| hint.contains("--base")), "{e}");
}

#[test]
fn the_program_takes_the_layout_from_the_consumer() {
    let scratch = Scratch::new();
    let adapter = crate::fixtures::adapter("f16_all");
    let out = scratch.join("out");
    let args = |more: &[&str]| {
        let paths = [adapter.as_os_str(), "-o".as_ref(), out.as_os_str()].map(|a| a.to_string_lossy().into_owned());
        std::iter::once("convert".to_string())
            .chain(paths)
            .chain(more.iter().map(ToString::to_string))
            .collect::<Vec<_>>()
    };
    let ran = program::run(args(&["--for", "sglang", "--to", "mlx"])).expect(2);
    assert!(ran.err.contains("wants the layout peft"), "{}", ran.err);
    program::run(args(&["--for", "exllama"])).expect(2);
    let document = program::run(args(&["--for", "sglang", "--json"])).expect(0).json();
    assert_eq!((document["to"].as_str(), document["for"].as_str()), (Some("peft"), Some("sglang")));
}

/// PEFT saves an embedding whole along with its factors. Programs pass over it, so it may only be the base's.
#[test]
fn an_embedding_saved_beside_its_factors_is_left_out_where_it_is_the_base_s() {
    let all = cases("peft");
    let case = all.iter().find(|case| case.name == "embedding").expect("the fixture");
    let scratch = Scratch::new();
    let write = |out: &str, base: Option<PathBuf>| {
        let mut args = vec!["convert".to_string(), case.adapter().display().to_string(), "--for".into(), "vllm".into()];
        args.extend(["-o".into(), scratch.join(out).display().to_string(), "--no-sync".into()]);
        args.extend(base.into_iter().flat_map(|base| ["--base".into(), base.display().to_string()]));
        program::run(args)
    };
    let with = write("with", Some(case.base())).expect(0);
    assert!(with.err.contains("it is the base's own") && !with.err.contains("warning"), "{}", with.err);
    let without = write("without", None).expect(0);
    assert!(without.err.contains("warning: model.embed_tokens"), "{}", without.err);
    let written = layout::open(&scratch.join("with"), None).expect("an adapter");
    assert!(
        written.source.tensors.keys().all(|key| !key.contains("base_layer")),
        "{:?}",
        written.source.tensors.keys()
    );
    // Another base of the same sizes has another embedding.
    let other = scratch.join("other");
    std::fs::create_dir(&other).expect("a folder");
    for entry in std::fs::read_dir(case.base()).expect("a base") {
        let path = entry.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("a file");
        if path.extension().is_some_and(|end| end == "safetensors") {
            let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("a length")) as usize;
            bytes[start..].iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
        }
        std::fs::write(other.join(path.file_name().expect("a name")), bytes).expect("another base");
    }
    let refused = write("refused", Some(other)).expect(1);
    assert!(refused.err.contains("which is not the base's"), "{}", refused.err);
    assert!(!scratch.join("refused").exists());
}

/// vLLM wants both parameters of a stack, with A at the inputs as PEFT has it since 0.19.1; SGLang all matrices of all
/// experts.
#[test]
fn parts_of_experts_are_made_whole() {
    let mut done = 0;
    for case in cases("peft") {
        let wanted = ["experts_018", "gpt_oss_up", "qwen3_moe_up", "qwen3_moe_down"].contains(&case.name.as_str());
        for program in ["vllm", "sglang"].into_iter().filter(|_| wanted) {
            let scratch = Scratch::new();
            let out = scratch.join("out");
            let paths = [case.adapter(), case.base(), out.clone()].map(|path| path.display().to_string());
            let [adapter, base, written] = paths.each_ref();
            program::run(["convert", adapter, "--base", base, "-o", written, "--for", program]).expect(0);
            let keys = layout::open(&out, None).expect("an adapter").source.tensors;
            let has = |key: &str| keys.contains_key(&format!("base_model.model.model.layers.0.mlp.experts.{key}"));
            if program == "vllm" {
                let all = ["base_layer.lora_A.weight", "base_layer.lora_B.weight", "lora_A.weight", "lora_B.weight"];
                assert!(all.into_iter().all(has), "{}: {:?}", case.name, keys.keys());
            } else {
                let all = ["gate_proj", "up_proj", "down_proj"].map(|part| format!("2.{part}.lora_B.weight"));
                assert!(all.iter().all(|key| has(key)), "{}: {:?}", case.name, keys.keys());
            }
            // What lies in turns in the base cannot be merged one by one.
            if program == "vllm" || !case.name.starts_with("gpt_oss") {
                let found = differences_of(&case, &out);
                assert!(found.is_empty(), "{} for {program}: {found:?}", case.name);
                done += 1;
            }
        }
    }
    assert_eq!(done, 7);
    let case = cases("peft").into_iter().find(|c| c.name == "experts_018").expect("a case");
    let adapter = layout::open(&case.adapter(), None).expect("an adapter").adapter;
    let e = consumer::named("vllm").and_then(|c| c.fit(&adapter)).expect_err("which way they face is not known");
    assert!(e.advice().is_some_and(|hint| hint.contains("--base")), "{e}");
}
