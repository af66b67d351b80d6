//! PEFT's keys: taking them apart into module path and role.
//!
//! `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` is module `model.layers.0.self_attn.q_proj`, role
//! `lora_A.weight`. Wrappers of training frameworks, a left-over adapter name and doubled prefixes are removed here
//! and nowhere else.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::names::ModulePath;
use crate::tensor::{StateDict, Tensor};

/// Last components of the paths of embeddings.
pub const EMBEDDINGS: [&str; 9] = [
    "embed_tokens",
    "lm_head",
    "wte",
    "embed_in",
    "embed_out",
    "word_embeddings",
    "shared",
    "tok_embeddings",
    "word_embedding",
];

/// Components that training frameworks put into a path and that no model has.
pub const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What stands before the path of a module inside the adapted model.
pub const PREFIX: &str = "base_model.model.";

/// A role's first component and what may follow it (`""`: nothing). An adapter name may stand between the two.
pub type Role = (&'static str, &'static [&'static str]);

/// Roles that any tuner's file may have.
const COMMON_ROLES: &[Role] = &[("trainable_tokens_delta", &[""])];

/// One tensor of a module.
#[derive(Clone, Debug)]
pub struct Part {
    /// The key as it stands in the file.
    pub key: String,
    /// Its values.
    pub tensor: Tensor,
}

/// Where a tensor belongs: the module, and how many `base_layer` levels lie between it and the role.
pub type Place = (ModulePath, usize);

/// The tensors of one module by role.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Path of the module, for messages.
    pub module: String,
    by_role: BTreeMap<String, Part>,
}

impl Parts {
    fn of(module: &ModulePath) -> Parts {
        Parts { module: module.to_string(), by_role: BTreeMap::new() }
    }
}

impl std::ops::Deref for Parts {
    type Target = BTreeMap<String, Part>;

    fn deref(&self) -> &Self::Target {
        &self.by_role
    }
}

impl std::ops::DerefMut for Parts {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.by_role
    }
}

impl IntoIterator for Parts {
    type Item = (String, Part);
    type IntoIter = std::collections::btree_map::IntoIter<String, Part>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_role.into_iter()
    }
}

/// All tensors of a file, sorted by where they belong.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// Tensors with one of the tuner's roles.
    pub tuned: BTreeMap<Place, Parts>,
    /// Tensors of `base_model.<name>` itself, shared by all modules.
    pub shared: Parts,
    /// Tensors without a role: whole parameters that were saved along, by their in-memory name.
    pub saved: BTreeMap<String, Part>,
}

/// True for keys that can only be PEFT's LoRA.
pub fn is_lora_key(key: &str) -> bool {
    key.ends_with(".lora_A.weight") || key.ends_with(".lora_B.weight") || key.contains(".lora_embedding_")
}

impl Modules {
    /// Takes every key apart. Two keys that mean the same are an error.
    pub fn sort(tensors: &StateDict, roles: &[Role]) -> Result<Modules> {
        let mut out = Modules::default();
        for (key, tensor) in tensors {
            let part = Part { key: key.clone(), tensor: tensor.clone() };
            let previous = match take_apart(key, roles)? {
                Found::Role { place, role } => {
                    let parts = out.tuned.entry(place).or_insert_with_key(|(path, _)| Parts::of(path));
                    parts.insert(role, part)
                }
                Found::Shared { role } => out.shared.insert(role, part),
                Found::Saved { name } => out.saved.insert(name, part),
            };
            // A module that is both an embedding and saved whole is written twice by PEFT, with the same values.
            let again = |p: &Part| p.tensor.bytes.as_slice() == tensor.bytes.as_slice();
            if let Some(previous) = previous
                && !again(&previous)
            {
                return Err(Error::malformed(format!("means the same as `{}`", previous.key)).at_key(key));
            }
        }
        Ok(out)
    }

    /// An error that names the first tensor nobody took.
    pub fn require_empty(&self, peft_type: &str) -> Result<()> {
        let tuned = self.tuned.values().flat_map(|parts| parts.values());
        let left: Vec<_> = tuned.chain(self.shared.values()).chain(self.saved.values()).collect();
        let Some(first) = left.first() else { return Ok(()) };
        let more = if left.len() > 1 { format!(" ({} tensors in all)", left.len()) } else { String::new() };
        let shape = &first.tensor.shape;
        Err(Error::unrecognised(format!("a tensor {shape} that {peft_type} has no use for here{more}"))
            .at_key(&first.key))
    }
}

/// The key of the tensor `role` of a module, `depth` wrappers above it.
pub fn tuned(path: &str, depth: usize, role: &str) -> String {
    format!("{PREFIX}{path}{}.{role}", ".base_layer".repeat(depth))
}

/// The key of a tensor that all modules share.
pub fn shared(role: &str) -> String {
    format!("base_model.{role}")
}

/// The key of a tensor saved whole, by its name in memory.
pub fn saved(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// An error where a key that is about to be written would not be taken apart into what it means.
pub fn check(key: &str, roles: &[Role]) -> Result<()> {
    let wrong = |why: &str| Err(Error::unsupported(format!("cannot be named in PEFT's layout: {why}")).at_key(key));
    let Some(rest) = key.strip_prefix(PREFIX) else { return Ok(()) };
    if let Some(part) = rest.split('.').find(|c| WRAPPERS.contains(c) || *c == "modules_to_save") {
        return wrong(&format!("`{part}` is a word of its own there"));
    }
    if ["base_model.", "module."].iter().any(|start| rest.starts_with(start)) {
        return wrong("its first component is a word of its own there");
    }
    take_apart(key, roles).map(drop)
}

enum Found {
    Role { place: Place, role: String },
    Shared { role: String },
    Saved { name: String },
}

fn take_apart(key: &str, roles: &[Role]) -> Result<Found> {
    let mut parts: Vec<&str> = key.split('.').filter(|c| !WRAPPERS.contains(c)).collect();
    let prefixed = parts.first() == Some(&"base_model");
    loop {
        match parts.as_slice() {
            ["base_model", "model", _, ..] => drop(parts.drain(..2)),
            ["module", _, ..] => drop(parts.drain(..1)),
            ["base_model", _, ..] => drop(parts.drain(..1)),
            _ => break,
        }
    }
    let Some(at) = role_start(&parts, roles) else { return Ok(Found::Saved { name: saved_name(&parts) }) };
    let role = role(&parts[at..], roles)
        .ok_or_else(|| Error::unrecognised(format!("`{}` is followed by something unknown", parts[at])).at_key(key))?;
    let mut path = parts[..at].to_vec();
    if path.is_empty() {
        if prefixed {
            return Ok(Found::Shared { role });
        }
        return Err(Error::unrecognised("no module path before the role").at_key(key));
    }
    if role == "trainable_tokens_delta" && path.last() == Some(&"token_adapter") {
        path.pop();
    }
    let mut depth = 0;
    while path.last() == Some(&"base_layer") {
        path.pop();
        depth += 1;
    }
    Ok(Found::Role { place: (ModulePath::from(path.join(".").as_str()), depth), role })
}

/// Where in a key the role begins.
pub fn role_start(parts: &[&str], roles: &[Role]) -> Option<usize> {
    parts.iter().position(|c| roles.iter().chain(COMMON_ROLES).any(|(first, _)| first == c))
}

/// The role without the adapter name; `parts` begin with its first component.
pub fn role(parts: &[&str], roles: &[Role]) -> Option<String> {
    let (name, rest) = parts.split_first()?;
    let (_, tails) = roles.iter().chain(COMMON_ROLES).find(|(first, _)| first == name)?;
    let tail = rest.join(".");
    let shorter = parts.get(2..).unwrap_or(&[]).join(".");
    let accepted = if tails.contains(&tail.as_str()) || tails.contains(&"*") {
        tail
    } else if parts.len() > 1 && tails.contains(&shorter.as_str()) {
        shorter
    } else if tails.contains(&"") && (tail == "weight" || (parts.len() == 3 && shorter == "weight")) {
        String::new()
    } else {
        return None;
    };
    Some(if accepted.is_empty() { (*name).to_string() } else { format!("{name}.{accepted}") })
}

/// The in-memory name of a tensor saved whole: `modules_to_save.<name>` and `base_layer` are PEFT's own.
fn saved_name(parts: &[&str]) -> String {
    let mut out = Vec::with_capacity(parts.len());
    let mut rest = parts.iter().copied().peekable();
    while let Some(part) = rest.next() {
        match part {
            "modules_to_save" => {
                // What follows is the adapter's name, unless that was left out and the parameter follows at once.
                if rest.clone().count() > 1 {
                    rest.next();
                }
            }
            "base_layer" => {}
            _ => out.push(part),
        }
    }
    out.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: &[Role] = &[("lora_A", &["weight"]), ("lora_embedding_A", &[""]), ("lora_magnitude_vector", &[""])];

    fn place_of(key: &str) -> (String, usize, String) {
        match take_apart(key, ROLES).unwrap() {
            Found::Role { place: (path, depth), role } => (path.to_string(), depth, role),
            Found::Saved { name } => (name, 99, String::new()),
            Found::Shared { role } => (String::new(), 0, role),
        }
    }

    #[test]
    fn every_spelling_means_the_same_module() {
        let expected = ("model.layers.0.q_proj".to_string(), 0, "lora_A.weight".to_string());
        for key in [
            "base_model.model.model.layers.0.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.my_style.weight",
            "base_model.model.base_model.model.model.layers.0.q_proj.lora_A.weight",
            "_orig_mod.base_model.model.model.layers.0._checkpoint_wrapped_module.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.q_proj.lora_A.weight",
            "model.layers.0.q_proj.lora_A.weight",
        ] {
            assert_eq!(place_of(key), expected, "{key}");
        }
    }

    #[test]
    fn nested_wrappers_are_counted() {
        let (path, depth, _) = place_of("base_model.model.m.experts.base_layer.base_layer.lora_A.weight");
        assert_eq!((path.as_str(), depth), ("m.experts", 2));
    }

    #[test]
    fn a_role_may_carry_a_trailing_weight() {
        for tail in ["", ".default", ".weight", ".default.weight"] {
            let (_, _, role) = place_of(&format!("base_model.model.q.lora_magnitude_vector{tail}"));
            assert_eq!(role, "lora_magnitude_vector", "{tail}");
        }
    }

    #[test]
    fn whole_parameters_lose_the_wrapper_of_their_module() {
        for key in [
            "base_model.model.lm_head.weight",
            "base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.lm_head.modules_to_save.weight",
            "base_model.model.lm_head.base_layer.weight",
        ] {
            assert_eq!(place_of(key).0, "lm_head.weight", "{key}");
        }
    }
}
