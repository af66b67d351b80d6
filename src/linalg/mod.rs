//! Algorithms over any kernels.

pub mod norm;
pub mod pair;
pub mod product;
