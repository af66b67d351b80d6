//! Small models for tests, read and written with the safetensors crate, and what merging them must give, in f64.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

/// A tensor's type, shape and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

/// Tensors by key.
pub type Model = BTreeMap<String, Values>;

/// All tensors of a file or of a folder's files.
pub fn read(path: &Path) -> Model {
    let files: Vec<_> = if path.is_dir() {
        let entries = std::fs::read_dir(path).expect("a folder");
        entries
            .map(|e| e.expect("an entry").path())
            .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
            .collect()
    } else {
        vec![path.to_path_buf()]
    };
    let mut out = Model::new();
    for file in files {
        let bytes = std::fs::read(&file).expect("a file");
        for (key, view) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
            let values =
                Values { dtype: view.dtype(), shape: view.shape().to_vec(), values: widen(view.dtype(), view.data()) };
            assert!(out.insert(key, values).is_none(), "a key stands in two files of {}", path.display());
        }
    }
    out
}

/// The values of such bytes.
pub fn widen(dtype: Dtype, data: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        other => panic!("{other:?} in a test"),
    }
}

/// Rounds once to the nearest value of the type.
pub fn rounded(dtype: Dtype, value: f64) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(value as f32),
        Dtype::F16 => {
            nearest(value, f16::from_f64(value).to_bits(), |bits| f16::from_bits(bits).to_f64(), f16::MAX.to_bits())
        }
        Dtype::BF16 => {
            nearest(value, bf16::from_f64(value).to_bits(), |bits| bf16::from_bits(bits).to_f64(), bf16::MAX.to_bits())
        }
        _ => value,
    }
}

/// The nearest to `value` of the number with these bits and its neighbours, of two the even one: `half` looks at the upper
/// bits of an f64 only.
fn nearest(value: f64, bits: u16, number: impl Fn(u16) -> f64, largest: u16) -> f64 {
    if (bits & 0x7fff) >= largest || bits & 0x7fff == 0 {
        return number(bits);
    }
    let apart = |bits: u16| ((number(bits) - value).abs(), bits & 1);
    let best =
        [bits - 1, bits, bits + 1].into_iter().min_by(|&x, &y| apart(x).partial_cmp(&apart(y)).expect("numbers"));
    number(best.expect("three"))
}

/// Writes a file.
pub fn write(path: &Path, model: &Model, metadata: Option<HashMap<String, String>>) {
    let bytes: BTreeMap<_, Vec<u8>> = model.iter().map(|(key, v)| (key, narrow(v))).collect();
    let views = model.iter().map(|(key, v)| {
        (key.as_str(), TensorView::new(v.dtype, v.shape.clone(), &bytes[key]).expect("a size that fits the shape"))
    });
    safetensors::serialize_to_file(views, metadata, path).expect("a written file");
}

fn narrow(v: &Values) -> Vec<u8> {
    let each = |value: &f64| match v.dtype {
        Dtype::F64 => value.to_le_bytes().to_vec(),
        Dtype::F32 => (*value as f32).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f64(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f64(*value).to_le_bytes().to_vec(),
        other => panic!("{other:?} in a test"),
    };
    v.values.iter().flat_map(each).collect()
}

/// A tensor of numbers between -1 and 1 that look random and are the same each time.
pub fn tensor(dtype: Dtype, shape: &[usize], seed: u64) -> Values {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        rounded(dtype, (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
    };
    let count = shape.iter().product();
    Values { dtype, shape: shape.to_vec(), values: (0..count).map(|_| next()).collect() }
}

/// Writes a LoRA on the modules given: path, rows, columns, rank; with alpha 4.
pub fn write_lora(folder: &Path, modules: &[(&str, usize, usize)], rank: usize, seed: u64) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut model = Model::new();
    for (i, (path, rows, cols)) in modules.iter().enumerate() {
        let seed = seed + 2 * i as u64;
        model.insert(format!("base_model.model.{path}.lora_A.weight"), tensor(Dtype::F32, &[rank, *cols], seed));
        model.insert(format!("base_model.model.{path}.lora_B.weight"), tensor(Dtype::F32, &[*rows, rank], seed + 1));
    }
    write(&folder.join("adapter_model.safetensors"), &model, None);
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or(path).to_string();
    let leaves: Vec<_> = modules.iter().map(|(path, ..)| leaf(path)).collect();
    let config = json!({ "peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": leaves });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("a config");
}

/// What a LoRA adds to each weight, by key in the base: (alpha / r) · B · A in f64. Layers and embeddings; ranks and
/// alphas the same everywhere.
pub fn deltas(adapter: &Path) -> BTreeMap<String, Vec<f64>> {
    let config = json_file(&adapter.join("adapter_config.json"));
    let number = |field: &str| config[field].as_f64().expect("a number in the config");
    let scale = number("lora_alpha") / number("r");
    let tensors = read(&adapter.join("adapter_model.safetensors"));
    let mut out = BTreeMap::new();
    for (key, first) in &tensors {
        let path = key.strip_prefix("base_model.model.").expect("PEFT's prefix");
        if let Some(module) = path.strip_suffix(".lora_A.weight") {
            let b = &tensors[&key.replace("lora_A", "lora_B")];
            out.insert(format!("{module}.weight"), product(scale, b, first));
        } else if let Some(module) = path.strip_suffix(".lora_embedding_A") {
            // The weight is [n, d], the factors are A: [r, n] and B: [d, r]; the change is (B · A) transposed.
            let b = &tensors[&key.replace("embedding_A", "embedding_B")];
            let (n, d) = (first.shape[1], b.shape[0]);
            let wide = product(scale, b, first);
            out.insert(format!("{module}.weight"), (0..n * d).map(|i| wide[i % d * n + i / d]).collect());
        }
    }
    out
}

fn product(scale: f64, b: &Values, a: &Values) -> Vec<f64> {
    let (rows, rank, cols) = (b.shape[0], b.shape[1], a.shape[1]);
    let sum = |i: usize, j: usize| (0..rank).map(|k| b.values[i * rank + k] * a.values[k * cols + j]).sum::<f64>();
    (0..rows * cols).map(|at| scale * sum(at / cols, at % cols)).collect()
}

/// A JSON file.
pub fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a readable file")).expect("JSON")
}

/// Whether `found` is `exact` rounded once to the type. Sums in f32 may move a value that lies beside the middle
/// between two neighbours to the other side, so the middle is allowed a width of 2⁻¹⁸ of the summands.
#[track_caller]
pub fn assert_rounded_once(key: &str, dtype: Dtype, found: f64, exact: f64, size: f64) {
    let width = size * f64::powi(2.0, if dtype == Dtype::F32 { -20 } else { -18 });
    let (low, high) = (rounded(dtype, exact - width), rounded(dtype, exact + width));
    assert!(
        low <= found && found <= high,
        "{key}: {found} against {exact}, which is {} rounded",
        rounded(dtype, exact)
    );
}

/// Checks every tensor of `merged`: `base` + Σ strength · delta, rounded once; everything else as in the base.
#[track_caller]
pub fn assert_merged(base: &Model, merged: &Model, adapters: &[(f64, BTreeMap<String, Vec<f64>>)]) {
    assert_eq!(base.keys().collect::<Vec<_>>(), merged.keys().collect::<Vec<_>>());
    let mut changed = 0;
    for (key, old) in base {
        let new = &merged[key];
        assert_eq!((&old.dtype, &old.shape), (&new.dtype, &new.shape), "{key}");
        let changes: Vec<_> = adapters.iter().filter_map(|(s, all)| all.get(key).map(|d| (*s, d))).collect();
        changed += usize::from(!changes.is_empty());
        for (i, (before, after)) in old.values.iter().zip(&new.values).enumerate() {
            let exact = before + changes.iter().map(|(s, d)| s * d[i]).sum::<f64>();
            let size = before.abs() + changes.iter().map(|(s, d)| (s * d[i]).abs()).sum::<f64>() + 1.0;
            if changes.is_empty() {
                assert_eq!(before, after, "{key}");
            } else {
                assert_rounded_once(key, old.dtype, *after, exact, size);
            }
        }
    }
    assert!(changed > 0, "no change met a tensor of the base");
}
