//! What can be found of an adapter beside its base. The table is the documentation, as that of `layout/lint/codes.rs`.

use crate::adapter::finding::{Code, Level};

const fn code(id: &'static str, level: Level, title: &'static str, why: &'static str) -> Code {
    Code { id, level, title, why, repair: None }
}

use Level::{Error, Info, Warning};

pub static UNMATCHED: Code = code(
    "L401",
    Error,
    "a module that the base does not have",
    "No tensor of the base has this name, in any spelling known here. PEFT and serving engines leave such a module out in \
     silence, and where it is so for all of them the adapted model is the base. The adapter may belong to another base, \
     or its names to another version of the model's class.",
);
pub static BIAS_UNMATCHED: Code = code(
    "L402",
    Error,
    "a bias that the base does not have",
    "The adapter changes the bias of a layer that has none in the base. PEFT adds it beside the layer; merged, it would be a \
     tensor that the class of the model has no place for.",
);
pub static MISFIT: Code = code(
    "L403",
    Error,
    "a change that does not fit the base's weight",
    "The module is there, and the change of the adapter has another shape than its weight, or cannot be calculated with \
     it. The adapter belongs to a model of another size.",
);
pub static TIED: Code = code(
    "L404",
    Warning,
    "one use of a tied embedding is changed",
    "The base has one matrix for input and output, and the adapter changes one of the two uses. PEFT computes with the \
     other as it was; a merge into the one matrix changes both. This program writes a matrix for each and sets \
     tie_word_embeddings to false; engines that tie by the class of the model then load the wrong one.",
);
pub static VOCABULARY: Code = code(
    "L405",
    Warning,
    "a vocabulary of another size",
    "The adapter brings an embedding with more or fewer rows than the base's. The merged model has the new size, and needs \
     the tokenizer that the adapter was trained with.",
);
pub static TOKENS_BEYOND: Code = code(
    "L406",
    Error,
    "tokens beyond the base's vocabulary",
    "The adapter replaces rows that the base's embedding does not have: it was trained on a base whose vocabulary was \
     made larger.",
);
pub static UNCHANGED: Code = code(
    "L407",
    Warning,
    "a whole tensor that is the base's own",
    "The file holds a weight whole, to the bit as the base has it. It makes the file larger, keeps it from loading in \
     engines that take no whole tensors, and does nothing.",
);
pub static OTHER_BASE: Code = code(
    "L408",
    Error,
    "made for another base",
    "The adapter names the fingerprint of the base it was made for, and this base has another.",
);
pub static MERGED_BEFORE: Code = code(
    "L409",
    Warning,
    "in the base already",
    "The files of this base say that this adapter was merged into it. Merging or loading it again applies it twice.",
);
pub static OTHER_NAME: Code = code(
    "L410",
    Info,
    "the base has another name",
    "The config of the adapter names another model than the config of the base does. A copy or a quantised twin may have \
     another name and be right.",
);
pub static QUANTISED: Code = code(
    "L411",
    Error,
    "a quantised base",
    "The weights of this base are quantised, and an adapter cannot be merged into them. It can be loaded beside them; \
     merge into the 16-bit model they were made from.",
);
pub static REFUSED: Code = code(
    "L412",
    Error,
    "refused by the merge",
    "Every module is there and fits, and the merge as a whole cannot be made.",
);
pub static OTHER_START: Code = code(
    "L413",
    Warning,
    "a module found only by the end of its name",
    "The base has one tensor whose name ends like this one, behind another prefix. This program takes it; PEFT and serving \
     engines look for the name as it is, find nothing, and run the base in silence. The adapter was trained on the model \
     inside another class, or its keys were renamed.",
);
pub static SAVED_BY_LETTERS: Code = code(
    "L414",
    Warning,
    "modules_to_save means more modules than were saved",
    "PEFT compares the entries of modules_to_save with the ends of module paths letter by letter: norm is the end of \
     input_layernorm, too. It then wants a whole tensor for each of them and stops with a KeyError where the file has none. \
     Extracted adapters are often like this.",
);

/// All of them, in order.
pub static CODES: &[&Code] = &[
    &UNMATCHED,
    &BIAS_UNMATCHED,
    &MISFIT,
    &TIED,
    &VOCABULARY,
    &TOKENS_BEYOND,
    &UNCHANGED,
    &OTHER_BASE,
    &MERGED_BEFORE,
    &OTHER_NAME,
    &QUANTISED,
    &REFUSED,
    &OTHER_START,
    &SAVED_BY_LETTERS,
];
