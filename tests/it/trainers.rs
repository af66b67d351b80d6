//! Adapters of image models as their trainers save them: OneTrainer in both of its formats, ai-toolkit, XLabs, Black Forest
//! Labs, DiffSynth and others who write a model's own names.

use std::path::{Path, PathBuf};

use lora_tool::layout::{self, Opened};
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{self, Scratch, file};
use crate::program;

fn case(layout: &str, name: &str, file: &str) -> PathBuf {
    fixtures::root().join("adapters").join(layout).join(name).join(file)
}

fn open(path: &Path, layout: &str) -> Opened {
    let opened = layout::open(path, None).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(opened.layout, layout, "{}: {}", path.display(), opened.because);
    opened
}

/// The tensors of an adapter in another layout.
fn converted(from: &Path, to: &str, scratch: &Scratch) -> StateDict {
    let out = scratch.join(&format!("{to}.safetensors"));
    let to: &std::ffi::OsStr = to.as_ref();
    let words = ["convert".as_ref(), from.as_os_str(), "--to".as_ref(), to, "-o".as_ref(), out.as_os_str()];
    program::run(words.into_iter().chain(["--force".as_ref()])).expect(0);
    lora_tool::container::SafetensorsFile::open(&out).expect("tensors").tensors
}

fn same(found: &StateDict, wanted: &StateDict, what: &str) {
    let keys = |tensors: &StateDict| tensors.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(keys(found), keys(wanted), "{what}");
    for (key, tensor) in wanted {
        assert!(found[key] == *tensor, "{what}: {key}");
    }
}

const ONETRAINER: [&str; 6] = ["flux1", "chroma", "sd3", "sdxl", "hunyuan_video", "pixart"];

#[test]
fn both_formats_of_onetrainer_are_the_same_adapter() {
    for name in ONETRAINER {
        let scratch = Scratch::new();
        let (legacy, omi) =
            (case("onetrainer", name, "legacy.safetensors"), case("onetrainer", name, "omi.safetensors"));
        // For U-Nets the prefix is that of sd-scripts, and only the names are diffusers'.
        let first = open(&legacy, if name == "sdxl" { "kohya" } else { "onetrainer" });
        let second = open(&omi, "omi");
        let (one, two) = (&first.adapter.targets, &second.adapter.targets);
        assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>(), "{name}");
        for (path, target) in one {
            assert_eq!(target, &two[path], "{name}: {path}");
            let component = path.as_str().split('.').next().unwrap_or_default();
            assert!(["transformer", "unet", "text_encoder", "text_encoder_2", "text_encoder_3"].contains(&component));
            assert!(path.as_str().contains('.'), "{name}: {path} is flat");
        }
        // Each is what OneTrainer makes of the other, byte for byte.
        same(&converted(&legacy, "omi", &scratch), &second.source.tensors, name);
        same(&converted(&omi, "onetrainer", &scratch), &first.source.tensors, name);
        let (there, back) = (scratch.join("there.safetensors"), Scratch::new());
        file(&there, converted(&omi, "omi", &scratch));
        same(&converted(&there, "onetrainer", &back), &first.source.tensors, name);
    }
}

#[test]
fn ai_toolkit_has_the_factors_of_diffusers_under_the_names_of_its_models() {
    for name in ["flux1", "wan", "z_image"] {
        let scratch = Scratch::new();
        let (own, plain) =
            (case("ai-toolkit", name, "adapter.safetensors"), case("ai-toolkit", name, "plain.safetensors"));
        let (opened, wanted) = (open(&own, "ai-toolkit"), open(&plain, "diffusers"));
        assert_eq!(opened.adapter.targets.len(), wanted.adapter.targets.len(), "{name}");
        same(&converted(&plain, "ai-toolkit", &scratch), &opened.source.tensors, name);
        same(&converted(&own, "diffusers", &scratch), &wanted.source.tensors, name);
    }
}

#[test]
fn scales_go_into_b_for_ai_toolkit() {
    let scratch = Scratch::new();
    let mut tensors = open(&case("onetrainer", "flux1", "legacy.safetensors"), "onetrainer").source.tensors;
    tensors.retain(|key, _| !key.starts_with("lora_te"));
    let name = "lora_transformer_transformer_blocks_0_attn_to_k";
    let adapter = scratch.join("adapter.safetensors");
    file(&adapter, tensors.clone());
    let found = converted(&adapter, "ai-toolkit", &scratch);
    assert!(found.keys().all(|key| key.starts_with("transformer.") && !key.ends_with(".alpha")), "{:?}", found.keys());
    let (alpha, up) = (&tensors[&format!("{name}.alpha")], &tensors[&format!("{name}.lora_up.weight")]);
    let scale = alpha.to_f32().expect("alpha")[0] / 2.0;
    let wanted: Vec<f32> = up.to_f32().expect("up").iter().map(|v| v * scale).collect();
    let b = &found["transformer.transformer_blocks.0.attn.to_k.lora_B.weight"];
    assert_eq!(b.to_f32().expect("B"), wanted);
}

fn random(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<_> = (0..count).map(|i| ((i * 31 + seed * 97) % 199) as f32 / 64.0 - 1.5).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
}

fn pair(tensors: &mut StateDict, name: &str, rows: usize, columns: usize, words: [&str; 2]) {
    let seed = tensors.len();
    tensors.insert(format!("{name}{}", words[0]), random(&[2, columns], seed));
    tensors.insert(format!("{name}{}", words[1]), random(&[rows, 2], seed + 1));
}

/// What a merge into zeros gives, for a base of these tensors.
fn merged(base: &[(&str, Vec<usize>)], adapter: StateDict, scratch: &Scratch) -> StateDict {
    let (zeros, path) = (scratch.join("zeros.safetensors"), scratch.join("adapter.safetensors"));
    let zero = |shape: &Vec<usize>| {
        Tensor::from_f32(Dtype::F32, shape.as_slice(), &vec![0.0; shape.iter().product()]).expect("zeros")
    };
    file(&zeros, base.iter().map(|(key, shape)| (key.to_string(), zero(shape))).collect());
    file(&path, adapter);
    let out = scratch.join("out.safetensors");
    program::merge(&zeros, &path, &out, &[]).expect(0);
    lora_tool::container::SafetensorsFile::open(&out).expect("tensors").tensors
}

/// `up · down` in f64.
fn product(up: &Tensor, down: &Tensor) -> Vec<f64> {
    let ((rows, rank), columns) = (up.shape.matrix(), down.shape.matrix().1);
    let (up, down) = (up.to_f32().expect("up"), down.to_f32().expect("down"));
    let entry = |i: usize, j: usize| {
        (0..rank).map(|k| f64::from(up[i * rank + k]) * f64::from(down[k * columns + j])).sum::<f64>()
    };
    (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect()
}

fn close(found: &Tensor, wanted: &[f64], what: &str) {
    let found = found.to_f32().expect("floats");
    assert_eq!(found.len(), wanted.len(), "{what}");
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((f64::from(*found) - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{what}: {found} for {wanted}");
    }
}

const D: usize = 8;

/// A small FLUX.1 as its authors have it.
fn flux() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("double_blocks.0.img_attn.qkv.weight", vec![3 * D, D]),
        ("double_blocks.0.txt_attn.qkv.weight", vec![3 * D, D]),
        ("double_blocks.0.img_attn.proj.weight", vec![D, D]),
        ("double_blocks.0.txt_attn.proj.weight", vec![D, D]),
        ("double_blocks.0.img_attn.norm.query_norm.scale", vec![4]),
        ("single_blocks.0.linear1.weight", vec![7 * D, D]),
        ("single_blocks.0.linear1.bias", vec![7 * D]),
        ("single_blocks.0.linear2.weight", vec![D, 5 * D]),
        ("single_blocks.0.norm.key_norm.scale", vec![4]),
    ]
}

#[test]
fn processors_of_xlabs_reach_the_attention() {
    let scratch = Scratch::new();
    let mut adapter = StateDict::new();
    for (name, rows, columns) in [
        ("double_blocks.0.processor.qkv_lora1", 3 * D, D),
        ("double_blocks.0.processor.proj_lora1", D, D),
        ("double_blocks.0.processor.qkv_lora2", 3 * D, D),
        ("double_blocks.0.processor.proj_lora2", D, D),
        ("single_blocks.0.processor.qkv_lora", 3 * D, D),
        ("single_blocks.0.processor.proj_lora", D, 5 * D),
    ] {
        pair(&mut adapter, name, rows, columns, [".down.weight", ".up.weight"]);
    }
    let out = merged(&flux(), adapter.clone(), &scratch);
    open(&scratch.join("adapter.safetensors"), "xlabs");
    let change = |name: &str| product(&adapter[&format!("{name}.up.weight")], &adapter[&format!("{name}.down.weight")]);
    for (key, name) in [
        ("double_blocks.0.img_attn.qkv.weight", "double_blocks.0.processor.qkv_lora1"),
        ("double_blocks.0.txt_attn.qkv.weight", "double_blocks.0.processor.qkv_lora2"),
        ("double_blocks.0.img_attn.proj.weight", "double_blocks.0.processor.proj_lora1"),
        ("double_blocks.0.txt_attn.proj.weight", "double_blocks.0.processor.proj_lora2"),
        ("single_blocks.0.linear2.weight", "single_blocks.0.processor.proj_lora"),
    ] {
        close(&out[key], &change(name), key);
    }
    // Query, key and value are the first three of seven parts; what follows is not changed.
    let mut wanted = change("single_blocks.0.processor.qkv_lora");
    wanted.resize(7 * D * D, 0.0);
    close(&out["single_blocks.0.linear1.weight"], &wanted, "linear1");
    // The shared factor stays one, of its rank.
    let kohya = converted(&scratch.join("adapter.safetensors"), "kohya", &scratch);
    assert_eq!(kohya["lora_unet_single_blocks_0_linear1.lora_down.weight"].shape.dims(), [2, D]);
}

#[test]
fn bare_names_are_taken_in_the_words_of_any_trainer() {
    for words in [
        [".lora_A.weight", ".lora_B.weight"],
        [".lora_A.default.weight", ".lora_B.default.weight"],
        [".lora_A", ".lora_B"],
        [".lora_down.weight", ".lora_up.weight"],
        [".lora.down.weight", ".lora.up.weight"],
    ] {
        for prefix in ["", "base_model.model.", "diffusion_model."] {
            let scratch = Scratch::new();
            let mut adapter = StateDict::new();
            let name = format!("{prefix}double_blocks.0.img_attn.qkv");
            pair(&mut adapter, &name, 3 * D, D, words);
            pair(&mut adapter, &format!("{prefix}single_blocks.0.linear2"), D, 5 * D, words);
            let out = merged(&flux(), adapter.clone(), &scratch);
            let change = product(&adapter[&format!("{name}{}", words[1])], &adapter[&format!("{name}{}", words[0])]);
            close(&out["double_blocks.0.img_attn.qkv.weight"], &change, &name);
        }
    }
}

#[test]
fn control_adapters_add_biases_and_replace_norms() {
    let scratch = Scratch::new();
    let mut adapter = StateDict::new();
    let words = [".lora_A.weight", ".lora_B.weight"];
    pair(&mut adapter, "double_blocks.0.img_attn.qkv", 3 * D, D, words);
    pair(&mut adapter, "single_blocks.0.linear1", 7 * D, D, words);
    adapter.insert("single_blocks.0.linear1.lora_B.bias".into(), random(&[7 * D], 5));
    adapter.insert("single_blocks.0.norm.key_norm.scale".into(), random(&[4], 6));
    adapter.insert("double_blocks.0.img_attn.norm.query_norm.scale".into(), random(&[4], 7));
    let out = merged(&flux(), adapter.clone(), &scratch);
    open(&scratch.join("adapter.safetensors"), "native");
    let wide = |tensor: &Tensor| tensor.to_f32().expect("floats").into_iter().map(f64::from).collect::<Vec<_>>();
    close(&out["single_blocks.0.linear1.bias"], &wide(&adapter["single_blocks.0.linear1.lora_B.bias"]), "bias");
    for key in ["single_blocks.0.norm.key_norm.scale", "double_blocks.0.img_attn.norm.query_norm.scale"] {
        close(&out[key], &wide(&adapter[key]), key);
    }
    // diffusers has words for all of it.
    let there = converted(&scratch.join("adapter.safetensors"), "diffusers", &scratch);
    let norm = "transformer.single_transformer_blocks.0.attn.norm_k.weight";
    assert!(there[norm] == adapter["single_blocks.0.norm.key_norm.scale"], "{:?}", there.keys());
    assert!(there.contains_key("transformer.single_transformer_blocks.0.proj_mlp.lora_B.bias"));
    let again = scratch.join("again.safetensors");
    program::merge(&scratch.join("zeros.safetensors"), scratch.join("diffusers.safetensors"), &again, &[]).expect(0);
    let again = lora_tool::container::SafetensorsFile::open(&again).expect("tensors").tensors;
    same(&again, &out, "by way of diffusers");
}

#[test]
fn a_control_adapter_gives_the_first_layer_more_channels() {
    let scratch = Scratch::new();
    let (plain, wide, rows) = (4, 10, D);
    let base_of = |name: &str| {
        [
            (name.to_string(), random(&[rows, plain], 1)),
            ("double_blocks.0.img_attn.qkv.weight".to_string(), random(&[3 * D, D], 2)),
        ]
    };
    let mut adapter = StateDict::new();
    let words = [".lora_A.weight", ".lora_B.weight"];
    pair(&mut adapter, "img_in", rows, wide, words);
    pair(&mut adapter, "double_blocks.0.img_attn.qkv", 3 * D, D, words);
    let tensors: StateDict = base_of("img_in.weight").into_iter().collect();
    let (base, path) = (scratch.join("base.safetensors"), scratch.join("adapter.safetensors"));
    file(&base, tensors.clone());
    file(&path, adapter.clone());
    let (out, record) = (scratch.join("out.safetensors"), scratch.join("base.undo"));
    let undo = ["--undo", record.to_str().expect("a path")];
    let ran = program::merge(&base, &path, &out, &undo).expect(0);
    assert!(ran.err.contains("[8, 4] becomes [8, 10]"), "{}", ran.err);
    let found = lora_tool::container::SafetensorsFile::open(&out).expect("tensors").tensors;
    let (old, change) = (
        tensors["img_in.weight"].to_f32().expect("floats"),
        product(&adapter["img_in.lora_B.weight"], &adapter["img_in.lora_A.weight"]),
    );
    let wanted: Vec<f64> = (0..rows * wide)
        .map(|i| change[i] + if i % wide < plain { f64::from(old[i / wide * plain + i % wide]) } else { 0.0 })
        .collect();
    assert_eq!(found["img_in.weight"].shape.dims(), [rows, wide]);
    close(&found["img_in.weight"], &wanted, "img_in");
    let back = scratch.join("back.safetensors");
    let paths = [&out, &back, &record].map(|path| path.to_str().expect("a path"));
    program::run(["unmerge", paths[0], "-o", paths[1], "--undo", paths[2]]).expect(0);
    assert!(std::fs::read(&back).expect("bytes") == std::fs::read(&base).expect("bytes"));
    // Any other layer of another size is that of another model.
    let mut adapter = StateDict::new();
    pair(&mut adapter, "double_blocks.0.img_attn.qkv", 3 * D, D + 2, words);
    file(&scratch.join("other.safetensors"), adapter);
    program::merge(&base, scratch.join("other.safetensors"), &scratch.join("none.safetensors"), &[]).expect(1);
}

#[test]
fn names_of_the_authors_behind_transformer_are_no_adapter_of_diffusers() {
    let scratch = Scratch::new();
    let mut adapter = StateDict::new();
    let words = [".lora_A.weight", ".lora_B.weight"];
    pair(&mut adapter, "transformer.double_blocks.0.img_attn_qkv", 3 * D, D, words);
    pair(&mut adapter, "transformer.double_blocks.0.img_mlp.fc1", 4 * D, D, words);
    pair(&mut adapter, "transformer.single_blocks.0.linear2", D, 5 * D, words);
    let path = scratch.join("adapter.safetensors");
    file(&path, adapter);
    let opened = open(&path, "native");
    assert_eq!(opened.adapter.spelling.map(|spelling| spelling.family), Some("hunyuan_video"), "{}", opened.because);
    let found = converted(&path, "diffusers", &scratch);
    assert!(found.contains_key("transformer.transformer_blocks.0.attn.to_k.lora_B.weight"), "{:?}", found.keys());
    assert!(found.contains_key("transformer.transformer_blocks.0.ff.net.0.proj.lora_B.weight"), "{:?}", found.keys());
}

#[test]
fn heads_of_diffsynth_are_gathered() {
    let scratch = Scratch::new();
    let rows = 2 * 3 * 128;
    for (words, by_heads) in
        [([".lora_A.default.weight", ".lora_B.default.weight"], true), ([".lora_A.weight", ".lora_B.weight"], false)]
    {
        let mut adapter = StateDict::new();
        pair(&mut adapter, "blocks.0.attn.qkv_proj", rows, D, words);
        pair(&mut adapter, "blocks.0.attn.out_proj", D, 256, words);
        pair(&mut adapter, "blocks.0.mlp.fc1", 4 * D, D, words);
        let path = scratch.join("adapter.safetensors");
        file(&path, adapter.clone());
        let found = converted(&path, "diffusers", &scratch);
        let b = adapter[&format!("blocks.0.attn.qkv_proj{}", words[1])].to_f32().expect("B");
        // Row 130 of the key: the second head's third, or plainly the 130th after all of the query.
        let row = if by_heads { (3 + 1) * 128 + 2 } else { 256 + 130 };
        let key = found["transformer.transformer_blocks.0.attn.to_k.lora_B.weight"].to_f32().expect("B");
        assert_eq!(key[2 * 130..2 * 131], b[2 * row..2 * row + 2]);
        std::fs::remove_file(scratch.join("diffusers.safetensors")).expect("removed");
        std::fs::remove_file(path).expect("removed");
    }
}

#[test]
fn half_of_a_pair_is_refused_by_its_name() {
    let scratch = Scratch::new();
    let path = scratch.join("adapter.safetensors");
    for (key, layout) in [
        ("double_blocks.0.processor.qkv_lora1.up.weight", "xlabs"),
        ("double_blocks.0.processor.qkv_lora1.down.weight", "xlabs"),
        ("double_blocks.0.img_attn.qkv.lora_A.weight", "native"),
    ] {
        let tensors = [(key.to_string(), random(&[2, D], 1))].into_iter().collect();
        file(&path, tensors);
        let error = layout::open(&path, Some(layout)).expect_err("half a pair").to_string();
        assert!(error.contains("double_blocks.0."), "{error}");
        std::fs::remove_file(&path).expect("removed");
    }
}

/// Paths and shapes of a walk that cloneofsimo's program made.
fn walk(name: &str) -> Vec<(String, Vec<usize>)> {
    let path = fixtures::root().join("adapters/cloneofsimo").join(format!("{name}.tsv"));
    let text = std::fs::read_to_string(path).expect("a walk");
    let line = |line: &str| {
        let (path, shape) = line.split_once('\t').expect("two columns");
        (path.to_string(), shape.split(' ').map(|n| n.parse().expect("a number")).collect())
    };
    text.lines().map(line).collect()
}

/// A file of that walk: the first number of each factor tells the place.
fn numbered(model: &str, walk: &[(String, Vec<usize>)]) -> StateDict {
    let one = |(number, (_, shape)): (usize, &(String, Vec<usize>))| {
        let mut down = vec![0.0; shape[1..].iter().product()];
        down[0] = number as f32;
        let down_shape: Vec<usize> = std::iter::once(1).chain(shape[1..].iter().copied()).collect();
        let up_shape: Vec<usize> = [shape[0], 1].into_iter().chain(shape[2..].iter().map(|_| 1)).collect();
        let up = Tensor::from_f32(Dtype::F16, up_shape.as_slice(), &vec![0.0; shape[0]]).expect("up");
        let down = Tensor::from_f32(Dtype::F16, down_shape.as_slice(), &down).expect("down");
        [(format!("{model}:{number}:up"), up), (format!("{model}:{number}:down"), down)]
    };
    walk.iter().enumerate().flat_map(one).collect()
}

fn require_places(model: &str, walk: &[(String, Vec<usize>)], more: StateDict) {
    let scratch = Scratch::new();
    let path = scratch.join("adapter.safetensors");
    let tensors = numbered(model, walk).into_iter().chain(more);
    file(&path, tensors.collect());
    let opened = open(&path, "cloneofsimo");
    for (number, (module, _)) in walk.iter().enumerate() {
        let module = if model == "unet" { module.clone() } else { format!("text_model.{module}") };
        let target = &opened.adapter.targets[format!("{model}.{module}").as_str()];
        let Some(lora_tool::adapter::Delta::LowRank(d)) = target.weight.first() else { panic!("no factors") };
        assert_eq!(d.a.to_f32().expect("down")[0], number as f32, "{module}");
    }
}

#[test]
fn numbers_of_cloneofsimo_are_places_in_a_walk() {
    let text = walk("text_encoder");
    for name in ["sd1", "sd1_extended", "sd2"] {
        require_places("unet", &walk(name), StateDict::new());
    }
    require_places("text_encoder", &text, StateDict::new());
    require_places("unet", &walk("sd1"), numbered("text_encoder", &text));
    // Before diffusers 0.15 the feed-forward layer lay between the attentions.
    let mut old = walk("sd1");
    for block in old.chunks_mut(9) {
        block[4..].rotate_right(1);
    }
    assert!(old[4].0.ends_with("ff.net.0.proj"));
    require_places("unet", &old, StateDict::new());
    // One layer less is no walk that is known.
    let scratch = Scratch::new();
    let path = scratch.join("adapter.safetensors");
    file(&path, numbered("unet", &walk("sd1")[..143]));
    let error = layout::open(&path, None).expect_err("a part of a walk").to_string();
    assert!(error.contains("unet") && error.contains("no known walk"), "{error}");
}

#[test]
fn rotations_of_onetrainer_turn_the_inputs() {
    let scratch = Scratch::new();
    let out = scratch.join("out.safetensors");
    let of = |name: &str| case("onetrainer", "oft", &format!("{name}.safetensors"));
    program::merge(&of("base"), of("adapter"), &out, &[]).expect(0);
    let read = |path: &Path| lora_tool::container::SafetensorsFile::open(path).expect("tensors").tensors;
    let (found, wanted) = (read(&out), read(&of("expected")));
    for (key, wanted) in &wanted {
        let wanted: Vec<f64> = wanted.to_f32().expect("floats").into_iter().map(f64::from).collect();
        close(&found[key], &wanted, key);
    }
}

#[test]
fn differences_of_a_modulation_are_those_of_a_parameter() {
    let scratch = Scratch::new();
    let mut adapter = StateDict::new();
    let words = [".lora_down.weight", ".lora_up.weight"];
    pair(&mut adapter, "diffusion_model.blocks.0.self_attn.q", D, D, words);
    pair(&mut adapter, "diffusion_model.blocks.0.ffn.0", 4 * D, D, words);
    adapter.insert("diffusion_model.blocks.0.diff_m".into(), random(&[1, 6, D], 3));
    adapter.insert("diffusion_model.blocks.0.self_attn.q.diff_b".into(), random(&[D], 4));
    let base = [
        ("model.diffusion_model.blocks.0.self_attn.q.weight", vec![D, D]),
        ("model.diffusion_model.blocks.0.self_attn.q.bias", vec![D]),
        ("model.diffusion_model.blocks.0.ffn.0.weight", vec![4 * D, D]),
        ("model.diffusion_model.blocks.0.modulation", vec![1, 6, D]),
    ];
    let out = merged(&base, adapter.clone(), &scratch);
    for (key, name) in [("modulation", "diff_m"), ("self_attn.q.bias", "self_attn.q.diff_b")] {
        let wanted = adapter[&format!("diffusion_model.blocks.0.{name}")].to_f32().expect("floats");
        let wanted: Vec<f64> = wanted.into_iter().map(f64::from).collect();
        close(&out[&format!("model.diffusion_model.blocks.0.{key}")], &wanted, key);
    }
}

#[test]
fn what_is_no_adapter_is_called_what_it_is() {
    let scratch = Scratch::new();
    let path = scratch.join("file.safetensors");
    for (keys, said) in [
        (["lora_controlnet", "input_blocks.1.0.in_layers.2.up"], "control-lora"),
        (["transformer_blocks.0.mlp_fc1.lora_down", "transformer_blocks.0.mlp_fc1.lora_up"], "nunchaku"),
        (["lllite_unet_input_blocks_4_1.down.0.weight", "lllite_unet_input_blocks_4_1.up.0.weight"], "LLLite"),
    ] {
        file(&path, keys.map(|key| (key.to_string(), random(&[2, D], 1))).into_iter().collect());
        let error = layout::open(&path, None).expect_err("no adapter").to_string();
        assert!(error.contains(said), "{error}");
        std::fs::remove_file(&path).expect("removed");
    }
    std::fs::write(&path, "this is a note, and no file of tensors at all\n").expect("written");
    let error = layout::open(&path, None).expect_err("a text").to_string();
    assert!(error.contains("a text file; expected safetensors"), "{error}");
}

#[test]
fn models_that_are_not_known_keep_their_names_and_that_is_said() {
    let scratch = Scratch::new();
    let convert = |from: &Path, to: &str, more: &[&str]| {
        let out = scratch.join(&format!("{to}.safetensors"));
        let words =
            ["convert", from.to_str().expect("a path"), "--to", to, "-o", out.to_str().expect("a path"), "--force"];
        program::run(words.iter().chain(more))
    };
    let words = [".lora_down.weight", ".lora_up.weight"];
    let (flat, dotted) = (scratch.join("flat.safetensors"), scratch.join("dotted.safetensors"));
    for (path, name) in [(&flat, "lora_unet_foo_blocks_0_attn_q"), (&dotted, "diffusion_model.foo_blocks.0.attn_q")] {
        let mut tensors = StateDict::new();
        pair(&mut tensors, name, D, D, words);
        file(path, tensors);
    }
    let ran = convert(&dotted, "kohya", &["--strict"]).expect(0);
    assert!(ran.err.contains("of no image model that is known here"), "{}", ran.err);
    let found =
        lora_tool::container::SafetensorsFile::open(&scratch.join("kohya.safetensors")).expect("tensors").tensors;
    assert!(found.contains_key("lora_unet_foo_blocks_0_attn_q.lora_up.weight"), "{:?}", found.keys());
    // Where the dots were, nothing tells.
    let ran = convert(&flat, "comfyui", &[]).expect(0);
    assert!(ran.err.contains("which are flattened"), "{}", ran.err);
    convert(&flat, "comfyui", &["--strict"]).expect(3);
}

#[test]
fn what_diffusers_converts_is_converted_to_the_same_bytes() {
    for name in ["xlabs", "native"] {
        let scratch = Scratch::new();
        let (adapter, expected) = (case(name, "", "adapter.safetensors"), case(name, "", "expected.safetensors"));
        open(&adapter, name);
        let wanted = lora_tool::container::SafetensorsFile::open(&expected).expect("tensors").tensors;
        same(&converted(&adapter, "diffusers", &scratch), &wanted, name);
    }
}

#[test]
fn what_a_layout_has_no_words_for_can_be_left_out() {
    let scratch = Scratch::new();
    let mut adapter = StateDict::new();
    let words = [".lora_down.weight", ".lora_up.weight"];
    pair(&mut adapter, "diffusion_model.blocks.0.self_attn.q", D, D, words);
    pair(&mut adapter, "diffusion_model.blocks.0.ffn.0", 4 * D, D, words);
    adapter.insert("diffusion_model.blocks.0.self_attn.q.diff_b".into(), random(&[D], 4));
    adapter.insert("diffusion_model.blocks.0.norm3.diff".into(), random(&[D], 5));
    let path = scratch.join("adapter.safetensors");
    file(&path, adapter.clone());
    let out = scratch.join("out.safetensors");
    let words = |more: &[&'static str]| {
        let all = ["convert", path.to_str().expect("a path"), "--to", "diffusers", "-o", out.to_str().expect("a path")];
        program::run(all.iter().copied().chain(more.iter().copied()))
    };
    let ran = words(&[]).expect(1);
    assert!(ran.err.contains("norm2") && ran.err.contains("hint:"), "{}", ran.err);
    words(&["--leave-out", "--strict"]).expect(3);
    assert!(!out.exists());
    let ran = words(&["--leave-out"]).expect(0);
    assert!(ran.err.contains("warning: transformer.blocks.0.norm2: left out"), "{}", ran.err);
    let found = lora_tool::container::SafetensorsFile::open(&out).expect("tensors").tensors;
    assert_eq!(found.len(), 5, "{:?}", found.keys());
    assert!(
        found["transformer.blocks.0.attn1.to_q.lora_B.bias"] == adapter["diffusion_model.blocks.0.self_attn.q.diff_b"]
    );
    // Where nothing would be left, it is an error all the same.
    std::fs::remove_file(&path).expect("removed");
    file(&path, [("diffusion_model.blocks.0.norm3.diff".to_string(), random(&[D], 5))].into_iter().collect());
    words(&["--leave-out", "--force"]).expect(1);
}

#[test]
fn inspect_says_which_model_an_adapter_is_for() {
    let path = case("onetrainer", "flux1", "omi.safetensors");
    let path = path.to_str().expect("a path");
    let ran = program::run(["inspect", path]).expect(0);
    assert!(ran.out.contains("for         FLUX.1") && ran.out.contains("by diffusers' names"), "{}", ran.out);
    let json = program::run(["inspect", path, "--json"]).expect(0).json();
    assert_eq!(json["image_model"]["family"], "flux1");
    let other = fixtures::adapter("lora");
    let json = program::run(["inspect", other.to_str().expect("a path"), "--json"]).expect(0).json();
    assert!(json["image_model"].is_null());
}

#[test]
fn two_keys_that_mean_the_same_are_named_and_not_dropped() {
    let scratch = Scratch::new();
    let path = scratch.join("file.safetensors");
    let flux = "double_blocks.0.img_attn.proj";
    for (layout, module, one, other) in [
        ("comfyui", format!("diffusion_model.{flux}"), "lora_A.weight", "lora_A.default.weight"),
        ("comfyui", format!("diffusion_model.{flux}"), "lora_up.weight", "lora_B.weight"),
        ("ai-toolkit", format!("diffusion_model.{flux}"), "lora_A.weight", "lora_A"),
        ("native", flux.to_string(), "lora_A.weight", "lora_A.default.weight"),
        ("kohya", "diffusion_model.blocks.0".to_string(), "diff_m", "modulation.diff"),
    ] {
        let mut tensors = StateDict::new();
        pair(&mut tensors, &module, D, D, [".lora_down.weight", ".lora_up.weight"]);
        let shape = if one.starts_with("lora_up") || other.starts_with("lora_B") { [D, 2] } else { [2, D] };
        let (one, other) = (format!("{module}.{one}"), format!("{module}.{other}"));
        tensors.shift_remove(&one.replace("lora_A.weight", "lora_down.weight"));
        for (key, seed) in [(&one, 1), (&other, 2)] {
            tensors.insert(key.clone(), random(&shape, seed));
        }
        file(&path, tensors);
        let error = layout::open(&path, Some(layout)).expect_err("one of the two").to_string();
        assert!(error.contains("means the same") && error.contains(&other) | error.contains(&one), "{layout}: {error}");
        std::fs::remove_file(&path).expect("removed");
    }
}

#[test]
fn norms_of_all_rows_are_never_those_of_a_part() {
    let scratch = Scratch::new();
    // Magnitudes of inputs for the whole of a projection; the base has it in parts, the first of them first.
    let name = "lora_unet_double_blocks_0_img_attn_qkv";
    let mut tensors = StateDict::new();
    pair(&mut tensors, name, 3 * D, D, [".lora_down.weight", ".lora_up.weight"]);
    tensors.insert(format!("{name}.dora_scale"), random(&[1, D], 5));
    let adapter = scratch.join("adapter.safetensors");
    file(&adapter, tensors);
    let (base, whole) = (scratch.join("base"), scratch.join("whole.safetensors"));
    std::fs::create_dir(&base).expect("a folder");
    std::fs::write(base.join("config.json"), r#"{"_class_name": "FluxTransformer2DModel"}"#).expect("a config");
    let parts = ["to_q", "to_k", "to_v"].map(|leaf| format!("transformer_blocks.0.attn.{leaf}.weight"));
    let mut parts: StateDict = parts.into_iter().zip(7..).map(|(key, seed)| (key, random(&[D, D], seed))).collect();
    let rows: Vec<f32> = parts.values().flat_map(|part| part.to_f32().expect("floats")).collect();
    let fused = Tensor::from_f32(Dtype::F32, [3 * D, D], &rows).expect("floats");
    // By these it is known for a FLUX.1.
    for leaf in ["attn.to_q", "attn.to_k", "attn.to_v"] {
        parts.insert(format!("single_transformer_blocks.0.{leaf}.weight"), random(&[D, D], 3));
    }
    parts.insert("single_transformer_blocks.0.proj_mlp.weight".to_string(), random(&[4 * D, D], 3));
    file(&base.join("diffusion_pytorch_model.safetensors"), parts);
    let linear = ("single_blocks.0.linear1.weight".to_string(), random(&[7 * D, D], 3));
    file(&whole, StateDict::from_iter([("double_blocks.0.img_attn.qkv.weight".to_string(), fused), linear]));
    for threads in ["1", "4"] {
        let ran = program::merge(&base, &adapter, &scratch.join("out"), &["--threads", threads]).expect(1);
        assert!(ran.err.contains("rows that the base stores elsewhere"), "{}", ran.err);
    }
    // As the best LoRA of full rank it is the same change, and comes apart.
    let eight = D.to_string();
    for (model, name) in [(&base, "of_parts"), (&whole, "of_whole")] {
        let out = scratch.join(&format!("{name}.safetensors"));
        let (adapter, model) = (adapter.as_os_str(), model.as_os_str());
        let rank = ["--normalise", "--to", "diffusers", "--rank", &eight, "-o"].map(std::ffi::OsStr::new);
        let words = ["convert".as_ref(), adapter, "--base".as_ref(), model].into_iter().chain(rank);
        program::run(words.chain([out.as_os_str()])).expect(0);
        let words = ["compare".as_ref(), adapter, out.as_os_str(), "--base".as_ref(), whole.as_os_str()];
        program::run(words.into_iter().chain(["--tolerance", "1e-4"].map(std::ffi::OsStr::new))).expect(0);
    }
}

#[test]
fn a_norm_that_is_replaced_twice_is_an_error() {
    let scratch = Scratch::new();
    let path = scratch.join("adapter.safetensors");
    let mut adapter = StateDict::new();
    pair(&mut adapter, "double_blocks.0.img_attn.qkv", 3 * D, D, [".lora_A.weight", ".lora_B.weight"]);
    for word in ["scale", "set_weight"] {
        adapter.insert(format!("double_blocks.0.img_attn.norm.query_norm.{word}"), random(&[4], 7));
    }
    file(&path, adapter);
    let error = layout::open(&path, None).expect_err("two of a kind").to_string();
    assert!(error.contains("query_norm") && error.contains("means the same as"), "{error}");
}
