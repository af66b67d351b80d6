//! The answer to a search: which tensors of a checkpoint make up a tensor of the model in memory, part by part.

use std::ops::Range;

/// Which part of a tensor. All of it by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Region {
    /// One entry of the leading axis, which counts experts. `None`: the tensor as it is.
    pub expert: Option<usize>,
    /// A range along the first axis of what is left once the expert is taken. `None`: all of it.
    pub rows: Option<Range<usize>>,
    /// A range along the axis after that. `None`: all of it. Only experts that lie transposed, (E, in, out), need it:
    /// there the gate is a range of columns.
    pub cols: Option<Range<usize>>,
}

impl Region {
    /// The whole tensor.
    pub const ALL: Region = Region { expert: None, rows: None, cols: None };

    /// A range along the first axis.
    pub fn rows(rows: Range<usize>) -> Region {
        Region { rows: Some(rows), ..Region::ALL }
    }

    /// The matrix of one expert.
    pub fn expert(expert: usize) -> Region {
        Region { expert: Some(expert), ..Region::ALL }
    }

    /// Whether it is the whole tensor.
    pub fn is_all(&self) -> bool {
        *self == Region::ALL
    }
}

/// One part of a tensor in memory and where it lies on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The name of the tensor on disk.
    pub key: String,
    /// Which part of the tensor in memory it is.
    pub memory: Region,
    /// Which part of the tensor on disk.
    pub disk: Region,
    /// Whether the last two axes are swapped between the two. Each region is counted in its own tensor.
    pub transposed: bool,
}

impl Piece {
    /// The whole tensor `key`, as it lies.
    pub(super) fn whole(key: impl Into<String>) -> Piece {
        Piece { key: key.into(), memory: Region::ALL, disk: Region::ALL, transposed: false }
    }
}

/// How a name was found. The later ones deserve a note to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The checkpoint has a tensor of this very name.
    Direct,
    /// By the rename table of this model type or class.
    Renamed(&'static str),
    /// By a spelling that means the same in every model: `model.language_model.X` for `language_model.model.X`.
    Equivalent,
    /// By what is left when wrappers such as `base_model.model.` are taken off.
    Suffix,
}

/// Where a tensor of the model in memory lies on disk. The pieces cover it once and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its parts.
    pub pieces: Vec<Piece>,
    /// By which rule it was found.
    pub how: How,
    /// The shape it has in memory.
    pub memory_shape: Vec<usize>,
}

impl Found {
    /// A tensor that is one whole tensor on disk, of the same name.
    pub fn whole(key: &str, shape: &[usize]) -> Found {
        Found { pieces: vec![Piece::whole(key)], how: How::Direct, memory_shape: shape.to_vec() }
    }

    /// The name on disk, when the tensor is one whole tensor there, as it lies.
    pub fn plain(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece { key, memory, disk, transposed: false }] if memory.is_all() && disk.is_all() => Some(key),
            _ => None,
        }
    }
}
