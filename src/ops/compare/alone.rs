//! Changes compared from the adapters alone: products from their factors, other sums row by row on zeros.
//!
//! What a change does to a weight it depends on cannot be seen here. Where both adapters say the same in every tensor
//! and setting it still is the same change; everything else is an error that asks for the base.

use std::collections::BTreeSet;
use std::ops::Range;

use ndarray::Array2;

use super::{Module, tiles};
use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Before, Delta, Factors};
use crate::adapter::{Act, Reversal, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::kernels::Kernels;
use crate::limits;
use crate::linalg::pair::{self, Overlap, Product, Sums};
use crate::names::ModulePath;
use crate::ops::merge::Applied;
use crate::stream::{Budget, Limits, Progress, each};
use crate::tensor::{Rows, Shape, Tensor};

/// Largest rank that is taken as factors: above it forming the change costs less.
const MAX_RANK: usize = 1024;

/// Every weight and bias that one of the adapters changes, in order of their paths.
pub fn compare(
    first: &Applied,
    second: &Applied,
    limits: Limits,
    kernels: &dyn Kernels,
    progress: &dyn Progress,
) -> Result<Vec<Module>> {
    let pairs = pairs(first, second);
    let budget = Budget::new(limits.memory);
    each(pairs.len(), limits.threads, progress, |i| {
        let _ticket = budget.admit(pairs[i].footprint());
        pairs[i].compare(kernels)
    })
}

fn pairs<'a>(first: &'a Applied, second: &'a Applied) -> Vec<Pair<'a>> {
    let paths: BTreeSet<&ModulePath> = first.adapter.targets.keys().chain(second.adapter.targets.keys()).collect();
    let both = |path| [first, second].map(|applied| (applied, applied.adapter.targets.get(path)));
    let parts = |path: &'a ModulePath| [false, true].map(|bias| (path, bias));
    let pair = |(path, bias): (&'a ModulePath, bool)| {
        let [first, second] = both(path).map(|(applied, target)| Side::of(applied, target?, bias));
        (first.is_some() || second.is_some()).then_some(Pair { path, bias, first, second })
    };
    paths.into_iter().flat_map(parts).filter_map(pair).collect()
}

/// What one adapter does to a weight or a bias.
#[derive(Clone, Copy)]
struct Side<'a> {
    applied: &'a Applied<'a>,
    target: &'a Target,
    bias: bool,
}

impl<'a> Side<'a> {
    fn of(applied: &'a Applied, target: &'a Target, bias: bool) -> Option<Side<'a>> {
        let side = Side { applied, target, bias };
        (!side.deltas().is_empty()).then_some(side)
    }

    fn deltas(&self) -> &'a [Delta] {
        if self.bias { &self.target.bias } else { &self.target.weight }
    }

    fn magnitude(&self) -> Option<&'a Tensor> {
        self.target.magnitude.as_ref().filter(|_| !self.bias)
    }

    fn kind(&self) -> &'static str {
        if self.bias { self.deltas().last().map_or("none", Delta::kind) } else { self.target.kind() }
    }

    fn elements(&self) -> u64 {
        self.deltas().iter().flat_map(Delta::tensors).map(|(_, t)| t.elements() as u64).sum()
    }

    /// Whether the adapter says that the weight is stored the other way round.
    fn is_turned(&self) -> bool {
        !self.bias && matches!(self.target.site, SiteKind::FanInFanOut | SiteKind::Embedding)
    }

    fn acts_as_stored(&self) -> bool {
        self.deltas().iter().any(Delta::acts_as_stored)
    }

    /// The size of the weight, as stored if `turned` is set and the weight lies the other way round.
    fn matrix(&self, turned: bool) -> Option<(usize, usize)> {
        self.deltas().iter().find_map(|delta| {
            let (rows, cols) = delta.matrix()?;
            Some(if turned && !delta.acts_as_stored() { (cols, rows) } else { (rows, cols) })
        })
    }

    /// For a stack of experts, which axis A faces.
    fn facing(&self) -> Option<Facing> {
        self.deltas().iter().find_map(|delta| match delta {
            Delta::LowRank(d) => d.experts.map(|e| e.facing),
            _ => None,
        })
    }

    /// An error where the change is not known without the weight.
    fn require_sum(&self) -> Result<()> {
        for delta in self.deltas() {
            if let Delta::Opaque(opaque) = delta {
                return Err(Error::unsupported(format!("{} cannot be compared: {}", opaque.kind, opaque.reason)));
            }
        }
        if self.magnitude().is_some() || self.applied.adapter.residual_base.is_some() {
            return Err(self.needs_base());
        }
        Ok(())
    }

    fn needs_base(&self) -> Error {
        Error::unsupported(format!("what {} changes here is not known from the adapter alone", self.kind()))
            .in_file(&self.applied.label)
            .hint("--base BASE compares what both change in the base's weights")
    }

    /// The factors of the change: one pair, or one for each expert. None where it is made otherwise.
    fn products(&self, matrix: Option<(usize, usize)>) -> Result<Option<Vec<Factors>>> {
        let all = match (self.deltas(), matrix) {
            ([Delta::LowRank(d)], _) if d.rank() <= MAX_RANK => d.expert_factors()?,
            ([Delta::Derived(d)], Some(matrix)) => vec![d.factors(matrix)?],
            _ => return Ok(None),
        };
        Ok(all.iter().all(|f| f.rank() <= MAX_RANK).then_some(all))
    }

    /// The change as an act, which has to be a sum.
    fn act(&self, (rows, cols): (usize, usize), turned: bool) -> Result<Box<dyn Act>> {
        let action = if self.bias {
            let shape = if cols == 1 { vec![rows] } else { vec![rows, cols] };
            self.target.bias_action(&Shape::new(shape), None)?
        } else {
            self.target.weight_action(&Shape::new([rows, cols]), turned)?
        };
        if action.reversal() == Reversal::Sum { action.into_act() } else { Err(self.needs_base()) }
    }
}

/// One weight or bias in both adapters; one side may be missing, not both.
struct Pair<'a> {
    path: &'a ModulePath,
    bias: bool,
    first: Option<Side<'a>>,
    second: Option<Side<'a>>,
}

type Measured = (Sums, Option<Overlap>);

impl Pair<'_> {
    fn sides(&self) -> impl Iterator<Item = &Side<'_>> {
        self.first.iter().chain(&self.second)
    }

    /// Bytes of working memory: factors in f32 and what they are turned into, and rows.
    fn footprint(&self) -> u64 {
        let whole = self.is_stored_turned().unwrap_or(false);
        let rows = match self.sides().find_map(|side| side.matrix(false)) {
            Some((rows, cols)) if whole => (rows as u64).saturating_mul(cols as u64).saturating_mul(16),
            _ => 4 * super::TILE_BYTES as u64,
        };
        self.sides().map(|side| 16 * side.elements()).sum::<u64>().saturating_add(rows)
    }

    fn compare(&self, kernels: &dyn Kernels) -> Result<Module> {
        let name = if self.bias { self.path.tensor("bias") } else { self.path.to_string() };
        let measured = match self.measure(kernels) {
            Ok(measured) => Some(measured),
            Err(_) if self.is_same() => None,
            Err(e) => return Err(e.at_key(&name)),
        };
        for (_, tensor) in self.sides().flat_map(|side| side.deltas().iter().flat_map(Delta::tensors)) {
            tensor.bytes.release(0..tensor.bytes.len());
        }
        Ok(Module {
            name,
            first: self.first.map(|side| side.kind()),
            second: self.second.map(|side| side.kind()),
            sums: measured.map(|(sums, _)| sums),
            overlap: measured.and_then(|(_, overlap)| overlap),
        })
    }

    /// Whether both say the same in every tensor and setting, at the same strength.
    fn is_same(&self) -> bool {
        let (Some(a), Some(b)) = (self.first, self.second) else { return false };
        a.deltas() == b.deltas()
            && a.magnitude() == b.magnitude()
            && a.target.magnitude_along == b.target.magnitude_along
            && a.target.site == b.target.site
            && a.applied.strength == b.applied.strength
            && a.applied.adapter.residual_base == b.applied.adapter.residual_base
    }

    /// Whether the weight has to be seen as it is stored, the other way round than the deltas are written for.
    fn is_stored_turned(&self) -> Result<bool> {
        if !self.sides().any(Side::acts_as_stored) {
            return Ok(false);
        }
        let mut turned = self.sides().map(Side::is_turned);
        let one = turned.next().unwrap_or(false);
        if turned.all(|other| other == one) { Ok(one) } else { Err(self.needs_base()) }
    }

    fn needs_base(&self) -> Error {
        self.sides().next().map_or_else(|| Error::missing("nothing to compare"), Side::needs_base)
    }

    fn measure(&self, kernels: &dyn Kernels) -> Result<Measured> {
        for side in self.sides() {
            side.require_sum().in_file(&side.applied.label)?;
        }
        if let (Some(one), Some(two)) = (self.first, self.second)
            && one.facing().is_some() != two.facing().is_some()
        {
            return Err(self.needs_base()); // a stack against something else
        }
        let turned = self.is_stored_turned()?;
        let first = self.first.and_then(|side| side.matrix(turned));
        let second = self.second.and_then(|side| side.matrix(turned));
        let swapped = self.is_swapped(first, second)?;
        let matrix = first.or(second);
        if let (Some((m1, n1)), Some((m2, n2))) = (first, second)
            && (m1, n1) != (m2, n2)
            && !swapped
        {
            let what = format!("a change of [{m1}, {n1}] against one of [{m2}, {n2}]");
            return Err(Error::mismatch(what).hint("these adapters are for different models"));
        }
        let products = |side: &Option<Side>, matrix| match side {
            None => Ok(Some(Vec::new())),
            Some(side) => side.products(matrix).in_file(&side.applied.label),
        };
        match (products(&self.first, matrix)?, products(&self.second, matrix)?) {
            (Some(first), Some(mut second)) => {
                if swapped {
                    second = second.iter().map(Factors::transposed).collect();
                }
                self.of_products(kernels, &first, &second)
            }
            _ => Ok((self.of_rows(kernels, matrix, turned)?, None)),
        }
    }

    /// Whether the second adapter holds the factors of a parameter the other way round, as older versions of PEFT do
    /// for experts.
    fn is_swapped(&self, first: Option<(usize, usize)>, second: Option<(usize, usize)>) -> Result<bool> {
        let (Some(a), Some(b), Some((m, n)), Some(other)) = (self.first, self.second, first, second) else {
            return Ok(false);
        };
        if !(a.target.is_parameter() && b.target.is_parameter()) {
            return Ok(false);
        }
        if m == n && a.facing() != b.facing() {
            return Err(self.needs_base());
        }
        Ok(m != n && other == (n, m))
    }

    fn of_products(&self, kernels: &dyn Kernels, first: &[Factors], second: &[Factors]) -> Result<Measured> {
        let (one, two) = (self.first.is_some(), self.second.is_some());
        if one && two && first.len() != second.len() {
            return Err(Error::mismatch(format!("{} experts against {}", first.len(), second.len())));
        }
        let (strength1, strength2) = (strength(&self.first), strength(&self.second));
        of_products(kernels, (first, strength1), (second, strength2))
    }

    fn of_rows(&self, kernels: &dyn Kernels, matrix: Option<(usize, usize)>, turned: bool) -> Result<Sums> {
        let (rows, cols) = matrix.ok_or_else(|| self.needs_base())?;
        if self.sides().any(|side| side.facing().is_some()) {
            return Err(self.needs_base()); // a stack that is no product
        }
        let act = |side: &Option<Side>| {
            side.map(|side| side.act((rows, cols), turned).in_file(&side.applied.label)).transpose()
        };
        let (first, second) = (act(&self.first)?, act(&self.second)?);
        let rule = first.iter().chain(&second).fold(Rows::Any, |rule, act| rule.and(act.rows()));
        let tile = super::tile_rows(rule, rows, cols).checked_mul(cols);
        let found = || format!("a change of [{rows}, {cols}] that has to be formed");
        if rows.checked_mul(cols).is_none_or(|n| n > limits::FORMED) {
            return Err(Error::limit(found(), format!("{} elements", limits::FORMED)));
        }
        if tile.is_none_or(|n| n > limits::FORMED_ROWS) {
            return Err(Error::limit(found(), format!("{} elements at a time", limits::FORMED_ROWS)));
        }
        let before = Zeros((rows, cols));
        let mut sums = Sums::default();
        for range in tiles(rule, rows, cols) {
            let formed = |act: &Option<Box<dyn Act>>| -> Result<Array2<f32>> {
                let mut tile = Array2::zeros((range.len(), cols));
                if let Some(act) = act {
                    act.act(kernels, range.clone(), tile.view_mut(), &before)?;
                }
                Ok(tile)
            };
            let (one, two) = (formed(&first)?, formed(&second)?);
            sums.add(&Sums::of_values(&one, strength(&self.first), &two, strength(&self.second)));
        }
        Ok(sums)
    }
}

fn strength(side: &Option<Side>) -> f64 {
    side.map_or(1.0, |side| side.applied.strength)
}

/// Products beside one another, each list at its strength; an empty list stands for no change.
pub fn of_products(
    kernels: &dyn Kernels,
    (first, strength1): (&[Factors], f64),
    (second, strength2): (&[Factors], f64),
) -> Result<Measured> {
    let none = |like: &Factors| Factors {
        a: Array2::zeros((0, like.a.ncols())),
        b: Array2::zeros((like.b.nrows(), 0)),
        scale: 0.0,
    };
    let (mut sums, mut overlap) = (Sums::default(), None);
    for i in 0..first.len().max(second.len()) {
        let missing = first.get(i).or(second.get(i)).map(none);
        let (Some(one), Some(two)) = (first.get(i).or(missing.as_ref()), second.get(i).or(missing.as_ref())) else {
            continue;
        };
        let (one, two) = (product(one, strength1), product(two, strength2));
        sums.add(&pair::sums(&one, &two)?);
        if !first.is_empty() && !second.is_empty() {
            let spaces = (pair::spaces(kernels, &one)?, pair::spaces(kernels, &two)?);
            overlap.get_or_insert_with(Overlap::default).add(&Overlap::of(kernels, &spaces.0, &spaces.1)?);
        }
    }
    Ok((sums, overlap))
}

fn product(factors: &Factors, strength: f64) -> Product<'_> {
    Product { b: factors.b.view(), a: factors.a.view(), scale: factors.scale * strength }
}

/// A weight of zeros, for acts that add the same to any weight.
struct Zeros((usize, usize));

impl Before for Zeros {
    fn matrix(&self) -> (usize, usize) {
        self.0
    }

    fn rows(&self, _: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        Ok(Array2::zeros((rows.len(), self.0.1)))
    }
}
