//! From sums to findings: what each tensor is, and what follows for the claim.

use super::fit::{self, Estimate, Standing};
use super::kept::Kept;
use super::pair::{Check, Pair, Problem};
use super::sums::{Off, Sums};
use crate::tensor::Dtype;

/// What a changed tensor is beside the correctly rounded merge at the claimed strengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The same.
    Exact,
    /// Neighbours at most.
    OneUlp,
    /// No farther off than rounding at another place, or adding in another order, can bring about.
    Rounding,
    /// Something else.
    Differs,
}

/// What was found of one changed tensor.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its key.
    pub key: String,
    /// The adapters' module paths that change it.
    pub modules: Vec<String>,
    /// The kind of each change.
    pub kinds: Vec<&'static str>,
    /// Its type.
    pub dtype: Dtype,
    /// Its elements.
    pub elements: u64,
    /// Its last extent, to turn the number of an element into row and column.
    pub columns: u64,
    /// In a word.
    pub state: State,
    /// Distances from the correctly rounded merge.
    pub off: Off,
    /// The strength of each adapter that changes it.
    pub estimates: Vec<Estimate>,
    /// Norm of the difference to the base.
    pub change: f64,
    /// What the adapters leave unexplained of it, and what rounding alone would leave.
    pub residual: Option<(f64, f64)>,
}

/// A tensor that should be as it was and is not.
#[derive(Clone, Debug)]
pub struct KeptReport {
    /// Its key.
    pub key: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its elements.
    pub elements: u64,
    /// What is different.
    pub kept: Kept,
}

/// What was found of one adapter over all tensors.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// Its name in messages.
    pub label: String,
    /// Its strength over all tensors.
    pub overall: Estimate,
    /// Its strength over the tensors in which nothing is missing; none where that is none or all.
    pub elsewhere: Option<Estimate>,
    /// Tensors it changes.
    pub tensors: usize,
    /// Those in which its strength is what was claimed.
    pub agree: usize,
    /// Those in which it is another one.
    pub other: usize,
    /// Those in which it is missing.
    pub missing: usize,
    /// Those that do not tell.
    pub untold: usize,
    /// Whether each of them is the correctly rounded merge.
    pub is_exact: bool,
}

/// What speaks against the claim.
#[derive(Clone, Debug)]
pub enum Finding {
    /// Most tensors, out of all, have nothing to do with the base and the adapters.
    Foreign {
        /// How many.
        tensors: usize,
        /// Of how many.
        of: usize,
    },
    /// Tensors are missing, added, or of another shape or type.
    Form {
        /// How many.
        tensors: usize,
    },
    /// Tensors that no adapter changes are not the base's.
    Kept {
        /// How many.
        tensors: usize,
    },
    /// Adapters are in there at other strengths.
    Strength {
        /// Number of the adapter.
        adapter: usize,
    },
    /// Adapters are not in all of the tensors they should be in.
    Missing {
        /// Number of the adapter.
        adapter: usize,
    },
    /// Changed tensors hold more than the adapters' changes.
    Altered {
        /// How many.
        tensors: usize,
        /// Elements that are beyond rounding in them.
        elements: u64,
    },
    /// Noise hides whether the adapter is in there.
    Untold {
        /// Number of the adapter.
        adapter: usize,
    },
}

/// All in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The correctly rounded merge.
    Exact,
    /// A merge; no element is farther off than one.
    OneUlp,
    /// A merge that was rounded at other places, or summed in another order.
    Rounding,
    /// Not this base.
    NotTheBase,
    /// Tensors are not what they should be, and no adapter explains it.
    OtherChanges,
    /// A merge at other strengths.
    OtherStrengths,
    /// Adapters are missing from modules.
    ModulesMissing,
    /// Cannot be told.
    Untold,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// All in a word.
    pub verdict: Verdict,
    /// What speaks against the claim, weightiest first; empty where it holds.
    pub findings: Vec<Finding>,
    /// The adapters, in order.
    pub adapters: Vec<AdapterReport>,
    /// Changed tensors, in the order of the base's files.
    pub changed: Vec<Changed>,
    /// Tensors that should be as they were and are not.
    pub differing: Vec<KeptReport>,
    /// Tensors that could not be compared.
    pub problems: Vec<Problem>,
    /// Tensors that no adapter changes, and that were compared.
    pub kept: usize,
    /// What the adapters leave unexplained over all changed tensors, and what rounding alone would leave.
    pub residual: Option<(f64, f64)>,
}

impl Verdict {
    /// Whether the claim holds.
    pub fn holds(self) -> bool {
        matches!(self, Verdict::Exact | Verdict::OneUlp | Verdict::Rounding)
    }
}

impl Changed {
    /// Whether rounding explains what the adapters, at the strengths found, leave over. Another order of f32 sums is
    /// allowed for in the second term.
    fn is_explained(&self) -> bool {
        self.residual.is_none_or(|(left, rounding)| left <= 2.0 * rounding + 1e-4)
    }

    /// Whether it has nothing to do with the base and the adapters.
    fn is_foreign(&self) -> bool {
        self.state == State::Differs
            && 2 * self.off.beyond > self.elements
            && self.residual.is_some_and(|(left, rounding)| left > 0.5 && left > 4.0 * rounding)
    }

    /// Whether an adapter has another standing than that of agreement or doubt.
    pub fn disagrees(&self) -> bool {
        self.estimates.iter().any(|e| matches!(e.standing, Standing::Other | Standing::Missing))
    }

    /// Whether it holds more than the adapters' changes.
    pub fn is_altered(&self) -> bool {
        self.state == State::Differs && !(self.disagrees() && self.is_explained())
    }

    /// Row and column of an element as the tensor is stored.
    pub fn place(&self, number: u64) -> (u64, u64) {
        let columns = self.columns.max(1);
        (number / columns, number % columns)
    }
}

/// Everything that was read.
pub struct Gathered {
    pub labels: Vec<String>,
    pub claimed: Vec<f64>,
    pub pairs: Vec<Pair>,
    pub problems: Vec<Problem>,
    pub changed: Vec<Option<Sums>>,
    pub kept: Vec<Kept>,
}

impl Gathered {
    /// The report.
    pub fn report(self) -> Report {
        let changed = self.changed_tensors();
        let differing = self.differing();
        let adapters = self.adapters(&changed);
        let all = self.over(|_| true, &changed);
        let estimates: Vec<_> = adapters.iter().map(|a| a.overall).collect();
        let residual = fit::residual(&all, &estimates);
        let kept = self.pairs.iter().filter(|p| !matches!(p.check, Check::Changed(_))).count();
        let mut report = Report {
            verdict: Verdict::Exact,
            findings: Vec::new(),
            adapters,
            changed,
            differing,
            problems: self.problems,
            kept,
            residual,
        };
        report.findings = report.find();
        report.verdict = report.decide();
        report
    }

    fn changed_tensors(&self) -> Vec<Changed> {
        let each = self.pairs.iter().zip(&self.changed);
        each.filter_map(|(pair, sums)| Some(self.changed_tensor(pair, sums.as_ref()?))).collect()
    }

    fn changed_tensor(&self, pair: &Pair, sums: &Sums) -> Changed {
        let numbers = numbers(pair);
        let state = match &sums.off {
            off if off.max_ulps == 0 => State::Exact,
            off if off.max_ulps == 1 => State::OneUlp,
            off if off.beyond == 0 => State::Rounding,
            _ => State::Differs,
        };
        let claimed: Vec<_> = numbers.iter().map(|&k| self.claimed[k]).collect();
        let estimates = fit::strengths(sums, &claimed, &numbers, state == State::Exact);
        Changed {
            key: pair.key.clone(),
            modules: pair.modules.clone(),
            kinds: pair.kinds.clone(),
            dtype: pair.found.dtype,
            elements: sums.elements,
            columns: pair.found.shape.dims().last().map_or(1, |&n| n as u64),
            state,
            off: sums.off,
            residual: fit::residual(sums, &estimates),
            estimates,
            change: sums.plain.square.sqrt(),
        }
    }

    fn differing(&self) -> Vec<KeptReport> {
        let each = self.pairs.iter().zip(&self.kept).filter(|(_, kept)| kept.differing > 0);
        each.map(|(pair, kept)| KeptReport {
            key: pair.key.clone(),
            dtype: pair.found.dtype,
            elements: super::kept::elements(&pair.found) as u64,
            kept: *kept,
        })
        .collect()
    }

    /// Sums over the changed tensors that `choose` takes.
    fn over(&self, choose: impl Fn(&Changed) -> bool, changed: &[Changed]) -> Sums {
        let mut all = Sums::new(self.claimed.len());
        let each = self.pairs.iter().zip(&self.changed).filter_map(|(pair, sums)| Some((pair, sums.as_ref()?)));
        for ((pair, sums), tensor) in each.zip(changed) {
            if choose(tensor) {
                all.spread(sums, &numbers(pair));
            }
        }
        all
    }

    fn adapters(&self, changed: &[Changed]) -> Vec<AdapterReport> {
        let all: Vec<usize> = (0..self.claimed.len()).collect();
        let fit = |sums: Sums| fit::strengths(&sums, &self.claimed, &all, false);
        let overall = fit(self.over(|_| true, changed));
        let is_whole = |t: &Changed| t.estimates.iter().all(|e| e.standing != Standing::Missing);
        let whole = changed.iter().filter(|t| is_whole(t)).count();
        let elsewhere = (whole > 0 && whole < changed.len()).then(|| fit(self.over(is_whole, changed)));
        all.iter()
            .map(|&number| {
                let own = || changed.iter().flat_map(|t| &t.estimates).filter(move |e| e.adapter == number);
                let count = |standing: Standing| own().filter(|e| e.standing == standing).count();
                let is_own = |t: &&Changed| t.estimates.iter().any(|e| e.adapter == number);
                AdapterReport {
                    label: self.labels[number].clone(),
                    is_exact: changed.iter().filter(is_own).all(|t| t.state == State::Exact),
                    overall: overall[number],
                    elsewhere: elsewhere.as_ref().map(|all| all[number]),
                    tensors: own().count(),
                    agree: count(Standing::Agrees),
                    other: count(Standing::Other),
                    missing: count(Standing::Missing),
                    untold: count(Standing::Untold),
                }
            })
            .collect()
    }
}

fn numbers(pair: &Pair) -> Vec<usize> {
    match &pair.check {
        Check::Changed(merged) => merged.adapters(),
        Check::Kept(_) | Check::Stored(_) => Vec::new(),
    }
}

impl Report {
    /// What speaks against the claim.
    fn find(&self) -> Vec<Finding> {
        let compared = self.changed.len() + self.kept;
        let foreign = self.changed.iter().filter(|t| t.is_foreign()).count()
            + self.differing.iter().filter(|k| 2 * k.kept.differing > k.elements).count();
        let strange = foreign + self.problems.len();
        let all = compared + self.problems.len();
        let mut out = Vec::new();
        if 2 * strange > all {
            out.push(Finding::Foreign { tensors: strange, of: all });
        }
        if !self.problems.is_empty() {
            out.push(Finding::Form { tensors: self.problems.len() });
        }
        if !self.differing.is_empty() {
            out.push(Finding::Kept { tensors: self.differing.len() });
        }
        let altered: Vec<_> = self.changed.iter().filter(|t| t.is_altered()).collect();
        if !altered.is_empty() {
            let elements = altered.iter().map(|t| t.off.beyond).sum();
            out.push(Finding::Altered { tensors: altered.len(), elements });
        }
        for (adapter, about) in self.adapters.iter().enumerate() {
            out.extend(about.findings(adapter));
        }
        let is_doubt = |f: &Finding| matches!(f, Finding::Untold { .. });
        if !out.iter().all(is_doubt) {
            out.retain(|f| !is_doubt(f)); // doubt is a finding only where nothing speaks against the claim
        }
        out
    }

    fn decide(&self) -> Verdict {
        let worst = self.changed.iter().map(|t| t.state).max();
        let has = |is: fn(&Finding) -> bool| self.findings.iter().any(is);
        match () {
            () if has(|f| matches!(f, Finding::Foreign { .. })) => Verdict::NotTheBase,
            () if has(|f| matches!(f, Finding::Form { .. } | Finding::Kept { .. } | Finding::Altered { .. })) => {
                Verdict::OtherChanges
            }
            () if has(|f| matches!(f, Finding::Strength { .. })) => Verdict::OtherStrengths,
            () if has(|f| matches!(f, Finding::Missing { .. })) => Verdict::ModulesMissing,
            () if has(|f| matches!(f, Finding::Untold { .. })) => Verdict::Untold,
            () => match worst {
                None | Some(State::Exact) => Verdict::Exact,
                Some(State::OneUlp) => Verdict::OneUlp,
                _ => Verdict::Rounding,
            },
        }
    }
}

impl AdapterReport {
    /// Its strength where it is at all.
    pub fn where_present(&self) -> Estimate {
        self.elsewhere.unwrap_or(self.overall)
    }

    fn findings(&self, adapter: usize) -> Vec<Finding> {
        let mut out = Vec::new();
        if self.is_exact {
            return out;
        }
        let present = self.where_present();
        let gone = self.missing > 0 && self.missing == self.tensors - self.untold;
        if self.other > 0 || (!gone && present.standing == Standing::Other) {
            out.push(Finding::Strength { adapter });
        }
        if self.missing > 0 || (self.other == 0 && present.standing == Standing::Missing) {
            out.push(Finding::Missing { adapter });
        }
        let held = present.deviation.is_infinite(); // another one speaks for both
        if out.is_empty() && !held && present.standing == Standing::Untold {
            out.push(Finding::Untold { adapter });
        }
        out
    }
}
