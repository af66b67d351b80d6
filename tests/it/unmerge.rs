//! Adapters taken out of a merged model without a record: against the base that it was merged from, which is known
//! here, against the formula in f64, and against PEFT's own unmerging.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::tensor::Dtype;
use serde_json::Value;

use crate::fixtures::{Case, Scratch, adapter, base, cases, text};
use crate::models::{self, Model, Values, deltas, tensor, write, write_lora};
use crate::program::{Ran, command, merge, names};

fn unmerge(merged: &Path, adapter: &str, out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("unmerge").arg(merged).arg("-o").arg(out).args(["--adapter", adapter, "--no-sync"]).args(more);
    command.output().expect("the program starts").into()
}

/// Every tensor's bytes, of whatever type.
fn bytes(path: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let files = if path.is_dir() {
        names(path).into_iter().filter(|n| n.ends_with(".safetensors")).map(|n| path.join(n)).collect()
    } else {
        vec![path.to_path_buf()]
    };
    let mut out = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        for (key, view) in safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors() {
            out.insert(key, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    out
}

/// The tensors that are numbers.
fn numbers(path: &Path) -> Model {
    let known = |dtype: &str| {
        Some(match dtype {
            "F64" => Dtype::F64,
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            _ => return None,
        })
    };
    let all = bytes(path).into_iter();
    all.filter_map(|(key, (dtype, shape, data))| {
        let dtype = known(&dtype)?;
        Some((key, Values { dtype, shape, values: models::widen(dtype, &data) }))
    })
    .collect()
}

/// Runs a check on every fixture that merges.
fn each_case(check: impl Fn(&Case, &Path, &Path) -> Result<(), String> + Sync) {
    let cases: Vec<Case> = cases("peft").into_iter().filter(Case::expects_merge).collect();
    assert!(cases.len() > 100, "only {} fixtures", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let scratch = Scratch::new();
            let (merged, out) = (scratch.join("merged"), scratch.join("out"));
            merge(&case.base(), case.adapter(), &merged, &["--quiet"]).expect(0);
            check(case, &merged, &out).err().map(|what| format!("{}: {what}", case.name))
        })
        .collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

// With the base

#[test]
fn against_the_base_every_fixture_comes_back_byte_for_byte() {
    each_case(|case, merged, out| {
        let ran = unmerge(merged, &text(&case.adapter()), out, &["--base", &text(&case.base())]);
        if ran.code != Some(0) {
            return Err(ran.err);
        }
        if bytes(out) != bytes(&case.base()) {
            return Err("other tensors".to_string());
        }
        for name in names(&case.base()) {
            let file = |folder: &Path| if folder.is_dir() { fs::read(folder.join(&name)).ok() } else { None };
            if case.base().is_dir() && file(out) != file(&case.base()) {
                return Err(format!("{name} is another file"));
            }
        }
        if ran.out.contains("are the base's own") || ran.out.contains("what the merge added") {
            Ok(())
        } else {
            Err(ran.out)
        }
    });
}

// Without the base

/// The largest share by which the stated bound may be exceeded: the f32 sums behind it are not counted.
const SLACK: f64 = 1.0 + 1e-3;

fn compare(base: &Model, found: &Model, said: &Value) -> Result<(u64, u64), String> {
    let (mut all, mut others) = (0, 0);
    let keys: (Vec<_>, Vec<_>) = (base.keys().collect(), found.keys().collect());
    // Tied embeddings that the merge parted stay apart.
    let parted = |key: &str| key == "lm_head.weight" || key.ends_with("embed_tokens.weight") || key.contains("lm_head");
    let more: Vec<_> = keys.1.iter().filter(|key| !keys.0.contains(key) && !parted(key)).collect();
    if keys.0.iter().any(|key| !keys.1.contains(key)) || !more.is_empty() {
        return Err(format!("other keys: {more:?}"));
    }
    for (key, before) in base {
        let after = &found[key];
        let about = said["tensors"].as_array().unwrap().iter().find(|t| t["tensor"] == key.as_str());
        let Some(about) = about else {
            if before != after {
                return Err(format!("{key} changed"));
            }
            continue;
        };
        let by: Vec<f64> = before.values.iter().zip(&after.values).map(|(a, b)| (a - b).abs()).collect();
        let differ = by.iter().filter(|d| **d != 0.0).count() as u64;
        let worst = by.iter().fold(0f64, |max, d| max.max(*d));
        let (in_doubt, at_most) = (about["in_doubt"].as_u64().unwrap(), about["at_most"].as_f64().unwrap());
        if differ > in_doubt {
            return Err(format!("{key}: {differ} elements differ, {in_doubt} were in doubt"));
        }
        if worst > at_most * SLACK {
            return Err(format!("{key}: one differs by {worst:e}, at most {at_most:e} was said"));
        }
        all += about["elements"].as_u64().unwrap();
        others += differ;
    }
    Ok((all, others))
}

/// Kinds whose change depends on the weight, by a word of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("DoRA", "a length of its own"),
    ("replacement", "took the place"),
    ("token rows", "took the place"),
    ("DEFT", "takes a projection out"),
    ("OSF", "smallest singular components"),
    ("KaSA", "smallest singular components"),
    ("PiSSA residual", "taken out of the weight"),
    ("PEANuT", "fed with the weight"),
    ("GLoRA", "product with the weight"),
    ("Super-Tuning", "found in the weight"),
    ("OFT", "only be undone at strength 1"),
];

/// Takes an adapter out of what it was merged into, and judges what comes of it.
fn found_or_refused(case: &Case, base: &Path, merged: &Path, out: &Path) -> Result<bool, String> {
    let ran = unmerge(merged, &text(&case.adapter()), out, &["--json"]);
    if ran.code == Some(0) {
        return compare(&numbers(base), &numbers(out), &ran.json()).map(|_| true);
    }
    let refused = ran.json()["error"].clone();
    let what = refused["what"].as_str().unwrap().to_string();
    let known = REFUSED.iter().any(|(_, why)| what.contains("without the base") && what.contains(why));
    if !known || !refused["hint"].as_str().unwrap_or("").contains("--base") {
        return Err(format!("{what}\n{}", ran.err));
    }
    if out.exists() { Err("left something behind".to_string()) } else { Ok(false) }
}

#[test]
fn without_the_base_what_is_found_is_within_what_is_said_or_refused_with_the_reason() {
    each_case(|case, merged, out| found_or_refused(case, &case.base(), merged, out).map(drop));
}

/// The same for bases of other types and other strengths, one of them a fixture. A cast base is what a merge at strength
/// 0 writes.
#[test]
fn in_every_type_and_at_other_strengths_what_is_found_is_within_what_is_said() {
    let ways = [("bf16", "0.7"), ("f16", "-1.3"), ("f64", "1"), ("f32", "0.3"), ("bf16", "1"), ("f16", "1")];
    let (mut failed, mut found) = (Vec::new(), 0);
    for (number, case) in cases("peft").iter().filter(|c| c.expects_merge()).enumerate() {
        let (dtype, strength) = ways[number % ways.len()];
        let scratch = Scratch::new();
        let (base, merged, out) = (scratch.join("base"), scratch.join("merged"), scratch.join("out"));
        let at = |strength: &str| format!("{}@{strength}", text(&case.adapter()));
        let cast = merge(&case.base(), at("0"), &base, &["--quiet", "--dtype", dtype, "--no-provenance"]);
        if cast.code != Some(0) || merge(&base, at(strength), &merged, &["--quiet"]).code != Some(0) {
            continue; // replaced by a tensor of another shape, or beyond the range of the type
        }
        match found_or_refused(case, &base, &merged, &out) {
            Ok(was_found) => found += usize::from(was_found),
            Err(what) => failed.push(format!("{} as {dtype} at {strength}: {what}", case.name)),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(found > 80, "only {found} were found again");
}

/// A layer of the small model in 16 bits, and its LoRA.
fn small(scratch: &Scratch, dtype: Dtype) -> (PathBuf, PathBuf) {
    let (base, lora) = (scratch.join("base.safetensors"), scratch.join("lora"));
    let mut weight = tensor(dtype, &[24, 40], 5);
    // Of all sizes, so that the result is finer, as fine and coarser than the weight.
    for (i, v) in weight.values.iter_mut().enumerate() {
        *v = models::rounded(dtype, *v * f64::powi(2.0, (i % 12) as i32 - 8));
    }
    write(&base, &[("layer.weight".to_string(), weight)].into(), None);
    write_lora(&lora, &[("layer", 24, 40)], 3, 11);
    (base, lora)
}

#[test]
fn what_is_not_in_doubt_is_the_weight_and_doubt_is_where_another_gives_the_same() {
    let scratch = Scratch::new();
    let (base, lora) = small(&scratch, Dtype::BF16);
    let (merged, out) = (scratch.join("merged.safetensors"), scratch.join("out.safetensors"));
    merge(&base, &lora, &merged, &[]).expect(0);
    let said = unmerge(&merged, &text(&lora), &out, &["--json"]).expect(0).json();
    let one = |path: &Path| models::read(path)["layer.weight"].values.clone();
    let (before, after, merged) = (one(&base), one(&out), one(&merged));
    let delta = &deltas(&lora)["layer.weight"];
    // All numbers of the type are tried, in f64.
    let all: Vec<f64> = (0..=u16::MAX).map(|b| bf16::from_bits(b).to_f64()).filter(|v| v.is_finite()).collect();
    let (mut several, mut near_a_tie) = (0u64, 0u64);
    for (i, m) in merged.iter().enumerate() {
        let gives = |w: f64| models::rounded(Dtype::BF16, w + delta[i]) == *m;
        let makers = all.iter().filter(|w| gives(**w)).count();
        if !gives(before[i]) {
            near_a_tie += 1; // the f32 sum fell to the other side
            continue;
        }
        several += u64::from(makers > 1);
        assert!(makers > 1 || before[i] == after[i], "{i}: {} came back as {}", before[i], after[i]);
        assert!(gives(after[i]), "{i}: {} does not give {m}", after[i]);
    }
    assert!(near_a_tie <= 2, "{near_a_tie}");
    assert!(several > 100 && several < 900, "{several}");
    let in_doubt = said["in_doubt"].as_u64().unwrap();
    assert!(in_doubt.abs_diff(several) <= 2, "{in_doubt} in doubt, {several} by trying all");
}

#[test]
fn several_adapters_come_off_together_and_one_of_several_alone() {
    for dtype in [Dtype::BF16, Dtype::F32] {
        let scratch = Scratch::new();
        let (base, lora) = small(&scratch, dtype);
        let other = scratch.join("other");
        write_lora(&other, &[("layer", 24, 40)], 2, 77);
        let (merged, out) = (scratch.join("merged.safetensors"), scratch.join("out.safetensors"));
        let second = format!("{}@0.5", text(&other));
        merge(&base, &lora, &merged, &[&second]).expect(0);
        let ran = unmerge(&merged, &text(&lora), &out, &["--json", "--adapter", &text(&other)]).expect(0).json();
        assert_eq!((&ran["adapters"][1]["strength"], &ran["others"]), (&0.5.into(), &0.into()));
        compare(&numbers(&base), &numbers(&out), &ran).unwrap();

        let ran = unmerge(&merged, &text(&lora), &out, &["--force"]).expect(0);
        assert!(ran.out.contains("may be off by a unit") && ran.out.contains("another adapter was"), "{}", ran.out);
        // That is the formula, but for a unit of each rounding.
        let (found, before) = (models::read(&out), models::read(&base));
        let delta = &deltas(&other)["layer.weight"];
        for (i, v) in found["layer.weight"].values.iter().enumerate() {
            let exact = before["layer.weight"].values[i] + 0.5 * delta[i];
            let first = &deltas(&lora)["layer.weight"];
            let unit = f64::powi(2.0, if dtype == Dtype::BF16 { -8 } else { -22 });
            let allowed = unit * (exact.abs() + (exact + first[i]).abs() + first[i].abs() + delta[i].abs());
            assert!((v - exact).abs() <= allowed, "{i}: {v} against {exact}");
        }
    }
}

#[test]
fn ia3_is_back_within_a_unit() {
    let scratch = Scratch::new();
    let (merged, out) = (scratch.join("merged"), scratch.join("out"));
    merge(&base("llama"), adapter("ia3"), &merged, &[]).expect(0);
    unmerge(&merged, &text(&adapter("ia3")), &out, &[]).expect(0);
    let (before, after) = (numbers(&base("llama")), numbers(&out));
    for (key, before) in &before {
        for (a, b) in before.values.iter().zip(&after[key].values) {
            let steps = (*a as f32).to_bits().abs_diff((*b as f32).to_bits());
            assert!(steps <= 1, "{key}: {a} came back as {b}");
        }
    }
}

/// What PEFT merged, and not this program.
#[test]
fn what_peft_merged_comes_back() {
    for name in ["lora", "rslora", "loha", "lokr", "ia3", "hra", "oft_exact", "road_2", "vera", "c3a"] {
        let case = cases("peft").into_iter().find(|c| c.name == name).unwrap();
        let scratch = Scratch::new();
        let (merged, out) = (scratch.join("merged.safetensors"), scratch.join("out.safetensors"));
        let before = models::read(&case.base());
        let mut model = before.clone();
        let expected = models::read(&case.path.join("expected.safetensors"));
        assert!(!expected.is_empty());
        model.extend(expected);
        write(&merged, &model, None);
        unmerge(&merged, &text(&case.adapter()), &out, &[]).expect(0);
        for (key, after) in models::read(&out) {
            for (a, b) in before[&key].values.iter().zip(&after.values) {
                assert!((a - b).abs() < 3e-6, "{name}: {key}: {a} came back as {b}");
            }
        }
    }
}

// What is refused

#[test]
fn what_cannot_be_found_is_refused_with_what_helps() {
    let scratch = Scratch::new();
    let (merged, out) = (scratch.join("merged"), scratch.join("out"));
    for (name, words) in [
        ("dora", "DoRA cannot be taken out without the base: it brings every row to a length of its own"),
        ("pissa", "PiSSA residual + LoRA cannot be taken out without the base: what its factors started from"),
        ("save_norms", "replacement cannot be taken out without the base: it took the place of the base's values"),
    ] {
        let at = cases("peft").into_iter().find(|c| c.name == name).unwrap();
        merge(&at.base(), at.adapter(), &merged, &["--force"]).expect(0);
        for more in [&[][..], &["--dry-run"]] {
            let ran = unmerge(&merged, &text(&at.adapter()), &out, more).expect(1);
            assert!(ran.err.contains(words) && ran.err.contains("--base") && ran.err.contains("--undo"), "{}", ran.err);
        }
    }
    // A merge of this one would part the embeddings.
    write_lora(&scratch.join("head"), &[("lm_head", 48, 16)], 2, 3);
    let ran = unmerge(&base("llama_tied"), &text(&scratch.join("head")), &out, &[]).expect(1);
    assert!(ran.err.contains("was this adapter merged into this model?"), "{}", ran.err);
}

#[test]
fn a_factor_of_zero_and_a_result_that_is_not_finite_are_refused() {
    let scratch = Scratch::new();
    let (ia3, merged, out) = (scratch.join("ia3"), scratch.join("merged"), scratch.join("out"));
    fs::create_dir_all(&ia3).unwrap();
    fs::copy(adapter("ia3").join("adapter_config.json"), ia3.join("adapter_config.json")).unwrap();
    let mut factors = models::read(&adapter("ia3").join("adapter_model.safetensors"));
    factors.values_mut().next().unwrap().values[1] = 0.0;
    write(&ia3.join("adapter_model.safetensors"), &factors, None);
    merge(&base("llama"), &ia3, &merged, &[]).expect(0);
    let ran = unmerge(&merged, &text(&ia3), &out, &[]).expect(1);
    assert!(ran.err.contains("one of its factors is zero"), "{}", ran.err);
    // At another strength it does not make a zero.
    let half = scratch.join("half");
    merge(&base("llama"), format!("{}@0.5", text(&ia3)), &half, &[]).expect(0);
    let ran = unmerge(&half, &text(&ia3), &out, &["--base", &text(&base("llama"))]).expect(0);
    assert!(ran.out.contains("the base's own"), "{}", ran.out);

    let (plain, lora) = small(&scratch, Dtype::F16);
    let model = scratch.join("model.safetensors");
    let mut values = models::read(&plain);
    values.get_mut("layer.weight").unwrap().values[47] = f64::INFINITY;
    write(&model, &values, None);
    let out = scratch.join("out.safetensors");
    let ran = unmerge(&model, &text(&lora), &out, &["--json"]).expect(1);
    let error = &ran.json()["error"];
    assert_eq!((&error["kind"], &error["key"]), (&"nonfinite".into(), &"layer.weight".into()));
    assert!(error["what"].as_str().unwrap().contains("at [1, 7] is NaN or infinite"), "{error}");
    assert!(!out.exists());
}

#[test]
fn one_of_record_and_adapter_is_needed() {
    let ran: Ran = command().args(["unmerge", "m", "-o", "o"]).output().unwrap().into();
    let ran = ran.expect(2);
    assert!(ran.err.contains("--undo") && ran.err.contains("--adapter"), "{}", ran.err);
    let ran: Ran = command().args(["unmerge", "m", "-o", "o", "--undo", "u", "--base", "b"]).output().unwrap().into();
    ran.expect(2);
    let scratch = Scratch::new();
    let lora = text(&adapter("lora"));
    let ran = unmerge(&base("llama"), &lora, &scratch.join("out"), &["--adapter", &format!("{lora}@2")]).expect(2);
    assert!(ran.err.contains("given twice"), "{}", ran.err);
    unmerge(&base("llama"), &format!("{lora}@0"), &scratch.join("out"), &[]).expect(2);
    unmerge(&base("llama"), &format!("{lora}@x"), &scratch.join("out"), &[]).expect(2);
}

#[test]
fn an_output_that_is_there_stays_unless_it_is_asked_for() {
    let scratch = Scratch::new();
    let (merged, out, lora) = (scratch.join("merged"), scratch.join("out"), text(&adapter("lora")));
    merge(&base("llama"), &lora, &merged, &["--max-shard-size", "4KB"]).expect(0);
    let ran = unmerge(&merged, &lora, &out, &["--dry-run", "--json"]).expect(0).json();
    assert_eq!((&ran["dry_run"], &ran["in_doubt"], &ran["restored"]), (&true.into(), &Value::Null, &4.into()));
    assert!(!out.exists());
    unmerge(&merged, &lora, &out, &["--threads", "1"]).expect(0);
    let first = bytes(&out);
    assert!(unmerge(&merged, &lora, &out, &[]).expect(1).err.contains("exists already"));
    unmerge(&merged, &lora, &out, &["--force", "--threads", "3", "--memory", "1MB"]).expect(0);
    assert!(bytes(&out) == first);
    assert_eq!(names(&merged), names(&out));
    for more in [&[][..], &["--base", &text(&base("llama"))]] {
        let ran = unmerge(&merged, &lora, &merged, &[more, &["--force"]].concat()).expect(1);
        assert!(ran.err.contains("input"), "{}", ran.err);
    }
}

// Strengths and provenance

const KEY: &str = "lora_tool.provenance";

/// Names and strengths in each file's list.
fn lists(folder: &Path) -> Vec<Vec<(String, f64)>> {
    let files = names(folder).into_iter().filter(|n| n.ends_with(".safetensors"));
    let list = |name: String| {
        let bytes = fs::read(folder.join(name)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let Some(text) = header.metadata().as_ref().and_then(|m| m.get(KEY)) else { return Vec::new() };
        let provenance: Value = serde_json::from_str(text).unwrap();
        let one = |m: &Value| (m["name"].as_str().unwrap().to_string(), m["strength"].as_f64().unwrap());
        provenance["merged"].as_array().unwrap().iter().map(one).collect()
    };
    files.map(list).collect()
}

#[test]
fn the_strength_is_the_one_that_the_files_name() {
    let scratch = Scratch::new();
    let (merged, out, lora) = (scratch.join("merged"), scratch.join("out"), text(&adapter("lora")));
    merge(&base("llama"), format!("{lora}@0.8"), &merged, &[]).expect(0);
    let ran = unmerge(&merged, &lora, &out, &["--json", "--strict"]).expect(0);
    assert_eq!(ran.json()["adapters"][0]["strength"], 0.8);
    assert!(ran.err.contains("at strength 0.8, as the model's files say"), "{}", ran.err);
    compare(&numbers(&base("llama")), &numbers(&out), &ran.json()).unwrap();
    assert_eq!(unmerge(&merged, &format!("{lora}@0.8"), &out, &["--force"]).expect(0).err, "");
    // Half of it is left.
    let ran = unmerge(&merged, &format!("{lora}@0.3"), &out, &["--force"]).expect(0);
    assert!(ran.err.contains("warning:") && ran.err.contains("merged at 0.8"), "{}", ran.err);
    assert!(lists(&out).concat().ends_with(&[("lora".into(), 0.8), ("lora".into(), -0.3)]), "{:?}", lists(&out));
    unmerge(&merged, &format!("{lora}@0.3"), &out, &["--force", "--strict"]).expect(3);
    let rest = scratch.join("rest");
    let ran = unmerge(&out, &lora, &rest, &["--json"]).expect(0).json();
    assert_eq!(ran["adapters"][0]["strength"], 0.5);
    assert!(lists(&rest).concat().is_empty());
    // Another one is not there.
    let ran = unmerge(&merged, &text(&adapter("rslora")), &out, &["--force"]).expect(0);
    assert!(ran.err.contains("warning:") && ran.err.contains("not among the adapters"), "{}", ran.err);
    assert!(lists(&out).concat().contains(&("rslora".into(), -1.0)));
    // Nothing is said of a model that says nothing.
    merge(&base("llama"), &lora, &merged, &["--force", "--no-provenance"]).expect(0);
    assert_eq!(unmerge(&merged, &lora, &out, &["--force"]).expect(0).err, "");
}

#[test]
fn what_is_taken_out_leaves_the_list_in_every_file() {
    let scratch = Scratch::new();
    let (first, second, out) = (scratch.join("first"), scratch.join("second"), scratch.join("out"));
    let llama = base("llama");
    // Two adapters that change other files.
    for (name, path) in [("a", "model.layers.0.self_attn.q_proj"), ("b", "model.layers.1.self_attn.q_proj")] {
        write_lora(&scratch.join(name), &[(path, 24, 16)], 2, 3);
    }
    let (a, b) = (text(&scratch.join("a")), text(&scratch.join("b")));
    merge(&llama, &a, &first, &[]).expect(0);
    merge(&first, format!("{b}@2"), &second, &[]).expect(0);
    assert_eq!(lists(&second).iter().map(Vec::len).max(), Some(2));
    unmerge(&second, &a, &out, &[]).expect(0);
    let left = lists(&out).concat();
    assert!(!left.is_empty() && left.iter().all(|m| *m == ("b".to_string(), 2.0)), "{left:?}");
    let ran = unmerge(&out, &b, &scratch.join("none"), &["--json"]).expect(0).json();
    assert!(lists(&scratch.join("none")).concat().is_empty());
    compare(&numbers(&llama), &numbers(&scratch.join("none")), &ran).ok();
    // With both bases byte for byte.
    unmerge(&second, &a, &scratch.join("all"), &["--adapter", &b, "--base", &text(&llama)]).expect(0);
    for name in names(&llama) {
        assert!(fs::read(llama.join(&name)).unwrap() == fs::read(scratch.join("all").join(&name)).unwrap(), "{name}");
    }
}

// The base beside it

/// A merged model in one file in which `change` changed something.
fn changed(scratch: &Scratch, name: &str, change: impl Fn(&mut Model)) -> (PathBuf, PathBuf) {
    let (whole, merged, model) = (scratch.join("base.st"), scratch.join("merged.st"), scratch.join("changed.st"));
    write(&whole, &models::read(&base("llama")), None);
    merge(&whole, adapter(name), &merged, &["--force"]).expect(0);
    let mut values = models::read(&merged);
    change(&mut values);
    write(&model, &values, None);
    (whole, model)
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn elements_that_others_changed_are_found_as_they_are_and_the_rest_is_the_base() {
    let scratch = Scratch::new();
    let out = scratch.join("out.st");
    let lora = text(&adapter("lora"));
    let (whole, model) = changed(&scratch, "lora", |m| {
        m.get_mut(Q).unwrap().values[5] += 0.5;
        m.get_mut("model.norm.weight").unwrap().values[2] = 7.0;
    });
    let ran = unmerge(&model, &lora, &out, &["--base", &text(&whole)]).expect(0);
    assert!(ran.err.contains(&format!("warning: {Q}: 1 of 384 elements differ, the first is number 5")), "{}", ran.err);
    assert!(ran.err.contains("note: model.norm.weight: not as in the base"), "{}", ran.err);
    assert!(ran.out.contains("1 (0.09 %) are not the base's own"), "{}", ran.out);
    let (before, after) = (models::read(&whole), models::read(&out));
    for (key, before) in &before {
        for (i, (a, b)) in before.values.iter().zip(&after[key].values).enumerate() {
            match (key.as_str(), i) {
                (Q, 5) => assert!((a + 0.5 - b).abs() < 1e-6, "{a} {b}"),
                ("model.norm.weight", 2) => assert_eq!(*b, 7.0),
                _ => assert_eq!(a, b, "{key}"),
            }
        }
    }
    unmerge(&model, &lora, &out, &["--base", &text(&whole), "--strict", "--force"]).expect(3);
    let ran = unmerge(&model, &lora, &out, &["--base", &text(&whole), "--dry-run", "--json", "--force"]).expect(0);
    assert_eq!(ran.json()["notes"].as_array().unwrap().len(), 2);
}

#[test]
fn another_base_and_other_adapters_are_refused() {
    let scratch = Scratch::new();
    let out = scratch.join("out.st");
    let (whole, model) = changed(&scratch, "lora", |_| ());
    let lora = text(&adapter("lora"));
    for (adapter, base, word) in [
        (format!("{lora}@0.5"), &whole, "elements differ"),
        (text(&adapter("rslora")), &whole, "elements differ"),
        (lora.clone(), &model, "elements differ"),
        (lora.clone(), &base("llama"), "a folder against a file"),
        (text(&adapter("grown")), &whole, "merging gives"),
    ] {
        let ran = unmerge(&model, &adapter, &out, &["--base", &text(base)]).expect(1);
        assert!(ran.err.contains(word), "{adapter}: {}", ran.err);
    }
    let (whole, model) = changed(&scratch, "dora", |m| m.get_mut(Q).unwrap().values[5] += 0.5);
    let ran = unmerge(&model, &text(&adapter("dora")), &out, &["--base", &text(&whole)]).expect(1);
    assert!(
        ran.err.contains("1 of 384 elements differ") && ran.err.contains("DoRA cannot be taken off"),
        "{}",
        ran.err
    );
}

#[test]
fn a_merge_that_wrote_another_type_goes_back_to_that_of_the_base() {
    let scratch = Scratch::new();
    let (merged, out) = (scratch.join("merged"), scratch.join("out"));
    for (model, name, dtype) in
        [("llama_bf16", "bf16", "f32"), ("llama", "lora", "bf16"), ("llama_tied", "tied_lm_head", "f16")]
    {
        merge(&base(model), adapter(name), &merged, &["--force", "--dtype", dtype]).expect(0);
        let ran = unmerge(&merged, &text(&adapter(name)), &out, &["--force", "--base", &text(&base(model))]).expect(0);
        assert!(ran.out.contains("the base's own"), "{}", ran.out);
        for file in names(&base(model)) {
            assert!(
                fs::read(base(model).join(&file)).unwrap() == fs::read(out.join(&file)).unwrap(),
                "{model}: {file}"
            );
        }
    }
}
