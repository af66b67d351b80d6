//! What the tool can do: functions from opened inputs to plans and answers. No files, no flags.

pub mod compare;
pub mod inspect;
pub mod merge;
pub mod undo;
pub mod unmerge;
pub mod verify;
