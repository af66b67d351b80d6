//! The names of a checkpoint on disk, and the way from a name in memory to them.
//!
//! When the index is made, the names are sorted into kinds (see `outline`), the rules of the family say what each kind
//! is called in memory, and every such spelling is noted as a claim: "a name of this form means that kind". A search
//! tries the spellings from the strictest to the loosest: the name itself, the family's names, names that mean the same
//! everywhere, names that differ in what is wrapped around the model. The first level with an answer decides; if two
//! tensors answer there, or the answer cannot be put together from whole tensors and ranges, there is none.

use std::collections::HashMap;

use indexmap::IndexMap;

use super::experts::{self, Which};
use super::outline::{self, Slot};
use super::place::{Found, How, Piece, Region};
use super::rewrite::{self, Conversion, Op};
use super::{equivalent, family, similar};

/// The names of a checkpoint with their shapes.
#[derive(Clone, Debug, Default)]
pub struct Index {
    shapes: IndexMap<String, Vec<usize>>,
    kinds: Vec<Kind>,
    kind_of: HashMap<String, usize>,
    claims: Vec<Claim>,
    /// The claims by the form of their name, one table for each of `LEVELS`.
    by_form: [HashMap<String, Vec<usize>>; 3],
    /// For a kind of expert tensors: how many experts are there, given the other numbers of the name.
    experts: HashMap<(usize, Vec<usize>), Count>,
    /// Whether gate and up alternate in fused tensors, so that no range is one of them.
    interleaved: bool,
}

/// Names that differ in their counting numbers only.
#[derive(Clone, Debug)]
struct Kind {
    /// The name with its numbers marked.
    text: String,
    /// The name with its numbers struck out.
    bare: String,
    marks: usize,
    /// The first of these names.
    example: usize,
    /// Whether the family has another layout under the same name in memory.
    converted_in_place: bool,
}

/// A name in memory and the kind of tensors that it takes in.
#[derive(Clone, Debug)]
struct Claim {
    kind: usize,
    /// The numbers of the name in memory.
    slots: Vec<Slot>,
    /// Where the tensor goes, if it is not the whole: the conversion and which of its targets this name is, of how many.
    part: Option<(Conversion, (usize, usize))>,
    by: Option<&'static str>,
}

/// A claim, and what the marks of its kind stand for in the name that is looked for.
type Bound<'a> = (&'a Claim, Vec<Option<usize>>);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    number: usize,
    highest: usize,
}

type Form = fn(&str) -> String;

/// The forms in which names are compared, and what it means to be found so.
const LEVELS: [(Form, How); 3] =
    [(str::to_owned, How::Renamed("")), (equivalent::form, How::Equivalent), (equivalent::core, How::Suffix)];

/// The outcome on one level.
enum Answer {
    Nothing,
    Found(Found),
    /// There is something, but not one thing that can be described.
    Refused,
}

impl Index {
    /// An index of these names. `model_types` are the words of the config that say what model it is: `model_type` and
    /// `architectures`, also those of inner configs.
    pub fn new(names: impl IntoIterator<Item = (String, Vec<usize>)>, model_types: &[String]) -> Index {
        let mut index = Index { shapes: names.into_iter().collect(), ..Index::default() };
        index.interleaved = model_types.iter().any(|name| family::interleaved(name));
        let members = index.sort_into_kinds();
        index.claim(model_types);
        index.count_experts(&members);
        index
    }

    /// Where the tensor that has this name in memory lies on disk.
    pub fn find(&self, memory_name: &str) -> Option<Found> {
        match self.named(memory_name) {
            Answer::Found(found) => Some(found),
            Answer::Refused => None,
            Answer::Nothing => self.expert(memory_name),
        }
    }

    /// The name on disk that resembles this one most, as a hint.
    pub fn nearest(&self, memory_name: &str) -> Option<&str> {
        let (wanted, slots) = outline::bare(memory_name);
        let scored = self.kinds.iter().filter_map(|kind| Some((similar::likeness(&wanted, &kind.bare)?, kind)));
        let (_, kind) = scored.reduce(|best, next| if next.0 > best.0 { next } else { best })?;
        let numbers: Vec<_> = slots.iter().map(|slot| value(*slot)).collect();
        let same_numbers = outline::fill(&kind.text, &numbers).and_then(|key| self.shapes.get_key_value(&key));
        same_numbers.or_else(|| self.shapes.get_index(kind.example)).map(|(key, _)| key.as_str())
    }

    fn named(&self, name: &str) -> Answer {
        let clippable = || name.strip_suffix(".weight").map(|path| format!("{path}.linear.weight"));
        match self.levels(name) {
            Answer::Nothing => clippable().map_or(Answer::Nothing, |name| self.levels(&name)),
            answer => answer,
        }
    }

    fn levels(&self, name: &str) -> Answer {
        let in_place = outline::mark(name)
            .and_then(|(text, _)| self.kind_of.get(&text))
            .and_then(|kind| self.kinds.get(*kind))
            .is_some_and(|kind| kind.converted_in_place);
        if let Some(shape) = self.shapes.get(name).filter(|_| !in_place) {
            return Answer::Found(Found {
                pieces: vec![Piece::whole(name)],
                how: How::Direct,
                memory_shape: shape.clone(),
            });
        }
        let (bare, slots) = outline::bare(name);
        for ((form, how), claims) in LEVELS.into_iter().zip(&self.by_form) {
            let claims = claims.get(&form(&bare)).map_or(&[][..], Vec::as_slice);
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
    fn assemble(&self, op: Op, sources: &[Vec<&str>], target: (usize, usize)) -> Option<(Vec<Piece>, Vec<usize>)> {
        let sources: Vec<Vec<(&str, &[usize])>> = sources
            .iter()
            .map(|keys| keys.iter().map(|key| Some((*key, self.shapes.get(*key)?.as_slice()))).collect())
            .collect::<Option<_>>()?;
        let single = || sources.first().and_then(|keys| keys.first()).copied();
        match op {
            Op::Join => join(&sources),
            Op::Stack => stack(&sources, false, (0, 1)),
            Op::StackTransposed => stack(&sources, true, (0, 1)),
            Op::StackHalves => stack(&sources, false, target),
            Op::JoinExperts => join_experts(&sources),
            Op::Split => split(single()?, target),
            // A permutation of the rows is more than a range can say.
            Op::SplitTurned => split(single()?, target).filter(|_| target.0.checked_add(1) == Some(target.1)),
            Op::Transpose => transpose(single()?),
            Op::TransposeExperts => {
                let (key, shape) = single()?;
                let done = self.pair(key).and_then(|(gate_up, down)| experts::lies_transposed(gate_up, down));
                if done == Some(false) {
                    return Some((vec![Piece::whole(key)], shape.to_vec()));
                }
                transpose((key, shape))
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

    /// Sorts the names into kinds; for each name its kind and numbers.
    fn sort_into_kinds(&mut self) -> Vec<(usize, Vec<usize>)> {
        let mut members = Vec::with_capacity(self.shapes.len());
        for (example, name) in self.shapes.keys().enumerate() {
            let Some((text, numbers)) = outline::mark(name) else { continue };
            let kind = match self.kind_of.get(&text) {
                Some(kind) => *kind,
                None => {
                    let (bare, marks) = (outline::bare(&text).0, numbers.len());
                    self.kinds.push(Kind { text: text.clone(), bare, marks, example, converted_in_place: false });
                    self.kind_of.insert(text, self.kinds.len() - 1);
                    self.kinds.len() - 1
                }
            };
            members.push((kind, numbers));
        }
        members
    }

    /// Notes what every kind is called in memory.
    fn claim(&mut self, model_types: &[String]) {
        let texts: Vec<String> = self.kinds.iter().map(|kind| kind.text.clone()).collect();
        let rewritten = rewrite::rewrite(&texts, &family::sets(model_types));
        for (kind, (text, made)) in texts.iter().zip(rewritten).enumerate() {
            let count = made.names.len();
            let mut stays = false;
            for (target, name) in made.names.iter().enumerate() {
                let part = made.conversion.map(|conversion| (conversion, (target, count)));
                stays |= name == text;
                if name != text || part.is_some() {
                    self.add_claim(kind, name, part, made.by, &[0, 1, 2]);
                }
            }
            let in_place = stays && made.conversion.is_some();
            if in_place {
                if let Some(kind) = self.kinds.get_mut(kind) {
                    kind.converted_in_place = true;
                }
            } else {
                self.add_claim(kind, text, None, None, &[1, 2]);
            }
        }
    }

    fn add_claim(
        &mut self,
        kind: usize,
        name: &str,
        part: Option<(Conversion, (usize, usize))>,
        by: Option<&'static str>,
        levels: &[usize],
    ) {
        let (bare, slots) = outline::bare(name);
        let claim = self.claims.len();
        self.claims.push(Claim { kind, slots, part, by });
        for (level, ((form, _), table)) in LEVELS.into_iter().zip(&mut self.by_form).enumerate() {
            if levels.contains(&level) {
                table.entry(form(&bare)).or_default().push(claim);
            }
        }
    }

    /// Counts the experts of every kind whose conversion stacks them.
    fn count_experts(&mut self, members: &[(usize, Vec<usize>)]) {
        let mut free: HashMap<usize, usize> = HashMap::new();
        for claim in self.claims.iter().filter(|claim| claim.part.is_some()) {
            let marks = self.kinds.get(claim.kind).map_or(0, |kind| kind.marks);
            free.extend((0..marks).find(|mark| !claim.slots.contains(&Slot::Marked(*mark))).map(|m| (claim.kind, m)));
        }
        for (kind, numbers) in members {
            let Some(free) = free.get(kind) else { continue };
            let mut others = numbers.clone();
            if *free < others.len() {
                let expert = others.remove(*free);
                let count = self.experts.entry((*kind, others)).or_default();
                count.number += 1;
                count.highest = count.highest.max(expert);
            }
        }
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

/// Keys with their shapes.
type Keys<'a> = Vec<(&'a str, &'a [usize])>;
/// The pieces of a tensor and its shape.
type Made = Option<(Vec<Piece>, Vec<usize>)>;

/// Tensors above each other.
fn join(sources: &[Keys<'_>]) -> Made {
    let keys: Keys<'_> = sources.iter().flatten().copied().collect();
    if let [(key, shape)] = keys.as_slice() {
        return Some((vec![Piece::whole(*key)], shape.to_vec()));
    }
    let (_, tail) = keys.first()?.1.split_first()?;
    let (mut pieces, mut row) = (Vec::new(), 0usize);
    for (key, shape) in keys {
        let (rows, rest) = shape.split_first()?;
        let end = row.checked_add(*rows).filter(|_| rest == tail)?;
        pieces.push(Piece { memory: Region::rows(row..end), ..Piece::whole(key) });
        row = end;
    }
    Some((pieces, std::iter::once(row).chain(tail.iter().copied()).collect()))
}

/// Matrices of single experts as one tensor. Of a `share` of several, the experts are dealt out in order.
fn stack(sources: &[Keys<'_>], transposed: bool, share: (usize, usize)) -> Made {
    let (which, of) = share;
    let all = sources.first()?.len();
    let each = all.div_ceil(of.max(1));
    let range = each.checked_mul(which)?.min(all)..each.checked_mul(which + 1)?.min(all);
    let (mut pieces, mut row, mut cols) = (Vec::new(), 0usize, None);
    for keys in sources.iter() {
        let taken = keys.get(range.clone()).filter(|_| keys.len() == all)?;
        let &[rows, width] = taken.first()?.1 else { return None };
        let end = row.checked_add(rows)?;
        if *cols.get_or_insert(width) != width || taken.iter().any(|(_, shape)| *shape != [rows, width]) {
            return None;
        }
        let part = (sources.len() > 1).then_some(row..end);
        let (rows, cols) = if transposed { (None, part) } else { (part, None) };
        pieces.extend(taken.iter().enumerate().map(|(expert, (key, _))| Piece {
            memory: Region { expert: Some(expert), rows: rows.clone(), cols: cols.clone() },
            transposed,
            ..Piece::whole(*key)
        }));
        row = end;
    }
    let (out, into) = (row, cols?);
    Some((pieces, if transposed { vec![range.len(), into, out] } else { vec![range.len(), out, into] }))
}

/// Tensors of all experts, above each other in each expert.
fn join_experts(sources: &[Keys<'_>]) -> Made {
    let keys: Keys<'_> = sources.iter().flatten().copied().collect();
    let &[experts, _, cols] = keys.first()?.1 else { return None };
    // An empty tensor may claim any number of them.
    if experts > 1 << 16 {
        return None;
    }
    let (mut pieces, mut row) = (Vec::new(), 0usize);
    for (key, shape) in keys {
        let &[e, rows, c] = shape else { return None };
        let end = row.checked_add(rows).filter(|_| (e, c) == (experts, cols))?;
        pieces.extend((0..experts).map(|expert| Piece {
            memory: Region { expert: Some(expert), rows: Some(row..end), cols: None },
            disk: Region::expert(expert),
            ..Piece::whole(key)
        }));
        row = end;
    }
    Some((pieces, vec![experts, row, cols]))
}

/// An equal share of the rows.
fn split((key, shape): (&str, &[usize]), (which, of): (usize, usize)) -> Made {
    let (rows, rest) = shape.split_first()?;
    let share = rows.checked_div(of).filter(|share| share * of == *rows)?;
    let piece = Piece { disk: Region::rows(share * which..share * (which + 1)), ..Piece::whole(key) };
    Some((vec![piece], std::iter::once(share).chain(rest.iter().copied()).collect()))
}

fn transpose((key, shape): (&str, &[usize])) -> Made {
    let mut shape = shape.to_vec();
    let last = shape.len().checked_sub(1).filter(|last| *last > 0)?;
    shape.swap(last - 1, last);
    Some((vec![Piece { transposed: true, ..Piece::whole(key) }], shape))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A table of `fixtures/names`; `fixtures/make/names.py` says how to read one.
    #[derive(Default)]
    struct Table {
        model_types: Vec<String>,
        disk: Vec<(String, Vec<usize>)>,
        memory: Vec<Tensor>,
    }

    struct Tensor {
        name: String,
        shape: Vec<usize>,
        /// `None`: it cannot be described by parts.
        pieces: Option<Vec<Piece>>,
    }

    fn table(path: &Path) -> Table {
        let mut table = Table::default();
        let shape = |text: &str| text.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            match fields.as_slice() {
                ["#", words @ ..] => table.model_types = words.iter().map(|word| (*word).to_owned()).collect(),
                ["=", name, dims] => {
                    table.disk.push(((*name).to_owned(), shape(dims)));
                    let pieces = Some(vec![Piece::whole(*name)]);
                    table.memory.push(Tensor { name: (*name).to_owned(), shape: shape(dims), pieces });
                }
                ["K", name, dims] => table.disk.push(((*name).to_owned(), shape(dims))),
                [kind @ ("M" | "X"), name, dims] => {
                    let pieces = (*kind == "M").then(Vec::new);
                    table.memory.push(Tensor { name: (*name).to_owned(), shape: shape(dims), pieces });
                }
                ["P", memory, key, disk, rest @ ..] => {
                    let piece = Piece {
                        key: (*key).to_owned(),
                        memory: region(memory),
                        disk: region(disk),
                        transposed: rest == ["T"],
                    };
                    table.memory.last_mut().unwrap().pieces.as_mut().unwrap().push(piece);
                }
                _ => panic!("{line}"),
            }
        }
        table
    }

    fn region(text: &str) -> Region {
        let mut region = Region::ALL;
        for part in text.split(' ').filter(|part| *part != "*") {
            let (letter, rest) = part.split_at(1);
            let range = || rest.split_once(':').map(|(a, b)| a.parse().unwrap()..b.parse().unwrap());
            match letter {
                "e" => region.expert = rest.parse().ok(),
                "r" => region.rows = range(),
                "c" => region.cols = range(),
                _ => panic!("{part}"),
            }
        }
        region
    }

    fn sorted(mut pieces: Vec<Piece>) -> Vec<Piece> {
        pieces.sort_by_key(|piece| format!("{piece:?}"));
        pieces
    }

    /// What is wrong with the answers to the names of a table.
    fn faults(table: &Table) -> Vec<String> {
        let index = Index::new(table.disk.iter().cloned(), &table.model_types);
        let mut faults = Vec::new();
        for Tensor { name, shape, pieces } in &table.memory {
            let found = index.find(name);
            let wanted = pieces.clone().map(sorted);
            let got = found.clone().map(|found| sorted(found.pieces));
            if got != wanted {
                faults.push(format!("{name}: found {got:?}, expected {wanted:?}"));
            } else if found.as_ref().is_some_and(|found| found.memory_shape != *shape) {
                faults.push(format!("{name}: found shape {:?}, expected {shape:?}", found.unwrap().memory_shape));
            }
        }
        faults
    }

    #[test]
    fn names_of_real_models_are_found_where_they_were_saved() {
        let mut folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/names");
        if let Ok(other) = std::env::var("NAMES_TABLES") {
            folder = other.into();
        }
        let mut count = 0;
        let mut all = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "tsv") {
                count += 1;
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                all.extend(faults(&table(&path)).into_iter().map(|fault| format!("{name}: {fault}")));
            }
        }
        assert!(count > 0);
        assert!(all.is_empty(), "{} faults\n{}", all.len(), all.join("\n"));
    }
}
