//! Which tensor of the merged model is compared with what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::sums::Sums;
use crate::model::scaled::is_eight;
use crate::model::{BaseModel, Embeddings, Role};
use crate::ops::merge::produce::{Scaling, Start};
use crate::ops::merge::{Change, Merge, Merged};
use crate::stream::{Job, Make};
use crate::tensor::{Tensor, dtype};

/// A tensor of the merged model and what it should be.
pub struct Pair {
    /// Its key.
    pub key: String,
    /// As it is.
    pub found: Tensor,
    /// As it should be.
    pub check: Check,
    /// The adapters' module paths that change it.
    pub modules: Vec<String>,
    /// The kind of each.
    pub kinds: Vec<&'static str>,
}

/// What a tensor should be.
pub enum Check {
    /// Changed by an adapter; produced in the type of the tensor that was found.
    Changed(Arc<Merged>),
    /// These values, perhaps in another type.
    Kept(Tensor),
    /// What this makes of elements with scales: no adapter changes it, and type or scales are others.
    Stored(Arc<Merged>),
}

/// A tensor that cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its key.
    pub key: String,
    /// What is wrong with it, in a few words.
    pub what: String,
}

impl Pair {
    /// Sums over nothing, for a changed tensor.
    pub fn new_sums(&self) -> Option<Sums> {
        match &self.check {
            Check::Changed(merged) => Some(Sums::new(merged.adapters().len())),
            Check::Kept(_) | Check::Stored(_) => None,
        }
    }
}

/// Pairs every tensor of the plan with one of the merged model, and says what has no other half.
pub fn pairs(base: &BaseModel, merged: &BaseModel, plan: &Merge) -> (Vec<Pair>, Vec<Problem>) {
    let changes: BTreeMap<&str, &Change> = plan.changes.iter().map(|c| (c.key.as_str(), c)).collect();
    let tied = merged.embeddings();
    let (mut pairs, mut problems, mut planned) = (Vec::new(), Vec::new(), BTreeSet::new());
    for job in plan.output.plan.files.iter().flat_map(|file| &file.jobs) {
        let key = job.entry.name.as_str();
        planned.insert(key);
        if is_beside(base, merged, key) {
            continue;
        }
        let found = merged.tensor(key).or_else(|| merged.tensor(shared(&tied, key)?));
        let problem = |what: String| Problem { key: key.to_string(), what };
        let models = (base, merged);
        match found.map(|(_, tensor)| check(models, job, plan.work.get(key), tensor).map(|check| (check, tensor))) {
            None => problems.push(problem("not in the merged model".to_string())),
            Some(Err(what)) => problems.push(problem(what)),
            Some(Ok((check, found))) => {
                let change = changes.get(key);
                pairs.push(Pair {
                    key: key.to_string(),
                    found: found.clone(),
                    check,
                    modules: change.map(|c| c.modules.clone()).unwrap_or_default(),
                    kinds: change.map(|c| c.kinds.clone()).unwrap_or_default(),
                });
            }
        }
    }
    let ours = base.embeddings();
    let others = merged.files.tensors().filter(|(_, key, _)| !planned.contains(key.as_str()));
    for (_, key, found) in others.filter(|(_, key, _)| merged.scaled().role(key).is_none()) {
        // Another use of a tied matrix, written out by itself, has to be a copy of it.
        let twin = shared(&ours, key).and_then(|input| merged.tensor(input));
        match twin.filter(|(_, twin)| twin.shape == found.shape && twin.dtype == found.dtype) {
            Some((_, twin)) => pairs.push(Pair {
                key: key.clone(),
                found: found.clone(),
                check: Check::Kept(twin.clone()),
                modules: Vec::new(),
                kinds: Vec::new(),
            }),
            None => {
                let what = "neither in the base nor added by an adapter".to_string();
                problems.push(Problem { key: key.clone(), what });
            }
        }
    }
    (pairs, problems)
}

/// The key of the matrix that a tied use is read from.
fn shared<'a>(embeddings: &'a Embeddings, key: &str) -> Option<&'a str> {
    let is_use = embeddings.tied && embeddings.uses.iter().any(|u| u.key == key);
    embeddings.input.as_deref().filter(|_| is_use)
}

/// Whether a tensor of the base is not compared by itself: a scale is part of the weights it belongs to, and what else lies
/// beside those goes where they are in another type.
fn is_beside(base: &BaseModel, merged: &BaseModel, key: &str) -> bool {
    let is_gone = merged.tensor(key).is_none();
    match base.scaled().role(key) {
        Some(Role::Scale(_)) => true,
        Some(Role::About(weight)) => is_gone && merged.tensor(weight).is_some_and(|(_, t)| !is_eight(t.dtype)),
        Some(Role::Marker) => is_gone && merged.scaled().counts().0 == 0,
        None => false,
    }
}

/// What the tensor is compared with, or why it cannot be.
fn check(
    (base, merged): (&BaseModel, &BaseModel),
    job: &Job,
    work: Option<&Arc<Merged>>,
    found: &Tensor,
) -> Result<Check, String> {
    if found.shape != job.entry.shape {
        return Err(format!("shape {}, expected {}", found.shape, job.entry.shape));
    }
    let castable = dtype::is_float(found.dtype) && dtype::is_float(job.entry.dtype);
    if found.dtype != job.entry.dtype && !castable {
        return Err(format!("dtype {}, expected {}", found.dtype, job.entry.dtype));
    }
    let key = &job.entry.name;
    let scales_in = |model: &BaseModel| model.scaled().of(key).map_err(|e| e.what().to_string());
    let scales = scales_in(merged)?;
    match (&job.make, work) {
        (Make::Copy(tensor), _) => {
            let before = scales_in(base)?;
            let same = match (&before, &scales) {
                (None, None) => true,
                (Some(before), Some(after)) => found.dtype == tensor.dtype && before.is_same(after),
                _ => false,
            };
            if same {
                return Ok(Check::Kept(tensor.clone()));
            }
            let stored = Merged::new(Start::Stored(tensor.clone()), found.dtype, &tensor.shape, Vec::new(), true);
            let stored = stored.map_err(|e| e.what().to_string())?;
            let scaling = scales.map_or(Scaling::None, Scaling::Given);
            Ok(Check::Stored(Arc::new(stored.with_scales(before, scaling))))
        }
        (Make::Compute(_), Some(merged)) => Ok(Check::Changed(Arc::new(merged.rounded_to(found.dtype, scales)))),
        (Make::Compute(_), None) => Err("no rule to make it".to_string()),
    }
}
