//! Adapters that diffusers saved, merged as diffusers fuses them, and written as it reads them.

use std::path::{Path, PathBuf};

use lora_tool::adapter::Delta;
use lora_tool::container::SafetensorsFile;
use lora_tool::layout;

use crate::fixtures::{self, Scratch};
use crate::program;

const CASES: [&str; 6] = ["plain", "scaled", "rslora", "convolutions", "dora", "processors"];
const TENSORS: &str = "pytorch_lora_weights.safetensors";

fn case(name: &str) -> PathBuf {
    fixtures::root().join("adapters/diffusers").join(name)
}

/// Relative error of the change of every tensor against what diffusers fused.
fn check(name: &str, adapter: &Path, scratch: &Scratch) {
    let (base, out) = (case(name).join("base"), scratch.join("merged"));
    program::merge(&base, adapter, &out, &[]).expect(0);
    let open = |path: &Path| SafetensorsFile::open(path).expect("tensors").tensors;
    let weights = "diffusion_pytorch_model.safetensors";
    let (old, new) = (open(&base.join(weights)), open(&out.join(weights)));
    let expected = open(&case(name).join("expected.safetensors"));
    assert_eq!(new.len(), expected.len(), "{name}");
    for (key, wanted) in &expected {
        let values = |t: &lora_tool::tensor::Tensor| t.to_f32().expect("floats");
        let (old, new, wanted) = (values(&old[key]), values(&new[key]), values(wanted));
        let norm = |f: &dyn Fn(usize) -> f32| (0..wanted.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt();
        let (error, change) = (norm(&|i| new[i] - wanted[i]), norm(&|i| wanted[i] - old[i]));
        assert!(change > 0.0 && error <= 1e-4 * change, "{name}: {key}: {error:.1e} of {change:.1e}");
    }
}

#[test]
fn merged_they_are_what_diffusers_fuses() {
    for name in CASES {
        let scratch = Scratch::new();
        check(name, &case(name).join(TENSORS), &scratch);
        let folder = Scratch::new();
        check(name, &case(name), &folder);
    }
}

#[test]
fn what_is_written_does_the_same_and_keeps_every_tensor() {
    for name in CASES {
        let opened = layout::open(&case(name), None).expect("an adapter");
        assert_eq!(opened.layout, "diffusers", "{name}: {}", opened.because);
        let (draft, _) = layout::named("diffusers").and_then(|l| l.write(&opened.adapter)).expect("a draft");
        let scratch = Scratch::new();
        let path = scratch.join(TENSORS);
        layout::save(&draft, &path, &[], false, false).expect("saved");
        check(name, &path, &scratch);
        let again = layout::open(&path, None).expect("an adapter");
        assert_eq!(again.adapter.targets, opened.adapter.targets, "{name}");
        if name != "processors" {
            for (key, tensor) in &opened.source.tensors {
                assert!(again.source.tensors.get(key) == Some(tensor), "{name}: {key}");
            }
        }
    }
}

#[test]
fn alphas_beside_the_tensors_count_and_not_together_with_the_header() {
    let scratch = Scratch::new();
    let opened = layout::open(&case("plain"), None).expect("an adapter");
    let mut draft =
        layout::Draft { tensor_file: TENSORS.into(), tensors: opened.source.tensors, ..layout::Draft::default() };
    let key = draft.tensors.keys().next().expect("a key").replace(".lora_A.weight", ".alpha");
    let alpha =
        lora_tool::tensor::Tensor::from_f32(lora_tool::tensor::Dtype::F32, Vec::<usize>::new(), &[6.0]).expect("alpha");
    draft.tensors.insert(key.clone(), alpha);
    let path = scratch.join("alphas.safetensors");
    layout::save(&draft, &path, &[], false, false).expect("saved");
    let opened = layout::open(&path, None).expect("an adapter");
    let module = key.strip_suffix(".alpha").expect("a module");
    let Some(Delta::LowRank(d)) = opened.adapter.targets[module].weight.first() else { panic!("factors") };
    assert_eq!(d.factor(), 3.0);
    // Some trainers store a whole number as one, and f64 keeps all of its digits.
    for (dtype, bytes, factor) in [
        (lora_tool::tensor::Dtype::I64, 6i64.to_le_bytes(), 3.0),
        (lora_tool::tensor::Dtype::F64, 0.1f64.to_le_bytes(), 0.05),
    ] {
        let alpha = lora_tool::tensor::Tensor::new(dtype, Vec::new().as_slice().into(), bytes.to_vec().into());
        draft.tensors.insert(key.clone(), alpha.expect("a number"));
        let path = scratch.join(&format!("{factor}.safetensors"));
        layout::save(&draft, &path, &[], false, false).expect("saved");
        let opened = layout::open(&path, None).expect("an adapter");
        let Some(Delta::LowRank(d)) = opened.adapter.targets[module].weight.first() else { panic!("factors") };
        assert_eq!(d.factor(), factor);
    }
    draft.metadata = vec![("lora_adapter_metadata".into(), r#"{"unet.r": 2, "unet.lora_alpha": 2}"#.into())];
    let both = scratch.join("both.safetensors");
    layout::save(&draft, &both, &[], false, false).expect("saved");
    let e = layout::open(&both, None).expect_err("one or the other");
    assert!(e.to_string().contains("one or the other"), "{e}");
}
