//! The integration tests: one program, a module for each concern.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as expected, and may say what it found"
)]

mod cli;
mod compare;
mod containers;
mod faults;
mod fixtures;
mod hostile;
mod kernels;
mod laws;
mod models;
mod parity;
mod program;
mod provenance;
mod signals;
mod sources;
mod sums;
mod transcripts;
mod tuners;
mod undo;
mod unmerge;
mod verify;
