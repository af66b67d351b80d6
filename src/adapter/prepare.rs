//! From what an adapter says about one module to one action on the tensor as it is stored.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use super::delta::dora::with_magnitude;
use super::delta::{Act, Action, Before, Delta, Inverse, Reversal, Site};
use super::{Along, SiteKind, Target};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Shape, Tensor};

impl Target {
    /// The action on the weight, whose shape in memory is `stored`. With `transposed` the weight is the transpose of
    /// what the deltas are written for: stored `[in, out]`, or an embedding.
    pub fn weight_action(&self, stored: &Shape, transposed: bool) -> Result<Action> {
        let mut actions = Vec::with_capacity(self.weight.len());
        for delta in &self.weight {
            actions.push(if delta.acts_as_stored() {
                delta.prepare(&Site { shape: stored, companion: None })?
            } else if let (Delta::LowRank(d), SiteKind::Parameter) = (delta, self.site) {
                d.prepare_parameter(stored, transposed)?
            } else if transposed {
                delta.prepare(&Site { shape: &turned(stored)?, companion: None })?.transposed()
            } else {
                delta.prepare(&Site { shape: stored, companion: None })?
            });
        }
        let action = one_after_the_other(actions)?;
        match &self.magnitude {
            None => Ok(action),
            Some(magnitude) => {
                let columns = transposed != (self.magnitude_along == Along::Cols);
                with_magnitude(action, magnitude, columns, stored)
            }
        }
    }

    /// The action on the bias. `weight` is the weight of the same module in the base, as stored.
    pub fn bias_action(&self, stored: &Shape, weight: Option<&Tensor>) -> Result<Action> {
        let site = Site { shape: stored, companion: weight };
        let actions = self.bias.iter().map(|delta| delta.prepare(&site)).collect::<Result<Vec<_>>>()?;
        one_after_the_other(actions)
    }
}

/// The shape of the transposed matrix.
fn turned(shape: &Shape) -> Result<Shape> {
    match shape.dims() {
        [rows, cols] => Ok(Shape::new(vec![*cols, *rows])),
        _ => Err(Error::mismatch(format!("base weight {shape}, expected a matrix"))),
    }
}

fn one_after_the_other(mut actions: Vec<Action>) -> Result<Action> {
    match actions.len() {
        0 => Err(Error::missing("the adapter has nothing for this tensor")),
        1 => Ok(actions.remove(0)),
        _ => {
            let mut acts = Vec::with_capacity(actions.len());
            for action in actions {
                acts.push(action.into_act()?);
            }
            Ok(Action::Act(Box::new(Chain(acts))))
        }
    }
}

/// Several acts, each on what the one before it left.
struct Chain(Vec<Box<dyn Act>>);

impl Act for Chain {
    fn reversal(&self) -> Reversal {
        self.0.iter().fold(Reversal::Sum, |all, act| all.and(act.reversal()))
    }

    fn inverse(&self) -> Inverse {
        self.0.iter().fold(Inverse::Pointwise, |all, act| all.and(act.inverse()))
    }

    fn rows(&self) -> Rows {
        self.0.iter().fold(Rows::Any, |rule, act| rule.and(act.rows()))
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        self.0.iter().map(|act| act.footprint(rows, cols)).max().unwrap_or(0)
    }

    fn act(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        mut w: ArrayViewMut2<f32>,
        before: &dyn Before,
    ) -> Result<()> {
        for (i, act) in self.0.iter().enumerate() {
            act.act(kernels, rows.clone(), w.view_mut(), &After { acts: &self.0[..i], before })?;
        }
        Ok(())
    }
}

/// The weight after some acts.
struct After<'a> {
    acts: &'a [Box<dyn Act>],
    before: &'a dyn Before,
}

impl Before for After<'_> {
    fn matrix(&self) -> (usize, usize) {
        self.before.matrix()
    }

    fn rows(&self, kernels: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        let mut tile = self.before.rows(kernels, rows.clone())?;
        for (i, act) in self.acts.iter().enumerate() {
            let before = After { acts: &self.acts[..i], before: self.before };
            act.act(kernels, rows.clone(), tile.view_mut(), &before)?;
        }
        Ok(tile)
    }
}
