//! Adapters written and read again. That PEFT itself reads what is written is seen by loading it there: the fixtures
//! are PEFT's own files, and what comes of them has to be those files again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::low_rank::Facing;
use lora_tool::adapter::delta::{
    Delta, Experts, Full, Hadamard, LowRank, Opaque, Packing, Product, TokenRows, full::Mode,
};
use lora_tool::adapter::{Adapter, Note, Scale, ScaleRule, Severity, SiteKind, Target};
use lora_tool::error::Kind;
use lora_tool::layout::peft::{keys::Modules, tuner};
use lora_tool::layout::{self, Draft, LAYOUTS, Layout};
use lora_tool::names::ModulePath;
use lora_tool::tensor::{Dtype, StateDict, Tensor};
use serde_json::{Map, Value, json};

use crate::fixtures::{self, Case, Scratch, cases};

/// Parts of a file that are not written again, and why.
const LEFT_OUT: [(&str, &str); 7] = [
    (".zeros", "GLoRA's letters that are not there"),
    ("lora_velora_embed", "only steers training"),
    ("lora_monteclora_sampler", "only steers training"),
    ("original_module", "an untrained copy"),
    ("randlora_A", "the same matrix for each module once more"),
    ("randlora_B", "the same matrix for each module once more"),
    ("lm_head.modules_to_save", "the same tensor under two names"),
];
/// Cases whose tensors are written in another form.
const OTHER_FORM: [(&str, &str); 3] = [
    ("bdlora", "factors in blocks become plain ones"),
    ("experts_grouped", "columns of B in PEFT's order"),
    ("nested", "a module wrapped twice and adapted once is wrapped once"),
];
/// Fields that may be said in another way: ranks and scales, older words, what is no longer so.
const SAID_OTHERWISE: [&str; 15] = [
    "r",
    "lora_alpha",
    "alpha",
    "rank_pattern",
    "alpha_pattern",
    "peft_version",
    "peft_type",
    "n_frequency",
    "n_frequency_pattern",
    "proportional_parameters",
    "oft_block_size",
    "boft_block_num",
    "boft_n_butterfly_factor",
    "boft_block_size",
    "block_size",
];

fn peft() -> &'static dyn Layout {
    *LAYOUTS.iter().find(|l| l.name() == "peft").expect("a layout")
}

fn save(draft: &Draft, scratch: &Scratch) -> PathBuf {
    let path = scratch.join("written");
    layout::save(draft, &path, &[], false, false).expect("a written adapter");
    path
}

fn config(folder: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(folder.join("adapter_config.json")).expect("a config");
    serde_json::from_str(&text).expect("JSON")
}

/// Written and read again.
fn again(adapter: &Adapter) -> (Adapter, Map<String, Value>, Vec<Note>) {
    let (draft, notes) = peft().write(adapter).expect("a draft");
    let scratch = Scratch::new();
    let folder = save(&draft, &scratch);
    let opened = layout::open(&folder, None).expect("what was written can be read");
    (opened.adapter, config(&folder), notes)
}

fn refused(adapter: &Adapter) -> lora_tool::Error {
    peft().write(adapter).expect_err("an adapter that PEFT cannot hold")
}

/// Kinds that become plain factors when they are read are plain factors afterwards; factors of experts are compared
/// one by one, whatever their packing.
fn plain(target: &Target) -> (Target, Vec<Vec<f32>>) {
    let mut target = target.clone();
    let mut values = Vec::new();
    for delta in &mut target.weight {
        match delta {
            Delta::LowRank(factors) if factors.experts.is_some() => {
                for expert in factors.expert_factors().expect("factors") {
                    values.push(vec![expert.scale as f32]);
                    values.extend([expert.a.iter().copied().collect(), expert.b.iter().copied().collect::<Vec<_>>()]);
                }
                *delta = Delta::LowRank(LowRank { experts: None, b: factors.a.clone(), ..factors.clone() });
            }
            Delta::LowRank(factors) => {
                factors.name = "LoRA";
                factors.scale = Scale::direct(factors.factor());
            }
            _ => {}
        }
    }
    (target, values)
}

fn differences(before: &Adapter, after: &Adapter) -> Vec<String> {
    let mut out = Vec::new();
    for (path, target) in &before.targets {
        match after.targets.get(path) {
            None => out.push(format!("{path} is missing")),
            Some(found) if plain(found) != plain(target) => {
                let sizes =
                    |t: &Target| t.tensors().iter().map(|(w, t)| format!("{w} {}", t.shape)).collect::<Vec<_>>();
                let all = |t: &Target| format!("{:?} {} {:?}", t.site, t.kind(), sizes(t));
                out.push(format!("{path}: {} for {}", all(found), all(target)));
            }
            Some(_) => {}
        }
    }
    let added = after.targets.keys().filter(|path| !before.targets.contains_key(*path));
    out.extend(added.map(|path| format!("{path} was added")));
    if before.residual_base != after.residual_base || before.ties_embeddings != after.ties_embeddings {
        out.push("what it says of its base differs".to_string());
    }
    out
}

/// Tensors by what their keys mean, without those that are left out on purpose.
fn meant(tensors: &StateDict, peft_type: &str) -> BTreeMap<String, Tensor> {
    let tuner = tuner::by_type(peft_type).expect("a tuner");
    let kept = tensors.iter().filter(|(key, _)| !LEFT_OUT.iter().any(|(part, _)| key.contains(part)));
    let shared = tensors.iter().filter(|(key, _)| key.starts_with("base_model.randlora_"));
    let kept: StateDict = kept.chain(shared).map(|(key, t)| (key.clone(), t.clone())).collect();
    let modules = Modules::sort(&kept, tuner.roles).expect("keys");
    let mut out = BTreeMap::new();
    for ((path, depth), parts) in modules.tuned {
        out.extend(parts.into_iter().map(|(role, p)| (format!("{path} {depth} {role}"), p.tensor)));
    }
    out.extend(modules.shared.into_iter().map(|(role, p)| (role, p.tensor)));
    out.extend(modules.saved.into_iter().map(|(name, p)| (name, p.tensor)));
    out
}

/// Reads, writes and reads again; none where the kind is only read.
fn round(case: &Case) -> Option<Vec<String>> {
    let opened = layout::open(&case.adapter(), None).ok()?;
    let (draft, _) = match peft().write(&opened.adapter) {
        Ok(written) => written,
        Err(e) if e.what().contains("read, not written") || e.what().contains("cannot be written") => return None,
        Err(e) => return Some(vec![e.to_string()]),
    };
    let scratch = Scratch::new();
    let folder = save(&draft, &scratch);
    let again = match layout::open(&folder, None) {
        Ok(again) => again,
        Err(e) => return Some(vec![format!("cannot be read again: {e}")]),
    };
    let mut out = differences(&opened.adapter, &again.adapter);
    let peft_type = &again.adapter.declared;
    if opened.adapter.declared != *peft_type || OTHER_FORM.iter().any(|(name, _)| *name == case.name) {
        return Some(out);
    }
    let (before, after) = (meant(&opened.source.tensors, peft_type), meant(&again.source.tensors, peft_type));
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    out.extend(keys.into_iter().filter(|k| before.get(*k) != after.get(*k)).map(|k| format!("{k} differs")));
    let (old, new) = (config(&case.adapter()), config(&folder));
    let fields = tuner::by_type(peft_type).expect("a tuner").fields;
    for (name, value) in old.iter().filter(|(name, _)| !SAID_OTHERWISE.contains(&name.as_str())) {
        let training = ["velora_config", "monteclora_config"].contains(&name.as_str());
        if new.get(name) != Some(value) && !fields.contains(&name.as_str()) && !training {
            out.push(format!("{name} was {value}, is {:?}", new.get(name)));
        }
    }
    Some(out)
}

#[test]
fn an_adapter_read_and_written_is_the_same_adapter() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("peft") {
        let Some(found) = round(&case) else { continue };
        count += 1;
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 150, "only {count} cases were written");
    assert!(failed.is_empty(), "{} faults in {count} cases:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn the_tensor_file_of_an_untouched_adapter_is_that_of_peft_byte_for_byte() {
    for name in ["lora", "rslora", "dora", "embedding", "gpt2", "mixtral_both", "resnet", "mha", "loha", "lokr", "vera"]
    {
        let folder = fixtures::adapter(name);
        let (draft, _) = peft().write(&layout::open(&folder, None).expect("an adapter").adapter).expect("a draft");
        let scratch = Scratch::new();
        let written = save(&draft, &scratch);
        let read = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).expect("tensors");
        assert!(read(&folder) == read(&written), "{name}");
    }
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) % 101) as f32 - 50.0).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("a tensor")
}

fn factors(rank: usize, inputs: usize, outputs: usize, scale: Scale) -> LowRank {
    let (a, b) = (tensor(&[rank, inputs], 1), tensor(&[outputs, rank], 2));
    LowRank { a, b, scale, experts: None, name: "LoRA" }
}

fn lora(rank: usize, scale: Scale) -> Target {
    Target { weight: vec![Delta::LowRank(factors(rank, 6, 4, scale))], ..Target::default() }
}

fn adapter(targets: impl IntoIterator<Item = (&'static str, Target)>) -> Adapter {
    Adapter { targets: targets.into_iter().map(|(path, t)| (path.into(), t)).collect(), ..Adapter::default() }
}

fn replacement(shape: &[usize]) -> Delta {
    Delta::Full(Full { tensor: tensor(shape, 9), mode: Mode::Replace })
}

#[test]
fn every_module_keeps_its_multiplier_and_its_rank() {
    // Names of which one is the end of another, or that a dot as a wildcard would confuse.
    let all = [
        ("q", 2, Scale::direct(0.37)),
        ("a.q", 3, Scale { alpha: 5.0, rule: ScaleRule::AlphaOverRootRank }),
        ("b.a.q", 3, Scale { alpha: 1.1, rule: ScaleRule::AlphaOverRank }),
        ("b.aXq", 3, Scale { alpha: 1.1, rule: ScaleRule::AlphaOverRank }),
        ("b.c+d", 5, Scale { alpha: 7.0, rule: ScaleRule::AlphaOverRank }),
    ];
    let (found, config, notes) = again(&adapter(all.map(|(path, rank, scale)| (path, lora(rank, scale)))));
    for (path, rank, scale) in all {
        let Delta::LowRank(found) = &found.targets[path].weight[0] else { panic!("{path}") };
        assert_eq!(found.rank(), rank, "{path}");
        let apart = found.factor().to_bits().abs_diff(scale.factor(rank).to_bits());
        assert!(apart <= 1, "{path}: {} for {}", found.factor(), scale.factor(rank));
    }
    assert_eq!((&config["r"], &config["lora_alpha"], &config["use_rslora"]), (&json!(3), &json!(1.1), &json!(false)));
    assert_eq!(config["rank_pattern"], json!({"^q$": 2, r"b.c\+d": 5}));
    assert!(notes.iter().any(|n| n.key == "lora_alpha" && n.severity == Severity::Info));
}

#[test]
fn scales_of_one_rule_are_written_in_it() {
    let root = |alpha| Scale { alpha, rule: ScaleRule::AlphaOverRootRank };
    let (found, config, notes) = again(&adapter([("a", lora(3, root(5.0))), ("b", lora(2, root(7.0)))]));
    assert_eq!(config["use_rslora"], true);
    assert!(notes.is_empty());
    assert!(
        found.targets.values().all(|t| matches!(&t.weight[0], Delta::LowRank(f) if f.scale.rule == root(0.0).rule))
    );
}

#[test]
fn stacks_of_experts_are_put_into_the_order_and_the_direction_of_this_version() {
    // D[e] = B[e] · A[e] of 2 experts of rank 3, in f64 from the definition of each packing.
    let stack = |packing, facing| {
        let (a, b) = (tensor(&[6, 5], 3), tensor(&[4, 6], 4));
        let experts = Some(Experts { count: 2, packing, facing });
        LowRank { a, b, scale: Scale::direct(2.0), experts, name: "LoRA" }
    };
    let product = |f: &LowRank, column: &dyn Fn(usize, usize) -> usize, e: usize, o: usize, i: usize| -> f64 {
        let (a, b) = (f.a.to_matrix().unwrap(), f.b.to_matrix().unwrap());
        (0..3).map(|k| f64::from(b[[o, column(e, k)]]) * f64::from(a[[e * 3 + k, i]])).sum()
    };
    let rank_major = |e: usize, k: usize| k * 2 + e;
    let by_expert = |e: usize, k: usize| e * 3 + k;
    for (packing, facing) in [
        (Packing::RankMajor, Facing::Input),
        (Packing::ByExpert, Facing::Input),
        (Packing::RankMajor, Facing::FirstUnlessTransposed),
        (Packing::ByExpert, Facing::FirstUnlessTransposed),
    ] {
        let given = stack(packing, facing);
        let target =
            Target { weight: vec![Delta::LowRank(given.clone())], site: SiteKind::Parameter, ..Target::default() };
        let (found, config, _) = again(&adapter([("m.experts.gate_up_proj", target.clone()), ("m.experts.x", target)]));
        assert_eq!(config["target_parameters"], json!(["m.experts.gate_up_proj", "m.experts.x"]));
        assert_eq!(config["target_modules"], json!([]));
        let Delta::LowRank(found) = &found.targets["m.experts.gate_up_proj"].weight[0] else { panic!() };
        let experts = found.experts.expect("experts");
        assert_eq!((experts.packing, experts.facing), (Packing::RankMajor, Facing::Input));
        let turned = facing == Facing::FirstUnlessTransposed;
        for (e, o, i) in (0..2).flat_map(|e| (0..4).flat_map(move |o| (0..5).map(move |i| (e, o, i)))) {
            let old: &dyn Fn(usize, usize) -> usize =
                if packing == Packing::RankMajor { &rank_major } else { &by_expert };
            let (row, col) = if turned { (i, o) } else { (o, i) };
            assert_eq!(product(found, &rank_major, e, row, col), product(&given, old, e, o, i));
        }
    }
}

#[test]
fn what_faces_the_first_axis_stays_so_and_says_so() {
    let experts = Some(Experts { count: 2, packing: Packing::RankMajor, facing: Facing::First });
    let delta = LowRank { experts, ..factors(4, 5, 5, Scale::direct(1.0)) };
    let target = Target { weight: vec![Delta::LowRank(delta)], site: SiteKind::Parameter, ..Target::default() };
    let (found, config, notes) = again(&adapter([("m.experts.down_proj", target.clone())]));
    assert_eq!(config["peft_version"], "0.18.1");
    let Delta::LowRank(read) = &found.targets["m.experts.down_proj"].weight[0] else { panic!() };
    assert_eq!(read.experts, experts);
    assert_eq!(plain(&found.targets["m.experts.down_proj"]).1, plain(&target).1);
    assert!(notes.iter().any(|n| n.severity == Severity::Lossy));
}

#[test]
fn biases_have_the_keys_that_peft_gives_them() {
    let mut adapted = lora(2, Scale::direct(0.5));
    adapted.bias = vec![replacement(&[4])];
    let norm = Target { weight: vec![replacement(&[6])], bias: vec![replacement(&[6])], ..Target::default() };
    let other = Target { bias: vec![replacement(&[3])], ..Target::default() };
    let all = [("m.q", adapted), ("m.norm", norm), ("m.k", other)];
    for (count, word) in [(1, "lora_only"), (2, "lora_only"), (3, "all")] {
        let given = adapter(all[..count].iter().cloned());
        let (draft, _) = peft().write(&given).expect("a draft");
        assert!(draft.tensors.contains_key("base_model.model.m.q.base_layer.bias"));
        let (found, config, _) = again(&given);
        assert_eq!(config["bias"], word);
        assert_eq!(config["modules_to_save"], if count > 1 { json!(["m.norm"]) } else { Value::Null });
        assert_eq!(differences(&given, &found), [""; 0]);
    }
}

#[test]
fn a_difference_of_the_bias_is_scaled_like_the_weight() {
    let difference = |factor| vec![Delta::Full(Full { tensor: tensor(&[4], 5), mode: Mode::Add(factor) })];
    for (factor, notes_expected) in [(0.5, 0), (2.0, 1)] {
        let mut target = lora(2, Scale::direct(0.5));
        target.bias = difference(factor);
        let (found, config, notes) = again(&adapter([("q", target)]));
        let Delta::Full(Full { tensor: found, mode: Mode::Add(scale) }) = &found.targets["q"].bias[0] else { panic!() };
        let change: Vec<f64> = found.to_f32().unwrap().iter().map(|v| f64::from(*v) * scale).collect();
        let expected: Vec<f64> = tensor(&[4], 5).to_f32().unwrap().iter().map(|v| f64::from(*v) * factor).collect();
        assert_eq!(change, expected);
        assert_eq!(config["lora_bias"], true);
        assert_eq!(notes.iter().filter(|n| n.key == "q").count(), notes_expected);
    }
}

#[test]
fn what_peft_cannot_hold_is_refused_with_its_name() {
    let plain = || lora(2, Scale::direct(1.0));
    let mut dora = plain();
    dora.magnitude = Some(tensor(&[4], 3));
    let mut twice = plain();
    twice.weight.push(twice.weight[0].clone());
    let product = || Product { a: tensor(&[4, 2], 1), b: tensor(&[2, 6], 2), core: None };
    let loha = Delta::Hadamard(Hadamard { w1: product(), w2: product(), scale: Scale::direct(1.0) });
    let of = |weight| Target { weight: vec![weight], ..Target::default() };
    let difference = of(Delta::Full(Full { tensor: tensor(&[4, 6], 1), mode: Mode::Add(1.0) }));
    let mut rows = plain();
    let ids = vec![1, 2];
    rows.weight.insert(0, Delta::TokenRows(TokenRows { ids, rows: tensor(&[2, 6], 1) }));
    let mut late = plain();
    late.weight.push(replacement(&[4, 6]));
    let opaque = of(Delta::Opaque(Opaque { kind: "X-LoRA", reason: "", tensors: Vec::new() }));
    for (given, words) in [
        (adapter([("a", plain()), ("b", dora)]), "DoRA for some modules"),
        (adapter([("a", twice)]), "2 LoRAs on one module"),
        (adapter([("a", plain()), ("b", of(loha))]), "LOHA, LORA"),
        (adapter([("a", plain()), ("b", difference)]), "full difference of the weight"),
        (adapter([("a", rows)]), "rows of tokens and LORA"),
        (adapter([("a", late)]), "after LoRA"),
        (adapter([("a", opaque)]), "X-LoRA cannot be written"),
        (adapter([("a.modules_to_save.b", plain())]), "cannot be named"),
        (adapter([("a", lora(2, Scale::direct(f64::NAN)))]), "finite"),
    ] {
        let e = refused(&given);
        assert!(e.what().contains(words), "expected `{words}` in: {e}");
        assert_eq!(e.kind(), Kind::Unsupported, "{e}");
    }
}

#[test]
fn an_adapter_that_lost_a_module_chooses_the_others_by_their_paths() {
    let mut given = layout::open(&fixtures::adapter("lora"), None).expect("an adapter").adapter;
    let (_, whole, _) = again(&given);
    let first = given.targets.keys().next().cloned().expect("a target");
    given.targets.remove(&first);
    let (found, less, _) = again(&given);
    assert_eq!(differences(&given, &found), [""; 0]);
    assert_ne!(whole["target_modules"], less["target_modules"]);
    assert_eq!(less["target_modules"], json!(given.targets.keys().map(ModulePath::as_str).collect::<Vec<_>>()));
    assert_eq!(whole["lora_dropout"], less["lora_dropout"]);
}

#[test]
fn the_base_an_adapter_was_made_for_is_named_again() {
    let mut given = adapter([("q", lora(2, Scale::direct(1.0)))]);
    let hash = "ab".repeat(32);
    given.about.insert("lora_tool.base_fingerprint".into(), hash.clone());
    given.about.insert("base_model_name_or_path".into(), "some/base".into());
    let (draft, _) = peft().write(&given).expect("a draft");
    assert_eq!(draft.metadata[0], ("format".to_string(), "pt".to_string()));
    let scratch = Scratch::new();
    let opened = layout::open(&save(&draft, &scratch), None).expect("an adapter");
    assert_eq!(opened.base_fingerprint.map(|h| h.to_string()), Some(hash));
    assert_eq!(opened.adapter.about, again(&opened.adapter).0.about);
}

#[test]
fn an_output_appears_whole_and_never_in_the_place_of_an_input() {
    let scratch = Scratch::new();
    let (draft, _) = peft().write(&adapter([("q", lora(2, Scale::direct(1.0)))])).expect("a draft");
    let out = scratch.join("out");
    layout::save(&draft, &out, &[], false, true).expect("a first time");
    let e = layout::save(&draft, &out, &[], false, false).expect_err("it exists");
    assert_eq!(e.kind(), Kind::Exists);
    layout::save(&draft, &out, &[], true, false).expect("a second time, replacing the first");
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).expect("a folder");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&out), ["adapter_config.json", "adapter_model.safetensors"].map(String::from).into());
    assert_eq!(names(out.parent().expect("a parent")).len(), 1, "nothing is left beside it");

    // Its own tensors lie in the file that would be replaced.
    let opened = layout::open(&out, None).expect("an adapter");
    let (draft, _) = peft().write(&opened.adapter).expect("a draft");
    assert_eq!(layout::save(&draft, &out, &[], true, false).expect_err("an input").kind(), Kind::Exists);
    assert_eq!(
        layout::save(&draft, &scratch.join("b"), &[&scratch.join("b")], true, false).err().map(|e| e.kind()),
        None
    );
}

/// PEFT makes modules where the config chooses them, and drops tensors of others in silence.
#[test]
fn modules_that_the_config_does_not_choose_are_chosen() {
    let from = fixtures::adapter("lora");
    let text = std::fs::read_to_string(from.join("adapter_config.json")).expect("a config");
    let config: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    for chosen in [Value::Null, json!([]), json!(["k_proj"]), json!(".*k_proj")] {
        let scratch = Scratch::new();
        let folder = scratch.join("adapter");
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::copy(from.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors"))
            .expect("a copy");
        let mut own = config.clone();
        own.insert("target_modules".to_string(), chosen.clone());
        std::fs::write(folder.join("adapter_config.json"), Value::Object(own).to_string()).expect("a config");
        let opened = layout::open(&folder, None).expect("an adapter");
        let (draft, notes) = layout::named("peft").expect("a layout").write(&opened.adapter).expect("a draft");
        assert!(notes.iter().any(|note| note.key == "target_modules"), "{chosen}: {notes:?}");
        let text = draft.texts.iter().find(|(name, _)| name == "adapter_config.json").expect("a config");
        let written: Value = serde_json::from_slice(&text.1).expect("JSON");
        let paths: Vec<_> = opened.adapter.targets.keys().map(ModulePath::as_str).collect();
        assert_eq!(written["target_modules"], json!(paths), "{chosen}");
    }
}

#[test]
fn tensors_that_nothing_speaks_of_are_named() {
    let from = fixtures::adapter("lora");
    let source = layout::open(&from, None).expect("an adapter").source;
    let mut tensors = source.tensors.clone();
    let step = Tensor::from_f32(Dtype::F32, [1], &[3.0]).expect("a tensor");
    tensors.insert("optimizer.step".to_string(), step);
    let scratch = Scratch::new();
    let draft = Draft {
        tensor_file: "adapter_model.safetensors".to_string(),
        tensors,
        texts: vec![("adapter_config.json".into(), std::fs::read(from.join("adapter_config.json")).expect("a config"))],
        ..Draft::default()
    };
    layout::save(&draft, &scratch.join("out"), &[], false, false).expect("an adapter");
    let notes = layout::open(&scratch.join("out"), None).expect("an adapter").notes;
    assert!(notes.iter().any(|n| n.key == "optimizer.step" && n.text.contains("nothing in the config")), "{notes:?}");
    assert!(layout::open(&from, None).expect("an adapter").notes.is_empty());
}
