//! Reads, checks, applies, removes, makes, shrinks, converts and compares adapters (LoRA and its kin).
//!
//! The rooms, from the ground up; nothing imports from a room above its own (`docs/architecture.md`):
//!
//! | floor | rooms |
//! |---|---|
//! | 0 | [`error`]: what went wrong, where, and what to do · [`limits`]: the most that files may ask for |
//! | 1 | [`tensor`]: numbers in memory or in a mapped file · [`names`]: what modules are called |
//! | 2 | [`container`]: files · [`kernels`]: the machine |
//! | 3 | [`linalg`]: algorithms over any kernels |
//! | 4 | [`adapter`]: what is adapted and how · [`stream`]: model-sized data · [`model`]: a base on disk |
//! | 5 | [`layout`]: how each ecosystem stores adapters · [`ops`]: what the tool can do |
//! | 6 | [`cli`]: words in, words out |

pub mod error;
pub mod limits;

pub mod names;
pub mod tensor;

pub mod container;
pub mod kernels;

pub mod linalg;

pub mod adapter;
pub mod model;
pub mod stream;

pub mod layout;
pub mod ops;

pub mod cli;

pub use error::{Error, Result};
