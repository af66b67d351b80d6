//! How large records are, on weights as they are in real models.

use std::f64::consts::TAU;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::Dtype;
use serde_json::json;

use super::{assert_same, at, merge, unmerge};
use crate::fixtures::Scratch;
use crate::models::{Model, Values, deltas, read, rounded, tensor, write, write_lora};

const ROWS: usize = 512;
const COLS: usize = 2048;

/// Weights of a normal distribution with the width of trained ones.
fn normal(seed: u64) -> Values {
    let uniform = tensor(Dtype::F32, &[ROWS, 2 * COLS], seed);
    let pair = |u: &[f64]| (-2.0 * ((u[0] + 1.0) / 2.0).max(1e-9).ln()).sqrt() * (TAU * u[1]).cos();
    let values = uniform.values.chunks(2).map(|u| rounded(Dtype::BF16, 0.02 * pair(u))).collect();
    Values { dtype: Dtype::BF16, shape: vec![ROWS, COLS], values }
}

fn norm<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

struct Made {
    scratch: Scratch,
    base: PathBuf,
    lora: PathBuf,
    /// Norm of the change at strength 1 over the norm of the weights.
    share: f64,
}

impl Made {
    fn new() -> Made {
        let scratch = Scratch::new();
        let (base, lora) = (scratch.join("base.safetensors"), scratch.join("lora"));
        let names = ["q_proj", "v_proj"];
        let model: Model = names.iter().zip(1..).map(|(name, n)| (format!("{name}.weight"), normal(n))).collect();
        write(&base, &model, None);
        write_lora(&lora, &names.map(|name| (name, ROWS, COLS)), 4, 77);
        let delta = norm(deltas(&lora).values().flatten());
        let share = delta / norm(model.values().flat_map(|v| &v.values));
        Made { scratch, base, lora, share }
    }

    /// The size of the record of a merge, as a share of the tensors that change.
    fn share(&self, adapter: &Path, strength: f64, more: &[&str]) -> f64 {
        let (out, record) = (self.scratch.join("out.safetensors"), self.scratch.join("base.undo"));
        let back = self.scratch.join("back.safetensors");
        let more = [more, &["--json", "--force", "--undo-embed", "never"]].concat();
        let said = merge(&self.base, &[at(adapter, strength)], &out, &record, &more).expect(0).json();
        let _ = fs::remove_file(&back);
        unmerge(&out, &back, &record, &[]).expect(0);
        assert_same(&back, &self.base);
        said["undo"]["share"].as_f64().unwrap()
    }
}

#[test]
fn a_record_of_a_small_change_is_small() {
    let made = Made::new();
    // Relative size of the change, most of the touched bytes.
    for (size, most) in [(0.003, 0.01), (0.01, 0.02), (0.03, 0.06), (0.1, 0.15)] {
        let share = made.share(&made.lora, size / made.share, &[]);
        println!("LoRA of {:.1} %: {:.2} % of the touched bytes", 100.0 * size, 100.0 * share);
        assert!(share < most, "{share} for a change of {size}");
    }
    // In a wider type next to nothing is lost.
    let share = made.share(&made.lora, 0.01 / made.share, &["--dtype", "f32"]);
    println!("LoRA of 1.0 % as f32: {:.3} %", 100.0 * share);
    assert!(share < 0.002, "{share}");
}

#[test]
fn other_kinds_come_back_too() {
    let made = Made::new();
    // DoRA: magnitudes near the norms of the rows.
    let dora = made.scratch.join("dora");
    super::copy_folder(&made.lora, &dora);
    let mut factors = read(&dora.join("adapter_model.safetensors"));
    let weights = read(&made.base);
    for name in ["q_proj", "v_proj"] {
        let rows = weights[&format!("{name}.weight")].values.chunks(COLS).map(|row| norm(row.iter()));
        let values = rows.enumerate().map(|(i, n)| n * (1.0 + 0.002 * (i % 7) as f64)).collect();
        let magnitude = Values { dtype: Dtype::F32, shape: vec![ROWS], values };
        factors.insert(format!("base_model.model.{name}.lora_magnitude_vector"), magnitude);
    }
    // B small, so that the change is of a percent.
    let scale = 0.01 / made.share;
    factors.iter_mut().filter(|(key, _)| key.contains("lora_B")).for_each(|(_, t)| {
        t.values.iter_mut().for_each(|v| *v *= scale);
    });
    write(&dora.join("adapter_model.safetensors"), &factors, None);
    let config = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": true, "target_modules": ["q_proj", "v_proj"]
    });
    fs::write(dora.join("adapter_config.json"), config.to_string()).unwrap();
    // IA³: outputs multiplied by about one.
    let ia3 = made.scratch.join("ia3");
    fs::create_dir(&ia3).unwrap();
    let factors = |name: &str| {
        let values = (0..ROWS).map(|i| 1.0 + 0.01 * ((i % 13) as f64 - 6.0) / 6.0).collect();
        (format!("base_model.model.{name}.ia3_l"), Values { dtype: Dtype::F32, shape: vec![ROWS, 1], values })
    };
    write(&ia3.join("adapter_model.safetensors"), &["q_proj", "v_proj"].map(factors).into(), None);
    let config = json!({ "peft_type": "IA3", "target_modules": ["q_proj", "v_proj"], "feedforward_modules": [] });
    fs::write(ia3.join("adapter_config.json"), config.to_string()).unwrap();
    // OFT: blocks of 8 inputs turned a little.
    let oft = made.scratch.join("oft");
    fs::create_dir(&oft).unwrap();
    let turns = |name: &str| {
        let mut t = tensor(Dtype::F32, &[COLS / 8, 28], 5);
        t.values.iter_mut().for_each(|v| *v *= 0.005);
        (format!("base_model.model.{name}.oft_R.weight"), t)
    };
    write(&oft.join("adapter_model.safetensors"), &["q_proj", "v_proj"].map(turns).into(), None);
    let config = json!({
        "peft_type": "OFT", "target_modules": ["q_proj", "v_proj"], "r": 0, "oft_block_size": 8,
        "use_cayley_neumann": false
    });
    fs::write(oft.join("adapter_config.json"), config.to_string()).unwrap();
    for (kind, adapter) in [("DoRA", &dora), ("IA3", &ia3), ("OFT", &oft)] {
        let share = made.share(adapter, 1.0, &[]);
        println!("{kind}: {:.2} % of the touched bytes", 100.0 * share);
        assert!(share < 0.5, "{kind}: {share}");
    }
}
