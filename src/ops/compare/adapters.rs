//! Two adapters, module by module: how large each change is, how large the difference, the angle between them, and how
//! far the spaces agree in which they lie.
//!
//! Without a base, what counts is what the adapters say by themselves (`alone`), and modules are matched by
//! their paths. With one, what counts is what they do to its tensors (`on_base`).

use std::cmp::Ordering;

use super::{Beyond, Module, Tolerance, alone, on_base};
use crate::adapter::Note;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::linalg::pair::Sums;
use crate::model::BaseModel;
use crate::ops::merge::{Applied, Options};
use crate::stream::{Limits, Progress};

/// Two adapters beside one another.
#[derive(Clone, Debug, Default)]
pub struct Adapters {
    /// Everything that one of them changes, the furthest apart first.
    pub modules: Vec<Module>,
    /// Sums over all modules whose size is known.
    pub total: Sums,
    /// Remarks.
    pub notes: Vec<Note>,
}

impl Adapters {
    fn new(mut modules: Vec<Module>, notes: Vec<Note>) -> Adapters {
        let mut total = Sums::default();
        for module in &modules {
            total.add(&module.sums.unwrap_or_default());
        }
        let size = |m: &Module| m.sums.map_or(0.0, |s| s.difference);
        modules.sort_by(|a, b| {
            let order = b.relative().total_cmp(&a.relative()).then(size(b).total_cmp(&size(a)));
            order.then_with(|| a.name.cmp(&b.name))
        });
        Adapters { modules, total, notes }
    }

    /// How many modules are changed by both, by the first only, by the second only.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |first, second| {
            self.modules.iter().filter(|m| (m.first.is_some(), m.second.is_some()) == (first, second)).count()
        };
        (count(true, true), count(true, false), count(false, true))
    }

    /// How many modules are the same and of a size that only a base tells.
    pub fn unsized_modules(&self) -> usize {
        self.modules.iter().filter(|m| m.sums.is_none()).count()
    }

    /// What lies beyond a tolerance: of the modules the furthest apart, or all of them together.
    pub fn beyond(&self, tolerance: Tolerance) -> Option<Beyond> {
        let Tolerance::Relative(most) = tolerance else { return None };
        let what = |relative: f64| format!("relative difference {relative:.4e}");
        // Written so that NaN is beyond.
        let is_beyond = |relative: f64| relative.partial_cmp(&most).is_none_or(Ordering::is_gt);
        let worst = self.modules.first().filter(|m| is_beyond(m.relative()));
        let worst = worst.map(|m| Beyond { key: m.name.clone(), what: what(m.relative()) });
        let total = self.total.relative();
        worst.or_else(|| is_beyond(total).then(|| Beyond { key: String::new(), what: what(total) }))
    }
}

/// Compares two adapters, each at its strength. With a base, the changes are those of its tensors, and modules are
/// matched by these.
pub fn compare(
    first: &Applied,
    second: &Applied,
    base: Option<(&BaseModel, &Options)>,
    limits: Limits,
    kernels: &dyn Kernels,
    progress: &dyn Progress,
) -> Result<Adapters> {
    let (modules, notes) = match base {
        Some((base, options)) => on_base::compare([first, second], base, options, limits, kernels, progress)?,
        None => (alone::compare(first, second, limits, kernels, progress)?, Vec::new()),
    };
    Ok(Adapters::new(modules, notes))
}
