//! Merged weights against those of the program the adapter was made with.
//!
//! `expected.safetensors` beside an adapter holds what PEFT's own `merge_and_unload` and `save_pretrained` wrote, for
//! every tensor that differs from the base's file; `fixtures/make` made it.

use std::collections::BTreeMap;
use std::path::Path;

use lora_tool::container::{SafetensorsFile, Sharded};
use lora_tool::kernels::OpenBlas;
use lora_tool::model::BaseModel;
use lora_tool::ops::merge::{self, Applied, Options};
use lora_tool::stream::{Limits, Resuming, Unwatched, Writing};
use lora_tool::tensor::Tensor;
use lora_tool::{Result, layout};

use crate::fixtures::{Case, Scratch, cases};

/// Relative error of a tensor's change, in f32. Factors and sums are f32 on both sides, in different orders.
const F32_TOLERANCE: f64 = 1e-4;

/// The layouts whose fixtures are merged.
const LAYOUTS: &[&str] = &["peft", "gguf"];

type Tensors = BTreeMap<String, Tensor>;

/// Merges one adapter with the defaults.
pub fn merge_case(case: &Case, out: &Path) -> Result<()> {
    merge_adapter(case, &case.adapter(), out)
}

fn merge_adapter(case: &Case, adapter: &Path, out: &Path) -> Result<()> {
    let base = BaseModel::open(&case.base())?;
    let opened = layout::open(adapter, None)?;
    opened.source.require_finite()?;
    let applied = [Applied { label: case.name.clone(), strength: 1.0, adapter: &opened.adapter, identity: None }];
    let merge = merge::merge(&base, &applied, &Options::default())?;
    let limits = Limits { threads: 2, memory: 64 << 20 };
    let writing = Writing { replace: false, sync: false, limits, resuming: Resuming::Never };
    merge.output.write(out, writing, &OpenBlas::new(), &Unwatched)?;
    Ok(())
}

fn read(path: &Path) -> Tensors {
    let files = if path.is_dir() { Sharded::open_folder(path) } else { Sharded::open_file(path) };
    files.expect("a readable model").tensors().map(|(_, key, t)| (key.clone(), t.clone())).collect()
}

/// What differs from what PEFT made, in words.
fn differences(base: &Tensors, merged: &Tensors, expected: &Tensors, tolerance: f64) -> Vec<String> {
    let mut out = Vec::new();
    for (key, wanted) in expected {
        match merged.get(key) {
            None => out.push(format!("{key} is missing")),
            Some(found) if found.shape != wanted.shape || found.dtype != wanted.dtype => {
                out.push(format!("{key}: {} {} against {} {}", found.dtype, found.shape, wanted.dtype, wanted.shape));
            }
            Some(found) => out.extend(difference(key, base.get(key), found, wanted, tolerance)),
        }
    }
    for (key, found) in merged {
        let copied = base.get(key).is_some_and(|b| b.bytes.as_slice() == found.bytes.as_slice());
        if !copied && !expected.contains_key(key) && !is_untied(key, found, base) {
            out.push(format!("{key} changed and should not have"));
        }
    }
    out
}

/// An output embedding that is written by itself, with the values it was tied to.
fn is_untied(key: &str, found: &Tensor, base: &Tensors) -> bool {
    key == "lm_head.weight" && base.values().any(|b| b.bytes.as_slice() == found.bytes.as_slice())
}

fn difference(key: &str, base: Option<&Tensor>, found: &Tensor, wanted: &Tensor, tolerance: f64) -> Option<String> {
    let (found, wanted) = (values(found), values(wanted));
    let old = base.filter(|b| b.elements() == wanted.len()).map_or_else(|| vec![0.0; wanted.len()], values);
    let sum = |f: &dyn Fn(usize) -> f64| (0..wanted.len()).map(f).map(|v| v * v).sum::<f64>().sqrt();
    let error = sum(&|i| found[i] - wanted[i]);
    let delta = sum(&|i| wanted[i] - old[i]);
    let relative = error / delta;
    (relative.is_nan() || relative > tolerance).then(|| format!("{key}: relative error of the delta {relative:.2e}"))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_f32().expect("numbers").into_iter().map(f64::from).collect()
}

/// Runs every case that `choose` takes and collects what went wrong.
fn run(layouts: &[&str], choose: impl Fn(&Case) -> bool, check: impl Fn(&Case) -> Vec<String>) {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in layouts.iter().flat_map(|layout| cases(layout)).filter(|c| choose(c)) {
        count += 1;
        failed.extend(check(&case).into_iter().map(|what| format!("{}: {what}", case.name)));
    }
    assert!(count > 10, "only {count} fixtures were found");
    assert!(failed.is_empty(), "{} of {count} cases:\n{}", failed.len(), failed.join("\n"));
}

/// What an error says, without the path, which may hold the word by itself.
fn said(e: &lora_tool::Error) -> String {
    format!("{}: {}", e.key().unwrap_or_default(), e.what()).to_lowercase()
}

/// Where merging `adapter` into the base of a case gives something else than PEFT made of the case's own adapter.
pub fn differences_of(case: &Case, adapter: &Path) -> Vec<String> {
    differences_above(case, adapter, F32_TOLERANCE)
}

/// The same where a relative error of each tensor's change up to `tolerance` is no difference.
pub fn differences_above(case: &Case, adapter: &Path, tolerance: f64) -> Vec<String> {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    match merge_adapter(case, adapter, &out) {
        Err(e) => vec![format!("{e}")],
        Ok(()) => {
            let expected = SafetensorsFile::open(&case.path.join("expected.safetensors")).expect("expected values");
            differences(&read(&case.base()), &read(&out), &expected.tensors.into_iter().collect(), tolerance)
        }
    }
}

#[test]
fn merged_weights_are_those_of_peft() {
    // Where PEFT contradicts its own forward pass, `differs` says how; the formula is tested elsewhere.
    run(
        LAYOUTS,
        |case| case.expects_merge() && case.text("differs").is_none(),
        |case| differences_of(case, &case.adapter()),
    );
}

#[test]
fn where_peft_contradicts_itself_the_adapted_model_is_kept() {
    let faithful = |case: &Case| case.path.join("faithful.safetensors");
    let mut count = 0;
    for case in cases("peft").into_iter().filter(|case| faithful(case).exists()) {
        count += 1;
        let scratch = Scratch::new();
        let out = scratch.join("out");
        merge_case(&case, &out).expect("a merge");
        let expected = SafetensorsFile::open(&faithful(&case)).expect("expected values");
        let expected = expected.tensors.into_iter().collect();
        let found = differences(&read(&case.base()), &read(&out), &expected, F32_TOLERANCE);
        assert!(found.is_empty(), "{}: {}", case.name, found.join(", "));
    }
    assert!(count > 4, "only {count} fixtures were found");
}

#[test]
fn what_cannot_be_merged_is_refused_with_the_reason() {
    run(
        LAYOUTS,
        |case| !case.expects_merge(),
        |case| {
            let scratch = Scratch::new();
            let out = scratch.join("out");
            let word = case.text("message").expect("the word that the error has to contain").to_lowercase();
            match merge_case(case, &out) {
                Ok(()) => vec!["was merged".to_string()],
                Err(_) if out.exists() => vec!["left an output behind".to_string()],
                Err(e) if said(&e).contains(&word) => Vec::new(),
                Err(e) => vec![format!("expected `{word}` in: {e}")],
            }
        },
    );
}
