//! Input and output embeddings, which many models tie: one matrix in the file, two uses in the model.

use super::BaseModel;

/// Last parts of the path of an input embedding, in memory.
const INPUTS: [&str; 8] =
    ["embed_tokens", "wte", "embed_in", "word_embeddings", "shared", "tok_embeddings", "embeddings", "tokens_embed"];
/// Paths of an output embedding, in memory.
const OUTPUTS: [&str; 6] =
    ["lm_head", "embed_out", "output", "cls.predictions.decoder", "lm_head.decoder", "generator_lm_head"];

/// The two embeddings of a base.
#[derive(Clone, Debug, Default)]
pub struct Embeddings {
    /// Key on disk of the input embedding.
    pub input: Option<String>,
    /// Key on disk of the output embedding, where the file has one.
    pub output: Option<String>,
    /// Whether the config ties the two, or the file leaves the output to the input.
    pub tied: bool,
}

/// Whether a module path in memory names an input embedding.
pub fn is_input(path: &str) -> bool {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    let position = path.contains("position") || path.contains("vision") || path.contains("visual");
    INPUTS.contains(&leaf) && !position
}

/// Whether a module path in memory names an output embedding.
pub fn is_output(path: &str) -> bool {
    OUTPUTS.iter().any(|o| path == *o || path.strip_suffix(o).is_some_and(|rest| rest.ends_with('.')))
}

pub(super) fn find(base: &BaseModel) -> Embeddings {
    let keys = || base.files.tensors().filter_map(|(_, key, t)| key.strip_suffix(".weight").map(|p| (p, t)));
    let input = keys().filter(|(p, t)| is_input(p) && t.shape.rank() == 2).map(|(p, _)| p).min_by_key(|p| p.len());
    let output = keys().find(|(p, t)| is_output(p) && t.shape.rank() == 2).map(|(p, _)| p);
    let says = base.config.as_ref().and_then(says_tied);
    // A config that is silent follows its class, whose default is unknown here: then the file decides.
    let tied = input.is_some() && output.is_none() && says != Some(false) || says == Some(true);
    Embeddings { input: input.map(|p| format!("{p}.weight")), output: output.map(|p| format!("{p}.weight")), tied }
}

/// `tie_word_embeddings` of the config, or of its inner text config.
fn says_tied(config: &serde_json::Map<String, serde_json::Value>) -> Option<bool> {
    let outer = config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    let inner =
        config.get("text_config").and_then(|c| c.get("tie_word_embeddings")).and_then(serde_json::Value::as_bool);
    outer.or(inner)
}

impl Embeddings {
    /// The key that an output embedding of its own gets when the two are untied.
    pub fn output_key(&self) -> String {
        let input = self.input.as_deref().unwrap_or_default();
        match input.strip_prefix("language_model.model.") {
            Some(_) => "language_model.lm_head.weight".to_string(),
            None if input.starts_with("gpt_neox.") => "embed_out.weight".to_string(),
            None => "lm_head.weight".to_string(),
        }
    }
}
