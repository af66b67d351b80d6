//! What of a base decides how its weights lie in GGUF: the words for it in [`crate::adapter::Adapter::about`], and where
//! its `config.json` says it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The class of transformers, or llama.cpp's name.
pub const ARCHITECTURE: &str = "architecture";
/// Heads of the queries.
pub const HEADS: &str = "num_attention_heads";
/// Heads of keys and values.
pub const KEY_HEADS: &str = "num_key_value_heads";
/// Granite 4 without experts and state spaces: a class of its own here, since it becomes another architecture.
pub const GRANITE_DENSE: &str = "GraniteMoeHybridForCausalLM, dense";
/// Experts of a layer.
pub const EXPERTS: &str = "num_experts";
/// Heads of the keys of linear attention.
pub const LINEAR_KEY_HEADS: &str = "linear_num_key_heads";
/// Rows of each of them.
pub const LINEAR_KEY_WIDTH: &str = "linear_key_head_dim";
/// Heads of the values of linear attention.
pub const LINEAR_VALUE_HEADS: &str = "linear_num_value_heads";
/// Rows of all of them together.
pub const LINEAR_VALUE_ROWS: &str = "linear_value_rows";
/// Rows that the gate of Falcon-H1's state space has, and its inputs.
pub const MAMBA_ROWS: &str = "mamba_d_ssm";
/// Heads of the state space.
pub const MAMBA_HEADS: &str = "mamba_n_heads";
/// Rows of each of the state space's B and C.
pub const MAMBA_STATE_ROWS: &str = "mamba_state_rows";
/// Multipliers of Falcon-H1, which its conversion puts into the weights. Those of a list have their number behind it.
const MULTIPLIERS: &[&str] = &[
    "attention_in_multiplier",
    "attention_out_multiplier",
    "key_multiplier",
    "ssm_in_multiplier",
    "ssm_out_multiplier",
    "lm_head_multiplier",
    "embedding_multiplier",
    "mlp_multipliers",
    "ssm_multipliers",
];
/// The numbers above as the base's own GGUF file has them, behind the architecture's name.
pub const KEYS: &[(&str, &str)] = &[
    ("attention.head_count", HEADS),
    ("attention.head_count_kv", KEY_HEADS),
    ("ssm.group_count", LINEAR_KEY_HEADS),
    ("ssm.state_size", LINEAR_KEY_WIDTH),
    ("ssm.time_step_rank", LINEAR_VALUE_HEADS),
    ("ssm.inner_size", LINEAR_VALUE_ROWS),
];

/// What a model's `config.json` says, in the words of [`crate::adapter::Adapter::about`].
pub fn of_config(config: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = config.get("text_config").and_then(Value::as_object);
    let field = |name: &str| text.and_then(|text| text.get(name)).or_else(|| config.get(name));
    let number = |names: &[&str]| names.iter().find_map(|name| field(name)?.as_u64());
    let of_classes = |model: &Map<String, Value>| Some(model.get("architectures")?.get(0)?.as_str()?.to_string());
    let class = text.and_then(of_classes).or_else(|| of_classes(config)).map(|class| converted(class, &field));
    let heads = number(&[HEADS, "n_head", "n_heads"]);
    let value_rows =
        number(&[LINEAR_VALUE_HEADS]).and_then(|heads| heads.checked_mul(number(&["linear_value_head_dim"])?));
    let state_rows = number(&["mamba_n_groups"]).and_then(|groups| groups.checked_mul(number(&["mamba_d_state"])?));
    let found = [
        (HEADS, heads),
        (KEY_HEADS, falcon_keys(&field, heads).or_else(|| number(&[KEY_HEADS])).or(heads)),
        (EXPERTS, number(&["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])),
        (LINEAR_KEY_HEADS, number(&[LINEAR_KEY_HEADS])),
        (LINEAR_KEY_WIDTH, number(&[LINEAR_KEY_WIDTH])),
        (LINEAR_VALUE_HEADS, number(&[LINEAR_VALUE_HEADS])),
        (LINEAR_VALUE_ROWS, value_rows),
        (MAMBA_ROWS, number(&[MAMBA_ROWS])),
        (MAMBA_HEADS, number(&[MAMBA_HEADS])),
        (MAMBA_STATE_ROWS, state_rows),
    ];
    let numbers = found.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?.to_string())));
    let multipliers = MULTIPLIERS.iter().filter(|_| class.as_deref() == Some("FalconH1ForCausalLM"));
    let multipliers = multipliers.flat_map(|name| of_list(name, field(name)));
    class.clone().map(|class| (ARCHITECTURE.to_string(), class)).into_iter().chain(numbers).chain(multipliers).collect()
}

/// A number under its name, or the numbers of a list, each with its own behind the name.
fn of_list(name: &str, value: Option<&Value>) -> Vec<(String, String)> {
    let number = |value: &Value| value.as_f64().map(|number| number.to_string());
    match value {
        Some(Value::Array(all)) => {
            let one = |(at, value): (usize, &Value)| Some((format!("{name}.{at}"), number(value)?));
            all.iter().enumerate().filter_map(one).collect()
        }
        Some(value) => number(value).map(|number| (name.to_string(), number)).into_iter().collect(),
        None => Vec::new(),
    }
}

/// The architecture a class becomes, where that depends on the model: Granite 4 without state spaces is what Granite was
/// before, and Nemotron-H with experts another one.
fn converted<'a>(class: String, field: &dyn Fn(&str) -> Option<&'a Value>) -> String {
    let layers = field("layer_types").or_else(|| field("layers_block_type")).and_then(Value::as_array);
    let is_hybrid =
        layers.is_none_or(|layers| layers.iter().any(|layer| layer != "attention" && layer != "full_attention"));
    let experts = field("num_experts_per_tok").and_then(Value::as_u64);
    match class.as_str() {
        "GraniteMoeHybridForCausalLM" if !is_hybrid && experts.is_some_and(|count| count > 0) => {
            "granitemoe".to_string()
        }
        "GraniteMoeHybridForCausalLM" if !is_hybrid => GRANITE_DENSE.to_string(),
        "NemotronHForCausalLM" if experts.is_some() => "nemotron_h_moe".to_string(),
        _ => class,
    }
}

/// Heads of Falcon's keys: its first models have one for all queries or one for each, whatever `num_kv_heads` says.
fn falcon_keys<'a>(field: &dyn Fn(&str) -> Option<&'a Value>, heads: Option<u64>) -> Option<u64> {
    let says = |name: &str| field(name).and_then(Value::as_bool);
    match (says("new_decoder_architecture"), says("multi_query")) {
        (None, None) => None,
        (Some(true), _) => field("num_kv_heads").or_else(|| field("n_head_kv")).and_then(Value::as_u64),
        (_, Some(true)) => Some(1),
        _ => heads,
    }
}

/// A number out of [`crate::adapter::Adapter::about`].
pub fn number(about: &BTreeMap<String, String>, name: &str) -> Option<usize> {
    about.get(name)?.parse().ok().filter(|n| *n > 0)
}

/// A multiplier out of [`crate::adapter::Adapter::about`].
pub fn multiplier(about: &BTreeMap<String, String>, name: &str) -> Option<f64> {
    about.get(name)?.parse().ok().filter(|n: &f64| n.is_finite() && *n != 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(config: &str, word: &str) -> Option<String> {
        of_config(serde_json::from_str::<Value>(config).unwrap().as_object().unwrap()).remove(word)
    }

    #[test]
    fn the_keys_of_falcon_are_those_of_its_weights() {
        for (config, keys) in [
            (
                r#"{"num_attention_heads": 71, "num_kv_heads": 71, "multi_query": true, "new_decoder_architecture": false}"#,
                "1",
            ),
            (r#"{"n_head": 64, "num_kv_heads": 64, "multi_query": false, "new_decoder_architecture": false}"#, "64"),
            (
                r#"{"num_attention_heads": 128, "num_kv_heads": 8, "multi_query": true, "new_decoder_architecture": true}"#,
                "8",
            ),
            (r#"{"num_attention_heads": 32}"#, "32"),
        ] {
            assert_eq!(said(config, KEY_HEADS).as_deref(), Some(keys), "{config}");
        }
    }

    #[test]
    fn granite_without_state_spaces_is_another_architecture() {
        let class = |layers: &str, experts: usize| {
            let config = format!(
                r#"{{"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": {layers}, "num_experts_per_tok": {experts}}}"#
            );
            said(&config, ARCHITECTURE).unwrap()
        };
        assert_eq!(class(r#"["mamba", "attention"]"#, 0), "GraniteMoeHybridForCausalLM");
        assert_eq!(class(r#"["attention", "full_attention"]"#, 0), GRANITE_DENSE);
        assert_eq!(class(r#"["attention"]"#, 8), "granitemoe");
    }

    #[test]
    fn lists_are_taken_apart() {
        let config =
            r#"{"architectures": ["FalconH1ForCausalLM"], "mlp_multipliers": [0.5, 3], "key_multiplier": 0.25}"#;
        assert_eq!(said(config, "mlp_multipliers.1").as_deref(), Some("3"));
        assert_eq!(said(config, "key_multiplier").as_deref(), Some("0.25"));
    }
}
