//! Which modules of a base an adapter means, for the few whose files do not list them. The rules are PEFT's
//! (huggingface/peft, `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`).

use std::collections::BTreeSet;

use regex::Regex;

use crate::names::ModulePath;

/// Names or a pattern.
#[derive(Clone, Debug)]
pub enum Names {
    /// Whole paths, or their ends.
    Listed(BTreeSet<String>),
    /// An expression for the whole path.
    Pattern(Regex),
}

/// The same words: two patterns may also mean the same in different ones.
impl PartialEq for Names {
    fn eq(&self, other: &Names) -> bool {
        match (self, other) {
            (Names::Listed(a), Names::Listed(b)) => a == b,
            (Names::Pattern(a), Names::Pattern(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

/// A choice of modules.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// What is meant.
    pub included: Names,
    /// What is not meant although it is included.
    pub excluded: Option<Names>,
    /// Numbers of layers; none for all.
    pub layers: Option<Vec<usize>>,
    /// Names of the lists the numbers count in; empty for any.
    pub layer_lists: Vec<String>,
}

impl Names {
    fn contain(&self, path: &ModulePath) -> bool {
        match self {
            Names::Pattern(pattern) => pattern.is_match(path.as_str()),
            Names::Listed(names) => {
                let path = path.as_str();
                let ends = path.match_indices('.').filter_map(|(at, _)| path.get(at + 1..));
                std::iter::once(path).chain(ends).any(|end| names.contains(end))
            }
        }
    }
}

impl Selection {
    /// Whether a module is meant.
    pub fn contains(&self, path: &ModulePath) -> bool {
        if self.excluded.as_ref().is_some_and(|names| names.contain(path)) || !self.included.contain(path) {
            return false;
        }
        // A pattern, or a module given by its whole path, is not asked for its layer.
        let by_end = matches!(&self.included, Names::Listed(names) if !names.contains(path.as_str()));
        match &self.layers {
            Some(layers) if by_end => self.layer_of(path).is_some_and(|layer| layers.contains(&layer)),
            _ => true,
        }
    }

    /// The first number that follows one of the lists.
    fn layer_of(&self, path: &ModulePath) -> Option<usize> {
        let components: Vec<&str> = path.components().collect();
        // Something follows the number; without named lists, something also comes before the list.
        let first = usize::from(self.layer_lists.is_empty());
        (first..components.len().saturating_sub(2)).find_map(|i| {
            let counted = self.layer_lists.is_empty() || self.layer_lists.iter().any(|l| l == components[i]);
            components[i + 1].parse().ok().filter(|_| counted)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Names {
        Names::Listed(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn modules_are_chosen_as_in_peft() {
        // Each row was evaluated with `check_target_module_exists` of PEFT 0.21.
        let all = |included| Selection { included, excluded: None, layers: None, layer_lists: Vec::new() };
        let layer = |lists: &[&str]| Selection {
            layers: Some(vec![1]),
            layer_lists: lists.iter().map(ToString::to_string).collect(),
            ..all(listed(&["q", "m.layers.0.k"]))
        };
        let pattern = Names::Pattern(Regex::new("^(?:.*layers.0.*q)$").unwrap());
        let without = Selection { excluded: Some(listed(&["layers.1.q"])), ..all(listed(&["q"])) };
        for (selection, path, expected) in [
            (all(listed(&["q"])), "m.layers.0.q", true),
            (all(listed(&["q"])), "m.layers.0.qq", false),
            (all(listed(&["q"])), "q", true),
            (all(pattern), "m.layers.0.q", true),
            (without.clone(), "m.layers.1.q", false),
            (without, "m.layers.2.q", true),
            (layer(&[]), "m.layers.1.q", true),
            (layer(&[]), "m.layers.0.q", false),
            (layer(&[]), "m.layers.0.k", true),
            (layer(&[]), "layers.1.q", false),
            (layer(&["layers"]), "layers.1.q", true),
            (layer(&["h"]), "m.layers.1.q", false),
            (layer(&[]), "m.layers.1.experts.0.q", true),
        ] {
            assert_eq!(selection.contains(&ModulePath::from(path)), expected, "{path}");
        }
    }
}
