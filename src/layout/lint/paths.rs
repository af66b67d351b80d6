//! Module paths against the names that a config gives.

pub(super) use crate::layout::peft::keys::EMBEDDINGS;

/// Whether a path is this name or ends with it after a dot.
pub(super) fn is_end(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The last component.
pub(super) fn leaf(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Whether a module lies at or in one that `modules_to_save` lists. PEFT compares the ends of paths letter by letter.
pub(super) fn is_listed(path: &str, listed: &[String]) -> bool {
    let outer = path.match_indices('.').filter_map(|(at, _)| path.get(..at));
    outer.chain([path]).any(|module| listed.iter().any(|entry| module.ends_with(entry.as_str())))
}
