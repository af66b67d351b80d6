//! Megatron's tensors as an adapter of transformers' modules: fused layers taken apart by their rows.

use std::collections::BTreeMap;

use super::archive::CONFIG;
use super::keys::{self, Block, Linear, Part, Place};
use super::names::{self, Family, Parts};
use super::ranks::{self, Tensors};
use super::settings::{ABOUT, Settings};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, Target, fused};
use crate::error::{Context, Error, Result};
use crate::layout::Source;
use crate::layout::source::BASE_FINGERPRINT;
use crate::limits;
use crate::names::ModulePath;
use crate::tensor::{Tensor, rearrange};

/// The adapter in `source`.
pub fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut notes = Vec::new();
    for value in &source.other_values {
        notes.push(Note::info(value, "not a tensor; left out"));
    }
    let first = source.tensors.keys().any(|key| keys::is_first(key));
    let settings = Settings::of(source, first, &mut notes)?;
    let family = names::family(settings.base.family.as_deref())?;
    if settings.base.family.is_none() {
        let what = "the family of the base is not known: modules are called as in Llama";
        notes.push(Note::lossy("", what));
        if settings.gated == Some(false) {
            let what = "a model without a gate, whose modules are called otherwise in every family";
            return Err(Error::missing(what).in_file(&source.tensor_file).hint("--base tells the family"));
        }
    }
    let places = ranks::join(&source.tensors, &settings, family.is_gated(), &mut notes).in_file(&source.tensor_file)?;
    let mut reader = Reader { settings, family, adapter: Adapter::default(), notes, canonical: BTreeMap::new() };
    for (place, tensors) in places {
        let key = tensors.key.clone();
        reader.place(place, tensors).at_key(&key).in_file(&source.tensor_file)?;
    }
    reader.together().in_file(&source.tensor_file)?;
    let Reader { settings, mut adapter, notes, .. } = reader;
    adapter.declared = "lora".to_string();
    adapter.base = settings.base;
    for (key, text) in &source.metadata {
        if let Some(name) = key.strip_prefix(ABOUT) {
            adapter.about.insert(name.to_string(), text.clone());
        }
    }
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    let raw = source.settings.get(CONFIG).filter(|_| first).into_iter().flat_map(|(_, raw)| raw);
    adapter.carried = Carried {
        layout: "nemo".to_string(),
        fields: raw.map(|(name, value)| (name.clone(), value.to_string())).collect(),
        metadata: source.metadata.iter().filter(|(key, _)| !key.starts_with(ABOUT)).cloned().collect(),
        outline: adapter.outline(),
        ..Carried::default()
    };
    Ok((adapter, notes))
}

struct Reader {
    settings: Settings,
    family: Family,
    adapter: Adapter,
    notes: Vec<Note>,
    /// Parts with factors of their own of layers that are one module in the other model.
    canonical: BTreeMap<(usize, Block, Linear), BTreeMap<Part, Target>>,
}

impl Reader {
    fn place(&mut self, place: Place, tensors: Tensors) -> Result<()> {
        let (Some(a), Some(b)) = (tensors.a, tensors.b) else {
            return Err(Error::missing("has not both of linear_in and linear_out"));
        };
        if place.block == Block::Experts {
            return self.experts(place, &a, &b, tensors.magnitude.is_some());
        }
        self.module(place, a, b, tensors.magnitude)
    }

    /// One adapter for all experts of a layer, or one for each, or one side of it so.
    fn experts(&mut self, place: Place, a: &Tensor, b: &Tensor, dora: bool) -> Result<()> {
        if dora {
            return Err(Error::unsupported("magnitudes of experts"));
        }
        let stacked = |t: &Tensor| (t.shape.rank() == 3).then(|| t.shape.dims().first().copied().unwrap_or(0));
        let known = self.settings.base.experts;
        let count = match (stacked(a), stacked(b), known) {
            (Some(a), Some(b), _) if a != b => {
                return Err(Error::mismatch(format!("factors of {a} and of {b} experts")));
            }
            (Some(count), ..) | (None, Some(count), _) | (None, None, Some(count)) => count,
            (None, None, None) => {
                let what = "one adapter for all experts, and their number is not known";
                return Err(Error::missing(what).hint("--base tells it"));
            }
        };
        if known.is_some_and(|known| known != count) {
            let what = format!("factors of {count} experts, the model has {}", known.unwrap_or_default());
            return Err(Error::mismatch(what));
        }
        if count > limits::NEMO_EXPERTS {
            return Err(Error::limit(format!("{count} experts"), limits::NEMO_EXPERTS));
        }
        let of = |t: &Tensor, number| if t.shape.rank() == 3 { rearrange::slice(t, number) } else { Ok(t.clone()) };
        let mut shared = None;
        for number in 0..count {
            let place = Place { block: Block::Expert(number), ..place };
            let (module, parts) = self.family.parts(place.layer, place.block, place.linear)?;
            let pieces = match &shared {
                Some(pieces) => Vec::clone(pieces),
                None => self.pieces(place, parts, self.target(of(a, number)?, of(b, number)?, None)?)?,
            };
            if stacked(a).or(stacked(b)).is_none() && shared.is_none() {
                shared = Some(pieces.clone());
            }
            pieces.into_iter().try_for_each(|(name, target)| self.put(format!("{module}.{name}"), target))?;
        }
        Ok(())
    }

    fn module(&mut self, place: Place, a: Tensor, b: Tensor, magnitude: Option<Tensor>) -> Result<()> {
        let target = self.target(a, b, magnitude)?;
        let (module, parts) = self.family.parts(place.layer, place.block, place.linear)?;
        if let (Parts::Together(_), Some(part)) = (parts, place.part) {
            self.canonical.entry((place.layer, place.block, place.linear)).or_default().insert(part, target);
            return Ok(());
        }
        let pieces = self.pieces(place, parts, target)?;
        pieces.into_iter().try_for_each(|(name, target)| self.put(format!("{module}.{name}"), target))
    }

    /// What two factors do.
    fn target(&self, a: Tensor, b: Tensor, magnitude: Option<Tensor>) -> Result<Target> {
        let ((rank, _), (_, other)) = (rearrange::matrix(&a)?, rearrange::matrix(&b)?);
        if rank != other || rank == 0 {
            let what = format!("linear_in {} and linear_out {} have no rank in common", a.shape, b.shape);
            return Err(Error::mismatch(what).hint("the two halves may come from different adapters"));
        }
        if let Some(said) = self.settings.rank.filter(|said| *said != rank) {
            return Err(Error::mismatch(format!("factors of rank {rank}, the settings say {said}")));
        }
        let scale = Scale { alpha: self.settings.alpha, rule: ScaleRule::AlphaOverRank };
        let factors = LowRank { a, b, scale, experts: None, name: "LoRA" };
        Ok(Target { weight: vec![Delta::LowRank(factors)], magnitude, ..Target::default() })
    }

    /// The modules of the other model, by name, and what is done to each.
    fn pieces(&self, place: Place, parts: Parts, target: Target) -> Result<Vec<(&'static str, Target)>> {
        match (parts, place.part) {
            (Parts::Apart([name]), _) => Ok(vec![(*name, target)]),
            (Parts::Apart(names), Some(part)) => {
                let name = names.get(number(part));
                let name = name.ok_or_else(|| Error::unsupported("a part that layers of this family do not have"))?;
                Ok(vec![(*name, target)])
            }
            (Parts::Apart(names), None) => {
                let rows = self.rows(place, outputs(&target))?;
                Ok(names.iter().copied().zip(fused::split(&target, &rows)?).collect())
            }
            (Parts::Together(name), None) if place.linear == Linear::Qkv => {
                let rows = self.rows(place, outputs(&target))?.concat();
                Ok(fused::split(&target, &[rows])?.into_iter().map(|target| (name, target)).collect())
            }
            (Parts::Together(name), _) => Ok(vec![(name, target)]),
        }
    }

    /// Rows of each part of a fused layer.
    fn rows(&self, place: Place, outputs: usize) -> Result<Vec<Vec<usize>>> {
        match place.linear {
            Linear::Qkv => self.attention_rows(outputs),
            _ if outputs.is_multiple_of(2) => Ok(vec![(0..outputs / 2).collect(), (outputs / 2..outputs).collect()]),
            _ => Err(Error::mismatch(format!("{outputs} rows, expected a gate and as much that it gates"))),
        }
    }

    /// Every group holds its queries, in some families the gates of these, its key and its value.
    fn attention_rows(&self, outputs: usize) -> Result<Vec<Vec<usize>>> {
        let base = &self.settings.base;
        let (Some(heads), Some(groups), Some(width)) = (base.heads, base.key_heads, base.head_width) else {
            let what = "query, key and value in one matrix, and the heads of the base are not known";
            return Err(Error::missing(what).hint("--base tells them"));
        };
        let plain = heads.checked_add(groups.saturating_mul(2)).and_then(|n| n.checked_mul(width));
        let with_gates = heads.checked_mul(width).zip(plain).and_then(|(more, plain)| more.checked_add(plain));
        let gates = match outputs {
            n if Some(n) == plain => 0,
            n if Some(n) == with_gates => 1,
            _ => {
                let what =
                    format!("{outputs} rows, expected those of {heads} heads and twice {groups}, of {width} rows each");
                return Err(
                    Error::mismatch(what).hint("is this the config of the base model the adapter was trained on?")
                );
            }
        };
        if heads % groups != 0 {
            return Err(Error::mismatch(format!("{heads} heads, expected a multiple of the {groups} groups")));
        }
        let own = heads / groups;
        let size = own * (1 + gates) + 2;
        let head = |number: usize| number * width..(number + 1) * width;
        let (mut query, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..groups {
            let start = group * size;
            for one in 0..own {
                query.extend(head(start + one));
                if gates == 1 {
                    query.extend(head(start + own + one));
                }
            }
            key.extend(head(start + size - 2));
            value.extend(head(start + size - 1));
        }
        Ok(vec![query, key, value])
    }

    /// Puts parts with factors of their own together, where they are one module.
    fn together(&mut self) -> Result<()> {
        for ((layer, block, linear), all) in std::mem::take(&mut self.canonical) {
            let (module, parts) = self.family.parts(layer, block, linear)?;
            let Parts::Together(name) = parts else { continue };
            let path = format!("{module}.{name}");
            let target = self.fused(linear, &all).at_key(&path)?;
            self.put(path, target)?;
        }
        Ok(())
    }

    fn fused(&mut self, linear: Linear, all: &BTreeMap<Part, Target>) -> Result<Target> {
        let wanted =
            if linear == Linear::Qkv { vec![Part::Query, Part::Key, Part::Value] } else { vec![Part::Gate, Part::Up] };
        let own = |part: &Part| {
            let Delta::LowRank(factors) = all.get(part)?.weight.first()? else { return None };
            factors.b.shape.dims().first().copied()
        };
        let known = self.settings.base.attention_rows().filter(|_| linear == Linear::Qkv);
        let mut parts = Vec::new();
        for (number, part) in wanted.iter().enumerate() {
            let like = || wanted.iter().filter(|other| **other != Part::Query && *part != Part::Query).find_map(own);
            let rows = own(part).or_else(|| known?.get(number).copied()).or_else(like);
            let rows = rows.ok_or_else(|| {
                Error::missing("some parts of a fused layer, and the rows of the others are not known")
                    .hint("--base tells them")
            })?;
            parts.push(fused::Part { target: all.get(part), rows });
        }
        Ok(fused::fuse(&parts)?.0)
    }

    fn put(&mut self, path: String, target: Target) -> Result<()> {
        let path = ModulePath::from(path);
        if self.adapter.targets.contains_key(&path) {
            return Err(Error::malformed(format!("the second adapter of `{path}`")));
        }
        self.adapter.targets.insert(path, target);
        Ok(())
    }
}

/// Rows of what a target changes.
fn outputs(target: &Target) -> usize {
    match target.weight.first() {
        Some(Delta::LowRank(factors)) => factors.b.shape.dims().first().copied().unwrap_or(0),
        _ => 0,
    }
}

/// Which of the parts of its layer.
fn number(part: Part) -> usize {
    match part {
        Part::Query | Part::Gate => 0,
        Part::Key | Part::Up => 1,
        Part::Value => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(heads: usize, groups: usize, width: usize, outputs: usize) -> Result<Vec<Vec<usize>>> {
        let mut settings = Settings::default();
        settings.base.heads = Some(heads);
        settings.base.key_heads = Some(groups);
        settings.base.head_width = Some(width);
        let family = names::family(None)?;
        let notes = Vec::new();
        Reader { settings, family, adapter: Adapter::default(), notes, canonical: BTreeMap::new() }
            .attention_rows(outputs)
    }

    #[test]
    fn rows_go_group_by_group() {
        assert_eq!(rows(4, 2, 1, 8).unwrap(), [vec![0, 1, 4, 5], vec![2, 6], vec![3, 7]]);
        // Two queries and their gates, key, value: transformers has each gate behind its query.
        assert_eq!(rows(2, 1, 1, 6).unwrap(), [vec![0, 2, 1, 3], vec![4], vec![5]]);
        assert_eq!(rows(2, 1, 2, 8).unwrap()[0], [0, 1, 2, 3]);
        for (heads, groups, outputs) in [(4, 2, 9), (3, 2, 7), (usize::MAX, 2, 8), (4, usize::MAX, 8)] {
            assert!(rows(heads, groups, 1, outputs).is_err());
        }
    }
}
