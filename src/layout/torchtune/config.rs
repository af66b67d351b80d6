//! What stands beside torchtune's tensors: the config that it saves for PEFT, and the recipe's own. Its tensors hold
//! neither alpha nor a word on the model.

use serde_json::{Map, Value};

use super::names::{self, Family};
use crate::adapter::{Facts, Note};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::Source;
use crate::layout::facts;

/// The recipe's config, where it is beside the tensors.
pub const RECIPE: &str = "torchtune_config.yaml";
/// Field under which this program keeps what it knows of the base, in the words of the base's own config.
pub const BASE_FIELD: &str = "lora_tool.base";

/// Fields of PEFT that would mean another scale; torchtune writes none of them.
const OTHER_SCALES: [&str; 3] = ["use_rslora", "rank_pattern", "alpha_pattern"];

/// What holds for all modules.
#[derive(Clone, Debug)]
pub struct Config {
    /// Rank, where it is said.
    pub rank: Option<usize>,
    /// Alpha: the products are multiplied by alpha / rank.
    pub alpha: f64,
    /// Whether the config says that there are magnitudes; torchtune's own never does.
    pub dora: bool,
    /// What is known of the base.
    pub facts: Facts,
    /// Its family, where that is known.
    pub family: Option<&'static Family>,
}

impl Config {
    /// From all that stands beside the tensors.
    pub fn read(source: &Source, notes: &mut Vec<Note>) -> Result<Config> {
        let mut found = Found::default();
        if let Some((path, raw)) = &source.config {
            found.of_peft(raw).in_file(path)?;
        }
        if let Some((path, raw)) = source.settings.get(RECIPE) {
            found.of_recipe(raw).in_file(path)?;
        }
        let alpha = match (found.alpha, source.given.alpha) {
            (Some(alpha), Some(other)) if alpha != other => {
                let what = format!("{alpha} as the files say; the {other} to be assumed was not needed");
                notes.push(Note::info("lora_alpha", what));
                alpha
            }
            (Some(alpha), _) | (None, Some(alpha)) => alpha,
            (None, None) => {
                return Err(Error::missing("alpha is not known, and torchtune's tensors do not hold it")
                    .in_file(&source.tensor_file)
                    .hint(format!(
                        "--assume-alpha says it, or the adapter_config.json or {RECIPE} of the training, put beside the file"
                    )));
            }
        };
        let facts = source.facts().or(found.facts);
        let family = facts.family.as_deref().map(names::family).transpose()?.or(found.family);
        Ok(Config { rank: found.rank, alpha, dora: found.dora, facts, family })
    }
}

/// What the files said so far.
#[derive(Debug, Default)]
struct Found {
    rank: Option<usize>,
    alpha: Option<f64>,
    dora: bool,
    facts: Facts,
    family: Option<&'static Family>,
}

impl Found {
    fn of_peft(&mut self, raw: &Map<String, Value>) -> Result<()> {
        for name in OTHER_SCALES {
            let empty = match raw.get(name) {
                None | Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !empty {
                return Err(Error::unsupported("a scale of another form than torchtune's, alpha / rank").at_key(name));
            }
        }
        self.rank = whole(raw, "r", "r")?;
        self.alpha = finite(raw, "lora_alpha", "lora_alpha")?;
        self.dora = json::field::<bool>(raw, "use_dora", "true or false")?.unwrap_or(false);
        if let Some(base) = raw.get(BASE_FIELD).and_then(Value::as_object) {
            self.facts = facts::of_config(base);
        }
        Ok(())
    }

    /// What comes first stands: the recipe may have been changed since.
    fn of_recipe(&mut self, raw: &Map<String, Value>) -> Result<()> {
        let Some(model) = raw.get("model").and_then(Value::as_object) else { return Ok(()) };
        self.rank = self.rank.or(whole(model, "lora_rank", "model.lora_rank")?);
        self.alpha = self.alpha.or(finite(model, "lora_alpha", "model.lora_alpha")?);
        self.family = model.get("_component_").and_then(Value::as_str).and_then(names::family_of_builder);
        Ok(())
    }
}

fn whole(map: &Map<String, Value>, name: &str, key: &str) -> Result<Option<usize>> {
    let Some(value) = map.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    number.map(Some).ok_or_else(|| json::unexpected(value, "a whole number of at least 1").at_key(key))
}

fn finite(map: &Map<String, Value>, name: &str, key: &str) -> Result<Option<f64>> {
    let Some(value) = map.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
    let number = value.as_f64().filter(|n| n.is_finite());
    number.map(Some).ok_or_else(|| json::unexpected(value, "a finite number").at_key(key))
}
