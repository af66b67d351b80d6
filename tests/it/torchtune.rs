//! torchtune's layout: merged weights against torchtune's own, and the way from PEFT to torchtune and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora_tool::adapter::delta::{Delta, LowRank};
use lora_tool::adapter::{Adapter, Facts, Note, Scale, Severity, Target};
use lora_tool::container::json;
use lora_tool::layout::{self, Given, Layout};
use lora_tool::tensor::{Dtype, StateDict, Tensor};
use serde_json::{Map, Value};

use crate::fixtures::{self, Case, Scratch, cases};
use crate::parity;

fn named(name: &str) -> &'static dyn Layout {
    layout::named(name).expect("a layout")
}

fn folder(case: &str) -> PathBuf {
    fixtures::root().join("adapters/torchtune").join(case)
}

fn config(folder: &Path) -> Map<String, Value> {
    json::read_object(&folder.join("adapter_config.json"), 1 << 20).expect("a config")
}

fn base_of(case: &Case) -> Given {
    let path = case.base().join("config.json");
    let config = json::read_object(&path, 1 << 20).expect("a config");
    Given { base: Some((path, config)), alpha: None }
}

fn sorted(all: &StateDict) -> BTreeMap<String, Tensor> {
    all.clone().into_iter().collect()
}

fn merged_cases() -> Vec<Case> {
    let all: Vec<_> = cases("torchtune").into_iter().filter(Case::expects_merge).collect();
    assert!(all.len() > 10);
    all
}

#[test]
fn merged_weights_are_those_of_torchtune() {
    let mut failed = Vec::new();
    for case in merged_cases() {
        let found = parity::differences_of(&case, &case.path);
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn what_cannot_be_read_is_refused_with_the_reason() {
    let mut count = 0;
    for case in cases("torchtune").iter().filter(|case| !case.expects_merge()) {
        count += 1;
        let word = case.text("message").expect("a word of the message");
        let found = parity::differences_of(case, &case.path).join("\n");
        assert!(found.contains(word), "{}: {found}", case.name);
    }
    assert!(count > 8, "only {count} fixtures were found");
}

#[test]
fn the_files_of_torchtune_are_found_and_told_from_its_export_for_peft() {
    let opened = layout::open(&folder("llama"), None).expect("an adapter");
    assert_eq!(opened.layout, "torchtune");
    // The tenth epoch comes after the zeroth, and both before the export for PEFT.
    let opened = layout::open(&folder("epochs"), None).expect("an adapter");
    assert!(opened.source.tensor_file.ends_with("adapter_10.pt"), "{}", opened.source.tensor_file.display());
    assert!(opened.notes.iter().any(|n| n.key == "adapter_model.safetensors"), "{:?}", opened.notes);
    // Of a Llama the export is right, and the same adapter.
    let export = layout::open(&folder("epochs").join("adapter_model.safetensors"), None).expect("an adapter");
    assert_eq!(export.layout, "peft");
    assert_eq!(export.adapter.targets.len(), opened.adapter.targets.len());
    for (path, target) in &export.adapter.targets {
        assert_eq!(opened.adapter.targets[path].tensors(), target.tensors(), "{path}");
    }
}

#[test]
fn without_the_base_the_rest_of_an_adapter_is_understood() {
    let opened = layout::open(&folder("no_base"), None).expect("an adapter");
    let opaque = |t: &&Target| matches!(t.weight[..], [Delta::Opaque(_)]);
    assert_eq!(opened.adapter.targets.values().filter(opaque).count(), 4, "queries and keys of two layers");
    assert!(opened.notes.iter().any(|n| n.severity == Severity::Lossy && n.text.contains("family")));
    let e = named("peft").write(&opened.adapter).expect_err("queries and keys");
    assert!(e.to_string().contains("--base"), "{e}");
    // With the base as it is given on the command line it is all understood.
    let case = cases("torchtune").into_iter().find(|c| c.name == "no_base").expect("a case");
    let opened = layout::open_with(&folder("no_base"), None, base_of(&case)).expect("an adapter");
    assert_eq!(opened.adapter.targets.values().filter(opaque).count(), 0);
}

#[test]
fn the_recipe_may_be_beside_the_epochs() {
    let scratch = Scratch::new();
    let epoch = scratch.join("epoch_3");
    std::fs::create_dir(&epoch).expect("a folder");
    for name in ["adapter_model.pt", "config.json"] {
        std::fs::copy(folder("recipe").join(name), epoch.join(name)).expect("a copy");
    }
    assert!(layout::open(&epoch, None).expect_err("no alpha").to_string().contains("alpha is not known"));
    let recipe = "torchtune_config.yaml";
    std::fs::copy(folder("recipe").join(recipe), scratch.join(recipe)).expect("a copy");
    let opened = layout::open(&epoch, None).expect("an adapter");
    assert_eq!(opened.adapter.targets, layout::open(&folder("recipe"), None).expect("an adapter").adapter.targets);
}

#[test]
fn alpha_may_be_said() {
    let given = Given { base: None, alpha: Some(6.0) };
    let opened = layout::open_with(&folder("no_alpha"), None, given.clone()).expect("an adapter");
    assert_eq!(opened.adapter.targets["model.layers.0.self_attn.v_proj"], {
        let other = layout::open(&folder("recipe"), None).expect("an adapter").adapter;
        let mut target = other.targets["model.layers.0.self_attn.v_proj"].clone();
        let own = &opened.adapter.targets["model.layers.0.self_attn.v_proj"];
        let (Delta::LowRank(other), Delta::LowRank(own)) = (&mut target.weight[0], &own.weight[0]) else { panic!() };
        assert_eq!(other.scale, own.scale);
        (other.a, other.b) = (own.a.clone(), own.b.clone());
        target
    });
    // What the files say counts.
    let other = Given { base: None, alpha: Some(7.0) };
    let opened = layout::open_with(&folder("llama"), None, other).expect("an adapter");
    assert!(opened.notes.iter().any(|n| n.key == "lora_alpha"), "{:?}", opened.notes);
}

fn save(layout: &str, adapter: &Adapter, path: &Path) -> (StateDict, Vec<Note>) {
    let (draft, notes) = named(layout).write(adapter).expect("a draft");
    layout::save(&draft, path, &[], false, false).expect("a written adapter");
    (draft.tensors, notes)
}

#[test]
fn an_adapter_read_and_written_is_the_same_also_by_way_of_peft() {
    for case in merged_cases() {
        let scratch = Scratch::new();
        let given = layout::open(&case.path, None).expect("an adapter");
        let (tensors, notes) = save("torchtune", &given.adapter, &scratch.join("again"));
        let lossy: Vec<_> = notes.iter().filter(|n| n.severity == Severity::Lossy).collect();
        assert!(lossy.is_empty(), "{}: {lossy:?}", case.name);
        assert_eq!(sorted(&tensors), sorted(&given.source.tensors), "{}", case.name);
        let again = layout::open(&scratch.join("again"), None).expect("an adapter");
        assert_eq!(again.adapter.targets, given.adapter.targets, "{}", case.name);
        if given.source.config.is_some() {
            let (old, new) = (config(&case.path), config(&scratch.join("again")));
            old.iter().for_each(|(name, value)| assert_eq!(new.get(name), Some(value), "{}: {name}", case.name));
        }

        save("peft", &given.adapter, &scratch.join("peft"));
        let mut there = layout::open(&scratch.join("peft"), None).expect("an adapter").adapter;
        there.base = given.adapter.base.clone();
        let (tensors, _) = named("torchtune").write(&there).expect("a draft");
        assert_eq!(sorted(&tensors.tensors), sorted(&given.source.tensors), "{}", case.name);
    }
}

#[test]
fn from_peft_to_torchtune_and_back_nothing_is_lost() {
    let mut kept = Vec::new();
    let mut refused = BTreeMap::new();
    for case in cases("peft") {
        let Ok(mut opened) = layout::open(&case.adapter(), None) else { continue };
        let Ok((direct, _)) = named("peft").write(&opened.adapter) else { continue };
        opened.adapter.base = layout::open_with(&case.adapter(), None, base_of_any(&case)).expect("it").adapter.base;
        let written = named("torchtune").write(&opened.adapter);
        let (draft, notes) = match written {
            Ok(written) => written,
            Err(e) => {
                refused.insert(case.name, e.to_string());
                continue;
            }
        };
        if notes.iter().any(|n| ["folded into", "filled up"].iter().any(|word| n.text.contains(word))) {
            continue;
        }
        let scratch = Scratch::new();
        layout::save(&draft, &scratch.join("there"), &[], false, false).expect("a written adapter");
        // Without the base: what is needed of it is beside the tensors.
        let there = layout::open(&scratch.join("there"), None).expect("an adapter").adapter;
        let (back, _) = named("peft").write(&there).expect("a draft");
        assert_eq!(sorted(&back.tensors), sorted(&direct.tensors), "{}", case.name);
        for name in ["base_model_name_or_path", "revision", "task_type"] {
            assert_eq!(there.about.get(name), opened.adapter.about.get(name), "{}: {name}", case.name);
        }
        kept.push(case.name);
    }
    for name in ["lora", "rslora", "bf16", "f16_all", "qwen2", "phi3"] {
        assert!(kept.iter().any(|k| k == name), "{name} was not kept: {:?}; kept: {kept:?}", refused.get(name));
    }
    let said = |name: &str| refused.get(name).map(String::as_str).unwrap_or_default();
    for (name, word) in [
        ("embedding", "embedding"),
        ("dora", "not adapted"),
        ("lora_bias", "bias"),
        ("gpt2", "gpt2"),
        ("mixtral_old", "mixtral"),
        ("save_norms", "whole"),
        ("loha", "LoHa"),
        ("pissa", "changed"),
    ] {
        assert!(said(name).contains(word), "{name}: {:?}", refused.get(name));
    }
}

/// The base's config, where the base has one.
fn base_of_any(case: &Case) -> Given {
    let path = case.base().join("config.json");
    let config = json::read_object(&path, 1 << 20).ok();
    Given { base: config.map(|config| (path, config)), alpha: None }
}

/// What torchtune holds of PEFT's fixtures gives PEFT's own merged weights.
#[test]
fn an_adapter_of_peft_merges_the_same_from_torchtune() {
    let mut failed = Vec::new();
    let mut done = Vec::new();
    let all = cases("peft");
    for case in all.iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let path = case.base().join("config.json");
        let base = json::read_object(&path, 1 << 20).ok().map(|config| (path, config));
        let given = Given { base, alpha: None };
        let adapter = layout::open_with(&case.adapter(), None, given).expect("an adapter").adapter;
        let Ok((draft, _)) = named("torchtune").write(&adapter) else { continue };
        let scratch = Scratch::new();
        layout::save(&draft, &scratch.join("there"), &[], false, false).expect("a written adapter");
        done.push(case.name.as_str());
        let found = parity::differences_of(case, &scratch.join("there"));
        failed.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(failed.is_empty(), "{} faults in {} cases:\n{}", failed.len(), done.len(), failed.join("\n"));
    for name in ["lora_all_linear", "rslora", "qwen2", "phi3"] {
        assert!(done.contains(&name), "{name} is not among {done:?}");
    }
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 31 + seed * 17) % 101) as f32 - 50.0).collect();
    Tensor::from_f32(Dtype::F32, shape, &values).expect("a tensor")
}

fn lora(out: usize, rank: usize, input: usize, scale: f64) -> Target {
    let (a, b) = (tensor(&[rank, input], rank), tensor(&[out, rank], out));
    let delta = Delta::LowRank(LowRank { a, b, scale: Scale::direct(scale), experts: None, name: "LoRA" });
    Target { weight: vec![delta], ..Target::default() }
}

fn adapter(family: &str, targets: impl IntoIterator<Item = (&'static str, Target)>) -> Adapter {
    let base = Facts {
        family: Some(family.to_string()),
        heads: Some(4),
        key_heads: Some(2),
        head_width: Some(4),
        hidden: Some(16),
        layers: Some(3),
        ..Facts::default()
    };
    Adapter { targets: targets.into_iter().map(|(path, t)| (path.into(), t)).collect(), base, ..Adapter::default() }
}

#[test]
fn rows_go_into_metas_order_for_the_families_that_have_it() {
    let rows = |family: &str| {
        let given = adapter(family, [("model.layers.0.self_attn.q_proj", lora(16, 1, 16, 1.0))]);
        let (draft, _) = named("torchtune").write(&given).expect("a draft");
        draft.tensors["layers.0.attn.q_proj.lora_b.weight"].to_f32().expect("numbers")
    };
    let plain = rows("qwen3");
    // numpy: b.reshape(4, 2, 2).swapaxes(1, 2).reshape(16)
    let wanted: Vec<f32> = (0..16).map(|i| plain[i / 4 * 4 + i % 4 % 2 * 2 + i % 4 / 2]).collect();
    assert_ne!(plain, wanted);
    for family in ["llama", "mistral", "gemma", "gemma2"] {
        assert_eq!(rows(family), wanted, "{family}");
    }
    assert_eq!(rows("qwen2"), plain);
}

#[test]
fn modules_of_all_layers_are_there() {
    let given = adapter(
        "llama",
        [
            ("model.layers.1.self_attn.v_proj", lora(8, 2, 16, 0.5)),
            ("model.layers.0.mlp.up_proj", lora(24, 1, 16, 2.0)),
        ],
    );
    let (draft, notes) = named("torchtune").write(&given).expect("a draft");
    // Three layers of the base, in each the value and the three of the feed-forward part.
    assert_eq!(draft.tensors.len(), 3 * 4 * 2);
    assert_eq!(draft.tensors["layers.2.mlp.w2.lora_b.weight"].shape.dims(), [16, 2]);
    assert_eq!(draft.tensors["layers.0.mlp.w1.lora_a.weight"].shape.dims(), [2, 16]);
    let texts: Vec<_> = notes.iter().map(|n| n.text.as_str()).collect();
    for word in ["filled up with zeros to 2", "folded into B", "10 modules of zeros added"] {
        assert!(texts.iter().any(|text| text.contains(word)), "{word}: {texts:?}");
    }
    let scratch = Scratch::new();
    layout::save(&draft, &scratch.join("out"), &[], false, false).expect("a written adapter");
    let back = layout::open(&scratch.join("out"), None).expect("an adapter").adapter;
    assert_eq!(back.targets.keys().collect::<Vec<_>>(), given.targets.keys().collect::<Vec<_>>());
}

#[test]
fn what_has_no_place_in_the_files_is_an_error() {
    let q = "model.layers.0.self_attn.q_proj";
    let with = |change: &dyn Fn(&mut Adapter)| {
        let mut given = adapter("llama", [(q, lora(16, 2, 16, 1.0))]);
        change(&mut given);
        given
    };
    let dora = |t: &mut Target| t.magnitude = Some(tensor(&[16], 3));
    let other = "model.layers.0.self_attn.o_proj";
    let refused = [
        ("family of the base is not known", with(&|a| a.base = Facts::default())),
        ("number of heads", with(&|a| a.base.heads = None)),
        ("4 heads of 6", with(&|a| a.base.head_width = Some(6))),
        ("nothing to write", with(&|a| a.targets.clear())),
        ("no module that torchtune adapts", with(&|a| drop(a.targets.insert("model.norm".into(), lora(4, 1, 4, 1.0))))),
        (
            "tied",
            with(&|a| {
                a.base.tied = Some(true);
                a.targets.insert("lm_head".into(), lora(48, 2, 16, 1.0));
            }),
        ),
        (
            "DoRA on 1 of 2",
            with(&|a| {
                a.targets.insert(other.into(), lora(16, 2, 16, 1.0));
                dora(a.targets.get_mut(q).unwrap());
            }),
        ),
        ("not adapted", with(&|a| dora(a.targets.get_mut(q).unwrap()))),
        ("finite", with(&|a| drop(a.targets.insert(q.into(), lora(16, 2, 16, f64::NAN))))),
        ("`gpt2`", with(&|a| a.base.family = Some("gpt2".to_string()))),
    ];
    for (word, given) in refused {
        let e = named("torchtune").write(&given).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
    }
}
