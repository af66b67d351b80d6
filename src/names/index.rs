//! The names of a checkpoint on disk, and the way from a name in memory to them.
//!
//! When the index is made, the names are sorted into kinds (see `outline`), the rules of the family say what each kind
//! is called in memory, and every such spelling is noted as a claim: "a name of this form means that kind". A search
//! tries the spellings from the strictest to the loosest: the name itself, the family's names, names that mean the same
//! everywhere, names that differ in what is wrapped around the model. The first level with an answer decides; if two
//! tensors answer there, or the answer cannot be put together from whole tensors and ranges, there is none.

use std::collections::{BTreeSet, HashMap};

use indexmap::IndexMap;

use super::assemble::{Keys, Made};
use super::equivalent::{self, Loose};
use super::experts::{self, Which};
use super::outline::{self, Slot};
use super::place::{Found, How, Piece};
use super::rewrite::{self, Conversion, Op};
use super::{assemble, family, similar};

/// The names of a checkpoint with their shapes.
#[derive(Clone, Debug, Default)]
pub struct Index {
    shapes: IndexMap<String, Vec<usize>>,
    kinds: Vec<Kind>,
    kind_of: HashMap<String, usize>,
    claims: Vec<Claim>,
    /// The claims by the form of their name, one table for each level.
    by_form: [HashMap<String, Vec<usize>>; LEVELS],
    /// For a kind of expert tensors: how many experts are there, given the other numbers of the name.
    experts: HashMap<(usize, Vec<usize>), Count>,
    loose: Loose,
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

/// How many forms of a name are compared.
const LEVELS: usize = 3;

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
        let roots: BTreeSet<&str> = index.kinds.iter().filter_map(|kind| kind.bare.split('.').next()).collect();
        index.loose = Loose::new(roots, model_types);
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
        for ((form, how), claims) in self.forms(&bare).into_iter().zip(&self.by_form) {
            let claims = claims.get(&form).map_or(&[][..], Vec::as_slice);
            match self.decide(claims, &slots, how) {
                Answer::Nothing => {}
                answer => return answer,
            }
        }
        Answer::Nothing
    }

    /// The forms in which a name is compared, from the strictest to the loosest, and what it means to be found so.
    fn forms(&self, bare: &str) -> [(String, How); LEVELS] {
        [
            (bare.to_owned(), How::Renamed("")),
            (equivalent::form(bare), How::Equivalent),
            (self.loose.core(bare), How::Suffix),
        ]
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
        for (level, (form, _)) in self.forms(&bare).into_iter().enumerate().filter(|(level, _)| levels.contains(level))
        {
            if let Some(table) = self.by_form.get_mut(level) {
                table.entry(form).or_default().push(claim);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::place::Region;
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/names");
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

    fn index(model_types: &[&str], names: &[(&str, &[usize])]) -> Index {
        let types: Vec<String> = model_types.iter().map(|word| (*word).to_owned()).collect();
        Index::new(names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())), &types)
    }

    fn plain(index: &Index, name: &str) -> Option<String> {
        Some(index.find(name)?.plain().unwrap().to_owned())
    }

    #[test]
    fn both_places_of_a_language_model_are_found() {
        let disk = [
            ("language_model.model.layers.0.mlp.up_proj.weight", &[6, 4][..]),
            ("language_model.lm_head.weight", &[9, 4]),
            ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", &[5, 3]),
            ("multi_modal_projector.linear_1.weight", &[4, 3]),
        ];
        let spellings: [&[&str]; 4] = [
            &[
                "model.language_model.layers.0.mlp.up_proj.weight",
                "language_model.model.layers.0.mlp.up_proj.weight",
                "language_model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
                "layers.0.mlp.up_proj.weight",
                "base_model.model.model.layers.0.mlp.up_proj.weight",
            ],
            &["lm_head.weight", "language_model.lm_head.weight"],
            &[
                "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
                "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
                "vision_tower.encoder.layers.0.mlp.fc1.weight",
            ],
            &["model.multi_modal_projector.linear_1.weight"],
        ];
        for types in [&["llava", "LlavaForConditionalGeneration", "llama", "clip_vision_model"][..], &[]] {
            let index = index(types, &disk);
            for ((key, _), names) in disk.iter().zip(spellings) {
                for name in names {
                    assert_eq!(plain(&index, name).as_deref(), Some(*key), "{name} of {types:?}");
                }
            }
            // Neither tower nor layer is taken for another.
            for name in
                ["model.encoder.layers.0.mlp.fc1.weight", "layers.1.mlp.up_proj.weight", "model.linear_1.weight"]
            {
                assert_eq!(index.find(name), None, "{name}");
            }
        }
    }

    #[test]
    fn a_model_with_and_without_its_head_is_the_same() {
        let bert = index(&["bert"], &[("bert.encoder.layer.0.output.dense.weight", &[4, 4])]);
        assert!(plain(&bert, "encoder.layer.0.output.dense.weight").is_some());
        let bare = index(&["bert"], &[("encoder.layer.0.output.dense.weight", &[4, 4])]);
        assert!(plain(&bare, "bert.encoder.layer.0.output.dense.weight").is_some());
        let gpt2 = index(&["gpt2"], &[("h.0.attn.c_attn.weight", &[4, 12])]);
        assert!(plain(&gpt2, "transformer.h.0.attn.c_attn.weight").is_some());
        let neox = index(&[], &[("embed_out.weight", &[9, 4]), ("gpt_neox.embed_in.weight", &[9, 4])]);
        assert_eq!(plain(&neox, "lm_head.weight").as_deref(), Some("embed_out.weight"));
    }

    #[test]
    fn two_candidates_are_none() {
        let two = index(&[], &[("model.layers.0.w.weight", &[4]), ("language_model.layers.0.w.weight", &[4])]);
        assert_eq!(two.find("layers.0.w.weight"), None);
        assert!(two.find("model.layers.0.w.weight").is_some_and(|found| found.how == How::Direct));
    }

    #[test]
    fn how_it_was_found_is_said() {
        let mixtral = index(
            &["mixtral"],
            &[("model.layers.0.block_sparse_moe.gate.weight", &[2, 4]), ("model.norm.weight", &[4])],
        );
        let how = |name: &str| mixtral.find(name).map(|found| found.how);
        assert_eq!(how("model.layers.0.block_sparse_moe.gate.weight"), Some(How::Direct));
        assert_eq!(how("model.layers.0.mlp.gate.weight"), Some(How::Renamed("mixtral")));
        assert_eq!(how("norm.weight"), Some(How::Equivalent));
        assert_eq!(how("base_model.model.model.norm.weight"), Some(How::Suffix));
        assert_eq!(how("model.layers.1.mlp.gate.weight"), None);
        let clippable = index(&["gemma4"], &[("model.layers.0.q_proj.linear.weight", &[4, 4])]);
        assert!(clippable.find("model.layers.0.q_proj.weight").is_some());
    }

    /// Three experts of hidden size 8 and intermediate size 6, one by one.
    fn single_experts(module: &str, leaves: [&str; 3], skip: usize) -> Vec<(String, Vec<usize>)> {
        let leaf = |expert: usize, leaf: &str| format!("{module}.{expert}.{leaf}.weight");
        (0..3)
            .filter(|expert| *expert != skip)
            .flat_map(|e| {
                leaves.iter().zip([[6, 8], [6, 8], [8, 6]]).map(move |(name, shape)| (leaf(e, name), shape.to_vec()))
            })
            .collect()
    }

    #[test]
    fn single_experts_make_a_fused_tensor() {
        let (mixtral, qwen) = (["w1", "w3", "w2"], ["gate_proj", "up_proj", "down_proj"]);
        // The last is of no family that is known.
        for (types, module, leaves, memory) in [
            (&["mixtral"][..], "model.layers.0.block_sparse_moe.experts", mixtral, "model.layers.0.mlp.experts"),
            (&["qwen3_moe"], "model.layers.0.mlp.experts", qwen, "model.layers.0.mlp.experts"),
            (&["lfm2_moe"], "model.layers.0.feed_forward.experts", mixtral, "layers.0.feed_forward.experts"),
            (&["not_known_yet"], "model.layers.0.moe.experts", qwen, "model.layers.0.moe.experts"),
        ] {
            let types: Vec<String> = types.iter().map(|word| (*word).to_owned()).collect();
            let index = Index::new(single_experts(module, leaves, 9), &types);
            let found = index.find(&format!("{memory}.gate_up_proj")).unwrap();
            assert_eq!((found.memory_shape.as_slice(), found.pieces.len()), (&[3, 12, 8][..], 6));
            let up = Piece {
                memory: Region { expert: Some(2), rows: Some(6..12), cols: None },
                ..Piece::whole(format!("{module}.2.{}.weight", leaves[1]))
            };
            assert!(found.pieces.contains(&up), "{types:?}");
            assert_eq!(index.find(&format!("{memory}.down_proj")).unwrap().memory_shape, [3, 8, 6]);
            // One by one, by any of the names.
            for (name, leaf) in [("up_proj", leaves[1]), ("w3", leaves[1]), ("down_proj", leaves[2]), ("w1", leaves[0])]
            {
                let key = format!("{module}.1.{leaf}.weight");
                assert_eq!(plain(&index, &format!("{memory}.1.{name}.weight")), Some(key), "{name} of {types:?}");
            }
            assert_eq!(index.find(&format!("{memory}.3.{}.weight", leaves[0])), None);
            // One is missing.
            let index = Index::new(single_experts(module, leaves, 1), &types);
            assert_eq!(index.find(&format!("{memory}.gate_up_proj")), None);
        }
    }

    #[test]
    fn experts_of_different_shapes_are_none() {
        let mut names = single_experts("mlp.experts", ["gate_proj", "up_proj", "down_proj"], 9);
        names[3].1 = vec![7, 8];
        let index = Index::new(names, &["qwen3_moe".to_owned()]);
        assert_eq!(index.find("mlp.experts.gate_up_proj"), None);
        assert!(index.find("mlp.experts.down_proj").is_some());
    }

    #[test]
    fn a_fused_tensor_has_parts_for_single_experts() {
        let fused = |module: &str, transposed: bool| -> Vec<(String, Vec<usize>)> {
            let (gate_up, down) = if transposed { ([3, 8, 12], [3, 6, 8]) } else { ([3, 12, 8], [3, 8, 6]) };
            vec![(format!("{module}.gate_up_proj"), gate_up.into()), (format!("{module}.down_proj"), down.into())]
        };
        let module = "model.language_model.layers.0.mlp.experts";
        for (types, transposed) in [("qwen3_vl_moe", true), ("llama4", true), ("qwen3_5_moe", false), ("", false)] {
            let index = Index::new(fused(module, transposed), &[types.to_owned()]);
            let found = index.find("model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
            let region = Region { expert: Some(1), ..Region::ALL };
            let disk = if transposed {
                Region { cols: Some(6..12), ..region.clone() }
            } else {
                Region { rows: Some(6..12), ..region.clone() }
            };
            let piece = |leaf: &str| Piece { transposed, ..Piece::whole(format!("{module}.{leaf}")) };
            assert_eq!(found.pieces, [Piece { disk, ..piece("gate_up_proj") }], "{types}");
            assert_eq!(found.memory_shape, [6, 8]);
            let found = index.find(&format!("{module}.2.w2.weight")).unwrap();
            assert_eq!(found.pieces, [Piece { disk: Region::expert(2), ..piece("down_proj") }], "{types}");
            assert_eq!(found.memory_shape, [8, 6]);
        }
        // Gate and up alternate here.
        let mut names = fused(module, true);
        assert_eq!(
            Index::new(names.clone(), &["gpt_oss".to_owned()]).find(&format!("{module}.0.up_proj.weight")),
            None
        );
        names.push((format!("{module}.gate_up_proj_bias"), vec![3, 12]));
        assert_eq!(Index::new(names, &[]).find(&format!("{module}.0.up_proj.weight")), None);
    }

    #[test]
    fn experts_that_lie_transposed_are_turned_once() {
        let name = "model.language_model.layers.0.mlp.experts.gate_up_proj";
        let down = "model.language_model.layers.0.mlp.experts.down_proj";
        let types = ["qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"];
        let found = index(&types, &[(name, &[3, 8, 12]), (down, &[3, 6, 8])]).find(name).unwrap();
        assert_eq!(found.memory_shape, [3, 12, 8]);
        assert_eq!(found.pieces, [Piece { transposed: true, ..Piece::whole(name) }]);
        let found = index(&types, &[(name, &[3, 12, 8]), (down, &[3, 8, 6])]).find(name).unwrap();
        assert_eq!((found.plain(), found.memory_shape.as_slice()), (Some(name), &[3, 12, 8][..]));
    }

    #[test]
    fn what_ranges_cannot_say_is_not_found() {
        let kimi = index(&["kimi_k25"], &[("vision_tower.encoder.blocks.0.wqkv.weight", &[12, 4])]);
        assert_eq!(kimi.find("model.vision_tower.layers.0.attn.q_proj.weight"), None);
        let v = kimi.find("model.vision_tower.layers.0.attn.v_proj.weight").unwrap();
        assert_eq!((&v.pieces[0].disk, v.memory_shape.as_slice()), (&Region::rows(8..12), &[4, 4][..]));
        let uneven = index(&["gte"], &[("new.encoder.layer.0.attention.qkv_proj.weight", &[13, 4])]);
        assert_eq!(uneven.find("layers.0.self_attn.q_proj.weight"), None);
    }

    #[test]
    fn text_and_vision_experts_share_one_list() {
        let mut names = Vec::new();
        for expert in 0..4 {
            let size = if expert < 2 { 6 } else { 2 };
            names.push((format!("model.layers.1.mlp.experts.{expert}.down_proj.weight"), vec![8, size]));
        }
        let index = Index::new(names, &["ernie4_5_vl_moe".to_owned()]);
        let found = index.find("model.language_model.layers.1.mlp.vision_moe.experts.down_proj").unwrap();
        let keys: Vec<_> = found.pieces.iter().map(|piece| (piece.memory.expert, piece.key.as_str())).collect();
        let key = |expert: usize| format!("model.layers.1.mlp.experts.{expert}.down_proj.weight");
        assert_eq!(keys, [(Some(0), key(2).as_str()), (Some(1), key(3).as_str())]);
        assert_eq!(found.memory_shape, [2, 8, 2]);
    }

    #[test]
    fn the_nearest_name_has_the_same_numbers_if_it_can() {
        let names = ["model.layers.0.attn.q_proj.weight", "model.layers.1.attn.q_proj.weight", "model.norm.weight"];
        let index = index(&[], &names.map(|name| (name, &[4][..])));
        assert_eq!(index.nearest("layers.1.self_attn.q_proj.weight"), Some(names[1]));
        assert_eq!(index.nearest("layers.7.self_attn.q_proj.weight"), Some(names[0]));
        assert_eq!(index.nearest("something.else"), None);
        assert_eq!(Index::default().nearest(""), None);
    }

    #[test]
    fn hostile_names_and_shapes_do_no_harm() {
        let most = usize::MAX;
        let shapes: [&[usize]; 7] =
            [&[], &[0], &[most], &[most, most], &[3, 0, most], &[most, 0, most], &[1, most, most - 1]];
        let names = ["", ".", "...", "experts.0.w1.weight", "a.experts.gate_up_proj", "a.experts.down_proj"];
        let more =
            ["layers.73007300730001.weight", "é.experts.00.w1.weight", "a.experts.18446744073709551616.w1.weight"];
        for shape in shapes {
            for types in ["mixtral", "qwen3_vl_moe", "step3p7", "llama4", "gte", "ernie4_5_vl_moe", ""] {
                let disk = names.iter().chain(&more).map(|name| ((*name).to_owned(), shape.to_vec()));
                let pair = ["moe.gate_proj.weight", "moe.up_proj.weight", "mlp.up_gate_proj.weight"];
                let disk = disk.chain(pair.map(|name| (name.to_owned(), shape.to_vec())));
                let index = Index::new(disk, &[types.to_owned()]);
                let asked = [
                    "a.experts.0.up_proj.weight",
                    "a.experts.18446744073709551615.w2.weight",
                    "experts.gate_up_proj",
                    "mlp.experts.gate_up_proj",
                    "mlp.gate_proj.weight",
                    "experts.down_proj",
                ];
                for name in names.iter().chain(&more).chain(&asked) {
                    let _ = (index.find(name), index.nearest(name));
                }
            }
        }
    }
}
