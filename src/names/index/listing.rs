//! From the tensors on disk to all tensors that the model has in memory.

use std::collections::HashSet;

use indexmap::IndexMap;

use super::super::outline;
use super::super::place::Found;
use super::Index;

/// What a checkpoint holds, seen from memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Every tensor in memory that the checkpoint makes up, by its name there, in the order of the keys on disk.
    pub tensors: Vec<(String, Found)>,
    /// Keys on disk of which not every part has a place in [`Listing::tensors`]: the conversion that takes them is more
    /// than whole tensors and ranges, or some of the tensors it needs are not there. They are in memory, as something
    /// that is not known here. A part that has a place is listed all the same.
    pub unplaced: Vec<String>,
}

impl Index {
    /// Every tensor in memory that the tensors on disk make up. [`Index::find`] answers the same for each name; each
    /// part of a key that is not unplaced lies in one of them, once. What the model has and the checkpoint has not,
    /// such as the second use of a tied embedding, is not there.
    pub fn memory(&self) -> Listing {
        if !self.parts.is_empty() {
            return self.memory_of_parts();
        }
        let mut tensors = IndexMap::new();
        let mut tried = HashSet::new();
        // How many of its names in memory hold a part of each key.
        let mut placed = vec![0usize; self.shapes.len()];
        for key in self.shapes.keys() {
            for name in self.names_in_memory(key) {
                if !tried.insert(name.clone()) {
                    continue;
                }
                let Some(found) = self.find(&name) else { continue };
                for place in self.taken(&found) {
                    if let Some(count) = placed.get_mut(place) {
                        *count += 1;
                    }
                }
                tensors.insert(name, found);
            }
        }
        let complete = |key: &str, placed: usize| placed == self.names_in_memory(key).len();
        let unplaced = self.shapes.keys().zip(placed).filter(|(key, placed)| !complete(key, *placed));
        Listing { unplaced: unplaced.map(|(key, _)| key.clone()).collect(), tensors: tensors.into_iter().collect() }
    }

    /// What becomes of a key in memory, by the rules of the family: one name, or one for each part that is taken out.
    fn names_in_memory(&self, key: &str) -> Vec<String> {
        let made = || {
            let (text, numbers) = outline::mark(key)?;
            let kind = self.kinds.get(*self.kind_of.get(&text)?)?;
            let numbers: Vec<_> = numbers.into_iter().map(Some).collect();
            kind.memory.iter().map(|text| outline::fill(text, &numbers)).collect::<Option<Vec<_>>>()
        };
        made().unwrap_or_else(|| vec![key.to_owned()])
    }

    /// The keys of which something is in there, by their place on disk.
    fn taken(&self, found: &Found) -> HashSet<usize> {
        found.pieces.iter().filter_map(|piece| self.shapes.get_index_of(&piece.key)).collect()
    }
}
