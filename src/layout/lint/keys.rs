//! Keys: what PEFT or a serving engine would not find, what stands twice, what lacks its partner.

use std::collections::{HashMap, HashSet};

use crate::adapter::Finding;
use crate::adapter::finding::Repair;

use super::spelling::Prefix;
use super::{Key, Seen, codes};

/// The two factors of a product, by the component of the key that tells them apart.
pub(super) const HALVES: [(&str, &str); 9] = [
    ("lora_A", "lora_B"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("lora_a", "lora_b"),
    ("hada_w1_a", "hada_w1_b"),
    ("hada_w2_a", "hada_w2_b"),
    ("lokr_w1_a", "lokr_w1_b"),
    ("lokr_w2_a", "lokr_w2_b"),
    ("hira_A", "hira_B"),
    ("delora_A", "delora_B"),
];
/// What components begin with that name factors, in PEFT and in other layouts.
const FACTOR_WORDS: [&str; 11] =
    ["lora_", "hada_", "lokr_", "ia3_", "oft_", "boft_", "vera_", "hira_", "delora_", "dora_scale", "road_"];

pub(super) fn check(seen: &Seen) -> Vec<Finding> {
    let mut out = no_config(seen);
    if seen.is_peft {
        out.extend(twice(seen));
        let doubled =
            |key: &&Key| key.key != key.spelling.plain && seen.source.tensors.contains_key(&key.spelling.plain);
        out.extend(seen.keys.iter().filter(|key| !doubled(key)).flat_map(spelled));
        out.extend(foreign(seen));
        out.extend(experts(seen));
    }
    out.extend(halves(seen));
    out
}

fn no_config(seen: &Seen) -> Vec<Finding> {
    if !seen.is_peft || seen.source.config.is_some() {
        return Vec::new();
    }
    let what = "no adapter_config.json beside the tensors, and alpha is only there";
    vec![Finding::new(&codes::NO_CONFIG, "", what).hint("put the adapter's config into the same folder")]
}

/// What is not as PEFT writes it.
fn spelled(key: &Key) -> Vec<Finding> {
    let s = &key.spelling;
    if s.role.is_none() && s.path.split('.').any(|c| c == "original_module") {
        let what = "the base's own copy of a module that is trained whole";
        return vec![Finding::new(&codes::ORIGINAL_MODULE, key.key, what).repair(Repair::Drop)];
    }
    let mut out = Vec::new();
    let mut add = |code, what: String| {
        out.push(Finding::new(code, key.key, what).repair(Repair::Rename(s.plain.clone())));
    };
    if let Some(wrapper) = &s.wrapper {
        add(&codes::WRAPPER, format!("`{wrapper}` is no module of the model"));
    }
    match (&s.adapter, s.saved_wrapper) {
        (_, true) => add(&codes::SAVED_WRAPPER, "`modules_to_save` is no module of the model".to_string()),
        (Some(name), false) => add(&codes::ADAPTER_NAME, format!("`{name}` is the name of the adapter")),
        (None, false) => {}
    }
    match s.prefix {
        Prefix::Usual => {}
        Prefix::Missing => add(&codes::NO_PREFIX, "expected `base_model.model.` at the beginning".to_string()),
        Prefix::Repeated => add(&codes::DOUBLED_PREFIX, "expected `base_model.model.` once".to_string()),
    }
    out
}

/// Keys that mean the same.
fn twice(seen: &Seen) -> Vec<Finding> {
    let mut first: HashMap<String, &Key> = HashMap::new();
    let mut out = Vec::new();
    let (plain, other): (Vec<&Key>, Vec<&Key>) =
        seen.keys.iter().filter(|key| !key.broken).partition(|key| key.key == key.spelling.plain);
    for key in plain.into_iter().chain(other) {
        let place = key.spelling.place();
        let Some(other) = first.get(&place) else {
            first.insert(place, key);
            continue;
        };
        if other.tensor != key.tensor {
            let what = format!("means the same as `{}` and has other values", other.key);
            out.push(Finding::new(&codes::TWO_MEANINGS, key.key, what).hint("keep the one that is meant"));
        } else if other.spelling.plain == key.spelling.plain {
            let what = format!("means the same as `{}` and has the same values", other.key);
            out.push(Finding::new(&codes::SAME_TWICE, key.key, what).repair(Repair::Drop));
        }
    }
    out
}

/// Words of another tuner or layout.
fn foreign(seen: &Seen) -> Vec<Finding> {
    let Some(tuner) = seen.tuner else { return Vec::new() };
    let odd = |key: &Key| {
        let is_factor = |c: &&str| FACTOR_WORDS.iter().any(|word| c.starts_with(word));
        let word = key.key.split('.').find(is_factor);
        match (key.broken, word, &key.spelling.role) {
            (true, word, _) => Some(format!("`{}` is followed by something unknown", word.unwrap_or("the role"))),
            (false, Some(word), None) => Some(format!("`{word}` is no word of {} in PEFT", tuner.peft_type)),
            _ => None,
        }
    };
    let finding = |key: &Key| {
        let hint = "is it of another layout or tuner than the config says?";
        Some(Finding::new(&codes::FOREIGN_KEY, key.key, odd(key)?).hint(hint))
    };
    seen.keys.iter().filter_map(finding).collect()
}

/// Factors whose partner is not there.
fn halves(seen: &Seen) -> Vec<Finding> {
    let plain: HashSet<&str> = seen.keys.iter().map(|key| key.spelling.plain.as_str()).collect();
    let missing = |key: &Key| {
        let (this, other) = partner(&key.spelling.plain)?;
        let word = HALVES.iter().find_map(|(a, b)| if *a == this { Some(b) } else { (*b == this).then_some(a) })?;
        (!plain.contains(other.as_str()))
            .then(|| Finding::new(&codes::HALF, key.key, format!("`{this}` without its partner `{word}`")))
    };
    seen.keys.iter().filter(|key| !key.broken).filter_map(missing).collect()
}

/// The component that makes a key half of a pair, and the key of the other half.
pub(super) fn partner(key: &str) -> Option<(&'static str, String)> {
    if key.ends_with(".bias") {
        return None; // a bias has no partner
    }
    let parts: Vec<&str> = key.split('.').collect();
    let both = HALVES.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]);
    let (at, (this, other)) = both
        .filter_map(|(this, other)| Some((parts.iter().rposition(|c| *c == this)?, (this, other))))
        .max_by_key(|(at, _)| *at)?;
    let renamed: Vec<&str> = parts.iter().enumerate().map(|(i, c)| if i == at { other } else { *c }).collect();
    Some((this, renamed.join(".")))
}

/// Experts in forms that not everybody reads.
fn experts(seen: &Seen) -> Vec<Finding> {
    let mut out = Vec::new();
    for (key, role) in seen.tuned() {
        let parts: Vec<&str> = key.spelling.path.split('.').collect();
        if parts.windows(2).any(|pair| pair == ["moe", "experts"]) {
            let what = "transformers has no `moe` between the layer and its experts";
            out.push(Finding::new(&codes::MOE_SEGMENT, key.key, what));
        }
        let is_factor = role == "lora_A.weight" || role == "lora_B.weight";
        if is_factor && parts.contains(&"experts") && key.tensor.shape.rank() == 3 {
            let what = format!("{} under `experts`, expected a matrix", key.tensor.shape);
            out.push(Finding::new(&codes::EXPERTS_3D, key.key, what).hint("write the experts one by one"));
        }
    }
    out
}
