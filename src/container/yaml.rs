//! YAML side files as the JSON values they stand for: bounded in size, aliases and depth, with no key twice; and written,
//! one line for each key of the outermost mapping.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use crate::error::{Context, Error, Result};

/// Mappings deeper than this are written on one line.
const MAX_DEPTH: usize = 32;

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

/// A mapping as YAML that both generations of the language read the same: block style, texts in double quotes.
pub fn text(map: &Map<String, Value>) -> String {
    if map.is_empty() {
        return "{}\n".into();
    }
    let mut out = String::new();
    write_map(map, 0, &mut out);
    out
}

fn write_map(map: &Map<String, Value>, depth: usize, out: &mut String) {
    for (name, value) in map {
        out.push_str(&"  ".repeat(depth));
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        // A name such as `on`, `null` or `1e3` would be no text.
        let word = plain && name.len() > 3 && name != "null" && name != "true" && name != "false";
        let word = word && name.starts_with(|c: char| c.is_ascii_alphabetic());
        if word {
            out.push_str(name);
        } else {
            out.push_str(&Value::from(name.as_str()).to_string());
        }
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() && depth < MAX_DEPTH => {
                out.push('\n');
                write_map(inner, depth + 1, out);
            }
            other => {
                out.push(' ');
                write_flow(other, out);
                out.push('\n');
            }
        }
    }
}

/// What is no mapping, as JSON, which is YAML as well.
fn write_flow(value: &Value, out: &mut String) {
    match value {
        Value::Number(number) => out.push_str(&number_text(&number.to_string())),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_flow(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// With a point and the sign of the exponent, without which YAML 1.1 takes a number for text.
fn number_text(json: &str) -> String {
    let Some((digits, exponent)) = json.split_once(['e', 'E']) else { return json.to_string() };
    let point = if digits.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['+', '-']) { "" } else { "+" };
    format!("{digits}{point}e{sign}{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let json = r#"{"a": {"b": {"lora_alpha": 16, "1e-5": 1e-5}, "empty": {}}, "on": true, "null": null,
            "names": ["x: y", "- z", {"inner": 1.5e20}], "text": "two\nlines \u0001 'q' \"r\" # no", "no": "no"}"#;
        let map = json::parse_object(json).unwrap();
        assert_eq!(parse_object(&text(&map)).unwrap(), map);
        assert_eq!(number_text("1e-5"), "1.0e-5");
        for (odd, json) in [("{}", "{}"), ("<<: ", "{}"), (r#""<<": {a: 1}"#, r#"{"<<": {"a": 1}}"#)] {
            let map = parse_object(odd).unwrap();
            assert_eq!(parse_object(&text(&map)).unwrap(), map);
            assert_eq!(map, json::parse_object(json).unwrap(), "{odd}");
        }
    }

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
