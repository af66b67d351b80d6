//! The one place that turns a stored alpha into a factor.

/// How the stored number becomes the multiplier of B·A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRule {
    /// alpha / r, as in the LoRA paper.
    AlphaOverRank,
    /// alpha / √r, rank-stabilised LoRA.
    AlphaOverRootRank,
    /// The stored number is the multiplier itself.
    Direct,
}

/// The scale an adapter came with. A strength chosen by the user never mixes with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The stored number.
    pub alpha: f64,
    /// What it means.
    pub rule: ScaleRule,
}

impl Scale {
    /// A multiplier that needs no rank.
    pub fn direct(factor: f64) -> Scale {
        Scale { alpha: factor, rule: ScaleRule::Direct }
    }

    /// The multiplier for factors of this rank.
    pub fn factor(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        match self.rule {
            ScaleRule::AlphaOverRank => self.alpha / rank,
            ScaleRule::AlphaOverRootRank => self.alpha / rank.sqrt(),
            ScaleRule::Direct => self.alpha,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_by_its_formula() {
        let at = |rule| Scale { alpha: 8.0, rule }.factor(16);
        assert_eq!(at(ScaleRule::AlphaOverRank), 0.5);
        assert_eq!(at(ScaleRule::AlphaOverRootRank), 2.0);
        assert_eq!(at(ScaleRule::Direct), 8.0);
    }
}
