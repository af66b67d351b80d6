//! The integration tests: one program, a module for each concern.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as expected, and may say what it found"
)]

mod adapterhub;
mod batch;
mod cli;
mod compare;
mod consumers;
mod containers;
mod convert;
mod cuda;
mod dialects;
mod diffusers;
mod diffusion_names;
mod eight_bit;
mod extract;
mod faults;
mod fixtures;
mod flatten;
mod fuzzing;
mod gguf;
mod guess;
mod heap;
mod holding;
mod hostile;
mod image_models;
mod injected;
mod kernels;
mod kohya;
mod laws;
mod limits;
mod lint;
mod litgpt;
mod llama_cpp;
mod loralib;
mod mlx;
mod models;
mod mutations;
mod mutator;
mod nemo;
mod network;
mod parity;
mod pipelines;
mod program;
mod provenance;
mod resize;
mod retarget;
mod signals;
mod sources;
mod spellings;
mod sums;
mod svd;
mod torchtune;
mod trainers;
mod transcripts;
mod tuners;
mod undo;
mod unmerge;
mod verify;
mod weights;
mod write;
