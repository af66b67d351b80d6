//! The integration tests: one program, a module for each concern.

mod fixtures;
mod hostile;
mod kernels;
mod parity;
