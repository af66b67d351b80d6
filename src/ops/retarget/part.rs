//! An adapter of a whole pipeline on one of its text encoders.

use std::collections::BTreeMap;

use crate::adapter::{Adapter, Note};
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::matching;

/// What a pipeline calls its text encoders: this, or this and a number.
const TEXT_ENCODER: &str = "text_encoder";

/// The adapter with the modules of one text encoder called as that encoder alone calls them, where the base is it: all of
/// them are in the base with the sizes that they are for, and those of no other encoder are. Any other adapter stays as
/// it is.
pub fn of_pipeline(adapter: Adapter, base: &BaseModel) -> (Adapter, Option<Note>) {
    if base.naming().is_some() {
        return (adapter, None); // a denoiser, or a checkpoint with all that belongs to it
    }
    let mut parts: BTreeMap<String, bool> = BTreeMap::new();
    for (path, target) in &adapter.targets {
        let Some((part, inner)) = inner(path) else { continue };
        let fits = !matching::fits(path, target, base) && matching::fits(&ModulePath::from(inner), target, base);
        parts.entry(part.to_string()).and_modify(|all| *all &= fits).or_insert(fits);
    }
    let mut fitting = parts.into_iter().filter(|(_, fits)| *fits).map(|(part, _)| part);
    let (Some(part), None) = (fitting.next(), fitting.next()) else { return (adapter, None) };
    let mut out = Adapter { targets: BTreeMap::new(), ..adapter };
    for (path, target) in adapter.targets {
        let own = inner(&path).filter(|(of, _)| *of == part).map(|(_, inner)| ModulePath::from(inner));
        out.targets.insert(own.unwrap_or(path), target);
    }
    (out, Some(Note::info("", format!("the base is taken for the pipeline's {part}, whose modules it has"))))
}

/// The text encoder that a module is in, and the module's name in it.
fn inner(path: &ModulePath) -> Option<(&str, &str)> {
    let (part, inner) = path.as_str().split_once('.')?;
    let number = part.strip_prefix(TEXT_ENCODER)?;
    let is_one = number.is_empty() || number.strip_prefix('_').is_some_and(|n| n.parse::<u8>().is_ok());
    is_one.then_some((part, inner))
}
