//! What a model's `config.json` says of the model, in the words of [`Facts`].
//!
//! Fields are those of huggingface/transformers, `src/transformers/models/*/configuration_*.py`. A model of several
//! parts has the language model's in an object of its own.

use serde_json::{Map, Value, json};

use crate::adapter::Facts;

/// Where models of several parts keep the config of the language model.
const INNER: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// Reads them; what is not there or is no such value stays unknown.
pub fn of_config(config: &Map<String, Value>) -> Facts {
    let inner = INNER.iter().find_map(|name| config.get(*name)?.as_object());
    let field = |name: &str| inner.and_then(|inner| inner.get(name)).or_else(|| config.get(name));
    let number = |names: &[&str]| {
        let found = names.iter().find_map(|name| field(name)?.as_u64()).and_then(|n| usize::try_from(n).ok());
        found.filter(|n| *n > 0)
    };
    let class = config.get("architectures").or_else(|| field("architectures")).and_then(|all| all.get(0)?.as_str());
    let family = inner.and_then(|inner| inner.get("model_type")).or_else(|| config.get("model_type"));
    let heads = number(&["num_attention_heads", "n_head", "num_heads"]);
    let hidden = number(&["hidden_size", "n_embd", "d_model"]);
    // Falcon has one key head for all where it says so.
    let one = field("multi_query").and_then(Value::as_bool) == Some(true)
        && field("new_decoder_architecture").and_then(Value::as_bool) != Some(true);
    let key_heads = if one { Some(1) } else { number(&["num_key_value_heads", "num_kv_heads"]) };
    let width = number(&["head_dim"]).or_else(|| hidden?.checked_div(heads?));
    Facts {
        class: class.map(str::to_string),
        family: family.and_then(Value::as_str).map(str::to_string),
        heads,
        key_heads: key_heads.or(heads),
        head_width: width,
        hidden,
        intermediate: number(&["intermediate_size", "n_inner", "ffn_dim"]),
        layers: number(&["num_hidden_layers", "n_layer", "num_layers"]),
        experts: number(&["num_local_experts", "num_experts", "n_routed_experts"]),
        vocabulary: number(&["vocab_size"]),
        tied: config.get("tie_word_embeddings").or_else(|| field("tie_word_embeddings")).and_then(Value::as_bool),
    }
}

/// The same in the words of such a config, for files that keep what has to be known of their base; none where nothing is.
pub fn to_config(facts: &Facts) -> Option<Map<String, Value>> {
    let mut out = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            out.insert(name.to_string(), value);
        }
    };
    let number = |number: Option<usize>| number.map(|n| json!(n));
    set("architectures", facts.class.as_ref().map(|class| json!([class])));
    set("head_dim", number(facts.head_width));
    set("hidden_size", number(facts.hidden));
    set("intermediate_size", number(facts.intermediate));
    set("model_type", facts.family.as_ref().map(|family| json!(family)));
    set("num_attention_heads", number(facts.heads));
    set("num_experts", number(facts.experts));
    set("num_hidden_layers", number(facts.layers));
    set("num_key_value_heads", number(facts.key_heads));
    set("tie_word_embeddings", facts.tied.map(|tied| json!(tied)));
    set("vocab_size", number(facts.vocabulary));
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::json;

    #[test]
    fn the_language_model_of_several_parts_is_meant() {
        let text = r#"{"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
            "text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4},
            "vision_config": {"hidden_size": 7}}"#;
        let facts = of_config(&json::parse_object(text).unwrap());
        assert_eq!(facts.family.as_deref(), Some("llama"));
        assert_eq!(facts.class.as_deref(), Some("LlavaForConditionalGeneration"));
        assert_eq!(facts.attention_rows(), Some([64, 64, 64]));
        assert_eq!(facts.tied, None);
        assert_eq!(of_config(&to_config(&facts).unwrap()), facts);
    }

    #[test]
    fn what_makes_no_sense_is_not_known() {
        let text = r#"{"num_attention_heads": 0, "hidden_size": "64", "num_key_value_heads": -2, "vocab_size": 1.5}"#;
        assert_eq!(of_config(&json::parse_object(text).unwrap()), Facts::default());
        assert_eq!(to_config(&Facts::default()), None);
    }
}
