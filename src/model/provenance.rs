//! What was merged into a model, as its files say it: one JSON text under one key of their header metadata.
//!
//! ```json
//! {"tool": "lora-tool 0.1.0", "base": "<hash>", "merged": [{"name": "style", "hash": "<hash>", "strength": 0.8}]}
//! ```
//!
//! Nothing in it depends on the machine or the day, so that the same merge gives the same bytes. Files that no merge
//! changed say less than others: a model's provenance is the longest list that one of its files has.

use serde_json::{Map, Value, json};

use crate::container::{Sharded, json as strict};
use crate::error::{Context, Error, Result};
use crate::tensor::Hash;

/// The key in the metadata of a safetensors file.
pub const KEY: &str = "lora_tool.provenance";

/// What was merged into a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// Name and version of the program that wrote this last.
    pub tool: String,
    /// Fingerprint of the model that the first merge started from.
    pub base: Hash,
    /// Adapters, in the order they were merged in.
    pub merged: Vec<MergedAdapter>,
}

/// One adapter of a provenance.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedAdapter {
    /// What its file or folder was called.
    pub name: String,
    /// Hash of its tensors.
    pub hash: Hash,
    /// The user's multiplier.
    pub strength: f64,
}

/// What the files of a model say together.
#[derive(Debug, Default)]
pub struct Carried {
    /// The longest list.
    pub provenance: Option<Provenance>,
    /// What is odd, with the name of the file.
    pub odd: Vec<(String, String)>,
}

impl Provenance {
    /// Reads the text. Fields of other names are passed over.
    pub fn parse(text: &str) -> Result<Provenance> {
        let map = strict::parse_object(text)?;
        let merged: Vec<Value> = required(&map, "merged", "a list of adapters")?;
        let merged = merged.iter().map(|one| MergedAdapter::read(one).at_key("merged")).collect::<Result<_>>()?;
        Ok(Provenance { tool: required(&map, "tool", "text")?, base: hash(&map, "base")?, merged })
    }

    /// What is written; its text has no spaces.
    pub fn to_json(&self) -> Value {
        let one = |m: &MergedAdapter| json!({ "name": m.name, "hash": m.hash.to_string(), "strength": m.strength });
        let merged: Vec<_> = self.merged.iter().map(one).collect();
        json!({ "tool": self.tool, "base": self.base.to_string(), "merged": merged })
    }

    /// The strengths that an adapter was merged at.
    pub fn strengths_of(&self, hash: Hash) -> Vec<f64> {
        self.merged.iter().filter(|m| m.hash == hash).map(|m| m.strength).collect()
    }

    /// Whether this says the same as `longer`, as far as it goes.
    fn begins(&self, longer: &Provenance) -> bool {
        self.base == longer.base && longer.merged.starts_with(&self.merged)
    }
}

impl MergedAdapter {
    fn read(value: &Value) -> Result<MergedAdapter> {
        let Value::Object(map) = value else { return Err(strict::unexpected(value, "an object")) };
        Ok(MergedAdapter {
            name: required(map, "name", "text")?,
            hash: hash(map, "hash")?,
            strength: required(map, "strength", "a number")?,
        })
    }
}

/// What all files say. One that cannot be understood, or contradicts the others, is odd and left out.
pub fn carried(files: &Sharded) -> Carried {
    let mut all = Vec::new();
    let mut out = Carried::default();
    for shard in &files.shards {
        let Some(text) = shard.contents.metadata.get(KEY) else { continue };
        match Provenance::parse(text) {
            Ok(found) => all.push((&shard.name, found)),
            Err(e) => out.odd.push((shard.name.clone(), format!("{KEY} cannot be read: {e}"))),
        }
    }
    // The first of the longest.
    let longest = all.iter().rev().max_by_key(|(_, p)| p.merged.len()).map(|(_, p)| p.clone());
    if let Some(longest) = &longest {
        let contradicting = all.iter().find(|(_, p)| !p.begins(longest));
        let what = "names other adapters, or another base, than a file of the same model with more of them";
        out.odd.extend(contradicting.map(|(name, _)| ((*name).clone(), format!("{KEY} {what}"))));
    }
    out.provenance = longest;
    out
}

fn required<T: for<'a> serde::Deserialize<'a>>(map: &Map<String, Value>, name: &str, expected: &str) -> Result<T> {
    strict::field(map, name, expected)?.ok_or_else(|| Error::missing(format!("no `{name}`")))
}

fn hash(map: &Map<String, Value>, name: &str) -> Result<Hash> {
    let text: String = required(map, name, "a hash")?;
    Hash::from_hex(&text).ok_or_else(|| strict::unexpected(&json!(text), "64 hexadecimal digits").at_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (a, b) = (hex('a'), hex('b'));
        let text = format!(
            r#"{{"tool":"lora-tool 0.1.0","base":"{a}","merged":[{{"name":"ü \"x\"","hash":"{b}","strength":-0.1}}]}}"#
        );
        let read = Provenance::parse(&text).unwrap();
        assert_eq!(read.to_json().to_string(), text);
        assert_eq!(read.strengths_of(Hash::from_hex(&b).unwrap()), [-0.1]);
        assert_eq!(read.strengths_of(read.base), Vec::<f64>::new());
    }

    #[test]
    fn what_is_something_else_is_refused_with_its_place() {
        let (a, base) = (hex('a'), format!(r#""tool":"t","base":"{}""#, hex('b')));
        let bad = [
            (String::new(), "not valid JSON"),
            ("[]".to_string(), "expected a JSON object"),
            (format!("{{{base}}}"), "no `merged`"),
            (format!(r#"{{{base},"merged":{{}}}}"#), "expected a list of adapters"),
            (format!(r#"{{{base},"merged":[1]}}"#), "merged: found a number `1`, expected an object"),
            (format!(r#"{{{base},"merged":[{{"name":"n","hash":"{a}"}}]}}"#), "no `strength`"),
            (format!(r#"{{{base},"merged":[{{"name":"n","hash":"abc","strength":1}}]}}"#), "64 hexadecimal digits"),
            (format!(r#"{{{base},"base":"{a}","merged":[]}}"#), "stands twice"),
            (format!(r#"{{"tool":1,"base":"{a}","merged":[]}}"#), "tool: found a number `1`, expected text"),
        ];
        for (text, word) in bad {
            let error = Provenance::parse(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
