//! What stands beside LitGPT's tensors: `hyperparameters.yaml` with rank, alpha and switches, `model_config.yaml` with the
//! sizes and the name of the model.

use serde_json::{Map, Value};

use super::names::{self, Family};
use super::qkv::Heads;
use crate::adapter::{Facts, Note};
use crate::container::json;
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Source, facts};

/// The training's settings.
pub const HYPERPARAMETERS: &str = "hyperparameters.yaml";
/// The model's.
pub const MODEL: &str = "model_config.yaml";
/// Key under which this program keeps what LitGPT has no word for. LitGPT takes every key that begins with `lora_` for its own.
pub const OWN: &str = "lora-tool";
/// Keys inside.
pub const OWN_BASE: &str = "base";
/// What the adapter says of itself.
pub const OWN_ABOUT: &str = "about";

/// The switches, and the paths inside a layer that each has factors of.
pub const SWITCHES: [&str; 6] = ["lora_query", "lora_key", "lora_value", "lora_projection", "lora_mlp", "lora_head"];
/// All fields of LitGPT's config that begin so.
const KNOWN: [&str; 3] = ["lora_r", "lora_alpha", "lora_dropout"];

/// What the files say.
#[derive(Debug)]
pub struct Settings {
    /// Rank, where it is said.
    pub rank: Option<usize>,
    /// Alpha: the products are multiplied by alpha / rank.
    pub alpha: f64,
    /// Each of [`SWITCHES`], where it is said.
    pub switches: [Option<bool>; 6],
    /// What is known of the base.
    pub facts: Facts,
    /// Its family.
    pub family: &'static Family,
    /// What the adapter says of itself.
    pub about: Vec<(String, String)>,
}

impl Settings {
    /// From all that stands beside the tensors.
    pub fn read(source: &Source, notes: &mut Vec<Note>) -> Result<Settings> {
        let empty = Map::new();
        let training = source.settings.get(HYPERPARAMETERS);
        let raw = training.map_or(&empty, |(_, raw)| raw);
        let place = |e: Error| match training {
            Some((path, _)) => e.in_file(path),
            None => e.in_file(&source.tensor_file),
        };
        let rank = whole(raw, "lora_r").map_err(place)?;
        let switches = switches(raw).map_err(place)?;
        let alpha = alpha(raw, source, notes).map_err(place)?;
        let own = raw.get(OWN).and_then(Value::as_object).unwrap_or(&empty);
        let kept = own.get(OWN_BASE).and_then(Value::as_object).map(facts::of_config).unwrap_or_default();
        let model = source.settings.get(MODEL);
        let of_model = model.map(|(path, raw)| of_model(raw).in_file(path)).transpose()?;
        let (of_model, by_name) = of_model.map_or((Facts::default(), None), |(facts, family)| (facts, Some(family)));
        // The model's own sizes come first: it is what was trained.
        let facts = of_model.or(source.facts()).or(kept);
        let family = family(&facts, by_name).map_err(|e| e.in_file(&source.tensor_file))?;
        let about = own.get(OWN_ABOUT).and_then(Value::as_object).unwrap_or(&empty);
        let mut about: Vec<_> =
            about.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_string()))).collect();
        let base = raw.get("checkpoint_dir").and_then(Value::as_str).filter(|name| !name.is_empty() && *name != ".");
        if let Some(base) = base {
            let name = base.strip_prefix("checkpoints/").unwrap_or(base);
            if !about.iter().any(|(name, _)| name == BASE_NAME) {
                about.push((BASE_NAME.to_string(), name.to_string()));
            }
        }
        about.retain(|(name, text)| name != BASE_FINGERPRINT || crate::tensor::Hash::from_hex(text).is_some());
        Ok(Settings { rank, alpha, switches, facts, family, about })
    }

    /// Heads of the attention, where they are known.
    pub fn heads(&self) -> Result<Option<Heads>> {
        heads(&self.facts)
    }
}

/// The name of the base, in the words of an adapter.
pub const BASE_NAME: &str = "base_model_name_or_path";

/// Heads of the attention, where they are known.
pub fn heads(facts: &Facts) -> Result<Option<Heads>> {
    let (Some(query), Some(width)) = (facts.heads, facts.head_width) else { return Ok(None) };
    Heads::new(query, facts.key_heads.unwrap_or(query), width).map(Some)
}

fn whole(raw: &Map<String, Value>, name: &str) -> Result<Option<usize>> {
    let Some(value) = raw.get(name).filter(|v| !v.is_null()) else { return Ok(None) };
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    number.map(Some).ok_or_else(|| json::unexpected(value, "a whole number of at least 1").at_key(name))
}

fn switches(raw: &Map<String, Value>) -> Result<[Option<bool>; 6]> {
    if let Some(name) = raw
        .keys()
        .find(|name| name.starts_with("lora_") && !KNOWN.contains(&name.as_str()) && !SWITCHES.contains(&name.as_str()))
    {
        return Err(Error::unsupported("a setting of LoRA that is not known here").at_key(name));
    }
    let mut out = [None; 6];
    for (place, name) in out.iter_mut().zip(SWITCHES) {
        *place = json::field(raw, name, "true or false")?;
    }
    Ok(out)
}

fn alpha(raw: &Map<String, Value>, source: &Source, notes: &mut Vec<Note>) -> Result<f64> {
    let said = raw.get("lora_alpha").filter(|v| !v.is_null());
    let number = |v: &Value| v.as_f64().filter(|n| n.is_finite());
    let said = said.map(|v| number(v).ok_or_else(|| json::unexpected(v, "a finite number").at_key("lora_alpha")));
    match (said.transpose()?, source.given.alpha) {
        (Some(alpha), Some(other)) if alpha != other => {
            let what = format!("{alpha} as the files say; the {other} to be assumed was not needed");
            notes.push(Note::info("lora_alpha", what));
            Ok(alpha)
        }
        (Some(alpha), _) | (None, Some(alpha)) => Ok(alpha),
        (None, None) => Err(Error::missing("alpha is not known, and LitGPT's tensors do not hold it")
            .hint(format!("--assume-alpha says it, or the {HYPERPARAMETERS} of the training, put beside the file"))),
    }
}

/// Sizes and family out of `model_config.yaml` (Lightning-AI/litgpt:litgpt/config.py).
fn of_model(raw: &Map<String, Value>) -> Result<(Facts, &'static Family)> {
    if raw.get("latent_attention").is_some_and(|v| !v.is_null()) {
        return Err(Error::unsupported("a latent attention, whose names are not known here").at_key("latent_attention"));
    }
    let text = |name: &str| raw.get(name).and_then(Value::as_str).unwrap_or_default();
    let class = Some(text("mlp_class_name")).filter(|class| !class.is_empty()).unwrap_or("GptNeoxMLP");
    let family = names::family_of_model(text("name"), class)?;
    let heads = whole(raw, "n_head")?;
    let hidden = whole(raw, "n_embd")?;
    let width = whole(raw, "head_size")?;
    let facts = Facts {
        heads,
        key_heads: whole(raw, "n_query_groups")?.or(heads),
        head_width: width.or_else(|| hidden?.checked_div(heads?)),
        hidden,
        layers: whole(raw, "n_layer")?,
        experts: raw.get("n_expert").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0),
        ..Facts::default()
    };
    Ok((facts, family))
}

/// The family that the model's settings and the base's config agree on.
fn family(facts: &Facts, by_name: Option<&'static Family>) -> Result<&'static Family> {
    let of_base = facts.family.as_deref().map(names::family).transpose()?;
    match (by_name, of_base) {
        (Some(model), Some(base)) if !std::ptr::eq(model, base) => {
            let what = format!("{MODEL} and the base's config are of different families of models");
            Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"))
        }
        (Some(family), _) | (None, Some(family)) => Ok(family),
        (None, None) => Err(Error::missing("the family of the model is not known, and its names go by that")
            .hint(format!("--base says it, or the {MODEL} of the training, put beside the file"))),
    }
}
