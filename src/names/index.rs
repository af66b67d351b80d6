//! The names of a checkpoint on disk, and the way from a name in memory to them.

use indexmap::IndexMap;

use super::place::{Found, How, Piece};

/// The names of a checkpoint with their shapes.
#[derive(Clone, Debug, Default)]
pub struct Index {
    shapes: IndexMap<String, Vec<usize>>,
}

impl Index {
    /// An index of these names. `model_types` are the words of the config that say what model it is: `model_type` and
    /// `architectures`, also those of inner configs.
    pub fn new(names: impl IntoIterator<Item = (String, Vec<usize>)>, _model_types: &[String]) -> Index {
        Index { shapes: names.into_iter().collect() }
    }

    /// Where the tensor that has this name in memory lies on disk.
    pub fn find(&self, memory_name: &str) -> Option<Found> {
        let shape = self.shapes.get(memory_name)?;
        Some(Found { pieces: vec![Piece::whole(memory_name)], how: How::Direct, memory_shape: shape.clone() })
    }

    /// The name on disk that resembles this one most, as a hint.
    pub fn nearest(&self, memory_name: &str) -> Option<&str> {
        self.shapes.keys().map(String::as_str).find(|k| k.ends_with(memory_name))
    }
}
