//! What has to be known of a base to name and order an adapter's parts as another program does: nothing of it changes
//! what the adapter does.

use crate::error::{Error, Result};
use crate::limits;

/// Layers of attention whose keys and values are made from a latent vector: it has queries, and no keys and values of its
/// own.
pub const LATENT: [&str; 4] = ["kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj"];
/// Families of models that have it, by the start of their names.
const LATENT_FAMILIES: [&str; 5] = ["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3"];

/// Sizes and names of a base model, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Class of the model in transformers, as `LlamaForCausalLM`.
    pub class: Option<String>,
    /// Family of the model in transformers, as `llama`.
    pub family: Option<String>,
    /// Heads of the queries.
    pub heads: Option<usize>,
    /// Heads of keys and values.
    pub key_heads: Option<usize>,
    /// Rows of one head.
    pub head_width: Option<usize>,
    /// Width of the residual stream.
    pub hidden: Option<usize>,
    /// Width inside the feed-forward layers.
    pub intermediate: Option<usize>,
    /// Layers.
    pub layers: Option<usize>,
    /// Experts of a layer.
    pub experts: Option<usize>,
    /// Rows of the embedding.
    pub vocabulary: Option<usize>,
    /// Whether the output is tied to the embedding.
    pub tied: Option<bool>,
}

impl Facts {
    /// These, and where something is not known of them, what `others` say.
    #[must_use]
    pub fn or(self, others: Facts) -> Facts {
        Facts {
            class: self.class.or(others.class),
            family: self.family.or(others.family),
            heads: self.heads.or(others.heads),
            key_heads: self.key_heads.or(others.key_heads),
            head_width: self.head_width.or(others.head_width),
            hidden: self.hidden.or(others.hidden),
            intermediate: self.intermediate.or(others.intermediate),
            layers: self.layers.or(others.layers),
            experts: self.experts.or(others.experts),
            vocabulary: self.vocabulary.or(others.vocabulary),
            tied: self.tied.or(others.tied),
        }
    }

    /// The number of layers, for those who write something for each; an error where it is none of a model.
    pub fn layers_to_fill(&self) -> Result<Option<usize>> {
        match self.layers {
            Some(count) if count > limits::LAYERS => {
                let found = format!("{count} layers, each of which would get modules of its own");
                Err(Error::limit(found, limits::LAYERS).at_key("num_hidden_layers"))
            }
            layers => Ok(layers),
        }
    }

    /// Whether the keys of its attention are [latent](LATENT), as far as it is known.
    pub fn has_latent_keys(&self) -> bool {
        self.family.as_deref().is_some_and(|family| LATENT_FAMILIES.iter().any(|name| family.starts_with(name)))
    }

    /// Rows of query, key and value. Not known where a config says more than any model has.
    pub fn attention_rows(&self) -> Option<[usize; 3]> {
        let (heads, key_heads) = (self.heads?, self.key_heads.or(self.heads)?);
        let rows = |heads: usize| heads.checked_mul(self.head_width?).filter(|rows| *rows <= limits::ATTENTION_ROWS);
        Some([rows(heads)?, rows(key_heads)?, rows(key_heads)?])
    }
}
