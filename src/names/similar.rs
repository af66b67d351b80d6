//! The name that resembles another most, as a hint for a name that was not found.
//!
//! Names are compared by kind, with their numbers struck out: a large checkpoint has a few dozen kinds, so a hint costs
//! little however many names there are.

/// How alike two names are: the larger, the more.
pub type Likeness = (usize, usize, usize);

/// How alike two names are whose numbers are struck out. `None`: not enough for a hint.
///
/// The end of a name says what the tensor is and weighs most: the parameter and its module have to agree, or else half
/// of all components.
pub fn likeness(wanted: &str, other: &str) -> Option<Likeness> {
    let (a, b): (Vec<&str>, Vec<&str>) = (wanted.split('.').collect(), other.split('.').collect());
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let shared = a.iter().filter(|component| b.contains(component)).count();
    let module_agrees = end >= 2 || (end == 1 && a.len() == 1);
    let enough = module_agrees || (shared * 2 > a.len() && start + end > 1);
    // Of two that agree alike, the shorter has less that was not asked for.
    enough.then(|| (end, shared, usize::MAX - b.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_name_weighs_most() {
        let wanted = "model.layers.#.self_attn.q_proj.weight";
        let best = |others: &[&'static str]| {
            let scored = others.iter().filter_map(|other| Some((likeness(wanted, other)?, *other)));
            scored.max_by_key(|(score, _)| *score).map(|(_, other)| other)
        };
        let same_leaf = "backbone.blocks.#.attn.q_proj.weight";
        let same_start = "model.layers.#.self_attn.k_proj.weight";
        assert_eq!(best(&[same_start, same_leaf]), Some(same_leaf));
        assert_eq!(best(&[same_start, "model.embed_tokens.weight"]), Some(same_start));
        assert_eq!(best(&["model.embed_tokens.weight", "model.norm.weight"]), None);
    }
}
