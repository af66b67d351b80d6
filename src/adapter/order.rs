//! The order in which a model in memory lists its modules. Some tuners number the modules they adapt (TinyLoRA), but
//! files store them by name; so the order is put together again from how transformers writes its models.

use std::cmp::Ordering;

use crate::names::ModulePath;

/// Names in the order a class makes them. Only names in the same list can be compared.
const SIBLINGS: &[&[&str]] = &[
    &["transformer", "model", "base_model", "language_model", "score", "lm_head", "classifier"],
    &["shared", "encoder", "decoder"],
    &["embed_tokens", "embed_positions", "wte", "wpe", "embed", "embeddings", "layers", "layer", "h", "norm"],
    &[
        "self_attn",
        "self_attention",
        "attention",
        "attn",
        "encoder_attn",
        "mlp",
        "intermediate",
        "output",
        "fc1",
        "fc2",
    ],
    &["self_attn", "attn", "gate_proj", "gate_up_proj", "up_proj", "down_proj"],
    &["q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "dense"],
    &["query", "key", "value"],
    &["self", "output"],
    &["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"],
    &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    &["c_attn", "c_fc", "c_proj"],
];

/// BART and its descendants (OPT, Whisper, CLIP) make the query last of the three.
const QUERY_LAST: &[&str] = &["k_proj", "v_proj", "q_proj", "out_proj"];

/// Sorts paths into the order of the model. False where two of them had to be ordered by name for want of a rule.
pub fn sort(paths: &mut [ModulePath]) -> bool {
    let query_last = paths.iter().any(|p| p.leaf() == "out_proj" || is_of_bart(p));
    paths.sort_by(|a, b| compare(a, b, query_last).unwrap_or_else(|| a.cmp(b)));
    paths.windows(2).all(|pair| compare(&pair[0], &pair[1], query_last).is_some())
}

fn is_of_bart(path: &ModulePath) -> bool {
    let components: Vec<_> = path.components().collect();
    let stacked = components.windows(2).any(|w| matches!(w, ["encoder" | "decoder", "layers"]));
    stacked || path.has_component("text_model") || path.has_component("vision_model")
}

/// None where nothing is known.
fn compare(a: &ModulePath, b: &ModulePath, query_last: bool) -> Option<Ordering> {
    let (mut left, mut right) = (a.components(), b.components());
    loop {
        let (x, y) = match (left.next(), right.next()) {
            (Some(x), Some(y)) if x == y => continue,
            (Some(x), Some(y)) => (x, y),
            // A module comes before what is in it.
            (x, y) => return Some(x.is_some().cmp(&y.is_some())),
        };
        if let (Ok(x), Ok(y)) = (x.parse::<u64>(), y.parse::<u64>()) {
            return Some(x.cmp(&y));
        }
        let place = |list: &[&str]| {
            let at = |name| list.iter().position(|n| *n == name);
            Some(at(x)?.cmp(&at(y)?))
        };
        let special = query_last.then(|| place(QUERY_LAST)).flatten();
        return special.or_else(|| SIBLINGS.iter().find_map(|list| place(list)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(paths: &[&str]) -> (Vec<String>, bool) {
        let mut paths: Vec<_> = paths.iter().map(|p| ModulePath::from(*p)).collect();
        let sure = sort(&mut paths);
        (paths.iter().map(ToString::to_string).collect(), sure)
    }

    #[test]
    fn layers_count_as_numbers() {
        let (paths, sure) = sorted(&["model.layers.10.q_proj", "model.layers.2.v_proj", "model.layers.2.q_proj"]);
        assert_eq!(paths, ["model.layers.2.q_proj", "model.layers.2.v_proj", "model.layers.10.q_proj"]);
        assert!(sure);
    }

    #[test]
    fn opt_has_its_query_last() {
        // `OPTAttention.__init__` of transformers: k_proj, v_proj, q_proj, out_proj.
        let base = "model.decoder.layers.0.self_attn";
        let (paths, sure) = sorted(&[&format!("{base}.q_proj"), &format!("{base}.v_proj")]);
        assert_eq!(paths, [format!("{base}.v_proj"), format!("{base}.q_proj")]);
        assert!(sure);
    }

    #[test]
    fn unknown_names_are_ordered_and_reported() {
        let (paths, sure) = sorted(&["b.y", "b.x"]);
        assert_eq!(paths, ["b.x", "b.y"]);
        assert!(!sure);
    }
}
