//! What a merge says about where things come from: fingerprints and hashes against their description, what is written
//! into the files, and what is refused because of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::fixtures::{Scratch, adapter, base, text};
use crate::models::{Model, json_file, tensor, write, write_lora};
use crate::program::{merge, names, run};

const KEY: &str = "lora_tool.provenance";
const NAMED: &str = "lora_tool.base_fingerprint";

// By fixtures/make/fingerprint.py, which has a BLAKE3 of its own.
const LLAMA: &str = "aaa50363e95fed2bc886188e33a4dad648375bb4b2cc52bb0afeab38529edacb";
const LORA: &str = "7932dcb7757a3a61e20ff645d6bdde057f5bee39de25d81049bb9887fdd8730d";

fn inspect(path: &Path) -> Value {
    run(["inspect", "--json", &text(path)]).expect(0).json()
}

fn fingerprint(path: &Path) -> String {
    inspect(path)["fingerprint"].as_str().unwrap().to_string()
}

/// A file's metadata in order.
fn metadata(file: &Path) -> Vec<(String, String)> {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let all = header["__metadata__"].as_object().unwrap();
    all.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_string())).collect()
}

/// What a file says was merged.
fn provenance(file: &Path) -> Option<Value> {
    let found = metadata(file).into_iter().find(|(key, _)| key == KEY)?;
    Some(serde_json::from_str(&found.1).unwrap())
}

fn shards(folder: &Path) -> Vec<PathBuf> {
    names(folder).into_iter().filter(|n| n.ends_with(".safetensors")).map(|n| folder.join(n)).collect()
}

fn one(name: &str, hash: &str, strength: f64) -> Value {
    json!({ "name": name, "hash": hash, "strength": strength })
}

/// A copy of the LoRA of the fixtures that names a base in its header or its config.
fn naming(folder: &Path, header: Option<&str>, config: Option<&str>) {
    fs::create_dir_all(folder).unwrap();
    let bytes = fs::read(adapter("lora").join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<(String, TensorView)> = tensors.tensors();
    let metadata = header.map(|text| [(NAMED.to_string(), text.to_string())].into());
    safetensors::serialize_to_file(views, metadata, &folder.join("adapter_model.safetensors")).unwrap();
    let mut about = json_file(&adapter("lora").join("adapter_config.json"));
    if let Some(text) = config {
        about[NAMED] = text.into();
    }
    fs::write(folder.join("adapter_config.json"), about.to_string()).unwrap();
}

// Fingerprints and hashes

#[test]
fn the_fixtures_have_the_hashes_that_another_program_finds() {
    assert_eq!(fingerprint(&base("llama")), LLAMA);
    assert_eq!(inspect(&adapter("lora"))["hash"], LORA);
}

/// The description in docs/numerics.md, written out once more over what the safetensors crate reads.
fn described(files: &[PathBuf]) -> String {
    let mut tensors = BTreeMap::new();
    for file in files {
        let bytes = fs::read(file).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            tensors.insert(name, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()));
        }
    }
    let mut chosen: Vec<_> = tensors.keys().map(|name| (*blake3::hash(name.as_bytes()).as_bytes(), name)).collect();
    chosen.sort();
    chosen.truncate(4096);
    let mut all = Vec::new();
    let put_text = |all: &mut Vec<u8>, text: &str| {
        all.extend((text.len() as u64).to_le_bytes());
        all.extend(text.as_bytes());
    };
    put_text(&mut all, "lora-tool base fingerprint 1");
    for (name, (dtype, shape, data)) in &tensors {
        put_text(&mut all, name);
        put_text(&mut all, dtype);
        all.extend((shape.len() as u64).to_le_bytes());
        shape.iter().for_each(|extent| all.extend((*extent as u64).to_le_bytes()));
        if !chosen.iter().any(|(_, of)| *of == name) {
            continue;
        }
        let n = data.len();
        match n {
            0..=3072 => all.extend(data),
            _ => [0, (n - 1024) / 2, n - 1024].iter().for_each(|&at| all.extend(&data[at..at + 1024])),
        }
    }
    blake3::hash(&all).to_string()
}

#[test]
fn a_fingerprint_is_what_its_description_says() {
    let scratch = Scratch::new();
    let mut model = Model::new();
    for (i, elements) in [0usize, 1, 255, 768, 769, 1023, 1024, 5001, 70_000].into_iter().enumerate() {
        model.insert(format!("a.{i}.weight"), tensor(Dtype::F32, &[elements], i as u64));
        model.insert(format!("b.{i}.weight"), tensor(Dtype::BF16, &[1, elements, 2], i as u64));
    }
    let one = scratch.join("one.safetensors");
    write(&one, &model, None);
    assert_eq!(fingerprint(&one), described(&[one]));
    // Of very many tensors some are left out.
    let many = scratch.join("many.safetensors");
    write(&many, &(0..4500u64).map(|i| (format!("t{i}"), tensor(Dtype::F16, &[2, 2], i))).collect(), None);
    assert_eq!(fingerprint(&many), described(std::slice::from_ref(&many)));
    let llama = base("llama");
    assert_eq!(fingerprint(&llama), described(&shards(&llama)));
}

#[test]
fn other_files_of_the_same_tensors_have_the_same_fingerprint_and_other_tensors_another() {
    let scratch = Scratch::new();
    let llama = base("llama");
    let mut model = crate::models::read(&llama);
    let path = scratch.join("one.safetensors");
    write(&path, &model, Some([("other".to_string(), "metadata".to_string())].into()));
    assert_eq!(fingerprint(&path), LLAMA);
    model.get_mut("model.norm.weight").unwrap().values[3] += 1.0;
    write(&path, &model, None);
    assert_ne!(fingerprint(&path), LLAMA);
    assert_ne!(fingerprint(&base("llama_tied")), LLAMA);
}

#[test]
fn an_adapters_hash_is_that_of_its_tensors_alone() {
    let scratch = Scratch::new();
    let copy = scratch.join("other name");
    naming(&copy, Some(LLAMA), Some(LLAMA));
    let found = inspect(&copy);
    assert_eq!((&found["hash"], &found["base_fingerprint"]), (&LORA.into(), &LLAMA.into()));
    assert_eq!(inspect(&adapter("lora"))["base_fingerprint"], Value::Null);
    let said = run(["inspect", &text(&copy)]).expect(0).out;
    assert!(said.contains(&format!("hash        {LORA}")) && said.contains(&format!("made for    {LLAMA}")), "{said}");
    assert!(!said.contains("unknown field"), "{said}");
}

// What is written

#[test]
fn the_files_that_change_say_what_was_merged_and_the_others_are_copies() {
    let scratch = Scratch::new();
    let (from, out) = (base("llama"), scratch.join("out"));
    let lora = text(&adapter("lora"));
    let second = text(&adapter("rslora"));
    let told = merge(&from, format!("{lora}/@0.8"), &out, &[&second, "--json"]).expect(0).json();
    let hash = inspect(&adapter("rslora"))["hash"].as_str().unwrap().to_string();
    assert_eq!(told["base_fingerprint"], LLAMA);
    assert_eq!((&told["adapters"][0]["hash"], &told["adapters"][0]["strength"]), (&LORA.into(), &0.8.into()));
    assert_eq!((&told["adapters"][1]["hash"], &told["adapters"][1]["path"]), (&hash.clone().into(), &second.into()));
    let tool = format!("lora-tool {}", env!("CARGO_PKG_VERSION"));
    let expected =
        json!({ "tool": tool, "base": LLAMA, "merged": [one("lora", LORA, 0.8), one("rslora", &hash, 1.0)] });
    let (mut changed, mut copied) = (0, 0);
    for (old, new) in shards(&from).iter().zip(shards(&out)) {
        if fs::read(old).unwrap() == fs::read(&new).unwrap() {
            copied += 1;
            continue;
        }
        changed += 1;
        let mut all = metadata(&new);
        assert_eq!(serde_json::from_str::<Value>(&all.pop().unwrap().1).unwrap(), expected);
        assert_eq!(all, metadata(old), "what was there comes first");
    }
    assert!(changed > 0 && copied > 0, "{changed} changed, {copied} copied");
    let about = inspect(&out);
    assert_eq!(about["provenance"], expected);
    assert_ne!(about["fingerprint"], LLAMA);
    let said = run(["inspect", &text(&out)]).expect(0).out;
    let lines = [format!("merged into {LLAMA}"), format!("merged      lora at 0.8 ({})", &LORA[..12])];
    assert!(lines.iter().all(|line| said.contains(line)) && !said.contains(KEY), "{said}");
}

#[test]
fn the_same_merge_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let other = scratch.join("elsewhere/lora");
    naming(&other, None, None);
    merge(&base("llama"), adapter("lora"), &scratch.join("a"), &[]).expect(0);
    merge(&base("llama"), other, &scratch.join("b"), &["--threads", "1"]).expect(0);
    for (a, b) in shards(&scratch.join("a")).iter().zip(shards(&scratch.join("b"))) {
        assert!(fs::read(a).unwrap() == fs::read(&b).unwrap(), "{}", b.display());
    }
}

#[test]
fn a_further_merge_adds_to_the_list_and_keeps_the_first_base() {
    let scratch = Scratch::new();
    let (first, second, third) = (scratch.join("first"), scratch.join("second"), scratch.join("third"));
    // Three files, and adapters that change one of them each.
    let llama = base("llama");
    let places = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"];
    let rows = [24, 24, 40];
    for (i, path) in places.iter().enumerate() {
        write_lora(&scratch.join(&format!("l{i}")), &[(path, rows[i], 16)], 2, 10 * i as u64 + 1);
    }
    merge(&llama, scratch.join("l0"), &first, &[]).expect(0);
    let before = inspect(&first)["provenance"].clone();
    let ran = merge(&first, scratch.join("l1"), &second, &["--strict"]).expect(0);
    assert_eq!(ran.err, "");
    merge(&second, scratch.join("l2"), &third, &[]).expect(0);
    let about = inspect(&third);
    let told: Vec<_> =
        about["provenance"]["merged"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!((told, &about["provenance"]["base"]), (vec!["l0", "l1", "l2"], &LLAMA.into()));
    assert_eq!(about["provenance"]["merged"][0], before["merged"][0]);
    assert_eq!(about["notes"], json!([]), "a file that says less than another is not odd");
    let lengths: Vec<_> =
        shards(&third).iter().map(|f| provenance(f).map_or(0, |p| p["merged"].as_array().unwrap().len())).collect();
    assert!(lengths.contains(&3) && lengths.iter().any(|n| *n < 3), "{lengths:?}");
}

#[test]
fn strengths_come_back_to_the_last_digit() {
    let scratch = Scratch::new();
    let (mut from, mut expected) = (base("llama"), Vec::new());
    for (i, strength) in [0.1 + 0.2, 1.0 / 3.0, -1e-7, 31.245270191439438, 121.48791951161945].into_iter().enumerate() {
        let (lora, out) = (scratch.join(&format!("l{i}")), scratch.join(&format!("o{i}")));
        write_lora(&lora, &[("model.layers.0.self_attn.q_proj", 24, 16)], 2, 7 * i as u64 + 1);
        merge(&from, format!("{}@{strength}", text(&lora)), &out, &[]).expect(0);
        expected.push(strength);
        from = out;
    }
    let about = inspect(&from);
    let found: Vec<_> =
        about["provenance"]["merged"].as_array().unwrap().iter().map(|m| m["strength"].as_f64().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn new_files_all_say_it() {
    let scratch = Scratch::new();
    merge(&base("llama"), adapter("lora"), &scratch.join("dealt"), &["--max-shard-size", "8KB"]).expect(0);
    merge(&base("llama"), adapter("lora"), &scratch.join("cast"), &["--dtype", "bf16"]).expect(0);
    for folder in ["dealt", "cast"] {
        let files = shards(&scratch.join(folder));
        assert!(files.iter().all(|f| provenance(f).is_some_and(|p| p["base"] == LLAMA)), "{folder}");
    }
}

#[test]
fn without_provenance_nothing_is_written_and_what_was_there_is_taken_out() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.join("first"), scratch.join("second"));
    write_lora(&scratch.join("q"), &[("model.layers.0.self_attn.q_proj", 24, 16)], 2, 1);
    merge(&base("llama"), adapter("lora"), &first, &[]).expect(0);
    merge(&first, scratch.join("q"), &second, &["--no-provenance"]).expect(0);
    assert!(shards(&first).iter().any(|f| provenance(f).is_some()));
    for (old, new) in shards(&base("llama")).iter().zip(shards(&second)) {
        assert_eq!(metadata(&new), metadata(old), "{}", new.display());
    }
    assert_eq!(inspect(&second)["provenance"], Value::Null);
}

// What is refused

#[test]
fn an_adapter_is_not_merged_twice_unless_it_is_asked_for() {
    let scratch = Scratch::new();
    let (first, out) = (scratch.join("first"), scratch.join("out"));
    merge(&base("llama"), format!("{}@0.5", text(&adapter("lora"))), &first, &[]).expect(0);
    let other = scratch.join("under another name");
    naming(&other, None, None);
    for lora in [&other, &adapter("lora")] {
        for more in [&[][..], &["--dry-run"], &["--no-provenance"]] {
            let ran = merge(&first, lora, &out, more).expect(1);
            assert!(ran.err.contains(&text(lora)) && ran.err.contains("at strength 0.5"), "{}", ran.err);
            assert!(ran.err.contains("--allow-repeat"), "{}", ran.err);
        }
    }
    assert_eq!(merge(&first, &other, &out, &["--json"]).expect(1).json()["error"]["kind"], "exists");
    assert!(!out.exists());
    let ran = merge(&first, &other, &out, &["--allow-repeat", "--strict"]).expect(0);
    assert!(ran.err.contains("note: ") && ran.err.contains("at strength 0.5"), "{}", ran.err);
    assert_eq!(inspect(&out)["provenance"]["merged"].as_array().unwrap().len(), 2);
    let ran = merge(&out, &other, &scratch.join("thrice"), &[]).expect(1);
    assert!(ran.err.contains("at strength 0.5, 1"), "{}", ran.err);
    merge(&first, adapter("rslora"), &scratch.join("other"), &[]).expect(0);
}

#[test]
fn to_subtract_an_adapter_is_not_to_repeat_it() {
    let scratch = Scratch::new();
    let (with, without) = (scratch.join("with"), scratch.join("without"));
    let at = |strength: &str| format!("{}@{strength}", text(&adapter("lora")));
    merge(&base("llama"), at("1"), &with, &[]).expect(0);
    merge(&with, at("-1"), &without, &[]).expect(0);
    merge(&without, at("1"), &scratch.join("again"), &[]).expect(0);
    merge(&with, at("-0.5"), &scratch.join("half"), &[]).expect(0);
    merge(&scratch.join("half"), at("0.25"), &scratch.join("out"), &[]).expect(1);
    merge(&base("llama"), at("1"), &scratch.join("both"), &[&at("-1")]).expect(0);
}

#[test]
fn an_adapter_that_names_its_base_goes_onto_no_other() {
    let scratch = Scratch::new();
    let (lora, out) = (scratch.join("lora"), scratch.join("out"));
    let other = "0".repeat(64);
    for (header, config) in [(Some(LLAMA), None), (None, Some(LLAMA)), (Some(LLAMA), Some(LLAMA))] {
        naming(&lora, header, config);
        let ran = merge(&base("llama"), &lora, &out, &["--force", "--strict"]).expect(0);
        assert_eq!(ran.err, "");
    }
    for (header, config) in [(Some(other.as_str()), None), (None, Some(other.as_str()))] {
        naming(&lora, header, config);
        let ran = merge(&base("llama"), &lora, &scratch.join("none"), &[]).expect(1);
        for word in [other.as_str(), LLAMA, "made for another base", "--allow-other-base"] {
            assert!(ran.err.contains(word), "{}", ran.err);
        }
        assert!(!scratch.join("none").exists());
        let ran = merge(&base("llama"), &lora, &out, &["--force", "--strict", "--allow-other-base"]).expect(0);
        assert!(ran.err.starts_with("note: ") && ran.err.contains("made for another base"), "{}", ran.err);
    }
}

#[test]
fn a_base_with_other_adapters_in_it_is_noted_and_taken() {
    let scratch = Scratch::new();
    let (lora, first) = (scratch.join("lora"), scratch.join("first"));
    naming(&lora, Some(LLAMA), None);
    merge(&base("llama"), adapter("rslora"), &first, &[]).expect(0);
    let ran = merge(&first, &lora, &scratch.join("out"), &["--strict"]).expect(0);
    assert!(ran.err.starts_with("note: ") && ran.err.contains("merged into it before"), "{}", ran.err);
    // The merged model itself may be named as well.
    naming(&lora, Some(&fingerprint(&first)), None);
    assert_eq!(merge(&first, &lora, &scratch.join("named"), &[]).expect(0).err, "");
    merge(&base("llama"), &lora, &scratch.join("none"), &[]).expect(1);
}

#[test]
fn a_fingerprint_that_is_none_is_refused_at_its_place() {
    let scratch = Scratch::new();
    let lora = scratch.join("lora");
    let cases = [
        (Some("abc"), None, "adapter_model.safetensors: lora_tool.base_fingerprint: `abc`"),
        (None, Some("abc"), "adapter_config.json: lora_tool.base_fingerprint: `abc`"),
        (Some(LLAMA), Some(LORA), "and the header of the tensors"),
    ];
    for (header, config, word) in cases {
        naming(&lora, header, config);
        let ran = merge(&base("llama"), &lora, &scratch.join("out"), &[]).expect(1);
        assert!(ran.err.contains(word), "{}", ran.err);
    }
}

#[test]
fn a_provenance_that_cannot_be_read_or_contradicts_another_is_named() {
    let scratch = Scratch::new();
    let mut two = Model::new();
    two.insert("a.weight".into(), tensor(Dtype::F32, &[4, 4], 1));
    let mut rest = Model::new();
    rest.insert("b.weight".into(), tensor(Dtype::F32, &[4, 4], 2));
    write_lora(&scratch.join("lora"), &[("a", 4, 4)], 1, 5);
    let (x, y) = ("a".repeat(64), "b".repeat(64));
    let list = |merged: Vec<Value>| json!({ "tool": "t", "base": x, "merged": merged }).to_string();
    let cases = [
        ("nonsense".to_string(), list(vec![one("m", &x, 1.0)]), "cannot be read: not valid JSON"),
        (list(vec![one("m", &y, 1.0)]), list(vec![one("m", &x, 1.0), one("n", &y, 1.0)]), "names other adapters"),
    ];
    for (i, (first, second, word)) in cases.into_iter().enumerate() {
        let model = scratch.join(&format!("model{i}"));
        fs::create_dir(&model).unwrap();
        let files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        write(&model.join(files[0]), &two, Some([(KEY.to_string(), first)].into()));
        write(&model.join(files[1]), &rest, Some([(KEY.to_string(), second)].into()));
        let index = json!({ "metadata": {}, "weight_map": { "a.weight": files[0], "b.weight": files[1] } });
        fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
        let out = scratch.join(&format!("out{i}"));
        assert_eq!(merge(&model, scratch.join("lora"), &out, &["--strict"]).code, Some(3));
        let ran = merge(&model, scratch.join("lora"), &out, &[]).expect(0);
        assert!(ran.err.contains("warning: ") && ran.err.contains(files[0]) && ran.err.contains(word), "{}", ran.err);
        let found = inspect(&out);
        let merged = found["provenance"]["merged"].as_array().unwrap();
        assert_eq!((merged.len(), &merged[0]["hash"]), (2 + i, &x.clone().into()), "the longest list, and the adapter");
        let said = run(["inspect", &text(&model)]).expect(0).out;
        assert!(said.contains("note: ") && said.contains(word), "{said}");
    }
}
