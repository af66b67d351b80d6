//! The adapter, with factors in the place of what was approximated.

use std::collections::BTreeMap;

use super::change::Unit;
use super::place::Form;
use super::{Flattened, Options};
use crate::adapter::delta::{Delta, Experts, LowRank, Packing, low_rank::Facing};
use crate::adapter::{Adapter, Note, Scale, ScaleRule};
use crate::error::{Context, Error, Result};
use crate::kernels::Truncated;
use crate::ops::approximate::{self, ModuleReport};
use crate::ops::factorise::Factorised;
use crate::ops::resize;
use crate::tensor::Dtype;

/// Puts the factors of every unit in its place.
pub fn assemble(
    mut adapter: Adapter,
    options: &Options,
    units: &[Unit],
    factorised: Vec<Factorised>,
    mut notes: Vec<Note>,
) -> Result<Flattened> {
    let mut modules = Vec::with_capacity(units.len());
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (unit, found) in units.iter().zip(factorised) {
        let (delta, report) = unit_factors(unit, found, options).at_key(unit.path.as_str())?;
        match &delta {
            Some(_) => *kinds.entry(unit.target.kind()).or_default() += 1,
            None if report.energy > 0.0 => {
                notes.push(Note::lossy(unit.path.as_str(), "left out: the rule gives it rank 0"));
            }
            None => notes.push(Note::info(unit.path.as_str(), "left out: it changes nothing")),
        }
        modules.push(report);
        if let Some(target) = adapter.targets.get_mut(&unit.path) {
            target.magnitude = None;
            target.weight = delta.into_iter().chain(unit.rows.clone()).collect();
        }
    }
    adapter.targets.retain(|_, target| !(target.weight.is_empty() && target.bias.is_empty()));
    for (kind, count) in kinds {
        notes.push(Note::info("", format!("{count} changes stored as {kind} become the best LoRA of their rank")));
    }
    if !modules.is_empty() {
        let error = approximate::overall(&modules).relative_error;
        resize::say(&mut adapter, &format!("plain LoRA of rank {}: relative error {error:.2e}", options.ranks.rule));
    }
    Ok(Flattened { adapter, modules, notes })
}

/// The factors of one unit, none where its rank is 0, and how good they are.
fn unit_factors(unit: &Unit, found: Factorised, options: &Options) -> Result<(Option<Delta>, ModuleReport)> {
    let Factorised { members, rank } = found;
    let upright = |t: Truncated| if unit.place.transposed { approximate::transposed(&t) } else { t };
    let members: Vec<Truncated> = members.into_iter().map(upright).collect();
    if rank == 0 || members.iter().all(|t| t.energy <= 0.0) {
        let parts: Vec<_> = members.iter().map(|t| (t, 0.0)).collect();
        return Ok((None, ModuleReport::new(&unit.path, 0, &parts)));
    }
    let scale = Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank };
    let dtype = options.dtype.unwrap_or(Dtype::F32);
    let (mut pairs, mut parts) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
    for t in &members {
        let (a, b) = approximate::factors(t, rank, options.balance, scale, dtype)?;
        parts.push((t, approximate::rounding(t, options.balance, scale, (&a, &b))?));
        pairs.push((a, b));
    }
    let report = ModuleReport::new(&unit.path, rank, &parts);
    let ((a, b), experts) = match unit.place.form {
        Form::Stack(count) => {
            let experts = Experts { count, packing: Packing::RankMajor, facing: Facing::Input };
            (approximate::packed(&pairs, experts.packing)?, Some(experts))
        }
        _ => {
            let pair = pairs.pop().ok_or_else(|| Error::missing("no factors"))?;
            // What is turned is a matrix; only a convolution has more axes.
            let stored = &unit.place.stored;
            (if stored.rank() > 2 { approximate::shaped(pair, stored)? } else { pair }, None)
        }
    };
    Ok((Some(Delta::LowRank(LowRank { a, b, scale, experts, name: "LoRA" })), report))
}
