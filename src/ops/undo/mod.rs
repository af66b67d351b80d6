//! Undo records: what it takes to get a base back from a merged model, to the last bit.
//!
//! A merge rounds, so that some weights of the base can no longer be told from the result. A record holds just what is
//! missing. Where a change is a sum that is known from the adapter, the merged value tells the weight but for the
//! elements whose neighbours would have given the same value ([`crate::kernels::fused::inverse`]); one or two bits for
//! each of those is all there is to store. Where it is not, the guess is less good and the corrections are more. Every
//! piece carries the hash of what it was and of what it became.
//!
//! Two numbers for scale: writing a record reads nothing that the merge does not read, and forms every product a second
//! time; using one reads the merged model and writes the base once.

mod manifest;
mod pair;
mod predict;
mod recorder;
mod restore;
mod table;

pub(super) use manifest::How;
pub use manifest::{AdapterNote, Manifest, MergeOptions};
pub use pair::{as_it_lies, observe};
pub(super) use predict::Predictor;
pub use recorder::{About, Pair, Recorder};
pub use restore::{Restore, Undone};

fn head_section(number: usize) -> String {
    format!("base/{number}/head")
}

fn text_section(name: &str) -> String {
    format!("text/{name}")
}

/// The section of an adapter that lies in the record.
pub fn adapter_section(number: usize) -> String {
    format!("adapter/{number}")
}
