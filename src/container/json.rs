//! JSON side files: bounded in size and depth, with no key twice, and in the order they were written.

use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Context, Error, Kind, Result};
use crate::limits;

/// Levels of keys that an error names.
const MAX_NAMED_DEPTH: usize = 3;
const MAX_SHOWN_BYTES: usize = 60;

/// Reads a JSON file whose root is an object.
pub fn read_object(path: &Path, max_bytes: u64) -> Result<Map<String, Value>> {
    let text = read_text(path, max_bytes)?;
    parse_object(&text).in_file(path)
}

/// Parses text whose root is an object.
pub fn parse_object(text: &str) -> Result<Map<String, Value>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Strict::default().deserialize(&mut json).and_then(|v| json.end().map(|()| v));
    match value.map_err(|e| error(&e))? {
        Value::Object(map) => Ok(map),
        other => Err(Error::malformed(format!("expected a JSON object, found {}", type_name(&other)))),
    }
}

fn error(e: &serde_json::Error) -> Error {
    Error::new(kind(e), format!("not valid JSON: {e}"))
}

/// Of an error of the parser: a limit where it went too deep.
pub(super) fn kind(e: &impl fmt::Display) -> Kind {
    let text = e.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    if what.ends_with(&too_deep()) { Kind::Limit } else { Kind::Malformed }
}

fn too_deep() -> String {
    format!("nested deeper than {} levels", limits::JSON_DEPTH)
}

/// The text of a JSON file: two spaces of indentation and a final line break, as transformers writes it.
pub fn text(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::malformed(e.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

/// What a value is, in words for messages.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The text of a side file: regular, at most this long, UTF-8 without a mark.
pub(super) fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let fail = |e: std::io::Error| Error::io("cannot read", e).in_file(path);
    let about = std::fs::metadata(path).map_err(fail)?;
    if !about.is_file() {
        return Err(Error::unsupported("not a regular file").in_file(path));
    }
    if about.len() > max_bytes {
        return Err(Error::limit(format!("{} bytes", about.len()), max_bytes).in_file(path));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(fail)?.take(max_bytes).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        return Err(Error::malformed("begins with a byte-order mark, expected plain JSON").in_file(path));
    }
    String::from_utf8(bytes)
        .map_err(|e| Error::malformed(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())).in_file(path))
}

/// Builds a value, refuses a key that stands twice, which `serde_json` itself takes in silence, and says at which key
/// a fault is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strict {
    depth: usize,
}

impl Strict {
    fn inner<E: serde::de::Error>(self) -> std::result::Result<Strict, E> {
        if self.depth == limits::JSON_DEPTH {
            return Err(E::custom(too_deep()));
        }
        Ok(Strict { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> std::result::Result<Value, E> {
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }
    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(v.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut out = Vec::new();
        while let Some(v) = seq.next_element_seed(inner)? {
            out.push(v);
        }
        Ok(Value::Array(out))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            // The position at the end of the inner message is recognised there and not repeated.
            let value = map.next_value_seed(inner).map_err(|e| match self.depth {
                0..MAX_NAMED_DEPTH => A::Error::custom(format!("`{}`: {e}", shown(&key))),
                _ => e,
            })?;
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("key `{}` stands twice", shown(&key))));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// A value of a typed field, with a message that says what was found instead.
pub fn field<T: for<'a> Deserialize<'a>>(map: &Map<String, Value>, name: &str, expected: &str) -> Result<Option<T>> {
    match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|_| unexpected(value, expected).at_key(name)),
    }
}

/// An error that shows a value and says what should stand there.
pub fn unexpected(value: &Value, expected: &str) -> Error {
    let found = match value {
        Value::Null => "null".to_string(),
        other => format!("{} `{}`", type_name(other), shown(&other.to_string())),
    };
    Error::malformed(format!("found {found}, expected {expected}"))
}

/// The start of a long text.
fn shown(text: &str) -> String {
    let cut = text.floor_char_boundary(MAX_SHOWN_BYTES);
    if cut < text.len() { format!("{}…", &text[..cut]) } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_keys_stand_once() {
        let map = parse_object(r#"{"b": 1, "a": [true, null, 2.5]}"#).unwrap();
        assert_eq!(map.keys().collect::<Vec<_>>(), ["b", "a"]);
        for bad in [r#"{"r": 1, "r": 2}"#, r#"{"x": {"r": 1, "\u0072": 2}}"#, "[1]", "{} x", "{\"r\": NaN}", ""] {
            assert!(parse_object(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(70), "]".repeat(70));
        let fault = parse_object(&deep).unwrap_err();
        assert!(fault.what().contains("deeper"));
        assert_eq!(fault.kind(), Kind::Limit);
        let named = parse_object(r#"{"nested deeper than 64 levels": }"#).unwrap_err();
        assert_eq!(named.kind(), Kind::Malformed);
    }

    #[test]
    fn a_wrong_type_is_named() {
        let map = parse_object(r#"{"r": "8"}"#).unwrap();
        let e = field::<u32>(&map, "r", "a whole number").unwrap_err();
        assert_eq!(e.to_string(), "r: found a string `\"8\"`, expected a whole number");
    }
}
