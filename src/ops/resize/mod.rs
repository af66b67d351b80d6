//! An adapter of other ranks: for each change the best approximation of its rank, from its factors.
//!
//! Whatever has a rank is resized: LoRA and what is stored as such, each expert of a stack for itself at one rank for
//! all; a LoHa or LoKr becomes a plain low-rank change. Everything else is carried as it is, and named. A magnitude
//! (DoRA) stays; what is approximated then is the direction before it is brought to length.

mod change;

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::approximate::{self, Balance, ModuleReport, Overall};
use crate::adapter::delta::{LowRank, Qalora};
use crate::adapter::{Adapter, Delta, Note, Scale, ScaleRule, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::kernels::{Depth, Kernels, Truncated, Wanted};
use crate::limits;
use crate::linalg::rank::{self, Bounds, Chosen, Group, Rule, Spectrum};
use crate::names::ModulePath;
use crate::stream::{Budget, Limits, Progress, each};
use crate::tensor::{Dtype, Shape, Tensor};

use change::{Decomposed, changes, has_rank, low_rank, rank_of, weight_shape};

/// Where an adapter's file says what was done to it.
pub const METADATA_KEY: &str = "lora_tool.resized";

/// How often ranks are chosen with more singular values than before; each time there are twice as many.
const ROUNDS: usize = 16;

/// What becomes of the stored scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alpha {
    /// alpha is the new rank, so that the scale is 1.
    #[default]
    Rank,
    /// alpha and its meaning stay, and the factors make up for the other rank.
    Keep,
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The rule of the ranks.
    pub rule: Rule,
    /// That of convolutions with a kernel above one element; as the others where there is none.
    pub kernel_rule: Option<Rule>,
    /// Their bounds.
    pub bounds: Bounds,
    /// What becomes of the stored scale.
    pub alpha: Alpha,
    /// Where the singular values go.
    pub balance: Balance,
    /// Type of the factors; none for the one they have.
    pub dtype: Option<Dtype>,
    /// Everything by full decompositions.
    pub exact: bool,
    /// By how much the error may exceed the least possible, where a change has no factors.
    pub tolerance: f64,
    /// Seed of the random start of those.
    pub seed: u64,
}

impl Options {
    /// The usual, for a rule.
    pub fn new(rule: Rule) -> Options {
        Options {
            rule,
            kernel_rule: None,
            bounds: Bounds::default(),
            alpha: Alpha::default(),
            balance: Balance::default(),
            dtype: None,
            exact: false,
            tolerance: 0.01,
            seed: 0,
        }
    }
}

/// An adapter of other ranks.
#[derive(Clone, Debug)]
pub struct Resized {
    /// The adapter.
    pub adapter: Adapter,
    /// What was resized, in order of the paths.
    pub modules: Vec<ModuleReport>,
    /// All of it together.
    pub overall: Overall,
    /// Elements of the tensors before and after, over everything in the adapter.
    pub elements: (u64, u64),
    /// Remarks.
    pub notes: Vec<Note>,
}

/// Stored shapes of the weights of modules, where a base is at hand.
pub type Shapes<'a> = &'a (dyn Fn(&ModulePath) -> Option<Vec<usize>> + Sync);

/// Gives every change that has a rank the one the options ask for. With the shapes of a base, that includes changes
/// whose size only the base tells, and convolutions have their kernel back.
pub fn resize(
    adapter: &Adapter,
    shapes: Option<Shapes>,
    options: &Options,
    limits: Limits,
    kernels: &dyn Kernels,
    progress: &dyn Progress,
) -> Result<Resized> {
    if let Some(method) = &adapter.residual_base {
        let what = format!("made by {method} for a changed base: its factors hold a part of the base as well");
        return Err(Error::unsupported(what).hint("--base BASE takes that part out of it (PiSSA, OLoRA)"));
    }
    options.bounds.check()?;
    let units = units(adapter, shapes)?;
    if units.is_empty() {
        return Err(nothing(adapter));
    }
    let run = |units: &[Unit], rule: Rule| {
        let options = &Options { rule, ..*options };
        let work = Work { units, options, limits, kernels, progress, budget: Budget::new(limits.memory) };
        if rule.is_budget() { work.by_budget() } else { work.one_by_one() }
    };
    let done = match options.kernel_rule {
        None => run(&units, options.rule)?,
        Some(rule) => {
            let of =
                |kernels| units.iter().filter(move |unit| unit.is_kernel() == kernels).cloned().collect::<Vec<_>>();
            let mut plain = run(&of(false), options.rule)?.into_iter();
            let mut kernels = run(&of(true), rule)?.into_iter();
            units.iter().filter_map(|unit| if unit.is_kernel() { kernels.next() } else { plain.next() }).collect()
        }
    };
    Ok(assemble(adapter, &units, done, options, shapes.is_some()))
}

fn nothing(adapter: &Adapter) -> Error {
    let kinds: BTreeMap<&str, usize> = adapter.targets.values().fold(BTreeMap::new(), |mut kinds, target| {
        *kinds.entry(target.kind()).or_default() += 1;
        kinds
    });
    let list: Vec<_> = kinds.iter().map(|(kind, n)| format!("{kind} × {n}")).collect();
    let error = Error::unsupported(format!("nothing in it has a rank that could be changed: {}", list.join(", ")));
    let unsized_kinds = ["VeRA", "PVeRA", "RandLoRA", "UniLoRA"];
    if kinds.keys().any(|kind| unsized_kinds.contains(kind)) {
        return error.hint("with --base BASE the size of its changes is known");
    }
    error
}

/// One change that is resized.
#[derive(Clone)]
struct Unit<'a> {
    path: &'a ModulePath,
    target: &'a Target,
    /// Its number among the changes of the weight.
    number: usize,
    delta: &'a Delta,
    /// Rows and columns, of one expert's.
    dim: (usize, usize),
    matrices: usize,
    /// The weight's shape in the orientation of the change.
    shape: Shape,
    dtype: Dtype,
}

fn units<'a>(adapter: &'a Adapter, shapes: Option<Shapes>) -> Result<Vec<Unit<'a>>> {
    let mut out = Vec::new();
    for (path, target) in &adapter.targets {
        let ranked = |(_, delta): &(usize, &Delta)| has_rank(delta, shapes.is_some());
        for (number, delta) in target.weight.iter().enumerate().filter(ranked) {
            let matrices = low_rank(delta).and_then(|d| d.experts).map_or(1, |e| e.count);
            let stored = shapes.and_then(|shape_of| shape_of(path)).map(|dims| upright(dims, target.site));
            let dim = dim_of(delta, stored.as_ref()).at_key(path.as_str())?;
            let shape = match stored {
                Some(shape) if matrices == 1 && shape.rank() > 2 && shape.matrix() == dim => shape,
                _ => weight_shape(delta, dim),
            };
            let dtype = delta.tensors().first().map_or(Dtype::F32, |(_, t)| t.dtype);
            out.push(Unit { path, target, number, delta, dim, matrices, shape, dtype });
        }
    }
    Ok(out)
}

/// The shape that a change is written for.
fn upright(mut dims: Vec<usize>, site: SiteKind) -> Shape {
    if matches!(site, SiteKind::FanInFanOut | SiteKind::Embedding) {
        dims.reverse();
    }
    Shape::new(dims)
}

/// Rows and columns of a change, from its own tensors where they tell.
fn dim_of(delta: &Delta, stored: Option<&Shape>) -> Result<(usize, usize)> {
    match (delta, stored) {
        (Delta::Qalora(d), _) => Ok((d.factors.b.shape.matrix().0, d.factors.a.shape.matrix().1)),
        (Delta::Derived(_), Some(shape)) => Ok(shape.matrix()),
        (Delta::Derived(_), None) => Err(Error::missing("not in the base, which tells the size of the change")
            .hint("is this the base model the adapter was trained on?")),
        (other, _) => Ok(other.matrix().unwrap_or((0, 0))),
    }
}

impl Unit<'_> {
    /// Whether it is one of a convolution with a kernel above one element.
    fn is_kernel(&self) -> bool {
        self.shape.dims().iter().skip(2).any(|&k| k > 1)
    }

    /// Elements of the factors for each rank.
    fn cost(&self) -> u64 {
        (self.dim.0 as u64 + self.dim.1 as u64).saturating_mul(self.matrices as u64)
    }

    /// About how long it takes, to begin with the longest.
    fn effort(&self) -> u64 {
        let rank = rank_of(self.delta).unwrap_or(self.dim.0.min(self.dim.1)) as u64;
        self.cost().saturating_mul(rank).saturating_mul(rank)
    }

    /// Bytes of working memory: factors in f32 with their orthogonal bases, or about as much for those it is given.
    fn footprint(&self) -> u64 {
        let elements: u64 = self.delta.tensors().iter().map(|(_, t)| t.elements() as u64).sum();
        elements.saturating_mul(24)
    }

    /// With a magnitude something has to be left that it can stand behind.
    fn bounds(&self, bounds: Bounds) -> Bounds {
        if self.target.magnitude.is_some() { Bounds { min: bounds.min.max(1), ..bounds } } else { bounds }
    }
}

/// A unit with its new factors, and what is said of it.
struct Done {
    /// None where the rank is 0.
    delta: Option<Delta>,
    report: ModuleReport,
}

struct Work<'a> {
    units: &'a [Unit<'a>],
    options: &'a Options,
    limits: Limits,
    kernels: &'a dyn Kernels,
    progress: &'a dyn Progress,
    budget: Budget,
}

impl Work<'_> {
    /// Does something for every unit, the longest first.
    fn for_each<T: Send>(&self, work: impl Fn(usize, &Unit) -> Result<T> + Sync) -> Result<Vec<T>> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.units[i].effort()));
        let done = each(order.len(), self.limits.threads, self.progress, |n| {
            let unit = &self.units[order[n]];
            let _ticket = self.budget.admit(unit.footprint());
            let out = work(order[n], unit).at_key(unit.path.as_str());
            for (_, tensor) in unit.delta.tensors() {
                tensor.bytes.release(0..tensor.bytes.len());
            }
            out
        })?;
        let mut by_number: Vec<_> = order.into_iter().zip(done).collect();
        by_number.sort_by_key(|(i, _)| *i);
        Ok(by_number.into_iter().map(|(_, done)| done).collect())
    }

    /// Rules that look at one module only.
    fn one_by_one(&self) -> Result<Vec<Done>> {
        let rule = self.options.rule;
        self.for_each(|_, unit| {
            let bounds = unit.bounds(self.options.bounds);
            let mut depth = rule.depth(bounds, 0);
            let settled = rank::is_settled(rule, depth);
            let mut round = 0;
            loop {
                let parts = self.decompose(unit, depth)?;
                let group = self.group(unit, &parts);
                let chosen = rank::choose(rule, bounds, std::slice::from_ref(&group))?;
                let Some(&chosen) = chosen.first() else { return Err(Error::missing("no rank")) };
                round += 1;
                match deeper(&group, chosen, bounds, settled) {
                    Some(next) if round < ROUNDS => depth = next,
                    _ => return self.finish(unit, parts, chosen.rank),
                }
            }
        })
    }

    /// Rules that deal out one budget over all modules: all are decomposed before the first rank is known.
    fn by_budget(&self) -> Result<Vec<Done>> {
        let costs: Vec<u64> = self.units.iter().map(|u| self.price(u)).collect();
        let bytes_or_elements = self.options.rule.in_params(1);
        let uniform = self.options.rule.uniform(costs.iter().fold(0, |sum, cost| sum.saturating_add(*cost)));
        let depth = self.options.rule.depth(self.options.bounds, uniform);
        let mut all = self.for_each(|_, unit| self.decompose(unit, depth))?;
        let bounds = self.options.bounds;
        let mut round = 0;
        let chosen = loop {
            let groups: Vec<_> = self.units.iter().zip(&all).map(|(unit, parts)| self.group(unit, parts)).collect();
            let chosen = self.dealt_out(bytes_or_elements, &groups)?;
            let next: Vec<_> =
                groups.iter().zip(&chosen).map(|(group, &chosen)| deeper(group, chosen, bounds, false)).collect();
            round += 1;
            if round == ROUNDS || next.iter().all(Option::is_none) {
                break chosen;
            }
            let known = Mutex::new(all.into_iter().map(Some).collect::<Vec<_>>());
            all = self.for_each(|i, unit| match next.get(i).copied().flatten() {
                Some(depth) => self.decompose(unit, depth),
                None => take(&known, i),
            })?;
        };
        let known = Mutex::new(all.into_iter().map(Some).collect::<Vec<_>>());
        self.for_each(|i, unit| {
            let least = usize::from(unit.target.magnitude.is_some());
            let rank = chosen.get(i).map_or(0, |c| c.rank).max(least);
            self.finish(unit, take(&known, i)?, rank)
        })
    }

    /// The ranks of a budget. A module with a magnitude has rank 1 at least; what that takes comes off the budget of the
    /// others.
    fn dealt_out(&self, budget: Rule, groups: &[Group]) -> Result<Vec<Chosen>> {
        let bounds = self.options.bounds;
        let (mut rule, mut reserved) = (budget, 0u64);
        loop {
            let chosen = rank::choose(rule, bounds, groups)?;
            let bare = |(unit, chosen): &(&Unit, &Chosen)| chosen.rank < unit.bounds(bounds).min;
            let needed = self.units.iter().zip(&chosen).filter(bare).map(|(unit, _)| self.price(unit)).sum();
            let Rule::Params(all) = budget else { return Ok(chosen) };
            if needed <= reserved {
                return Ok(chosen);
            }
            reserved = needed;
            rule = Rule::Params(all.saturating_sub(reserved));
        }
    }

    /// What one more rank costs: elements, or bytes for a budget of bytes.
    fn price(&self, unit: &Unit) -> u64 {
        let bytes = self.options.dtype.unwrap_or(unit.dtype).bitsize() as u64 / 8;
        unit.cost().saturating_mul(if matches!(self.options.rule, Rule::Size(_)) { bytes } else { 1 })
    }

    fn decompose(&self, unit: &Unit, depth: Depth) -> Result<Vec<Decomposed>> {
        let limit = unit.dim.0.min(unit.dim.1);
        let ceiling = self.options.bounds.max.unwrap_or(limit).min(limit);
        let Options { tolerance, seed, exact, .. } = *self.options;
        let wanted = Wanted { depth, ceiling, tolerance, seed };
        let all = changes(unit.delta, unit.dim, self.kernels)?;
        all.iter().map(|change| change.decompose(self.kernels, &wanted, exact)).collect()
    }

    fn group(&self, unit: &Unit, parts: &[Decomposed]) -> Group {
        let members = parts.iter().map(Decomposed::spectrum).collect();
        Group { members, cost: self.price(unit), weight: 1.0 }
    }

    fn finish(&self, unit: &Unit, parts: Vec<Decomposed>, rank: usize) -> Result<Done> {
        let elements = (unit.dim.0 as u64).saturating_add(unit.dim.1 as u64).saturating_mul(rank as u64);
        if elements > limits::RESIZED {
            let found = format!("factors of rank {rank} for [{}, {}]", unit.dim.0, unit.dim.1);
            return Err(Error::limit(found, format!("{} elements", limits::RESIZED)));
        }
        let parts: Vec<Truncated> = parts.into_iter().map(|part| part.truncated(rank)).collect();
        let scale = self.scale(unit.delta, rank);
        let dtype = self.options.dtype.unwrap_or(unit.dtype);
        let (mut pairs, mut roundings) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
        if rank > 0 {
            for t in &parts {
                let (a, b) = approximate::factors(t, rank, self.options.balance, scale, dtype)?;
                roundings.push(approximate::rounding(t, self.options.balance, scale, (&a, &b))?);
                pairs.push((a, b));
            }
        } else {
            roundings.resize(parts.len(), 0.0);
        }
        let with_rounding: Vec<_> = parts.iter().zip(roundings).collect();
        let mut report = ModuleReport::new(unit.path, rank, &with_rounding);
        report.rank_before = rank_of(unit.delta);
        let delta = if rank > 0 { Some(unit.with(pairs, scale)?) } else { None };
        self.progress.advance(unit.delta.tensors().iter().map(|(_, t)| t.bytes.len() as u64).sum());
        Ok(Done { delta, report })
    }

    fn scale(&self, delta: &Delta, rank: usize) -> Scale {
        let stored = match delta {
            Delta::Hadamard(d) => d.scale,
            Delta::Kronecker(d) => d.scale,
            Delta::Tucker(d) => d.scale,
            other => low_rank(other).map_or(Scale::direct(1.0), |d| d.scale),
        };
        match self.options.alpha {
            Alpha::Keep => stored,
            Alpha::Rank => Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank },
        }
    }
}

fn take(known: &Mutex<Vec<Option<Vec<Decomposed>>>>, number: usize) -> Result<Vec<Decomposed>> {
    let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.get_mut(number).and_then(Option::take).ok_or_else(|| Error::missing("a decomposition"))
}

/// How deep to look where more is wanted than is known: twice as deep, and as deep as the rank that has come out; none
/// where there is nothing more, or where the decompositions went as deep as the rule does and all of the rank is known.
fn deeper(group: &Group, chosen: Chosen, bounds: Bounds, settled: bool) -> Option<Depth> {
    let most = |s: &Spectrum| bounds.max.unwrap_or(usize::MAX).min(s.dim.0).min(s.dim.1);
    // A matrix of lower rank than was asked for has no more to give.
    let open = |s: &&Spectrum| s.s.len() < most(s) && s.energy > s.s.iter().map(|s| s * s).sum::<f64>();
    let known = group.members.iter().filter(open).map(|s| s.s.len()).min()?;
    let enough = settled && chosen.rank <= known;
    (chosen.wants_more && !enough).then(|| Depth::Rank(known.saturating_mul(2).max(chosen.rank).max(1)))
}

impl Unit<'_> {
    /// The delta with these factors, one pair an expert.
    fn with(&self, pairs: Vec<(Tensor, Tensor)>, scale: Scale) -> Result<Delta> {
        let stored = low_rank(self.delta);
        let experts = stored.and_then(|d| d.experts);
        let (a, b) = match experts {
            Some(experts) => approximate::packed(&pairs, experts.packing)?,
            None => {
                let pair = pairs.into_iter().next().ok_or_else(|| Error::missing("no factors"))?;
                approximate::shaped(pair, &self.shape)?
            }
        };
        let name = stored.map_or("LoRA", |d| d.name);
        let factors = LowRank { a, b, scale, experts, name };
        Ok(match self.delta {
            Delta::Qalora(d) => Delta::Qalora(Qalora { factors, group: d.group }),
            _ => Delta::LowRank(factors),
        })
    }
}

/// The adapter with its new changes, and what there is to say.
fn assemble(adapter: &Adapter, units: &[Unit], done: Vec<Done>, options: &Options, sized: bool) -> Resized {
    let mut out = adapter.clone();
    let mut notes = Vec::new();
    let mut modules = Vec::with_capacity(done.len());
    let mut converted: BTreeMap<&str, usize> = BTreeMap::new();
    // Backwards, so that numbers stay right while changes are taken out.
    for (unit, done) in units.iter().zip(done).rev() {
        let Some(target) = out.targets.get_mut(unit.path) else { continue };
        match done.delta {
            Some(delta) => {
                if unit.delta.kind() != delta.kind() {
                    *converted.entry(unit.delta.kind()).or_default() += 1;
                }
                target.weight[unit.number] = delta;
            }
            None => {
                target.weight.remove(unit.number);
                let path = unit.path.as_str();
                notes.push(if done.report.energy > 0.0 {
                    Note::lossy(path, "left out: the rule gives it rank 0")
                } else {
                    Note::info(path, "left out: it changes nothing")
                });
            }
        }
        modules.push(done.report);
    }
    modules.reverse();
    notes.reverse();
    out.targets.retain(|_, t| !(t.weight.is_empty() && t.bias.is_empty() && t.magnitude.is_none()));
    for (kind, count) in converted {
        notes.push(Note::info("", format!("{count} changes stored as {kind} become LoRA")));
    }
    notes.extend(carried(adapter, sized));
    if units.iter().any(|u| u.target.magnitude.is_some()) {
        let what = "magnitudes are kept: errors are those of the direction, before it is brought to its length";
        notes.push(Note::info("", what));
    }
    let overall = approximate::overall(&modules);
    let kernels = options.kernel_rule.map_or_else(String::new, |rule| format!(" (convolutions {rule})"));
    say(&mut out, &format!("rank {}{kernels}: relative error {:.2e}", options.rule, overall.relative_error));
    let elements =
        |adapter: &Adapter| adapter.targets.values().flat_map(Target::tensors).map(|(_, t)| t.elements() as u64).sum();
    Resized { elements: (elements(adapter), elements(&out)), adapter: out, modules, overall, notes }
}

/// Adds a line to what the file says of itself.
pub(super) fn say(adapter: &mut Adapter, what: &str) {
    let metadata = &mut adapter.carried.metadata;
    match metadata.iter_mut().find(|(key, _)| key == METADATA_KEY) {
        Some((_, text)) => *text = format!("{text}; {what}"),
        None => metadata.push((METADATA_KEY.to_string(), what.to_string())),
    }
}

/// Notes on what has no rank.
fn carried(adapter: &Adapter, sized: bool) -> Vec<Note> {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for target in adapter.targets.values() {
        for delta in target.weight.iter().filter(|d| !has_rank(d, sized)).chain(&target.bias) {
            *kinds.entry(delta.kind()).or_default() += 1;
        }
    }
    let note = |(kind, count): (&str, usize)| {
        let why = match kind {
            "VeRA" | "PVeRA" | "RandLoRA" | "UniLoRA" => "whose factors are known only beside the base (--base)",
            _ => "which have no rank",
        };
        Note::info("", format!("carried as they are: {count} changes of the kind {kind}, {why}"))
    };
    kinds.into_iter().map(note).collect()
}
