//! Parts of an adapter at strengths of their own: by patterns of names, and block by block as lists for image models have it.

use std::collections::BTreeSet;

use regex::Regex;

use crate::adapter::{Adapter, Note, Share, Spelling};
use crate::error::{Error, Kind, Result};
use crate::names::diffusion::{self, Container, Naming, Part, blocks};

/// Strengths of parts.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    patterns: Vec<Pattern>,
    /// Numbers of a list.
    blocks: Option<Vec<f64>>,
    /// As the user gave them.
    words: Vec<String>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    names: Regex,
    share: f64,
}

/// What stands before a list of block weights among the words.
const BLOCKS: &str = "blocks ";

impl Shares {
    /// Of words: `PATTERN=X`, and `blocks` with a preset's name or numbers.
    pub fn of(words: &[String]) -> Result<Shares> {
        let mut out = Shares { words: words.to_vec(), ..Shares::default() };
        for word in words {
            match word.strip_prefix(BLOCKS) {
                Some(list) => out.blocks = Some(numbers(list)?),
                None => out.patterns.push(Pattern::of(word)?),
            }
        }
        Ok(out)
    }

    /// The word for a list of block weights.
    pub fn word_of_blocks(list: &str) -> String {
        format!("{BLOCKS}{list}")
    }

    /// As the user gave them.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Gives each target its share. One of 0 goes; a pattern without a module is an error.
    pub fn apply(&self, adapter: &mut Adapter) -> Result<Vec<Note>> {
        if self.words.is_empty() {
            return Ok(Vec::new());
        }
        let mut notes = Vec::new();
        let mut met = vec![false; self.patterns.len()];
        let by_block = self.blocks.as_ref().map(|numbers| ByBlock::of(adapter, numbers)).transpose()?;
        let mut unlisted = BTreeSet::new();
        let mut shares = Vec::with_capacity(adapter.targets.len());
        for path in adapter.targets.keys() {
            let names = names(adapter, path.as_str());
            let mut share = 1.0;
            for (pattern, met) in self.patterns.iter().zip(&mut met) {
                if pattern.fits(path.as_str(), &names)? {
                    (share, *met) = (pattern.share, true);
                }
            }
            if let Some(by_block) = &by_block {
                share *= by_block.share(path.as_str(), &mut unlisted);
            }
            shares.push(share);
        }
        if let Some((pattern, _)) = self.patterns.iter().zip(&met).find(|(_, met)| !**met) {
            let what = format!("no module of the adapter has a name with `{}` in it", pattern.text);
            let sample = adapter.targets.keys().next().map(|path| names(adapter, path.as_str()).concat().join(" or "));
            return Err(Error::missing(what).hint(format!("names are like {}", sample.unwrap_or_default())));
        }
        if !unlisted.is_empty() {
            let text = format!(
                "blocks without a number in the list ({}) are left out, as the programs do that such lists come from",
                unlisted.into_iter().collect::<Vec<_>>().join(", ")
            );
            notes.push(Note::info("", text));
        }
        let before = adapter.targets.len();
        for (target, share) in adapter.targets.values_mut().zip(&shares) {
            target.share = Share(*share);
        }
        adapter.targets.retain(|_, target| target.share.0 != 0.0);
        if adapter.targets.is_empty() {
            return Err(Error::new(Kind::Usage, "no module has a strength other than 0: nothing is left to be merged"));
        }
        if adapter.targets.len() < before {
            let text =
                format!("{} of {before} modules are left out: their strength is 0", before - adapter.targets.len());
            notes.push(Note::info("", text));
        }
        Ok(notes)
    }
}

impl Pattern {
    fn of(word: &str) -> Result<Pattern> {
        let usage = |what: String| Error::new(Kind::Usage, format!("--strength {word}: {what}"));
        let (text, number) =
            word.rsplit_once('=').ok_or_else(|| usage("expected a number or PATTERN=X".to_string()))?;
        let names =
            Regex::new(text).map_err(|e| usage(format!("no regular expression: {}", last_line(&e.to_string()))))?;
        Ok(Pattern {
            text: text.to_string(),
            names,
            share: number_of(number).ok_or_else(|| usage(format!("`{number}` is no number")))?,
        })
    }

    /// Whether a module's name has the pattern in it, in any naming. What is one module here and several in another
    /// naming has to fit with all of them, or with none.
    fn fits(&self, path: &str, names: &[Vec<String>]) -> Result<bool> {
        let mut some = false;
        for naming in names {
            let fitting = naming.iter().filter(|name| self.names.is_match(name)).count();
            if fitting > 0 && fitting == naming.len() {
                return Ok(true);
            }
            some |= fitting > 0;
        }
        if !some {
            return Ok(false);
        }
        let what =
            format!("`{}` fits a part of it, and the base has it in one: one strength is all it can have", self.text);
        Err(Error::unsupported(what).at_key(path))
    }
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
}

fn number_of(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// A list's numbers, by a preset's name or as they stand.
fn numbers(list: &str) -> Result<Vec<f64>> {
    if let Some(numbers) = blocks::preset(list) {
        return Ok(numbers);
    }
    let read = |word: &str| {
        number_of(word).ok_or_else(|| {
            let what =
                format!("--block-weights: `{word}` is no number, nor a preset ({})", blocks::presets().join(", "));
            Error::new(Kind::Usage, what)
        })
    };
    list.split(',').map(read).collect()
}

/// The names a module has: as it is called here, and in the other naming of an image model.
fn names(adapter: &Adapter, path: &str) -> Vec<Vec<String>> {
    let mut out = vec![vec![path.to_string()]];
    let Some(spelling) = adapter.spelling else { return out };
    let denoiser = diffusion::family(spelling.family).and_then(diffusion::Family::denoiser);
    let Some((part, (component, inner))) = denoiser.zip(path.split_once('.')) else { return out };
    if part.homes(Container::Diffusers).all(|home| home.prefix != component) {
        return out;
    }
    let own = naming_of(part, spelling, inner);
    for naming in part.namings().iter().filter(|naming| **naming != own) {
        let others = part.translate(own, *naming, inner, spelling.extents);
        out.extend(others.map(|all| all.into_iter().map(|one| format!("{component}.{}", one.path)).collect()));
    }
    out
}

/// Whose name a module of a denoiser has. What can be neither taken apart nor put together keeps the name that it has in
/// the adapter's naming, in whichever the others are.
fn naming_of(part: &Part, spelling: Spelling, inner: &str) -> Naming {
    let knows = |naming: &Naming| part.translate(*naming, *naming, inner, spelling.extents).is_some();
    let own = spelling.naming;
    if knows(&own) { own } else { part.namings().iter().copied().find(knows).unwrap_or(own) }
}

/// Numbers of a list by the names of blocks.
struct ByBlock {
    family: &'static diffusion::Family,
    spelling: Spelling,
    numbers: Vec<(String, f64)>,
}

impl ByBlock {
    fn of(adapter: &Adapter, numbers: &[f64]) -> Result<ByBlock> {
        let found = adapter.spelling.and_then(|s| Some((diffusion::family(s.family)?, s)));
        let usage = |what: String| Error::new(Kind::Usage, format!("--block-weights: {what}"));
        let hint = "--strength PATTERN=X is for any model";
        let Some((family, spelling)) = found else {
            return Err(usage("the adapter is of no image model whose blocks are known".to_string()).hint(hint));
        };
        let names = blocks::list(family, numbers.len()).ok_or_else(|| {
            let lengths: Vec<_> = blocks::lengths(family).iter().map(usize::to_string).collect();
            match lengths.is_empty() {
                true => usage(format!("there are no such lists for {}", family.about)).hint(hint),
                false => usage(format!(
                    "{} numbers; lists for {} have {}",
                    numbers.len(),
                    family.about,
                    lengths.join(" or ")
                )),
            }
        })?;
        Ok(ByBlock { family, spelling, numbers: names.into_iter().zip(numbers.iter().copied()).collect() })
    }

    /// The number for a module's block. What is in no block has 1.
    fn share(&self, path: &str, unlisted: &mut BTreeSet<String>) -> f64 {
        let Some((component, inner)) = path.split_once('.') else { return 1.0 };
        let denoiser = self.family.denoiser();
        let naming = denoiser.map_or(self.spelling.naming, |part| naming_of(part, self.spelling, inner));
        let Some(block) = blocks::block(self.family, component, naming, inner) else { return 1.0 };
        let found = self.numbers.iter().find(|(name, _)| *name == block).map(|(_, number)| *number);
        found.unwrap_or_else(|| {
            unlisted.insert(block);
            0.0
        })
    }
}
