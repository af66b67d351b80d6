//! Experts in one parameter for all, or each with modules of its own.

use std::collections::BTreeMap;

use super::{Form, Work};
use crate::adapter::delta::LowRank;
use crate::adapter::delta::low_rank::Facing;
use crate::adapter::{Adapter, Delta, Note, SiteKind, Target, experts, fused};
use crate::error::{Context, Error, Result};
use crate::model::{BaseModel, conv1d};
use crate::names::{ModulePath, Which, expert_of, interleaved};
use crate::ops::orientation;
use crate::tensor::{Shape, rearrange};

/// Parameters of all experts: gate and up in one, and the way back.
const STACKS: [(&str, &[Which]); 2] = [("gate_up_proj", &[Which::Gate, Which::Up]), ("down_proj", &[Which::Down])];
/// Where Mixtral has its experts on disk, and in memory.
const MIXTRAL: (&str, &str) = ("block_sparse_moe", "mlp");

/// The names of an expert's matrices, in two spellings.
fn spelt(which: Which, numbered: bool) -> &'static str {
    match (which, numbered) {
        (Which::Gate, false) => "gate_proj",
        (Which::Up, false) => "up_proj",
        (Which::Down, false) => "down_proj",
        (Which::Gate, true) => "w1",
        (Which::Up, true) => "w3",
        (Which::Down, true) => "w2",
    }
}

/// Whether the rows of gate and up take turns in the stacks of the base, as far as it is known.
fn in_turns(work: &Work) -> bool {
    let known = [work.facts.family.as_deref(), work.facts.class.as_deref()];
    let name = work.adapter.about.get("base_model_name_or_path").map(|name| name.to_lowercase().replace('-', "_"));
    known.into_iter().flatten().any(interleaved) || name.is_some_and(|name| name.contains("gpt_oss"))
}

/// A note where nothing tells the order of the rows of gate and up.
fn note_order(work: &mut Work, path: &ModulePath) {
    if work.facts.family.is_none() && work.facts.class.is_none() && !in_turns(work) {
        let text = "the rows of the gate are taken to come first, as in all models but gpt-oss; --base tells";
        work.notes.push(Note::lossy(path.as_str(), text));
    }
}

/// The rows of each part of a stack of `outputs` rows.
fn rows(work: &Work, parts: usize, outputs: usize) -> Result<Vec<Vec<usize>>> {
    if !outputs.is_multiple_of(parts.max(1)) {
        return Err(Error::mismatch(format!("{outputs} outputs, which are not those of a gate and as many others")));
    }
    let size = outputs / parts.max(1);
    let turns = in_turns(work);
    let row = |part: usize, i: usize| if turns { i * parts + part } else { part * size + i };
    Ok((0..parts).map(|part| (0..size).map(|i| row(part, i)).collect()).collect())
}

/// Takes stacks apart.
pub fn split(work: &mut Work) -> Result<()> {
    let stacks: Vec<_> = work.adapter.targets.keys().filter(|path| is_stack(work, path)).cloned().collect();
    if let Some(first) = stacks.iter().find(|path| path.leaf() == "gate_up_proj") {
        note_order(work, first);
    }
    for path in stacks {
        apart(work, &path).at_key(path.as_str())?;
    }
    Ok(())
}

fn is_stack(work: &Work, path: &ModulePath) -> bool {
    let Some(target) = work.adapter.targets.get(path) else { return false };
    let parent = path.parent().unwrap_or_default();
    let is_one = target.is_parameter()
        && STACKS.iter().any(|(name, _)| *name == path.leaf())
        && parent.leaf() == "experts"
        && matches!(target.weight.as_slice(), [Delta::LowRank(_)]);
    match work.form {
        _ if !is_one => false,
        Form::Split => true,
        Form::Fused => false,
        Form::Base => work.shape(path.as_str()).is_none() && single_name(work, &parent, 0, Which::Down).is_some(),
    }
}

/// What a base calls the matrix of an expert that lies on disk by itself.
fn single_name(work: &Work, module: &ModulePath, number: usize, which: Which) -> Option<String> {
    let base = work.base?;
    let modules =
        [module.to_string(), module.as_str().replace(&format!(".{}.", MIXTRAL.1), &format!(".{}.", MIXTRAL.0))];
    let all = modules.iter().flat_map(|m| [false, true].map(|n| format!("{m}.{number}.{}", spelt(which, n))));
    all.into_iter().find(|name| base.tensor(&format!("{name}.weight")).is_some())
}

fn apart(work: &mut Work, path: &ModulePath) -> Result<()> {
    let Some((_, parts)) = STACKS.iter().find(|(name, _)| *name == path.leaf()) else { return Ok(()) };
    let Some(target) = work.adapter.targets.get(path).cloned() else { return Ok(()) };
    let [Delta::LowRank(factors)] = target.weight.as_slice() else { return Ok(()) };
    let factors = facing_inputs(work, path, factors)?;
    let module = path.parent().unwrap_or_default();
    let mixtral = work.base.is_none() && work.facts.family.as_deref() == Some("mixtral");
    work.adapter.targets.remove(path);
    for (number, single) in experts::singles(&factors)?.into_iter().enumerate() {
        let rows = rows(work, parts.len(), single.b.shape.matrix().0)?;
        for (which, part) in parts.iter().zip(fused::split_factors(&single, &rows)?) {
            let name = single_name(work, &module, number, *which).unwrap_or_else(|| {
                let module = module.as_str();
                let module = if mixtral { module.replace(MIXTRAL.1, MIXTRAL.0) } else { module.to_string() };
                format!("{module}.{number}.{}", spelt(*which, mixtral))
            });
            work.put(&name, Target { weight: vec![Delta::LowRank(part)], ..Target::default() })?;
        }
    }
    work.counts.split += 1;
    Ok(())
}

/// The factors of a stack with A at the true inputs, as far as that can be known.
fn facing_inputs(work: &Work, path: &ModulePath, factors: &LowRank) -> Result<LowRank> {
    let Some(mut own) = factors.experts else { return Ok(factors.clone()) };
    if let Some(known) = work.base.map(|base| true_facing(base, &work.adapter, path)).transpose()?.flatten() {
        own.facing = known;
    }
    Ok(LowRank { experts: Some(own), ..factors.clone() })
}

/// Which way the factors of a stack face, told by the shape of the base's; none where the base does not have it.
fn true_facing(base: &BaseModel, adapter: &Adapter, path: &ModulePath) -> Result<Option<Facing>> {
    let Some(found) = base.names.find(path.as_str()) else { return Ok(None) };
    let stored = Shape::new(found.memory_shape);
    let transposed = orientation::is_transposed(base, adapter, path, &stored)?;
    // A product that stands as the parameter does has A at the last axis: the inputs, unless those come first.
    let inputs = transposed == conv1d::experts_in_out(base);
    Ok(Some(if inputs { Facing::Input } else { Facing::FirstUnlessTransposed }))
}

/// Settles which way stacks face where only the version of PEFT that wrote them tells, so that they can be written as they
/// are today; how many.
pub fn settle_facing(adapter: &mut Adapter, base: &BaseModel) -> usize {
    let mut known = Vec::new();
    for (path, target) in &adapter.targets {
        let [Delta::LowRank(LowRank { experts: Some(experts), .. })] = target.weight.as_slice() else { continue };
        let open = matches!(experts.facing, Facing::First | Facing::Unknown);
        // Where the base does not tell, either, it stays as it was.
        if let (true, Ok(Some(facing))) = (open, true_facing(base, adapter, path)) {
            known.push((path.clone(), facing));
        }
    }
    for (path, facing) in &known {
        let factors = adapter.targets.get_mut(path).and_then(|target| target.weight.first_mut());
        if let Some(Delta::LowRank(LowRank { experts: Some(experts), .. })) = factors {
            experts.facing = *facing;
        }
    }
    known.len()
}

/// The factors of one layer's experts.
type Singles = BTreeMap<usize, BTreeMap<Which, LowRank>>;

/// Puts experts together.
pub fn fuse(work: &mut Work) -> Result<()> {
    let mut modules: BTreeMap<ModulePath, Singles> = BTreeMap::new();
    let mut taken = Vec::new();
    for (path, target) in &work.adapter.targets {
        let name = path.tensor("weight");
        let Some(expert) = expert_of(&name).filter(|_| target.site == SiteKind::Layer) else { continue };
        if !is_wanted(work, path, expert.module) {
            continue;
        }
        let [Delta::LowRank(d)] = target.weight.as_slice() else {
            return Err(Error::unsupported(format!("{} of one expert", target.kind())).at_key(path.as_str()));
        };
        if target.magnitude.is_some() || !target.bias.is_empty() {
            let what = "a magnitude or bias of one expert, which a parameter of all experts cannot have";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        let own = modules.entry(expert.module.into()).or_default().entry(expert.number).or_default();
        own.insert(expert.which, d.clone());
        taken.push(path.clone());
    }
    for path in &taken {
        work.adapter.targets.remove(path);
    }
    work.counts.fused += taken.len();
    if let Some((first, _)) = modules.iter().find(|(_, all)| all.values().any(|own| own.contains_key(&Which::Gate))) {
        note_order(work, first);
    }
    for (module, singles) in modules {
        together(work, &module, &singles).at_key(module.as_str())?;
    }
    Ok(())
}

fn is_wanted(work: &Work, path: &ModulePath, module: &str) -> bool {
    match work.form {
        Form::Split => false,
        Form::Fused => true,
        Form::Base => !work.has(path.as_str()) && stack_module(work, module).is_some(),
    }
}

/// The module of the base that has all experts in a parameter.
fn stack_module(work: &Work, module: &str) -> Option<String> {
    let names = [module.to_string(), module.replace(MIXTRAL.0, MIXTRAL.1)];
    names.into_iter().find(|m| STACKS.iter().any(|(stack, _)| work.shape(&format!("{m}.{stack}")).is_some()))
}

fn together(work: &mut Work, module: &ModulePath, singles: &Singles) -> Result<()> {
    let holder = stack_module(work, module.as_str()).unwrap_or_else(|| module.as_str().replace(MIXTRAL.0, MIXTRAL.1));
    let seen = singles.keys().last().map_or(0, |n| n + 1);
    for (stack, parts) in STACKS {
        let adapted = singles.values().any(|own| parts.iter().any(|which| own.contains_key(which)));
        if !adapted {
            continue;
        }
        let path = format!("{holder}.{stack}");
        let known = work.shape(&path).and_then(|shape| shape.first().copied()).or(work.facts.experts);
        let count = known.unwrap_or(seen);
        if seen > count {
            return Err(Error::mismatch(format!("an expert number {}, and the base has {count}", seen - 1)));
        }
        if known.is_none() && !work.notes.iter().any(|note| note.key == "experts") {
            let text = format!("taken to be {seen} a layer, since no later one is adapted; --base tells");
            work.notes.push(Note::lossy("experts", text));
        }
        let mut all: Vec<Option<LowRank>> = vec![None; count];
        let mut before = 0;
        for (number, own) in singles {
            before = own.values().map(LowRank::rank).max().unwrap_or(0).max(before);
            if let Some(place) = all.get_mut(*number) {
                *place = whole_expert(work, own, parts)?;
            }
        }
        let refs: Vec<_> = all.iter().map(Option::as_ref).collect();
        let factors = experts::packed(&refs)?;
        work.note_growth(&path, before, factors.rank());
        let target = Target { weight: vec![Delta::LowRank(factors)], site: SiteKind::Parameter, ..Target::default() };
        work.put(&path, target)?;
    }
    Ok(())
}

/// The factors of one expert of a stack, from those of its parts.
fn whole_expert(work: &Work, own: &BTreeMap<Which, LowRank>, parts: &[Which]) -> Result<Option<LowRank>> {
    let factors: Vec<_> = parts.iter().map(|which| own.get(which)).collect();
    let Some(first) = factors.iter().flatten().next() else { return Ok(None) };
    if parts.len() == 1 {
        return Ok(Some((*first).clone()));
    }
    let size = first.b.shape.matrix().0;
    let (whole, _) = fused::fuse_factors(&factors, &vec![size; parts.len()])?;
    // Where the rows take turns, row i of part p is the p-th of the i-th turn.
    let rows = rows(work, parts.len(), size * parts.len())?;
    let mut order = vec![0; size * parts.len()];
    for (new, old) in rows.iter().flatten().zip(0..) {
        if let Some(place) = order.get_mut(*new) {
            *place = old;
        }
    }
    let b = rearrange::pick_rows(&whole.b, &order)?;
    Ok(Some(LowRank { b, ..whole }))
}
