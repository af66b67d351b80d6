//! What modules and tensors are called: the names an adapter uses, and where they lie in a base checkpoint.
//!
//! An adapter is written with the names a model has in memory, in the version of transformers that trained it. The
//! checkpoint on disk may spell them otherwise: `model.layers...` for `model.language_model.layers...`, or one tensor
//! for each expert where memory has one for all. [`Index`] holds the names of a checkpoint and finds its way between
//! the two; the tables it goes by are in `family`, one file for each group of model families.
//!
//! Strings and shapes only: this room opens no file and touches no number.

mod assemble;
mod base_model;
pub mod diffusion;
mod equivalent;
mod experts;
mod family;
pub mod fused;
mod index;
mod outline;
mod path;
mod place;
mod rewrite;
mod similar;

pub use experts::{Expert, Which, parse as expert_of};
pub use family::{checkpoint, interleaved};
pub use index::{Index, Listing, Spelt};
pub use path::ModulePath;
pub use place::{Found, How, Piece, Region};
