//! QA-LoRA: LoRA whose A sees the inputs pooled in groups of g (Xu et al., <https://arxiv.org/abs/2309.14717>;
//! huggingface/peft, `src/peft/tuners/lora/variants.py`).
//!
//! With A: [r, in/g] every input has in/g² of its group's column: the mean over the group, times in/g. PEFT does this
//! for GPTQ layers only and ignores the setting elsewhere, so that A may also be an ordinary [r, in]; which of the two
//! it is, the weight's width says.

use ndarray::Array2;

use super::{Action, Factors, LowRank, Site};
use crate::error::{Error, Result};

/// LoRA's factors, A pooled or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Qalora {
    /// A, B and the scale.
    pub factors: LowRank,
    /// Inputs in one group.
    pub group: usize,
}

impl Qalora {
    /// A has to be as wide as the weight, or to be so once it is written out.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (_, cols) = site.matrix();
        let pooled = self.factors.a.to_matrix()?;
        if pooled.ncols() == cols {
            return self.factors.prepare(site);
        }
        if self.group == 0 || pooled.ncols().checked_mul(self.group) != Some(cols) {
            return Err(Error::mismatch(format!(
                "A {} with groups of {} for the base weight {}",
                self.factors.a.shape, self.group, site.shape
            )));
        }
        let Factors { b, scale, .. } = self.factors.factors()?;
        let share = (cols as f64 / (self.group as f64).powi(2)) as f32;
        let a = Array2::from_shape_fn((pooled.nrows(), cols), |(k, j)| share * pooled[[k, j / self.group]]);
        site.expect(b.nrows(), a.ncols())?;
        Ok(Action::LowRank(Factors { a, b, scale }))
    }
}
