//! `adapter_config.json` of AdapterHub: which method, rank and alpha, and what says how it was trained.

use serde_json::{Map, Value};

use crate::adapter::Note;
use crate::container::json;
use crate::error::{Context, Error, Result};

/// Fields beside the method's config.
const OUTER: [&str; 8] =
    ["config", "hidden_size", "model_type", "model_name", "model_class", "name", "version", "config_id"];
/// Fields of the method that choose modules or say how it was trained, and those that are read below.
const INNER: [&str; 18] = [
    "alpha",
    "architecture",
    "attn_matrices",
    "composition_mode",
    "dropout",
    "dtype",
    "init_weights",
    "init_weights_seed",
    "intermediate_lora",
    "leave_out",
    "output_lora",
    "r",
    "selfattn_lora",
    "use_dora",
    "use_gating",
    "vera_b",
    "vera_d",
    "cross_adapter",
];
/// What the fields stand for where they are not there.
const DEFAULT: f64 = 8.0;

/// How factors change a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A product is added.
    Add,
    /// Outputs are multiplied, as (IA)³ does.
    Scale,
}

/// What the config says of the mathematics.
#[derive(Clone, Debug)]
pub struct Config {
    /// How it acts.
    pub mode: Mode,
    /// Rank of each group of factors.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether rows keep magnitudes of their own.
    pub dora: bool,
    /// Whether the factors are shared by all modules.
    pub vera: bool,
    /// Which of query, key and value are adapted where they are one layer.
    pub attention: [bool; 3],
    /// The family of the base.
    pub family: Option<String>,
    /// The name of the base.
    pub base: Option<String>,
}

/// True for a config that only AdapterHub writes.
pub fn is_ours(raw: &Map<String, Value>) -> bool {
    let inner = raw.get("config").is_some_and(|inner| inner.is_object() || inner.is_string());
    inner && ["model_type", "model_class", "name"].iter().any(|name| raw.contains_key(*name))
}

impl Config {
    /// Reads it; what is not known is noted.
    pub fn read(raw: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Config> {
        let inner = match raw.get("config") {
            Some(Value::Object(inner)) => inner,
            Some(other) => return Err(json::unexpected(other, "the config of a method").at_key("config")),
            None => return Err(Error::missing("no `config`, expected the config of a method")),
        };
        let architecture: Option<String> = field(inner, "architecture", "a word")?;
        match architecture.as_deref() {
            Some("lora") => {}
            Some("mtl_lora") => {
                let what = "MTL-LoRA, whose factors are mixed by task, so that it is no change of a weight";
                return Err(Error::unsupported(what).at_key("config.architecture"));
            }
            None | Some("bottleneck") => {
                let what = "a bottleneck adapter, which is a module of its own and no change of a weight";
                return Err(Error::unsupported(what).at_key("config.architecture"));
            }
            Some(other) => {
                let what = format!("`{other:.40}`, which is no change of weights that can be read here, expected lora");
                return Err(Error::unsupported(what).at_key("config.architecture"));
            }
        }
        if field(inner, "use_gating", "true or false")? == Some(true) {
            let what = "gates that depend on the input, so that it is no change of a weight";
            return Err(Error::unsupported(what).at_key("config.use_gating"));
        }
        let mode: Option<String> = field(inner, "composition_mode", "add or scale")?;
        let mode = match mode.as_deref() {
            None | Some("add") => Mode::Add,
            Some("scale") => Mode::Scale,
            Some(other) => {
                let what = format!("`{other:.40}`, expected add or scale");
                return Err(Error::unsupported(what).at_key("config.composition_mode"));
            }
        };
        let rank = field::<usize>(inner, "r", "a whole number")?.unwrap_or(DEFAULT as usize);
        if rank == 0 || mode == Mode::Scale && rank != 1 {
            return Err(
                Error::mismatch(format!("rank {rank}, expected at least 1, and 1 with `scale`")).at_key("config.r")
            );
        }
        let alpha = field::<f64>(inner, "alpha", "a number")?.unwrap_or(DEFAULT);
        let letters: Vec<String> = field(inner, "attn_matrices", "a list of letters")?.unwrap_or_default();
        let unknown = |raw: &Map<String, Value>, known: &[&str], prefix: &str, notes: &mut Vec<Note>| {
            for name in raw.keys().filter(|name| !known.contains(&name.as_str())) {
                notes.push(Note::lossy(format!("{prefix}{name}"), "a field that is not known here; passed over"));
            }
        };
        unknown(raw, &OUTER, "", notes);
        unknown(inner, &INNER, "config.", notes);
        let text = |name: &str| raw.get(name).and_then(Value::as_str).map(str::to_string);
        let float = |name| Ok(field::<f64>(inner, name, "a number")?.is_some());
        let mut config = Config {
            mode,
            rank,
            alpha,
            dora: field(inner, "use_dora", "true or false")?.unwrap_or(false),
            vera: float("vera_d")? || float("vera_b")?,
            attention: ["q", "k", "v"].map(|letter| letters.iter().any(|own| own == letter)),
            family: text("model_type"),
            base: text("model_name"),
        };
        if text("version").is_some_and(|version| scaled_wrongly(&version)) && config.alpha != config.rank as f64 {
            let what =
                format!("{alpha} had no effect in the version it was trained with; {rank} taken, as `adapters` does");
            notes.push(Note::info("config.alpha", what));
            config.alpha = config.rank as f64;
        }
        Ok(config)
    }
}

/// Versions before 1.1.0 left alpha out (adapter-hub/adapters#770).
fn scaled_wrongly(version: &str) -> bool {
    let Some(version) = version.strip_prefix("adapters.") else { return false };
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let first = [numbers.next(), numbers.next()].map(|n| n.and_then(std::result::Result::ok));
    match first {
        [Some(major), Some(minor)] => {
            (major, minor) < (1, 1) || (major, minor) == (1, 1) && version.starts_with("1.1.0.dev")
        }
        _ => false,
    }
}

fn field<T: for<'a> serde::Deserialize<'a>>(map: &Map<String, Value>, name: &str, expected: &str) -> Result<Option<T>> {
    let found = json::field(map, name, expected);
    found.map_err(|e| Error::new(e.kind(), e.what())).at_key(format!("config.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Result<Config>, Vec<Note>) {
        let mut notes = Vec::new();
        (Config::read(&json::parse_object(text).unwrap(), &mut notes), notes)
    }

    #[test]
    fn old_versions_had_no_alpha() {
        let config = |version: &str| {
            let text =
                format!(r#"{{"config": {{"architecture": "lora", "r": 4, "alpha": 16}}, "version": "{version}"}}"#);
            read(&text).0.unwrap().alpha
        };
        for version in ["adapters.0.2.1", "adapters.1.0.1", "adapters.1.1.0.dev0"] {
            assert_eq!(config(version), 4.0, "{version}");
        }
        for version in ["adapters.1.1.0", "adapters.1.10.0", "adapters.2.0.0", "3.2.1", "adapters.x"] {
            assert_eq!(config(version), 16.0, "{version}");
        }
    }

    #[test]
    fn what_is_not_known_is_noted() {
        let (config, notes) = read(r#"{"config": {"architecture": "lora", "new": 1}, "also": 2, "name": "a"}"#);
        assert_eq!((config.as_ref().unwrap().rank, config.unwrap().alpha), (8, 8.0));
        assert_eq!(notes.iter().map(|n| n.key.as_str()).collect::<Vec<_>>(), ["also", "config.new"]);
        for text in [
            "{}",
            r#"{"config": "lora"}"#,
            r#"{"config": {"architecture": null}}"#,
            r#"{"config": {"architecture": "lora", "r": 0}}"#,
            r#"{"config": {"architecture": "lora", "r": 4, "composition_mode": "scale"}}"#,
            r#"{"config": {"architecture": "lora", "use_gating": true}}"#,
        ] {
            assert!(read(text).0.is_err(), "{text}");
        }
    }
}
