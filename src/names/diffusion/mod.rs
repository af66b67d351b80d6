//! What the modules of image and video models are called: by their authors, by diffusers, by ComfyUI; and which of
//! those names, after which prefix, each kind of file has.
//!
//! A [`Family`] has parts (the denoiser, text encoders), a [`Part`] has a table of two namings, used in both
//! directions: [`Part::modules`] lists the names, [`Part::unflatten`] finds the dots of a flat path,
//! [`Part::translate`] leads to another naming, with the rows where projections are fused, and [`detect`] tells the
//! family from names and extents. Block numbers are open: a table gives the numbers a whole model has and takes any
//! other.
//!
//! `families` has a file for each family and `encoders` one for each text encoder. `table`, `pattern`, `extent` and
//! `rows` are what they are written in. Strings and shapes only.

pub mod blocks;
mod detect;
mod encoders;
mod extent;
mod families;
mod family;
mod part;
mod pattern;
mod rows;
mod table;

pub use detect::{Candidate, Seen, detect};
pub use extent::{Extent, letter};
pub use families::{FAMILIES, family};
pub use family::{Family, Variant};
pub use part::{Container, Home, Module, Naming, Part, Role, Target};
pub use rows::{Order, Ratio, Rows};
pub use table::{Ending, Kind};
