//! Names as the modules have them in the model: bare, or behind `transformer.` or PEFT's `base_model.model.`, in the words
//! of whichever trainer: Black Forest Labs' control adapters, DiffSynth, diffusion-pipe, Mochi, OneTrainer, fal.
//!
//! Such files have no definition beyond the programs that write them; what is known of those is written down in
//! `docs/layouts/native.md`. Not here: what has a config beside it, which is PEFT's.

use super::{comfyui, diffusers, kohya, spelling, words};
use crate::adapter::{Adapter, Note, fused};
use crate::error::{Context, Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{Candidate, Container, Naming};
use crate::tensor::StateDict;

/// The layout.
pub struct Native;

const NAME: &str = "native";
/// What may stand before the names and says nothing, the longest first.
const PREFIXES: [&str; 5] = ["unet.base_model.model.", "base_model.model.", "conditional_transformer.", "model.", ""];
/// The scales of the norms that a control adapter of Black Forest Labs' puts in the place of the base's.
const NORM: &str = "_norm.scale";

/// The ending that tells DiffSynth's files, and modules of MiniMax-H3 whose rows it has head by head.
const DIFFSYNTH: &str = ".lora_B.default.weight";
const HEADS: &str = ".attn.qkv_proj";
/// Rows of query, key or value that a head of MiniMax-H3 has.
const HEAD: usize = 128;

impl Layout for Native {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "BFL, DiffSynth, diffusion-pipe, Mochi, fal: one file, names as the modules have them in the model"
    }

    fn holds(&self, content: Content) -> Holding {
        kohya::Kohya.holds(content)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let Some(found) = Found::of(&source.tensors) else { return Verdict::No };
        Verdict::Likely { score: found.score, because: found.because }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let found = Found::of(&source.tensors).ok_or_else(|| {
            Error::unrecognised("no names of modules with what is done to them").in_file(&source.path)
        })?;
        let renamed =
            words::in_words_of_kohya(source, |name| name.strip_prefix(found.prefix).unwrap_or(name).to_string())?;
        let (mut adapter, mut notes) =
            kohya::read_tensors(source, &with_norms(renamed).in_file(&source.tensor_file)?, NAME)?;
        if source.tensors.keys().any(|key| key.ends_with(DIFFSYNTH)) {
            notes.extend(gather_heads(&mut adapter).in_file(&source.tensor_file)?);
        }
        Ok((adapter, notes))
    }

    fn can_write(&self) -> bool {
        false
    }

    fn write(&self, _: &Adapter) -> Result<(Draft, Vec<Note>)> {
        Err(Error::unsupported("files with names as they stand are read, not written"))
    }
}

/// Names of a model, and what stands before them.
struct Found {
    prefix: &'static str,
    score: u8,
    because: String,
}

impl Found {
    fn of(tensors: &StateDict) -> Option<Found> {
        let modules: Vec<&str> = tensors.keys().filter_map(|key| module(key)).collect();
        let dotted = modules.iter().filter(|module| module.contains('.')).count();
        if modules.is_empty() || dotted * 2 < modules.len() {
            return None;
        }
        if comfyui::own_keys(tensors) * 2 > tensors.len() {
            return None;
        }
        let starts = |prefix: &&str| modules.iter().filter(|m| m.starts_with(*prefix)).count() * 2 > modules.len();
        let prefix = PREFIXES.into_iter().find(starts)?;
        let mut names: Vec<_> = modules.iter().map(|m| m.strip_prefix(prefix).unwrap_or(m).to_string()).collect();
        names.dedup();
        let names: Vec<_> = names.into_iter().map(|name| (name, None)).collect();
        let all = tensors.len();
        let kohyas = tensors.keys().filter(|key| kohya::claims(key)).count();
        let (in_kohyas, of_diffusers) = (kohyas * 2 > all, diffusers::own_keys(tensors) * 2 > all);
        match spelling::family(&names, None) {
            // Language models, whose modules stand behind `model.`, have PEFT's words.
            Some(_) if prefix == "model." && !in_kohyas => None,
            // diffusers' names in PEFT's words behind the name of a part are diffusers' own.
            Some((family, _)) if of_diffusers && !Found::is_misplaced(&family, prefix, &names) => None,
            Some((family, _)) => {
                let what = if prefix.is_empty() { "as they stand".to_string() } else { format!("behind {prefix}") };
                let because = format!("the modules have the names of {}'s, {what}", family.family.name);
                Some(Found { prefix, score: 85, because })
            }
            None if in_kohyas => {
                let because = format!("{kohyas} of {all} keys are kohya's words behind dotted names of no known model");
                Some(Found { prefix: "", score: 75, because })
            }
            None => None,
        }
    }
}

impl Found {
    /// Whether what looks like diffusers' file has other names for its denoiser, or calls one a U-Net that is none.
    fn is_misplaced(found: &Candidate, prefix: &str, names: &[(String, Option<Vec<u64>>)]) -> bool {
        let component = found.family.denoiser().and_then(|part| part.homes(Container::Diffusers).next());
        if prefix == PREFIXES[0] {
            return component.is_none_or(|home| home.prefix != "unet");
        }
        let of_denoiser =
            |name: &&(String, Option<Vec<u64>>)| ["transformer.", "unet."].iter().any(|p| name.0.starts_with(p));
        let names: Vec<_> = names.iter().filter(of_denoiser).cloned().collect();
        spelling::family(&names, None).is_some_and(|(found, _)| found.naming != Naming::Diffusers)
    }
}

/// The name of the module a key is for.
fn module(key: &str) -> Option<&str> {
    words::split(key).or_else(|| kohya::split(key).filter(|_| words::is_word(key))).map(|(module, _)| module)
}

/// DiffSynth has MiniMax-H3's projections as the released file has them, query, key and value of one head after the
/// other; everybody else has all of the query first. The shapes are the same.
fn gather_heads(adapter: &mut Adapter) -> Result<Option<Note>> {
    if adapter.spelling.is_none_or(|spelling| spelling.family != "minimax_h3") {
        return Ok(None);
    }
    let mut count = 0;
    for (path, target) in adapter.targets.iter_mut().filter(|(path, _)| path.as_str().ends_with(HEADS)) {
        let rows = fused::outputs(target).unwrap_or(0);
        if rows == 0 || !rows.is_multiple_of(3 * HEAD) {
            let what = format!("{rows} outputs, expected three times {HEAD} for each head");
            return Err(Error::mismatch(what).at_key(path.as_str()));
        }
        let heads = rows / (3 * HEAD);
        let of_part = |part| (0..heads).flat_map(move |head| (0..HEAD).map(move |row| (head * 3 + part) * HEAD + row));
        let order: Vec<usize> = (0..3).flat_map(of_part).collect();
        *target = fused::split(target, &[order]).at_key(path.as_str())?.pop().unwrap_or_default();
        count += 1;
    }
    let text = format!("{count} projections have their rows head by head, as DiffSynth does; put in the usual order");
    Ok((count > 0).then(|| Note::info("", text)))
}

/// Norms that replace the base's, as such; kohya's words would take a `scale` for the factor of a change.
fn with_norms(tensors: StateDict) -> Result<StateDict> {
    let mut out = StateDict::with_capacity(tensors.len());
    for (key, tensor) in tensors {
        let name = match key.strip_suffix(".scale") {
            Some(module) if key.ends_with(NORM) => format!("{module}.set_weight"),
            _ => key.clone(),
        };
        if out.insert(name.clone(), tensor).is_some() {
            return Err(Error::malformed(format!("means the same as `{name}`")).at_key(key));
        }
    }
    Ok(out)
}
