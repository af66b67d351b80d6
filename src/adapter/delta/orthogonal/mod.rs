//! OFT, BOFT and HRA: `W · Rᵀ`, the inputs of the weight turned by an orthogonal R. One file each.
//!
//! R acts on the columns, so every row is turned alone. A convolution's columns are its flattened inputs and kernel. OFT
//! and BOFT of LyCORIS turn the outputs, `R · W`.

pub mod blocks;
pub mod boft;
pub mod hra;
pub mod oft;
pub mod outputs;

pub use boft::Boft;
pub use hra::Hra;
pub use oft::Oft;
pub use outputs::Outputs;

use std::sync::OnceLock;

use super::{Action, Site};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A rotation of the inputs, or of the outputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Orthogonal {
    /// Butterfly products of block-diagonal rotations, and a factor for each output.
    Boft(Boft),
    /// Householder reflections.
    Hra(Hra),
    /// One block-diagonal rotation.
    Oft(Oft),
    /// Rotations of the outputs: Diag-OFT and BOFT of LyCORIS.
    Outputs(Outputs),
}

impl Orthogonal {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        match self {
            Orthogonal::Boft(_) => "BOFT",
            Orthogonal::Hra(_) => "HRA",
            Orthogonal::Oft(_) => "OFT",
            Orthogonal::Outputs(d) => d.kind(),
        }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Orthogonal::Boft(d) => vec![("r", &d.r), ("s", &d.s)],
            Orthogonal::Hra(d) => vec![("u", &d.u)],
            Orthogonal::Oft(d) => vec![("r", &d.r)],
            Orthogonal::Outputs(d) => d.tensors(),
        }
    }

    /// The rotation has to have as many columns as the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        match self {
            Orthogonal::Boft(d) => d.prepare(site),
            Orthogonal::Hra(d) => d.prepare(site),
            Orthogonal::Oft(d) => d.prepare(site),
            Orthogonal::Outputs(d) => d.prepare(site),
        }
    }
}

/// The content of a cell that several threads may fill, with the same.
fn found_once<T>(cell: &OnceLock<T>, find: impl Fn() -> Result<T>) -> Result<&T> {
    if let Some(found) = cell.get() {
        return Ok(found);
    }
    let found = find()?;
    Ok(cell.get_or_init(|| found))
}

/// An error for a rotation that is not as wide as the weight.
fn misfit(stored: &Tensor, turned: Option<usize>, site: &Site) -> Error {
    let (_, cols) = site.matrix();
    let turned = turned.map_or("more".to_string(), |n| n.to_string());
    Error::mismatch(format!(
        "rotation {} turns {turned} inputs, the base weight {} has {cols}",
        stored.shape, site.shape
    ))
    .hint("is this the base model the adapter was trained on?")
}

#[cfg(test)]
mod tests {
    use super::oft::Transform;
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn tensor(dims: &[usize]) -> Tensor {
        Tensor::from_f32(Dtype::F32, dims, &vec![0.0; dims.iter().product()]).unwrap()
    }

    fn oft(dims: &[usize], shared: bool) -> Orthogonal {
        let (transform, limit) = (Transform::Cayley, None);
        Orthogonal::Oft(Oft { r: tensor(dims), shared, transform, limit, inverse: false })
    }

    fn boft(r: &[usize], s: usize) -> Orthogonal {
        Orthogonal::Boft(Boft { r: tensor(r), s: tensor(&[s]) })
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        // For a weight of [4, 6].
        let shape = Shape::new([4, 6]);
        let site = Site { shape: &shape, companion: None };
        for delta in [
            oft(&[2, 1], false),    // two blocks of 2
            oft(&[2, 2], false),    // no block has two entries above its diagonal
            oft(&[1, 3], false),    // one block of 3 that is not shared
            oft(&[1, 6], true),     // blocks of 4
            boft(&[1, 2, 3], 4),    // three dimensions
            boft(&[1, 2, 3, 2], 4), // not square
            boft(&[1, 2, 2, 2], 4), // two blocks of 2
            boft(&[1, 3, 2, 2], 6), // factors for the inputs
            boft(&[2, 2, 3, 3], 4), // a butterfly of odd blocks
            boft(&[3, 3, 2, 2], 4), // a butterfly of three blocks
            Orthogonal::Hra(Hra { u: tensor(&[4, 2]), orthogonalised: false }),
            Orthogonal::Hra(Hra { u: tensor(&[6, 2]), orthogonalised: false }), // directions of no length
        ] {
            assert!(delta.prepare(&site).is_err(), "{delta:?}");
        }
    }

    #[test]
    fn zero_blocks_turn_nothing() {
        let shape = Shape::new([4, 6]);
        for delta in [oft(&[2, 3], false), oft(&[1, 3], true), oft(&[3, 1], false)] {
            let action = delta.prepare(&Site { shape: &shape, companion: None }).unwrap();
            let mut w = ndarray::Array2::from_shape_fn((4, 6), |(i, j)| (6 * i + j) as f32);
            let before = w.clone();
            let Action::Act(act) = action else { panic!("an action") };
            let in_memory = crate::adapter::delta::InMemory(before.clone());
            act.act(&crate::kernels::Reference, 0..4, w.view_mut(), &in_memory).unwrap();
            assert_eq!(w, before);
        }
    }
}
