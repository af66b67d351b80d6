//! What the tool can do: functions from opened inputs to plans and answers. No files, no flags.

pub mod approximate;
pub mod cast;
pub mod compare;
pub mod extract;
pub mod factorise;
pub mod flatten;
pub mod inspect;
pub mod lint;
pub mod matching;
pub mod merge;
pub mod normalise;
pub mod orientation;
pub mod resize;
pub mod retarget;
pub mod saved;
pub mod shares;
pub mod undo;
pub mod unmerge;
pub mod verify;
