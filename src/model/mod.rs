//! A base model as it lies on disk.
