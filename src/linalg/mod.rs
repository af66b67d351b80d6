//! Algorithms over any kernels.

pub mod knapsack;
pub mod normal_equations;
pub mod pair;
pub mod product;
pub mod rank;
pub mod svd;
