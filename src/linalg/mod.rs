//! Algorithms over any kernels.
