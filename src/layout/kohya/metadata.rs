//! Header metadata: what the trainer said is carried, what this program adds has its own prefix, and what depends on the
//! tensors is told anew when the file is written.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::names::{Resolver, Spelling};
use super::{NAME, hashes, keys};
use crate::adapter::{Adapter, Delta, ScaleRule};
use crate::container::json;
use crate::error::{Context, Result};
use crate::layout::Draft;
use crate::layout::source::BASE_FINGERPRINT;

/// What stands before the name of what an adapter says about itself and sd-scripts has no key for.
pub const ABOUT: &str = "lora_tool.about.";
/// Paths of modules whose names do not tell them, as a JSON object by name.
pub const PATHS: &str = "lora_tool.paths";

/// Names of fields that are carried and never written.
const PREFIXES: &str = "prefixes";
const NAMES: &str = "names";
const OTHER_WORDS: &str = "other_words";
const DESCRIBED: &str = "described";

const MODEL_HASH: &str = "sshs_model_hash";
const LEGACY_HASH: &str = "sshs_legacy_hash";
const SPEC_HASH: &str = "modelspec.hash_sha256";
const DIM: &str = "ss_network_dim";
const ALPHA: &str = "ss_network_alpha";
const MODULE: &str = "ss_network_module";

/// What is carried of a file beside its metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// How modules are called.
    pub spelling: Spelling,
    /// Paths of vectors that are called `diff`, and of lone biases that are called `b_norm`.
    pub other_words: Vec<String>,
    /// Rank and alpha of the factors as [`described`].
    pub described: Option<[String; 2]>,
}

impl Memory {
    /// As fields.
    pub fn fields(&self) -> Vec<(String, String)> {
        let (prefixes, names) = self.spelling.to_json();
        let fields = [(PREFIXES, prefixes), (NAMES, names), (OTHER_WORDS, json!(self.other_words))];
        let described = self.described.as_ref().map(|described| (DESCRIBED, json!(described)));
        fields.into_iter().chain(described).map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// What an adapter carries, if it comes from such a file.
    pub fn of(adapter: &Adapter) -> Memory {
        if adapter.carried.layout != NAME {
            return Memory::default();
        }
        let text = |name: &str| adapter.carried.fields.iter().find(|(field, _)| field == name).map(|(_, text)| text);
        let map = |name: &str| text(name).and_then(|text| json::parse_object(text).ok()).unwrap_or_default();
        let list = |name: &str| text(name).and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
        Memory {
            spelling: Spelling::of_json(&map(PREFIXES), &map(NAMES)),
            other_words: list(OTHER_WORDS).unwrap_or_default(),
            described: list(DESCRIBED).and_then(|described| described.try_into().ok()),
        }
    }
}

/// The adapter of a file with all that it carries, under names that begin otherwise.
pub fn respelled(adapter: &Adapter, prefixes: Vec<(String, String)>) -> Adapter {
    let mut out = adapter.clone();
    out.carried.layout = NAME.to_string();
    let old = Memory::of(&out);
    let mut spelling = Spelling::default();
    spelling.fill(prefixes);
    let names = adapter.targets.keys().map(|path| (old.spelling.name(path.as_str()), spelling.name(path.as_str())));
    let names: HashMap<_, _> = names.collect();
    for (key, _) in &mut out.carried.tensors {
        let new = keys::split(key).and_then(|(module, suffix)| Some(format!("{}.{suffix}", names.get(module)?)));
        *key = new.unwrap_or_else(|| key.clone());
    }
    out.carried.fields = Memory { spelling, ..old }.fields();
    out
}

/// Paths that a file names.
pub fn paths(metadata: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let Some((_, text)) = metadata.iter().find(|(key, _)| key == PATHS) else { return Ok(BTreeMap::new()) };
    let map = json::parse_object(text).at_key(PATHS)?;
    let one = |(name, value): (&String, &Value)| {
        let path = value.as_str().ok_or_else(|| json::unexpected(value, "a path").at_key(PATHS))?;
        Ok((name.clone(), path.to_string()))
    };
    map.iter().map(one).collect()
}

/// Rank and alpha of all factors in the words of sd-scripts: a number, `Dynamic` where they differ; none without
/// factors.
pub fn described(adapter: &Adapter) -> Option<[String; 2]> {
    let of = |delta: &Delta| {
        let (rank, scale) = match delta {
            Delta::LowRank(d) => (d.rank(), d.scale),
            Delta::Tucker(d) => (d.rank(), d.scale),
            Delta::Hadamard(d) => (d.w1.rank(), d.scale),
            _ => return None,
        };
        let is_alpha = scale.rule == ScaleRule::AlphaOverRank;
        Some((rank.to_string(), if is_alpha { scale.alpha } else { scale.factor(rank) * rank as f64 }.to_string()))
    };
    let mut all = adapter.targets.values().flat_map(|target| &target.weight).filter_map(of);
    let (mut rank, mut alpha) = all.next()?;
    for (other_rank, other_alpha) in all {
        for (found, other) in [(&mut rank, other_rank), (&mut alpha, other_alpha)] {
            if *found != other {
                *found = "Dynamic".to_string();
            }
        }
    }
    Some([rank, alpha])
}

/// The metadata of a file with modules of these names and paths. Hashes come later, in [`seal`].
pub fn written(
    adapter: &Adapter,
    memory: &Memory,
    modules: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>> {
    let carried = &adapter.carried;
    let own = carried.layout == NAME;
    let keep =
        |key: &str| (own || key != "format") && key != BASE_FINGERPRINT && key != PATHS && !key.starts_with(ABOUT);
    let mut out: Vec<_> = carried.metadata.iter().filter(|(key, _)| keep(key)).cloned().collect();
    let mut set = |key: &str, text: String| match out.iter_mut().find(|(found, _)| found == key) {
        Some((_, old)) => *old = text,
        None => out.push((key.to_string(), text)),
    };
    let now = described(adapter);
    if let Some([rank, alpha]) = now.clone().filter(|_| !own || now != memory.described) {
        set(DIM, rank);
        set(ALPHA, alpha);
    }
    if !own {
        let plain = |delta: &Delta| matches!(delta, Delta::LowRank(_));
        let plain =
            adapter.targets.values().all(|t| t.weight.iter().all(plain) && t.bias.is_empty() && t.magnitude.is_none());
        set(MODULE, if plain { "networks.lora" } else { "lycoris.kohya" }.to_string());
        set(MODEL_HASH, String::new());
        set(LEGACY_HASH, String::new());
    }
    for (name, text) in adapter.about.iter().filter(|(name, _)| *name != BASE_FINGERPRINT) {
        set(&format!("{ABOUT}{name}"), text.clone());
    }
    let resolver = Resolver::known(adapter.spelling);
    let untold: Map<String, Value> = modules
        .iter()
        .filter(|(name, path)| resolver.path(name) != **path)
        .map(|(n, p)| (n.clone(), json!(p)))
        .collect();
    if !untold.is_empty() {
        set(PATHS, Value::Object(untold).to_string());
    }
    if let Some(base) = adapter.about.get(BASE_FINGERPRINT) {
        set(BASE_FINGERPRINT, base.clone());
    }
    Ok(out)
}

/// Puts the hashes of the tensors where the metadata has any: that of sd-scripts, whichever a trainer had there. One
/// that cannot be told is left out.
pub fn seal(draft: &mut Draft) -> Result<()> {
    let has = |draft: &Draft, key: &str| draft.metadata.iter().any(|(found, _)| found == key);
    let mut new = Vec::new();
    if has(draft, MODEL_HASH) || has(draft, SPEC_HASH) {
        let hash = hashes::model(&draft.tensors);
        new.push((SPEC_HASH, Some(format!("0x{hash}"))));
        new.push((MODEL_HASH, Some(hash)));
    }
    if has(draft, LEGACY_HASH) {
        new.push((LEGACY_HASH, hashes::legacy(&draft.tensors, &draft.metadata)?));
    }
    for (key, hash) in new {
        let Some(hash) = hash else {
            draft.metadata.retain(|(found, _)| found != key);
            continue;
        };
        for (_, old) in draft.metadata.iter_mut().filter(|(found, _)| found == key) {
            old.clone_from(&hash);
        }
    }
    Ok(())
}
