//! Adapters made from two models, against differences whose singular values are known because they were planted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::fixtures::Scratch;
use crate::models::{Model, Values, json_file, read, rounded, tensor, write};
use crate::program::{Ran, command, merge, names};

fn extract(base: &Path, tuned: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("extract").arg(base).arg(tuned).arg("-o").arg(out).args(["--no-sync", "--json"]).args(more);
    command.output().expect("the program starts").into()
}

/// `count` orthonormal vectors of this length, by Gram–Schmidt in f64.
fn orthonormal(count: usize, length: usize, seed: u64) -> Vec<Vec<f64>> {
    let raw = tensor(Dtype::F64, &[count, length], seed).values;
    let mut out: Vec<Vec<f64>> = Vec::new();
    for row in raw.chunks(length) {
        let mut v = row.to_vec();
        for _ in 0..2 {
            for u in &out {
                let along: f64 = u.iter().zip(&v).map(|(a, b)| a * b).sum();
                v.iter_mut().zip(u).for_each(|(v, u)| *v -= along * u);
            }
        }
        let norm = v.iter().map(|v| v * v).sum::<f64>().sqrt();
        out.push(v.into_iter().map(|v| v / norm).collect());
    }
    out
}

/// A matrix with these singular values.
fn planted(rows: usize, cols: usize, s: &[f64], seed: u64) -> Vec<f64> {
    let (u, v) = (orthonormal(s.len(), rows, seed), orthonormal(s.len(), cols, seed + 1));
    let mut out = vec![0.0; rows * cols];
    for ((u, v), s) in u.iter().zip(&v).zip(s) {
        for (i, u) in u.iter().enumerate() {
            out[i * cols..(i + 1) * cols].iter_mut().zip(v).for_each(|(out, v)| *out += s * u * v);
        }
    }
    out
}

/// Relative Frobenius error of the best approximation of this rank.
fn best(s: &[f64], rank: usize) -> f64 {
    let energy = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
    (energy(&s[rank.min(s.len())..]) / energy(s)).sqrt()
}

/// A change of one tensor: its singular values, and where they come from.
struct Change<'a> {
    key: &'a str,
    s: Vec<f64>,
    seed: u64,
}

fn falling(count: usize, ratio: f64) -> Vec<f64> {
    (0..count).map(|k| ratio.powi(k as i32)).collect()
}

fn added(model: &Model, changes: &[Change], dtype: Dtype) -> Model {
    let mut out = model.clone();
    for change in changes {
        let values = out.get_mut(change.key).expect("a tensor of the base");
        let (rows, cols) = (values.shape[0], values.shape[1..].iter().product());
        let delta = planted(rows, cols, &change.s, change.seed);
        values.values.iter_mut().zip(delta).for_each(|(w, d)| *w = rounded(dtype, *w + d));
    }
    out
}

fn llama() -> Model {
    let dtype = Dtype::F32;
    let mut out = Model::new();
    let mut put = |key: &str, shape: &[usize], seed| out.insert(key.to_string(), tensor(dtype, shape, seed));
    put("model.embed_tokens.weight", &[40, 16], 1);
    put("model.layers.0.self_attn.q_proj.weight", &[24, 16], 2);
    put("model.layers.0.self_attn.v_proj.weight", &[12, 16], 3);
    put("model.layers.0.mlp.down_proj.weight", &[16, 32], 4);
    put("model.layers.0.mlp.down_proj.bias", &[16], 5);
    put("model.layers.0.input_layernorm.weight", &[16], 6);
    put("model.norm.weight", &[16], 7);
    put("lm_head.weight", &[40, 16], 8);
    out
}

fn folder(scratch: &Scratch, name: &str, model: &Model, config: &Value) -> std::path::PathBuf {
    let path = scratch.join(name);
    fs::create_dir_all(&path).unwrap();
    write(&path.join("model.safetensors"), model, Some([("format".to_string(), "pt".to_string())].into()));
    fs::write(path.join("config.json"), config.to_string()).unwrap();
    path
}

fn config() -> Value {
    json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false })
}

fn rows(document: &Value) -> BTreeMap<String, &Value> {
    let modules = document["modules"].as_array().expect("modules");
    modules.iter().map(|m| (m["module"].as_str().expect("a name").to_string(), m)).collect()
}

fn module(key: &str) -> &str {
    key.strip_suffix(".weight").expect("the weight of a module")
}

/// ‖(merged − base) − (tuned − base)‖ / ‖tuned − base‖.
fn error(base: &Values, tuned: &Values, merged: &Values) -> f64 {
    let square = |a: &Values, b: &Values| a.values.iter().zip(&b.values).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    (square(merged, tuned) / square(tuned, base)).sqrt()
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

#[test]
fn the_error_is_the_least_there_is_and_the_one_reported() {
    let scratch = Scratch::new();
    let s = falling(10, 0.6);
    let changes = [
        Change { key: Q, s: s.clone(), seed: 10 },
        Change { key: DOWN, s: s.clone(), seed: 20 },
        Change { key: "model.embed_tokens.weight", s: s.clone(), seed: 30 },
        Change { key: "lm_head.weight", s: s.clone(), seed: 40 },
    ];
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &added(&llama(), &changes, Dtype::F32), &config());
    for (rank, more) in [("1", vec![]), ("4", vec![]), ("4", vec!["--exact"]), ("9", vec!["--tolerance", "0.001"])] {
        let (out, merged) =
            (scratch.join(&format!("ad{rank}{}", more.len())), scratch.join(&format!("m{rank}{}", more.len())));
        let ran = extract(&base, &tuned, &out, &[&["--rank", rank], more.as_slice()].concat()).expect(0);
        let document = ran.json();
        let found = rows(&document);
        merge(&base, &out, &merged, &[]).expect(0);
        let (before, after, back) = (read(&base), read(&tuned), read(&merged));
        let least = best(&s, rank.parse().unwrap());
        for change in &changes {
            let row = found[module(change.key)];
            assert_eq!(row["rank"], rank.parse::<usize>().unwrap(), "{row}");
            let real = error(&before[change.key], &after[change.key], &back[change.key]);
            assert!(real <= 1.001 * least + 1e-6, "{} {rank}: {real} against {least}", change.key);
            let said = row["relative_error"].as_f64().unwrap();
            assert!((said - real).abs() < 1e-3 * least + 2e-6, "{} {rank}: said {said}, is {real}", change.key);
        }
        // What is equal is not in the adapter.
        let keys = read(&out.join("adapter_model.safetensors"));
        assert!(keys.keys().all(|k| !k.contains("v_proj") && !k.contains("norm")), "{:?}", keys.keys());
        assert_eq!(document["equal"], 4);
    }
}

#[test]
fn what_cannot_be_low_rank_is_kept_to_the_last_bit() {
    let scratch = Scratch::new();
    let mut after = added(&llama(), &[Change { key: Q, s: falling(2, 0.5), seed: 3 }], Dtype::F32);
    for key in ["model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.down_proj.bias"] {
        after.get_mut(key).unwrap().values.iter_mut().for_each(|v| *v = rounded(Dtype::F32, *v * 1.25));
    }
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &after, &config());
    let out = scratch.join("adapter");
    let ran = extract(&base, &tuned, &out, &["--rank", "2"]).expect(0);
    assert_eq!(ran.json()["whole"].as_array().unwrap().len(), 3);
    merge(&base, &out, &scratch.join("merged"), &[]).expect(0);
    let back = read(&scratch.join("merged"));
    for (key, values) in &after {
        if key == Q {
            assert!(error(&llama()[key], values, &back[key]) < 1e-5);
        } else {
            assert_eq!(values, &back[key], "{key}");
        }
    }
    // Without them only the factors are left, and what is missing is said.
    let ran = extract(&base, &tuned, &scratch.join("lean"), &["--rank", "2", "--low-rank-only"]).expect(0);
    assert_eq!(ran.json()["notes"].as_array().unwrap().iter().filter(|n| n["severity"] == "lossy").count(), 3);
    extract(&base, &tuned, &scratch.join("strict"), &["--rank", "2", "--low-rank-only", "--strict"]).expect(3);
    assert!(!scratch.join("strict").exists());
}

#[test]
fn new_rows_of_a_vocabulary_are_kept_whole() {
    let scratch = Scratch::new();
    let mut after = added(&llama(), &[Change { key: Q, s: falling(2, 0.5), seed: 3 }], Dtype::F32);
    for (key, seed) in [("model.embed_tokens.weight", 91), ("lm_head.weight", 92)] {
        let values = after.get_mut(key).unwrap();
        values.values.extend(tensor(Dtype::F32, &[3, 16], seed).values);
        values.shape[0] += 3;
    }
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &after, &config());
    extract(&base, &tuned, &scratch.join("adapter"), &["--rank", "2"]).expect(0);
    merge(&base, scratch.join("adapter"), &scratch.join("merged"), &[]).expect(0);
    let back = read(&scratch.join("merged"));
    for key in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(after[key], back[key], "{key}");
    }
}

#[test]
fn a_few_changed_rows_of_an_embedding_are_kept_as_rows() {
    let scratch = Scratch::new();
    let mut after = llama();
    let key = "model.embed_tokens.weight";
    for row in [3, 17] {
        after.get_mut(key).unwrap().values[row * 16..(row + 1) * 16].iter_mut().for_each(|v| *v += 0.5);
    }
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &after, &config());
    let ran = extract(&base, &tuned, &scratch.join("adapter"), &["--rank", "2"]).expect(0);
    assert_eq!(ran.json()["whole"][0]["rows"], 2);
    merge(&base, scratch.join("adapter"), &scratch.join("merged"), &[]).expect(0);
    assert_eq!(after[key], read(&scratch.join("merged"))[key]);
}

#[test]
fn one_matrix_for_both_embeddings_stays_one() {
    let scratch = Scratch::new();
    let tied = json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": true });
    let mut before = llama();
    before.remove("lm_head.weight");
    let s = falling(4, 0.5);
    let after = added(&before, &[Change { key: "model.embed_tokens.weight", s, seed: 5 }], Dtype::F32);
    let base = folder(&scratch, "base", &before, &tied);
    let tuned = folder(&scratch, "tuned", &after, &tied);
    let kept = |tuned: &Path, name: &str| {
        let ran = extract(&base, tuned, &scratch.join(name), &["--rank", "4"]).expect(0);
        assert!(rows(&ran.json()).is_empty(), "{}", ran.out);
        let merged = scratch.join(&format!("{name}-merged"));
        merge(&base, scratch.join(name), &merged, &[]).expect(0);
        assert_eq!(read(&merged), after, "{name}");
        ran.json()["whole"].as_array().unwrap().len()
    };
    assert_eq!(kept(&tuned, "adapter"), 1);
    let adapter = json_file(&scratch.join("adapter").join("adapter_config.json"));
    assert_eq!(adapter["ensure_weight_tying"], true);
    // A second copy of the same matrix, as some tools write it, is nothing new.
    let mut twice = after.clone();
    twice.insert("lm_head.weight".to_string(), after["model.embed_tokens.weight"].clone());
    assert_eq!(kept(&folder(&scratch, "copied", &twice, &tied), "again"), 1);
}

#[test]
fn models_that_do_not_match_are_refused() {
    let scratch = Scratch::new();
    let mut after = added(&llama(), &[Change { key: Q, s: falling(2, 0.5), seed: 3 }], Dtype::F32);
    let gone = after.remove("model.layers.0.self_attn.v_proj.weight").unwrap();
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &after, &config());
    let ran = extract(&base, &tuned, &scratch.join("out"), &[]).expect(1);
    assert!(ran.err.contains("v_proj") && ran.err.contains("only in the base"), "{}", ran.err);
    let ran = extract(&base, &tuned, &scratch.join("out"), &["--allow-unmatched"]).expect(0);
    assert!(ran.out.contains("only in the base"), "{}", ran.out);
    extract(&base, &tuned, &scratch.join("chosen"), &["--exclude", "v_proj"]).expect(0);
    after.insert("model.layers.0.self_attn.v_proj.weight".to_string(), Values { shape: vec![6, 32], ..gone });
    let other = folder(&scratch, "other", &after, &config());
    let ran = extract(&base, &other, &scratch.join("no"), &[]).expect(1);
    assert!(ran.err.contains("[6, 32] against [12, 16]"), "{}", ran.err);
    let ran = extract(&base, &base, &scratch.join("no"), &[]).expect(1);
    assert!(ran.err.contains("nothing to extract"), "{}", ran.err);
    assert!(!scratch.join("no").exists());
}

#[test]
fn the_bytes_depend_on_the_seed_alone() {
    let scratch = Scratch::new();
    let s = falling(12, 0.8);
    let changes = [Change { key: Q, s: s.clone(), seed: 10 }, Change { key: DOWN, s, seed: 20 }];
    let after = added(&llama(), &changes, Dtype::F32);
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &after, &config());
    let bytes = |name: &str, more: &[&str]| {
        extract(&base, &tuned, &scratch.join(name), more).expect(0);
        names(&scratch.join(name))
            .into_iter()
            .map(|n| fs::read(scratch.join(name).join(n)).unwrap())
            .collect::<Vec<_>>()
    };
    let once = bytes("once", &["--rank", "3", "--threads", "1"]);
    assert!(once == bytes("again", &["--rank", "3", "--threads", "3", "--memory", "1MB"]));
    // Shards, and a file by itself, hold the same model.
    write(&scratch.join("alone.safetensors"), &after, None);
    extract(&base, &scratch.join("alone.safetensors"), &scratch.join("alone"), &["--rank", "3"]).expect(0);
    let file = |name: &str| fs::read(scratch.join(name).join("adapter_model.safetensors")).unwrap();
    assert!(file("once") == file("alone"));
}

#[test]
fn stored_types_may_differ() {
    let scratch = Scratch::new();
    let s = falling(3, 0.7);
    let base = folder(&scratch, "base", &llama(), &config());
    for (name, dtype) in [("bf16", Dtype::BF16), ("f16", Dtype::F16), ("f64", Dtype::F64)] {
        let mut after = added(&llama(), &[Change { key: Q, s: s.clone(), seed: 10 }], dtype);
        for (key, values) in &mut after {
            if key == Q {
                values.dtype = dtype;
            }
        }
        let tuned = folder(&scratch, name, &after, &config());
        let out = scratch.join(&format!("ad-{name}"));
        let ran = extract(&base, &tuned, &out, &["--rank", "3"]).expect(0);
        merge(&base, &out, &scratch.join(&format!("merged-{name}")), &[]).expect(0);
        let back = read(&scratch.join(&format!("merged-{name}")));
        let (said, real) =
            (rows(&ran.json())[module(Q)]["relative_error"].as_f64().unwrap(), error(&llama()[Q], &after[Q], &back[Q]));
        assert!((said - real).abs() < 1e-4, "{name}: said {said}, is {real}");
        assert!(real < 0.05, "{name}: {real}");
    }
}

#[test]
fn ranks_follow_the_rule() {
    let scratch = Scratch::new();
    let (fast, slow) = (falling(10, 0.3), falling(10, 0.9));
    let changes = [Change { key: Q, s: fast.clone(), seed: 10 }, Change { key: DOWN, s: slow.clone(), seed: 20 }];
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned = folder(&scratch, "tuned", &added(&llama(), &changes, Dtype::F32), &config());
    let ranks = |rule: &str, more: &[&str]| {
        let out = scratch.join(&format!("{rule}{}", more.join("")));
        let ran = extract(&base, &tuned, &out, &[&["--rank", rule], more].concat()).expect(0);
        let document = ran.json();
        let found = rows(&document);
        let config = json_file(&out.join("adapter_config.json"));
        assert!(config["rank_pattern"].is_object());
        [Q, DOWN].map(|key| found.get(module(key)).map_or(0, |row| row["rank"].as_u64().unwrap() as usize))
    };
    let least = |s: &[f64], share: f64| (0..=10).find(|&r| 1.0 - best(s, r).powi(2) >= share).unwrap();
    assert_eq!(ranks("energy=0.9", &[]), [least(&fast, 0.9), least(&slow, 0.9)]);
    assert_eq!(ranks("error=0.2", &[]), [least(&fast, 0.96), least(&slow, 0.96)]);
    assert_eq!(ranks("ratio=0.5", &[]), [1, 7]); // 0.9^6 = 0.53
    assert_eq!(ranks("ratio=0.5", &["--rank-multiple", "4"]), [4, 8]);
    assert_eq!(ranks("energy=0.9", &["--max-rank", "3"]), [least(&fast, 0.9), 3]);
    assert_eq!(ranks("1", &["--min-rank", "2"]), [2, 2]);
    // The budget of two ranks each, spent where it keeps the most: of all ways to spend it, by trying them all.
    let (cost_q, cost_down) = (24 + 16, 16 + 32);
    let budget = 2 * (cost_q + cost_down);
    let kept = |s: &[f64], r: usize| s[..r].iter().map(|s| s * s).sum::<f64>();
    let all = (0..=10).flat_map(|q| (0..=10).map(move |d| [q, d]));
    let fits = all.filter(|[q, d]| q * cost_q + d * cost_down <= budget);
    let value = |[q, d]: &[usize; 2]| kept(&fast, *q) + kept(&slow, *d);
    let most = fits.max_by(|a, b| value(a).total_cmp(&value(b))).unwrap();
    assert_eq!(ranks(&format!("params={budget}"), &[]), most);
    assert_eq!(ranks(&format!("size={}", 4 * budget), &[]), most);
    // Weighed by the base's weights, the change of a large one counts for less.
    let norm = |key: &str, share: &[f64]| {
        let base = llama()[key].values.iter().map(|v| v * v).sum::<f64>();
        share.iter().map(|s| s * s / base).collect::<Vec<_>>()
    };
    let (q, down) = (norm(Q, &fast), norm(DOWN, &slow));
    let all = (0..=10).flat_map(|q| (0..=10).map(move |d| [q, d]));
    let weighed = |[a, b]: &[usize; 2]| q[..*a].iter().sum::<f64>() + down[..*b].iter().sum::<f64>();
    let fits = all.filter(|[a, b]| a * cost_q + b * cost_down <= budget);
    let most = fits.max_by(|a, b| weighed(a).total_cmp(&weighed(b))).unwrap();
    assert_eq!(ranks(&format!("params={budget}"), &["--weight-by-base"]), most);
}

#[test]
fn a_plan_writes_nothing_and_a_place_that_is_taken_is_refused() {
    let scratch = Scratch::new();
    let base = folder(&scratch, "base", &llama(), &config());
    let tuned =
        folder(&scratch, "tuned", &added(&llama(), &[Change { key: Q, s: vec![1.0], seed: 1 }], Dtype::F32), &config());
    let out = scratch.join("out");
    let ran = extract(&base, &tuned, &out, &["--dry-run"]).expect(0);
    assert_eq!(rows(&ran.json()).len(), 1);
    assert!(!out.exists());
    extract(&base, &tuned, &out, &[]).expect(0);
    extract(&base, &tuned, &out, &[]).expect(1);
    extract(&base, &tuned, &out, &["--force"]).expect(0);
    extract(&base, &tuned, &base, &["--force"]).expect(1);
    for wrong in ["0", "energy=2", "error=0", "params=", "16.5", "best"] {
        extract(&base, &tuned, &scratch.join("x"), &["--rank", wrong]).expect(2);
    }
}

#[test]
fn a_bias_that_is_tied_with_the_embedding_is_changed_once() {
    let scratch = Scratch::new();
    let config = json!({ "model_type": "bert", "architectures": ["BertForMaskedLM"], "tie_word_embeddings": true });
    let mut before = Model::new();
    let mut put = |key: &str, shape: &[usize], seed| before.insert(key.to_string(), tensor(Dtype::F32, shape, seed));
    put("bert.embeddings.word_embeddings.weight", &[20, 8], 1);
    put("bert.encoder.layer.0.attention.self.query.weight", &[8, 8], 2);
    put("bert.encoder.layer.0.attention.self.query.bias", &[8], 3);
    put("cls.predictions.bias", &[20], 4);
    put("cls.predictions.transform.dense.weight", &[8, 8], 5);
    let mut after = before.clone();
    after.values_mut().for_each(|t| t.values.iter_mut().for_each(|v| *v = rounded(Dtype::F32, *v * 1.5)));
    let (base, tuned) = (folder(&scratch, "base", &before, &config), folder(&scratch, "tuned", &after, &config));
    extract(&base, &tuned, &scratch.join("adapter"), &["--rank", "8"]).expect(0);
    merge(&base, scratch.join("adapter"), &scratch.join("merged"), &[]).expect(0);
    let back = read(&scratch.join("merged"));
    assert_eq!(back.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (key, values) in &after {
        assert!(error(&before[key], values, &back[key]) < 1e-5, "{key}");
    }
    // PEFT loads the module of a second use as a whole, so its bias is there under its own name.
    let written = read(&scratch.join("adapter").join("adapter_model.safetensors"));
    assert!(written.contains_key("base_model.model.cls.predictions.decoder.bias"), "{:?}", written.keys());
}

#[test]
fn stacks_convolutions_and_square_parameters_come_back() {
    let scratch = Scratch::new();
    let config = json!({ "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "num_experts": 3 });
    let mut before = Model::new();
    let mut put = |key: &str, shape: &[usize], seed| before.insert(key.to_string(), tensor(Dtype::F32, shape, seed));
    for e in 0..3 {
        for (name, shape) in [("gate_proj", [10, 8]), ("up_proj", [10, 8]), ("down_proj", [8, 10])] {
            put(&format!("model.layers.0.mlp.experts.{e}.{name}.weight"), &shape, 10 + e);
        }
    }
    put("model.layers.0.mlp.gate.weight", &[8, 8], 3);
    put("model.layers.0.self_attn.q_proj.weight", &[8, 8], 4);
    put("model.vision.conv1.weight", &[6, 4, 3, 3], 5);
    let mut after = before.clone();
    for (i, (_, values)) in after.iter_mut().enumerate() {
        let (rows, cols) = (values.shape[0], values.shape[1..].iter().product());
        let delta = planted(rows, cols, &[1.0, 0.5], 100 + 2 * i as u64);
        values.values.iter_mut().zip(delta).for_each(|(w, d)| *w = rounded(Dtype::F32, *w + d));
    }
    let (base, tuned) = (folder(&scratch, "base", &before, &config), folder(&scratch, "tuned", &after, &config));
    let ran = extract(&base, &tuned, &scratch.join("adapter"), &["--rank", "4", "--conv-rank", "2"]).expect(0);
    let document = ran.json();
    let found = rows(&document);
    // Experts lie one by one on disk and as a stack in memory: gate above up, so of twice the rank.
    assert_eq!(found["model.layers.0.mlp.experts.gate_up_proj"]["matrices"], 3, "{:?}", found.keys());
    merge(&base, scratch.join("adapter"), &scratch.join("merged"), &[]).expect(0);
    let back = read(&scratch.join("merged"));
    for (key, values) in &after {
        assert!(error(&before[key], values, &back[key]) < 1e-5, "{key}: {}", error(&before[key], values, &back[key]));
    }
}

#[test]
fn a_quantised_model_is_refused_by_name() {
    let scratch = Scratch::new();
    let quantised = json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"],
                            "quantization_config": { "quant_method": "fp8" } });
    let base = folder(&scratch, "base", &llama(), &config());
    let after = added(&llama(), &[Change { key: Q, s: vec![1.0], seed: 1 }], Dtype::F32);
    let tuned = folder(&scratch, "tuned", &after, &quantised);
    // The weight as bytes of 8-bit floats, of which the scale lies elsewhere.
    let bytes = fs::read(tuned.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let small = vec![0x38u8; 24 * 16];
    let views: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(key, view)| {
            let eight = safetensors::tensor::TensorView::new(Dtype::F8_E4M3, vec![24, 16], &small).unwrap();
            (key.clone(), if key == Q { eight } else { view })
        })
        .collect();
    safetensors::serialize_to_file(views, None, &tuned.join("other")).unwrap();
    fs::rename(tuned.join("other"), tuned.join("model.safetensors")).unwrap();
    let ran = extract(&base, &tuned, &scratch.join("adapter"), &[]).expect(1);
    assert!(ran.err.contains(Q) && ran.err.contains("quantised (fp8)"), "{}", ran.err);
}

#[test]
fn every_layout_that_can_be_written_is() {
    let scratch = Scratch::new();
    let config = json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false,
                         "num_attention_heads": 4, "num_key_value_heads": 2 });
    let base = folder(&scratch, "base", &llama(), &config);
    let after = added(&llama(), &[Change { key: Q, s: vec![1.0, 0.5], seed: 1 }], Dtype::F32);
    let tuned = folder(&scratch, "tuned", &after, &config);
    // The config of the base beside a GGUF file says how many heads there are.
    fs::create_dir_all(scratch.join("gguf")).unwrap();
    fs::write(scratch.join("gguf").join("config.json"), config.to_string()).unwrap();
    for (layout, name) in [("peft", "peft"), ("mlx", "mlx"), ("gguf", "gguf/adapter.gguf")] {
        let out = scratch.join(name);
        extract(&base, &tuned, &out, &["--rank", "2", "--to", layout]).expect(0);
        let merged = scratch.join(&format!("{layout}-merged"));
        merge(&base, &out, &merged, &["--allow-other-base"]).expect(0);
        assert!(error(&llama()[Q], &after[Q], &read(&merged)[Q]) < 1e-5, "{layout}");
    }
}

#[test]
fn a_file_can_take_the_place_of_a_file() {
    let scratch = Scratch::new();
    let numbers = |shift: f32| {
        let values: Vec<f32> = (0..64).map(|i| (i % 7) as f32 + shift * (i % 5) as f32).collect();
        lora_tool::tensor::Tensor::from_f32(Dtype::F32, [8, 8], &values).expect("floats")
    };
    let key = "double_blocks.0.img_attn.proj.weight".to_string();
    let model = |name: &str, shift| {
        crate::fixtures::file(&scratch.join(name), [(key.clone(), numbers(shift))].into_iter().collect())
    };
    let (base, tuned) = (model("base.safetensors", 0.0), model("tuned.safetensors", 0.5));
    let out = scratch.join("out.safetensors");
    extract(&base, &tuned, &out, &["--to", "kohya", "--rank", "2"]).expect(0);
    extract(&base, &tuned, &out, &["--to", "kohya", "--rank", "2"]).expect(1);
    extract(&base, &tuned, &out, &["--to", "kohya", "--rank", "2", "--force"]).expect(0);
    // A folder does not take the place of a file.
    extract(&base, &tuned, &out, &["--to", "peft", "--rank", "2", "--force"]).expect(1);
    assert!(out.is_file());
}
