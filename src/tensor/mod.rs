//! What a tensor is: an element type, a shape and bytes that may lie in a mapped file. No files are opened here and
//! nothing is known of adapters.

pub mod bytes;
pub mod cast;
pub mod dtype;
pub mod fatal;
pub mod hash;
pub mod heap;
pub mod numpy_random;
pub mod ordinal;
pub mod parallel;
pub mod random;
pub mod rearrange;
pub mod scales;
pub mod shape;
pub mod size;

use indexmap::IndexMap;
use ndarray::Array2;

pub use bytes::{Bytes, MappedFile};
pub use dtype::Dtype;
pub use hash::Hash;
pub use numpy_random::NumpyRng;
pub use random::TorchRng;
pub use scales::Scales;
pub use shape::{Rows, Shape};

use crate::error::{Error, Result};

/// A named-nowhere block of numbers; cloning copies a handle.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Extents, outermost first, row-major.
    pub shape: Shape,
    /// Little-endian elements without gaps.
    pub bytes: Bytes,
}

/// Tensors under their keys, in the order of the file they came from.
pub type StateDict = IndexMap<String, Tensor>;

/// The same element type, shape and bytes, wherever they lie.
impl PartialEq for Tensor {
    fn eq(&self, other: &Tensor) -> bool {
        self.dtype == other.dtype && self.shape == other.shape && self.bytes.as_slice() == other.bytes.as_slice()
    }
}

impl Tensor {
    /// A tensor over `bytes`, whose number has to fit shape and dtype.
    pub fn new(dtype: Dtype, shape: Shape, bytes: Bytes) -> Result<Tensor> {
        let expected = dtype::byte_len(dtype, shape.elements()?)?;
        if bytes.len() != expected {
            return Err(Error::malformed(format!("{dtype} {shape} takes {expected} bytes, found {}", bytes.len())));
        }
        Ok(Tensor { dtype, shape, bytes })
    }

    /// A tensor of `dtype` rounded from f32 values in row-major order.
    pub fn from_f32(dtype: Dtype, shape: impl Into<Vec<usize>>, values: &[f32]) -> Result<Tensor> {
        let mut bytes = vec![0; dtype::byte_len(dtype, values.len())?];
        cast::narrow(dtype, values, &mut bytes)?;
        Tensor::new(dtype, Shape::new(shape), bytes.into())
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.dims().iter().product() // checked when the tensor was made
    }

    /// All elements as f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0f32; self.elements()];
        cast::widen(self.dtype, self.bytes.as_slice(), &mut out)?;
        Ok(out)
    }

    /// The tensor as the f32 matrix of [`Shape::matrix`].
    pub fn to_matrix(&self) -> Result<Array2<f32>> {
        let values = self.to_f32()?;
        Array2::from_shape_vec(self.shape.matrix(), values)
            .map_err(|e| Error::malformed(format!("shape {}: {e}", self.shape)))
    }

    /// The finite number of a tensor of one element, whatever its type.
    pub fn to_number(&self) -> Result<f64> {
        if self.elements() != 1 {
            return Err(Error::mismatch(format!("shape {}, expected a single number", self.shape)));
        }
        let found = match self.dtype {
            Dtype::BOOL => self.bytes.as_slice().first().map(|byte| f64::from(u8::from(*byte != 0))),
            found if dtype::is_float(found) => cast::widen_f64(found, self.bytes.as_slice())?.first().copied(),
            _ => self.to_integers()?.first().map(|whole| *whole as f64),
        };
        found.filter(|value| value.is_finite()).ok_or_else(|| Error::unsupported("a number that is not finite"))
    }

    /// All elements as i64; an error where they are not integers.
    pub fn to_integers(&self) -> Result<Vec<i64>> {
        cast::integers(self.dtype, self.bytes.as_slice())
    }

    /// How many values are NaN or infinite, and the number of the first; none where all are finite or no floats.
    pub fn nonfinite(&self) -> Result<Option<(usize, usize)>> {
        const STEP: usize = 1 << 14;
        if !dtype::is_float(self.dtype) {
            return Ok(None);
        }
        let size = self.dtype.bitsize() / 8;
        let (mut count, mut first) = (0, None);
        let mut values = vec![0f32; STEP.min(self.elements())];
        for (block, chunk) in self.bytes.as_slice().chunks(STEP * size).enumerate() {
            if cast::is_finite(self.dtype, chunk) {
                continue;
            }
            let values = &mut values[..chunk.len() / size];
            cast::widen(self.dtype, chunk, values)?;
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            if bad > 0 && first.is_none() {
                first = values.iter().position(|v| !v.is_finite()).map(|i| block * STEP + i);
            }
            count += bad;
        }
        Ok(first.map(|first| (count, first)))
    }

    /// The elements in another type, made when they are wanted: rounded to nearest even, once.
    pub fn converted(&self, to: Dtype) -> Result<Tensor> {
        let from = self.dtype;
        let len = dtype::byte_len(to, self.elements())?;
        let make = move |old: &[u8]| cast::converted(from, to, old).unwrap_or_default();
        Tensor::new(to, self.shape.clone(), Bytes::made(&self.bytes, len, make))
    }

    /// The elements times a power of two, made when they are wanted, where it moves the exponents and nothing else; none
    /// where other scales or numbers that are not normal need a closer look.
    pub fn shifted(&self, scale: f64) -> Option<Tensor> {
        let (power, dtype) = (cast::power_of_two(scale)?, self.dtype);
        self.bytes.fetch(0..self.bytes.len());
        let fits = cast::is_shift(dtype, self.bytes.as_slice(), power);
        self.bytes.release(0..self.bytes.len());
        let make = move |old: &[u8]| cast::shifted(dtype, old, power);
        fits.then(|| Tensor { bytes: Bytes::made(&self.bytes, self.bytes.len(), make), ..self.clone() })
    }

    /// The same bytes under another shape of as many elements.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
        Tensor::new(self.dtype, Shape::new(shape), self.bytes.clone())
    }
}
