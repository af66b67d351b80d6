//! The most gain for a budget, where things of one class cost the same and each class takes its best first: an integer
//! knapsack whose classes have concave gains.
//!
//! At a price λ for a unit of budget, every solution misses the upper bound λ·budget + Σ max(gainₙ − λ·cost·n) by what
//! its classes lose, each against its best number at that price, and by λ for each unit left over (Lagrange's bound;
//! Everett, Operations Research 11 (1963) 399). With the price at which the greedy solution breaks off, that is little,
//! so few numbers of each class can be part of the best solution. They are put together class after class, dominated
//! ones dropped (Nemhauser and Ullmann, Management Science 15 (1969) 494), at first for a small loss, then for larger
//! ones, until a solution is there or the greedy one is proved best.
//!
//! Above `MAX_STATES` partial solutions or `MAX_WORK` steps the answer is the greedy solution improved by exchanges
//! between two classes; it misses the best by less than the gain of one thing.

/// Things of one cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// Units of budget of one thing.
    pub cost: u64,
    /// What each thing gains, the largest first; all above zero.
    pub gains: Vec<f64>,
}

/// A solution.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// How many of each class.
    pub counts: Vec<usize>,
    /// Whether no other can gain more, up to rounding.
    pub is_best: bool,
}

/// Most partial solutions kept at a time.
const MAX_STATES: usize = 1 << 20;
/// Most partial solutions looked at for one class.
const MAX_WORK: usize = 1 << 22;
/// How far down a loss is tried for first, and by how much it grows.
const FIRST_SHARE: f64 = 1.0 / 65536.0;
const GROWTH: f64 = 8.0;
/// How many things an exchange takes or gives up at most.
const EXCHANGED: usize = 64;

/// How many of each class gain the most within the budget.
pub fn solve(classes: &[Class], budget: u64) -> Solution {
    let problem = Problem { sums: classes.iter().map(prefix_sums).collect(), classes, budget };
    let (greedy, price) = problem.greedy();
    let Some(price) = price else { return Solution { counts: greedy, is_best: true } };
    let fallback = problem.exchanged(greedy);
    let losses = problem.losses(price);
    let most = problem.loss_of(&fallback, &losses, price);
    let mut within = most * FIRST_SHARE;
    loop {
        let last = within >= most;
        match problem.within(&losses, price, within.min(most)) {
            Search::Found(counts) => return Solution { counts, is_best: true },
            Search::Nothing if last => return Solution { counts: fallback, is_best: true },
            Search::Nothing => within *= GROWTH,
            Search::TooMuch => return Solution { counts: fallback, is_best: false },
        }
    }
}

struct Problem<'a> {
    classes: &'a [Class],
    /// Gain of the first n of each class.
    sums: Vec<Vec<f64>>,
    budget: u64,
}

enum Search {
    Found(Vec<usize>),
    Nothing,
    TooMuch,
}

/// Numbers of the classes so far.
#[derive(Clone, Copy)]
struct State {
    cost: u64,
    loss: f64,
    /// The state of the classes before, and the number of the last one.
    parent: u32,
    count: u32,
}

impl Problem<'_> {
    /// The things of the most gain a unit first, each class until one no longer fits; and the gain a unit of the first
    /// one that did not, unless all fit.
    fn greedy(&self) -> (Vec<usize>, Option<f64>) {
        let mut counts = vec![0; self.classes.len()];
        let (mut left, mut price) = (self.budget, None);
        let mut open: Vec<usize> = (0..self.classes.len()).collect();
        loop {
            let density = |&c: &usize| self.density(c, counts[c]);
            open.retain(|c| density(c).is_some());
            // Of equals the first.
            let best = open
                .iter()
                .copied()
                .rev()
                .max_by(|a, b| density(a).partial_cmp(&density(b)).unwrap_or(std::cmp::Ordering::Equal));
            let Some(best) = best else { return (counts, price) };
            match left.checked_sub(self.classes[best].cost) {
                Some(rest) => {
                    left = rest;
                    counts[best] += 1;
                }
                None => {
                    price = price.or(density(&best));
                    open.retain(|&c| c != best);
                }
            }
        }
    }

    fn density(&self, class: usize, taken: usize) -> Option<f64> {
        let class = self.classes.get(class)?;
        class.gains.get(taken).map(|gain| gain / class.cost.max(1) as f64)
    }

    fn cost_of(&self, counts: &[usize]) -> u64 {
        self.classes
            .iter()
            .zip(counts)
            .map(|(class, &n)| class.cost.saturating_mul(n as u64))
            .fold(0, u64::saturating_add)
    }

    /// Better by giving up some things of one class and taking more of another, as often as that helps.
    fn exchanged(&self, mut counts: Vec<usize>) -> Vec<usize> {
        let mut left = self.budget.saturating_sub(self.cost_of(&counts));
        for _ in 0..EXCHANGED {
            let mut best = (0.0, None);
            for give in 0..self.classes.len() {
                for taken in (0..self.classes.len()).filter(|&t| t != give) {
                    for given in 0..=counts[give].min(EXCHANGED) {
                        let room = left.saturating_add(self.classes[give].cost.saturating_mul(given as u64));
                        let fits = room / self.classes[taken].cost.max(1);
                        let more = (self.classes[taken].gains.len() - counts[taken])
                            .min(usize::try_from(fits).unwrap_or(usize::MAX));
                        let gain = self.sums[taken][counts[taken] + more] - self.sums[taken][counts[taken]];
                        let gain = gain - (self.sums[give][counts[give]] - self.sums[give][counts[give] - given]);
                        if gain > best.0 {
                            best = (gain, Some((give, given, taken, more)));
                        }
                    }
                }
            }
            let (gain, Some((give, given, taken, more))) = best else { break };
            if gain <= 1e-12 * self.sums.iter().zip(&counts).map(|(s, &n)| s[n]).sum::<f64>() {
                break;
            }
            counts[give] -= given;
            counts[taken] += more;
            left = self.budget.saturating_sub(self.cost_of(&counts));
        }
        counts
    }

    /// What each number of each class loses against the class's best number at this price.
    fn losses(&self, price: f64) -> Vec<Vec<f64>> {
        let of = |(class, sums): (&Class, &Vec<f64>)| -> Vec<f64> {
            let reduced: Vec<f64> =
                sums.iter().enumerate().map(|(n, gain)| gain - price * class.cost as f64 * n as f64).collect();
            let best = reduced.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            reduced.iter().map(|r| best - r).collect()
        };
        self.classes.iter().zip(&self.sums).map(of).collect()
    }

    fn loss_of(&self, counts: &[usize], losses: &[Vec<f64>], price: f64) -> f64 {
        let left = self.budget.saturating_sub(self.cost_of(counts)) as f64;
        counts.iter().zip(losses).map(|(&n, l)| l[n]).sum::<f64>() + price * left
    }

    /// The solution of the least loss below `within`, if there is one.
    fn within(&self, losses: &[Vec<f64>], price: f64, within: f64) -> Search {
        // Losses are convex: the numbers that may be part of it are a run.
        let run = |l: &Vec<f64>| {
            let first = l.iter().position(|&loss| loss < within)?;
            let last = l.iter().rposition(|&loss| loss < within)?;
            Some((first, last))
        };
        let Some(runs) = losses.iter().map(run).collect::<Option<Vec<_>>>() else { return Search::Nothing };
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by_key(|&c| (runs[c].1 - runs[c].0 > 0, std::cmp::Reverse(self.classes[c].cost), c));
        let cost = |c: usize, n: usize| self.classes[c].cost.saturating_mul(n as u64);
        // The least and most that the classes after each may cost.
        let mut after = vec![(0u64, 0u64); order.len() + 1];
        for (i, &c) in order.iter().enumerate().rev() {
            let (least, most) = after[i + 1];
            after[i] = (least.saturating_add(cost(c, runs[c].0)), most.saturating_add(cost(c, runs[c].1)));
        }
        let mut levels: Vec<Vec<State>> = vec![vec![State { cost: 0, loss: 0.0, parent: 0, count: 0 }]];
        for (i, &c) in order.iter().enumerate() {
            let (first, last) = runs[c];
            let states = &levels[i];
            if states.len().saturating_mul(last - first + 1) > MAX_WORK {
                return Search::TooMuch;
            }
            let (least, most) = after[i + 1];
            let mut next = Vec::new();
            for (parent, state) in states.iter().enumerate() {
                for (n, own) in losses[c].iter().enumerate().take(last + 1).skip(first) {
                    let (total, loss) = (state.cost.saturating_add(cost(c, n)), state.loss + own);
                    if total.saturating_add(least) > self.budget {
                        break;
                    }
                    let left = self.budget.saturating_sub(total.saturating_add(most)) as f64;
                    if loss + price * left < within {
                        next.push(State { cost: total, loss, parent: parent as u32, count: n as u32 });
                    }
                }
            }
            let kept = undominated(next, price);
            if kept.len() > MAX_STATES {
                return Search::TooMuch;
            }
            levels.push(kept);
        }
        let total = |s: &State| s.loss + price * self.budget.saturating_sub(s.cost) as f64;
        let last = levels.len() - 1;
        let best = (0..levels[last].len()).min_by(|&a, &b| total(&levels[last][a]).total_cmp(&total(&levels[last][b])));
        let Some(mut at) = best else { return Search::Nothing };
        let mut counts = vec![0; self.classes.len()];
        for (i, &c) in order.iter().enumerate().rev() {
            let state = levels[i + 1][at];
            counts[c] = state.count as usize;
            at = state.parent as usize;
        }
        Search::Found(counts)
    }
}

/// Those that no cheaper one does better than.
fn undominated(mut states: Vec<State>, price: f64) -> Vec<State> {
    states.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
    let mut best: Option<State> = None;
    states.retain(|state| {
        let beaten = best.is_some_and(|b| b.loss + price * (state.cost - b.cost) as f64 <= state.loss);
        if !beaten {
            best = Some(*state);
        }
        !beaten
    });
    states
}

fn prefix_sums(class: &Class) -> Vec<f64> {
    let mut sums = Vec::with_capacity(class.gains.len() + 1);
    let mut sum = 0.0;
    sums.push(sum);
    for gain in &class.gains {
        sum += gain;
        sums.push(sum);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TorchRng;

    fn gain(classes: &[Class], counts: &[usize]) -> f64 {
        classes.iter().zip(counts).map(|(c, &n)| c.gains[..n].iter().sum::<f64>()).sum()
    }

    fn cost(classes: &[Class], counts: &[usize]) -> u64 {
        classes.iter().zip(counts).map(|(c, &n)| c.cost * n as u64).sum()
    }

    /// Every combination.
    fn brute_force(classes: &[Class], budget: u64) -> f64 {
        let Some((first, rest)) = classes.split_first() else { return 0.0 };
        let with = |n: usize| {
            let left = budget.checked_sub(first.cost * n as u64)?;
            Some(first.gains[..n].iter().sum::<f64>() + brute_force(rest, left))
        };
        (0..=first.gains.len()).filter_map(with).fold(0.0, f64::max)
    }

    fn random(rng: &mut TorchRng, cost: u64, count: usize) -> Class {
        let mut gains: Vec<f64> = (0..count).map(|_| f64::from(rng.uniform_f32(0.0, 1.0)).powi(3) + 1e-6).collect();
        gains.sort_by(|a, b| b.total_cmp(a));
        Class { cost, gains }
    }

    #[test]
    fn the_best_is_that_of_trying_everything() {
        let mut rng = TorchRng::new(1);
        for round in 0..400u64 {
            let costs = [1 + round % 7, 3 + round % 11, 5 + round % 13];
            let classes: Vec<_> = costs.iter().map(|&c| random(&mut rng, c, 5)).collect();
            let all: u64 = classes.iter().map(|c| c.cost * 5).sum();
            for budget in [0, all / 7, all / 3, all / 2, all - 1, all] {
                let found = solve(&classes, budget);
                assert!(found.is_best && cost(&classes, &found.counts) <= budget);
                let (found, wanted) = (gain(&classes, &found.counts), brute_force(&classes, budget));
                assert!((found - wanted).abs() <= 1e-12 * wanted, "{found} against {wanted}: {classes:?}, {budget}");
            }
        }
    }

    #[test]
    fn large_ones_are_solved_in_a_moment() {
        // Eight kinds of matrix of a language model, forty of each, ranks to 256; then costs without a common divisor.
        let models = [8192, 5120, 18432, 132_352, 6144, 3072, 9216, 20480];
        for costs in [models, models.map(|c| c + 1 + c % 17)] {
            let mut rng = TorchRng::new(3);
            let classes: Vec<_> = costs.iter().map(|&c| random(&mut rng, c, 40 * 256)).collect();
            let found = solve(&classes, 100_000_000);
            assert!(found.is_best);
            assert!(cost(&classes, &found.counts) <= 100_000_000);
        }
    }
}
