//! Element types. The set is the one safetensors knows; the words are its own (`BF16`, `F8_E4M3` …).

use crate::error::{Error, Result};

pub use safetensors::Dtype;

/// Bytes that `elements` values of `dtype` take, or an error where the product overflows or ends inside a byte
/// (the 4- and 6-bit types).
pub fn byte_len(dtype: Dtype, elements: usize) -> Result<usize> {
    let bits = elements
        .checked_mul(dtype.bitsize())
        .ok_or_else(|| Error::malformed(format!("{elements} elements of {dtype} overflow")))?;
    if bits % 8 != 0 {
        return Err(Error::malformed(format!("{elements} elements of {dtype} do not fill whole bytes")));
    }
    Ok(bits / 8)
}

/// True for the types that arithmetic is done on: f64, f32, f16, bf16 and the two common 8-bit floats.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// True for the types a base weight may be merged in without being dequantised first.
pub fn is_plain_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// The names that `--dtype` takes, beside `keep`.
pub const OUTPUT_NAMES: [(&str, Dtype); 4] =
    [("f32", Dtype::F32), ("f16", Dtype::F16), ("bf16", Dtype::BF16), ("f64", Dtype::F64)];

/// How PyTorch spells the type in a `config.json`.
pub fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F64 => Some("float64"),
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}
