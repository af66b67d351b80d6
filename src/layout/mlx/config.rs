//! `adapter_config.json` of mlx-lm: kind, rank and scale out of the arguments of the training. All other fields say
//! how it was trained and change nothing.

use serde_json::{Map, Value};

use crate::adapter::{Note, Scale, ScaleRule};
use crate::container::json;
use crate::error::{Context, Error, Result};

/// Fields of which a config of mlx-lm has at least one, and no other layout any.
pub const MARKS: [&str; 4] = ["lora_parameters", "fine_tune_type", "lora_layers", "num_layers"];

/// What stands in the metadata before the name of what an adapter says about itself and the config has no field for.
pub const ABOUT: &str = "lora_tool.about.";
/// Name under which the stacks that lie in a module called `experts` are carried; never written.
pub const EXPERTS_FIELD: &str = "lora_tool.called_experts";

/// mlx-lm's default, and the only scale of mlx-examples' first version.
pub const DEFAULT_SCALE: f64 = 20.0;
/// Defaults of the time when scale and alpha were two numbers.
const OLD_SCALE: f64 = 10.0;

/// What was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// Two factors a module.
    Lora,
    /// The same and magnitudes.
    Dora,
    /// Whole tensors.
    Full,
}

impl Training {
    /// The word in the config.
    pub fn word(self) -> &'static str {
        match self {
            Training::Lora => "lora",
            Training::Dora => "dora",
            Training::Full => "full",
        }
    }
}

/// What the config says of the mathematics.
#[derive(Clone, Debug)]
pub struct Config {
    /// What was trained.
    pub training: Training,
    /// The rank of all factors, where it is named.
    pub rank: Option<usize>,
    /// The scale of all products.
    pub scale: Scale,
}

impl Config {
    /// Reads the fields; what had to be guessed is noted.
    pub fn read(raw: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Config> {
        let training = training(raw)?;
        let empty = Map::new();
        let parameters = match raw.get("lora_parameters") {
            None | Some(Value::Null) => &empty,
            Some(Value::Object(map)) => map,
            Some(other) => return Err(json::unexpected(other, "an object")).at_key("lora_parameters"),
        };
        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let rank = parameter(parameters, "rank", "a whole number", whole)?;
        if rank == Some(0) {
            return Err(Error::malformed("rank 0, expected at least 1").at_key("lora_parameters.rank"));
        }
        let scale = if training == Training::Full { Scale::direct(1.0) } else { scale(raw, parameters, notes)? };
        Ok(Config { training, rank, scale })
    }

    /// What holds for a file of mlx-examples' first version, which had no config.
    pub fn of_first_version() -> Config {
        Config { training: Training::Lora, rank: None, scale: Scale::direct(DEFAULT_SCALE) }
    }
}

fn training(raw: &Map<String, Value>) -> Result<Training> {
    let word: Option<String> = json::field(raw, "fine_tune_type", "lora, dora or full")?;
    let dora: Option<bool> = json::field(raw, "use_dora", "true or false")?;
    match (word.as_deref(), dora) {
        (None, Some(true)) | (Some("dora"), _) => Ok(Training::Dora),
        (None | Some("lora"), _) => Ok(Training::Lora),
        (Some("full"), _) => Ok(Training::Full),
        (Some(other), _) => {
            Err(Error::unsupported(format!("`{other:.40}`, expected lora, dora or full")).at_key("fine_tune_type"))
        }
    }
}

/// The scale is the multiplier itself. Until June 2024 it was multiplied by alpha / rank as well; that came to an end
/// before `lora_layers` was renamed to `num_layers`.
fn scale(raw: &Map<String, Value>, parameters: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Scale> {
    let number = |name| parameter(parameters, name, "a finite number", |v| v.as_f64().filter(|n| n.is_finite()));
    let (scale, alpha) = (number("scale")?, number("alpha")?);
    match alpha {
        Some(alpha) if !raw.contains_key("num_layers") && !raw.contains_key("fine_tune_type") => {
            let what = "alpha beside a scale: read as mlx-examples did until June 2024, scale · alpha / rank";
            notes.push(Note::lossy("lora_parameters.alpha", what));
            Ok(Scale { alpha: scale.unwrap_or(OLD_SCALE) * alpha, rule: ScaleRule::AlphaOverRank })
        }
        Some(_) => {
            let what = "passed over, as by every mlx-lm that writes num_layers; scale is the multiplier";
            notes.push(Note::lossy("lora_parameters.alpha", what));
            Ok(Scale::direct(scale.unwrap_or(DEFAULT_SCALE)))
        }
        None => {
            if scale.is_none() {
                let what = format!("not in the config; {DEFAULT_SCALE} taken, the default of mlx-lm");
                notes.push(Note::lossy("lora_parameters.scale", what));
            }
            Ok(Scale::direct(scale.unwrap_or(DEFAULT_SCALE)))
        }
    }
}

/// A field of `lora_parameters`.
fn parameter<T>(
    parameters: &Map<String, Value>,
    name: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Option<T>> {
    match parameters.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let wrong = || json::unexpected(value, expected).at_key(format!("lora_parameters.{name}"));
            read(value).map(Some).ok_or_else(wrong)
        }
    }
}
