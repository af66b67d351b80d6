//! The decompositions of changes that are read by rows, the largest first, and the ranks that a rule gives them: the
//! common part of making an adapter from two models and from another kind of adapter.

use crate::error::{Context, Result};
use crate::kernels::{Depth, Kernels, RowSource, Truncated, Wanted};
use crate::linalg::rank::{self, Bounds, Group, Rule, Spectrum};
use crate::linalg::svd;
use crate::stream::{Budget, Limits, Progress, each};

/// How often ranks are chosen anew with more singular values than before.
const ROUNDS: usize = 12;

/// Changes by number. Each is one matrix, or several that share a rank.
pub trait Changes: Sync {
    /// How many there are.
    fn count(&self) -> usize;
    /// What the change is called in errors.
    fn name(&self, change: usize) -> &str;
    /// Number of its matrices.
    fn members(&self, change: usize) -> usize;
    /// Rows and columns of each of them.
    fn dim(&self, change: usize) -> Result<(usize, usize)>;
    /// Whether another rule may hold for it: a convolution with a kernel above one element.
    fn is_kernel(&self, _change: usize) -> bool {
        false
    }
    /// What its energy counts for in a budget.
    fn weight(&self, _change: usize) -> Result<f64> {
        Ok(1.0)
    }
    /// Bytes of memory that reading it takes beside the rows asked for.
    fn workspace(&self, _change: usize) -> u64 {
        0
    }
    /// Opens one of its matrices, decomposes it by `work` and lets it go. Gives the bytes that it lies in as well.
    fn decompose(&self, change: usize, member: usize, work: &Work) -> Result<(Truncated, u64)>;
}

/// What is done with an open matrix.
pub type Work<'a> = dyn Fn(&dyn RowSource) -> Result<Truncated> + 'a;

/// Which ranks, and how they are found.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which ranks.
    pub rule: Rule,
    /// Which ranks for convolutions with a kernel above one element; as the others where there is none.
    pub kernel_rule: Option<Rule>,
    /// Limits of all ranks.
    pub bounds: Bounds,
    /// By what share an error may exceed that of the best approximation.
    pub tolerance: f64,
    /// Full decompositions.
    pub exact: bool,
    /// Seed of the random starts.
    pub seed: u64,
}

/// The decompositions of one change, a matrix each, and the rank they are cut at.
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

/// Factorises all changes.
pub fn factorise(
    changes: &dyn Changes,
    options: &Options,
    kernels: &dyn Kernels,
    limits: Limits,
    progress: &dyn Progress,
) -> Result<Vec<Factorised>> {
    let mut out: Vec<Option<Factorised>> = (0..changes.count()).map(|_| None).collect();
    let separate = options.kernel_rule.is_some();
    for kernels_only in [false, true] {
        let chosen: Vec<_> =
            (0..changes.count()).filter(|&u| (separate && changes.is_kernel(u)) == kernels_only).collect();
        let rule = if kernels_only { options.kernel_rule.unwrap_or(options.rule) } else { options.rule };
        let run = Run { changes, options, rule, kernels, limits, progress };
        for (unit, done) in chosen.iter().zip(run.run(&chosen)?) {
            out[*unit] = Some(done);
        }
    }
    Ok(out.into_iter().flatten().collect())
}

struct Run<'a> {
    changes: &'a dyn Changes,
    options: &'a Options,
    rule: Rule,
    kernels: &'a dyn Kernels,
    limits: Limits,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Decomposes these units as deep as the rule asks for.
    fn run(&self, chosen: &[usize]) -> Result<Vec<Factorised>> {
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let dims = chosen.iter().map(|&u| self.changes.dim(u)).collect::<Result<Vec<_>>>()?;
        let costs: Vec<u64> = chosen.iter().zip(&dims).map(|(&u, dim)| self.cost(u, *dim)).collect();
        let uniform = self.rule.uniform(costs.iter().sum());
        let depth = self.rule.depth(self.options.bounds, uniform);
        let settled = rank::is_settled(self.rule, depth);
        let mut tasks = Vec::new();
        for (&unit, &(m, n)) in chosen.iter().zip(&dims) {
            let ceiling = self.options.bounds.max.unwrap_or(usize::MAX).min(m.min(n));
            let members = self.changes.members(unit);
            tasks.extend((0..members).map(|member| Task { unit, member, elements: m * n, depth, ceiling }));
        }
        let mut known: Vec<Vec<Option<Truncated>>> =
            chosen.iter().map(|&u| (0..self.changes.members(u)).map(|_| None).collect()).collect();
        let weights = chosen.iter().map(|&u| self.changes.weight(u)).collect::<Result<Vec<_>>>()?;
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

    /// Parameters of one more rank.
    fn cost(&self, unit: usize, (m, n): (usize, usize)) -> u64 {
        ((m + n) * self.changes.members(unit)) as u64
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
            let dim = self.changes.dim(task.unit)?;
            let _room = budget.admit(footprint(dim, task).saturating_add(self.changes.workspace(task.unit)));
            let work = |matrix: &dyn RowSource| self.one(matrix, task);
            let (done, bytes) =
                self.changes.decompose(task.unit, task.member, &work).at_key(self.changes.name(task.unit))?;
            if first {
                self.progress.advance(bytes);
            }
            Ok(done)
        })?;
        for (task, done) in tasks.iter().zip(made) {
            if let Some(at) = chosen.iter().position(|&u| u == task.unit) {
                known[at][task.member] = Some(done);
            }
        }
        Ok(())
    }

    fn one(&self, matrix: &dyn RowSource, task: &Task) -> Result<Truncated> {
        if self.options.exact {
            return svd::exact(self.kernels, matrix, task.depth, task.ceiling);
        }
        let wanted = Wanted {
            depth: task.depth,
            ceiling: task.ceiling,
            tolerance: self.options.tolerance,
            seed: self.options.seed,
        };
        svd::truncated(self.kernels, matrix, &wanted)
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
