//! Adapters of image models in the names of their authors and of diffusers, against both sorts of base.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use lora_tool::container::SafetensorsFile;
use lora_tool::layout::{self, Layout};
use lora_tool::names::diffusion::{Container, Ending, Extent, Kind, Module, Naming, Part, family};
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{self, Scratch, file};
use crate::program;

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<_> = (0..count).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 64.0 - 1.6).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
}

fn read(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let opened = SafetensorsFile::open(path).expect("tensors");
    opened.tensors.iter().map(|(key, t)| (key.clone(), t.to_f32().expect("floats"))).collect()
}

/// Width of the tiny transformer.
const D: usize = 8;

/// A Flux base as its authors have it: fused projections, of one double and one single block.
fn native_base() -> StateDict {
    [
        ("double_blocks.0.img_attn.qkv.weight", vec![3 * D, D]),
        ("double_blocks.0.txt_attn.qkv.weight", vec![3 * D, D]),
        ("double_blocks.0.img_attn.proj.weight", vec![D, D]),
        ("single_blocks.0.linear1.weight", vec![7 * D, D]),
        ("single_blocks.0.linear2.weight", vec![D, 5 * D]),
        ("final_layer.linear.weight", vec![4, D]),
        ("final_layer.adaLN_modulation.1.weight", vec![2 * D, D]),
    ]
    .into_iter()
    .enumerate()
    .map(|(seed, (key, shape))| (key.to_string(), numbers(&shape, seed)))
    .collect()
}

/// Factors for one module.
fn pair(tensors: &mut StateDict, key: &str, (outputs, inputs): (usize, usize), rank: usize, names: [&str; 2]) {
    let seed = tensors.len() + 3;
    tensors.insert(format!("{key}.{}", names[0]), numbers(&[rank, inputs], seed));
    tensors.insert(format!("{key}.{}", names[1]), numbers(&[outputs, rank], seed + 1));
}

const KOHYA: [&str; 2] = ["lora_down.weight", "lora_up.weight"];
const PEFT: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

fn product(tensors: &StateDict, key: &str, names: [&str; 2]) -> Vec<f64> {
    let (a, b) = (&tensors[&format!("{key}.{}", names[0])], &tensors[&format!("{key}.{}", names[1])]);
    let ((rank, inputs), outputs) = (a.shape.matrix(), b.shape.matrix().0);
    let (a, b) = (a.to_f32().expect("A"), b.to_f32().expect("B"));
    let entry =
        |i: usize, j: usize| (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * inputs + j])).sum::<f64>();
    (0..outputs).flat_map(|i| (0..inputs).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn require_sum(base: &[f32], change: &[f64], merged: &[f32], what: &str) {
    assert_eq!((base.len(), change.len()), (merged.len(), merged.len()), "{what}");
    for ((old, change), new) in base.iter().zip(change).zip(merged) {
        let wanted = f64::from(*old) + change;
        assert!((wanted - f64::from(*new)).abs() <= 1e-5 * wanted.abs().max(1.0), "{what}: {wanted} against {new}");
    }
}

#[test]
fn fused_factors_of_flux_reach_a_checkpoint_and_a_folder_of_diffusers_alike() {
    let scratch = Scratch::new();
    let base = file(&scratch.join("flux.safetensors"), native_base());
    let mut tensors = StateDict::new();
    pair(&mut tensors, "lora_unet_double_blocks_0_img_attn_qkv", (3 * D, D), 2, KOHYA);
    pair(&mut tensors, "lora_unet_single_blocks_0_linear1", (7 * D, D), 2, KOHYA);
    pair(&mut tensors, "lora_unet_single_blocks_0_linear2", (D, 5 * D), 2, KOHYA);
    let adapter = file(&scratch.join("adapter.safetensors"), tensors.clone());

    let merged = scratch.join("merged.safetensors");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let (old, new) = (read(&base), read(&merged));
    for (name, key) in [
        ("lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv.weight"),
        ("lora_unet_single_blocks_0_linear1", "single_blocks.0.linear1.weight"),
        ("lora_unet_single_blocks_0_linear2", "single_blocks.0.linear2.weight"),
    ] {
        require_sum(&old[key], &product(&tensors, name, KOHYA), &new[key], key);
    }
    assert_eq!(old["double_blocks.0.txt_attn.qkv.weight"], new["double_blocks.0.txt_attn.qkv.weight"]);

    // To diffusers, where the projections are apart, and back: the same bytes.
    let there = scratch.join("diffusers.safetensors");
    let convert = |from: &Path, to: &str, out: &Path| {
        program::run([
            "convert".as_ref(),
            from.as_os_str(),
            "-o".as_ref(),
            out.as_os_str(),
            "--to".as_ref(),
            to.as_ref(),
        ])
        .expect(0)
    };
    convert(&adapter, "diffusers", &there);
    let split = SafetensorsFile::open(&there).expect("tensors").tensors;
    let part = "transformer.single_transformer_blocks.0.proj_mlp";
    let rows = product(&tensors, "lora_unet_single_blocks_0_linear1", KOHYA)[3 * D * D..].to_vec();
    assert_eq!(product(&split, part, PEFT), rows);
    assert!(split.contains_key("transformer.transformer_blocks.0.attn.to_k.lora_B.weight"), "{:?}", split.keys());
    let back = scratch.join("back.safetensors");
    convert(&there, "kohya", &back);
    let again = SafetensorsFile::open(&back).expect("tensors").tensors;
    for (key, tensor) in &tensors {
        assert!(again.get(key) == Some(tensor), "{key}: {:?}", again.keys());
    }

    // The adapter in diffusers' names merges into the authors' checkpoint to the same bytes.
    let other = scratch.join("other.safetensors");
    program::merge(&base, &there, &other, &[]).expect(0);
    assert_eq!(read(&other), new);
}

#[test]
fn parts_of_their_own_are_put_together_for_a_checkpoint() {
    let scratch = Scratch::new();
    let base = file(&scratch.join("flux.safetensors"), native_base());
    let mut tensors = StateDict::new();
    let single = "transformer.single_transformer_blocks.0";
    pair(&mut tensors, &format!("{single}.attn.to_q"), (D, D), 2, PEFT);
    pair(&mut tensors, &format!("{single}.attn.to_v"), (D, D), 3, PEFT);
    pair(&mut tensors, &format!("{single}.proj_out"), (D, 5 * D), 2, PEFT);
    // Halves of the last modulation have changed places between the two.
    pair(&mut tensors, "transformer.norm_out.linear", (2 * D, D), 2, PEFT);
    let adapter = file(&scratch.join("adapter.safetensors"), tensors.clone());
    let merged = scratch.join("merged.safetensors");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let (old, new) = (read(&base), read(&merged));
    let zeros = |rows: usize| vec![0.0; rows * D];
    let q = product(&tensors, &format!("{single}.attn.to_q"), PEFT);
    let v = product(&tensors, &format!("{single}.attn.to_v"), PEFT);
    let change = [q, zeros(D), v, zeros(4 * D)].concat();
    let key = "single_blocks.0.linear1.weight";
    require_sum(&old[key], &change, &new[key], key);
    let key = "final_layer.adaLN_modulation.1.weight";
    let change = product(&tensors, "transformer.norm_out.linear", PEFT);
    let (first, second) = change.split_at(D * D);
    require_sum(&old[key], &[second, first].concat(), &new[key], key);

    // The record holds or names the adapter as its file has it, and both find the way back.
    for embed in ["always", "never"] {
        let at = |name: &str| scratch.join(&format!("{embed}-{name}"));
        let (record, back) = (at("record"), at("back.safetensors"));
        let options = ["--undo", &record.to_string_lossy(), "--undo-embed", embed];
        program::merge(&base, &adapter, &at("merged.safetensors"), &options).expect(0);
        let merged = at("merged.safetensors");
        let undo = ["unmerge".as_ref(), merged.as_os_str(), "--undo".as_ref(), record.as_os_str()];
        program::run(undo.into_iter().chain(["-o".as_ref(), back.as_os_str()])).expect(0);
        assert!(std::fs::read(&back).expect("back") == std::fs::read(&base).expect("base"), "{embed}");
    }
}

#[test]
fn sdxl_has_its_text_encoders_in_the_checkpoint() {
    let scratch = Scratch::new();
    let te2 = "conditioner.embedders.1.model.transformer.resblocks.0";
    let base: StateDict = [
        ("model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight", vec![D, D]),
        ("model.diffusion_model.input_blocks.4.1.proj_in.weight", vec![D, D]),
        ("conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight", vec![D, D]),
        (&format!("{te2}.attn.in_proj_weight"), vec![3 * D, D]),
        (&format!("{te2}.mlp.c_fc.weight"), vec![4 * D, D]),
        ("first_stage_model.decoder.conv_in.weight", vec![4, 4, 3, 3]),
    ]
    .into_iter()
    .enumerate()
    .map(|(seed, (key, shape))| (key.to_string(), numbers(&shape, seed)))
    .collect();
    let base = file(&scratch.join("sdxl.safetensors"), base);
    let unet = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q";
    let (te1_q, te2_k) = (
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_k_proj",
    );
    let fc1 = "lora_te2_text_model_encoder_layers_0_mlp_fc1";
    let mut tensors = StateDict::new();
    for name in [unet, te1_q, te2_k] {
        pair(&mut tensors, name, (D, D), 2, KOHYA);
    }
    pair(&mut tensors, fc1, (4 * D, D), 2, KOHYA);
    let adapter = file(&scratch.join("adapter.safetensors"), tensors.clone());
    let merged = scratch.join("merged.safetensors");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let (old, new) = (read(&base), read(&merged));
    let key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight";
    require_sum(&old[key], &product(&tensors, unet, KOHYA), &new[key], key);
    let key = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight";
    require_sum(&old[key], &product(&tensors, te1_q, KOHYA), &new[key], key);
    let key = format!("{te2}.attn.in_proj_weight");
    let zeros = vec![0.0; D * D];
    require_sum(&old[&key], &[zeros.clone(), product(&tensors, te2_k, KOHYA), zeros].concat(), &new[&key], &key);
    let key = format!("{te2}.mlp.c_fc.weight");
    require_sum(&old[&key], &product(&tensors, fc1, KOHYA), &new[&key], &key);
    let key = "first_stage_model.decoder.conv_in.weight";
    assert_eq!(old[key], new[key]);
    // And it comes out again.
    let undone = scratch.join("undone.safetensors");
    let record = scratch.join("record.undo");
    let record_text = record.to_string_lossy().into_owned();
    let again = scratch.join("again.safetensors");
    program::merge(&base, &adapter, &again, &["--undo", &record_text]).expect(0);
    program::run([
        "unmerge".as_ref(),
        again.as_os_str(),
        "-o".as_ref(),
        undone.as_os_str(),
        "--undo".as_ref(),
        record.as_os_str(),
    ])
    .expect(0);
    assert!(std::fs::read(&undone).expect("a file") == std::fs::read(&base).expect("a file"));
}

#[test]
fn a_u_net_of_diffusers_goes_to_kohya_and_back() {
    for name in ["plain", "convolutions", "scaled"] {
        let scratch = Scratch::new();
        let given = layout::open(&fixtures::root().join("adapters/diffusers").join(name), None).expect("an adapter");
        assert!(given.adapter.spelling.is_some(), "{name}");
        let kohya = layout::named("kohya").expect("kohya");
        let diffusers: &dyn Layout = layout::named("diffusers").expect("diffusers");
        let (draft, _) = kohya.write(&given.adapter).expect("a draft");
        assert!(draft.tensors.keys().all(|key| key.starts_with("lora_unet_")), "{:?}", draft.tensors.keys());
        let path = scratch.join("kohya.safetensors");
        layout::save(&draft, &path, &[], false, false).expect("saved");
        let there = layout::open(&path, None).expect("an adapter");
        assert_eq!((there.layout, there.adapter.targets.len()), ("kohya", given.adapter.targets.len()));
        let (back, _) = diffusers.write(&there.adapter).expect("a draft");
        for (key, tensor) in &given.source.tensors {
            assert!(back.tensors.get(key) == Some(tensor), "{name}: {key}");
        }
    }
}

#[test]
fn flat_and_dotted_names_are_the_same_adapter() {
    let scratch = Scratch::new();
    let base = file(&scratch.join("flux.safetensors"), native_base());
    let mut tensors = StateDict::new();
    pair(&mut tensors, "lora_unet_double_blocks_0_img_attn_qkv", (3 * D, D), 2, KOHYA);
    pair(&mut tensors, "lora_unet_single_blocks_0_linear2", (D, 5 * D), 2, KOHYA);
    let flat = file(&scratch.join("flat.safetensors"), tensors.clone());
    let dotted = scratch.join("dotted.safetensors");
    let convert = |from: &Path, to: &str, out: &Path| {
        let words =
            ["convert".as_ref(), from.as_os_str(), "-o".as_ref(), out.as_os_str(), "--to".as_ref(), to.as_ref()];
        program::run(words).expect(0)
    };
    convert(&flat, "comfyui", &dotted);
    let written = SafetensorsFile::open(&dotted).expect("tensors").tensors;
    let key = "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight";
    assert!(
        written.get(key) == tensors.get("lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"),
        "{:?}",
        written.keys()
    );
    // ai-toolkit's words for the same.
    let peft: StateDict = written
        .iter()
        .filter(|(key, _)| !key.ends_with(".alpha"))
        .map(|(key, t)| (key.replace("lora_down", "lora_A").replace("lora_up", "lora_B"), t.clone()))
        .collect();
    let peft = file(&scratch.join("peft.safetensors"), peft);
    let mut merged = Vec::new();
    for (number, adapter) in [&flat, &dotted, &peft].into_iter().enumerate() {
        let out = scratch.join(&format!("merged-{number}.safetensors"));
        program::merge(&base, adapter, &out, &[]).expect(0);
        merged.push(read(&out));
    }
    assert!(merged[0] == merged[1] && merged[0] == merged[2]);
    for (number, from) in [&dotted, &peft].into_iter().enumerate() {
        let back = scratch.join(&format!("back-{number}.safetensors"));
        convert(from, "kohya", &back);
        let again = SafetensorsFile::open(&back).expect("tensors").tensors;
        for (key, tensor) in &tensors {
            assert!(again.get(key) == Some(tensor), "{key}: {:?}", again.keys());
        }
    }
}

#[test]
fn a_text_encoder_of_a_pipeline_is_known_by_its_sizes() {
    let scratch = Scratch::new();
    let inner = "text_model.encoder.layers.0.self_attn.q_proj";
    let key = format!("{inner}.weight");
    let model = |name: &str, width: usize| {
        let folder = scratch.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let tensors = [(key.clone(), numbers(&[width, width], width))];
        file(&folder.join("model.safetensors"), tensors.into_iter().collect());
        std::fs::write(folder.join("config.json"), r#"{"model_type": "clip_text_model"}"#).expect("a config");
        folder
    };
    let mut tensors = StateDict::new();
    pair(&mut tensors, "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", (8, 8), 2, PEFT);
    pair(&mut tensors, &format!("text_encoder.{inner}"), (4, 4), 2, PEFT);
    pair(&mut tensors, &format!("text_encoder_2.{inner}"), (6, 6), 2, PEFT);
    let adapter = file(&scratch.join("adapter.safetensors"), tensors.clone());
    for (name, width) in [("text_encoder", 4), ("text_encoder_2", 6)] {
        // The folder's name says nothing.
        let base = model(&format!("model-{width}"), width);
        let (merged, record) = (scratch.join(&format!("merged-{width}")), scratch.join(&format!("record-{width}")));
        let options = ["--allow-unmatched", "--undo", &record.to_string_lossy()];
        let ran = program::merge(&base, &adapter, &merged, &options).expect(0);
        assert!(ran.err.contains(&format!("the pipeline's {name}, ")), "{}", ran.err);
        let (old, new) = (read(&base.join("model.safetensors")), read(&merged.join("model.safetensors")));
        require_sum(&old[&key], &product(&tensors, &format!("{name}.{inner}"), PEFT), &new[&key], name);
        let back = scratch.join(&format!("back-{width}"));
        let undo = ["unmerge".as_ref(), merged.as_os_str(), "--undo".as_ref(), record.as_os_str()];
        program::run(undo.into_iter().chain(["-o".as_ref(), back.as_os_str()])).expect(0);
        assert_eq!(read(&back.join("model.safetensors")), old);
    }
    // One of neither size has none of the modules, and with two of one size nobody knows.
    let ran = program::merge(&model("model-5", 5), &adapter, &scratch.join("none"), &["--allow-unmatched"]).expect(1);
    assert!(ran.err.contains("match nothing in the base"), "{}", ran.err);
    pair(&mut tensors, &format!("text_encoder_2.{inner}"), (4, 4), 2, PEFT);
    let adapter = file(&scratch.join("ambiguous.safetensors"), tensors);
    let base = scratch.join("model-4");
    let ran = program::merge(&base, &adapter, &scratch.join("none"), &["--allow-unmatched"]).expect(1);
    assert!(ran.err.contains("match nothing in the base"), "{}", ran.err);
}

#[test]
fn an_extracted_adapter_has_the_names_of_its_layout() {
    let scratch = Scratch::new();
    let extract = |base: &Path, tuned: &Path, to: &str, out: &Path| {
        let paths = ["extract".as_ref(), base.as_os_str(), tuned.as_os_str(), "-o".as_ref(), out.as_os_str()];
        let options = ["--rank", "2", "--to", to].map(AsRef::as_ref);
        program::run(paths.into_iter().chain(options)).expect(0)
    };
    // A U-Net alone: its own names for PEFT, the pipeline's for the others, and all of them give the tuned model back.
    let plain = fixtures::root().join("adapters/diffusers/plain");
    let (base, tuned) = (plain.join("base"), scratch.join("tuned"));
    std::fs::create_dir_all(&tuned).expect("a folder");
    let weights = "diffusion_pytorch_model.safetensors";
    std::fs::copy(plain.join("expected.safetensors"), tuned.join(weights)).expect("a copy");
    std::fs::copy(base.join("config.json"), tuned.join("config.json")).expect("a copy");
    let to_q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q";
    // Of the families with these modules the likeliest is SDXL, which kohya's trainers call as its authors do.
    let flat = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight".to_string();
    for (to, name, key) in [
        ("peft", "peft", format!("base_model.model.{to_q}.lora_A.weight")),
        ("diffusers", "diffusers.safetensors", format!("unet.{to_q}.lora_A.weight")),
        ("kohya", "kohya.safetensors", flat),
    ] {
        let out = scratch.join(name);
        extract(&base, &tuned, to, &out);
        let file = if to == "peft" { out.join("adapter_model.safetensors") } else { out.clone() };
        let keys = SafetensorsFile::open(&file).expect("tensors").tensors;
        assert!(keys.contains_key(&key), "{to}: {:?}", keys.keys());
        let merged = scratch.join(&format!("merged-{to}"));
        program::merge(&base, &out, &merged, &[]).expect(0);
        let (wanted, merged) = (read(&tuned.join(weights)), read(&merged.join(weights)));
        for (key, values) in &wanted {
            let far = values.iter().zip(&merged[key]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{to}: {key}: {far}");
        }
    }
    // A checkpoint of Flux for diffusers: its projections apart.
    let base = file(&scratch.join("flux.safetensors"), native_base());
    let mut tensors = StateDict::new();
    pair(&mut tensors, "lora_unet_double_blocks_0_img_attn_qkv", (3 * D, D), 2, KOHYA);
    let adapter = file(&scratch.join("adapter.safetensors"), tensors);
    let merged = scratch.join("merged.safetensors");
    program::merge(&base, &adapter, &merged, &[]).expect(0);
    let out = scratch.join("flux-diffusers.safetensors");
    extract(&base, &merged, "diffusers", &out);
    let keys = SafetensorsFile::open(&out).expect("tensors").tensors;
    assert!(keys.contains_key("transformer.transformer_blocks.0.attn.to_k.lora_B.weight"), "{:?}", keys.keys());
    // By its modules alone it is more likely for SD3; the base says what it is for.
    let again = scratch.join("again.safetensors");
    let ran = program::merge(&base, &out, &again, &[]).expect(0);
    assert!(ran.err.contains("the base is of flux1, "), "{}", ran.err);
    let key = "double_blocks.0.img_attn.qkv.weight";
    let (wanted, got) = (read(&merged), read(&again));
    assert!(wanted[key].iter().zip(&got[key]).all(|(a, b)| (a - b).abs() < 1e-5));
}

/// Sizes that a test can have. No model has fewer blocks than are left here, or they would speak against it.
fn small(extents: &[Extent]) -> Vec<Extent> {
    let size = |&(letter, value): &Extent| match (letter, value) {
        (_, 0 | 1) => (letter, value),
        ("d", _) => (letter, 24),
        (_, 2..=64) => (letter, value.min(5)),
        _ => (letter, 8),
    };
    extents.iter().map(size).collect()
}

/// Modules of a denoiser of these sizes that are not as large as those of a model.
fn modules(part: &Part, naming: Naming, extents: &[Extent]) -> Vec<(Module, Vec<usize>)> {
    let all = part.modules(naming, extents).into_iter();
    let shape = |m: Module| {
        let shape: Vec<usize> = m.shape.as_ref()?.iter().map(|n| *n as usize).collect();
        (shape.iter().product::<usize>() <= 150_000).then_some((m, shape))
    };
    all.filter_map(shape).collect()
}

/// A base whose denoiser has these names.
fn base_of(path: &Path, part: &Part, naming: Naming, extents: &[Extent], before: &str) -> PathBuf {
    let all = modules(part, naming, extents).into_iter().enumerate();
    let tensor = |(seed, (m, shape)): (usize, (Module, Vec<usize>))| {
        let name = if m.ending == Ending::Bare { m.path.clone() } else { m.tensor("weight") };
        (format!("{before}{name}"), numbers(&shape, seed))
    };
    file(path, all.map(tensor).collect())
}

/// Families, the class of diffusers, and what stands before the names of a checkpoint; none where there is none.
const BASES: &[(&str, &str, Option<&str>)] = &[
    ("sana", "SanaTransformer2DModel", Some("")),
    ("cogvideox", "CogVideoXTransformer3DModel", Some("")),
    ("cogview4", "CogView4Transformer2DModel", Some("")),
    ("ernie_image", "ErnieImageTransformer2DModel", Some("model.diffusion_model.")),
    ("stable_cascade", "StableCascadeUNet", Some("")),
    ("ace_step", "AceStepTransformer1DModel", Some("decoder.")),
    ("hunyuan_dit", "HunyuanDiT2DModel", Some("")),
    ("flux3", "Flux3Transformer2DModel", Some("")),
    ("qwen_image_21", "QwenImage21Transformer2DModel", Some("diffusion_model.")),
    ("bria_fibo2", "BriaFibo2Transformer2DModel", Some("")),
    ("ovis_image", "OvisImageTransformer2DModel", Some("")),
    ("helios", "HeliosTransformer3DModel", Some("")),
    ("prx", "PRXTransformer2DModel", Some("")),
    ("lumina_next", "LuminaNextDiT2DModel", None),
    ("wan_animate2", "WanAnimate2Transformer3DModel", Some("")),
    ("wan", "WanAnimateTransformer3DModel", Some("")),
    ("kandinsky5", "Kandinsky5Transformer3DModel", Some("")),
    ("krea2", "Krea2Transformer2DModel", Some("")),
    ("minimax_h3", "MiniMaxH3Transformer3DModel", Some("")),
    ("ideogram4", "Ideogram4Transformer2DModel", Some("")),
];

#[test]
fn an_adapter_of_every_family_reaches_both_sorts_of_base() {
    for (name, class, checkpoint) in BASES {
        let scratch = Scratch::new();
        let family = family(name).expect("a family");
        let part = family.denoiser().expect("a denoiser");
        let extents = small(family.variants[0].extents);
        let folder = scratch.join("folder");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("config.json"), format!("{{\"_class_name\": \"{class}\"}}")).expect("a config");
        let weights = folder.join("diffusion_pytorch_model.safetensors");
        base_of(&weights, part, Naming::Diffusers, &extents, "");

        let before = part.homes(Container::Diffusers).next().expect("a place").prefix;
        let mut tensors = StateDict::new();
        // Whether Sana's embedding of the time is called one thing or the other hangs on its size, which is none here.
        let certain = |path: &str| {
            let there = part.translate(Naming::Diffusers, Naming::Native, path, &[]).unwrap_or_default();
            there.iter().all(|t| part.translate(Naming::Native, Naming::Diffusers, &t.path, &[]).is_some())
        };
        for (m, shape) in modules(part, Naming::Diffusers, &extents) {
            if m.kind == Kind::Linear && shape[0] * shape[1] <= 5000 && certain(&m.path) {
                pair(&mut tensors, &format!("{before}.{}", m.path), (shape[0], shape[1]), 2, PEFT);
            }
        }
        let adapter = file(&scratch.join("adapter.safetensors"), tensors.clone());
        let merged = scratch.join("merged");
        program::merge(&folder, &adapter, &merged, &[]).expect(0);
        let (old, new) = (read(&weights), read(&merged.join("diffusion_pytorch_model.safetensors")));
        for (key, values) in &old {
            let module = format!("{before}.{}", key.trim_end_matches(".weight"));
            match tensors.contains_key(&format!("{module}.{}", PEFT[0])) {
                true => require_sum(values, &product(&tensors, &module, PEFT), &new[key], &format!("{name}: {key}")),
                false => assert!(*values == new[key], "{name}: {key}"),
            }
        }

        // By the names of trainers, dots and all, it is the same adapter.
        for layout in ["kohya", "comfyui"] {
            let other = scratch.join(&format!("{layout}.safetensors"));
            let [convert, out, to, base]: [&OsStr; 4] = ["convert", "-o", "--to", "--base"].map(OsStr::new);
            // In these sizes some could be for other models; the base says for which they are.
            let words = [convert, adapter.as_ref(), out, other.as_ref(), to, layout.as_ref(), base, folder.as_ref()];
            program::run(words).expect(0);
            let again = scratch.join(&format!("merged-{layout}"));
            program::merge(&folder, &other, &again, &[]).expect(0);
            let again = read(&again.join("diffusion_pytorch_model.safetensors"));
            for (key, values) in &new {
                assert!(*values == again[key], "{name}, {layout}: {key}");
            }
        }

        // And it is one for a checkpoint with the authors' names.
        let Some(before) = checkpoint else { continue };
        let one = base_of(&scratch.join("one.safetensors"), part, Naming::Native, &extents, before);
        let out = scratch.join("one-merged.safetensors");
        program::merge(&one, &adapter, &out, &[]).expect(0);
        let (old, new) = (read(&one), read(&out));
        let changed = old.iter().filter(|(key, values)| **values != new[*key]).count();
        let targets = part.modules(Naming::Native, &extents).into_iter().filter(|m| {
            let there = part.translate(Naming::Native, Naming::Diffusers, &m.path, &extents).unwrap_or_default();
            let here = part.homes(Container::Diffusers).next().expect("a place").prefix;
            there.iter().any(|t| tensors.contains_key(&format!("{here}.{}.{}", t.path, PEFT[0])))
        });
        assert_eq!(changed, targets.count(), "{name}");
    }
}

/// `first ⊗ second` in f64.
fn kronecker(first: &Tensor, second: &Tensor) -> Vec<f64> {
    let ((m1, n1), (m2, n2)) = (first.shape.matrix(), second.shape.matrix());
    let (a, b) = (first.to_f32().expect("w1"), second.to_f32().expect("w2"));
    let entry = |i: usize, j: usize| f64::from(a[i / m2 * n1 + j / n2]) * f64::from(b[i % m2 * n2 + j % n2]);
    (0..m1 * m2).flat_map(|i| (0..n1 * n2).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

/// The two products of a LoHa, multiplied.
fn hadamard(tensors: &StateDict, name: &str) -> Vec<f64> {
    let of = |n: &str| product(tensors, name, [&format!("hada_{n}_b"), &format!("hada_{n}_a")].map(String::as_str));
    of("w1").iter().zip(of("w2")).map(|(a, b)| a * b).collect()
}

#[test]
fn kinds_that_cannot_be_parted_reach_the_rows_of_either_sort_of_base() {
    let scratch = Scratch::new();
    let native = file(&scratch.join("flux.safetensors"), native_base());
    // A LoKr and a LoHa for parts of what the authors have fused, as SimpleTuner names them.
    let mut parts = StateDict::new();
    let part = "lycoris_transformer_blocks_0_attn_to_k";
    parts.insert(format!("{part}.lokr_w1"), numbers(&[4, 2], 5));
    parts.insert(format!("{part}.lokr_w2"), numbers(&[2, 4], 6));
    let single = "lycoris_single_transformer_blocks_0_proj_mlp";
    for (n, shape) in [("w1_a", [4 * D, 2]), ("w1_b", [2, D]), ("w2_a", [4 * D, 2]), ("w2_b", [2, D])] {
        parts.insert(format!("{single}.hada_{n}"), numbers(&shape, 7 + parts.len()));
    }
    pair(&mut parts, "lycoris_transformer_blocks_0_attn_to_q", (D, D), 2, KOHYA);
    let adapter = file(&scratch.join("parts.safetensors"), parts.clone());
    let merged = scratch.join("merged.safetensors");
    let record = scratch.join("base.undo");
    let undo = ["--undo", record.to_str().expect("a path")];
    let ran = program::merge(&native, &adapter, &merged, &undo).expect(0);
    assert!(ran.err.contains("reach their rows as they are"), "{}", ran.err);
    let (old, new) = (read(&native), read(&merged));
    let rows = |key: &str, range: std::ops::Range<usize>| (old[key][range.clone()].to_vec(), new[key][range].to_vec());
    let qkv = "double_blocks.0.img_attn.qkv.weight";
    let (before, after) = rows(qkv, D * D..2 * D * D);
    let change = kronecker(&parts[&format!("{part}.lokr_w1")], &parts[&format!("{part}.lokr_w2")]);
    require_sum(&before, &change, &after, "LoKr");
    let (before, after) = rows(qkv, 0..D * D);
    let change = product(&parts, "lycoris_transformer_blocks_0_attn_to_q", KOHYA);
    require_sum(&before, &change, &after, "LoRA beside it");
    let (before, after) = rows(qkv, 2 * D * D..3 * D * D);
    assert_eq!(before, after);
    let (before, after) = rows("single_blocks.0.linear1.weight", 3 * D * D..7 * D * D);
    require_sum(&before, &hadamard(&parts, single), &after, "LoHa");
    let back = scratch.join("back.safetensors");
    let paths = [&merged, &back, &record].map(|path| path.to_str().expect("a path"));
    program::run(["unmerge", paths[0], "-o", paths[1], "--undo", paths[2]]).expect(0);
    assert!(std::fs::read(&back).expect("bytes") == std::fs::read(&native).expect("bytes"));

    // The same kinds for the whole, onto a folder of diffusers' that has the parts.
    let folder = scratch.join("folder");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("config.json"), r#"{"_class_name": "FluxTransformer2DModel"}"#).expect("a config");
    let shapes = [
        ("transformer_blocks.0.attn.to_q", [D, D]),
        ("transformer_blocks.0.attn.to_k", [D, D]),
        ("transformer_blocks.0.attn.to_v", [D, D]),
        ("single_transformer_blocks.0.attn.to_q", [D, D]),
        ("single_transformer_blocks.0.attn.to_k", [D, D]),
        ("single_transformer_blocks.0.attn.to_v", [D, D]),
        ("single_transformer_blocks.0.proj_mlp", [4 * D, D]),
        ("single_transformer_blocks.0.proj_out", [D, 5 * D]),
    ];
    let weights = folder.join("diffusion_pytorch_model.safetensors");
    let all = shapes.iter().enumerate().map(|(n, (name, shape))| (format!("{name}.weight"), numbers(shape, n)));
    file(&weights, all.collect());
    let mut wholes = StateDict::new();
    let whole = "lora_unet_double_blocks_0_img_attn_qkv";
    wholes.insert(format!("{whole}.lokr_w1"), numbers(&[3, 2], 5));
    wholes.insert(format!("{whole}.lokr_w2"), numbers(&[D, 4], 6));
    let linear = "lora_unet_single_blocks_0_linear1";
    for (n, shape) in [("w1_a", [7 * D, 2]), ("w1_b", [2, D]), ("w2_a", [7 * D, 2]), ("w2_b", [2, D])] {
        wholes.insert(format!("{linear}.hada_{n}"), numbers(&shape, 7 + wholes.len()));
    }
    let adapter = file(&scratch.join("wholes.safetensors"), wholes.clone());
    let merged = scratch.join("merged");
    program::merge(&folder, &adapter, &merged, &[]).expect(0);
    let (old, new) = (read(&weights), read(&merged.join("diffusion_pytorch_model.safetensors")));
    let change = kronecker(&wholes[&format!("{whole}.lokr_w1")], &wholes[&format!("{whole}.lokr_w2")]);
    for (n, leaf) in ["to_q", "to_k", "to_v"].into_iter().enumerate() {
        let key = format!("transformer_blocks.0.attn.{leaf}.weight");
        require_sum(&old[&key], &change[n * D * D..(n + 1) * D * D], &new[&key], &key);
    }
    let change = hadamard(&wholes, linear);
    let key = "single_transformer_blocks.0.proj_mlp.weight";
    require_sum(&old[key], &change[3 * D * D..], &new[key], key);
    let key = "single_transformer_blocks.0.attn.to_v.weight";
    require_sum(&old[key], &change[2 * D * D..3 * D * D], &new[key], key);
}

#[test]
fn alphas_of_every_sort_come_back_from_other_names() {
    let scratch = Scratch::new();
    let attention = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1";
    let alpha = |dtype, shape: &[usize], value: f32| Tensor::from_f32(dtype, shape, &[value]).expect("a number");
    // One that is the rank, others that are not; or none at all.
    for (dtype, shape, alphas) in [
        (Dtype::F32, &[][..], &[Some(2.0), Some(1.0), Some(4.0)]),
        (Dtype::F16, &[1][..], &[Some(2.0), Some(2.0), Some(0.5)]),
        (Dtype::F32, &[][..], &[None, None, None]),
    ] {
        let mut tensors = StateDict::new();
        for (leaf, value) in ["to_q", "to_k", "to_v"].into_iter().zip(alphas) {
            pair(&mut tensors, &format!("{attention}_{leaf}"), (D, D), 2, KOHYA);
            if let Some(value) = value {
                tensors.insert(format!("{attention}_{leaf}.alpha"), alpha(dtype, shape, *value));
            }
        }
        for through in ["comfyui", "omi"] {
            let folder = scratch.join(&format!("{through}-{dtype}-{}", alphas[0].is_some()));
            std::fs::create_dir_all(&folder).expect("a folder");
            let given = file(&folder.join("given.safetensors"), tensors.clone());
            let [there, back] = ["there.safetensors", "back.safetensors"].map(|name| folder.join(name));
            for (from, to, layout) in [(&given, &there, through), (&there, &back, "kohya")] {
                let paths = [from, to].map(|path| path.to_str().expect("a path"));
                program::run(["convert", paths[0], "-o", paths[1], "--to", layout]).expect(0);
            }
            let found = SafetensorsFile::open(&back).expect("tensors").tensors;
            assert_eq!(found.len(), tensors.len(), "{through}: {:?}", found.keys());
            for (key, tensor) in &tensors {
                assert!(found[key] == *tensor, "{through}: {key}");
            }
        }
    }
}
