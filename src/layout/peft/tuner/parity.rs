//! Every folder of `fixtures/tuners` through reader, preparation and action, against what PEFT made of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, s};

use crate::adapter::delta::{Action, Delta, InMemory, Site};
use crate::adapter::{SiteKind, Target};
use crate::container::SafetensorsFile;
use crate::kernels::{Kernels, present};
use crate::layout::open;
use crate::tensor::{Rows, Shape, StateDict, Tensor};

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
    let opened = open(&folder().join(name), None).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    assert!(opened.notes.is_empty(), "{name}: {:?}", opened.notes);
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
