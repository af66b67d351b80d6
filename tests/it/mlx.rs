//! MLX's layout: merged weights against mlx-lm's formulas, and the way from PEFT to MLX and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::{Delta, Full, LowRank, full::Mode};
use lora_tool::adapter::{Adapter, Note, Scale, ScaleRule, Severity, SiteKind, Target};
use lora_tool::layout::{self, Layout};
use lora_tool::tensor::{Dtype, Tensor};
use serde_json::{Map, Value, json};

use crate::fixtures::{self, Case, Scratch, cases};
use crate::parity;
use crate::program::{Ran, run};

fn named(name: &str) -> &'static dyn Layout {
    layout::named(name).expect("a layout")
}

fn folder(case: &str) -> PathBuf {
    fixtures::root().join("adapters/mlx").join(case)
}

fn config(folder: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

/// Written as `layout` and read again.
fn through(layout: &str, adapter: &Adapter) -> (Adapter, Map<String, Value>, Vec<Note>) {
    let (draft, notes) = named(layout).write(adapter).expect("a draft");
    let scratch = Scratch::new();
    let path = scratch.join("written");
    layout::save(&draft, &path, &[], false, false).expect("a written adapter");
    let opened = layout::open(&path, None).expect("what was written can be read");
    assert_eq!(opened.layout, layout);
    (opened.adapter, config(&path), notes)
}

#[test]
fn merged_weights_are_those_of_the_formulas() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("mlx").iter().filter(|case| case.expects_merge()) {
        count += 1;
        let found = parity::differences_of(case, &case.path);
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 10, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("mlx").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let e = layout::open(&case.path, None).expect_err(&case.name);
        assert!(e.to_string().contains(word), "{}: {e}", case.name);
    }
    assert!(count > 5, "only {count} fixtures were found");
}

#[test]
fn a_layout_is_recognised_by_what_it_has() {
    let opened = layout::open(&folder("lora"), None).expect("an adapter");
    assert_eq!(opened.layout, "mlx");
    assert!(opened.because.contains("no peft_type"), "{}", opened.because);
    assert_eq!(layout::open(&folder("npz"), None).expect("an adapter").layout, "mlx");
    assert_eq!(layout::open(&fixtures::adapter("lora"), None).expect("an adapter").layout, "peft");
    // Without a config the keys tell which it is, and that the scale is missing.
    let scratch = Scratch::new();
    let alone = scratch.join("adapters.safetensors");
    std::fs::copy(folder("lora").join("adapters.safetensors"), &alone).expect("a copy");
    let e = layout::open(&alone, None).expect_err("no scale");
    assert!(e.to_string().contains("the scale is only there"), "{e}");
}

#[test]
fn guesses_about_the_scale_are_noted() {
    for (case, word) in [("npz", "scale 20"), ("alpha", "June 2024")] {
        let notes = layout::open(&folder(case), None).expect("an adapter").notes;
        assert!(notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains(word)), "{case}: {notes:?}");
    }
    assert_eq!(layout::open(&folder("lora"), None).expect("an adapter").notes, []);
}

#[test]
fn an_adapter_of_mlx_read_and_written_is_the_same() {
    let mut count = 0;
    for case in cases("mlx").iter().filter(|case| case.expects_merge()) {
        let given = layout::open(&case.path, None).expect("an adapter");
        // Stacks of the older form become those of the newer, whole experts are not written.
        let (draft, notes) = named("mlx").write(&given.adapter).expect(&case.name);
        let lossy: Vec<_> = notes.iter().filter(|n| n.severity == Severity::Lossy).collect();
        assert!(lossy.is_empty(), "{}: {lossy:?}", case.name);
        if case.name != "experts_flat" {
            let sorted = |all: &lora_tool::tensor::StateDict| all.clone().into_iter().collect::<BTreeMap<_, _>>();
            assert_eq!(sorted(&draft.tensors), sorted(&given.source.tensors), "{}", case.name);
        }
        let (again, new, _) = through("mlx", &given.adapter);
        assert_eq!(again.targets.keys().collect::<Vec<_>>(), given.adapter.targets.keys().collect::<Vec<_>>());
        if let Some((_, old)) = &given.source.config {
            let kept =
                old.iter().filter(|(name, _)| !["use_dora", "lora_layers", "lora_parameters"].contains(&name.as_str()));
            for (name, value) in kept {
                assert_eq!(new.get(name), Some(value), "{}: {name}", case.name);
            }
            if !["alpha"].contains(&case.name.as_str()) {
                assert_eq!(new["lora_parameters"], old["lora_parameters"], "{}", case.name);
            }
        }
        count += 1;
    }
    assert!(count > 10, "only {count} fixtures were found");
}

/// A module, rank and scale of its factors, whether it has a magnitude.
type Meaning = (String, Option<(usize, u64)>, bool);

/// What PEFT says of each module, in numbers.
fn meaning(adapter: &Adapter) -> Vec<Meaning> {
    let of = |t: &Target| {
        t.weight.iter().find_map(|d| match d {
            Delta::LowRank(f) => Some((f.rank(), f.factor().to_bits())),
            _ => None,
        })
    };
    // A router's matrix is a parameter in PEFT's newer files and a layer in MLX.
    let name = |path: &str| path.trim_end_matches(".weight").to_string();
    adapter.targets.iter().map(|(p, t)| (name(p.as_str()), of(t), t.magnitude.is_some())).collect()
}

/// Leaves out the embedding that PEFT saves along with its factors.
fn without_the_base(adapter: &mut Adapter) {
    let both = named("mlx").write(adapter).expect_err("a weight that is there twice");
    assert!(both.advice().is_some_and(|hint| hint.contains("save_embedding_layers")), "{both}");
    for target in adapter.targets.values_mut() {
        target.weight.retain(|delta| !matches!(delta, Delta::Full(_)));
    }
}

#[test]
fn from_peft_to_mlx_and_back_nothing_is_lost() {
    let mut failed = Vec::new();
    let mut kept = Vec::new();
    let mut refused = BTreeMap::new();
    for case in cases("peft") {
        let Ok(mut opened) = layout::open(&case.adapter(), None) else { continue };
        if ["embedding", "embedding_dora"].contains(&case.name.as_str()) {
            without_the_base(&mut opened.adapter);
        }
        let Ok((direct, _)) = named("peft").write(&opened.adapter) else { continue };
        let (draft, notes) = match named("mlx").write(&opened.adapter) {
            Ok(written) => written,
            Err(e) => {
                refused.insert(case.name, e.to_string());
                continue;
            }
        };
        let moved = ["folded into", "filled up", "taken apart"];
        let moved = notes.iter().any(|n| moved.iter().any(|word| n.text.contains(word)));
        if moved {
            continue;
        }
        let scratch = Scratch::new();
        let path = scratch.join("mlx");
        layout::save(&draft, &path, &[], false, false).expect("a written adapter");
        let there = match layout::open(&path, None) {
            Ok(there) => there.adapter,
            Err(e) => {
                failed.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        let (back, _) = named("peft").write(&there).expect("a draft");
        // Tuned norms come back as modules that are saved whole.
        if opened.adapter.declared == "LN_TUNING" {
            assert_eq!(there.targets, opened.adapter.targets);
        } else if back.tensors != direct.tensors {
            failed.push(format!("{}: the tensors differ", case.name));
        }
        let (again, _, _) = through("peft", &there);
        if meaning(&again) != meaning(&opened.adapter) {
            failed.push(format!("{}: {:?} for {:?}", case.name, meaning(&again), meaning(&opened.adapter)));
        }
        for name in ["base_model_name_or_path", "revision", "task_type"] {
            if again.about.get(name) != opened.adapter.about.get(name) {
                failed.push(format!("{}: {name} differs", case.name));
            }
        }
        kept.push(case.name);
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for name in ["lora", "dora", "rslora", "embedding", "bf16", "gpt2", "llava", "mixtral_old", "gpt_neox"] {
        assert!(kept.iter().any(|k| k == name), "{name} was not kept: {:?}", refused.get(name));
    }
    let said = |name: &str| refused.get(name).map(String::as_str).unwrap_or_default();
    for (name, word) in [
        ("resnet", "convolution"),
        ("lora_bias", "bias"),
        ("save_norms", "whole tensor"),
        ("tokens", "token rows"),
        ("experts_018", "which axis"),
        ("gpt_oss_both", "gpt-oss"),
        ("loha", "LoHa"),
        ("embedding_dora", "norms by"),
        ("pissa", "changed"),
    ] {
        assert!(said(name).contains(word), "{name}: {:?}", refused.get(name));
    }
}

/// What MLX holds of PEFT's fixtures gives PEFT's own merged weights.
#[test]
fn an_adapter_of_peft_merges_the_same_from_mlx() {
    let mut failed = Vec::new();
    let mut done = Vec::new();
    let all = cases("peft");
    for case in all.iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let adapter = layout::open(&case.adapter(), None).expect("an adapter").adapter;
        let Ok((draft, _)) = named("mlx").write(&adapter) else { continue };
        let scratch = Scratch::new();
        let path = scratch.join("mlx");
        layout::save(&draft, &path, &[], false, false).expect("a written adapter");
        done.push(case.name.as_str());
        failed.extend(parity::differences_of(case, &path).into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(failed.is_empty(), "{} faults in {} cases:\n{}", failed.len(), done.len(), failed.join("\n"));
    for name in [
        "gpt2",
        "lora_all_linear",
        "mixtral_old",
        "qwen2_moe_both",
        "qwen3_moe_down",
        "qwen3_moe_names",
        "qwen3_moe_router",
    ] {
        assert!(done.contains(&name), "{name} is not among {done:?}");
    }
}

fn beside_the_base(case: &Case, out: &Path) -> Ran {
    let paths = [case.adapter(), case.base(), out.to_path_buf()].map(|path| path.to_string_lossy().into_owned());
    let [adapter, base, out] = paths.each_ref();
    run(["convert", adapter, "--base", base, "-o", out, "--to", "mlx", "--no-sync"])
}

/// With the base the names are those of the MLX models, which have them from the base's files.
#[test]
fn beside_the_base_modules_have_the_names_of_mlx() {
    let mut failed = Vec::new();
    let mut done = BTreeMap::new();
    for case in cases("peft").iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let scratch = Scratch::new();
        let path = scratch.join("mlx");
        if beside_the_base(case, &path).code != Some(0) {
            continue;
        }
        let opened = layout::open(&path, None).expect("what was written can be read");
        done.insert(case.name.clone(), opened.source.tensors.keys().cloned().collect::<Vec<_>>());
        if !case.name.starts_with("gpt_oss") {
            failed.extend(parity::differences_of(case, &path).into_iter().map(|w| format!("{}: {w}", case.name)));
        }
    }
    assert!(failed.is_empty(), "{} faults in {} cases:\n{}", failed.len(), done.len(), failed.join("\n"));
    for (name, key) in [
        ("mixtral_both", "model.layers.0.block_sparse_moe.switch_mlp.gate_proj.lora_a"),
        ("qwen3_moe_both", "model.layers.0.mlp.switch_mlp.down_proj.lora_b"),
        ("qwen3_moe_router", "model.layers.0.mlp.gate.lora_a"),
        ("gpt_oss_both", "model.layers.0.mlp.experts.up_proj.lora_b"),
        ("gpt2", "model.h.0.attn.c_attn.lora_a"),
        ("embedding", "model.embed_tokens.lora_a"),
    ] {
        let keys = done.get(name).unwrap_or_else(|| panic!("{name} was not written"));
        assert!(keys.iter().any(|own| own == key), "{name}: {keys:?}");
    }
}

/// The names of the MLX model are those of transformers again on the way back.
#[test]
fn beside_the_base_the_way_back_has_the_names_of_the_model() {
    let all = cases("peft");
    for name in ["gpt2", "lora", "gpt_neox"] {
        let case = all.iter().find(|case| case.name == name).expect("the fixture");
        let scratch = Scratch::new();
        let (there, back) = (scratch.join("mlx"), scratch.join("back"));
        beside_the_base(case, &there).expect(0);
        let paths = [&there, &case.base(), &back].map(|path| path.to_string_lossy().into_owned());
        let [mlx, base, out] = paths.each_ref();
        run(["convert", mlx, "--base", base, "-o", out, "--to", "peft", "--no-sync"]).expect(0);
        let tensors = |path: &Path| layout::open(path, None).expect("an adapter").source.tensors;
        assert!(tensors(&back) == tensors(&case.adapter()), "{name}: {:?}", tensors(&back).keys());
    }
}

/// gpt-oss has gate and up projection in turns, and its MLX model has them apart.
#[test]
fn what_lies_in_turns_comes_apart() {
    let all = cases("peft");
    let case = all.iter().find(|case| case.name == "gpt_oss_both").expect("the fixture");
    let scratch = Scratch::new();
    let path = scratch.join("mlx");
    beside_the_base(case, &path).expect(0);
    let whole = layout::open(&case.adapter(), None).expect("an adapter").source.tensors;
    let apart = layout::open(&path, None).expect("an adapter").source.tensors;
    let module = "model.layers.0.mlp.experts";
    let b = &whole[&format!("base_model.model.{module}.base_layer.lora_B.weight")];
    let parts = ["gate_proj", "up_proj"].map(|part| &apart[&format!("{module}.{part}.lora_b")]);
    let &[experts, rows, rank] = parts[0].shape.dims() else { panic!("{}", parts[0].shape) };
    let (b, parts) = (b.to_f32().expect("B"), parts.map(|part| part.to_f32().expect("lora_b")));
    for (e, i, k) in (0..experts).flat_map(|e| (0..rows).flat_map(move |i| (0..rank).map(move |k| (e, i, k)))) {
        for (turn, part) in parts.iter().enumerate() {
            let column = k * experts + e;
            assert_eq!(part[(e * rows + i) * rank + k], b[(2 * i + turn) * rank * experts + column], "{e} {i} {k}");
        }
    }
}

fn tensor(dtype: Dtype, shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) % 101) as f32 - 50.0).collect();
    Tensor::from_f32(dtype, shape, &values).expect("a tensor")
}

fn lora(dtype: Dtype, rank: usize, scale: Scale, seed: usize) -> Target {
    let (a, b) = (tensor(dtype, &[rank, 6], seed), tensor(dtype, &[4, rank], seed + 1));
    let delta = Delta::LowRank(LowRank { a, b, scale, experts: None, name: "LoRA" });
    Target { weight: vec![delta], ..Target::default() }
}

fn adapter(targets: impl IntoIterator<Item = (&'static str, Target)>) -> Adapter {
    Adapter { targets: targets.into_iter().map(|(path, t)| (path.into(), t)).collect(), ..Adapter::default() }
}

/// The change in f64, by the definition.
fn change(target: &Target) -> Vec<f64> {
    let Delta::LowRank(f) = &target.weight[0] else { panic!("no factors") };
    let (a, b) = (f.a.to_matrix().unwrap(), f.b.to_matrix().unwrap());
    let at = |o: usize, i: usize| (0..f.rank()).map(|k| f64::from(b[[o, k]]) * f64::from(a[[k, i]])).sum::<f64>();
    (0..b.nrows()).flat_map(|o| (0..a.ncols()).map(move |i| (o, i))).map(|(o, i)| f.factor() * at(o, i)).collect()
}

#[test]
fn every_multiplier_and_every_rank_come_to_the_same_change() {
    let root = Scale { alpha: 6.0, rule: ScaleRule::AlphaOverRootRank };
    let given = adapter([
        ("model.layers.0.a", lora(Dtype::BF16, 2, Scale::direct(2.0), 1)),
        ("model.layers.0.b", lora(Dtype::BF16, 2, Scale::direct(2.0), 3)),
        ("model.layers.0.c", lora(Dtype::BF16, 1, Scale::direct(0.5), 5)),
        ("model.layers.1.d", lora(Dtype::BF16, 3, Scale::direct(3.0), 7)),
        ("model.layers.1.e", lora(Dtype::F32, 4, root, 9)),
        ("model.layers.1.f", lora(Dtype::F32, 2, Scale::direct(0.1), 11)),
    ]);
    let (found, config, notes) = through("mlx", &given);
    assert_eq!(config["lora_parameters"]["rank"], 4);
    assert_eq!(config["lora_parameters"]["scale"], 2.0);
    assert_eq!(config["num_layers"], -1);
    assert_eq!(config["lora_parameters"]["keys"], json!(["a", "b", "c", "d", "e", "f"]));
    for (path, target) in &given.targets {
        let exact = !path.as_str().ends_with('f');
        for (new, old) in change(&found.targets[path]).into_iter().zip(change(target)) {
            // Rounded once to f32 where the ratio of the scales is no short number.
            let allowed = if exact { 0.0 } else { 2f64.powi(-24) * old.abs().max(300.0) };
            assert!((new - old).abs() <= allowed, "{path}: {new} for {old}");
        }
    }
    let dtype = |path: &str| found.targets[path].weight[0].tensors()[1].1.dtype;
    assert_eq!((dtype("model.layers.0.c"), dtype("model.layers.1.d")), (Dtype::BF16, Dtype::BF16));
    let lossy: Vec<_> = notes.iter().filter(|n| n.severity == Severity::Lossy).map(|n| n.key.as_str()).collect();
    assert_eq!(lossy, ["model.layers.1.f"]);
}

#[test]
fn what_has_no_place_in_the_files_is_an_error() {
    let plain = || lora(Dtype::F32, 2, Scale::direct(1.0), 1);
    let whole = || Delta::Full(Full { tensor: tensor(Dtype::F32, &[4], 1), mode: Mode::Replace });
    let magnitude = Target { magnitude: Some(tensor(Dtype::F32, &[4], 3)), ..plain() };
    let bias = Target { bias: vec![whole()], ..plain() };
    let parameter = Target { site: SiteKind::Parameter, ..plain() };
    let infinite = lora(Dtype::F32, 2, Scale::direct(f64::INFINITY), 1);
    let refused = [
        ("DoRA on 1 of 2", adapter([("model.layers.0.q", plain()), ("model.layers.0.k", magnitude)])),
        ("of the bias", adapter([("model.layers.0.q", bias)])),
        ("its own name", adapter([("model.layers.0.q", parameter)])),
        ("finite", adapter([("model.layers.0.q", infinite)])),
        ("this name tells another", adapter([("model.embed_tokens", plain())])),
        ("nothing to write", adapter([])),
        ("expert 0 is not", adapter([("model.layers.0.mlp.experts.1.up_proj", plain())])),
    ];
    for (word, given) in refused {
        let e = named("mlx").write(&given).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
    }
}

#[test]
fn modules_whose_name_may_differ_are_noted() {
    let given = adapter([("transformer.h.0.attn.c_attn", lora(Dtype::F32, 2, Scale::direct(1.0), 1))]);
    let (_, notes) = named("mlx").write(&given).expect("a draft");
    assert!(notes.iter().any(|n| n.severity == Severity::Lossy && n.key.starts_with("transformer.h.0")), "{notes:?}");
}

#[test]
fn a_damaged_archive_of_arrays_is_an_error_and_no_more() {
    let good = std::fs::read(folder("npz").join("adapters.npz")).expect("an archive");
    let scratch = Scratch::new();
    let path = scratch.join("adapters.npz");
    let mut read = 0;
    for at in (0..good.len()).step_by(7) {
        for bytes in [good[..at].to_vec(), [&good[..at], &[good[at] ^ 0x11], &good[at + 1..]].concat()] {
            std::fs::write(&path, bytes).expect("a file");
            read += usize::from(layout::open(&path, None).is_ok());
        }
    }
    // Most bytes are values; what is cut off is never read.
    assert!(read > 0 && read <= good.len().div_ceil(7), "{read}");
    let e = layout::open(&path, Some("peft")).expect_err("no alpha");
    assert!(e.file().is_some(), "{e}");
}
