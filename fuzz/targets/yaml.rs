//! YAML, and the same text as JSON: what is accepted is the same when it is written and read again.

use lora_tool::container::{json, yaml};

pub fn one(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(map) = yaml::parse_object(text) {
        let written = yaml::text(&map);
        let again = yaml::parse_object(&written).unwrap_or_else(|e| panic!("{e} in what was written:\n{written}"));
        assert_eq!(again, map, "in what was written:\n{written}");
    }
    if let Ok(map) = json::parse_object(text) {
        let written = json::text(&serde_json::Value::Object(map.clone())).expect("written to memory");
        let again = json::parse_object(std::str::from_utf8(&written).unwrap()).expect("what was written can be read");
        assert_eq!(again, map);
    }
}
