//! What goes through a merge untouched: every element type of safetensors, names and metadata as they stand.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use crate::fixtures::Scratch;
use crate::program;

/// Every type the format knows.
const DTYPES: &[Dtype] = &[
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

fn write(path: &Path, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)], metadata: &[(&str, &str)]) {
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).expect("a view")))
        .collect();
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    std::fs::write(path, serialize(views, Some(metadata)).expect("safetensors")).expect("a file");
}

/// A base with one adapted weight of ones and a tensor of every type, and a LoRA of rank one on it.
fn make(scratch: &Scratch) {
    let ones = |n: usize| 1f32.to_le_bytes().repeat(n);
    let mut base = vec![("q.weight".to_string(), Dtype::F32, vec![4, 4], ones(16))];
    for (i, dtype) in DTYPES.iter().enumerate() {
        let bytes = 8 * dtype.bitsize() / 8;
        let data = (0..bytes).map(|b| (7 * b + i) as u8 & if *dtype == Dtype::BOOL { 1 } else { 0x3f }).collect();
        base.push((format!("other.{dtype:?}"), *dtype, vec![2, 4], data));
    }
    write(&scratch.join("base.safetensors"), &base, &[("format", "pt"), ("z", "last"), ("a", "first")]);
    std::fs::create_dir(scratch.join("adapter")).expect("a folder");
    let factors = [
        ("base_model.model.q.lora_A.weight".to_string(), Dtype::F32, vec![1, 4], ones(4)),
        ("base_model.model.q.lora_B.weight".to_string(), Dtype::F32, vec![4, 1], ones(4)),
    ];
    write(&scratch.join("adapter/adapter_model.safetensors"), &factors, &[("format", "pt")]);
    let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q"]}"#;
    std::fs::write(scratch.join("adapter/adapter_config.json"), config).expect("a file");
}

fn merge(scratch: &Scratch, out: &str, more: &[&str]) -> Vec<u8> {
    let path = scratch.join(out);
    program::merge(&scratch.join("base.safetensors"), scratch.join("adapter"), &path, more).expect(0);
    std::fs::read(path).expect("the result")
}

#[test]
fn every_element_type_passes_through_untouched() {
    let scratch = Scratch::new();
    make(&scratch);
    let before = std::fs::read(scratch.join("base.safetensors")).expect("the base");
    let after = merge(&scratch, "out.safetensors", &[]);
    let (before, after) =
        (SafeTensors::deserialize(&before).expect("base"), SafeTensors::deserialize(&after).expect("out"));
    assert_eq!(before.len(), after.len());
    for (name, old) in before.tensors() {
        let new = after.tensor(&name).expect("the same names");
        assert_eq!((old.dtype(), old.shape()), (new.dtype(), new.shape()), "{name}");
        if name == "q.weight" {
            assert!(new.data().as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b) == 3.0), "1 + 2 · 1 · 1");
        } else {
            assert_eq!(old.data(), new.data(), "{name}");
        }
    }
}

#[test]
fn the_head_is_kept_to_the_byte() {
    let scratch = Scratch::new();
    make(&scratch);
    let before = std::fs::read(scratch.join("base.safetensors")).expect("the base");
    let after = merge(&scratch, "out.safetensors", &["--no-provenance"]);
    let head = 8 + u64::from_le_bytes(before[..8].try_into().expect("eight bytes")) as usize;
    assert_eq!(before[..head], after[..head]);
}

#[test]
fn another_type_is_taken_by_the_floats_that_are_computed_with() {
    let scratch = Scratch::new();
    make(&scratch);
    let bytes = merge(&scratch, "out.safetensors", &["--dtype", "bf16"]);
    let after = SafeTensors::deserialize(&bytes).expect("out");
    for dtype in DTYPES {
        use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
        let expected = if matches!(dtype, F64 | F32 | F16 | BF16 | F8_E4M3 | F8_E5M2) { BF16 } else { *dtype };
        assert_eq!(after.tensor(&format!("other.{dtype:?}")).expect("it is there").dtype(), expected, "{dtype:?}");
    }
}
