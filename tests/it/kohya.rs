//! kohya's layout: merged weights against what LyCORIS makes of them, files that come out as they went in, and the way
//! from and to PEFT.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, s};

use lora_tool::adapter::delta::{Action, Full, InMemory, LowRank, full::Mode};
use lora_tool::adapter::{Adapter, Along, Delta, Note, Scale, ScaleRule, Severity, SiteKind, Target};
use lora_tool::container::SafetensorsFile;
use lora_tool::kernels::{Kernels, present};
use lora_tool::layout::{self, Draft, Layout, Opened};
use lora_tool::tensor::{Dtype, Rows, StateDict, Tensor};

use crate::fixtures::{self, Scratch};

fn named(name: &str) -> &'static dyn Layout {
    layout::named(name).expect("a layout")
}

fn folder() -> PathBuf {
    fixtures::root().join("kohya")
}

fn cases() -> Vec<String> {
    let entries =
        std::fs::read_dir(folder()).expect("the folder of fixtures").map(|entry| entry.expect("an entry").path());
    let names = entries.filter(|path| path.is_dir()).filter_map(|path| Some(path.file_name()?.to_str()?.to_string()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert!(names.len() > 30, "only {} fixtures were found", names.len());
    names
}

fn file(case: &str) -> PathBuf {
    folder().join(case).join("adapter.safetensors")
}

fn opened(case: &str) -> Opened {
    let opened = layout::open(&file(case), None).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    assert_eq!(opened.layout, if case == "comfy" { "comfyui" } else { "kohya" }, "{case}");
    opened
}

fn tensors(path: &Path) -> StateDict {
    SafetensorsFile::open(path).expect("a file of tensors").tensors
}

/// The tensor after the action, in pieces of `height` rows as far as the kind allows.
fn changed(kernels: &dyn Kernels, base: &Tensor, action: &Action, height: usize) -> Array2<f32> {
    let mut w = base.to_matrix().expect("floats");
    let before = InMemory(w.clone());
    let step = match action.rows() {
        Rows::Any => height,
        Rows::Multiple(n) => n * height.div_ceil(n),
        Rows::Whole => w.nrows(),
    };
    for start in (0..w.nrows()).step_by(step) {
        let rows = start..start.saturating_add(step).min(w.nrows());
        let part = w.slice_mut(s![rows.clone(), ..]);
        match action {
            Action::LowRank(factors) => factors.add_to(kernels, rows, part).expect("a product"),
            Action::Act(act) => act.act(kernels, rows, part, &before).expect("a change"),
            Action::Experts(_) => panic!("a stack of experts"),
        }
    }
    w
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// The largest error of a case's tensors in relation to their change.
fn check_merge(name: &str, adapter: &Adapter, kernels: &dyn Kernels, height: usize) {
    let base = tensors(&folder().join("base.safetensors"));
    let mut expected: BTreeMap<_, _> = tensors(&folder().join(name).join("expected.safetensors")).into_iter().collect();
    for (path, target) in &adapter.targets {
        let (weight, bias) = (path.tensor("weight"), path.tensor("bias"));
        let mut parts = Vec::new();
        if !target.weight.is_empty() {
            let action = target.weight_action(&base[&weight].shape, false).unwrap_or_else(|e| panic!("{name}: {e}"));
            parts.push((weight.clone(), action));
        }
        if !target.bias.is_empty() {
            parts.push((bias.clone(), target.bias_action(&base[&bias].shape, base.get(&weight)).expect("a bias")));
        }
        for (key, action) in parts {
            let found = changed(kernels, &base[&key], &action, height);
            let wanted = expected.remove(&key).unwrap_or_else(|| panic!("{name}: {key} is not in expected"));
            let (wanted, before) = (wanted.to_matrix().expect("floats"), base[&key].to_matrix().expect("floats"));
            let error = norm((&found - &wanted).into_iter()) / norm((&wanted - &before).into_iter());
            assert!(error < 1e-5, "{name}: {key}: relative error {error:.2e} with {}", kernels.name());
        }
    }
    assert!(expected.is_empty(), "{name}: not changed: {:?}", expected.keys());
}

#[test]
fn every_network_as_in_lycoris() {
    for name in cases() {
        let adapter = opened(&name).adapter;
        for kernels in present() {
            for height in [usize::MAX / 2, 3] {
                check_merge(&name, &adapter, kernels.as_ref(), height);
            }
        }
    }
}

#[test]
fn what_turns_the_outputs_turns_them_back() {
    let base = tensors(&folder().join("base.safetensors"));
    for name in ["oft", "oft_rescaled", "boft", "boft_rescaled", "oft_diag"] {
        for (path, target) in &opened(name).adapter.targets {
            let before = &base[&path.tensor("weight")];
            let Ok(Action::Act(act)) = target.weight_action(&before.shape, false) else { panic!("{name}: no act") };
            let action = Action::Act(act);
            let mut w = changed(present()[0].as_ref(), before, &action, usize::MAX / 2);
            let rows = w.nrows();
            let Action::Act(act) = action else { continue };
            let spread = act.undo(present()[0].as_ref(), 0..rows, w.view_mut()).expect("a way back");
            let before = before.to_matrix().expect("floats");
            let error = norm((&w - &before).into_iter()) / norm(before.iter().copied());
            assert!(error < 1e-6 * spread.max(1.0), "{name}: {path}: {error:.2e}");
        }
    }
}

fn save(draft: &Draft, scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.join(name);
    layout::save(draft, &path, &[], false, false).expect("a written adapter");
    path
}

#[test]
fn files_come_out_as_they_went_in() {
    for name in cases() {
        let opened = opened(&name);
        let (draft, notes) = named(opened.layout).write(&opened.adapter).unwrap_or_else(|e| panic!("{name}: {e}"));
        let lossy: Vec<_> = notes.iter().filter(|n| n.severity == Severity::Lossy).collect();
        assert!(lossy.is_empty(), "{name}: {lossy:?}");
        let scratch = Scratch::new();
        let written = std::fs::read(save(&draft, &scratch, "again.safetensors")).expect("a file");
        let before = std::fs::read(file(&name)).expect("a file");
        // The order of metadata is left to chance where it was written; everything else is the same to the byte.
        let parts = |bytes: &[u8]| {
            let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
            let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
            (header, bytes[8 + length..].to_vec())
        };
        assert_eq!(parts(&written), parts(&before), "{name}");
        assert_eq!(written.len(), before.len(), "{name}");
        let again = layout::open(&scratch.join("again.safetensors"), None).expect("an adapter");
        assert_eq!(again.adapter.targets, opened.adapter.targets, "{name}");
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

fn through(layout: &str, given: &Adapter) -> (Opened, Vec<Note>) {
    let (draft, notes) = named(layout).write(given).expect("a draft");
    let scratch = Scratch::new();
    let opened = layout::open(&save(&draft, &scratch, "written.safetensors"), None).expect("what was written");
    assert_eq!(opened.layout, layout);
    (opened, notes)
}

#[test]
fn a_new_file_says_what_sd_scripts_would() {
    let direct = Scale { alpha: 3.0, rule: ScaleRule::AlphaOverRank };
    let given = adapter([
        ("unet.down_blocks.0.q", lora(Dtype::F16, 2, direct, 1)),
        ("text_encoder_2.text_model.q", lora(Dtype::BF16, 301, Scale::direct(1.0), 3)),
        ("transformer.blocks.0.q", lora(Dtype::F32, 4, Scale { alpha: 6.0, rule: ScaleRule::AlphaOverRootRank }, 5)),
    ]);
    let (again, notes) = through("kohya", &given);
    assert_eq!(notes, []);
    let alpha = |name: &str| &again.source.tensors[&format!("{name}.alpha")];
    assert_eq!(alpha("lora_unet_down_blocks_0_q").dtype, Dtype::F16);
    assert_eq!(alpha("lora_unet_down_blocks_0_q").to_f32().expect("a number"), [3.0]);
    // 301 is no number of bf16, and 6 / √4 · 4 is 12.
    assert_eq!((alpha("lora_te2_text_model_q").dtype, alpha("lora_unet_blocks_0_q").dtype), (Dtype::F32, Dtype::F32));
    assert_eq!(alpha("lora_unet_blocks_0_q").to_f32().expect("a number"), [12.0]);
    for (path, target) in &given.targets {
        let (Delta::LowRank(old), Delta::LowRank(new)) = (&target.weight[0], &again.adapter.targets[path].weight[0])
        else {
            panic!("{path}: no factors")
        };
        assert_eq!((&new.a, &new.b, new.factor()), (&old.a, &old.b, old.factor()), "{path}");
    }
    let text = |key: &str| again.source.metadata.iter().find(|(k, _)| k == key).map(|(_, text)| text.as_str());
    assert_eq!(text("ss_network_module"), Some("networks.lora"));
    assert_eq!((text("ss_network_dim"), text("ss_network_alpha")), (Some("Dynamic"), Some("Dynamic")));
    assert_eq!(text("sshs_model_hash").map(str::len), Some(64));
    assert_eq!(text("sshs_legacy_hash"), Some("e3b0c442"));
}

#[test]
fn hashes_follow_the_tensors() {
    let mut given = opened("bundle").adapter;
    let text = |all: &[(String, String)], key: &str| {
        all.iter().find(|(k, _)| k == key).map(|(_, text)| text.clone()).expect("a hash")
    };
    let before = text(&given.carried.metadata, "sshs_model_hash");
    let target = given.targets.get_mut("unet.wide").expect("a module");
    if let [Delta::LowRank(d)] = target.weight.as_mut_slice() {
        d.b = lora_tool::adapter::fold::scaled(&d.b, 2.0).expect("a product").tensor;
    }
    let (again, _) = through("kohya", &given);
    assert_ne!(text(&again.source.metadata, "sshs_model_hash"), before);
    assert!(again.source.tensors.contains_key("bundle_emb.dog.clip_l"));
    // Another type of the tensors is another hash as well: what counts is what is written.
    let (mut draft, _) = named("kohya").write(&given).expect("a draft");
    lora_tool::ops::cast::tensors(&mut draft.tensors, Dtype::BF16).expect("a cast");
    let scratch = Scratch::new();
    let cast = layout::open(&save(&draft, &scratch, "cast.safetensors"), None).expect("an adapter");
    let (cast, wide) =
        (text(&cast.source.metadata, "sshs_model_hash"), text(&again.source.metadata, "sshs_model_hash"));
    assert_ne!(cast, wide);
}

#[test]
fn from_peft_to_kohya_and_back_nothing_is_lost() {
    let (mut kept, mut failed) = (Vec::new(), Vec::new());
    let mut refused = BTreeMap::new();
    for case in fixtures::cases("peft") {
        let Ok(given) = layout::open(&case.adapter(), None) else { continue };
        let Ok((direct, _)) = named("peft").write(&given.adapter) else { continue };
        let (draft, notes) = match named("kohya").write(&given.adapter) {
            Ok(written) => written,
            Err(e) => {
                refused.insert(case.name, e.to_string());
                continue;
            }
        };
        if notes.iter().any(|n| n.text.contains("folded") || n.text.contains("rounded")) {
            continue;
        }
        let scratch = Scratch::new();
        let there = match layout::open(&save(&draft, &scratch, "there.safetensors"), None) {
            Ok(there) => there.adapter,
            Err(e) => {
                failed.push(format!("{}: {e}", case.name));
                continue;
            }
        };
        // Tuned biases and norms are no modules that PEFT saves by this name.
        if ["BEFT", "LN_TUNING"].contains(&given.adapter.declared.as_str()) {
            assert_eq!(there.targets, given.adapter.targets, "{}", case.name);
            continue;
        }
        match named("peft").write(&there) {
            Ok((back, _)) if back.tensors == direct.tensors => kept.push(case.name),
            Ok(_) => failed.push(format!("{}: other tensors", case.name)),
            Err(e) => failed.push(format!("{}: {e}", case.name)),
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), kept.len(), failed.join("\n"));
    for name in ["lora", "dora", "rslora", "bf16", "llava", "resnet", "loha"] {
        assert!(kept.iter().any(|k| k == name), "{name} was not kept: {:?}", refused.get(name));
    }
    for (name, word) in
        [("embedding", "embedding"), ("ia3", "IA3"), ("oft", "OFT"), ("pissa", "changed"), ("tokens", "token rows")]
    {
        let said = refused.get(name).map(String::as_str).unwrap_or_default();
        assert!(said.contains(word), "{name}: {said:?}");
    }
}

#[test]
fn magnitudes_of_inputs_go_nowhere_else() {
    let given = opened("locon_dora_inputs").adapter;
    assert!(given.targets.values().all(|t| t.magnitude_along == Along::Cols));
    assert!(given.outline().iter().all(|line| line.contains("magnitude of inputs")), "{:?}", given.outline());
    for name in ["peft", "mlx"] {
        let e = named(name).write(&given).expect_err(name);
        assert!(e.to_string().contains("each input"), "{name}: {e}");
    }
    assert!(named("nemo").write(&given).is_err() && named("gguf").write(&given).is_err());
    // Those of outputs do, in the shape the other layout has.
    let mut outputs = opened("locon_dora").adapter;
    outputs.targets.retain(|path, _| path.as_str() == "unet.plane");
    let (draft, _) = named("peft").write(&outputs).expect("a draft");
    let magnitude = &draft.tensors["base_model.model.unet.plane.lora_magnitude_vector"];
    assert_eq!(magnitude.shape.dims(), [1, 8, 1, 1]);
}

#[test]
fn what_has_no_place_in_the_file_is_an_error() {
    let plain = || lora(Dtype::F32, 2, Scale::direct(1.0), 1);
    let whole = || Delta::Full(Full { tensor: tensor(Dtype::F32, &[4], 1), mode: Mode::Replace });
    let bias = Target { bias: vec![whole()], ..plain() };
    let two = Target { weight: [plain().weight, plain().weight].concat(), ..plain() };
    let parameter = Target { site: SiteKind::Parameter, ..plain() };
    let embedding = Target { site: SiteKind::Embedding, ..plain() };
    for (word, given) in [
        ("of the bias", adapter([("unet.q", bias)])),
        ("several changes", adapter([("unet.q", two)])),
        ("its own name", adapter([("unet.q", parameter)])),
        ("an embedding", adapter([("unet.q", embedding)])),
        ("finite", adapter([("unet.q", lora(Dtype::F32, 2, Scale::direct(f64::INFINITY), 1))])),
        ("the same name", adapter([("unet.q.a", plain()), ("unet.q_a", plain())])),
        ("nothing to write", adapter([])),
    ] {
        let e = named("kohya").write(&given).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
    }
}

#[test]
fn products_of_lycoris_merge_the_same_from_peft() {
    for name in ["locon", "locon_rs", "locon_dora", "loha", "loha_tucker", "lokr", "lokr_both", "lokr_tucker"] {
        let given = opened(name).adapter;
        let (draft, _) = named("peft").write(&given).unwrap_or_else(|e| panic!("{name}: {e}"));
        let scratch = Scratch::new();
        let path = save(&draft, &scratch, "peft");
        let there = layout::open(&path, None).unwrap_or_else(|e| panic!("{name}: {e}")).adapter;
        check_merge(name, &there, present()[0].as_ref(), usize::MAX / 2);
        let (back, _) = through("kohya", &there);
        check_merge(name, &back.adapter, present()[0].as_ref(), usize::MAX / 2);
    }
    // PEFT multiplies two whole factors in another order for a convolution along one axis.
    let mut given = opened("lokr_whole").adapter;
    assert!(named("peft").write(&given).is_err());
    given.targets.remove("unet.line");
    let (there, _) = {
        let (draft, notes) = named("peft").write(&given).expect("a draft");
        (layout::open(&save(&draft, &Scratch::new(), "peft"), None).expect("an adapter").adapter, notes)
    };
    for (path, target) in &given.targets {
        let (Delta::Kronecker(old), Delta::Kronecker(new)) = (&target.weight[0], &there.targets[path].weight[0]) else {
            panic!("{path}: no LoKr")
        };
        assert_eq!((&new.w1, &new.w2, new.scale.factor(new.rank())), (&old.w1, &old.w2, 1.0), "{path}");
    }
}

#[test]
fn a_core_can_be_multiplied_out() {
    let given = opened("locon_tucker").adapter;
    let plain = lora_tool::ops::normalise::normalise(&given, None, None, 1, &lora_tool::stream::Unwatched)
        .expect("plain factors")
        .adapter;
    assert!(plain.targets.values().all(|t| matches!(t.weight.as_slice(), [Delta::LowRank(_)])));
    check_merge("locon_tucker", &plain, present()[0].as_ref(), usize::MAX / 2);
    let delta = &given.targets["unet.plane"].weight[0];
    let spectrum = delta.spectrum(present()[0].as_ref()).expect("values").expect("a product");
    assert_eq!((spectrum.shape, spectrum.rank, spectrum.values.len()), ((8, 36), 3, 3));
}

/// Every tensor of every fixture in every other shape: an error or an adapter, never a panic.
#[test]
fn shapes_that_make_no_sense_do_no_harm() {
    let base = tensors(&folder().join("base.safetensors"));
    let scratch = Scratch::new();
    let mut count = 0;
    for name in cases() {
        let whole = tensors(&file(&name));
        for (key, tensor) in whole.iter().filter(|(key, _)| key.contains("wide") || key.contains("plane")) {
            let n = tensor.elements();
            let mut turned = tensor.shape.dims().to_vec();
            turned.reverse();
            let shapes =
                [turned, vec![n], vec![1, n], vec![n, 1], vec![n, 1, 1, 1], vec![1, 1, n, 1], vec![1, n, 1, 1, 1]];
            let reshaped = shapes.into_iter().filter_map(|shape| tensor.reshaped(shape).ok());
            let empty = [vec![0], vec![0, 4], vec![4, 0], vec![0, 0, 0, 0], vec![3, 0, 2, 2]];
            let empty = empty.into_iter().map(|shape| Tensor::from_f32(Dtype::F32, shape, &[]).expect("nothing"));
            for other in reshaped.chain(empty) {
                count += 1;
                let mut all = whole.clone();
                all.insert(key.clone(), other);
                let draft = Draft { tensors: all, ..Draft::default() };
                let path = scratch.join("odd.safetensors");
                layout::save(&draft, &path, &[], true, false).expect("a written adapter");
                let Ok(opened) = layout::open(&path, Some("kohya")) else { continue };
                let _ = named("kohya").write(&opened.adapter);
                let _ = named("peft").write(&opened.adapter);
                for (path, target) in &opened.adapter.targets {
                    for delta in &target.weight {
                        let _ = delta.spectrum(present()[0].as_ref());
                    }
                    let Some(stored) = base.get(&path.tensor("weight")) else { continue };
                    if let Ok(action) = target.weight_action(&stored.shape, false) {
                        changed(present()[0].as_ref(), stored, &action, usize::MAX / 2);
                    }
                }
            }
        }
    }
    assert!(count > 500, "only {count} were tried");
}

/// Keys and shapes.
type Shapes<'a> = &'a [(&'a str, &'a [usize])];

/// What is read of tensors of these shapes, all of f32.
fn reading(scratch: &Scratch, tensors: Shapes<'_>, metadata: &[(&str, &str)]) -> lora_tool::error::Result<Opened> {
    let tensors: StateDict =
        tensors.iter().map(|(key, dims)| ((*key).to_string(), tensor(Dtype::F32, dims, 1))).collect();
    let metadata = metadata.iter().map(|(key, text)| ((*key).to_string(), (*text).to_string())).collect();
    let draft = Draft { tensors, metadata, ..Draft::default() };
    let path = scratch.join("given.safetensors");
    layout::save(&draft, &path, &[], true, false).expect("a written adapter");
    layout::open(&path, Some("kohya"))
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    let down: (&str, &[usize]) = ("lora_unet_q.lora_down.weight", &[2, 4]);
    let up: (&str, &[usize]) = ("lora_unet_q.lora_up.weight", &[4, 2]);
    let refused: &[(&str, Shapes<'_>)] = &[
        ("no lora_up.weight", &[down]),
        ("no rank in common", &[down, ("lora_unet_q.lora_up.weight", &[4, 3])]),
        ("core [3, 2]", &[down, up, ("lora_unet_q.lora_mid.weight", &[3, 2])]),
        ("several kinds", &[down, up, ("lora_unet_q.diff", &[4, 4])]),
        ("no use for", &[down, up, ("lora_unet_q.rescale", &[4, 1])]),
        ("a suffix that no network", &[down, up, ("lora_unet_q.lora_B.bias", &[4])]),
        ("single number", &[down, up, ("lora_unet_q.alpha", &[2])]),
        (
            "no hada_w2_b",
            &[
                ("lora_unet_q.hada_w1_a", &[4, 2]),
                ("lora_unet_q.hada_w1_b", &[2, 4]),
                ("lora_unet_q.hada_w2_a", &[4, 2]),
            ],
        ),
        (
            "do not multiply",
            &[("lora_unet_q.lokr_w1", &[2, 2]), ("lora_unet_q.lokr_w2_a", &[2, 1]), ("lora_unet_q.lokr_w2_b", &[2, 2])],
        ),
        ("no weight", &[("lora_unet_q.on_input", &[])]),
        ("a core bm", &[("lora_unet_q.a1.weight", &[4, 2]), ("lora_unet_q.bm.weight", &[2, 2, 3, 3])]),
        ("square blocks", &[("lora_unet_q.oft_blocks", &[2, 2, 3])]),
        ("part of the outputs", &[down, up, ("lora_unet_k.oft_blocks.0", &[2, 2, 2])]),
        ("part of the outputs", &[("oft_unet_k.oft_blocks.0", &[2, 2, 2]), ("oft_unet_k.alpha", &[])]),
        ("range of rows", &[down, up, ("lora_unet_q.row_offset", &[])]),
        ("nothing that it is the length of", &[("lora_unet_q.dora_scale", &[4, 1])]),
        ("nothing but a scale", &[down, up, ("lora_unet_k.alpha", &[])]),
        ("no bias_size", &[("lora_unet_q.bias_values", &[1]), ("lora_unet_q.bias_indices", &[2, 1])]),
        ("means the same as `lora_unet__q`", &[("lora_unet_q.diff", &[4, 4]), ("lora_unet__q.diff", &[4, 4])]),
    ];
    for (word, tensors) in refused {
        let e = reading(&scratch, tensors, &[]).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
    }
    let e = reading(&scratch, &[down, up], &[("lora_tool.paths", "[1]")]).expect_err("no paths");
    assert_eq!(e.key(), Some("lora_tool.paths"));
}

/// The same adapter under both sorts of names, with all that a file has beside its factors.
#[test]
fn flat_and_dotted_files_hold_the_same() {
    for name in cases() {
        let given = opened(&name);
        let other = if given.layout == "kohya" { "comfyui" } else { "kohya" };
        let (draft, _) = named(other).write(&given.adapter).unwrap_or_else(|e| panic!("{name}: {e}"));
        let scratch = Scratch::new();
        let there = layout::open(&save(&draft, &scratch, "there.safetensors"), Some(other)).expect("an adapter");
        let (back, _) = named(given.layout).write(&there.adapter).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Prefixes that are not the usual ones become them.
        if ["dialects", "oft_kohya", "alphas"].contains(&name.as_str()) {
            assert_eq!(back.tensors.len(), given.source.tensors.len(), "{name}");
            continue;
        }
        let sorted = |all: &StateDict| all.clone().into_iter().collect::<BTreeMap<_, _>>();
        assert_eq!(sorted(&back.tensors), sorted(&given.source.tensors), "{name}");
    }
}

#[test]
fn names_get_their_dots_and_lose_them_again() {
    let names: [(&str, &str, &str); 5] = [
        (
            "lora_unet_double_blocks_0_img_attn_qkv",
            "transformer.double_blocks.0.img_attn.qkv",
            "lora_unet_single_blocks_3_linear1",
        ),
        (
            "lora_unet_mid_block_attentions_0_proj_in",
            "unet.mid_block.attentions.0.proj_in",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
        ),
        (
            "lora_unet_middle_block_1_proj_in",
            "unet.middle_block.1.proj_in",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        ),
        ("lora_unet__blocks_0_cross_attn_k", "transformer.blocks.0.cross_attn.k", "lora_unet__blocks_1_ffn_0"),
        (
            "lora_transformer_transformer_blocks_0_attn_to_q",
            "transformer.transformer_blocks.0.attn.to_q",
            "lora_transformer_single_transformer_blocks_0_proj_mlp",
        ),
    ];
    for (name, path, other) in names {
        let keys: Vec<_> = [name, other]
            .into_iter()
            .flat_map(|n| [format!("{n}.lora_down.weight"), format!("{n}.lora_up.weight")])
            .collect();
        let shapes: Vec<(&str, &[usize])> = keys.iter().map(|key| (key.as_str(), [4usize, 4].as_slice())).collect();
        let scratch = Scratch::new();
        let opened = reading(&scratch, &shapes, &[]).expect(name);
        assert!(opened.adapter.targets.contains_key(path), "{name}: {:?}", opened.adapter.targets.keys());
        let (draft, _) = named("kohya").write(&opened.adapter).expect(name);
        let sorted = |all: &StateDict| all.clone().into_iter().collect::<BTreeMap<_, _>>();
        assert_eq!(sorted(&draft.tensors), sorted(&opened.source.tensors), "{name}");
        assert_eq!(draft.metadata, [], "{name}");
    }
}

#[test]
fn what_needs_the_base_says_so() {
    let scratch = Scratch::new();
    let opened = reading(
        &scratch,
        &[
            ("lora_unet_q.q_layer.weight", &[2, 4]),
            ("lora_unet_q.p_layer.weight", &[4, 2]),
            ("lora_unet_q.lambda_layer", &[1, 2]),
        ],
        &[],
    )
    .expect("an adapter");
    let target = &opened.adapter.targets["unet.q"];
    assert_eq!((target.kind(), target.tensors().len()), ("T-LoRA", 3));
    let shape = lora_tool::tensor::Shape::new([4, 4]);
    let e = target.weight_action(&shape, false).err().expect("refused");
    assert!(e.to_string().contains("part of the base"), "{e}");
    assert!(named("kohya").write(&opened.adapter).is_err());
}

#[test]
fn what_is_worth_knowing_is_noted() {
    let scratch = Scratch::new();
    let pair: [(&str, &[usize]); 2] =
        [("lora_unet_q.lora_down.weight", &[6, 4]), ("lora_unet_q.lora_up.weight", &[12, 6])];
    let metadata =
        [("ss_network_args", r#"{"split_qkv": "True"}"#), ("ss_network_dim", "2"), ("ss_network_alpha", "-33.0")];
    let alpha: (&str, &[usize]) = ("lora_unet_q.alpha", &[]);
    let opened = reading(&scratch, &[pair[0], pair[1], alpha], &metadata).expect("an adapter");
    assert!(
        opened.notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains("split_qkv")),
        "{:?}",
        opened.notes
    );
    let padded: (&str, &[usize]) = ("lora_unet_q.reshape_weight", &[2]);
    let opened = reading(&scratch, &[pair[0], pair[1], padded], &[]).expect("an adapter");
    assert!(opened.notes.iter().any(|n| n.text.contains("padded")), "{:?}", opened.notes);
    let (again, _) = through("kohya", &opened.adapter);
    assert_eq!(again.source.tensors, opened.source.tensors);
}
