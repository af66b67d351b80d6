//! The integration tests: one program, a module for each concern.

mod fixtures;
mod kernels;
mod parity;
