//! Modules of an image model by the names of the other naming: a part of a projection that this checkpoint has whole is a
//! range of its rows, and a whole that it has in parts is several tensors. So every kind of change reaches them, also one
//! that cannot be taken apart or put together.

use super::super::diffusion::{Extent, Naming, Order, Part, Rows, Target};
use super::super::place::{Found, How, Piece, Region};
use super::Index;

/// Whose names a checkpoint's denoiser has.
#[derive(Clone, Debug)]
pub struct Spelt {
    /// What stands before its modules.
    pub prefix: String,
    /// Its names.
    pub part: &'static Part,
    /// Which of them it has.
    pub naming: Naming,
    /// Its sizes, as far as they are known.
    pub extents: &'static [Extent],
}

impl Index {
    /// With names for the denoiser beside its own, which is a component of a pipeline or in the model itself.
    #[must_use]
    pub fn spelt(mut self, spelt: Spelt, component: Option<&str>) -> Index {
        for (_, index) in self.parts.iter_mut().filter(|(name, _)| Some(name.as_str()) == component) {
            index.spelt = Some(spelt.clone());
        }
        Index { spelt: self.parts.is_empty().then_some(spelt), ..self }
    }

    /// A tensor by the name it has in another naming, where its rows have the same order there.
    pub(super) fn find_by_other_name(&self, name: &str) -> Option<Found> {
        let spelt = self.spelt.as_ref()?;
        let (inner, parameter) = name.strip_prefix(&spelt.prefix)?.rsplit_once('.')?;
        let others = spelt.part.namings().iter().filter(|naming| **naming != spelt.naming);
        others.into_iter().find_map(|naming| {
            let targets = spelt.part.translate(*naming, spelt.naming, inner, spelt.extents)?;
            let own = |target: &Target| self.own(&format!("{}{}.{parameter}", spelt.prefix, target.path));
            if targets.iter().any(|target| target.order != Order::Same) {
                return None;
            }
            match targets.as_slice() {
                [one] => part_of(own(one)?, one.put),
                several => whole_of(&several.iter().map(own).collect::<Option<Vec<_>>>()?),
            }
        })
    }

    /// A tensor of this name that lies as it is on disk.
    fn own(&self, name: &str) -> Option<(String, Vec<usize>)> {
        let found = self.find_named(name)?;
        Some((found.plain()?.to_string(), found.memory_shape))
    }
}

/// Rows of a tensor.
fn part_of((key, shape): (String, Vec<usize>), rows: Rows) -> Option<Found> {
    let (first, rest) = shape.split_first()?;
    let range = rows.range(*first as u64)?;
    let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
    let memory_shape = std::iter::once(range.len()).chain(rest.iter().copied()).collect();
    let disk = if range.len() == *first { Region::ALL } else { Region::rows(range) };
    let piece = Piece { key, memory: Region::ALL, disk, transposed: false };
    Some(Found { pieces: vec![piece], how: How::Equivalent, memory_shape })
}

/// Tensors one below the other.
fn whole_of(parts: &[(String, Vec<usize>)]) -> Option<Found> {
    let (_, rest) = parts.first()?.1.split_first()?;
    let (mut pieces, mut end) = (Vec::with_capacity(parts.len()), 0usize);
    for (key, shape) in parts {
        let (rows, own) = shape.split_first()?;
        let start = end;
        end = start.checked_add(*rows)?;
        if own != rest {
            return None;
        }
        let memory = Region::rows(start..end);
        pieces.push(Piece { key: key.clone(), memory, disk: Region::ALL, transposed: false });
    }
    let memory_shape = std::iter::once(end).chain(rest.iter().copied()).collect();
    Some(Found { pieces, how: How::Equivalent, memory_shape })
}
