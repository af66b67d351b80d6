//! What the files of a merged model say of the adapters that are taken out, and what they say afterwards.

use super::Removal;
use crate::adapter::Note;
use crate::error::{Error, Kind, Result};
use crate::model::provenance::{KEY, MergedAdapter};
use crate::model::{BaseModel, Provenance};
use crate::stream::{Job, PlannedFile};
use crate::tensor::Hash;

/// Two sums of strengths are the same up to this share.
const SAME: f64 = 1e-12;

/// What was merged, and what is taken out of it.
pub struct History {
    /// Strengths of the removals, in their order.
    pub strengths: Vec<f64>,
    now: Option<Provenance>,
    /// Adapters of which nothing is left.
    gone: Vec<Hash>,
    /// What the list gets where something is left, or more is taken than was in it.
    rest: Vec<MergedAdapter>,
}

impl History {
    /// Decides the strengths: those given, else those that the model's files name, else 1.
    pub fn of(merged: &BaseModel, removals: &[Removal], notes: &mut Vec<Note>) -> Result<History> {
        let carried = merged.provenance();
        notes.extend(carried.odd.into_iter().map(|(file, what)| Note::lossy(file, what)));
        let mut history =
            History { strengths: Vec::new(), now: carried.provenance, gone: Vec::new(), rest: Vec::new() };
        for (i, removal) in removals.iter().enumerate() {
            let hash = removal.identity.hash;
            if removals[..i].iter().any(|other| other.identity.hash == hash) {
                return Err(Error::new(Kind::Usage, "an adapter that is given twice").in_file(&removal.label));
            }
            let strength = history.strength(removal, notes);
            if !strength.is_finite() || strength == 0.0 {
                let what = format!("strength {strength}: nothing to take out");
                return Err(Error::new(Kind::Usage, what).in_file(&removal.label));
            }
            history.strengths.push(strength);
        }
        Ok(history)
    }

    fn strength(&mut self, removal: &Removal, notes: &mut Vec<Note>) -> f64 {
        let identity = &removal.identity;
        let Some(now) = &self.now else { return removal.strength.unwrap_or(1.0) };
        let listed = now.strengths_of(identity.hash);
        let sum: f64 = listed.iter().sum();
        let strength = removal.strength.unwrap_or(if sum == 0.0 { 1.0 } else { sum });
        if (sum - strength).abs() <= SAME * strength.abs() {
            self.gone.push(identity.hash);
            if removal.strength.is_none() && strength != 1.0 {
                let text = format!("taken out at strength {strength}, as the model's files say it was merged");
                notes.push(Note::info(&removal.label, text));
            }
            return strength;
        }
        let text = if sum == 0.0 {
            format!("not among the adapters that the model's files name; taken out at strength {strength} all the same")
        } else {
            format!("taken out at strength {strength}, and the model's files say it was merged at {sum}")
        };
        notes.push(Note::lossy(&removal.label, text));
        self.rest.push(MergedAdapter { name: identity.name.clone(), hash: identity.hash, strength: -strength });
        strength
    }

    /// Other adapters in the list.
    pub fn others(&self) -> usize {
        let Some(now) = &self.now else { return 0 };
        let taken = |h: &Hash| self.gone.contains(h) || self.rest.iter().any(|m| m.hash == *h);
        let mut left: Vec<Hash> = now.merged.iter().map(|m| m.hash).filter(|h| !taken(h)).collect();
        left.sort_unstable_by_key(|h| h.0);
        left.dedup();
        left.len()
    }

    /// The fingerprint of the base, where nothing is left in the list.
    pub fn base_alone(&self) -> Option<Hash> {
        self.now.as_ref().filter(|_| self.others() == 0 && self.rest.is_empty()).map(|now| now.base)
    }

    /// Brings what each file says up to date; `changes` says which jobs make another tensor than the merged one. A file
    /// without any says less, as before, but nothing of what is gone.
    pub fn write(&self, files: &mut [PlannedFile], changes: impl Fn(&Job) -> bool, tool: &str) {
        let Some(now) = &self.now else { return };
        for file in files {
            let own = file.metadata.get(KEY).map(|text| Provenance::parse(text));
            let changed = file.jobs.iter().any(&changes);
            let own = match own {
                Some(Err(_)) => continue, // odd; a note says so
                Some(Ok(own)) => own,
                None if changed => Provenance { merged: Vec::new(), ..now.clone() },
                None => continue,
            };
            let mut after = if changed { now.clone() } else { own.clone() };
            after.merged.retain(|m| !self.gone.contains(&m.hash));
            if changed {
                after.merged.extend(self.rest.iter().cloned());
            }
            if after.merged == own.merged {
                continue;
            }
            after.tool = tool.to_string();
            if after.merged.is_empty() {
                file.metadata.shift_remove(KEY);
            } else {
                file.metadata.insert(KEY.to_string(), after.to_json().to_string());
            }
            file.head = None;
        }
    }
}
