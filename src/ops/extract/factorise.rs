//! The factors of every difference, and the ranks that a rule gives them.

use super::view::{Difference, View};
use super::{Models, Options, Unit};
use crate::error::{Context, Error, Result};
use crate::kernels::{Depth, Kernels, RowSource, Truncated, Wanted};
use crate::linalg::rank::{self, Group, Rule, Spectrum};
use crate::linalg::svd;
use crate::stream::{Budget, Limits, Progress, each};

/// How often ranks are chosen anew with more singular values than before.
const ROUNDS: usize = 12;
/// Rows that are read at a time to measure a weight.
const ROWS: usize = 64;

/// The decompositions of one unit, a matrix each, and the rank they are cut at.
pub struct Factorised {
    /// In the order of the members.
    pub members: Vec<Truncated>,
    /// The rank.
    pub rank: usize,
}

/// One decomposition that is to be made.
#[derive(Clone, Copy)]
struct Task {
    unit: usize,
    member: usize,
    elements: usize,
    depth: Depth,
    ceiling: usize,
}

/// Factorises the differences of all units.
pub fn factorise(
    models: Models,
    units: &[Unit],
    options: &Options,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Vec<Factorised>> {
    let mut out: Vec<Option<Factorised>> = units.iter().map(|_| None).collect();
    let separate = options.kernel_rule.is_some();
    for kernels_only in [false, true] {
        let chosen: Vec<_> = (0..units.len()).filter(|&u| (separate && units[u].is_kernel) == kernels_only).collect();
        let rule = if kernels_only { options.kernel_rule.unwrap_or(options.rule) } else { options.rule };
        let work = Work { models, units, options, rule, kernels, limits, progress };
        for (unit, done) in chosen.iter().zip(work.run(&chosen)?) {
            out[*unit] = Some(done);
        }
    }
    Ok(out.into_iter().flatten().collect())
}

struct Work<'a> {
    models: Models<'a>,
    units: &'a [Unit],
    options: &'a Options,
    rule: Rule,
    kernels: &'a dyn Kernels,
    limits: Limits,
    progress: &'a dyn Progress,
}

impl Work<'_> {
    /// Decomposes these units as deep as the rule asks for.
    fn run(&self, chosen: &[usize]) -> Result<Vec<Factorised>> {
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let dims = chosen.iter().map(|&u| self.dim(u)).collect::<Result<Vec<_>>>()?;
        let costs: Vec<u64> = chosen.iter().zip(&dims).map(|(&u, dim)| self.cost(u, *dim)).collect();
        let uniform = self.rule.uniform(costs.iter().sum());
        let depth = self.rule.depth(self.options.bounds, uniform);
        let settled = rank::is_settled(self.rule, depth);
        let mut tasks = Vec::new();
        for (&unit, &(m, n)) in chosen.iter().zip(&dims) {
            let ceiling = self.options.bounds.max.unwrap_or(usize::MAX).min(m.min(n));
            let members = self.units[unit].members().len();
            tasks.extend((0..members).map(|member| Task { unit, member, elements: m * n, depth, ceiling }));
        }
        let mut known: Vec<Vec<Option<Truncated>>> =
            chosen.iter().map(|&u| self.units[u].members().iter().map(|_| None).collect()).collect();
        let weights = chosen.iter().map(|&u| self.weight(u)).collect::<Result<Vec<_>>>()?;
        for round in 0..ROUNDS {
            self.decompose(&mut tasks, chosen, &mut known, round == 0)?;
            let groups: Vec<Group> = known
                .iter()
                .zip(&dims)
                .zip(costs.iter().zip(&weights))
                .map(|((members, dim), (&cost, &weight))| group(members, *dim, cost, weight))
                .collect();
            let ranks = rank::choose(self.rule, self.options.bounds, &groups)?;
            tasks = deeper(chosen, &dims, &known, &ranks, (self.options.bounds.max, settled));
            if tasks.is_empty() || round + 1 == ROUNDS {
                let done = known.into_iter().zip(ranks).map(|(members, chosen)| Factorised {
                    members: members.into_iter().flatten().collect(),
                    rank: chosen.rank,
                });
                return Ok(done.collect());
            }
        }
        Ok(Vec::new())
    }

    /// Rows and columns of each matrix of a unit.
    fn dim(&self, unit: usize) -> Result<(usize, usize)> {
        let unit = &self.units[unit];
        let first = unit.members().first().copied().flatten();
        View::new(self.models.tuned, &unit.changed.after, first).map(|v| v.dim())
    }

    /// Parameters of one more rank.
    fn cost(&self, unit: usize, (m, n): (usize, usize)) -> u64 {
        ((m + n) * self.units[unit].experts.unwrap_or(1)) as u64
    }

    fn difference(&self, unit: usize, member: Option<usize>) -> Result<Difference> {
        let changed = &self.units[unit].changed;
        let found = changed.before.as_ref().ok_or_else(|| Error::missing("no such tensor in the base"))?;
        Ok(Difference {
            before: View::new(self.models.base, found, member)?,
            after: View::new(self.models.tuned, &changed.after, member)?,
        })
    }

    /// What the energy of a unit counts for.
    fn weight(&self, unit: usize) -> Result<f64> {
        if !self.options.weighted {
            return Ok(1.0);
        }
        let mut sum = 0.0;
        for member in self.units[unit].members() {
            let view = self.difference(unit, member)?.before;
            let (rows, cols) = view.dim();
            let mut values = vec![0f32; ROWS.min(rows) * cols];
            for start in (0..rows).step_by(ROWS) {
                let part = start..(start + ROWS).min(rows);
                let values = &mut values[..part.len() * cols];
                view.read(part, values)?;
                sum += values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            }
            view.release();
        }
        Ok(if sum > 0.0 { 1.0 / sum } else { 1.0 })
    }

    /// Makes the decompositions of `tasks`, the largest first.
    fn decompose(
        &self,
        tasks: &mut [Task],
        chosen: &[usize],
        known: &mut [Vec<Option<Truncated>>],
        first: bool,
    ) -> Result<()> {
        tasks.sort_by_key(|t| (std::cmp::Reverse(t.elements), t.unit, t.member));
        let budget = Budget::new(self.limits.memory);
        let tasks = &*tasks;
        let made = each(tasks.len(), self.limits.threads, self.progress, |i| {
            let task = &tasks[i];
            let unit = &self.units[task.unit];
            let difference = self.difference(task.unit, unit.members()[task.member])?;
            let _room = budget.admit(footprint(difference.dim(), task));
            let done = self.one(&difference, task).at_key(&unit.changed.name);
            difference.before.release();
            difference.after.release();
            if first {
                self.progress.advance(difference.after.bytes());
            }
            done
        })?;
        for (task, done) in tasks.iter().zip(made) {
            if let Some(at) = chosen.iter().position(|&u| u == task.unit) {
                known[at][task.member] = Some(done);
            }
        }
        Ok(())
    }

    fn one(&self, difference: &Difference, task: &Task) -> Result<Truncated> {
        if self.options.exact {
            return svd::exact(self.kernels, difference, task.depth, task.ceiling);
        }
        let wanted = Wanted {
            depth: task.depth,
            ceiling: task.ceiling,
            tolerance: self.options.tolerance,
            seed: self.options.seed,
        };
        svd::truncated(self.kernels, difference, &wanted)
    }
}

fn group(members: &[Option<Truncated>], dim: (usize, usize), cost: u64, weight: f64) -> Group {
    let spectrum = |t: &Truncated| Spectrum { dim, s: t.s.clone(), energy: t.energy };
    Group { members: members.iter().flatten().map(spectrum).collect(), cost, weight }
}

/// What has to be decomposed further, and how far.
fn deeper(
    chosen: &[usize],
    dims: &[(usize, usize)],
    known: &[Vec<Option<Truncated>>],
    ranks: &[rank::Chosen],
    (max, settled): (Option<usize>, bool),
) -> Vec<Task> {
    let mut out = Vec::new();
    for (((&unit, &(m, n)), members), rank) in chosen.iter().zip(dims).zip(known).zip(ranks) {
        let ceiling = max.unwrap_or(usize::MAX).min(m.min(n));
        for (member, done) in members.iter().enumerate() {
            let have = done.as_ref().map_or(0, |t| t.s.len());
            let wanted = rank.rank.max(2 * have).max(1).min(ceiling);
            // A matrix of lower rank than was asked for has no more to give.
            let exhausted = done.as_ref().is_some_and(|t| t.lost <= 0.0 || t.energy <= 0.0);
            let enough = settled && rank.rank <= have;
            if rank.wants_more && wanted > have && !exhausted && !enough {
                out.push(Task { unit, member, elements: m * n, depth: Depth::Rank(wanted), ceiling });
            }
        }
    }
    out
}

/// Bytes of workspace: the bases on both sides, a block of rows, and the factors.
fn footprint((m, n): (usize, usize), task: &Task) -> u64 {
    let rank = match task.depth {
        Depth::Rank(rank) => rank,
        Depth::Energy(_) | Depth::Ratio(_) | Depth::Noise => 64,
    };
    let width = 4 * rank.min(task.ceiling) + 64;
    4 * ((m + n) * width.min(m.min(n).max(1)) + 64 * n) as u64
}
