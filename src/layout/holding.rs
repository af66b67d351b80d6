//! What an adapter may consist of, and which of it a layout has room for.

/// A part of an adapter, or something it may say of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// LoRA on linear layers.
    Linear,
    /// Ranks that differ from layer to layer.
    Ranks,
    /// Scales that differ from layer to layer.
    Scales,
    /// DoRA's magnitudes.
    Dora,
    /// LoRA on embeddings.
    Embeddings,
    /// LoRA on convolutions.
    Convolutions,
    /// LoRA on the experts of a mixture.
    Experts,
    /// Differences of biases.
    Biases,
    /// Whole tensors in place of the base's.
    Whole,
    /// Rows of an embedding.
    Tokens,
    /// LoHa and LoKr.
    Products,
    /// OFT, BOFT and HRA.
    Rotations,
    /// IA³.
    Rescaling,
    /// VeRA and its kin.
    Shared,
}

/// How a layout holds a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// As it is.
    Yes,
    /// The same change in another form: scales folded into B, ranks filled up with zeros.
    Folded,
    /// Not at all: an error when it is written.
    No,
}

impl Content {
    /// All of them, in the order of tables.
    pub const ALL: [Content; 14] = [
        Content::Linear,
        Content::Ranks,
        Content::Scales,
        Content::Dora,
        Content::Embeddings,
        Content::Convolutions,
        Content::Experts,
        Content::Biases,
        Content::Whole,
        Content::Tokens,
        Content::Products,
        Content::Rotations,
        Content::Rescaling,
        Content::Shared,
    ];

    /// Its head in a table.
    pub fn word(self) -> &'static str {
        match self {
            Content::Linear => "LoRA",
            Content::Ranks => "ranks",
            Content::Scales => "scales",
            Content::Dora => "DoRA",
            Content::Embeddings => "embeddings",
            Content::Convolutions => "convolutions",
            Content::Experts => "experts",
            Content::Biases => "biases",
            Content::Whole => "whole tensors",
            Content::Tokens => "token rows",
            Content::Products => "LoHa, LoKr",
            Content::Rotations => "OFT, BOFT, HRA",
            Content::Rescaling => "IA3",
            Content::Shared => "VeRA, RandLoRA",
        }
    }
}

impl Holding {
    /// Its word in a table.
    pub fn word(self) -> &'static str {
        match self {
            Holding::Yes => "yes",
            Holding::Folded => "folded",
            Holding::No => "–",
        }
    }
}
