//! Algorithms over any kernels.

pub mod norm;
pub mod normal_equations;
pub mod pair;
pub mod product;
