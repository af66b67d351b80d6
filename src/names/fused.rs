//! Projections that some models have as one module and others as several.
//!
//! Sources: huggingface/transformers, `src/transformers/models/{phi3,glm4,llama,baichuan}`; the rows of the whole are those
//! of its parts, one after the other.

/// A projection, whole and in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusion {
    /// Name of the module that holds all.
    pub whole: &'static str,
    /// Names of the modules of its parts, in the order of their rows.
    pub parts: &'static [&'static str],
    /// How many rows they have.
    pub sizes: Sizes,
}

/// The rows of the parts of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Queries, then keys and values, by the heads of the model.
    Attention,
    /// The same number each.
    Equal,
}

const ATTENTION: &[&str] = &["q_proj", "k_proj", "v_proj"];
const GATE: &[&str] = &["gate_proj", "up_proj"];

/// All of them; the first of those with the same parts is the usual one.
pub const FUSIONS: &[Fusion] = &[
    Fusion { whole: "qkv_proj", parts: ATTENTION, sizes: Sizes::Attention },
    Fusion { whole: "W_pack", parts: ATTENTION, sizes: Sizes::Attention },
    Fusion { whole: "gate_up_proj", parts: GATE, sizes: Sizes::Equal },
    Fusion { whole: "up_gate_proj", parts: GATE, sizes: Sizes::Equal },
];

/// The projection whose whole is called this.
pub fn of_whole(leaf: &str) -> Option<&'static Fusion> {
    FUSIONS.iter().find(|f| f.whole == leaf)
}

/// The usual one with such a part.
pub fn of_part(leaf: &str) -> Option<&'static Fusion> {
    FUSIONS.iter().find(|f| f.parts.contains(&leaf))
}
