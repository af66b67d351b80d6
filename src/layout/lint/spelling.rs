//! A key of PEFT's as it stands, and as PEFT itself would write it.
//!
//! What `layout/peft/keys.rs` looks through when it reads is told apart here: wrappers of training frameworks, the name
//! of the adapter, prefixes, and the folder of modules that are saved whole.

use crate::layout::peft::keys::{self, PREFIX, Role, WRAPPERS};

/// What stands before the path of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// `base_model.model.`, or `base_model.` for what all modules share.
    Usual,
    /// Nothing of the kind.
    Missing,
    /// More than that.
    Repeated,
}

/// A key taken apart.
#[derive(Clone, Debug)]
pub struct Spelling {
    /// The key as PEFT writes it.
    pub plain: String,
    /// The module, wrapper levels included; of what is saved whole the name of the tensor.
    pub path: String,
    /// The role, none for what is saved whole.
    pub role: Option<String>,
    /// The wrapper of a training framework.
    pub wrapper: Option<String>,
    /// The name of the adapter.
    pub adapter: Option<String>,
    /// What stands before the path.
    pub prefix: Prefix,
    /// Whether `modules_to_save` stands in it.
    pub saved_wrapper: bool,
}

impl Spelling {
    /// Takes a key apart; none where a role is followed by something unknown.
    pub fn of(key: &str, roles: &[Role]) -> Option<Spelling> {
        let mut wrapper = None;
        let mut parts: Vec<&str> = Vec::new();
        for part in key.split('.') {
            if WRAPPERS.contains(&part) { wrapper = Some(part.to_string()) } else { parts.push(part) }
        }
        let (mut whole, mut outer) = (0, 0);
        loop {
            match parts.as_slice() {
                ["base_model", "model", _, ..] => {
                    parts.drain(..2);
                    whole += 1;
                }
                ["module", _, ..] => {
                    parts.drain(..1);
                    wrapper = Some("module".to_string());
                }
                ["base_model", _, ..] => {
                    parts.drain(..1);
                    outer += 1;
                }
                _ => break,
            }
        }
        let at = keys::role_start(&parts, roles);
        let shared = at == Some(0);
        let prefix = match (whole, outer, shared) {
            (1, 0, false) | (0, 1, true) => Prefix::Usual,
            (0, _, _) => Prefix::Missing,
            _ => Prefix::Repeated,
        };
        let Some(at) = at else {
            let (name, saved_wrapper, adapter) = saved(&parts);
            let plain = format!("{PREFIX}{name}");
            return Some(Spelling { plain, path: name, role: None, wrapper, adapter, prefix, saved_wrapper });
        };
        let (path, tail) = (parts.get(..at)?.join("."), parts.get(at..)?);
        let role = keys::role(tail, roles)?;
        let plain = if shared { format!("base_model.{role}") } else { format!("{PREFIX}{path}.{role}") };
        let adapter = tail.iter().skip(1).find(|part| !role.split('.').any(|r| r == **part) && **part != "weight");
        let adapter = adapter.map(|part| (*part).to_string());
        Some(Spelling { plain, path, role: Some(role), wrapper, adapter, prefix, saved_wrapper: false })
    }

    /// The key of a layout other than PEFT's: only as it stands.
    pub fn literal(key: &str) -> Spelling {
        Spelling {
            plain: key.to_string(),
            path: key.to_string(),
            role: None,
            wrapper: None,
            adapter: None,
            prefix: Prefix::Usual,
            saved_wrapper: false,
        }
    }

    /// The module without the levels of wrappers behind it.
    pub fn module(&self) -> &str {
        let mut path = self.path.as_str();
        while let Some(outer) = path.strip_suffix(".base_layer") {
            path = outer;
        }
        path.strip_suffix(".token_adapter").unwrap_or(path)
    }

    /// What tells whether two keys mean one place: PEFT writes the weight under a wrapper as that of the module, too.
    pub fn place(&self) -> String {
        match &self.role {
            Some(role) => format!("{}:{role}", self.path),
            None => self.path.split('.').filter(|c| *c != "base_layer").collect::<Vec<_>>().join("."),
        }
    }
}

/// The name of a whole tensor without `modules_to_save.<adapter>`, whether that was there, and the adapter's name.
fn saved(parts: &[&str]) -> (String, bool, Option<String>) {
    let mut out = Vec::with_capacity(parts.len());
    let (mut found, mut adapter) = (false, None);
    let mut rest = parts.iter().copied().peekable();
    while let Some(part) = rest.next() {
        if part != "modules_to_save" {
            out.push(part);
            continue;
        }
        found = true;
        // What follows is the adapter's name, unless that was left out and the parameter follows at once.
        if rest.clone().count() > 1 {
            adapter = rest.next().map(str::to_string);
        }
    }
    (out.join("."), found, adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: &[Role] =
        &[("lora_A", &["weight"]), ("lora_embedding_A", &[""]), ("lora_magnitude_vector", &[""]), ("vera_A", &[""])];

    #[test]
    fn every_spelling_has_its_plain_form() {
        let p = "base_model.model.";
        for (key, plain, wrapper, adapter, prefix, saved) in [
            ("base_model.model.a.q.lora_A.weight", "a.q.lora_A.weight", false, false, Prefix::Usual, false),
            ("base_model.model.a.q.lora_A.x.weight", "a.q.lora_A.weight", false, true, Prefix::Usual, false),
            ("a.q.lora_A.weight", "a.q.lora_A.weight", false, false, Prefix::Missing, false),
            ("_orig_mod.base_model.model.q.lora_A.weight", "q.lora_A.weight", true, false, Prefix::Usual, false),
            ("module.base_model.model.q.lora_A.weight", "q.lora_A.weight", true, false, Prefix::Usual, false),
            (
                "base_model.model.base_model.model.q.lora_A.weight",
                "q.lora_A.weight",
                false,
                false,
                Prefix::Repeated,
                false,
            ),
            ("base_model.model.e.lora_embedding_A", "e.lora_embedding_A", false, false, Prefix::Usual, false),
            ("base_model.model.e.lora_embedding_A.x", "e.lora_embedding_A", false, true, Prefix::Usual, false),
            (
                "base_model.model.q.lora_magnitude_vector.weight",
                "q.lora_magnitude_vector",
                false,
                false,
                Prefix::Usual,
                false,
            ),
            ("base_model.model.h.modules_to_save.x.weight", "h.weight", false, true, Prefix::Usual, true),
            ("base_model.model.h.modules_to_save.weight", "h.weight", false, false, Prefix::Usual, true),
            ("base_model.model.h.base_layer.weight", "h.base_layer.weight", false, false, Prefix::Usual, false),
            (
                "base_model.model.x.base_layer.lora_A.weight",
                "x.base_layer.lora_A.weight",
                false,
                false,
                Prefix::Usual,
                false,
            ),
        ] {
            let s = Spelling::of(key, ROLES).unwrap();
            let found = (s.plain, s.wrapper.is_some(), s.adapter.is_some(), s.prefix, s.saved_wrapper);
            assert_eq!(found, (format!("{p}{plain}"), wrapper, adapter, prefix, saved), "{key}");
        }
        let shared = Spelling::of("base_model.vera_A", ROLES).unwrap();
        assert_eq!((shared.plain.as_str(), shared.prefix), ("base_model.vera_A", Prefix::Usual));
        assert!(Spelling::of("base_model.model.q.lora_A.a.b.weight", ROLES).is_none());
    }
}
