//! Pipelines of diffusers as bases: every command on all of their models at once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use lora_tool::container::SafetensorsFile;
use lora_tool::layout::{self, Draft};
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{self, Scratch};
use crate::program::{self, Ran};

const NAMES: [&str; 3] = ["sdxl", "sd3", "flux"];
const PEFT: [&str; 2] = ["lora_A.weight", "lora_B.weight"];
const KOHYA: [&str; 2] = ["lora_down.weight", "lora_up.weight"];
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const SECOND: &str = "text_encoder_2/model.safetensors";

/// A pipeline of the fixtures, the adapter for it, and what diffusers fuses.
fn case(name: &str) -> (PathBuf, PathBuf, PathBuf) {
    let folder = fixtures::root().join("pipelines").join(name);
    (folder.join("base"), folder.join("pytorch_lora_weights.safetensors"), folder.join("expected"))
}

/// All files below a folder, by their paths in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).expect("inside").to_string_lossy().into_owned();
                out.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(folder, folder, &mut out);
    out
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        put(to, &name, bytes);
    }
}

/// Writes a file, and the folders it lies in.
fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
    std::fs::write(path, bytes).expect("a file");
}

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<_> = (0..count).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 64.0 - 1.6).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
}

fn save(path: &Path, tensors: StateDict) -> PathBuf {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
    let draft = Draft { tensor_file: "f.safetensors".into(), tensors, ..Draft::default() };
    layout::save(&draft, path, &[], true, false).expect("saved");
    path.to_path_buf()
}

fn read(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let opened = SafetensorsFile::open(path).expect("tensors");
    opened.tensors.iter().map(|(key, t)| (key.clone(), t.to_f32().expect("floats"))).collect()
}

/// Factors of a square matrix.
fn pair(tensors: &mut StateDict, key: &str, width: usize, names: [&str; 2]) {
    let seed = tensors.len() + 3;
    tensors.insert(format!("{key}.{}", names[0]), numbers(&[2, width], seed));
    tensors.insert(format!("{key}.{}", names[1]), numbers(&[width, 2], seed + 1));
}

/// Base + B·A, in f64.
fn sum(base: &[f32], tensors: &StateDict, key: &str, names: [&str; 2]) -> Vec<f64> {
    let of = |name: &str| tensors[&format!("{key}.{name}")].to_f32().expect("floats");
    let (a, b) = (of(names[0]), of(names[1]));
    let width = a.len() / 2;
    let entry = |i: usize, j: usize| (0..2).map(|k| f64::from(b[i * 2 + k]) * f64::from(a[k * width + j])).sum::<f64>();
    base.iter().enumerate().map(|(at, old)| f64::from(*old) + entry(at / width, at % width)).collect()
}

fn require_near(got: &[f32], wanted: impl IntoIterator<Item = f64>, what: &str) {
    let wanted: Vec<f64> = wanted.into_iter().collect();
    assert_eq!(got.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(1e-9, |max: f64, w| max.max(w.abs()));
    for (got, wanted) in got.iter().zip(wanted) {
        assert!((f64::from(*got) - wanted).abs() <= 1e-5 * largest, "{what}: {wanted} against {got}");
    }
}

/// The tensors that diffusers fuses are those of the merged pipeline, and all others are those of the base.
fn require_fused(merged: &Path, (base, expected): (&Path, &Path)) {
    for (name, before) in files(base) {
        let component = name.split('/').next().expect("a component");
        let after = expected.join(format!("{component}.safetensors"));
        if !name.ends_with(".safetensors") || !after.exists() {
            assert!(std::fs::read(merged.join(&name)).expect("there") == before, "{name}");
            continue;
        }
        let (wanted, old, new) = (read(&after), read(&base.join(&name)), read(&merged.join(&name)));
        assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>(), "{name}");
        for (key, got) in &new {
            let values = wanted.get(key).unwrap_or(&old[key]);
            require_near(got, values.iter().map(|v| f64::from(*v)), &format!("{name}: {key}"));
        }
    }
    assert_eq!(files(base).into_keys().collect::<Vec<_>>(), files(merged).into_keys().collect::<Vec<_>>());
}

fn run(words: &[&dyn AsRef<OsStr>]) -> Ran {
    program::run(words.iter().map(AsRef::as_ref))
}

/// A pipeline of two components and what belongs to them. The transformer has two matrices of 4 × 4 in each of its
/// blocks, in as many shards as there are blocks.
fn pipeline(folder: &Path, class: &str, blocks: usize) {
    let index = format!(
        r#"{{"_class_name": "P", "scheduler": ["diffusers", "S"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "T"], "transformer": ["diffusers", "{class}"],
            "safety_checker": [null, null], "vae": ["diffusers", "AutoencoderKL"]}}"#
    );
    put(folder, "model_index.json", index);
    put(folder, "scheduler/scheduler_config.json", "{}");
    put(folder, "tokenizer/vocab.json", "{}");
    put(folder, "transformer/config.json", format!(r#"{{"_class_name": "{class}"}}"#));
    put(folder, "text_encoder/config.json", r#"{"model_type": "clip_text_model", "dtype": "float32"}"#);
    put(folder, "vae/config.json", r#"{"_class_name": "AutoencoderKL"}"#);
    transformer(&folder.join("transformer"), blocks);
    let key = "text_model.encoder.layers.0.self_attn.q_proj.weight";
    save(&folder.join("text_encoder/model.safetensors"), StateDict::from_iter([(key.into(), numbers(&[4, 4], 90))]));
    let vae = StateDict::from_iter([("decoder.conv_in.weight".into(), numbers(&[4, 2, 3, 3], 91))]);
    save(&folder.join("vae/diffusion_pytorch_model.safetensors"), vae);
}

fn transformer(folder: &Path, blocks: usize) {
    let mut map = serde_json::Map::new();
    for block in 0..blocks {
        let name = match blocks {
            1 => "diffusion_pytorch_model.safetensors".to_string(),
            _ => format!("diffusion_pytorch_model-{:05}-of-{blocks:05}.safetensors", block + 1),
        };
        let key = |leaf: &str| format!("transformer_blocks.{block}.attn.{leaf}.weight");
        let tensors = [(key("to_q"), numbers(&[4, 4], block)), (key("to_k"), numbers(&[4, 4], block + 50))];
        map.extend(tensors.iter().map(|(key, _)| (key.clone(), name.clone().into())));
        save(&folder.join(&name), tensors.into_iter().collect());
    }
    if blocks > 1 {
        let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        put(folder, "diffusion_pytorch_model.safetensors.index.json", index.to_string());
    }
}

const CLASS: &str = "SD3Transformer2DModel";
const TO_Q: &str = "transformer_blocks.0.attn.to_q";
const Q_PROJ: &str = "text_model.encoder.layers.0.self_attn.q_proj";

/// An adapter of these modules, each 4 × 4.
fn adapter(path: &Path, modules: &[&str]) -> (PathBuf, StateDict) {
    let mut tensors = StateDict::new();
    modules.iter().for_each(|module| pair(&mut tensors, module, 4, PEFT));
    (save(path, tensors.clone()), tensors)
}

#[test]
fn what_diffusers_fuses_is_merged() {
    for name in NAMES {
        let scratch = Scratch::new();
        let (base, adapter, expected) = case(name);
        let merged = scratch.join("merged");
        let ran = program::merge(&base, &adapter, &merged, &["--no-provenance"]).expect(0);
        assert!(!ran.err.contains("matches nothing"), "{}", ran.err);
        require_fused(&merged, (&base, &expected));
        // Nothing is left beside it.
        assert_eq!(program::names(merged.parent().expect("a parent")), ["merged"], "{name}");
    }
}

#[test]
fn kohya_reaches_every_model_of_a_pipeline() {
    for name in ["sdxl", "sd3"] {
        let scratch = Scratch::new();
        let (base, adapter, expected) = case(name);
        let (kohya, merged) = (scratch.join("kohya.safetensors"), scratch.join("merged"));
        run(&[&"convert", &adapter, &"-o", &kohya, &"--to", &"kohya", &"--base", &base]).expect(0);
        let keys = SafetensorsFile::open(&kohya).expect("tensors").tensors;
        for start in ["lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_"] {
            assert!(keys.keys().any(|key| key.starts_with(start)), "{name}: {start}: {:?}", keys.keys());
        }
        program::merge(&base, &kohya, &merged, &["--no-provenance"]).expect(0);
        require_fused(&merged, (&base, &expected));
    }
    // The names of SDXL's authors, which a pipeline does not have.
    let scratch = Scratch::new();
    let (base, ..) = case("sdxl");
    let to_q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
    let module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q";
    let mut tensors = StateDict::new();
    pair(&mut tensors, module, 4, KOHYA);
    pair(&mut tensors, "lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, KOHYA);
    let adapter = save(&scratch.join("adapter.safetensors"), tensors.clone());
    let merged = scratch.join("merged");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let key = format!("{to_q}.weight");
    let (old, new) = (read(&base.join(UNET)), read(&merged.join(UNET)));
    require_near(&new[&key], sum(&old[&key], &tensors, module, KOHYA), &key);
    assert_eq!(files(&base)[SECOND], files(&merged)[SECOND]);
}

#[test]
fn shards_keep_their_names_and_indexes_are_brought_up_to_date() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 2);
    let (of_transformer, tensors) = adapter(&scratch.join("a.safetensors"), &[&format!("transformer.{TO_Q}")]);
    let merged = scratch.join("merged");
    program::merge(&base, &of_transformer, &merged, &[]).expect(0);
    let (old, new) = (files(&base), files(&merged));
    assert_eq!(old.keys().collect::<Vec<_>>(), new.keys().collect::<Vec<_>>());
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let changed = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors";
    let differ: Vec<_> = old.iter().filter(|(name, bytes)| new[*name] != **bytes).map(|(name, _)| name).collect();
    assert_eq!(differ, [changed, index], "all others are copies");
    let text: serde_json::Value = serde_json::from_slice(&new[index]).expect("JSON");
    assert_eq!(text["metadata"]["total_size"], 4 * 4 * 4 * 4);
    assert_eq!(text["weight_map"][format!("{TO_Q}.weight")], changed.rsplit('/').next().expect("a name"));
    assert_eq!(text["weight_map"].as_object().expect("a map").len(), 4);
    let key = format!("{TO_Q}.weight");
    let (before, after) = (read(&base.join(changed)), read(&merged.join(changed)));
    require_near(&after[&key], sum(&before[&key], &tensors, &format!("transformer.{TO_Q}"), PEFT), &key);

    // An adapter of the text encoder leaves the index as it is.
    let (of_text, _) = adapter(&scratch.join("b.safetensors"), &[&format!("text_encoder.{Q_PROJ}")]);
    let merged = scratch.join("other");
    program::merge(&base, &of_text, &merged, &[]).expect(0);
    let differ: Vec<_> = files(&merged).into_iter().filter(|(name, bytes)| old[name] != *bytes).map(|f| f.0).collect();
    assert_eq!(differ, ["text_encoder/model.safetensors"]);
}

#[test]
fn tensors_are_dealt_out_component_by_component() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 1);
    let (adapter, _) =
        adapter(&scratch.join("a.safetensors"), &[&format!("transformer.{TO_Q}"), &format!("text_encoder.{Q_PROJ}")]);
    let (merged, record, back) = (scratch.join("merged"), scratch.join("record"), scratch.join("back"));
    let record_text = record.to_string_lossy().into_owned();
    program::merge(&base, &adapter, &merged, &["--max-shard-size", "100B", "--undo", &record_text]).expect(0);
    let names: Vec<_> = files(&merged).into_keys().filter(|n| n.contains("safetensors")).collect();
    assert_eq!(
        names,
        [
            "text_encoder/model.safetensors",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
            "transformer/diffusion_pytorch_model.safetensors.index.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    run(&[&"verify", &merged, &"--base", &base, &"--adapter", &adapter]).expect(0);
    run(&[&"unmerge", &merged, &"-o", &back, &"--undo", &record]).expect(0);
    assert!(files(&back) == files(&base));

    // One that no adapter changes as well, where its files are too large.
    transformer(&base.join("transformer"), 2);
    std::fs::remove_file(base.join("transformer/diffusion_pytorch_model.safetensors")).expect("removed");
    let (of_text, _) = self::adapter(&scratch.join("b.safetensors"), &[&format!("text_encoder.{Q_PROJ}")]);
    let merged = scratch.join("of-text");
    program::merge(&base, &of_text, &merged, &["--max-shard-size", "100B"]).expect(0);
    let names: Vec<_> = files(&merged).into_keys().filter(|n| n.starts_with("transformer/d")).collect();
    let shard = |n: usize| format!("transformer/diffusion_pytorch_model-{n:05}-of-00004.safetensors");
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json".to_string();
    assert_eq!(names, [shard(1), shard(2), shard(3), shard(4), index]);
    run(&[&"verify", &merged, &"--base", &base, &"--adapter", &of_text]).expect(0);
}

#[test]
fn a_variant_stands_in_only_where_there_is_nothing_else() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 1);
    let (adapter, tensors) = adapter(&scratch.join("a.safetensors"), &[&format!("transformer.{TO_Q}")]);
    let (plain, variant) = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors");
    for component in ["transformer", "vae"] {
        std::fs::copy(base.join(component).join(plain), base.join(component).join(variant)).expect("a copy");
    }
    put(&base, "transformer/diffusion_pytorch_model.safetensors.index.fp16.json", "{}");
    put(&base, "transformer/diffusion_pytorch_model.bin", "old");
    put(&base, "checkpoint.safetensors", "old");
    let (merged, record, back) = (scratch.join("merged"), scratch.join("record"), scratch.join("back"));
    let ran = program::merge(&base, &adapter, &merged, &["--undo", &record.to_string_lossy()]).expect(0);
    // Copies of weights that changed stay behind, one of weights that did not goes along.
    let left = ["checkpoint.safetensors", "transformer/diffusion_pytorch_model.bin"];
    let index = "transformer/diffusion_pytorch_model.safetensors.index.fp16.json";
    for name in left.into_iter().chain([index, &format!("transformer/{variant}")]) {
        assert!(ran.err.contains(&format!("note: {name}: another copy of the base's weights")), "{}", ran.err);
        assert!(!merged.join(name).exists(), "{name}");
    }
    assert!(files(&merged)[&format!("vae/{variant}")] == files(&base)[&format!("vae/{variant}")]);
    run(&[&"unmerge", &merged, &"-o", &back, &"--undo", &record]).expect(0);
    let came_back = files(&back);
    assert!(files(&base).iter().all(|(name, bytes)| !came_back.contains_key(name) || came_back[name] == *bytes));
    assert_eq!(came_back.into_keys().collect::<Vec<_>>(), files(&merged).into_keys().collect::<Vec<_>>());

    // Of the component by itself as well.
    let alone = scratch.join("alone");
    let ran = program::merge(&base.join("transformer"), &adapter, &alone, &[]).expect(0);
    assert!(ran.err.contains(&format!("note: {variant}: another copy of the base's weights")), "{}", ran.err);
    assert_eq!(read(&alone.join(plain)), read(&merged.join("transformer").join(plain)));

    // Alone, it is the base.
    std::fs::remove_file(base.join("transformer").join(plain)).expect("removed");
    std::fs::remove_file(base.join(index)).expect("removed");
    let merged = scratch.join("of-variant");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let name = format!("transformer/{variant}");
    let (old, new) = (read(&base.join(&name)), read(&merged.join(&name)));
    let key = format!("{TO_Q}.weight");
    require_near(&new[&key], sum(&old[&key], &tensors, &format!("transformer.{TO_Q}"), PEFT), &key);
    assert!(!merged.join("transformer").join(plain).exists());
    // Of two nobody knows which.
    std::fs::copy(base.join(&name), base.join("transformer/diffusion_pytorch_model.bf16.safetensors")).expect("a copy");
    let ran = program::merge(&base, &adapter, &scratch.join("none"), &[]).expect(1);
    assert!(ran.err.contains("the variants bf16, fp16, and none without a variant"), "{}", ran.err);
}

#[test]
fn a_record_gives_every_file_back() {
    for name in NAMES {
        let scratch = Scratch::new();
        let (base, adapter, _) = case(name);
        for (number, options) in [&[][..], &["--dtype", "bf16"], &["--max-shard-size", "200B"]].iter().enumerate() {
            let at = |word: &str| scratch.join(&format!("{word}-{number}"));
            let (merged, record, back) = (at("merged"), at("record"), at("back"));
            let record_text = record.to_string_lossy().into_owned();
            let options: Vec<_> = options.iter().copied().chain(["--undo", &record_text]).collect();
            program::merge(&base, &adapter, &merged, &options).expect(0);
            run(&[&"unmerge", &merged, &"-o", &back, &"--undo", &record]).expect(0);
            assert!(files(&back) == files(&base), "{name}: {options:?}");
            // The same from the pair.
            let (record, back) = (at("of-pair"), at("back-of-pair"));
            run(&[&"undo-record", &base, &merged, &"-o", &record, &"--adapter", &adapter]).expect(0);
            run(&[&"unmerge", &merged, &"-o", &back, &"--undo", &record]).expect(0);
            assert!(files(&back) == files(&base), "{name}: {options:?}");
        }
    }
}

#[test]
fn one_of_several_adapters_comes_out_by_the_record() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 1);
    let (one, _) = adapter(&scratch.join("one.safetensors"), &[&format!("transformer.{TO_Q}")]);
    let (two, _) = adapter(&scratch.join("two.safetensors"), &[&format!("text_encoder.{Q_PROJ}")]);
    let (both, record) = (scratch.join("both"), scratch.join("record"));
    run(&[&"merge", &base, &one, &two, &"-o", &both, &"--undo", &record]).expect(0);
    let (only, out) = (scratch.join("only"), scratch.join("out"));
    program::merge(&base, &two, &only, &[]).expect(0);
    run(&[&"unmerge", &both, &"-o", &out, &"--undo", &record, &"--adapter", &"one.safetensors"]).expect(0);
    assert!(files(&out) == files(&only));
}

#[test]
fn an_adapter_comes_out_without_a_record() {
    for name in NAMES {
        let scratch = Scratch::new();
        let (base, adapter, _) = case(name);
        let (merged, back) = (scratch.join("merged"), scratch.join("back"));
        program::merge(&base, &adapter, &merged, &["--dtype", "bf16"]).expect(0);
        run(&[&"unmerge", &merged, &"-o", &back, &"--adapter", &adapter, &"--base", &base]).expect(0);
        assert!(files(&back).get("text_encoder/config.json") == files(&base).get("text_encoder/config.json"));
        assert!(files(&back)[SECOND] == files(&base)[SECOND] || name == "flux", "{name}");

        let (merged, back) = (scratch.join("merged-f32"), scratch.join("back-f32"));
        program::merge(&base, &adapter, &merged, &[]).expect(0);
        run(&[&"unmerge", &merged, &"-o", &back, &"--adapter", &adapter]).expect(0);
        let (was, is) = (files(&base), files(&back));
        assert_eq!(was.keys().collect::<Vec<_>>(), is.keys().collect::<Vec<_>>(), "{name}");
        for file in was.keys().filter(|file| file.ends_with(".safetensors")) {
            let (was, is) = (read(&base.join(file)), read(&back.join(file)));
            for (key, values) in &was {
                require_near(&is[key], values.iter().map(|v| f64::from(*v)), &format!("{name}: {file}: {key}"));
            }
        }
    }
}

#[test]
fn a_merged_pipeline_is_verified_and_compared() {
    let scratch = Scratch::new();
    let (base, adapter, _) = case("sdxl");
    let merged = scratch.join("merged");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let ran = run(&[&"verify", &merged, &"--base", &base, &"--adapter", &adapter]).expect(0);
    assert!(ran.out.contains("the correctly rounded merge"), "{}", ran.out);
    let ran = run(&[&"compare", &base, &merged]).expect(0);
    assert!(ran.out.contains("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.weight"), "{}", ran.out);
    // One text encoder was not merged.
    std::fs::copy(base.join(SECOND), merged.join(SECOND)).expect("a copy");
    let ran = run(&[&"verify", &merged, &"--base", &base, &"--adapter", &adapter]);
    assert_ne!(ran.code, Some(0), "{}", ran.out);
}

#[test]
fn what_differs_becomes_one_adapter() {
    for name in NAMES {
        let scratch = Scratch::new();
        let (base, adapter, _) = case(name);
        let tuned = scratch.join("tuned");
        program::merge(&base, &adapter, &tuned, &["--no-provenance"]).expect(0);
        for (number, options) in [&[][..], &["--to", "kohya"]].into_iter().enumerate() {
            let at = |word: &str| scratch.join(&format!("{word}-{number}"));
            let (out, again) = (at("extracted"), at("again"));
            let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"extract", &base, &tuned, &"-o", &out, &"--rank", &"4"];
            words.extend(options.iter().map(|word| word as &dyn AsRef<OsStr>));
            run(&words).expect(0);
            let keys = SafetensorsFile::open(&out).expect("tensors").tensors;
            let start = if options.is_empty() { "text_encoder.text_model.encoder." } else { "lora_te" };
            assert!(keys.keys().any(|key| key.starts_with(start)), "{name}: {:?}", keys.keys());
            program::merge(&base, &out, &again, &["--no-provenance"]).expect(0);
            require_same_values(&again, &tuned, name);
        }
        // PEFT's layout is of one model.
        let peft = scratch.join("peft");
        let ran = run(&[&"extract", &base, &tuned, &"-o", &peft, &"--to", &"peft"]).expect(1);
        assert!(ran.err.contains("changes of several models of a pipeline"), "{}", ran.err);
        run(&[&"extract", &base, &tuned, &"-o", &peft, &"--to", &"peft", &"--include", &"^text_encoder[.]"]).expect(0);
        let keys = SafetensorsFile::open(&peft.join("adapter_model.safetensors")).expect("tensors").tensors;
        assert!(keys.contains_key("base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"));
    }
}

fn require_same_values(got: &Path, wanted: &Path, what: &str) {
    for file in files(wanted).into_keys().filter(|file| file.ends_with(".safetensors")) {
        let (got, wanted) = (read(&got.join(&file)), read(&wanted.join(&file)));
        for (key, values) in &wanted {
            require_near(&got[key], values.iter().map(|v| f64::from(*v)), &format!("{what}: {file}: {key}"));
        }
    }
}

#[test]
fn pipelines_of_other_components_are_told_apart() {
    let scratch = Scratch::new();
    let (base, adapter, _) = case("sd3");
    let tuned = scratch.join("tuned");
    program::merge(&base, &adapter, &tuned, &[]).expect(0);
    let index = std::fs::read_to_string(tuned.join("model_index.json")).expect("an index");
    let mut index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    index["text_encoder_3"] = serde_json::json!([null, null]);
    put(&tuned, "model_index.json", index.to_string());
    let out = scratch.join("out.safetensors");
    let ran = run(&[&"extract", &base, &tuned, &"-o", &out]).expect(1);
    assert!(ran.err.contains("no weights of the component text_encoder_3"), "{}", ran.err);
    run(&[&"extract", &base, &tuned, &"-o", &out, &"--exclude", &"^text_encoder_3[.]"]).expect(0);
    let ran = run(&[&"extract", &base.join("transformer"), &tuned, &"-o", &scratch.join("none")]).expect(1);
    assert!(ran.err.contains("a model by itself"), "{}", ran.err);
}

#[test]
fn an_adapter_of_one_transformer_leaves_the_other() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, "WanTransformer3DModel", 1);
    let index = std::fs::read_to_string(base.join("model_index.json")).expect("an index");
    let two = r#""transformer_2": ["diffusers", "WanTransformer3DModel"], "vae""#;
    put(&base, "model_index.json", index.replace(r#""vae""#, two));
    copy(&base.join("transformer"), &base.join("transformer_2"));
    let name = |part: &str| format!("{part}/diffusion_pytorch_model.safetensors");
    for (given, other) in [("transformer", "transformer_2"), ("transformer_2", "transformer")] {
        let (adapter, tensors) = adapter(&scratch.join(&format!("{given}.safetensors")), &[&format!("{given}.{TO_Q}")]);
        let merged = scratch.join(&format!("merged-{given}"));
        let ran = program::merge(&base, &adapter, &merged, &[]).expect(0);
        assert!(ran.err.contains(&format!("{other} stays as it is")), "{}", ran.err);
        assert!(files(&base)[&name(other)] == files(&merged)[&name(other)]);
        let key = format!("{TO_Q}.weight");
        let (old, new) = (read(&base.join(name(given))), read(&merged.join(name(given))));
        require_near(&new[&key], sum(&old[&key], &tensors, &format!("{given}.{TO_Q}"), PEFT), given);
    }
    let paths = ["transformer", "transformer_2"].map(|part| format!("{part}.{TO_Q}"));
    let (both, _) = adapter(&scratch.join("both.safetensors"), &paths.each_ref().map(String::as_str));
    let tuned = scratch.join("merged-both");
    let ran = program::merge(&base, &both, &tuned, &[]).expect(0);
    assert!(!ran.err.contains("stays as it is"), "{}", ran.err);

    // Both come out again; kohya's files know one of them, whichever it is.
    let (out, again) = (scratch.join("extracted"), scratch.join("again"));
    run(&[&"extract", &base, &tuned, &"-o", &out, &"--rank", &"2"]).expect(0);
    program::merge(&base, &out, &again, &[]).expect(0);
    require_same_values(&again, &tuned, "both");
    let ran = run(&[&"extract", &base, &tuned, &"-o", &scratch.join("none"), &"--to", &"kohya"]).expect(1);
    assert!(ran.err.contains("changes of transformer_2, for which kohya has no word"), "{}", ran.err);
}

#[test]
fn both_spellings_of_clip_are_found() {
    for on_disk in [Q_PROJ, "encoder.layers.0.self_attn.q_proj"] {
        for in_adapter in [Q_PROJ, "encoder.layers.0.self_attn.q_proj"] {
            let scratch = Scratch::new();
            let base = scratch.join("base");
            pipeline(&base, CLASS, 1);
            let (file, key) = ("text_encoder/model.safetensors", format!("{on_disk}.weight"));
            save(&base.join(file), StateDict::from_iter([(key.clone(), numbers(&[4, 4], 90))]));
            let module = format!("text_encoder.{in_adapter}");
            let (adapter, tensors) = adapter(&scratch.join("a.safetensors"), &[&module]);
            for (number, base) in [base.clone(), base.join("text_encoder")].into_iter().enumerate() {
                let merged = scratch.join(&format!("merged-{number}"));
                program::merge(&base, &adapter, &merged, &[]).expect(0);
                let inside = if number == 0 { file } else { "model.safetensors" };
                let (old, new) = (read(&base.join(inside)), read(&merged.join(inside)));
                require_near(&new[&key], sum(&old[&key], &tensors, &module, PEFT), &key);
            }
        }
    }
}

#[test]
fn an_adapter_that_names_no_component_is_that_of_the_only_one_it_fits() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 1);
    let folder = scratch.join("adapter");
    put(
        &folder,
        "adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q"]}"#,
    );
    let module = format!("base_model.model.{TO_Q}");
    let (_, tensors) = adapter(&folder.join("adapter_model.safetensors"), &[&module]);
    let merged = scratch.join("merged");
    let ran = program::merge(&base, &folder, &merged, &[]).expect(0);
    assert!(ran.err.contains(&format!("found in the base as `transformer.{TO_Q}.weight`")), "{}", ran.err);
    let (file, key) = ("transformer/diffusion_pytorch_model.safetensors", format!("{TO_Q}.weight"));
    let (old, new) = (read(&base.join(file)), read(&merged.join(file)));
    require_near(&new[&key], sum(&old[&key], &tensors, &module, PEFT), &key);
}

#[test]
fn an_adapter_made_for_a_component_alone_is_for_its_pipeline() {
    let scratch = Scratch::new();
    let (base, adapter, _) = case("sdxl");
    let tuned = scratch.join("tuned");
    program::merge(&base, &adapter, &tuned, &["--no-provenance"]).expect(0);
    let (of_unet, merged) = (scratch.join("of-unet"), scratch.join("merged"));
    run(&[&"extract", &base.join("unet"), &tuned.join("unet"), &"-o", &of_unet, &"--to", &"diffusers"]).expect(0);
    let ran = program::merge(&base, &of_unet, &merged, &[]).expect(0);
    assert!(ran.err.contains("made for the unet of this pipeline"), "{}", ran.err);
    let ran = program::merge(&case("flux").0, &of_unet, &scratch.join("none"), &["--allow-unmatched"]).expect(1);
    assert!(ran.err.contains("made for another base"), "{}", ran.err);
}

#[test]
fn a_denoiser_of_an_unknown_class_is_one_by_its_name() {
    let scratch = Scratch::new();
    let (base, tuned) = (scratch.join("base"), scratch.join("tuned"));
    pipeline(&base, "NextYearsTransformer2DModel", 2);
    let module = format!("transformer.{TO_Q}");
    let (given, _) = adapter(&scratch.join("a.safetensors"), &[&module, &format!("text_encoder.{Q_PROJ}")]);
    program::merge(&base, &given, &tuned, &[]).expect(0);
    let (out, again, back) = (scratch.join("out"), scratch.join("again"), scratch.join("back"));
    run(&[&"extract", &base, &tuned, &"-o", &out, &"--rank", &"2"]).expect(0);
    program::merge(&base, &out, &again, &[]).expect(0);
    require_same_values(&again, &tuned, "again");
    // With the base at hand what was not changed is copied, indexes too.
    let (of_text, _) = adapter(&scratch.join("b.safetensors"), &[&format!("text_encoder.{Q_PROJ}")]);
    let merged = scratch.join("merged");
    program::merge(&base, &of_text, &merged, &[]).expect(0);
    run(&[&"unmerge", &merged, &"-o", &back, &"--adapter", &of_text, &"--base", &base]).expect(0);
    assert!(files(&back) == files(&base));
    // But those of what was cast are made anew.
    let (merged, back) = (scratch.join("cast"), scratch.join("cast-back"));
    program::merge(&base, &of_text, &merged, &["--dtype", "bf16"]).expect(0);
    run(&[&"unmerge", &merged, &"-o", &back, &"--adapter", &of_text, &"--base", &base]).expect(0);
    let index = "transformer/diffusion_pytorch_model.safetensors.index.json";
    let total = |folder: &Path| {
        let text = std::fs::read_to_string(folder.join(index)).expect("an index");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["metadata"]["total_size"].clone()
    };
    assert_eq!((total(&merged), total(&back)), (128.into(), 256.into()));
}

#[test]
fn a_pipeline_says_what_it_is() {
    let (base, ..) = case("sdxl");
    let ran = run(&[&"inspect", &base]).expect(0);
    assert!(ran.out.contains("pipeline    StableDiffusionXLPipeline"), "{}", ran.out);
    assert!(ran.out.contains("component   text_encoder_2 CLIPTextModelWithProjection: 2 tensors"), "{}", ran.out);
    assert!(ran.out.contains("component   tokenizer CLIPTokenizer\n"), "{}", ran.out);
    let document = run(&[&"inspect", &base, &"--json"]).expect(0).json();
    assert_eq!(document["components"].as_array().expect("a list").len(), 7);
    let ran = run(&[&"inspect", &base, &"--keys"]).expect(0);
    assert!(ran.out.contains("vae.decoder.conv_in.bias"), "{}", ran.out);
}

#[test]
fn what_is_no_whole_pipeline_is_refused() {
    let scratch = Scratch::new();
    let (adapter, _) = adapter(&scratch.join("a.safetensors"), &[&format!("transformer.{TO_Q}")]);
    let index = |name: &str| format!(r#"{{"_class_name": "P", "{name}": ["diffusers", "{CLASS}"]}}"#);
    let shards = |name: &str| format!(r#"{{"weight_map": {{"a.weight": "{name}"}}}}"#);
    let sharded = "transformer/diffusion_pytorch_model.safetensors.index.json";
    for (number, (file, text, says)) in [
        ("model_index.json", "no JSON".to_string(), "not valid JSON"),
        ("model_index.json", "{}".to_string(), "none of its components has a safetensors file"),
        ("model_index.json", index("../x"), "component `../x`, expected the plain name of a folder"),
        ("model_index.json", index("/etc"), "component `/etc`, expected the plain name of a folder"),
        ("model_index.json", index(".."), "component `..`, expected the plain name of a folder"),
        ("model_index.json", index("unet"), "named by model_index.json, but not in the folder"),
        ("transformer/config.json", "[]".to_string(), "expected a JSON object"),
        (sharded, shards("../vae/x.safetensors"), "shard name `../vae/x.safetensors`"),
        (sharded, shards("gone.safetensors"), "but not in the folder"),
    ]
    .into_iter()
    .enumerate()
    {
        let base = scratch.join(&format!("base-{number}"));
        pipeline(&base, CLASS, 1);
        put(&base, file, text);
        let out = scratch.join("out");
        let ran = program::merge(&base, &adapter, &out, &[]).expect(1);
        assert!(ran.err.contains(says), "{file}: {}", ran.err);
        assert!(!out.exists());
    }
    // Weights in another format can be left alone, not merged into.
    let base = scratch.join("pickled");
    pipeline(&base, CLASS, 1);
    std::fs::remove_file(base.join("text_encoder/model.safetensors")).expect("removed");
    put(&base, "text_encoder/pytorch_model.bin", "weights");
    let merged = scratch.join("merged");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    assert_eq!(files(&merged)["text_encoder/pytorch_model.bin"], b"weights");
    let (of_text, _) = self::adapter(&scratch.join("b.safetensors"), &[&format!("text_encoder.{Q_PROJ}")]);
    let ran = program::merge(&base, &of_text, &scratch.join("none"), &[]).expect(1);
    assert!(ran.err.contains("the weights of text_encoder are in no safetensors file"), "{}", ran.err);
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let scratch = Scratch::new();
    let base = scratch.join("base");
    pipeline(&base, CLASS, 2);
    // The second block overflows while it is merged, when the first may be written.
    let module = "transformer.transformer_blocks.1.attn.to_q";
    let mut tensors = StateDict::new();
    pair(&mut tensors, &format!("transformer.{TO_Q}"), 4, PEFT);
    for name in PEFT {
        let shape = if name == PEFT[0] { [2, 4] } else { [4, 2] };
        tensors.insert(format!("{module}.{name}"), Tensor::from_f32(Dtype::F32, shape, &[1e30; 8]).expect("floats"));
    }
    let adapter = save(&scratch.join("a.safetensors"), tensors);
    let (out, record) = (scratch.join("out"), scratch.join("record"));
    program::merge(&base, &adapter, &out, &["--undo", &record.to_string_lossy()]).expect(1);
    assert_eq!(program::names(base.parent().expect("a parent")), ["a.safetensors", "base"]);
}

#[test]
fn force_replaces_a_pipeline_and_no_folder_that_only_looks_like_one() {
    let scratch = Scratch::new();
    let (base, adapter, _) = case("flux");
    let out = scratch.join("out");
    run(&[&"merge", &base, &adapter, &"-o", &out]).expect(0);
    let first = files(&out);
    run(&[&"merge", &base, &adapter, &"-o", &out]).expect(1);
    run(&[&"merge", &base, &adapter, &"-o", &out, &"--force"]).expect(0);
    assert!(files(&out) == first);
    let notes = scratch.join("notes");
    put(&notes, "model_index.json", "{}");
    put(&notes, "texts/a.txt", "a");
    run(&[&"merge", &base, &adapter, &"-o", &notes, &"--force"]).expect(1);
    assert_eq!(files(&notes).len(), 2);
}
