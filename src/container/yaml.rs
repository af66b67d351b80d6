//! YAML side files as the JSON values they stand for: bounded in size, aliases and depth, with no key twice.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use crate::error::{Context, Error, Result};

/// Reads a YAML file whose root is a mapping.
pub fn read_object(path: &Path, max_bytes: u64) -> Result<Map<String, Value>> {
    let text = json::read_text(path, max_bytes)?;
    parse_object(&text).in_file(path)
}

/// Parses text whose root is a mapping.
pub fn parse_object(text: &str) -> Result<Map<String, Value>> {
    // The reader has budgets of its own for events, aliases and depth, and takes a key that stands twice for an error.
    let value: Value = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.to_string().lines().next().unwrap_or_default().to_string();
        Error::malformed(format!("not valid YAML: {line}"))
    })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::malformed(format!("expected a YAML mapping, found {}", json::type_name(&other)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_json() {
        let text = "lora_r: 8\nlora_alpha: 16.5\nlora_query: true\ndata:\n  path: ~\n  names: [a, 'b']\n";
        let wanted = r#"{"lora_r":8,"lora_alpha":16.5,"lora_query":true,"data":{"path":null,"names":["a","b"]}}"#;
        assert_eq!(Value::Object(parse_object(text).unwrap()).to_string(), wanted);
    }

    #[test]
    fn what_is_no_mapping_or_too_much_is_refused() {
        let levels = "[".repeat(500);
        let bomb = (1..30).fold("a0: &a0 [x,x]\n".to_string(), |text, n| {
            format!("{text}a{n}: &a{n} [*a{m},*a{m},*a{m},*a{m}]\n", m = n - 1)
        });
        for text in ["- a\n", "a: 1\na: 2\n", "a: [", "\"", &levels, &bomb] {
            assert!(parse_object(text).is_err(), "{text:.40}");
        }
    }
}
