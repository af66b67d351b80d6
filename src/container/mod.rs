//! Files and the tensors in them. A container has no idea what an adapter is.

pub mod atomic;
pub mod folder;
pub mod gguf;
mod given;
mod header;
pub mod hub;
pub mod json;
mod kept;
pub mod npz;
pub mod pipeline;
pub mod safetensors;
pub mod sharded;
mod system;
pub mod tar;
pub mod torch;
pub mod undo;
pub mod yaml;

pub use gguf::GgufFile;
pub use given::{cannot_open, fault_of_gguf, refuse_config};
pub use header::FileMetadata;
pub use pipeline::Pipeline;
pub use safetensors::{Entry, Manifest, SafetensorsFile, SafetensorsWriter, parse_head};
pub use sharded::{Shard, Sharded};
