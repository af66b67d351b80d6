//! `lint`: every code is found on an adapter made for it and not on a good one; every repair leaves the adapter what it
//! is, or makes it what it is meant to be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lora_tool::layout::{self, lint::CODES};
use lora_tool::ops;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Scratch, adapter, base, cases, root, text};
use crate::models::{Model, Values, assert_merged, deltas, json_file, read, tensor, write};
use crate::program::{Ran, merge, run};
use crate::sources::project;

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// An adapter to be spoilt.
struct Sample {
    tensors: Model,
    config: Value,
    folder: PathBuf,
}

impl Sample {
    /// LoRA on q_proj and v_proj of both layers, as PEFT wrote it.
    fn good(folder: PathBuf) -> Sample {
        let good = adapter("lora");
        let tensors = read(&good.join("adapter_model.safetensors"));
        Sample { tensors, config: json_file(&good.join("adapter_config.json")), folder }
    }

    fn save(&self) {
        fs::create_dir_all(&self.folder).unwrap();
        write(&self.folder.join("adapter_model.safetensors"), &self.tensors, None);
        fs::write(self.folder.join("adapter_config.json"), self.config.to_string()).unwrap();
    }

    fn set(&mut self, field: &str, value: Value) {
        self.config[field] = value;
    }

    fn take(&mut self, key: &str) -> Values {
        self.tensors.remove(key).unwrap()
    }

    fn put(&mut self, key: &str, shape: &[usize]) {
        self.tensors.insert(key.to_string(), tensor(Dtype::F32, shape, 5));
    }

    fn rename(&mut self, name: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(key, v)| (name(&key), v)).collect();
    }

    fn a(&mut self) -> &mut Values {
        self.tensors.get_mut(&format!("{Q}.lora_A.weight")).unwrap()
    }

    fn b(&mut self) -> &mut Values {
        self.tensors.get_mut(&format!("{Q}.lora_B.weight")).unwrap()
    }
}

/// The code, and how an adapter comes to it.
type Spoilt = (&'static str, fn(&mut Sample));

/// Adapters that are wrong by themselves.
const SPOILT: &[Spoilt] = &[
    ("L002", |s| s.set("peft_type", json!("NEW_TUNER"))),
    ("L004", |s| s.set("megatron_config", json!({ "tensor_model_parallel_size": 2 }))),
    ("L005", |s| s.set("alora_invocation_tokens", json!([3, 4]))),
    ("L009", |s| s.tensors.clear()),
    ("L010", |s| {
        s.config = json!({ "something": "else" });
        s.rename(|key| key.replace("lora_", "factor_"));
    }),
    ("L101", |s| s.rename(|key| format!("_orig_mod.{}", key.replace("self_attn", "_fsdp_wrapped_module.self_attn")))),
    ("L102", |s| s.rename(|key| key.replace(".weight", ".default.weight"))),
    ("L103", |s| s.rename(|key| format!("base_model.model.{key}"))),
    ("L104", |s| s.rename(|key| key.replace("base_model.model.", ""))),
    ("L105", |s| {
        s.put("base_model.model.lm_head.modules_to_save.default.weight", &[48, 16]);
        s.set("modules_to_save", json!(["lm_head"]));
    }),
    ("L106", |s| {
        s.put("base_model.model.lm_head.original_module.weight", &[48, 16]);
        s.put("base_model.model.lm_head.weight", &[48, 16]);
        s.set("modules_to_save", json!(["lm_head"]));
    }),
    ("L107", |s| {
        let again = s.a().clone();
        s.tensors.insert(format!("{Q}.lora_A.default.weight"), again);
    }),
    ("L108", |s| s.put(&format!("{Q}.lora_A.default.weight"), &[2, 16])),
    ("L109", |s| drop(s.take(&format!("{Q}.lora_B.weight")))),
    ("L110", |s| s.put("base_model.model.model.layers.0.self_attn.k_proj.lora_down.weight", &[2, 16])),
    ("L111", |s| s.rename(|key| key.replace("self_attn", "moe.experts.0"))),
    ("L112", |s| {
        s.put("base_model.model.model.layers.0.mlp.experts.w1.lora_A.weight", &[4, 2, 16]);
        s.put("base_model.model.model.layers.0.mlp.experts.w1.lora_B.weight", &[4, 40, 2]);
    }),
    ("L201", |s| *s.a() = tensor(Dtype::F32, &[0, 16], 1)),
    ("L202", |s| *s.a() = tensor(Dtype::F32, &[32], 1)),
    ("L203", |s| s.b().values[3] = f64::INFINITY),
    ("L204", |s| s.b().values.fill(-0.0)),
    ("L205", |s| s.a().values.fill(0.0)),
    ("L206", |s| *s.b() = tensor(Dtype::F32, &[24, 3], 1)),
    ("L207", |s| {
        *s.a() = tensor(Dtype::F32, &[16, 2], 1);
        *s.b() = tensor(Dtype::F32, &[2, 24], 1);
    }),
    ("L208", |s| s.b().dtype = Dtype::F16),
    ("L301", |s| drop(s.config.as_object_mut().unwrap().remove("lora_alpha"))),
    ("L302", |s| drop(s.config.as_object_mut().unwrap().remove("r"))),
    ("L303", |s| s.set("r", json!(4))),
    ("L304", |s| s.set("alpha_pattern", json!({ "k_proj": 4, "layers.0.self_attn.q_proj": 4 }))),
    ("L305", |s| s.set("target_modules", json!(["q_proj", "v_proj", "k_prj"]))),
    ("L306", |s| s.set("target_modules", json!(["q_proj"]))),
    ("L307", |s| s.set("target_parameters", json!(["mlp.experts.gate_up_proj"]))),
    ("L308", |s| s.set("layers_to_transform", json!([0, 1, 7]))),
    ("L309", |s| s.set("modules_to_save", json!(["lm_head"]))),
    ("L310", |s| s.put("base_model.model.model.norm.weight", &[16])),
    ("L311", |s| {
        s.put(&format!("{Q}.lora_B.bias"), &[24]);
        s.set("lora_alpha", json!(2));
    }),
    ("L312", |s| s.set("use_dora", json!(true))),
    ("L313", |s| s.set("init_lora_weights", json!("pissa_niter_4"))),
    ("L314", |s| s.set("use_rslora", json!(true))),
    ("L315", |s| s.set("base_model_name_or_path", json!("unsloth/some-model-unsloth-bnb-4bit"))),
    ("L316", |s| s.set("base_model_name_or_path", json!(null))),
    ("L317", |s| s.set("base_model_name_or_path", json!("/data/models/llama"))),
    ("L318", |s| s.set("lora_warmth", json!(3))),
    ("L319", |s| s.set("use_new_scaling", json!(true))),
    ("L320", |s| s.set("rank_pattern", json!({ "(": 2 }))),
    ("L321", |s| s.set("lora_alpha", json!(0))),
    ("L322", |s| {
        s.set("target_parameters", json!(["mlp.experts.gate_up_proj"]));
        s.set("base_model_name_or_path", json!("unsloth/some-moe"));
    }),
    ("L323", |s| {
        s.set("target_parameters", json!(["mlp.experts.gate_up_proj"]));
        s.set("peft_version", json!(null));
    }),
    ("L324", |s| {
        s.put("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", &[3, 16]);
        s.set("trainable_token_indices", json!([1, 2]));
    }),
    ("L325", |s| s.set("bias", json!("all"))),
    ("L326", |s| s.put("base_model.model.score.weight", &[2, 16])),
    ("L327", |s| s.rename(|key| key.replace("model.layers.0.self_attn.q_proj", "lm_head"))),
    ("L328", |s| s.set("inference_mode", json!(false))),
    ("L329", |s| s.set("peft_type", json!("lora"))),
    ("L330", |s| {
        s.set("r", json!("2"));
        s.set("lora_alpha", json!("4.0"));
        s.set("use_rslora", json!("False"));
    }),
    ("L332", |s| {
        *s.a() = tensor(Dtype::F32, &[8, 16], 1);
        *s.b() = tensor(Dtype::F32, &[24, 8], 1);
        s.set("rank_pattern", json!({ "layers.0.self_attn.q_proj": 8 }));
    }),
    ("L331", |s| s.set("bias", json!("some"))),
    ("L333", |s| s.set("target_modules", json!([]))),
];

/// Adapters that are wrong beside the model `llama`.
const SPOILT_BESIDE: &[Spoilt] = &[
    ("L401", |s| s.rename(|key| key.replace("layers.1.self_attn", "layers.5.self_attn"))),
    ("L402", |s| {
        s.put(&format!("{Q}.lora_B.bias"), &[24]);
        s.set("lora_bias", json!(true));
    }),
    ("L403", |s| *s.a() = tensor(Dtype::F32, &[2, 15], 1)),
    ("L405", |s| {
        s.put("base_model.model.lm_head.weight", &[50, 16]);
        s.set("modules_to_save", json!(["lm_head"]));
    }),
    ("L406", |s| {
        s.put("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", &[2, 16]);
        s.set("trainable_token_indices", json!([1, 48]));
    }),
    ("L407", |s| {
        let norm = read(&base("llama")).remove("model.norm.weight").unwrap();
        s.tensors.insert("base_model.model.model.norm.weight".to_string(), norm);
        s.set("modules_to_save", json!(["model.norm"]));
    }),
    ("L408", |s| s.set("lora_tool.base_fingerprint", json!("0".repeat(64)))),
    ("L412", |s| s.set("init_lora_weights", json!("corda"))),
    ("L414", |s| {
        s.put("base_model.model.model.norm.weight", &[16]);
        s.set("modules_to_save", json!(["norm"]));
    }),
    ("L413", |s| s.rename(|key| key.replace("base_model.model.model.layers", "base_model.model.thinker.model.layers"))),
];

fn lint(path: &Path, more: &[&str]) -> Ran {
    run(["lint", "--json", &text(path)].into_iter().chain(more.iter().copied()))
}

fn found(ran: &Ran) -> BTreeSet<String> {
    let document = ran.json();
    let all = document["adapters"].as_array().unwrap().iter().flat_map(|a| a["findings"].as_array().unwrap());
    all.map(|f| f["code"].as_str().unwrap().to_string()).collect()
}

#[track_caller]
fn assert_found(ran: &Ran, code: &str) {
    assert!(found(ran).contains(code), "{code} is not among {:?}\n{}", found(ran), ran.out);
}

fn spoilt(scratch: &Scratch, (code, spoil): &Spoilt) -> Sample {
    let mut sample = Sample::good(scratch.join(code));
    spoil(&mut sample);
    sample.save();
    sample
}

#[test]
fn every_code_is_found_where_it_belongs() {
    let scratch = Scratch::new();
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for case in SPOILT {
        let sample = spoilt(&scratch, case);
        assert_found(&lint(&sample.folder, &[]), case.0);
        shown.insert(case.0);
    }
    let llama = text(&base("llama"));
    for case in SPOILT_BESIDE {
        let sample = spoilt(&scratch, case);
        assert_found(&lint(&sample.folder, &["--base", &llama]), case.0);
        shown.insert(case.0);
    }
    let elsewhere = ["L001", "L003", "L006", "L007", "L008", "L011", "L209", "L404", "L409", "L410", "L411"];
    shown.extend(elsewhere); // the tests below
    let all: BTreeSet<_> = CODES.iter().chain(ops::lint::CODES).map(|code| code.id).collect();
    assert_eq!(shown, all, "codes that are found in a test against the tables");
}

#[test]
fn what_is_wrong_with_files_is_found() {
    let scratch = Scratch::new();
    assert_found(&lint(&scratch.join("nothing"), &[]).expect(1), "L001");
    assert_found(&lint(&root().join("adapters/mlx/alpha"), &[]).expect(0), "L003");
    assert_found(&lint(&adapter("pickled"), &[]).expect(0), "L006");

    let pointer = Sample::good(scratch.join("pointer"));
    pointer.save();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n";
    fs::write(pointer.folder.join("adapter_model.safetensors"), lfs).unwrap();
    let ran = lint(&pointer.folder, &[]).expect(1);
    assert_found(&ran, "L001");
    assert!(ran.out.contains("git lfs pull"), "{}", ran.out);

    let good = Sample::good(scratch.join("values"));
    good.save();
    fs::remove_file(good.folder.join("adapter_model.safetensors")).unwrap();
    fs::copy(root().join("torch/plain.pt"), good.folder.join("adapter_model.bin")).unwrap();
    assert_found(&lint(&good.folder, &[]), "L007");

    let two = Sample::good(scratch.join("two"));
    two.save();
    fs::write(two.folder.join("adapter_model.bin"), "old").unwrap();
    assert_found(&lint(&two.folder, &[]).expect(0), "L008");

    let bare = Sample::good(scratch.join("bare"));
    bare.save();
    fs::remove_file(bare.folder.join("adapter_config.json")).unwrap();
    assert_found(&lint(&bare.folder, &[]).expect(1), "L011");

    // A factor in whole numbers: a header and its bytes by hand.
    let mut quantised = Sample::good(scratch.join("quantised"));
    quantised.tensors.clear();
    quantised.save();
    let about = |shape: &str, from: usize, to: usize| {
        format!(r#"{{"dtype":"I8","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let header = format!(
        r#"{{"{Q}.lora_A.weight":{},"{Q}.lora_B.weight":{}}}"#,
        about("[2,16]", 0, 32),
        about("[24,2]", 32, 80)
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([1u8; 80]);
    fs::write(quantised.folder.join("adapter_model.safetensors"), bytes).unwrap();
    assert_found(&lint(&quantised.folder, &[]), "L209");
}

#[test]
fn what_is_wrong_beside_a_base_is_found() {
    let scratch = Scratch::new();
    let tied = text(&base("llama_tied"));
    assert_found(&lint(&adapter("tied_lm_head"), &["--base", &tied]).expect(0), "L404");
    assert_found(&lint(&adapter("tied_embedding"), &["--base", &tied]).expect(0), "L404");
    assert!(!found(&lint(&adapter("tied_both"), &["--base", &tied]).expect(0)).contains("L404"));

    let (lora, merged) = (adapter("lora"), scratch.join("merged"));
    merge(&base("llama"), &lora, &merged, &[]).expect(0);
    assert_found(&lint(&lora, &["--base", &text(&merged)]).expect(0), "L409");

    let copy = |name: &str, field: &str, value: Value| {
        let to = scratch.join(name);
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(base("llama")).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
        let mut config = json_file(&to.join("config.json"));
        config[field] = value;
        fs::write(to.join("config.json"), config.to_string()).unwrap();
        text(&to)
    };
    let named = copy("named", "_name_or_path", json!("org/another"));
    assert_found(&lint(&lora, &["--base", &named]).expect(0), "L410");
    let quantised = copy("quantised", "quantization_config", json!({ "quant_method": "gptq" }));
    assert_found(&lint(&lora, &["--base", &quantised]).expect(1), "L411");
}

#[test]
fn a_good_adapter_has_no_errors() {
    assert_eq!(found(&lint(&adapter("lora"), &["--strict"]).expect(0)), BTreeSet::new());
    assert_eq!(
        found(&lint(&adapter("lora"), &["--strict", "--base", &text(&base("llama"))]).expect(0)),
        BTreeSet::new()
    );
    for layout in ["peft", "mlx", "gguf"] {
        for case in cases(layout) {
            let base = text(&case.base());
            for more in [&[][..], &["--base", &base]] {
                let ran = lint(&case.adapter(), more);
                let document = ran.json();
                if case.expects_merge() {
                    assert_eq!(document["errors"], 0, "{layout}/{}: {}", case.name, ran.out);
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_merged_is_said() {
    for case in cases("peft").iter().filter(|case| !case.expects_merge()) {
        let ran = lint(&case.adapter(), &["--base", &text(&case.base())]);
        let document = ran.json();
        let said = document["errors"].as_u64().unwrap() + document["warnings"].as_u64().unwrap();
        assert!(said > 0, "{}: {}", case.name, ran.out);
    }
}

#[test]
fn a_module_that_matches_nothing_comes_with_the_nearest() {
    let ran = lint(&adapter("stray_key"), &["--base", &text(&base("llama"))]).expect(1);
    let document = ran.json();
    let all = document["adapters"][0]["findings"].as_array().unwrap();
    let stray: Vec<_> = all.iter().filter(|f| f["code"] == "L401").collect();
    assert_eq!(stray.len(), 1, "{}", ran.out);
    assert!(stray[0]["key"].as_str().unwrap().contains("layers.5"), "{}", ran.out);
    assert!(stray[0]["hint"].as_str().unwrap().contains("self_attn"), "{}", ran.out);
}

#[test]
fn other_layouts_are_looked_at_as_well() {
    let scratch = Scratch::new();
    for (name, code) in [("mlx/half_a_pair", "L109"), ("gguf/half/adapter.gguf", "L109"), ("mlx/wrong_rank", "L002")] {
        assert_found(&lint(&root().join("adapters").join(name), &[]).expect(1), code);
    }
    let from = root().join("adapters/mlx/lora");
    let to = scratch.join("mlx");
    fs::create_dir_all(&to).unwrap();
    fs::copy(from.join("adapter_config.json"), to.join("adapter_config.json")).unwrap();
    let mut tensors = read(&from.join("adapters.safetensors"));
    let (mut halves, _): (Vec<_>, Vec<_>) = tensors.iter_mut().partition(|(key, _)| key.ends_with(".lora_b"));
    halves[0].1.values.fill(0.0);
    halves[1].1.values[0] = f64::NAN;
    write(&to.join("adapters.safetensors"), &tensors, None);
    let ran = lint(&to, &[]).expect(1);
    assert_found(&ran, "L203");
    assert_found(&ran, "L204");
    let mut config = json_file(&to.join("adapter_config.json"));
    config["lora_parameters"]["scale"] = json!(0.0);
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    assert_found(&lint(&to, &[]), "L321");
}

#[test]
fn an_adapter_that_does_nothing_is_called_that() {
    let scratch = Scratch::new();
    let case: Spoilt = ("zero", |s| {
        s.tensors.iter_mut().filter(|(key, _)| key.contains("lora_B")).for_each(|(_, v)| v.values.fill(0.0));
    });
    let sample = spoilt(&scratch, &case);
    let ran = lint(&sample.folder, &[]).expect(0);
    assert!(ran.out.contains("the adapter changes nothing"), "{}", ran.out);
}

// Repairs

/// Repairs `spoilt` and gives what came of it; the code has to be gone.
fn repaired(scratch: &Scratch, case: &Spoilt) -> (PathBuf, Ran) {
    let sample = spoilt(scratch, case);
    let out = scratch.join(&format!("{}-repaired", case.0));
    let ran = lint(&sample.folder, &["--fix", "-o", &text(&out), "--no-sync"]);
    assert!(out.exists(), "{}: nothing was written\n{}{}", case.0, ran.out, ran.err);
    let left = found(&lint(&out, &[]));
    assert!(!left.contains(case.0), "{} is still there: {left:?}", case.0);
    (out, ran)
}

#[test]
fn every_repair_leaves_or_makes_what_the_adapter_is() {
    let scratch = Scratch::new();
    let fixable = |id: &str| CODES.iter().any(|code| code.id == id && code.repair.is_some());
    let mut shown: BTreeSet<&str> = BTreeSet::new();
    for case in SPOILT.iter().filter(|(id, _)| fixable(id)) {
        let (out, ran) = repaired(&scratch, case);
        shown.insert(case.0);
        // Whatever could be read before reads the same.
        let before = layout::open(&scratch.join(case.0), None);
        let after = layout::open(&out, None).unwrap_or_else(|e| panic!("{}: {e}", case.0));
        if let Ok(before) = before {
            assert_eq!(before.adapter.targets, after.adapter.targets, "{}", case.0);
        }
        assert!(ran.out.contains("\"repaired\": true"), "{}", ran.out);
        // What a plain LoRA does is known by a formula.
        let mut expected = Sample::good(scratch.join(&format!("{}-expected", case.0)));
        match case.0 {
            "L105" | "L106" | "L310" | "L311" => continue, // whole tensors and biases beside it
            "L301" => expected.set("lora_alpha", json!(8)), // PEFT's default
            _ => {}
        }
        expected.save();
        let merged = scratch.join(&format!("{}-merged", case.0));
        merge(&base("llama"), &out, &merged, &[]).expect(0);
        assert_merged(&read(&base("llama")), &read(&merged), &[(1.0, deltas(&expected.folder))]);
    }
    shown.extend(["L006", "L007"]); // the next test
    let all: BTreeSet<_> = CODES.iter().filter(|c| c.repair.is_some()).map(|c| c.id).collect();
    assert_eq!(shown, all, "repairs that are shown in a test against the table");
}

#[test]
fn a_pickle_becomes_safetensors() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    run(["lint", &text(&adapter("pickled")), "--fix", "-o", &text(&out)]).expect(0);
    let (before, after) = (layout::open(&adapter("pickled"), None).unwrap(), layout::open(&out, None).unwrap());
    assert_eq!(before.adapter.targets, after.adapter.targets);
    assert!(out.join("adapter_model.safetensors").exists());

    // Values that are no tensors stay behind.
    let values = Sample::good(scratch.join("values"));
    values.save();
    fs::remove_file(values.folder.join("adapter_model.safetensors")).unwrap();
    fs::copy(root().join("torch/plain.pt"), values.folder.join("adapter_model.bin")).unwrap();
    let tensors = layout::Source::open(&values.folder).unwrap().tensors;
    let out = scratch.join("values-out");
    lint(&values.folder, &["--fix", "-o", &text(&out)]);
    let after = layout::Source::open(&out).unwrap().tensors;
    assert!(after.values().eq(tensors.values()));
    assert!(!found(&lint(&out, &[])).contains("L007"));
}

#[test]
fn nan_is_left_and_said() {
    let scratch = Scratch::new();
    let case: Spoilt = ("both", |s| {
        s.b().values[3] = f64::NAN;
        s.set("rank_pattern", json!({ "nothing": 3 }));
    });
    let sample = spoilt(&scratch, &case);
    let out = scratch.join("out");
    let ran = run(["lint", &text(&sample.folder), "--fix", "-o", &text(&out)]).expect(1);
    assert!(ran.out.contains("repaired: `nothing` taken out of `rank_pattern`"), "{}", ran.out);
    assert!(ran.out.contains("1 repair, 1 error left"), "{}", ran.out);
    let left = read(&out.join("adapter_model.safetensors"));
    assert!(left[&format!("{Q}.lora_B.weight")].values[3].is_nan());
}

#[test]
fn several_repairs_of_one_adapter_are_made_together() {
    let scratch = Scratch::new();
    let case: Spoilt = ("all", |s| {
        s.rename(|key| format!("_orig_mod.{}", key.replace(".weight", ".default.weight")));
        s.set("target_modules", json!(["q_prj"]));
        s.set("r", json!("16")); // seen to be wrong only once it is a number
        s.set("modules_to_save", json!(["lm_head"]));
        s.set("inference_mode", json!(false));
        s.config["alpha_pattern"] = json!({ "a": 1, "b": 2 });
    });
    let sample = spoilt(&scratch, &case);
    let out = scratch.join("out");
    run(["lint", &text(&sample.folder), "--fix", "-o", &text(&out)]).expect(0);
    assert_eq!(found(&lint(&out, &["--strict"]).expect(0)), BTreeSet::new());
    let merged = scratch.join("merged");
    merge(&base("llama"), &out, &merged, &[]).expect(0);
    assert_merged(&read(&base("llama")), &read(&merged), &[(1.0, deltas(&adapter("lora")))]);
}

#[test]
fn what_is_not_repaired_stays_as_it_is() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    // Without a repair nothing is written.
    let ran = run(["lint", &text(&adapter("lora")), "--fix", "-o", &text(&out)]).expect(0);
    assert!(ran.out.contains("nothing written"), "{}", ran.out);
    run(["lint", &text(&adapter("nan")), "--fix", "-o", &text(&out)]).expect(1);
    run(["lint", &text(&root().join("adapters/mlx/lora")), "--fix", "-o", &text(&out)]).expect(0);
    assert!(!out.exists());
    // An output that stands in the way is kept, and an input is never one.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "kept").unwrap();
    run(["lint", &text(&adapter("orig_mod")), "--fix", "-o", &text(&out)]).expect(1);
    assert!(out.join("mine").exists());
    run(["lint", &text(&adapter("orig_mod")), "--fix", "--force", "-o", &text(&adapter("orig_mod"))]).expect(1);
    // Two ranks and no word of it: which of them r should be is not certain.
    let case: Spoilt = ("ranks", |s| {
        *s.a() = tensor(Dtype::F32, &[3, 16], 1);
        *s.b() = tensor(Dtype::F32, &[24, 3], 1);
    });
    let sample = spoilt(&scratch, &case);
    let ran = run(["lint", &text(&sample.folder), "--fix", "-o", &text(&scratch.join("ranks-out"))]).expect(1);
    assert!(ran.out.contains("error[L303]") && !scratch.join("ranks-out").exists(), "{}", ran.out);
    // A bias whose scale is not 1 would change its meaning.
    let case: Spoilt = ("bias", |s| s.put(&format!("{Q}.lora_B.bias"), &[24]));
    let sample = spoilt(&scratch, &case);
    let ran = run(["lint", &text(&sample.folder), "--fix", "-o", &text(&scratch.join("bias-out"))]).expect(0);
    assert!(ran.out.contains("warning[L311]") && !scratch.join("bias-out").exists(), "{}", ran.out);
}

// The command line

#[test]
fn the_exit_code_says_what_was_found() {
    lint(&adapter("lora"), &[]).expect(0);
    lint(&adapter("orig_mod"), &[]).expect(0);
    let strict = lint(&adapter("orig_mod"), &["--strict"]).expect(3);
    assert!(strict.err.contains("--strict"), "{}", strict.err);
    lint(&adapter("nan"), &["--strict"]).expect(1);
    run(["lint"]).expect(2);
    run(["lint", &text(&adapter("lora")), "--fix"]).expect(2);
    run(["lint", &text(&adapter("lora")), "-o", "out"]).expect(2);
    run(["lint", &text(&adapter("lora")), &text(&adapter("bf16")), "--fix", "-o", "out"]).expect(2);
    run(["lint", "--explain", "L999"]).expect(2);
    run(["lint", &text(&adapter("lora")), "--from", "nonsense"]).expect(2);
}

#[test]
fn every_code_is_explained_and_written_down() {
    let page = fs::read_to_string(project().join("docs/lint.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| L")).collect();
    let expected: Vec<String> = CODES
        .iter()
        .chain(ops::lint::CODES)
        .map(|c| {
            let repair = c.repair.map_or_else(String::new, |r| format!(" *`--fix`: {r}.*"));
            format!("| {} | {} | **{}.** {}{repair} |", c.id, c.level.word(), c.title, c.why)
        })
        .collect();
    assert_eq!(rows, expected, "docs/lint.md against the tables of codes");
    for code in CODES.iter().chain(ops::lint::CODES) {
        let said = run(["lint", "--explain", &code.id.to_lowercase()]).expect(0).out;
        assert!(said.contains(code.title), "{said}");
    }
    let ids: Vec<_> = CODES.iter().chain(ops::lint::CODES).map(|c| c.id).collect();
    assert!(ids.is_sorted(), "codes out of order: {ids:?}");
}
