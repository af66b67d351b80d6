//! Parts of a pipeline: an adapter of all of it on one of its text encoders, and of one transformer on one of two.

use std::collections::BTreeMap;

use crate::adapter::{Adapter, Note, Target};
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::matching;

/// What a pipeline calls its text encoders: this, or this and a number.
const TEXT_ENCODER: &str = "text_encoder";
/// The transformers of pipelines that have two.
const TRANSFORMERS: [&str; 2] = ["transformer", "transformer_2"];

/// The adapter with the modules of one text encoder called as that encoder alone calls them, where the base is it: all of
/// them are in the base with the sizes that they are for, and those of no other encoder are. Any other adapter stays as
/// it is.
pub fn of_pipeline(adapter: Adapter, base: &BaseModel) -> (Adapter, Option<Note>) {
    if base.naming().is_some() || base.pipeline.is_some() {
        return (adapter, None); // a denoiser, or all that belongs to it
    }
    let mut parts: BTreeMap<String, bool> = BTreeMap::new();
    for (path, target) in &adapter.targets {
        let Some((part, inner)) = inner(path) else { continue };
        let fits = !matching::fits(path, target, base) && alone(inner, target, base).is_some();
        parts.entry(part.to_string()).and_modify(|all| *all &= fits).or_insert(fits);
    }
    let mut fitting = parts.into_iter().filter(|(_, fits)| *fits).map(|(part, _)| part);
    let (Some(part), None) = (fitting.next(), fitting.next()) else { return (adapter, None) };
    let mut out = Adapter { targets: BTreeMap::new(), ..adapter };
    for (path, target) in adapter.targets {
        let own = inner(&path).filter(|(of, _)| *of == part).and_then(|(_, inner)| alone(inner, &target, base));
        out.targets.insert(own.unwrap_or(path), target);
    }
    (out, Some(Note::info("", format!("the base is taken for the pipeline's {part}, whose modules it has"))))
}

/// The module of a text encoder by itself, with or without the level of CLIP that transformers dropped in version 5.
fn alone(inner: &str, target: &Target, base: &BaseModel) -> Option<ModulePath> {
    let names = [inner, inner.strip_prefix("text_model.").unwrap_or(inner)];
    names.into_iter().map(ModulePath::from).find(|path| matching::fits(path, target, base))
}

/// A remark where a pipeline has two transformers, one for each half of the denoising, and the adapter is for one: files
/// for the other are called alike, and say nothing of it.
pub fn one_of_two(adapter: &Adapter, base: &BaseModel) -> Option<Note> {
    let [first, second] = TRANSFORMERS;
    let has = |name: &str| base.components().iter().any(|c| c.name == name && c.is_denoiser());
    let names =
        |part: &str| adapter.targets.keys().any(|path| path.as_str().split_once('.').is_some_and(|p| p.0 == part));
    let (named, other) = match (names(first), names(second)) {
        (true, false) => (first, second),
        (false, true) => (second, first),
        _ => return None,
    };
    let both = has(first) && has(second);
    let text = format!(
        "{other} stays as it is: the adapter's paths are those of {named}; one for {other} that has such paths is merged \
         into its folder alone"
    );
    both.then(|| Note::info(named, text))
}

/// The text encoder that a module is in, and the module's name in it.
fn inner(path: &ModulePath) -> Option<(&str, &str)> {
    let (part, inner) = path.as_str().split_once('.')?;
    let number = part.strip_prefix(TEXT_ENCODER)?;
    let is_one = number.is_empty() || number.strip_prefix('_').is_some_and(|n| n.parse::<u8>().is_ok());
    is_one.then_some((part, inner))
}
