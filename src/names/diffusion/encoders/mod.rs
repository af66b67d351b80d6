//! Text encoders, a file for each.

pub(super) mod clip_l;
pub(super) mod llm;
pub(super) mod open_clip;
pub(super) mod t5;
