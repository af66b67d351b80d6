//! The differences of two models as changes to factorise.

use super::view::{Difference, View};
use super::{Models, Unit};
use crate::error::{Error, Result};
use crate::kernels::Truncated;
use crate::ops::factorise::{Changes, Work};

/// Rows that are read at a time to measure a weight.
const ROWS: usize = 64;

/// All of them.
pub struct Differences<'a> {
    /// The two models.
    pub models: Models<'a>,
    /// The tensors whose changes become factors.
    pub units: &'a [Unit],
    /// Energies count relative to those of the base's weights.
    pub weighted: bool,
}

impl Differences<'_> {
    fn difference(&self, unit: usize, member: Option<usize>) -> Result<Difference> {
        let changed = &self.units[unit].changed;
        let found = changed.before.as_ref().ok_or_else(|| Error::missing("no such tensor in the base"))?;
        Ok(Difference {
            before: View::new(self.models.base, found, member)?,
            after: View::new(self.models.tuned, &changed.after, member)?,
        })
    }
}

impl Changes for Differences<'_> {
    fn count(&self) -> usize {
        self.units.len()
    }

    fn name(&self, change: usize) -> &str {
        &self.units[change].changed.name
    }

    fn members(&self, change: usize) -> usize {
        self.units[change].members().len()
    }

    fn dim(&self, change: usize) -> Result<(usize, usize)> {
        let unit = &self.units[change];
        let first = unit.members().first().copied().flatten();
        View::new(self.models.tuned, &unit.changed.after, first).map(|v| v.dim())
    }

    fn is_kernel(&self, change: usize) -> bool {
        self.units[change].is_kernel
    }

    fn weight(&self, change: usize) -> Result<f64> {
        if !self.weighted {
            return Ok(1.0);
        }
        let mut sum = 0.0;
        for member in self.units[change].members() {
            let view = self.difference(change, member)?.before;
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

    fn decompose(&self, change: usize, member: usize, work: &Work) -> Result<(Truncated, u64)> {
        let members = self.units[change].members();
        let difference = self.difference(change, members.get(member).copied().flatten())?;
        let done = work(&difference);
        difference.before.release();
        difference.after.release();
        Ok((done?, difference.after.bytes()))
    }
}
