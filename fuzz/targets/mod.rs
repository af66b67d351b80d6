//! What is fuzzed: one function a file, which takes any bytes and panics where something does not hold that always has to.
//!
//! Used in two places: by libFuzzer through `fuzz_targets`, and by `tests/it/fuzzing.rs`, which walks `corpus` and changes
//! what lies there, with the stable compiler. So a target uses the library's public functions only, on files in a folder in
//! memory: what is read is what a user's file would be. That an input is refused is fine; what it may not do is end in a
//! panic, take more memory or time than its size allows, or give an answer that is wrong.

#![allow(dead_code, unreachable_pub, reason = "each program of libFuzzer uses one of them")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a target says that something does not hold"
)]

pub mod adapter_config;
pub mod convert_round_trip;
pub mod gguf;
pub mod index_json;
pub mod merge_small;
pub mod names;
pub mod npz;
pub mod pickle;
pub mod st_header;
pub mod st_vs_reference;
pub mod support;
pub mod tar;
pub mod undo_record;
pub mod yaml;
pub mod zip;

/// A target, as both callers see it.
pub type Target = fn(&[u8]);

/// All of them, by the names of their files.
pub const ALL: &[(&str, Target)] = &[
    ("adapter_config", adapter_config::one),
    ("convert_round_trip", convert_round_trip::one),
    ("gguf", gguf::one),
    ("index_json", index_json::one),
    ("merge_small", merge_small::one),
    ("names", names::one),
    ("npz", npz::one),
    ("pickle", pickle::one),
    ("st_header", st_header::one),
    ("st_vs_reference", st_vs_reference::one),
    ("tar", tar::one),
    ("undo_record", undo_record::one),
    ("yaml", yaml::one),
    ("zip", zip::one),
];
