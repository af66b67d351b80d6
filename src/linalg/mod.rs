//! Algorithms over any kernels.

pub mod norm;
pub mod product;
