//! Every folder of `fixtures/tuners` through reader, preparation and action, against what PEFT made of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, s};
use serde_json::json;

use lora_tool::adapter::delta::{Action, Delta, InMemory, Site};
use lora_tool::adapter::{Adapter, Severity, SiteKind, Target};
use lora_tool::container::SafetensorsFile;
use lora_tool::error::Result;
use lora_tool::kernels::{Kernels, present};
use lora_tool::layout::open;
use lora_tool::layout::peft::Reader;
use lora_tool::layout::peft::config::Config;
use lora_tool::layout::peft::keys::Modules;
use lora_tool::tensor::{Dtype, Rows, Shape, StateDict, Tensor};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tuners")
}

fn tensors(path: &Path) -> StateDict {
    SafetensorsFile::open(path).unwrap().tensors
}

/// The tensor after all deltas, computed in pieces of `height` rows as far as the kind allows.
fn changed(
    kernels: &dyn Kernels,
    base: &Tensor,
    companion: Option<&Tensor>,
    deltas: &[Delta],
    turned: bool,
    height: usize,
) -> Array2<f32> {
    let mut w = base.to_matrix().unwrap();
    for delta in deltas {
        let turned = turned && !matches!(delta, Delta::Full(_)); // a whole tensor is stored as the base's is
        let dims = base.shape.dims();
        let shape = if turned { Shape::new(vec![dims[1], dims[0]]) } else { base.shape.clone() };
        let mut action = delta.prepare(&Site { shape: &shape, companion }).unwrap();
        if turned {
            action = action.transposed();
        }
        let before = InMemory(w.clone());
        let step = match action.rows() {
            Rows::Any => height,
            Rows::Multiple(n) => n * height.div_ceil(n),
            Rows::Whole => w.nrows(),
        };
        for start in (0..w.nrows()).step_by(step) {
            let rows = start..(start + step).min(w.nrows());
            let part = w.slice_mut(s![rows.clone(), ..]);
            match &action {
                Action::LowRank(factors) => factors.add_to(kernels, rows, part).unwrap(),
                Action::Act(act) => act.act(kernels, rows, part, &before).unwrap(),
                Action::Experts(_) => panic!("a stack of experts"),
            }
        }
    }
    w
}

/// Name of a tensor, the tensor it is computed from, its deltas, and whether it is stored transposed.
fn pieces<'t>(path: &str, target: &'t Target) -> Vec<(String, &'t [Delta], bool)> {
    let turned = matches!(target.site, SiteKind::FanInFanOut | SiteKind::Embedding);
    let weight = (format!("{path}.weight"), target.weight.as_slice(), turned);
    let bias = (format!("{path}.bias"), target.bias.as_slice(), false);
    [weight, bias].into_iter().filter(|(_, deltas, _)| !deltas.is_empty()).collect()
}

fn check_case(name: &str, kernels: &dyn Kernels, height: usize) {
    let base = tensors(&folder().join("base.safetensors"));
    let mut expected: BTreeMap<_, _> = tensors(&folder().join(name).join("expected.safetensors")).into_iter().collect();
    let mut opened = open(&folder().join(name), None).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    assert!(opened.notes.iter().all(|n| n.severity == Severity::Info), "{name}: {:?}", opened.notes);
    opened.adapter.restore_base().unwrap();
    let weight = |(key, tensor): (&String, &Tensor)| Some((key.strip_suffix(".weight")?.into(), tensor.clone()));
    assert!(opened.adapter.place(&base.iter().filter_map(weight).collect::<Vec<_>>()).unwrap().is_empty(), "{name}");
    opened.adapter.complete(&|path| base.get(&path.tensor("weight")).map(|t| t.shape.dims().to_vec())).unwrap();
    for (path, target) in &opened.adapter.targets {
        for (key, deltas, turned) in pieces(path.as_str(), target) {
            // What changes a bias by itself alone has nothing to change where there is none.
            let Some(before) = base.get(&key) else { continue };
            let companion = base.get(&format!("{path}.weight"));
            let found = changed(kernels, before, companion, deltas, turned, height);
            let wanted = expected.remove(&key).unwrap_or_else(|| panic!("{name}: {key} is not in expected"));
            let (wanted, before) = (wanted.to_matrix().unwrap(), before.to_matrix().unwrap());
            let norm = |m: Array2<f32>| m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let error = norm(&found - &wanted) / norm(&wanted - &before);
            assert!(error < 2e-6, "{name}: {key}: relative error {error:.2e} with {}", kernels.name());
        }
    }
    assert!(expected.is_empty(), "{name}: not changed: {:?}", expected.keys());
}

/// The key of a role of module `q`, or of a tensor of the whole adapter, which comes with its prefix.
fn key_of(role: &str) -> String {
    if role.starts_with("base_model.") { role.to_string() } else { format!("base_model.model.q.{role}") }
}

/// What is read from tensors of these shapes with this config.
fn reading(config: serde_json::Value, tensors: &[(&str, &[usize])]) -> Result<Adapter> {
    let values = |dims: &[usize]| Tensor::from_f32(Dtype::F32, dims, &vec![0.5; dims.iter().product()]).unwrap();
    let tensors: StateDict = tensors.iter().map(|(role, dims)| (key_of(role), values(dims))).collect();
    let config = Config::read(config.as_object().unwrap().clone()).unwrap();
    let tuner = lora_tool::layout::peft::tuner::by_type(&config.peft_type).unwrap();
    let modules = Modules::sort(&tensors, tuner.roles)?;
    let mut reader = Reader { config: &config, modules, adapter: Adapter::default(), notes: Vec::new() };
    (tuner.read)(&mut reader)?;
    Ok(reader.adapter)
}

#[test]
fn what_is_missing_or_unknown_is_named() {
    let pair: &[(&str, &[usize])] = &[("lora_A.weight", &[2, 4]), ("lora_B.weight", &[4, 2])];
    let with_diagonal = [pair, &[("lora_diag", &[2])]].concat();
    for (config, tensors) in [
        (json!({"peft_type": "DEFT"}), &[("deft_P", &[4usize, 2][..])][..]),
        (json!({"peft_type": "DEFT", "decomposition_method": "svd"}), &[("deft_P", &[4, 2])]),
        (json!({"peft_type": "FOURIERFT", "random_loc_seed": 0.5}), &[("fourierft_spectrum", &[3])]),
        (json!({"peft_type": "GLORA"}), &[("glora_A.Xd", &[4, 2])]),
        (json!({"peft_type": "GRALORA"}), &[("gralora_A", &[2, 4, 3]), ("gralora_B", &[2, 3, 4])]),
        (json!({"peft_type": "GRALORA"}), &[("gralora_A", &[2, 4, 2]), ("gralora_B", &[4, 2, 2])]),
        (json!({"peft_type": "HIRA"}), &[("hira_A", &[2, 4])]),
        (json!({"peft_type": "MISS", "init_weights": "new"}), &[("miss_block", &[2, 4])]),
        (json!({"peft_type": "MISS", "init_weights": "mini", "mini_r": 2}), &[("miss_block", &[2, 4])]),
        (json!({"peft_type": "OSF"}), &[("osf_svd_params.U_low", &[4, 2])]),
        (json!({"peft_type": "PEANUT", "depth": 1}), &[("peanut_A.weight", &[2, 4]), ("peanut_B.weight", &[4, 2])]),
        (json!({"peft_type": "PEANUT", "act_fn": "prelu"}), &[("peanut_A.weight", &[2, 4])]),
        (json!({"peft_type": "ROAD", "variant": "road_3"}), &[("road_theta", &[2])]),
        (json!({"peft_type": "SHIRA"}), &[("shira_weight", &[2])]),
        (json!({"peft_type": "WAVEFT", "wavelet_family": "coif2"}), &[("waveft_spectrum", &[2])]),
        (json!({"peft_type": "LORA", "r": 2, "kasa_config": {}}), pair),
        (json!({"peft_type": "LORA", "r": 2}), &with_diagonal),
        (json!({"peft_type": "LORA", "r": 2, "use_bdlora": {"target_modules_bd_a": ["q"], "nblocks": u64::MAX}}), pair),
    ] {
        assert!(reading(config.clone(), tensors).is_err(), "{config}");
    }
}

#[test]
fn shared_and_multiplicative_tuners_name_what_is_missing() {
    let vera: &[(&str, &[usize])] = &[("vera_lambda_b", &[4]), ("vera_lambda_d", &[2])];
    let vera_half = [vera, &[("base_model.vera_A", &[2, 4])]].concat();
    let topk: &[(&str, &[usize])] = &[("base_model.vblora_vector_bank", &[3, 2]), ("vblora_logits_A", &[2, 2, 3])];
    let topk_wide = [topk, &[("vblora_logits_B", &[2, 2, 4])]].concat();
    let tiny: &[(&str, &[usize])] = &[("tinylora_A", &[2, 4]), ("tinylora_B", &[4, 2])];
    let tiny_far = [tiny, &[("base_model.tinylora_v.3", &[5])]].concat();
    let loha: &[(&str, &[usize])] = &[("hada_w1_a", &[4, 2]), ("hada_w1_b", &[2, 4]), ("hada_w2_a", &[4, 2])];
    for (config, tensors, named) in [
        (json!({"peft_type": "ADALORA"}), &[("lora_A", &[2usize, 4][..]), ("lora_B", &[4, 2])][..], "lora_E"),
        (json!({"peft_type": "ADALORA"}), &[("lora_A", &[2, 4]), ("lora_B", &[4, 2]), ("lora_E", &[3, 1])], "[3, 1]"),
        (json!({"peft_type": "BOFT"}), &[("boft_R", &[1, 2, 2, 2])], "boft_s"),
        (json!({"peft_type": "DELORA", "r": 2}), &[("delora_A", &[2, 4]), ("delora_B", &[4, 2])], "delora_lambda"),
        (json!({"peft_type": "LOHA", "r": 2}), loha, "hada_w2_b"),
        (json!({"peft_type": "LOKR", "r": 2}), &[("lokr_w1", &[2, 2]), ("lokr_w2_a", &[2, 2])], "lokr_w2_b"),
        (
            json!({"peft_type": "LOKR", "r": 3}),
            &[("lokr_w1", &[2, 2]), ("lokr_w2_a", &[2, 2]), ("lokr_w2_b", &[2, 2])],
            "rank 3",
        ),
        (json!({"peft_type": "OFT"}), &[("oft_r", &[2, 2, 2])], "0.18"),
        (json!({"peft_type": "OFT", "num_cayley_neumann_terms": 1u64 << 40}), &[("oft_R.weight", &[2, 1])], "terms"),
        (json!({"peft_type": "TINYLORA"}), tiny, "tinylora_v"),
        (json!({"peft_type": "TINYLORA"}), &tiny_far, "tinylora_v.0"),
        (json!({"peft_type": "UNILORA"}), &[("base_model.unilora_theta_d", &[4])], "target_modules"),
        (
            json!({"peft_type": "UNILORA", "target_modules": "(?=q)"}),
            &[("base_model.unilora_theta_d", &[4])],
            "look-around",
        ),
        (json!({"peft_type": "VBLORA"}), topk, "vblora_logits_B"),
        (json!({"peft_type": "VBLORA"}), &topk_wide, "[2, 2, 4]"),
        (json!({"peft_type": "VERA", "r": 2}), vera, "save_projection"),
        (json!({"peft_type": "VERA", "r": 2}), &vera_half, "vera_B"),
        (json!({"peft_type": "VERA", "r": 65536, "save_projection": false}), vera, "rank 65536"),
    ] {
        let e = reading(config.clone(), tensors).expect_err("refused");
        let said = format!("{e} {}", e.key().unwrap_or_default());
        assert!(said.contains(named), "{config}: {said}");
    }
}

#[test]
fn what_cannot_be_computed_is_carried() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/peft/psoft");
    let opened = open(&path, None).unwrap();
    let target = &opened.adapter.targets[""];
    assert_eq!((target.kind(), target.tensors().len()), ("PSOFT", opened.source.tensors.len()));
    let shape = Shape::new([4, 4]);
    assert!(target.weight[0].prepare(&Site { shape: &shape, companion: None }).is_err());
}

#[test]
fn equal_magnitudes_leave_positions_open() {
    let adapter = reading(json!({"peft_type": "SUPERTUNING"}), &[("supertuning_values", &[2])]).unwrap();
    let shape = Shape::new([2, 2]);
    let action = adapter.targets["q"].weight[0].prepare(&Site { shape: &shape, companion: None }).unwrap();
    let Action::Act(act) = action else { panic!("not an act") };
    for (values, clear) in
        [([3.0, -2.0, 1.0, 0.0], true), ([3.0, -3.0, 1.0, 0.0], false), ([3.0, 2.0, 1.0, -2.0], false)]
    {
        let mut w = Array2::from_shape_vec((2, 2), values.to_vec()).unwrap();
        let before = InMemory(w.clone());
        let done = act.act(present()[0].as_ref(), 0..2, w.view_mut(), &before);
        assert_eq!(done.is_ok(), clear, "{values:?}");
    }
}

#[test]
fn every_tuner_as_in_peft() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let entry = entry.unwrap();
        if !entry.path().is_dir() {
            continue;
        }
        for kernels in present() {
            for height in [usize::MAX / 2, 3] {
                check_case(&entry.file_name().to_string_lossy(), kernels.as_ref(), height);
            }
        }
        count += 1;
    }
    assert!(count > 0);
}
