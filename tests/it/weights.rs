//! Parts of an adapter at strengths of their own: by patterns, and block by block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::container::SafetensorsFile;
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::{Scratch, file};
use crate::program::{self, Ran};

const D: usize = 8;

fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<_> = (0..count).map(|i| ((i * 29 + seed * 83) % 193) as f32 / 64.0 - 1.5).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("floats")
}

fn values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let opened = SafetensorsFile::open(path).expect("tensors");
    opened.tensors.iter().map(|(key, t)| (key.clone(), t.to_f32().expect("floats"))).collect()
}

/// A base of these weights and an adapter of kohya's for modules of these names, one for each.
fn pair(scratch: &Scratch, modules: &[(&str, &str, [usize; 2])]) -> (PathBuf, PathBuf) {
    let (mut base, mut adapter) = (StateDict::new(), StateDict::new());
    for (seed, (key, name, [rows, columns])) in modules.iter().enumerate() {
        base.insert(format!("{key}.weight"), numbers(&[*rows, *columns], seed));
        adapter.insert(format!("{name}.lora_down.weight"), numbers(&[2, *columns], seed + 7));
        adapter.insert(format!("{name}.lora_up.weight"), numbers(&[*rows, 2], seed + 11));
    }
    (file(&scratch.join("base.safetensors"), base), file(&scratch.join("adapter.safetensors"), adapter))
}

const FLUX: [(&str, &str, [usize; 2]); 4] = [
    ("double_blocks.0.img_attn.qkv", "lora_unet_double_blocks_0_img_attn_qkv", [3 * D, D]),
    ("double_blocks.1.img_attn.proj", "lora_unet_double_blocks_1_img_attn_proj", [D, D]),
    ("single_blocks.0.linear2", "lora_unet_single_blocks_0_linear2", [D, 5 * D]),
    ("final_layer.linear", "lora_unet_final_layer_linear", [4, D]),
];

/// Whether each tensor changed by so much of what it changes by at strength 1.
fn check(base: &Path, whole: &Path, part: &Path, shares: &[(&str, f32)]) {
    let (base, whole, part) = (values(base), values(whole), values(part));
    for (key, share) in shares {
        let key = format!("{key}.weight");
        for ((old, full), new) in base[&key].iter().zip(&whole[&key]).zip(&part[&key]) {
            let wanted = old + share * (full - old);
            assert!((new - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{key}: {new} for {wanted}");
        }
    }
}

fn merged(scratch: &Scratch, (base, adapter): &(PathBuf, PathBuf), name: &str, more: &[&str]) -> (PathBuf, Ran) {
    let out = scratch.join(name);
    let ran = program::merge(base, adapter, &out, more);
    (out, ran)
}

#[test]
fn patterns_give_parts_a_strength_of_their_own() {
    let scratch = Scratch::new();
    let files = pair(&scratch, &FLUX);
    let (whole, ran) = merged(&scratch, &files, "whole.safetensors", &[]);
    ran.expect(0);
    // Names are those of the authors or of diffusers; the last pattern that fits counts.
    let more = [
        "--strength",
        r"double_blocks\..*=0.5",
        "--strength",
        r"single_transformer_blocks=-2",
        "--strength",
        r"blocks\.1\.=0.25",
    ];
    let (part, ran) = merged(&scratch, &files, "part.safetensors", &more);
    ran.expect(0);
    let [a, b, c, d] = FLUX.map(|(key, ..)| key);
    check(&files.0, &whole, &part, &[(a, 0.5), (b, 0.25), (c, -2.0), (d, 1.0)]);
    // Times the strength of the adapter.
    let (part, ran) =
        merged(&scratch, &files, "half.safetensors", &["--strength", "0.5", "--strength", "final_layer=0.5"]);
    ran.expect(0);
    check(&files.0, &whole, &part, &[(a, 0.5), (d, 0.25)]);
}

#[test]
fn a_pattern_that_fits_nothing_or_a_part_is_refused() {
    let scratch = Scratch::new();
    let files = pair(&scratch, &FLUX);
    for (pattern, code, said) in [
        ("middle_block=0.5", 1, "no module of the adapter has a name with `middle_block`"),
        (r"attn\.to_q=0.5", 1, "fits a part of it"),
        ("(=0.5", 2, "no regular expression"),
        ("double=x", 2, "`x` is no number"),
        ("abc", 2, "expected a number or PATTERN=X"),
        (".*=0", 2, "nothing is left"),
    ] {
        let (out, ran) = merged(&scratch, &files, "out.safetensors", &["--strength", pattern]);
        let ran = ran.expect(code);
        assert!(ran.err.contains(said), "{pattern}: {}", ran.err);
        assert!(!out.exists());
    }
}

/// Blocks of a small SD 1, and what a list of 17 calls them.
const SD1: [(&str, &str, [usize; 2]); 6] = [
    (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        [D, D],
    ),
    (
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        [D, 6],
    ),
    (
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
        [D, D],
    ),
    (
        "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_v",
        "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_v",
        [D, D],
    ),
    ("model.diffusion_model.input_blocks.3.0.op", "lora_unet_down_blocks_0_downsamplers_0_conv", [D, D]),
    (
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        [D, 6],
    ),
];

#[test]
fn lists_of_block_weights_are_those_that_users_know() {
    let scratch = Scratch::new();
    let files = pair(&scratch, &SD1);
    let (whole, ran) = merged(&scratch, &files, "whole.safetensors", &[]);
    ran.expect(0);
    let [in01, in04, m00, out03, in03, base] = SD1.map(|(key, ..)| key);
    let list = "0.5,0.1,0,0.2,0,0,0,0.3,0.4,0,0,0,0,0,0,0,0";
    let (part, ran) = merged(&scratch, &files, "part.safetensors", &["--block-weights", list]);
    let said = ran.expect(0).err;
    // A block that a list of 17 does not have is left out, and that is said.
    assert!(said.contains("(IN03) are left out"), "{said}");
    let shares = [(base, 0.5), (in01, 0.1), (in04, 0.2), (m00, 0.3), (out03, 0.4), (in03, 0.0)];
    check(&files.0, &whole, &part, &shares);
    let list = format!("1,{}", (0..25).map(|n| format!("0.{n:02}")).collect::<Vec<_>>().join(","));
    let (part, ran) = merged(&scratch, &files, "full.safetensors", &["--block-weights", &list]);
    ran.expect(0);
    check(&files.0, &whole, &part, &[(base, 1.0), (in01, 0.01), (in03, 0.03), (m00, 0.12), (out03, 0.16)]);
    let (part, ran) = merged(&scratch, &files, "preset.safetensors", &["--block-weights", "OUTD"]);
    ran.expect(0);
    check(&files.0, &whole, &part, &[(base, 1.0), (in01, 0.0), (m00, 0.0), (out03, 1.0)]);
    for (list, code, said) in [
        ("1,2,3", 2, "3 numbers; lists for Stable Diffusion 1 have 26 or 17"),
        ("INALLE", 2, "nor a preset (NONE, ALL"),
        ("NONE", 2, "nothing is left"),
    ] {
        let (_, ran) = merged(&scratch, &files, "out.safetensors", &["--block-weights", list]);
        let ran = ran.expect(code);
        assert!(ran.err.contains(said), "{list}: {}", ran.err);
    }
}

#[test]
fn what_was_merged_by_parts_can_be_undone_found_and_taken_out() {
    let scratch = Scratch::new();
    let files = pair(&scratch, &FLUX);
    let record = scratch.join("base.undo");
    let weights = ["--strength", "double_blocks=0.5", "--strength", "linear2=0"];
    let more: Vec<&str> = weights.into_iter().chain(["--undo", record.to_str().expect("a path")]).collect();
    let (merged, ran) = merged(&scratch, &files, "merged.safetensors", &more);
    ran.expect(0);
    let path = |name: &str| scratch.join(name).to_str().expect("a path").to_string();
    let (merged, base, adapter) =
        (merged.to_str().expect("a path"), files.0.to_str().expect("a path"), files.1.to_str().expect("a path"));
    let back = path("back.safetensors");
    program::run(["unmerge", merged, "-o", &back, "--undo", record.to_str().expect("a path")]).expect(0);
    let bytes = |path: &str| std::fs::read(path).expect("bytes");
    assert!(bytes(&back) == bytes(base), "not the base");

    // Taken out with the same weights, the base is there again to rounding; the history knows the two for the same.
    let less = path("less.safetensors");
    let unmerge = ["unmerge", merged, "-o", &less, "--adapter", adapter];
    let ran = program::run(unmerge.into_iter().chain(weights)).expect(0);
    assert!(!ran.err.contains("not among"), "{}", ran.err);
    for (key, wanted) in values(Path::new(base)) {
        for (found, wanted) in values(Path::new(&less))[&key].iter().zip(wanted) {
            assert!((found - wanted).abs() <= 1e-5, "{key}: {found} for {wanted}");
        }
    }
    let ran = program::run(["unmerge", merged, "-o", &path("other.safetensors"), "--adapter", adapter]).expect(0);
    assert!(ran.err.contains("not among the adapters that the model's files name"), "{}", ran.err);

    let verify = ["verify", merged, "--base", base, "--adapter", adapter];
    program::run(verify.into_iter().chain(weights)).expect(0);
    program::run(verify).expect(1);

    // Of two adapters, one is taken out by the record; the other is merged again by its parts.
    let other = scratch.join("other");
    std::fs::create_dir(&other).expect("a folder");
    let second = file(
        &other.join("second.safetensors"),
        [
            ("lora_unet_final_layer_linear.lora_down.weight".to_string(), numbers(&[1, D], 40)),
            ("lora_unet_final_layer_linear.lora_up.weight".to_string(), numbers(&[4, 1], 41)),
            ("lora_unet_double_blocks_1_img_attn_proj.lora_down.weight".to_string(), numbers(&[1, D], 42)),
            ("lora_unet_double_blocks_1_img_attn_proj.lora_up.weight".to_string(), numbers(&[D, 1], 43)),
            ("lora_unet_single_blocks_0_linear2.lora_down.weight".to_string(), numbers(&[1, 5 * D], 44)),
            ("lora_unet_single_blocks_0_linear2.lora_up.weight".to_string(), numbers(&[D, 1], 45)),
        ]
        .into_iter()
        .collect(),
    );
    let (both, twice) = (path("both.safetensors"), path("both.undo"));
    let merge = ["merge", base, adapter, second.to_str().expect("a path"), "-o", &both, "--undo", &twice];
    program::run(merge.into_iter().chain(weights)).expect(0);
    let one = path("one.safetensors");
    program::run(["unmerge", &both, "-o", &one, "--undo", &twice, "--adapter", "second.safetensors"]).expect(0);
    assert_eq!(values(Path::new(&one)), values(Path::new(merged)));
}

#[test]
fn modules_that_keep_their_names_have_the_strengths_of_their_blocks() {
    let scratch = Scratch::new();
    // LoHa of the authors' names, which is not taken apart, on diffusers' parts.
    let mut base = StateDict::new();
    let attention = ["to_q", "to_k", "to_v"].map(|leaf| format!("transformer_blocks.0.attn.{leaf}"));
    let linear = ["attn.to_q", "attn.to_k", "attn.to_v"].map(|leaf| format!("single_transformer_blocks.0.{leaf}"));
    for (seed, module) in attention.iter().chain(&linear).enumerate() {
        base.insert(format!("{module}.weight"), numbers(&[D, D], seed));
    }
    base.insert("single_transformer_blocks.0.proj_mlp.weight".to_string(), numbers(&[4 * D, D], 7));
    let mut adapter = StateDict::new();
    for (name, rows) in [("double_blocks_0_img_attn_qkv", 3 * D), ("single_blocks_0_linear1", 7 * D)] {
        for (seed, (word, shape)) in
            [("hada_w1_a", [rows, 2]), ("hada_w1_b", [2, D]), ("hada_w2_a", [rows, 2]), ("hada_w2_b", [2, D])]
                .into_iter()
                .enumerate()
        {
            adapter.insert(format!("lora_unet_{name}.{word}"), numbers(&shape, seed + rows));
        }
    }
    let folder = scratch.join("base");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("config.json"), r#"{"_class_name": "FluxTransformer2DModel"}"#).expect("a config");
    let weights = "diffusion_pytorch_model.safetensors";
    let before = file(&folder.join(weights), base);
    let files = (folder, file(&scratch.join("adapter.safetensors"), adapter));
    let (whole, ran) = merged(&scratch, &files, "whole", &[]);
    ran.expect(0);
    let blocks: Vec<_> = (0..61).map(|n| ["1", "0.5", "-2"][usize::from(n == 3) + 2 * usize::from(n == 22)]).collect();
    for (name, more) in [
        ("patterns", vec!["--strength", r"\.transformer_blocks=0.5", "--strength", "single_transformer_blocks=-2"]),
        ("authors", vec!["--strength", "double_blocks=0.5", "--strength", "single_blocks=-2"]),
        ("blocks", vec!["--block-weights", &blocks.join(",")]),
    ] {
        let (part, ran) = merged(&scratch, &files, name, &more);
        ran.expect(0);
        let shares: Vec<_> = attention.iter().map(|m| (&**m, 0.5)).chain(linear.iter().map(|m| (&**m, -2.0))).collect();
        check(&before, &whole.join(weights), &part.join(weights), &shares);
    }
}
