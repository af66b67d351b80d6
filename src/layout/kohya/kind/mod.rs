//! The kinds of change a module may have, one file each: which suffixes are its own, reading and writing.

mod full;
mod glora;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod oft;
mod oft_inputs;
mod residual;
mod tlora;

use super::keys::Parts;
use crate::adapter::{Delta, Note, Scale};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor};

pub use full::{VECTOR, WEIGHT, bias, bias_word};
pub use residual::{read as read_residual, write as write_residual};

/// One kind.
pub struct Kind {
    /// Suffixes of which a module of the kind has at least one.
    pub marks: &'static [&'static str],
    /// Takes the change out of the parts.
    pub read: fn(&mut Parts) -> Result<Delta>,
    /// The tensors of a change; none where it is of another kind.
    pub write: fn(&Delta) -> Result<Option<Written>>,
}

/// All kinds. A module has one of them.
pub const KINDS: &[Kind] =
    &[lora::KIND, loha::KIND, ia3::KIND, lokr::KIND, full::KIND, oft::KIND, oft_inputs::KIND, glora::KIND, tlora::KIND];

/// The tensors of one change.
#[derive(Debug, Default)]
pub struct Written {
    /// By their suffixes.
    pub tensors: Vec<(&'static str, Tensor)>,
    /// The scale, the rank it is for, and the type of the factors.
    pub scale: Option<(Scale, usize, Dtype)>,
    /// What had to be folded, without the key.
    pub notes: Vec<Note>,
}

impl Written {
    /// Tensors and nothing else.
    fn of<const N: usize>(tensors: [(&'static str, &Tensor); N]) -> Written {
        let tensors = tensors.into_iter().map(|(suffix, tensor)| (suffix, tensor.clone())).collect();
        Written { tensors, ..Written::default() }
    }

    fn scaled(mut self, scale: Scale, rank: usize) -> Written {
        let dtype = self.tensors.first().map_or(Dtype::F32, |(_, tensor)| tensor.dtype);
        self.scale = Some((scale, rank, dtype));
        self
    }
}

/// Takes a tensor that the module has to have.
fn need(parts: &mut Parts, suffix: &'static str) -> Result<Tensor> {
    parts.remove(suffix).ok_or_else(|| {
        let there: Vec<_> = parts.keys().copied().collect();
        Error::missing(format!("no {suffix} beside {}", there.join(", ")))
    })
}
