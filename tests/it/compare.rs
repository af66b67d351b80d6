//! `compare` against the definitions, in f64 over every element: of factors, of what PEFT merged, of whole models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Case, Scratch, adapter, cases, root};
use crate::models::{Model, Values, deltas, json_file, read, tensor, write, write_lora};
use crate::program::{Ran, merge, run};

fn compare(first: &Path, second: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["compare".to_string(), first.display().to_string(), second.display().to_string()];
    args.extend(more.iter().map(ToString::to_string));
    run(args)
}

fn answer(first: &Path, second: &Path, more: &[&str]) -> Value {
    let more: Vec<_> = more.iter().copied().chain(["--json"]).collect();
    compare(first, second, &more).expect(0).json()
}

fn at(path: &Path, strength: &str) -> PathBuf {
    PathBuf::from(format!("{}@{strength}", path.display()))
}

fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[track_caller]
fn close(found: &Value, wanted: f64, tolerance: f64) {
    let found = number(found);
    assert!((found - wanted).abs() <= tolerance * wanted.abs().max(1e-300), "{found} against {wanted}");
}

type Changes = BTreeMap<String, Vec<f64>>;

/// Norms, difference and inner product by the definitions.
struct Expected {
    first: f64,
    second: f64,
    difference: f64,
    inner: f64,
}

fn expected(first: Option<&Vec<f64>>, second: Option<&Vec<f64>>) -> Expected {
    let len = first.or(second).map_or(0, Vec::len);
    let value = |side: Option<&Vec<f64>>, i: usize| side.map_or(0.0, |s| s[i]);
    let sum = |f: &dyn Fn(f64, f64) -> f64| (0..len).map(|i| f(value(first, i), value(second, i))).sum::<f64>();
    Expected {
        first: sum(&|x, _| x * x).sqrt(),
        second: sum(&|_, y| y * y).sqrt(),
        difference: sum(&|x, y| (x - y) * (x - y)).sqrt(),
        inner: sum(&|x, y| x * y),
    }
}

fn scaled(changes: Changes, factor: f64) -> Changes {
    changes.into_iter().map(|(key, v)| (key, v.into_iter().map(|v| factor * v).collect())).collect()
}

/// Every module of the answer, and the sums, against changes by key in the base.
#[track_caller]
fn assert_compared(found: &Value, first: &Changes, second: &Changes, suffix: &str, tolerance: f64) {
    let modules = found["modules"].as_array().expect("modules");
    let keys: std::collections::BTreeSet<_> = first.keys().chain(second.keys()).collect();
    assert_eq!(modules.len(), keys.len(), "{found}");
    let mut squares = [0.0; 3];
    for module in modules {
        let key = format!("{}{suffix}", module["module"].as_str().expect("a name"));
        let wanted = expected(first.get(&key), second.get(&key));
        close(&module["norms"][0], wanted.first, tolerance);
        close(&module["norms"][1], wanted.second, tolerance);
        close(&module["difference"], wanted.difference, tolerance);
        if wanted.first > 0.0 {
            close(&module["relative_difference"], wanted.difference / wanted.first, tolerance);
        } else {
            assert_eq!(module["relative_difference"], Value::Null, "{key}: infinite");
        }
        if wanted.first > 0.0 && wanted.second > 0.0 {
            let cosine = wanted.inner / wanted.first / wanted.second;
            assert!((number(&module["cosine"]) - cosine).abs() < tolerance, "{key}: {} {cosine}", module["cosine"]);
        }
        for (sum, v) in squares.iter_mut().zip([wanted.first, wanted.second, wanted.difference]) {
            *sum += v * v;
        }
    }
    close(&found["norms"][0], squares[0].sqrt(), tolerance);
    close(&found["norms"][1], squares[1].sqrt(), tolerance);
    close(&found["relative_difference"], (squares[2] / squares[0]).sqrt(), tolerance);
}

// Adapters

#[test]
fn low_rank_changes_are_compared_from_their_factors() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    write_lora(&a, &[("model.q", 24, 16), ("model.k", 8, 40), ("model.only_a", 5, 6)], 3, 1);
    write_lora(&b, &[("model.q", 24, 16), ("model.k", 8, 40), ("model.only_b", 7, 6)], 5, 100);
    let found = answer(&at(&a, "0.5"), &at(&b, "-2"), &[]);
    assert_compared(&found, &scaled(deltas(&a), 0.5), &scaled(deltas(&b), -2.0), ".weight", 1e-9);
    let counts = ["in_both", "only_in_first", "only_in_second"].map(|f| found[f].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 1]);
    assert_eq!(found["modules"][0]["module"], "model.only_b", "the furthest apart comes first");
}

#[test]
fn an_adapter_is_no_distance_from_itself() {
    for name in ["lora", "mixtral_both", "loha", "lokr", "bias_all", "embedding", "gpt2"] {
        let found = answer(&adapter(name), &adapter(name), &["--tolerance", "0"]);
        assert_eq!(found["relative_difference"], 0.0, "{name}");
        assert_eq!(found["within_tolerance"], true);
        for module in found["modules"].as_array().unwrap() {
            assert_eq!(module["difference"], 0.0, "{name}: {module}");
        }
    }
}

#[test]
fn another_strength_is_a_difference_of_that_size() {
    let lora = adapter("lora");
    let found = answer(&lora, &at(&lora, "0.75"), &[]);
    close(&found["relative_difference"], 0.25, 1e-12);
    close(&found["cosine"], 1.0, 1e-12);
    for module in found["modules"].as_array().unwrap() {
        for side in ["left_overlap", "right_overlap"] {
            assert!((number(&module[side]) - 1.0).abs() < 1e-5, "{module}");
        }
    }
    compare(&lora, &at(&lora, "0.75"), &["--tolerance", "0.2500001"]).expect(0);
    compare(&lora, &at(&lora, "0.75"), &["--tolerance", "0.2499999"]).expect(1);
}

/// A copy of an adapter with fields of its config changed, and its tensors stored as `dtype`.
fn variant(from: &Path, to: &Path, fields: &Value, dtype: Dtype) {
    std::fs::create_dir_all(to).unwrap();
    let mut config = json_file(&from.join("adapter_config.json"));
    for (field, value) in fields.as_object().unwrap() {
        config[field] = value.clone();
    }
    std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = read(&from.join("adapter_model.safetensors"));
    tensors.values_mut().for_each(|v| v.dtype = dtype);
    write(&to.join("adapter_model.safetensors"), &tensors, None);
}

#[test]
fn what_counts_is_the_effective_scale() {
    let scratch = Scratch::new();
    let plain = scratch.join("plain");
    // 4 / √3 = alpha / 3
    let alpha = 4.0 * 3f64.sqrt();
    variant(&adapter("rslora"), &plain, &json!({ "use_rslora": false, "lora_alpha": alpha }), Dtype::F32);
    let found = answer(&adapter("rslora"), &plain, &["--tolerance", "1e-12"]);
    assert!(number(&found["relative_difference"]) < 1e-15, "{found}");
}

#[test]
fn rounding_to_another_type_is_seen_at_its_size() {
    let scratch = Scratch::new();
    let (first, second) = (adapter("lora"), scratch.join("bf16"));
    variant(&first, &second, &json!({}), Dtype::BF16);
    let found = answer(&first, &second, &[]);
    assert_compared(&found, &deltas(&first), &deltas(&second), ".weight", 1e-9);
    let relative = number(&found["relative_difference"]);
    assert!(relative > 1e-4 && relative < 1e-2, "{relative}");
    compare(&first, &second, &["--tolerance", "0.01"]).expect(0);
    let ran = compare(&first, &second, &["--tolerance", "1e-4"]).expect(1);
    assert!(ran.err.starts_with("lora-tool: ") && ran.err.lines().count() == 1, "{}", ran.err);
    assert!(ran.err.contains("at a tolerance of 0.0001") && ran.out.contains("difference"), "{}", ran.err);
}

#[test]
fn an_overlap_is_one_where_a_space_is_shared() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    let modules = [("m.q", 40, 60)];
    write_lora(&a, &modules, 4, 1);
    write_lora(&b, &modules, 4, 50);
    // The same B: what both reach is the same; what they see is not.
    let (file, key) = ("adapter_model.safetensors", "base_model.model.m.q.lora_B.weight");
    let (first, mut second) = (read(&a.join(file)), read(&b.join(file)));
    second.insert(key.to_string(), first[key].clone());
    write(&b.join(file), &second, None);
    let found = &answer(&a, &b, &[])["modules"][0];
    assert!((number(&found["left_overlap"]) - 1.0).abs() < 1e-5, "{found}");
    // Four random directions in sixty: 4/60 on average.
    let right = number(&found["right_overlap"]);
    assert!(right > 0.0 && right < 0.3, "{right}");
}

#[test]
fn kinds_that_depend_on_the_weight_need_the_base() {
    let (dora, lora) = (adapter("dora"), adapter("lora"));
    let ran = compare(&dora, &lora, &["--json"]).expect(1);
    assert!(ran.err.contains("--base") && ran.err.contains("DoRA"), "{}", ran.err);
    assert_eq!(ran.json()["error"]["kind"], "unsupported");
    // The same in every tensor is the same change, whatever the base.
    let same = answer(&dora, &dora, &["--tolerance", "0"]);
    assert_eq!((&same["relative_difference"], &same["modules"][0]["norms"]), (&json!(0.0), &Value::Null));
    compare(&dora, &at(&dora, "0.5"), &[]).expect(1);
    compare(&adapter("pissa"), &adapter("olora"), &[]).expect(1);
    compare(&adapter("prefix_tuning"), &adapter("prefix_tuning"), &["--tolerance", "0"]).expect(0);
    let base = model("llama").display().to_string();
    let half = answer(&dora, &at(&dora, "0.5"), &["--base", &base]);
    close(&half["relative_difference"], 0.5, 1e-12);
}

/// A whole stack of experts in the place of the base's, against low-rank changes of the same stack.
#[test]
fn a_stack_that_is_replaced_is_compared_matrix_by_matrix() {
    let scratch = Scratch::new();
    let (whole, lora) = (scratch.join("whole"), adapter("gpt_oss_both"));
    std::fs::create_dir_all(&whole).unwrap();
    let base = read(&model("gpt_oss"));
    let key = "model.layers.0.mlp.experts.gate_up_proj";
    let mut stack = base[key].clone();
    stack.values.iter_mut().for_each(|v| *v *= 1.5);
    let tensors = Model::from([(format!("base_model.model.{key}"), stack.clone())]);
    write(&whole.join("adapter_model.safetensors"), &tensors, None);
    let config = json!({ "peft_type": "LORA", "r": 2, "target_modules": ["q"], "modules_to_save": ["experts"] });
    std::fs::write(whole.join("adapter_config.json"), config.to_string()).unwrap();

    let ran = compare(&whole, &lora, &[]).expect(1);
    assert!(ran.err.contains("--base"), "{}", ran.err);
    let found = answer(&whole, &lora, &["--base", &model("gpt_oss").display().to_string()]);
    let module = found["modules"].as_array().unwrap().iter().find(|m| m["module"] == key).expect("the stack");
    let merged = read(&lora.join("expected.safetensors"));
    let change = |new: &Values| new.values.iter().zip(&base[key].values).map(|(new, old)| new - old).collect();
    let (first, second): (Vec<f64>, Vec<f64>) = (change(&stack), change(&merged[key]));
    let wanted = expected(Some(&first), Some(&second));
    close(&module["norms"][0], wanted.first, 1e-5);
    close(&module["norms"][1], wanted.second, 1e-4);
    close(&module["difference"], wanted.difference, 1e-4);
    // Both in one merge, where the stack is seen as its matrices as well.
    let out = scratch.join("out");
    let mut args = vec!["merge".into(), model("gpt_oss").into_os_string(), whole.into_os_string()];
    args.extend([lora.into_os_string(), "-o".into(), out.clone().into_os_string(), "--no-sync".into()]);
    run(args).expect(0);
    for (i, found) in read(&out)[key].values.iter().enumerate() {
        let wanted = base[key].values[i] + first[i] + second[i];
        assert!((found - wanted).abs() < 1e-5, "{key}, {i}: {found} against {wanted}");
    }
}

/// What PEFT's merge adds to each tensor of the base, in f64; none where that is not all there is to it.
fn by_peft(case: &Case) -> Option<Changes> {
    let strange = !case.expects_merge() || case.text("differs").is_some();
    let base = read(&case.base());
    if strange || base.values().any(|t| t.dtype != Dtype::F32) {
        return None;
    }
    let mut out = Changes::new();
    for (key, new) in read(&case.path.join("expected.safetensors")) {
        let old = base.get(&key).filter(|old| old.shape == new.shape)?;
        let change: Vec<f64> = new.values.iter().zip(&old.values).map(|(new, old)| new - old).collect();
        // Tensors that were written and not changed are in no answer.
        if change.iter().any(|v| *v != 0.0) {
            out.insert(key, change);
        }
    }
    Some(out)
}

/// Whether the numbers of a module are those of the changes. What PEFT stored has been rounded to f32 as a weight, so
/// the error is one of the weight's last place.
fn agrees(module: &Value, key: &str, first: &Changes, second: &Changes) -> Result<(), String> {
    let wanted = expected(first.get(key), second.get(key));
    let size = wanted.first.max(wanted.second);
    for (what, found, wanted) in [
        ("norm 1", &module["norms"][0], wanted.first),
        ("norm 2", &module["norms"][1], wanted.second),
        ("difference", &module["difference"], wanted.difference),
    ] {
        let found = number(found);
        if (found - wanted).abs() > 1e-4 * size {
            return Err(format!("{key}: {what} {found} against {wanted}"));
        }
    }
    Ok(())
}

#[test]
fn changes_of_every_kind_are_those_of_peft() {
    let mut by_base: BTreeMap<PathBuf, Vec<(Case, Changes)>> = BTreeMap::new();
    for case in cases("peft") {
        if case.adapter().join("adapter_config.json").exists()
            && case.expects_merge()
            && read_is_possible(&case)
            && let Some(changes) = by_peft(&case)
        {
            by_base.entry(case.base()).or_default().push((case, changes));
        }
    }
    let (mut pairs, mut without) = (0, 0);
    let mut failed = Vec::new();
    for (base, all) in &by_base {
        let base = base.display().to_string();
        for pair in all.windows(2) {
            let [(one, first), (two, second)] = pair else { continue };
            let name = format!("{} and {}", one.name, two.name);
            let ran = compare(&one.adapter(), &two.adapter(), &["--json", "--base", &base]);
            if ran.code != Some(0) {
                failed.push(format!("{name}: {}", ran.err));
                continue;
            }
            pairs += 1;
            let found = ran.json();
            let modules = found["modules"].as_array().unwrap();
            let names: Vec<_> = modules.iter().map(|m| m["module"].as_str().unwrap().to_string()).collect();
            failed.extend(
                first.keys().chain(second.keys()).filter(|k| !names.contains(k)).map(|k| format!("{name}: no {k}")),
            );
            for (module, key) in modules.iter().zip(&names) {
                failed.extend(agrees(module, key, first, second).err().map(|e| format!("{name}: {e}")));
            }
            // From the adapters alone, where that is enough and the names are those on disk.
            let ran = compare(&one.adapter(), &two.adapter(), &["--json"]);
            if ran.code == Some(0) {
                for module in ran.json()["modules"].as_array().unwrap() {
                    let key = format!("{}.weight", module["module"].as_str().unwrap());
                    let here = [first.contains_key(&key), second.contains_key(&key)];
                    let meant = [0, 1].map(|i| !module["kinds"][i].is_null());
                    if here == meant && !module["norms"].is_null() {
                        without += 1;
                        failed.extend(agrees(module, &key, first, second).err().map(|e| format!("{name} alone: {e}")));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} faults:\n{}", failed.len(), failed.join("\n"));
    assert!(pairs > 60 && without > 20, "{pairs} pairs with a base, {without} modules without one");
}

/// Whether all tensors are of types that the tests read.
fn read_is_possible(case: &Case) -> bool {
    let plain = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.tensors().iter().all(|(_, t)| matches!(t.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16))
    };
    let base = case.base();
    let files = if base.is_dir() {
        let entries = std::fs::read_dir(&base).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect()
    } else {
        vec![base]
    };
    files.iter().chain([&case.path.join("expected.safetensors")]).all(|p| p.exists() && plain(p))
}

#[test]
fn adapters_for_different_models_are_a_mismatch() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    write_lora(&a, &[("m.q", 4, 6)], 2, 1);
    write_lora(&b, &[("m.q", 4, 8)], 2, 1);
    let ran = compare(&a, &b, &[]).expect(1);
    assert!(ran.err.contains("m.q: a change of [4, 6] against one of [4, 8]"), "{}", ran.err);
    write_lora(&b, &[("m.k", 4, 8)], 2, 1);
    let ran = compare(&a, &b, &[]).expect(0);
    assert!(ran.err.contains("no module in both"), "{}", ran.err);
    compare(&adapter("nan"), &adapter("nan"), &[]).expect(1);
}

#[test]
fn a_change_of_zero_is_compared_without_dividing() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a"), scratch.join("b"));
    write_lora(&a, &[("m.q", 4, 6)], 2, 1);
    variant(&a, &b, &json!({ "lora_alpha": 0 }), Dtype::F32);
    assert_eq!(answer(&b, &b, &["--tolerance", "0"])["relative_difference"], 0.0);
    let found = answer(&b, &a, &[]);
    assert_eq!((&found["relative_difference"], &found["cosine"]), (&Value::Null, &Value::Null));
    compare(&b, &a, &["--tolerance", "1000"]).expect(1);
}

// Models

fn small() -> Model {
    [("a.weight", [6, 5]), ("b.weight", [4, 4]), ("c.weight", [3, 7])]
        .into_iter()
        .enumerate()
        .map(|(i, (key, shape))| (key.to_string(), tensor(Dtype::BF16, &shape, i as u64 + 1)))
        .collect()
}

/// Two small models in files, the second one changed.
fn changed(scratch: &Scratch, change: impl Fn(&mut Model)) -> (PathBuf, PathBuf) {
    let (a, b) = (scratch.join("a.safetensors"), scratch.join("b.safetensors"));
    let mut model = small();
    write(&a, &model, None);
    change(&mut model);
    write(&b, &model, None);
    (a, b)
}

/// The value `steps` units in the last place of bf16 further from zero.
fn moved(value: f64, steps: u16) -> f64 {
    let bits = half::bf16::from_f64(value).to_bits();
    half::bf16::from_bits(bits + steps).to_f64()
}

#[test]
fn equal_models_are_the_same_however_they_are_sharded() {
    let scratch = Scratch::new();
    let (one, many) = (scratch.join("one"), scratch.join("many"));
    merge(&model("llama"), adapter("lora"), &one, &["--max-shard-size", "1GB"]).expect(0);
    merge(&model("llama"), adapter("lora"), &many, &["--max-shard-size", "4kB"]).expect(0);
    assert!(std::fs::read_dir(&many).unwrap().count() > std::fs::read_dir(&one).unwrap().count());
    let found = answer(&one, &many, &["--tolerance", "0"]);
    assert_eq!(
        (&found["same"], &found["within_tolerance"], &found["differing"]),
        (&json!(true), &json!(true), &json!([]))
    );
    assert_eq!(found["in_both"], found["equal"]);
    let single = one.join("model.safetensors");
    compare(&single, &many, &["--tolerance", "0"]).expect(0);
    // A merge with the same adapter on the same base, told apart from the base.
    let found = answer(&model("llama"), &one, &[]);
    let names: Vec<_> = found["differing"].as_array().unwrap().iter().map(|d| d["tensor"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 4);
    let (before, after) = (read(&model("llama")), read(&one));
    for tensor in found["differing"].as_array().unwrap() {
        let key = tensor["tensor"].as_str().unwrap();
        let wanted = expected(Some(&before[key].values), Some(&after[key].values));
        close(&tensor["relative_difference"], wanted.difference / wanted.first, 1e-9);
    }
}

#[test]
fn units_in_the_last_place_are_counted() {
    let scratch = Scratch::new();
    let (a, b) = changed(&scratch, |model| {
        let values = &mut model.get_mut("b.weight").unwrap().values;
        values[3] = moved(values[3], 1);
        values[5] = moved(values[5], 3);
    });
    let found = answer(&a, &b, &[]);
    let tensor = &found["differing"][0];
    assert_eq!(
        (&tensor["tensor"], &tensor["differing"], &tensor["max_ulps"]),
        (&json!("b.weight"), &json!(2), &json!(3))
    );
    assert_eq!(tensor["ulps"], json!({ "0": 14, "1": 1, "2": 0, "3-4": 1, "5-16": 0, "17-256": 0, "more": 0 }));
    let (first, second) = (read(&a), read(&b));
    let wanted = expected(Some(&first["b.weight"].values), Some(&second["b.weight"].values));
    close(&tensor["relative_difference"], wanted.difference / wanted.first, 1e-12);
    compare(&a, &b, &["--tolerance", "3ulp"]).expect(0);
    compare(&a, &b, &["--tolerance", "3ulps"]).expect(0);
    let ran = compare(&a, &b, &["--tolerance", "2ulp"]).expect(1);
    assert!(ran.err.contains("b.weight: 3 ulps apart"), "{}", ran.err);
    compare(&a, &b, &["--tolerance", "0"]).expect(1);
    compare(&a, &b, &["--tolerance", "0.1"]).expect(0);
    let ran = compare(&a, &b, &["--tolerance", "1e-9", "--json"]).expect(1);
    assert_eq!(ran.json()["within_tolerance"], false, "one document, and it is the answer");
}

/// What is said, and what is done to the second model.
type Change<'a> = (&'a str, &'a dyn Fn(&mut Model));

#[test]
fn another_form_is_beyond_every_tolerance() {
    let changes: [Change; 4] = [
        ("only in the first model", &|model| drop(model.remove("a.weight"))),
        ("only in the second model", &|model| drop(model.insert("d".into(), tensor(Dtype::F32, &[2], 9)))),
        ("BF16 [3, 7] against F32 [3, 7]", &|model| model.get_mut("c.weight").unwrap().dtype = Dtype::F32),
        ("BF16 [6, 5] against BF16 [5, 6]", &|model| model.get_mut("a.weight").unwrap().shape = vec![5, 6]),
    ];
    for (what, change) in changes {
        let scratch = Scratch::new();
        let (a, b) = changed(&scratch, change);
        for tolerance in ["1e9", "1000000ulp"] {
            let ran = compare(&a, &b, &["--tolerance", tolerance]).expect(1);
            assert!(ran.err.contains(what), "{what}: {}", ran.err);
        }
        let found = answer(&a, &b, &[]);
        assert_eq!((&found["same"], &found["differing"]), (&json!(false), &json!([])), "{what}");
        if what.contains("F32") {
            let unlike = &found["unlike"][0];
            assert_eq!(
                (&unlike["differing"], &unlike["relative_difference"]),
                (&json!(0), &json!(0.0)),
                "the same values"
            );
        }
    }
}

#[test]
fn nan_is_beyond_every_tolerance() {
    let scratch = Scratch::new();
    let (a, b) = changed(&scratch, |model| model.get_mut("a.weight").unwrap().values[1] = f64::NAN);
    let found = answer(&a, &b, &[]);
    let tensor = &found["differing"][0];
    assert_eq!(
        (&tensor["nan"], &tensor["relative_difference"], &tensor["max_ulps"]),
        (&json!(1), &Value::Null, &Value::Null)
    );
    compare(&a, &b, &["--tolerance", "1e9"]).expect(1);
    compare(&a, &b, &["--tolerance", "1000000ulp"]).expect(1);
}

/// Pieces are 4 MiB: a tensor of three, of which the middle one differs.
#[test]
fn pieces_that_are_equal_count_in_the_norm() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.join("a.safetensors"), scratch.join("b.safetensors"));
    let count = 5 << 20;
    let values: Vec<f64> = (0..count).map(|i| f64::from(i % 7 + 1) / 8.0).collect();
    let mut model =
        Model::from([("w".to_string(), Values { dtype: Dtype::BF16, shape: vec![count as usize], values })]);
    write(&a, &model, None);
    model.get_mut("w").unwrap().values[3 << 20] += 1.0;
    write(&b, &model, None);
    let (first, second) = (read(&a), read(&b));
    let wanted = expected(Some(&first["w"].values), Some(&second["w"].values));
    for threads in ["1", "3"] {
        let found = answer(&a, &b, &["--threads", threads]);
        let tensor = &found["differing"][0];
        close(&tensor["relative_difference"], wanted.difference / wanted.first, 1e-12);
        assert_eq!((&tensor["differing"], &tensor["elements"]), (&json!(1), &json!(count)));
        assert_eq!(tensor["ulps"]["0"], json!(count - 1));
    }
}

// The command line

#[test]
fn a_wrong_command_line_is_refused() {
    let (lora, llama) = (adapter("lora"), model("llama"));
    for (first, second, more) in [
        (&lora, &llama, [].as_slice()),
        (&llama, &lora, &[]),
        (&lora, &lora, &["--tolerance", "1ulp"]),
        (&lora, &lora, &["--tolerance", "-1"]),
        (&lora, &lora, &["--tolerance", "nan"]),
        (&llama, &llama, &["--tolerance", "1.5ulp"]),
        (&llama, &llama, &["--base", "x"]),
        (&llama, &at(&llama, "0.5"), &[]),
        (&lora, &lora, &["--allow-unmatched"]),
    ] {
        let ran = compare(first, second, more).expect(2);
        assert_eq!(ran.out, "", "{}", ran.err);
    }
    let ran = compare(&lora, &llama, &[]).expect(2);
    assert!(ran.err.contains("this is an adapter") && ran.err.contains("is a model"), "{}", ran.err);
    compare(&lora, Path::new("nothing"), &[]).expect(1);
}
