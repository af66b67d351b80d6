//! Tensors that are stored in blocks: where they lie, and the values of the one type whose values are plain numbers.
//!
//! Q8_0: 32 elements a block, a scale in F16 and 32 signed bytes (`block_q8_0` in ggml-org/llama.cpp,
//! `ggml/src/ggml-common.h`). The product of the two is exact in F32.

use half::f16;

use crate::error::Result;
use crate::tensor::{Bytes, Dtype, Tensor};

/// Bytes of a scale of Q8_0.
const SCALE: usize = 2;
/// Bytes of a block of Q8_0.
const Q8_0: usize = SCALE + 32;

/// A tensor stored in blocks.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Its name.
    pub name: String,
    /// ggml's name of its type.
    pub kind: &'static str,
    /// Extents, outermost first.
    pub dims: Vec<usize>,
    /// All of its blocks.
    pub bytes: Bytes,
}

impl Blocks {
    /// Its values in F32, exactly; none where its type is not read.
    pub fn values(&self) -> Result<Option<Tensor>> {
        if self.kind != "Q8_0" {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(self.bytes.len() / Q8_0 * (Q8_0 - SCALE));
        for block in self.bytes.as_slice().chunks_exact(Q8_0) {
            let (scale, numbers) = block.split_at(SCALE);
            let scale = scale.try_into().map_or(f16::NAN, f16::from_le_bytes).to_f32();
            out.extend(numbers.iter().map(|byte| scale * f32::from(byte.cast_signed())));
        }
        Tensor::from_f32(Dtype::F32, self.dims.clone(), &out).map(Some)
    }
}
