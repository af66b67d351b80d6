//! What a merge asks and says about where things come from: whether the base has an adapter already, whether it is the
//! base that the adapter names, and what the files of the result say of all merges up to this one.

use super::{Applied, Identity, Options};
use crate::adapter::Note;
use crate::error::{Context, Error, Kind, Result};
use crate::model::provenance::{KEY, MergedAdapter};
use crate::model::{BaseModel, Provenance};
use crate::stream::Plan;
use crate::tensor::Hash;

/// Where the base comes from.
pub struct History {
    /// The base's own fingerprint.
    fingerprint: Hash,
    /// What was merged into it before.
    earlier: Option<Provenance>,
}

/// Refuses what was merged before and what was made for another base, unless that is asked for.
pub fn check(base: &BaseModel, adapters: &[Applied], options: &Options, notes: &mut Vec<Note>) -> Result<History> {
    let carried = base.provenance();
    notes.extend(carried.odd.into_iter().map(|(file, what)| Note::lossy(file, what)));
    let history = History { fingerprint: base.fingerprint(), earlier: carried.provenance };
    for applied in adapters {
        let Some(identity) = &applied.identity else { continue };
        history.check_repeat(applied, identity, options, notes).in_file(&applied.label)?;
        history.check_base((base, applied), identity, options, notes).in_file(&applied.label)?;
    }
    Ok(history)
}

impl History {
    /// An adapter is in the base if its strengths there do not cancel. To merge it with the opposite sign takes it out.
    fn check_repeat(
        &self,
        applied: &Applied,
        identity: &Identity,
        options: &Options,
        notes: &mut Vec<Note>,
    ) -> Result<()> {
        let strengths = self.earlier.as_ref().map(|p| p.strengths_of(identity.hash)).unwrap_or_default();
        if strengths.iter().sum::<f64>() * applied.strength <= 0.0 {
            return Ok(());
        }
        let all = strengths.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        let what = format!("merged into this base before, at strength {all}");
        if !options.allow_repeat {
            return Err(Error::new(Kind::Exists, what).hint("--allow-repeat merges it once more"));
        }
        notes.push(Note::info(&applied.label, what));
        Ok(())
    }

    fn check_base(
        &self,
        (base, applied): (&BaseModel, &Applied),
        identity: &Identity,
        options: &Options,
        notes: &mut Vec<Note>,
    ) -> Result<()> {
        let Some(named) = identity.base.filter(|named| *named != self.fingerprint) else { return Ok(()) };
        if self.earlier.as_ref().is_some_and(|p| p.base == named) {
            let what = "made for the base without the adapters that were merged into it before";
            notes.push(Note::info(&applied.label, what));
            return Ok(());
        }
        if let Some(component) = base.component_with(named) {
            notes.push(Note::info(&applied.label, format!("made for the {} of this pipeline", component.name)));
            return Ok(());
        }
        let what = format!("made for another base: it names fingerprint {named}, this base has {}", self.fingerprint);
        if !options.allow_other_base {
            return Err(Error::mismatch(what).hint("--allow-other-base merges it all the same"));
        }
        notes.push(Note::info(&applied.label, what));
        Ok(())
    }

    /// What the result's files shall say: all that was merged before, and these adapters. None if they shall say
    /// nothing.
    pub fn with(&self, adapters: &[Applied], options: &Options) -> Result<Option<Provenance>> {
        let Some(tool) = options.provenance.clone() else { return Ok(None) };
        let (base, mut merged) = match &self.earlier {
            Some(earlier) => (earlier.base, earlier.merged.clone()),
            None => (self.fingerprint, Vec::new()),
        };
        for applied in adapters {
            let identity = applied.identity.as_ref();
            let identity = identity.ok_or_else(|| Error::missing("a provenance needs the hash of the adapter"));
            let Identity { name, hash, .. } = identity.in_file(&applied.label)?.clone();
            merged.push(MergedAdapter { name, hash, strength: applied.strength });
        }
        Ok(Some(Provenance { tool, base, merged }))
    }
}

/// Puts it into the metadata of every file that is not a copy of one of the base's, or takes what is there out of all.
/// A file whose metadata changes has a new head.
pub fn write(provenance: Option<&Provenance>, plan: &mut Plan) {
    let text = provenance.map(|p| p.to_json().to_string());
    for file in &mut plan.files {
        let changed = match &text {
            Some(_) if file.whole_copy().is_some() => false,
            Some(text) => file.metadata.insert(KEY.to_string(), text.clone()).as_ref() != Some(text),
            None => file.metadata.shift_remove(KEY).is_some(),
        };
        if changed {
            file.head = None;
        }
    }
}
