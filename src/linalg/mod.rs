//! Algorithms over any kernels.

pub mod product;
