//! The making of an index: names into kinds, kinds into claims, experts counted.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::equivalent::Loose;
use super::super::outline::{self, Slot};
use super::super::rewrite::{self, Conversion};
use super::super::{base_model, family};
use super::{Claim, Index, Kind};

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

    /// Sorts the names into kinds; for each name its kind and numbers.
    fn sort_into_kinds(&mut self) -> Vec<(usize, Vec<usize>)> {
        let mut members = Vec::with_capacity(self.shapes.len());
        for (example, name) in self.shapes.keys().enumerate() {
            let Some((text, numbers)) = outline::mark(name) else { continue };
            let kind = match self.kind_of.get(&text) {
                Some(kind) => *kind,
                None => {
                    let (bare, marks) = (outline::bare(&text).0, numbers.len());
                    let memory = vec![text.clone()];
                    self.kinds.push(Kind { text: text.clone(), bare, marks, example, memory, other_in_memory: false });
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
        let mut rewritten = rewrite::rewrite(&texts, &family::sets(model_types));
        let names = rewritten.iter().flat_map(|made| &made.names).map(String::as_str);
        if let Some(change) = base_model::Change::find(names, model_types) {
            rewritten.iter_mut().flat_map(|made| &mut made.names).for_each(|name| *name = change.apply(name));
        }
        let mut taken = HashSet::new();
        for (kind, (text, made)) in texts.iter().zip(&rewritten).enumerate() {
            let count = made.names.len();
            let mut stays = false;
            for (target, name) in made.names.iter().enumerate() {
                let part = made.conversion.map(|conversion| (conversion, (target, count)));
                stays |= name == text;
                if name != text || part.is_some() {
                    self.add_claim(kind, name, part, made.by, &[0, 1, 2]);
                }
            }
            if stays && made.conversion.is_some() {
                taken.insert(text.as_str());
            } else {
                self.add_claim(kind, text, None, None, &[1, 2]);
            }
            taken.extend(made.names.iter().filter(|name| *name != text).map(String::as_str));
        }
        for ((kind, text), made) in self.kinds.iter_mut().zip(&texts).zip(&rewritten) {
            kind.other_in_memory = taken.contains(text.as_str());
            kind.memory.clone_from(&made.names);
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
