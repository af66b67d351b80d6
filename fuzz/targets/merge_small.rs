//! A base of at most 8 × 8 and an adapter for it, both made of the input, merged, against W + s · B · A in f64.
//!
//! Wherever the input made them so that they do not fit, there has to be an error.

use half::{bf16, f16};
use lora_tool::error::Kind;
use lora_tool::kernels::OpenBlas;
use lora_tool::layout;
use lora_tool::model::BaseModel;
use lora_tool::ops::merge::{self, Applied};
use lora_tool::stream::Unwatched;
use lora_tool::tensor::Dtype;

use super::support::{Bits, Place, file_of, writing};

const TYPES: [Dtype; 4] = [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64];
const NAME: &str = "model.layers.0.self_attn.q_proj";

/// A matrix as it is stored, and what its elements are.
struct Matrix {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

fn matrix(bits: &mut Bits, dtype: Dtype, count: usize) -> Matrix {
    let mut out = Matrix { bytes: Vec::new(), values: Vec::new() };
    for _ in 0..count {
        // 16 bits are a number of any size; nearly all are small, as weights are.
        let (kind, raw) = (bits.byte(), bits.two());
        let value = if kind < 253 { f32::from(raw as i16) / 4096.0 } else { bf16::from_bits(raw).to_f32() };
        let (bytes, value) = match dtype {
            Dtype::F64 => (f64::from(value).to_le_bytes().to_vec(), f64::from(value)),
            Dtype::F32 => (value.to_le_bytes().to_vec(), f64::from(value)),
            Dtype::BF16 => (bf16::from_f32(value).to_le_bytes().to_vec(), bf16::from_f32(value).to_f64()),
            _ => (f16::from_f32(value).to_le_bytes().to_vec(), f16::from_f32(value).to_f64()),
        };
        out.bytes.extend(bytes);
        out.values.push(value);
    }
    out
}

pub fn one(data: &[u8]) {
    let mut bits = Bits::new(data);
    let (rows, cols, rank) = (1 + bits.below(8), 1 + bits.below(8), 1 + bits.below(8));
    let (base_type, factor_type) = (TYPES[bits.below(4)], TYPES[bits.below(3)]);
    let misfit = bits.byte();
    let alpha = f64::from(bits.two() as i16) / 256.0;
    let strength = [1.0, -0.5, 0.25, 2.0][bits.below(4)];
    let root = bits.below(2) == 1;
    let weight = matrix(&mut bits, base_type, rows * cols);
    let a = matrix(&mut bits, factor_type, rank * cols);
    let b = matrix(&mut bits, factor_type, rows * rank);

    let place = Place::new();
    let weight_name = format!("{NAME}.weight");
    let base = [(weight_name.as_str(), word(base_type), vec![rows, cols], weight.bytes)];
    let base_path = place.put("base.safetensors", &file_of(&base));
    let (a_name, b_name) =
        (format!("base_model.model.{NAME}.lora_A.weight"), format!("base_model.model.{NAME}.lora_B.weight"));
    // One of the factors lies the other way round where that makes another shape.
    let (mut a_shape, mut b_shape) = (vec![rank, cols], vec![rows, rank]);
    match misfit {
        1 => a_shape.reverse(),
        2 => b_shape.reverse(),
        _ => {}
    }
    let fits = (misfit != 1 || rank == cols) && (misfit != 2 || rank == rows) && misfit != 3;
    let says = if misfit == 3 { rank + 1 } else { rank };
    let factors = [
        (a_name.as_str(), word(factor_type), a_shape, a.bytes),
        (b_name.as_str(), word(factor_type), b_shape, b.bytes),
    ];
    place.put("adapter/adapter_model.safetensors", &file_of(&factors));
    let config = format!(
        r#"{{"peft_type": "LORA", "r": {says}, "lora_alpha": {alpha}, "use_rslora": {root}, "target_modules": ["q_proj"]}}"#
    );
    place.put("adapter/adapter_config.json", config.as_bytes());

    let base = BaseModel::open(&base_path).expect("a base in order");
    let opened = layout::open(&place.join("adapter"), None);
    let opened = match opened {
        Ok(opened) => opened,
        Err(e) => return assert!(!fits, "{e}"),
    };
    let is_finite = |m: &[f64]| m.iter().all(|v| v.is_finite());
    if !is_finite(&a.values) || !is_finite(&b.values) {
        let fault = opened.source.require_finite().expect_err("NaN or infinity in a factor");
        return assert_eq!(fault.kind(), Kind::Nonfinite);
    }
    let applied = [Applied { label: String::new(), strength, adapter: &opened.adapter, identity: None }];
    let out = place.join("merged.safetensors");
    let merged = merge::merge(&base, &applied, &merge::Options::default())
        .and_then(|merge| merge.output.write(&out, writing(), &OpenBlas::new(), &Unwatched));

    let scale = strength * alpha / if root { (rank as f64).sqrt() } else { rank as f64 };
    let wanted = Wanted::new(&weight.values, &a.values, &b.values, (rows, cols, rank), scale, base_type);
    match merged {
        Err(e) => assert!(!fits || scale == 0.0 || wanted.may_overflow, "{e}"),
        Ok(_) => {
            assert!(fits, "an adapter that does not fit was merged");
            let merged = BaseModel::open(&out).expect("a model");
            let (_, tensor) = merged.tensor(&weight_name).expect("the weight");
            assert_eq!((tensor.dtype, tensor.shape.dims()), (base_type, &[rows, cols][..]));
            wanted.check(&read(base_type, tensor.bytes.as_slice()));
        }
    }
}

fn word(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "F64",
        Dtype::F32 => "F32",
        Dtype::BF16 => "BF16",
        _ => "F16",
    }
}

fn read(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        _ => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
    }
}

/// What each element should be, and how far off it may be.
struct Wanted {
    values: Vec<f64>,
    tolerances: Vec<f64>,
    /// Some sum comes near the end of f32, or of the type that is written.
    may_overflow: bool,
}

impl Wanted {
    fn new(
        w: &[f64],
        a: &[f64],
        b: &[f64],
        (rows, cols, rank): (usize, usize, usize),
        scale: f64,
        dtype: Dtype,
    ) -> Wanted {
        // Half a unit in the last place for a number of size one, the smallest number, and the largest.
        let (unit, least, most) = match dtype {
            Dtype::BF16 => (f64::powi(2.0, -8), f64::from(f32::MIN_POSITIVE), bf16::MAX.to_f64()),
            Dtype::F16 => (f64::powi(2.0, -11), f64::powi(2.0, -24), f16::MAX.to_f64()),
            _ => (f64::powi(2.0, -24), f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
        };
        let mut out = Wanted { values: Vec::new(), tolerances: Vec::new(), may_overflow: false };
        for row in 0..rows {
            for col in 0..cols {
                let terms = (0..rank).map(|k| b[row * rank + k] * a[k * cols + col]);
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size): (f64, f64), t| (sum + t, size + t.abs()));
                let before = w[row * cols + col];
                let value = before + scale * sum;
                // Every step of the sum rounds once in f32; a product may fall below the smallest normal number.
                let steps = (rank + 4) as f64 * f64::powi(2.0, -24);
                let below = (rank as f64) * f64::from(f32::MIN_POSITIVE) * (1.0 + scale.abs());
                let all = before.abs() + scale.abs() * size;
                out.tolerances.push(2.0 * (steps * all + unit * value.abs()) + below + least);
                out.may_overflow |=
                    !all.is_finite() || all.max(size).max(scale.abs()) > most.min(f64::from(f32::MAX)) * 0.99;
                out.values.push(value);
            }
        }
        out
    }

    fn check(&self, found: &[f64]) {
        if self.values.iter().any(|v| !v.is_finite()) {
            return; // the base had NaN or infinity before
        }
        assert_eq!(found.len(), self.values.len());
        for ((found, wanted), tolerance) in found.iter().zip(&self.values).zip(&self.tolerances) {
            let is_near = (found - wanted).abs() <= *tolerance;
            assert!(is_near, "{found} is {} off {wanted}, at most {tolerance}", (found - wanted).abs());
        }
    }
}
