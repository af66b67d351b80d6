//! What the tool can do.
