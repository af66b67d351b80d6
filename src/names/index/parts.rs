//! The names of a pipeline: an index for each of its components, whose names stand behind the component's own.
//!
//! The rules of a family hold inside its component. Two components of one kind, such as two text encoders, have the same
//! names inside, so a name that says no component is that of the only one which has it.

use super::super::place::{Found, How, Piece};
use super::super::similar::Likeness;
use super::{Index, Listing};

impl Index {
    /// The index of a pipeline, by the names of its components.
    pub fn of_parts(parts: Vec<(String, Index)>) -> Index {
        Index { parts, ..Index::default() }
    }

    /// The component that a name is in, and its name there.
    fn part_of<'a>(&'a self, name: &'a str) -> Option<(&'a str, &'a Index, &'a str)> {
        let (word, inner) = name.split_once('.')?;
        self.parts.iter().find(|(part, _)| part == word).map(|(part, index)| (part.as_str(), index, inner))
    }

    /// [`find`](Index::find), in the components.
    pub(super) fn find_in_parts(&self, name: &str) -> Option<Found> {
        if let Some((part, index, inner)) = self.part_of(name) {
            // The level of CLIP that transformers dropped in version 5.
            let found = index.find(inner).or_else(|| index.find(&format!("text_model.{inner}")));
            return found.map(|found| within(part, found));
        }
        let mut all = self.parts.iter().filter_map(|(part, index)| Some(within(part, index.find(name)?)));
        let found = all.next()?;
        all.next().is_none().then_some(Found { how: How::Suffix, ..found })
    }

    /// [`nearest`](Index::nearest), in the components, and how near it is.
    pub(super) fn nearest_in_parts(&self, name: &str) -> Option<(Likeness, String)> {
        let in_part = |part: &str, index: &Index, name: &str| {
            let (likeness, key) = index.nearest_scored(name)?;
            Some((likeness, format!("{part}.{key}")))
        };
        if let Some((part, index, inner)) = self.part_of(name) {
            return in_part(part, index, inner);
        }
        let all = self.parts.iter().filter_map(|(part, index)| in_part(part, index, name));
        all.reduce(|best, next| if next.0 > best.0 { next } else { best })
    }

    /// [`memory`](Index::memory) of all components, in their order.
    pub(super) fn memory_of_parts(&self) -> Listing {
        let mut out = Listing::default();
        for (part, index) in &self.parts {
            let Listing { tensors, unplaced } = index.memory();
            let named = tensors.into_iter().map(|(name, found)| (format!("{part}.{name}"), within(part, found)));
            out.tensors.extend(named);
            out.unplaced.extend(unplaced.into_iter().map(|key| format!("{part}.{key}")));
        }
        out
    }
}

/// What was found in a component, by the keys of the pipeline.
fn within(part: &str, found: Found) -> Found {
    let piece = |piece: Piece| Piece { key: format!("{part}.{}", piece.key), ..piece };
    Found { pieces: found.pieces.into_iter().map(piece).collect(), ..found }
}
