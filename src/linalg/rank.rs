//! Which rank to cut at: rules for one matrix, and budgets over many.
//!
//! A rule for one matrix is met by the least rank that does what it says; a budget is dealt out over all matrices so
//! that they hold the most energy (‖·‖²_F) together, which is exact ([`super::knapsack`]). Bounds hold whatever the
//! rule: the lower one and the multiple round a rank up, the upper one cuts it off.

use std::fmt;
use std::str::FromStr;

use super::knapsack::{self, Class};
use crate::error::{Error, Kind, Result};
use crate::kernels::truncated::noise_edge;
use crate::kernels::{Depth, Truncated};
use crate::tensor::size;

/// Share of the energy that may be missing from the known singular values by rounding alone: they come from f32.
const ROUNDING: f64 = 1e-6;
/// Singular values below this share of the largest are rounding.
const FAINT: f64 = 1e-6;
/// Sums of f64 that are equal this closely are equal.
const EQUAL: f64 = 1e-12;

/// The rule of `--rank`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The same rank everywhere.
    Fixed(usize),
    /// The least rank that keeps this share of the squared Frobenius norm of each matrix.
    Energy(f64),
    /// The least rank whose relative Frobenius error is at most this, for each matrix.
    Error(f64),
    /// All singular values of at least this share of the largest, for each matrix.
    Ratio(f64),
    /// All singular values that stand out of noise.
    Noise,
    /// So many parameters over all matrices together, where they hold the most energy.
    Params(u64),
    /// So many bytes; a caller who knows the elements makes parameters of them with [`Rule::in_params`].
    Size(u64),
}

/// Limits of every rank, whatever the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// At least this, where the matrix has so many.
    pub min: usize,
    /// At most this.
    pub max: Option<usize>,
    /// A multiple of this, where the matrix has so many.
    pub multiple: usize,
}

/// What is known of one matrix when ranks are chosen.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Rows and columns.
    pub dim: (usize, usize),
    /// The largest singular values, largest first.
    pub s: Vec<f64>,
    /// ‖d‖²_F.
    pub energy: f64,
}

/// Matrices that share one rank: mostly one, all experts of a stack where their layout has one rank for them.
#[derive(Clone, Debug)]
pub struct Group {
    /// The matrices.
    pub members: Vec<Spectrum>,
    /// Parameters of one more rank, over all members.
    pub cost: u64,
    /// What the energy counts for in a budget; 1 unless energies are weighted.
    pub weight: f64,
}

/// The rank of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The rank. It may be larger than the number of singular values known: what is known of the matrix beyond them is
    /// zero, or `wants_more` is set.
    pub rank: usize,
    /// The rule might go deeper if more singular values were known.
    pub wants_more: bool,
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Rule> {
        let share = |word: &str, value: &str, open: bool| {
            let range = if open { "above 0 and below 1" } else { "above 0 and at most 1" };
            let number = value.parse::<f64>().ok().filter(|&v| v > 0.0 && (v < 1.0 || (v == 1.0 && !open)));
            number.ok_or_else(|| usage(format!("{word}={value}: expected a number {range}")))
        };
        let wrong = |e: String| usage(format!("{text}: {e}"));
        match text.split_once('=') {
            None if text == "mp" => Ok(Rule::Noise),
            None => match text.parse() {
                Ok(rank) if rank > 0 => Ok(Rule::Fixed(rank)),
                _ => Err(unknown(text)),
            },
            Some(("energy", value)) => share("energy", value, false).map(Rule::Energy),
            Some(("error", value)) => share("error", value, true).map(Rule::Error),
            Some(("ratio", value)) => share("ratio", value, false).map(Rule::Ratio),
            Some(("size", value)) => size::parse(value).map(Rule::Size).map_err(wrong),
            Some(("params", value)) => size::parse_count(value).map(Rule::Params).map_err(wrong),
            Some(_) => Err(unknown(text)),
        }
    }
}

fn usage(what: String) -> Error {
    Error::new(Kind::Usage, what)
}

fn unknown(text: &str) -> Error {
    let known = "a rank above 0, energy=E, error=E, ratio=R, size=50MB, params=10M or mp";
    usage(format!("`{text}` is no rank; expected {known}"))
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Fixed(rank) => write!(f, "{rank}"),
            Rule::Energy(share) => write!(f, "energy={share}"),
            Rule::Error(error) => write!(f, "error={error}"),
            Rule::Ratio(ratio) => write!(f, "ratio={ratio}"),
            Rule::Noise => f.write_str("mp"),
            Rule::Params(count) => write!(f, "params={}", size::exact_count(*count)),
            Rule::Size(bytes) => write!(f, "size={}", size::exact(*bytes)),
        }
    }
}

impl Rule {
    /// Whether ranks are chosen over all matrices together.
    pub fn is_budget(&self) -> bool {
        matches!(self, Rule::Params(_) | Rule::Size(_))
    }

    /// A size as a number of elements of this many bytes; any other rule as it is. Where elements differ in size, give
    /// every group its cost in bytes and the rule `in_params(1)`.
    #[must_use]
    pub fn in_params(self, bytes: usize) -> Rule {
        match self {
            Rule::Size(size) => Rule::Params(size / bytes.max(1) as u64),
            other => other,
        }
    }

    /// The rank that a budget gives every matrix alike, `cost` being what one rank costs over all of them; 0 for other
    /// rules.
    pub fn uniform(&self, cost: u64) -> usize {
        match self {
            Rule::Params(all) | Rule::Size(all) => usize::try_from(all / cost.max(1)).unwrap_or(usize::MAX),
            _ => 0,
        }
    }

    /// How deep each matrix has to be decomposed for the rule. `uniform` is the rank that a budget would give every
    /// matrix alike, the place to begin for budgets: twice as deep, since some matrices take more than others. Where
    /// that was not enough, [`choose`] says so.
    pub fn depth(&self, bounds: Bounds, uniform: usize) -> Depth {
        match *self {
            Rule::Fixed(rank) => Depth::Rank(bounds.of(rank, usize::MAX)),
            Rule::Energy(share) => Depth::Energy(share),
            Rule::Error(error) => Depth::Energy(1.0 - error * error),
            Rule::Ratio(ratio) => Depth::Ratio(ratio),
            Rule::Noise => Depth::Noise,
            Rule::Params(_) | Rule::Size(_) => Depth::Rank(bounds.of(uniform.saturating_mul(2).max(1), usize::MAX)),
        }
    }
}

/// Whether a decomposition that was asked for `depth` has gone as deep as the rule by itself goes: then only bounds, or
/// another member of the group, can want more than is known.
pub fn is_settled(rule: Rule, depth: Depth) -> bool {
    matches!((rule, depth), (Rule::Ratio(_), Depth::Ratio(_)) | (Rule::Noise, Depth::Noise))
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { min: 0, max: None, multiple: 1 }
    }
}

impl Bounds {
    /// An error where no rank is within them.
    pub fn check(&self) -> Result<()> {
        let Bounds { min, max, multiple } = *self;
        if multiple == 0 || max == Some(0) {
            return Err(usage("a bound of 0 on the rank, expected at least 1".to_string()));
        }
        let Some(max) = max else { return Ok(()) };
        let least = min.max(1).div_ceil(multiple).saturating_mul(multiple);
        if least <= max {
            return Ok(());
        }
        let of = if multiple > 1 { format!(" that is a multiple of {multiple}") } else { String::new() };
        Err(usage(format!("no rank{of} is at least {} and at most {max}", min.max(1))))
    }

    /// The rank nearest to `rank` that they allow for a matrix of at most `limit`.
    fn of(&self, rank: usize, limit: usize) -> usize {
        let multiple = self.multiple.max(1);
        let most = self.max.map_or(usize::MAX, |max| max / multiple * multiple).min(limit);
        let wanted = rank.max(self.min.min(limit));
        wanted.div_ceil(multiple).saturating_mul(multiple).min(most)
    }
}

impl Spectrum {
    /// The largest rank there is.
    fn limit(&self) -> usize {
        self.dim.0.min(self.dim.1)
    }

    fn is_zero(&self) -> bool {
        self.energy.is_nan() || self.energy <= 0.0
    }

    /// The energy beyond the known singular values; 0 where it is no more than rounding, or none are unknown.
    fn unknown(&self) -> f64 {
        let rest = self.energy - self.s.iter().map(|s| s * s).sum::<f64>();
        if self.s.len() >= self.limit() || rest <= ROUNDING * self.energy { 0.0 } else { rest }
    }

    /// The energy beyond the first `rank`, for each of the ranks that are known.
    fn tails(&self) -> Vec<f64> {
        let mut tail = self.unknown();
        let mut tails: Vec<f64> = std::iter::once(tail)
            .chain(self.s.iter().rev().map(|s| {
                tail += s * s;
                tail
            }))
            .collect();
        tails.reverse();
        tails
    }

    /// The rank that the rule has for the matrix by itself, and whether all known singular values were too few for it.
    fn ruled(&self, rule: Rule) -> (usize, bool) {
        let known = self.s.len();
        if self.is_zero() {
            return (0, false);
        }
        let first = |share: f64| {
            let most = (share + EQUAL) * self.energy;
            let least = self.tails().iter().position(|&tail| tail <= most);
            least.map_or((known, true), |rank| (rank, false))
        };
        let above = |threshold: f64| {
            let count = self.s.iter().take_while(|&&s| s > 0.0 && s >= threshold).count();
            (count, count == known)
        };
        match rule {
            Rule::Fixed(rank) => (rank, rank > known),
            Rule::Energy(share) => first(1.0 - share),
            Rule::Error(error) => first(error * error),
            Rule::Ratio(ratio) => above((1.0 - EQUAL) * ratio * self.s.first().copied().unwrap_or(0.0)),
            Rule::Noise => self.out_of_noise(),
            Rule::Params(_) | Rule::Size(_) => (known, true),
        }
    }

    /// The number of singular values above the edge of what noise alone has, as far as they are known (see
    /// [`noise_edge`]). More of them leave less noise, so the number grows until it stays.
    fn out_of_noise(&self) -> (usize, bool) {
        let faint = FAINT * self.s.first().copied().unwrap_or(0.0);
        let tails = self.tails();
        let mut rank = 0;
        loop {
            let threshold = noise_edge(tails[rank], self.dim, rank).max(faint);
            let next = self.s.iter().take_while(|&&s| s > threshold).count();
            if next <= rank {
                return (rank, rank == self.s.len());
            }
            rank = next;
        }
    }
}

impl Group {
    fn limit(&self) -> usize {
        self.members.iter().map(Spectrum::limit).max().unwrap_or(0)
    }

    fn is_zero(&self) -> bool {
        self.members.iter().all(Spectrum::is_zero)
    }

    /// The least number of known singular values over the members of which more are unknown; none if all is known.
    fn known(&self) -> Option<usize> {
        self.members.iter().filter(|m| m.unknown() > 0.0).map(|m| m.s.len()).min()
    }

    /// The rank of a rule for single matrices: that of the member that needs the most.
    fn ruled(&self, rule: Rule, bounds: Bounds) -> Chosen {
        let limit = self.limit();
        let (mut rank, mut open) = (0, false);
        for member in &self.members {
            let (own, too_few) = member.ruled(rule);
            rank = rank.max(own);
            open |= too_few && member.unknown() > 0.0;
        }
        let rank = bounds.of(rank, limit);
        let most = bounds.of(usize::MAX, limit);
        let wants_more = self.known().is_some_and(|known| rank > known || (open && known < most));
        Chosen { rank, wants_more }
    }

    /// The energy of one more rank, weighted, for each rank that is known of some member; never more than the one
    /// before.
    fn gains(&self) -> Vec<f64> {
        let known = self.members.iter().map(|m| m.s.len()).max().unwrap_or(0);
        let mut least = f64::INFINITY;
        let gain = |k: usize| {
            let sum: f64 = self.members.iter().filter_map(|m| m.s.get(k)).map(|s| s * s).sum();
            least = least.min(self.weight * sum);
            least
        };
        (0..known).map(gain).collect()
    }
}

/// The rank of every group under the rule.
///
/// A matrix of zeros has rank 0 unless the bounds say otherwise. A budget is spent on the lower bound first, then on
/// whole multiples; with a multiple, ranks above the last that fits into a matrix are not used.
pub fn choose(rule: Rule, bounds: Bounds, groups: &[Group]) -> Result<Vec<Chosen>> {
    bounds.check()?;
    match rule {
        Rule::Params(budget) => budgeted(budget, bounds, groups),
        Rule::Size(_) => Err(usage("a size, expected a number of parameters".to_string())),
        _ => Ok(groups.iter().map(|group| group.ruled(rule, bounds)).collect()),
    }
}

/// So many more ranks of one group for so much gain.
struct Step {
    group: usize,
    ranks: usize,
    gain: f64,
}

fn budgeted(budget: u64, bounds: Bounds, groups: &[Group]) -> Result<Vec<Chosen>> {
    let mut ranks: Vec<usize> =
        groups.iter().map(|g| if bounds.min == 0 { 0 } else { bounds.of(bounds.min, g.limit()) }).collect();
    let spent = groups.iter().zip(&ranks).try_fold(0u64, |all, (g, &rank)| all.checked_add(cost(g, rank)?));
    let left = spent.and_then(|spent| budget.checked_sub(spent)).ok_or_else(|| {
        let needs = spent.map_or("more than there are numbers for".to_string(), |n| n.to_string());
        let what = format!("a budget of {budget} parameters, rank {} of everything takes {needs}", bounds.min);
        Error::new(Kind::Limit, what)
    })?;
    let steps = steps(bounds, groups, &ranks);
    if let (Some(least), 0) = (steps.keys().next(), bounds.min)
        && *least > budget
    {
        let what = format!("a budget of {budget} parameters, the smallest matrix takes {least}");
        return Err(Error::new(Kind::Limit, what));
    }
    let classes: Vec<_> =
        steps.iter().map(|(&cost, all)| Class { cost, gains: all.iter().map(|s| s.gain).collect() }).collect();
    let solution = knapsack::solve(&classes, left);
    for (count, all) in solution.counts.iter().zip(steps.values()) {
        for step in all.iter().take(*count) {
            ranks[step.group] += step.ranks;
        }
    }
    let chosen = |(group, &rank): (&Group, &usize)| {
        let room = rank < bounds.of(usize::MAX, group.limit());
        let wants_more = group.known().is_some_and(|known| rank > known || (rank == known && room));
        Chosen { rank, wants_more }
    };
    Ok(groups.iter().zip(&ranks).map(chosen).collect())
}

fn cost(group: &Group, rank: usize) -> Option<u64> {
    group.cost.checked_mul(rank as u64)
}

/// What may be added to the ranks, by cost; of each cost the largest gain first, of equals the earlier group.
fn steps(bounds: Bounds, groups: &[Group], ranks: &[usize]) -> std::collections::BTreeMap<u64, Vec<Step>> {
    let mut out: std::collections::BTreeMap<u64, Vec<Step>> = std::collections::BTreeMap::new();
    for (group, (g, &begun)) in groups.iter().zip(ranks).enumerate() {
        let most = bounds.of(usize::MAX, g.limit());
        let gains = g.gains();
        let mut rank = begun;
        while rank < gains.len() && !g.is_zero() {
            // A matrix smaller than the multiple has one step, all of it.
            let ranks = if rank == 0 { bounds.multiple.min(most) } else { bounds.multiple };
            let Some(price) = cost(g, ranks).filter(|_| ranks > 0 && rank + ranks <= most) else { break };
            let gain: f64 = gains[rank..gains.len().min(rank + ranks)].iter().sum();
            if !(gain > 0.0 && gain.is_finite()) {
                break;
            }
            out.entry(price).or_default().push(Step { group, ranks, gain });
            rank += ranks;
        }
    }
    for all in out.values_mut() {
        all.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    }
    out
}

/// Relative Frobenius error of a truncation to `rank`.
pub fn error_at(t: &Truncated, rank: usize) -> f64 {
    let kept: f64 = t.s[rank.min(t.s.len())..].iter().map(|s| s * s).sum();
    if t.energy > 0.0 { ((t.lost + kept) / t.energy).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TorchRng;

    /// A matrix whose known singular values are all there is.
    fn whole(dim: (usize, usize), s: &[f64]) -> Spectrum {
        Spectrum { dim, s: s.to_vec(), energy: s.iter().map(|s| s * s).sum() }
    }

    fn group(members: Vec<Spectrum>, cost: u64) -> Group {
        Group { members, cost, weight: 1.0 }
    }

    fn one(rule: &str, bounds: Bounds, spectrum: &Spectrum) -> (usize, bool) {
        let chosen = choose(rule.parse().unwrap(), bounds, &[group(vec![spectrum.clone()], 1)]).unwrap();
        (chosen[0].rank, chosen[0].wants_more)
    }

    const ANY: Bounds = Bounds { min: 0, max: None, multiple: 1 };

    #[test]
    fn rules_are_read_and_shown() {
        for text in ["16", "energy=0.95", "energy=1", "error=0.1", "ratio=0.02", "size=50MB", "params=10M", "mp"] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        assert_eq!("params=10M".parse::<Rule>().unwrap(), Rule::Params(10_000_000));
        assert_eq!("size=1.5MiB".parse::<Rule>().unwrap(), Rule::Size(1_572_864));
        let bad = [
            "",
            "0",
            "-1",
            "1.5",
            "16 ",
            "energy=0",
            "energy=1.01",
            "energy=NaN",
            "energy=",
            "error=0",
            "error=1",
            "ratio=0",
            "ratio=2",
            "size=0",
            "size=5XB",
            "params=10MB",
            "mp=1",
            "Energy=0.5",
            "rank=4",
        ];
        for text in bad {
            assert_eq!(text.parse::<Rule>().unwrap_err().kind(), Kind::Usage, "{text}");
        }
        assert_eq!(Rule::Size(1001).in_params(2), Rule::Params(500));
        assert_eq!(Rule::Noise.in_params(2), Rule::Noise);
    }

    #[test]
    fn each_rule_on_a_spectrum_made_by_hand() {
        // Squares 16, 4, 4, 1 of 25: 64 %, 80 %, 96 %, 100 %.
        let d = whole((9, 4), &[4.0, 2.0, 2.0, 1.0]);
        for (rule, rank) in [
            ("1", 1),
            ("3", 3),
            ("9", 4),
            ("energy=0.64", 1),
            ("energy=0.65", 2),
            ("energy=0.96", 3),
            ("energy=1", 4),
            ("error=0.6", 1),
            ("error=0.2", 3),
            ("error=0.19", 4),
            ("error=0.99", 1),
            ("ratio=1", 1),
            ("ratio=0.5", 3),
            ("ratio=0.25", 4),
        ] {
            assert_eq!(one(rule, ANY, &d), (rank, false), "{rule}");
        }
    }

    #[test]
    fn bounds_hold_whatever_the_rule() {
        let d = whole((90, 11), &[4.0, 2.0, 2.0, 1.0]);
        let bounds = |min, max, multiple| Bounds { min, max, multiple };
        assert_eq!(one("energy=0.64", bounds(3, None, 1), &d).0, 3);
        assert_eq!(one("energy=0.64", bounds(0, None, 8), &d).0, 8);
        assert_eq!(one("9", bounds(0, None, 8), &d).0, 11); // no more than the matrix has
        assert_eq!(one("9", bounds(0, Some(9), 4), &d).0, 8);
        assert_eq!(one("9", bounds(64, Some(128), 1), &d).0, 11);
        assert_eq!(one("3", bounds(0, Some(2), 1), &d).0, 2);
        for bad in [
            bounds(0, Some(0), 1),
            bounds(0, None, 0),
            bounds(5, Some(4), 1),
            bounds(5, Some(7), 4),
            bounds(0, Some(3), 4),
        ] {
            assert_eq!(choose(Rule::Fixed(1), bad, &[]).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
        assert_eq!(Rule::Fixed(5).depth(bounds(0, Some(16), 4), 0), Depth::Rank(8));
        assert_eq!(Rule::Error(0.5).depth(ANY, 0), Depth::Energy(0.75));
        assert_eq!(Rule::Params(1000).depth(bounds(0, Some(16), 1), Rule::Params(1000).uniform(10)), Depth::Rank(16));
    }

    #[test]
    fn zeros_have_no_rank_unless_a_least_one_is_asked_for() {
        let d = whole((8, 8), &[0.0, 0.0]);
        for rule in ["4", "energy=0.5", "error=0.5", "ratio=0.5", "mp", "params=100"] {
            let groups = [group(vec![d.clone()], 1), group(vec![whole((8, 8), &[1.0])], 1)];
            let ranks = |bounds| choose(rule.parse().unwrap(), bounds, &groups).unwrap();
            assert_eq!(ranks(ANY)[0], Chosen { rank: 0, wants_more: false }, "{rule}");
            assert!(ranks(ANY)[1].rank >= 1, "{rule}");
            assert_eq!(ranks(Bounds { min: 2, ..ANY })[0].rank, 2, "{rule}");
        }
    }

    #[test]
    fn more_is_wanted_where_all_that_is_known_was_not_enough() {
        // Three values known of eight; a quarter of the energy is in the others.
        let d = Spectrum { dim: (8, 9), s: vec![2.0, 2.0, 2.0], energy: 16.0 };
        assert_eq!(one("3", ANY, &d), (3, false));
        assert_eq!(one("4", ANY, &d), (4, true));
        assert_eq!(one("energy=0.75", ANY, &d), (3, false));
        assert_eq!(one("energy=0.76", ANY, &d), (3, true));
        assert_eq!(one("energy=0.76", Bounds { max: Some(3), ..ANY }, &d), (3, false));
        assert_eq!(one("energy=0.7", Bounds { multiple: 4, ..ANY }, &d), (4, true));
        assert_eq!(one("error=0.4", ANY, &d), (3, true));
        assert_eq!(one("ratio=0.5", ANY, &d), (3, true));
        assert_eq!(one("params=2", ANY, &d), (2, false));
        assert_eq!(one("params=3", ANY, &d), (3, true));
        // What is missing is rounding, or nothing is left of the matrix.
        let d = Spectrum { dim: (8, 9), s: vec![2.0, 2.0, 2.0], energy: 12.000001 };
        assert_eq!(one("energy=1", ANY, &d), (3, false));
        assert_eq!(one("5", ANY, &d), (5, false));
        let d = Spectrum { dim: (8, 3), s: vec![2.0, 2.0, 2.0], energy: 16.0 };
        assert_eq!(one("energy=0.9", ANY, &d), (3, false));
    }

    #[test]
    fn experts_have_the_rank_of_the_one_that_needs_the_most() {
        let members = vec![whole((4, 4), &[1.0]), whole((4, 4), &[3.0, 3.0, 3.0]), whole((4, 4), &[])];
        let chosen = choose(Rule::Energy(0.9), ANY, &[group(members, 24)]).unwrap();
        assert_eq!(chosen, [Chosen { rank: 3, wants_more: false }]);
    }

    #[test]
    fn noise_stops_at_its_edge() {
        // m = n = 100 and σ = 1: the edge is at 20, and a little above it for what its largest value scatters
        // (Tracy–Widom: μ = 4·m, spread 20·(2/10)^⅓, 98 % at 1.6). Singular values of noise fall off below it.
        let noise: Vec<f64> = (0..97).map(|k| 19.5 * (1.0 - f64::from(k) / 97.0).powf(0.7)).collect();
        let rest: f64 = noise.iter().map(|s| s * s).sum();
        let scale = (97.0 * 97.0 / rest).sqrt(); // so that the mean square of an element is 1
        let mut s = vec![300.0, 60.0, 25.0];
        s.extend(noise.iter().map(|s| s * scale));
        let d = whole((100, 100), &s);
        // By the definition, in f64: the first number of values that stands.
        let edge =
            |r: usize| (s[r..].iter().map(|s| s * s).sum::<f64>() / ((100 - r) * (100 - r)) as f64).sqrt() * 20.0;
        let mut expected = 0;
        while s[expected] > edge(expected) {
            expected += 1;
        }
        assert!((3..20).contains(&expected), "{expected}");
        assert_eq!(one("mp", ANY, &d), (expected, false));
        // Exactly low rank: everything but rounding stands out.
        assert_eq!(one("mp", ANY, &whole((100, 80), &[5.0, 1.0, 0.01, 1e-7])), (3, false));
        // Only the values that stand out are known: there may be more.
        let d = Spectrum { s: s[..2].to_vec(), ..d };
        assert_eq!(one("mp", ANY, &d), (2, true));
    }

    /// The best energy over all ranks that the bounds allow.
    fn brute_force(groups: &[Group], bounds: Bounds, budget: u64) -> Option<f64> {
        let Some((first, rest)) = groups.split_first() else { return Some(0.0) };
        let limit = first.limit();
        let least = if bounds.min == 0 { 0 } else { bounds.of(bounds.min, limit) };
        let allowed = |r: &usize| {
            *r == least
                || (*r > least && (*r - least).is_multiple_of(bounds.multiple))
                || (*r == limit && limit < bounds.multiple)
        };
        let most = bounds.of(usize::MAX, limit);
        let energy =
            |r: usize| first.members.iter().flat_map(|m| m.s.iter().take(r)).map(|s| s * s).sum::<f64>() * first.weight;
        let with = |r: usize| Some(energy(r) + brute_force(rest, bounds, budget.checked_sub(first.cost * r as u64)?)?);
        (least..=most).filter(allowed).filter_map(with).max_by(f64::total_cmp)
    }

    #[test]
    fn budgets_are_dealt_out_as_trying_everything_would() {
        let mut rng = TorchRng::new(7);
        let mut number = |below: f32| rng.uniform_f32(0.0, below);
        for round in 0..300usize {
            let groups: Vec<_> = (0..4)
                .map(|_| {
                    let dim = (2 + number(4.0) as usize, 2 + number(5.0) as usize);
                    let members = 1 + number(2.0) as usize;
                    let spectrum = |number: &mut dyn FnMut(f32) -> f32| {
                        let mut s: Vec<f64> = (0..dim.0.min(dim.1)).map(|_| f64::from(number(3.0))).collect();
                        s.sort_by(|a, b| b.total_cmp(a));
                        whole(dim, &s)
                    };
                    let members: Vec<_> = (0..members).map(|_| spectrum(&mut number)).collect();
                    let cost = ((dim.0 + dim.1) * members.len()) as u64;
                    Group { members, cost, weight: f64::from(0.5 + number(1.0)) }
                })
                .collect();
            let bounds = Bounds { min: round % 3, max: (round % 5 == 0).then_some(4), multiple: 1 + round % 2 };
            let all: u64 = groups.iter().map(|g| g.cost * g.limit() as u64).sum();
            for budget in [all / 5, all / 3, all / 2, all] {
                let found = choose(Rule::Params(budget), bounds, &groups);
                let Some(wanted) = brute_force(&groups, bounds, budget) else {
                    assert_eq!(found.unwrap_err().kind(), Kind::Limit);
                    continue;
                };
                let ranks: Vec<_> = match found {
                    Ok(chosen) => chosen.iter().map(|c| c.rank).collect(),
                    Err(e) => {
                        assert!(wanted == 0.0, "{e}");
                        continue;
                    }
                };
                let spent: u64 = groups.iter().zip(&ranks).map(|(g, &r)| g.cost * r as u64).sum();
                let energy = |r: &dyn Fn(usize) -> usize| -> f64 {
                    let of = |(i, g): (usize, &Group)| {
                        g.weight * g.members.iter().flat_map(|m| m.s.iter().take(r(i))).map(|s| s * s).sum::<f64>()
                    };
                    groups.iter().enumerate().map(of).sum()
                };
                let found = energy(&|i| ranks[i]);
                assert!(spent <= budget);
                assert!((found - wanted).abs() <= 1e-12 * wanted, "{found} against {wanted}: {bounds:?} {ranks:?}");
                let uniform = Rule::Params(budget).uniform(groups.iter().map(|g| g.cost).sum());
                if bounds.multiple == 1 && bounds.max.is_none_or(|max| max >= uniform) {
                    assert!(found >= energy(&|_| uniform) * (1.0 - 1e-12));
                }
            }
        }
    }

    #[test]
    fn a_budget_below_the_least_says_what_it_takes() {
        let groups = [group(vec![whole((8, 8), &[1.0, 0.5])], 16), group(vec![whole((8, 4), &[1.0])], 12)];
        let e = choose(Rule::Params(100), Bounds { min: 4, ..ANY }, &groups).unwrap_err();
        assert!(e.to_string().contains("112"), "{e}");
        let e = choose(Rule::Params(11), ANY, &groups).unwrap_err();
        assert!(e.to_string().contains("12"), "{e}");
        let ranks = choose(Rule::Params(12), ANY, &groups).unwrap();
        assert_eq!([ranks[0].rank, ranks[1].rank], [0, 1]);
        assert!(choose(Rule::Params(0), ANY, &[]).unwrap().is_empty());
    }

    #[test]
    fn of_equal_matrices_the_first_has_more() {
        let groups = vec![group(vec![whole((8, 8), &[2.0, 1.0])], 16); 3];
        let chosen = choose(Rule::Params(16 * 4), ANY, &groups).unwrap();
        assert_eq!(chosen.iter().map(|c| c.rank).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
