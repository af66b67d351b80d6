//! selective
