//! What `verify` finds in merges that PEFT made, that the f64 formula made, and that were spoilt.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use lora_tool::container::{SafetensorsFile, Sharded};
use lora_tool::kernels::OpenBlas;
use lora_tool::layout;
use lora_tool::model::BaseModel;
use lora_tool::ops::merge::Applied;
use lora_tool::ops::verify::{self, Report, State, Verdict};
use lora_tool::stream::{Limits, Unwatched};
use lora_tool::tensor::Tensor;

use crate::fixtures::{Case, Scratch, cases, root};
use crate::models::{Model, Values, deltas, read, rounded, tensor, write, write_lora};
use crate::program::{Ran, command, merge, run};

fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let files = if path.is_dir() { Sharded::open_folder(path) } else { Sharded::open_file(path) };
    files.expect("a readable model").tensors().map(|(_, key, t)| (key.clone(), t.clone())).collect()
}

/// The base's tensors with those that PEFT wrote in their places, beside the base's config.
fn peft_merged(case: &Case, out: &Path) {
    fs::create_dir_all(out).unwrap();
    let mut all = tensors(&case.base());
    let faithful = case.path.join("faithful.safetensors");
    let expected = if faithful.exists() { faithful } else { case.path.join("expected.safetensors") };
    all.extend(SafetensorsFile::open(&expected).expect("expected values").tensors);
    let views = all.iter().map(|(key, t)| {
        let view = TensorView::new(t.dtype, t.shape.dims().to_vec(), t.bytes.as_slice()).expect("a tensor");
        (key.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &out.join("model.safetensors")).unwrap();
    if let Ok(config) = fs::read(case.base().join("config.json")) {
        fs::write(out.join("config.json"), config).unwrap();
    }
}

fn report(merged: &Path, base: &Path, adapters: &[(&Path, f64)]) -> lora_tool::Result<Report> {
    let opened: Vec<_> = adapters.iter().map(|(path, _)| layout::open(path, None)).collect::<Result<_, _>>()?;
    let applied: Vec<_> = opened
        .iter()
        .zip(adapters)
        .map(|(o, (path, strength))| Applied {
            label: path.display().to_string(),
            strength: *strength,
            adapter: &o.adapter,
            identity: None,
        })
        .collect();
    let (merged, base) = (BaseModel::open(merged)?, BaseModel::open(base)?);
    let planned = verify::verify(&merged, &base, &applied, false)?;
    planned.run(&OpenBlas::new(), Limits { threads: 2, memory: 64 << 20 }, &Unwatched)
}

#[test]
fn merges_that_peft_made_are_merges() {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases("peft").into_iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        count += 1;
        let scratch = Scratch::new();
        peft_merged(&case, &scratch.join("out"));
        let report = report(&scratch.join("out"), &case.base(), &[(&case.adapter(), 1.0)]).expect("a report");
        let overall = report.adapters[0].overall;
        let (strength, allowed) = (overall.strength, 1e-5 + 6.0 * overall.deviation);
        if !report.verdict.holds() || strength.is_none_or(|s| (s - 1.0).abs() > allowed.min(1e-3)) {
            let name = &case.name;
            failed
                .push(format!("{name}: {:?} {strength:?} {:?} {:?}", report.verdict, report.findings, report.problems));
        }
    }
    assert!(count > 100, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n"));
}

// Planted strengths

/// Rows and columns of the planted weights.
const ROWS: usize = 256;
const COLS: usize = 512;
const MODULES: [(&str, usize, usize); 2] = [("m.a", ROWS, COLS), ("m.b", ROWS, COLS)];

/// A base of two weights and a norm, whose weights are bell-shaped as trained ones are.
fn planted_base(dtype: Dtype) -> Model {
    let mut model = Model::new();
    for (i, (path, rows, cols)) in MODULES.iter().enumerate() {
        let parts: Vec<_> = (0..4).map(|p| tensor(Dtype::F64, &[*rows, *cols], 100 + 10 * i as u64 + p)).collect();
        let values = (0..rows * cols).map(|at| rounded(dtype, parts.iter().map(|p| p.values[at]).sum::<f64>() / 50.0));
        model.insert(format!("{path}.weight"), Values { dtype, shape: vec![*rows, *cols], values: values.collect() });
    }
    model.insert("m.norm.weight".into(), tensor(dtype, &[64], 7));
    model
}

/// A LoRA whose change is about 1 % of such weights.
fn planted_lora(folder: &Path, seed: u64) {
    write_lora(folder, &MODULES, 8, seed);
    let file = folder.join("adapter_model.safetensors");
    let mut model = read(&file);
    for (_, values) in model.iter_mut().filter(|(key, _)| key.contains("lora_B")) {
        values.values.iter_mut().for_each(|v| *v = rounded(Dtype::F32, *v * 5e-4));
    }
    write(&file, &model, None);
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Base + Σ strength · change in f64, rounded once.
fn planted(base: &Model, adapters: &[(&Path, f64)]) -> Model {
    let mut out = base.clone();
    for (key, v) in &mut out {
        for (path, strength) in adapters {
            if let Some(delta) = deltas(path).get(key) {
                v.values.iter_mut().zip(delta).for_each(|(v, d)| *v += strength * d);
            }
        }
        v.values.iter_mut().for_each(|x| *x = rounded(v.dtype, *x));
    }
    out
}

struct Planted {
    scratch: Scratch,
    base: Model,
    loras: Vec<PathBuf>,
}

impl Planted {
    fn new(dtype: Dtype, loras: usize) -> Planted {
        let scratch = Scratch::new();
        let base = planted_base(dtype);
        write(&scratch.join("base.safetensors"), &base, None);
        let loras: Vec<_> = (0..loras).map(|i| scratch.join(&format!("lora{i}"))).collect();
        for (i, path) in loras.iter().enumerate() {
            planted_lora(path, 1000 * (i as u64 + 1));
        }
        Planted { scratch, base, loras }
    }

    fn base(&self) -> PathBuf {
        self.scratch.join("base.safetensors")
    }

    /// The adapters at strengths.
    fn at<'a>(&'a self, strengths: &[f64]) -> Vec<(&'a Path, f64)> {
        self.loras.iter().map(PathBuf::as_path).zip(strengths.iter().copied()).collect()
    }

    fn write(&self, model: &Model) -> PathBuf {
        let path = self.scratch.join("merged.safetensors");
        write(&path, model, None);
        path
    }

    /// What is found in `model` when the adapters are claimed to be in it at `claimed`.
    #[track_caller]
    fn report(&self, model: &Model, claimed: &[f64]) -> Report {
        report(&self.write(model), &self.base(), &self.at(claimed)).expect("a report")
    }

    /// The command on `model`.
    fn run(&self, model: &Model, claimed: &[f64], more: &[&str]) -> Ran {
        let mut command = command();
        command.arg("verify").arg(self.write(model)).arg("--base").arg(self.base());
        for (path, strength) in self.at(claimed) {
            command.arg("--adapter").arg(format!("{}@{strength}", path.display()));
        }
        command.args(more).output().expect("the program starts").into()
    }
}

#[track_caller]
fn assert_strengths(report: &Report, planted: &[f64], tolerance: f64) {
    for (about, planted) in report.adapters.iter().zip(planted) {
        let found = about.overall.strength.expect("a strength");
        assert!((found - planted).abs() < tolerance, "{found} against {planted}");
        for t in &report.changed {
            let own = t.estimates.iter().find(|e| e.adapter == about.overall.adapter).expect("an estimate");
            let found = own.strength.expect("a strength");
            assert!((found - planted).abs() < tolerance, "{}: {found} against {planted}", t.key);
        }
    }
}

#[test]
fn the_planted_change_is_one_percent() {
    let planted = Planted::new(Dtype::BF16, 1);
    for (key, delta) in deltas(&planted.loras[0]) {
        let share = norm(&delta) / norm(&planted.base[&key].values);
        assert!((0.008..0.012).contains(&share), "{key}: {share}");
    }
}

#[test]
fn planted_strengths_are_found_whatever_is_claimed() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let one = Planted::new(dtype, 1);
        for strength in [1.0, 0.5, -0.3] {
            let model = planted(&one.base, &one.at(&[strength]));
            let claimed = one.report(&model, &[strength]);
            assert!(claimed.verdict.holds(), "{dtype:?} at {strength}: {:?}", claimed.findings);
            assert_strengths(&claimed, &[strength], 1e-3);
            let otherwise = one.report(&model, &[0.8]);
            assert_eq!(otherwise.verdict, Verdict::OtherStrengths, "{dtype:?} at {strength}: {:?}", otherwise.findings);
            assert_strengths(&otherwise, &[strength], 1e-3);
        }
    }
}

#[test]
fn several_adapters_are_told_apart() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let three = Planted::new(dtype, 3);
        let strengths = [0.5, 1.0, -0.3];
        let model = planted(&three.base, &three.at(&strengths));
        let right = three.report(&model, &strengths);
        assert!(right.verdict.holds(), "{dtype:?}: {:?}", right.findings);
        assert_strengths(&right, &strengths, 1e-3);
        let wrong = three.report(&model, &[1.0; 3]);
        assert_eq!(wrong.verdict, Verdict::OtherStrengths, "{dtype:?}: {:?}", wrong.findings);
        assert_strengths(&wrong, &strengths, 1e-3);
        assert_eq!(wrong.adapters.iter().map(|a| (a.agree, a.other)).collect::<Vec<_>>(), [(0, 2), (2, 0), (0, 2)]);
        let (left, rounding) = wrong.residual.expect("a residual");
        assert!(left < 1.1 * rounding + 1e-6, "{dtype:?}: {left} against {rounding}");
    }
}

/// What PEFT makes of 16-bit weights: the change is rounded to the type of the weight, and added in it; one adapter
/// after the other.
fn rounded_twice(base: &Model, adapters: &[(&Path, f64)]) -> Model {
    let mut out = base.clone();
    for (key, v) in &mut out {
        for (path, strength) in adapters {
            if let Some(delta) = deltas(path).get(key) {
                let add = |(v, d): (&mut f64, &f64)| {
                    *v = rounded(base[key].dtype, *v + rounded(base[key].dtype, strength * d));
                };
                v.values.iter_mut().zip(delta).for_each(add);
            }
        }
    }
    out
}

#[test]
fn a_change_that_was_rounded_before_it_was_added_is_a_merge_and_not_an_exact_one() {
    for dtype in [Dtype::BF16, Dtype::F16] {
        let two = Planted::new(dtype, 2);
        for (count, strengths) in [(1, vec![1.0]), (2, vec![0.75, -0.5])] {
            let model = rounded_twice(&two.base, &two.at(&strengths)[..count]);
            let found = two.report(&model, &strengths);
            assert_eq!(found.verdict, Verdict::Rounding, "{dtype:?}: {:?}", found.findings);
            assert!(found.changed.iter().all(|t| t.off.max_ulps > 1 && t.off.beyond == 0), "{:?}", found.changed);
            assert_strengths(&found, &strengths, 1e-3);
        }
    }
}

#[test]
fn a_single_altered_element_is_found() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let one = Planted::new(dtype, 1);
        let mut model = planted(&one.base, &one.at(&[1.0]));
        let values = &mut model.get_mut("m.b.weight").expect("a weight").values;
        let at = 77 * COLS + 5;
        values[at] = rounded(dtype, values[at] + 0.02 * values[at].signum());
        let found = one.report(&model, &[1.0]);
        assert_eq!(found.verdict, Verdict::OtherChanges, "{dtype:?}: {:?}", found.findings);
        let altered: Vec<_> = found.changed.iter().filter(|t| t.is_altered()).collect();
        assert_eq!(altered.len(), 1);
        assert_eq!((altered[0].key.as_str(), altered[0].off.beyond), ("m.b.weight", 1));
        assert_eq!(altered[0].place(altered[0].off.worst.expect("the element").1), (77, 5));
        let ran = one.run(&model, &[1.0], &[]).expect(1);
        assert!(ran.err.contains("m.b.weight") && ran.err.contains("[77, 5]"), "{}", ran.err);
    }
}

#[test]
fn a_tensor_that_no_adapter_changes_has_to_be_the_base_s_to_the_bit() {
    let one = Planted::new(Dtype::BF16, 1);
    let mut model = planted(&one.base, &one.at(&[1.0]));
    let value = &mut model.get_mut("m.norm.weight").expect("a norm").values[9];
    *value = rounded(Dtype::BF16, *value * 1.01);
    let found = one.report(&model, &[1.0]);
    assert_eq!(found.verdict, Verdict::OtherChanges);
    assert_eq!(found.differing.len(), 1);
    let kept = &found.differing[0];
    assert_eq!((kept.key.as_str(), kept.kept.differing, kept.kept.first), ("m.norm.weight", 1, Some(9)));
    assert!(found.changed.iter().all(|t| t.state <= State::OneUlp && !t.is_altered()));
    one.run(&model, &[1.0], &[]).expect(1);
}

#[test]
fn modules_that_miss_the_adapter_are_named() {
    for dtype in [Dtype::BF16, Dtype::F32] {
        let two = Planted::new(dtype, 2);
        let mut model = planted(&two.base, &two.at(&[1.0, 0.5]));
        let without = planted(&two.base, &two.at(&[1.0, 0.0]));
        model.insert("m.b.weight".into(), without["m.b.weight"].clone());
        let found = two.report(&model, &[1.0, 0.5]);
        assert_eq!(found.verdict, Verdict::ModulesMissing, "{dtype:?}: {:?}", found.findings);
        assert_eq!(found.adapters.iter().map(|a| (a.agree, a.missing)).collect::<Vec<_>>(), [(2, 0), (1, 1)]);
        let present = found.adapters[1].where_present().strength.expect("a strength");
        assert!((present - 0.5).abs() < 1e-3, "{present}");
        let ran = two.run(&model, &[1.0, 0.5], &[]).expect(1);
        assert!(ran.err.contains("missing from 1 of 2 tensors") && ran.err.contains("m.b.weight"), "{}", ran.err);
        // The base itself: everything is missing.
        let nothing = two.report(&two.base, &[1.0, 0.5]);
        assert_eq!(nothing.verdict, Verdict::ModulesMissing);
        assert_eq!(nothing.adapters.iter().map(|a| a.missing).collect::<Vec<_>>(), [2, 2]);
    }
}

#[test]
fn another_base_is_not_the_base() {
    let one = Planted::new(Dtype::BF16, 1);
    let mut other = planted_base(Dtype::BF16);
    for (i, v) in other.values_mut().enumerate() {
        let like = tensor(Dtype::BF16, &v.shape, 900 + i as u64);
        v.values = like.values.iter().map(|x| rounded(Dtype::BF16, x / 20.0)).collect();
    }
    let model = planted(&other, &one.at(&[1.0]));
    let found = one.report(&model, &[1.0]);
    assert_eq!(found.verdict, Verdict::NotTheBase, "{:?}", found.findings);
    let ran = one.run(&model, &[1.0], &[]).expect(1);
    assert!(ran.err.contains("not this base"), "{}", ran.err);
    // Tensors of other shapes and names.
    let shapes: Model = one
        .base
        .iter()
        .map(|(key, v)| (format!("x.{key}"), Values { dtype: v.dtype, shape: vec![2], values: vec![0.0; 2] }))
        .collect();
    assert_eq!(one.report(&shapes, &[1.0]).verdict, Verdict::NotTheBase);
}

#[test]
fn missing_and_added_tensors_are_named() {
    let one = Planted::new(Dtype::F32, 1);
    let right = planted(&one.base, &one.at(&[1.0]));
    let (mut less, mut more, mut other) = (right.clone(), right.clone(), right.clone());
    less.remove("m.norm.weight");
    more.insert("m.extra.weight".into(), tensor(Dtype::F32, &[3], 1));
    other.get_mut("m.norm.weight").expect("a norm").shape = vec![8, 8];
    for (model, key) in [(less, "m.norm.weight"), (more, "m.extra.weight"), (other, "m.norm.weight")] {
        let found = one.report(&model, &[1.0]);
        assert_eq!(found.verdict, Verdict::OtherChanges);
        assert_eq!(found.problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(), [key]);
        let ran = one.run(&model, &[1.0], &[]).expect(1);
        assert!(ran.err.contains(key), "{}", ran.err);
    }
}

#[test]
fn adapters_with_the_same_change_are_not_told_apart() {
    let one = Planted::new(Dtype::BF16, 1);
    let lora = one.loras[0].as_path();
    let model = planted(&one.base, &one.at(&[0.75]));
    let path = one.write(&model);
    let right = report(&path, &one.base(), &[(lora, 0.5), (lora, 0.25)]).expect("a report");
    assert!(right.verdict.holds(), "{:?}", right.findings);
    assert!(right.adapters.iter().all(|a| a.overall.strength.is_none()));
    let wrong = report(&path, &one.base(), &[(lora, 0.5), (lora, 1.0)]).expect("a report");
    assert_eq!(wrong.verdict, Verdict::OtherStrengths, "{:?}", wrong.findings);
}

#[test]
fn a_change_below_the_rounding_is_found_exact_or_not_told() {
    let one = Planted::new(Dtype::BF16, 1);
    let small = 1e-7;
    let exact = one.report(&planted(&one.base, &one.at(&[small])), &[small]);
    assert_eq!(exact.verdict, Verdict::Exact, "{:?}", exact.findings);
    // One element is its neighbour: a merge by another program may do that, but nothing shows that it is one.
    let mut model = one.base.clone();
    let value = &mut model.get_mut("m.a.weight").expect("a weight").values[3];
    *value = rounded(Dtype::BF16, *value * (1.0 + 1.0 / 150.0));
    let near = one.report(&model, &[small]);
    assert_eq!(near.verdict, Verdict::Untold, "{:?} {:?}", near.findings, near.adapters);
}

#[test]
fn strengths_of_swallowed_changes_are_those_of_the_merge() {
    // A change of 0.01 %: a bf16 weight keeps it in few elements.
    let one = Planted::new(Dtype::BF16, 1);
    for strength in [0.01, 0.02] {
        let model = planted(&one.base, &one.at(&[strength]));
        let found = one.report(&model, &[strength]);
        assert!(found.verdict.holds(), "{:?}", found.findings);
        let overall = found.adapters[0].overall;
        let error = (overall.strength.expect("a strength") - strength).abs();
        assert!(error < 0.01 * strength, "{overall:?}");
        let nothing = one.report(&one.base, &[strength]);
        assert_eq!(nothing.verdict, Verdict::ModulesMissing, "{:?} {:?}", nothing.findings, nothing.adapters);
    }
}

// Through the program

fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

fn peft(name: &str) -> PathBuf {
    root().join("adapters/peft").join(name)
}

/// Merges with the program and verifies the same.
fn merged_and_verified(base: &Path, adapters: &[String], more: &[&str]) -> Value {
    let scratch = Scratch::new();
    let out = scratch.join(if base.is_dir() { "out" } else { "out.safetensors" });
    let mut all: Vec<&str> = adapters[1..].iter().map(String::as_str).collect();
    all.extend(more);
    merge(base, &adapters[0], &out, &all).expect(0);
    let mut args = vec!["verify".to_string(), out.display().to_string()];
    args.extend(["--base".to_string(), base.display().to_string(), "--json".to_string()]);
    adapters.iter().for_each(|a| args.extend(["--adapter".to_string(), a.clone()]));
    run(args).expect(0).json()
}

#[test]
fn what_merge_writes_is_exact() {
    let at = |name: &str, strength: f64| format!("{}@{strength}", peft(name).display());
    let cases = [
        ("llama", vec![at("lora", 1.0)], vec![]),
        ("llama", vec![at("lora", 0.5), at("rslora", -0.25)], vec![]),
        ("llama", vec![at("lora", 1.0)], vec!["--dtype", "bf16"]),
        ("llama", vec![at("dora", 0.7)], vec!["--dtype", "f16", "--max-shard-size", "4KB"]),
        ("llama_bf16", vec![at("bf16", 1.0), at("bf16_all", 0.25)], vec!["--dtype", "f64"]),
        ("llama_tied", vec![at("tied_lm_head", 1.0)], vec![]),
        ("llama_tied", vec![at("tied_both", 0.5), at("tied_lm_head", 1.0)], vec![]),
        ("llama", vec![at("grown", 1.0)], vec![]),
        ("llama", vec![at("grown_saved", 1.0)], vec!["--dtype", "bf16"]),
    ];
    for (base, adapters, more) in cases {
        let found = merged_and_verified(&model(base), &adapters, &more);
        assert_eq!((&found["verdict"], &found["holds"]), (&"exact".into(), &true.into()), "{adapters:?} {more:?}");
        for (about, argument) in found["adapters"].as_array().expect("adapters").iter().zip(&adapters) {
            let claimed: f64 = argument.rsplit('@').next().expect("a strength").parse().expect("a number");
            assert_eq!(about["claimed"], claimed);
            assert!((about["strength"].as_f64().expect("a strength") - claimed).abs() < 1e-3, "{about}");
        }
    }
}

#[test]
fn shards_and_single_files_are_the_same_model() {
    let scratch = Scratch::new();
    let (shards, single) = (scratch.join("shards"), scratch.join("single.safetensors"));
    merge(&model("llama"), peft("lora"), &shards, &[]).expect(0);
    write(&single, &read(&shards), None);
    let verify = |merged: &Path, base: &Path| {
        let args = [Path::new("verify"), merged, Path::new("--base"), base, Path::new("--adapter"), &peft("lora")];
        run(args.map(Path::as_os_str))
    };
    verify(&single, &model("llama")).expect(0);
    let base = scratch.join("base.safetensors");
    write(&base, &read(&model("llama")), None);
    verify(&shards, &base).expect(0);
}

#[test]
fn a_tied_matrix_may_be_written_once_or_twice() {
    // Tied in base and result; other programs write both, or leave one out.
    let scratch = Scratch::new();
    let base = model("llama_tied");
    let out = scratch.join("out");
    merge(&base, peft("tied_tokens"), &out, &[]).expect(0);
    let verify = || {
        let args =
            [Path::new("verify"), &out, Path::new("--base"), &base, Path::new("--adapter"), &peft("tied_tokens")];
        run(args.map(Path::as_os_str))
    };
    verify().expect(0);
    let file = out.join("model.safetensors");
    let mut both = read(&file);
    both.insert("lm_head.weight".into(), both["model.embed_tokens.weight"].clone());
    write(&file, &both, None);
    verify().expect(0);
    both.get_mut("lm_head.weight").expect("the head").values[0] += 1.0;
    write(&file, &both, None);
    let ran = verify().expect(1);
    assert!(ran.err.contains("lm_head.weight"), "{}", ran.err);
}

#[test]
fn the_answer_is_one_document_also_where_the_claim_does_not_hold() {
    let planted_one = Planted::new(Dtype::BF16, 1);
    let model = planted(&planted_one.base, &planted_one.at(&[0.5]));
    let ran = planted_one.run(&model, &[1.0], &["--json"]).expect(1);
    let found = ran.json();
    assert_eq!((&found["holds"], &found["verdict"]), (&false.into(), &"other_strengths".into()));
    assert_eq!(found["changed"].as_array().expect("tensors").len(), 2);
    let strength = found["adapters"][0]["strength"].as_f64().expect("a strength");
    assert!((strength - 0.5).abs() < 1e-3, "{strength}");
    assert!(found["seconds"].is_number());
    assert!(ran.err.starts_with("lora-tool: ") && ran.err.contains("@0.5"), "{}", ran.err);
    // What cannot be verified is an error as every command gives it.
    let nothing = planted_one.scratch.join("nothing");
    let lora = &planted_one.loras[0];
    let args = [Path::new("verify"), &nothing, Path::new("--base"), &nothing, Path::new("--adapter"), lora];
    let ran = run(args.map(Path::as_os_str).into_iter().chain([std::ffi::OsStr::new("--json")])).expect(1);
    assert_eq!(ran.json()["error"]["kind"], "io");
}

#[test]
fn the_report_does_not_depend_on_the_threads() {
    let two = Planted::new(Dtype::BF16, 2);
    let model = rounded_twice(&two.base, &two.at(&[0.5, 1.0]));
    let said = |threads: &str, memory: &str| {
        let more = ["--json", "--threads", threads, "--memory", memory];
        let mut found = two.run(&model, &[0.5, 1.0], &more).expect(0).json();
        found["seconds"] = Value::Null;
        found
    };
    let one = said("1", "1MB");
    assert_eq!(one, said("2", "256MB"));
    assert_eq!(one, said("5", "3MB"));
}
