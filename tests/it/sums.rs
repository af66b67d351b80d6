//! What a merge gives, by formula: W + Σ strength · (alpha / r) · B · A in f64, rounded once to the type of W.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::fixtures::{Scratch, adapter, base, root};
use crate::models::{Model, assert_merged, deltas, json_file, read, rounded, tensor, write, write_lora};
use crate::program::{command, merge};

fn at(path: &Path, strength: &str) -> String {
    format!("{}@{strength}", path.display())
}

#[test]
fn a_strength_multiplies_the_change() {
    let scratch = Scratch::new();
    let (base, lora) = (base("llama"), adapter("lora"));
    for (argument, more, strength) in [
        (at(&lora, "0.5"), vec![], 0.5),
        (at(&lora, "-1.25"), vec![], -1.25),
        (lora.display().to_string(), vec!["--strength", "0.5"], 0.5),
        (at(&lora, "2"), vec!["--strength", "0.5"], 2.0),
    ] {
        let out = scratch.join(&format!("out{strength}{}", more.len()));
        merge(&base, &argument, &out, &more).expect(0);
        assert_merged(&read(&base), &read(&out), &[(strength, deltas(&lora))]);
    }
}

#[test]
fn a_name_with_an_at_sign_is_a_name_where_it_exists() {
    let scratch = Scratch::new();
    let named = scratch.join("me@2");
    write_lora(&named, &[("model.layers.0.self_attn.q_proj", 24, 16)], 2, 1);
    merge(&base("llama"), &named, &scratch.join("out"), &[]).expect(0);
    assert_merged(&read(&base("llama")), &read(&scratch.join("out")), &[(1.0, deltas(&named))]);
}

#[test]
fn changes_of_several_adapters_are_summed_and_rounded_once() {
    let scratch = Scratch::new();
    let bf16 = base("llama_bf16");
    let (first, second) = (adapter("bf16"), adapter("bf16_all"));
    let out = scratch.join("out");
    merge(&bf16, at(&first, "0.75"), &out, &[&at(&second, "-0.5")]).expect(0);
    assert_merged(&read(&bf16), &read(&out), &[(0.75, deltas(&first)), (-0.5, deltas(&second))]);
}

#[test]
fn opposite_strengths_leave_the_base_as_it_was() {
    // Rounding after each adapter would not come back to every value.
    let scratch = Scratch::new();
    let (bf16, lora) = (base("llama_bf16"), adapter("bf16"));
    merge(&bf16, at(&lora, "1"), &scratch.join("out"), &[&at(&lora, "-1")]).expect(0);
    assert_eq!(read(&bf16), read(&scratch.join("out")));
}

#[test]
fn dtype_casts_every_tensor_with_one_rounding_and_the_config_says_so() {
    let scratch = Scratch::new();
    let (base, lora) = (base("llama"), adapter("lora"));
    for (word, dtype, torch) in
        [("bf16", Dtype::BF16, "bfloat16"), ("f16", Dtype::F16, "float16"), ("f64", Dtype::F64, "float64")]
    {
        let out = scratch.join(word);
        merge(&base, &lora, &out, &["--dtype", word]).expect(0);
        let cast = |model: Model| -> Model {
            model
                .into_iter()
                .map(|(key, mut v)| {
                    v.dtype = dtype;
                    (key, v)
                })
                .collect()
        };
        let changed = deltas(&lora);
        let mut unchanged = read(&base);
        for (key, v) in &mut unchanged {
            if !changed.contains_key(key) {
                v.values.iter_mut().for_each(|x| *x = rounded(dtype, *x));
            }
        }
        assert_merged(&cast(unchanged), &read(&out), &[(1.0, changed)]);
        assert_eq!(json_file(&out.join("config.json"))["dtype"], torch);
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads_or_the_memory() {
    // Two tensors of several pieces each, one wide and one of few columns, in a type that rounds.
    let scratch = Scratch::new();
    let base = scratch.join("base.safetensors");
    let mut model = Model::new();
    model.insert("m.a.weight".into(), tensor(Dtype::BF16, &[1500, 1024], 1));
    model.insert("m.b.weight".into(), tensor(Dtype::BF16, &[70_000, 24], 2));
    model.insert("m.norm.weight".into(), tensor(Dtype::F32, &[24], 3));
    write(&base, &model, None);
    let lora = scratch.join("lora");
    write_lora(&lora, &[("m.a", 1500, 1024), ("m.b", 70_000, 24)], 5, 9);
    let outs: Vec<_> = [["1", "1MB"], ["8", "256MB"], ["3", "4MB"]]
        .iter()
        .map(|[threads, memory]| {
            let out = scratch.join(&format!("out{threads}.safetensors"));
            merge(&base, &lora, &out, &["--threads", threads, "--memory", memory]).expect(0);
            std::fs::read(&out).expect("an output")
        })
        .collect();
    assert!(outs[0] == outs[1] && outs[0] == outs[2], "the outputs differ");
    assert_merged(&read(&base), &read(&scratch.join("out8.safetensors")), &[(1.0, deltas(&lora))]);
}

#[test]
fn the_report_says_what_share_of_the_change_survived() {
    let scratch = Scratch::new();
    let (bf16, lora) = (base("llama_bf16"), adapter("bf16"));
    let report = merge(&bf16, at(&lora, "0.01"), &scratch.join("out"), &["--json"]).expect(0).json();
    let (old, new, delta) = (read(&bf16), read(&scratch.join("out")), deltas(&lora));
    let (mut along, mut wanted, mut still, mut all) = (0.0, 0.0, 0.0, 0.0);
    for (key, change) in &delta {
        for (i, d) in change.iter().map(|d| 0.01 * d).enumerate() {
            let got = new[key].values[i] - old[key].values[i];
            along += got * d;
            wanted += d * d;
            still += f64::from(u8::from(got == 0.0));
            all += 1.0;
        }
    }
    let said = |field: &str| report[field].as_f64().expect("a number");
    assert!((said("survived") - along / wanted).abs() < 1e-3, "{} against {}", said("survived"), along / wanted);
    assert!((said("unmoved") - still / all).abs() < 1e-9);
}

// Tied embeddings: what the merged model computes at each end is what base and adapter compute there.

/// Input and output embedding of a model on disk: one matrix where the config ties them.
fn ends(folder: &Path) -> (Vec<f64>, Vec<f64>) {
    let model = read(folder);
    let input = model["model.embed_tokens.weight"].values.clone();
    let tied = json_file(&folder.join("config.json"))["tie_word_embeddings"] != false;
    let output = match model.get("lm_head.weight") {
        Some(own) if !tied => own.values.clone(),
        Some(_) => panic!("the config ties the embeddings and the file has both"),
        None => input.clone(),
    };
    (input, output)
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 1e-6 * (1.0 + e.abs()), "{what}: {f} against {e}");
    }
}

fn plus(base: &[f64], change: Option<&Vec<f64>>) -> Vec<f64> {
    change.map_or_else(|| base.to_vec(), |d| base.iter().zip(d).map(|(b, d)| b + d).collect())
}

#[test]
fn each_end_of_a_tied_model_gets_its_own_change() {
    let base = base("llama_tied");
    let (old_in, old_out) = ends(&base);
    assert_eq!(old_in, old_out, "the fixture is tied");
    for name in ["tied_embedding", "tied_lm_head", "tied_both"] {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        merge(&base, adapter(name), &out, &[]).expect(0);
        let change: BTreeMap<_, _> = deltas(&adapter(name));
        let (new_in, new_out) = ends(&out);
        assert_close(&format!("{name}, input"), &new_in, &plus(&old_in, change.get("model.embed_tokens.weight")));
        assert_close(&format!("{name}, output"), &new_out, &plus(&old_out, change.get("lm_head.weight")));
        let merged = read(&out);
        for (key, v) in read(&adapter(name).join("faithful.safetensors")) {
            assert_close(&format!("{name}, {key} of the faithful merge"), &merged[&key].values, &v.values);
        }
    }
}

#[test]
fn a_tied_model_stays_tied_where_both_ends_change_alike() {
    for (name, stays) in
        [("tied_both", true), ("tied_tokens", true), ("tied_embedding", false), ("tied_lm_head", false)]
    {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        merge(&base("llama_tied"), adapter(name), &out, &[]).expect(0);
        assert_eq!(json_file(&out.join("config.json"))["tie_word_embeddings"], stays, "{name}");
        assert_eq!(read(&out).contains_key("lm_head.weight"), !stays, "{name}");
    }
}

#[test]
fn strengths_that_differ_for_two_adapters_on_a_tied_model_add_up_at_each_end() {
    let scratch = Scratch::new();
    let (base, out) = (base("llama_tied"), scratch.join("out"));
    let (on_input, on_output) = (adapter("tied_embedding"), adapter("tied_lm_head"));
    merge(&base, at(&on_input, "0.5"), &out, &[&at(&on_output, "2")]).expect(0);
    let (old_in, old_out) = ends(&base);
    let times = |s: f64, d: &Vec<f64>| d.iter().map(|v| s * v).collect::<Vec<_>>();
    let (new_in, new_out) = ends(&out);
    assert_close("input", &new_in, &plus(&old_in, Some(&times(0.5, &deltas(&on_input)["model.embed_tokens.weight"]))));
    assert_close("output", &new_out, &plus(&old_out, Some(&times(2.0, &deltas(&on_output)["lm_head.weight"]))));
}

#[test]
fn an_adapter_on_both_ends_changes_both_when_another_one_parts_them() {
    let base = base("llama_tied");
    let on_output = adapter("tied_lm_head");
    let (old_in, old_out) = ends(&base);
    for name in ["tied_both", "tied_tokens", "tied_trainable_tokens"] {
        for order in [[name, "tied_lm_head"], ["tied_lm_head", name]] {
            let scratch = Scratch::new();
            let (alone, out) = (scratch.join("alone"), scratch.join("out"));
            merge(&base, adapter(name), &alone, &[]).expect(0);
            let both = read(&alone)["model.embed_tokens.weight"].values.clone();
            let change: Vec<_> = both.iter().zip(&old_in).map(|(new, old)| new - old).collect();
            let second = adapter(order[1]);
            merge(&base, adapter(order[0]), &out, &[&second.display().to_string()]).expect(0);
            let (new_in, new_out) = ends(&out);
            assert_close(&format!("{order:?}, input"), &new_in, &plus(&old_in, Some(&change)));
            let own = plus(&old_out, deltas(&on_output).get("lm_head.weight"));
            assert_close(&format!("{order:?}, output"), &new_out, &plus(&own, Some(&change)));
        }
    }
}

#[test]
fn a_vocabulary_that_grew_is_written_into_the_config() {
    for name in ["grown", "grown_saved"] {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        merge(&base("llama"), adapter(name), &out, &[]).expect(0);
        assert_eq!(json_file(&base("llama").join("config.json"))["vocab_size"], 48);
        assert_eq!(json_file(&out.join("config.json"))["vocab_size"], 52, "{name}");
        let merged = read(&out);
        assert_eq!(merged["model.embed_tokens.weight"].shape, [52, 16]);
        assert_eq!(merged["lm_head.weight"].shape, [52, 16]);
        let help = command().arg("inspect").arg(&out).arg("--json").output().expect("the program starts");
        assert!(help.status.success());
    }
}

#[test]
fn a_stack_replaced_whole_is_summed_with_changes_of_its_experts() {
    let scratch = Scratch::new();
    let (base, full, out) = (root().join("models/gpt_oss"), scratch.join("full"), scratch.join("out"));
    let experts = read(&base).into_iter().filter(|(key, _)| key.contains(".layers.0.mlp.experts."));
    let saved: Model = experts.map(|(key, values)| (format!("base_model.model.{key}"), values)).collect();
    std::fs::create_dir(&full).unwrap();
    write(&full.join("adapter_model.safetensors"), &saved, None);
    let config =
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [], "modules_to_save": ["experts"]}"#;
    std::fs::write(full.join("adapter_config.json"), config).unwrap();
    let lora = root().join("adapters/peft/gpt_oss_both");
    merge(&base, &full, &out, &[lora.to_str().unwrap()]).expect(0);
    // The stack is replaced by itself, so what PEFT makes of the other adapter alone is what comes out.
    let (found, expected) = (read(&out), read(&lora.join("expected.safetensors")));
    for (key, wanted) in expected.iter().filter(|(key, _)| key.contains(".mlp.experts.")) {
        for (found, wanted) in found[key].values.iter().zip(&wanted.values) {
            assert!((found - wanted).abs() < 1e-5, "{key}: {found} against {wanted}");
        }
    }
}
