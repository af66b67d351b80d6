//! From a name in memory to where its tensor lies on disk.
//!
//! A search tries the spellings from the strictest to the loosest: the name itself, the family's names, names that mean
//! the same everywhere, names that differ in what is wrapped around the model. The first level with an answer decides; if
//! two tensors answer there, or the answer cannot be put together from whole tensors and ranges, there is none.

use indexmap::IndexMap;

use super::super::assemble::{self, Keys, Made};
use super::super::experts::{self, Which};
use super::super::outline::{self, Slot};
use super::super::place::{Found, How, Piece};
use super::super::rewrite::Op;
use super::super::similar::{self, Likeness};
use super::{Claim, Index};

/// A claim, and what the marks of its kind stand for in the name that is looked for.
type Bound<'a> = (&'a Claim, Vec<Option<usize>>);

/// The outcome on one level.
enum Answer {
    Nothing,
    Found(Found),
    /// There is something, but not one thing that can be described.
    Refused,
}

impl Index {
    /// Where the tensor that has this name in memory lies on disk.
    pub fn find(&self, memory_name: &str) -> Option<Found> {
        if !self.parts.is_empty() {
            return self.find_in_parts(memory_name);
        }
        self.find_named(memory_name).or_else(|| self.find_by_other_name(memory_name))
    }

    /// The same by the names of this very checkpoint.
    pub(super) fn find_named(&self, memory_name: &str) -> Option<Found> {
        match self.named(memory_name) {
            Answer::Found(found) => Some(found),
            Answer::Refused => None,
            Answer::Nothing => self.expert(memory_name),
        }
    }

    /// The name on disk that resembles this one most, as a hint.
    pub fn nearest(&self, memory_name: &str) -> Option<String> {
        self.nearest_scored(memory_name).map(|(_, key)| key)
    }

    /// The same, and how near it is.
    pub(super) fn nearest_scored(&self, memory_name: &str) -> Option<(Likeness, String)> {
        if !self.parts.is_empty() {
            return self.nearest_in_parts(memory_name);
        }
        let (wanted, slots) = outline::bare(memory_name);
        let scored = self.kinds.iter().filter_map(|kind| Some((similar::likeness(&wanted, &kind.bare)?, kind)));
        let (likeness, kind) = scored.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
        let numbers: Vec<_> = slots.iter().map(|slot| value(*slot)).collect();
        let same_numbers = outline::fill(&kind.text, &numbers).and_then(|key| self.shapes.get_key_value(&key));
        let found = same_numbers.or_else(|| self.shapes.get_index(kind.example));
        found.map(|(key, _)| (likeness, key.clone()))
    }

    fn named(&self, name: &str) -> Answer {
        let clippable = || name.strip_suffix(".weight").map(|path| format!("{path}.linear.weight"));
        match self.levels(name) {
            Answer::Nothing => clippable().map_or(Answer::Nothing, |name| self.levels(&name)),
            answer => answer,
        }
    }

    fn levels(&self, name: &str) -> Answer {
        let other = outline::mark(name)
            .and_then(|(text, _)| self.kind_of.get(&text))
            .and_then(|kind| self.kinds.get(*kind))
            .is_some_and(|kind| kind.other_in_memory);
        if let Some(shape) = self.shapes.get(name).filter(|_| !other) {
            return Answer::Found(Found {
                pieces: vec![Piece::whole(name)],
                how: How::Direct,
                memory_shape: shape.clone(),
            });
        }
        let (bare, slots) = outline::bare(name);
        for ((form, how), claims) in self.forms(&bare).into_iter().zip(&self.by_form) {
            let claims = claims.get(&form).map_or(&[][..], Vec::as_slice);
            match self.decide(claims, &slots, how) {
                Answer::Nothing => {}
                answer => return answer,
            }
        }
        Answer::Nothing
    }

    /// What these claims make of a name with these numbers.
    fn decide(&self, claims: &[usize], slots: &[Slot], how: How) -> Answer {
        // The parts of one conversion belong together; every other claim is one of its own.
        let mut groups: IndexMap<_, Vec<Bound<'_>>> = IndexMap::new();
        for (i, claim) in claims.iter().filter_map(|i| Some((i, self.claims.get(*i)?))) {
            let Some(numbers) = self.bind(claim, slots) else { continue };
            let key = match claim.part {
                Some((conversion, (target, _))) => (Some((conversion.rule, target)), 0),
                None => (None, *i),
            };
            groups.entry(key).or_default().push((claim, numbers));
        }
        let mut result = Answer::Nothing;
        for parts in groups.values() {
            let label = parts.iter().find_map(|(claim, _)| claim.by);
            let how = match how {
                How::Renamed(_) => label.map_or(How::Equivalent, How::Renamed),
                how => how,
            };
            result = match (self.put_together(parts, how), result) {
                (Answer::Nothing, result) => result,
                (answer, Answer::Nothing) => answer,
                (Answer::Found(a), Answer::Found(b)) if a.pieces == b.pieces => Answer::Found(b),
                _ => return Answer::Refused,
            };
        }
        result
    }

    /// The numbers that the marks of the claim's kind stand for, if the name has `slots`.
    fn bind(&self, claim: &Claim, slots: &[Slot]) -> Option<Vec<Option<usize>>> {
        let mut numbers = vec![None; self.kinds.get(claim.kind)?.marks];
        if slots.len() != claim.slots.len() {
            return None;
        }
        for (ours, theirs) in claim.slots.iter().zip(slots) {
            let number = value(*theirs)?;
            match ours {
                Slot::Is(n) if *n == number => {}
                Slot::Is(_) => return None,
                Slot::Marked(mark) => {
                    let place = numbers.get_mut(*mark)?;
                    if place.is_some_and(|n| n != number) {
                        return None;
                    }
                    *place = Some(number);
                }
            }
        }
        Some(numbers)
    }

    fn put_together(&self, parts: &[Bound<'_>], how: How) -> Answer {
        let Some((first, _)) = parts.first() else { return Answer::Nothing };
        let sources: Vec<_> = parts
            .iter()
            .map(|(claim, numbers)| (claim.part.map_or(0, |part| part.0.source.0), self.sources(claim, numbers)))
            .collect();
        if sources.iter().all(|(_, keys)| keys.is_empty()) {
            return Answer::Nothing;
        }
        let made = match first.part {
            None => sources.first().and_then(|(_, keys)| self.assemble(Op::Join, std::slice::from_ref(keys), (0, 1))),
            Some((conversion, target)) => {
                // Every source once.
                let ordered: Option<Vec<_>> = (0..conversion.source.1)
                    .map(|source| {
                        let mut of_it = sources.iter().filter(|(s, keys)| *s == source && !keys.is_empty());
                        of_it.next().filter(|_| of_it.next().is_none()).map(|(_, keys)| keys.clone())
                    })
                    .collect();
                ordered.and_then(|ordered| self.assemble(conversion.op, &ordered, target))
            }
        };
        made.map_or(Answer::Refused, |(pieces, memory_shape)| Answer::Found(Found { pieces, how, memory_shape }))
    }

    /// The tensors on disk that one claim takes: one, or one for each expert, or none if they are not there.
    fn sources(&self, claim: &Claim, numbers: &[Option<usize>]) -> Vec<&str> {
        let Some(kind) = self.kinds.get(claim.kind) else { return Vec::new() };
        let key = |numbers: &[Option<usize>]| {
            let name = outline::fill(&kind.text, numbers)?;
            self.shapes.get_key_value(&name).map(|(key, _)| key.as_str())
        };
        let free: Vec<_> = (0..numbers.len()).filter(|i| numbers.get(*i).is_some_and(Option::is_none)).collect();
        match *free.as_slice() {
            [] => key(numbers).into_iter().collect(),
            [free] => {
                let others: Vec<usize> = numbers.iter().copied().flatten().collect();
                let Some(count) = self.experts.get(&(claim.kind, others)) else { return Vec::new() };
                let mut numbers = numbers.to_vec();
                let of_expert = |expert| {
                    *numbers.get_mut(free)? = Some(expert);
                    key(&numbers)
                };
                // All from the first to the last, or an empty name for `assemble` to refuse.
                if count.highest.checked_add(1) == Some(count.number) {
                    (0..count.number).map(of_expert).map(Option::unwrap_or_default).collect()
                } else {
                    vec![""]
                }
            }
            _ => Vec::new(),
        }
    }

    /// The pieces of a conversion's target and its shape in memory, from the keys of each source.
    fn assemble(&self, op: Op, sources: &[Vec<&str>], target: (usize, usize)) -> Made {
        let sources: Vec<Keys<'_>> = sources
            .iter()
            .map(|keys| keys.iter().map(|key| Some((*key, self.shapes.get(*key)?.as_slice()))).collect())
            .collect::<Option<_>>()?;
        let single = || sources.first().and_then(|keys| keys.first()).copied();
        match op {
            Op::Join => assemble::join(&sources),
            Op::Stack => assemble::stack(&sources, false, (0, 1)),
            Op::StackTransposed => assemble::stack(&sources, true, (0, 1)),
            Op::StackHalves => assemble::stack(&sources, false, target),
            Op::JoinExperts => assemble::join_experts(&sources),
            Op::Split => assemble::split(single()?, target),
            // A permutation of the rows is more than a range can say.
            Op::SplitTurned => assemble::split(single()?, target).filter(|_| target.0.checked_add(1) == Some(target.1)),
            Op::Transpose => assemble::transpose(single()?),
            Op::TransposeExperts => {
                let (key, shape) = single()?;
                let done = self.pair(key).and_then(|(gate_up, down)| experts::lies_transposed(gate_up, down));
                if done == Some(false) {
                    return Some((vec![Piece::whole(key)], shape.to_vec()));
                }
                assemble::transpose((key, shape))
            }
            Op::Opaque => None,
        }
    }

    /// The shapes of the fused pair on disk to which this key belongs.
    fn pair(&self, key: &str) -> Option<(&[usize], &[usize])> {
        let (module, _) = key.rsplit_once('.')?;
        let shape = |leaf| self.shapes.get(&format!("{module}.{leaf}")).map(Vec::as_slice);
        Some((shape("gate_up_proj")?, shape("down_proj")?))
    }

    /// The matrix of one expert, cut out of the tensor of all.
    fn expert(&self, name: &str) -> Option<Found> {
        let expert = experts::parse(name)?;
        let fused = |leaf| match self.named(&format!("{}.{leaf}", expert.module)) {
            Answer::Found(found) => Some(found),
            _ => None,
        };
        // Biases come with the interleaved layout; without a config they are all that tells it.
        if self.interleaved || fused("gate_up_proj_bias").is_some() {
            return None;
        }
        let down = fused("down_proj")?;
        let Some(gate_up) = fused("gate_up_proj") else { return ungated(expert, &down, fused("up_proj")) };
        let transposed = experts::lies_transposed(&gate_up.memory_shape, &down.memory_shape)?;
        let from = if expert.which == Which::Down { &down } else { &gate_up };
        experts::cut(from, expert.number, expert.which, transposed)
    }
}

/// The matrix of one expert of a model without gates, where `up_proj` and `down_proj` are (E, out, in).
fn ungated(expert: experts::Expert<'_>, down: &Found, up: Option<Found>) -> Option<Found> {
    let up = up?;
    let (&[e1, inner, hidden], &[e2, out, from]) = (up.memory_shape.as_slice(), down.memory_shape.as_slice()) else {
        return None;
    };
    if (e1, inner, hidden) != (e2, from, out) {
        return None;
    }
    match expert.which {
        Which::Gate => None,
        Which::Up => experts::cut(&up, expert.number, Which::Down, false),
        Which::Down => experts::cut(down, expert.number, Which::Down, false),
    }
}
fn value(slot: Slot) -> Option<usize> {
    match slot {
        Slot::Is(number) => Some(number),
        Slot::Marked(_) => None,
    }
}
