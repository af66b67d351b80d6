//! Whether a weight can be found from what an act made of it and from the adapter, with nothing else at hand.
//!
//! It is another question than [`super::Reversal`], which asks for a guess that a record of corrections makes good.
//! Here there is no record: the answer has to be right but for the rounding of the stored result.

/// The ways back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inverse {
    /// A product was added, in the order of the merge step: what is found is known element by element.
    Product,
    /// Each element became `g · w + d`, whatever its neighbours: what the act makes of zeros and of ones tells both.
    Pointwise,
    /// The act undoes itself: [`super::Act::undo`].
    Own,
    /// None: the weight as it was is needed. The reason is one clause about what was done.
    Never(&'static str),
}

impl Inverse {
    /// That of two acts, one after the other.
    #[must_use]
    pub fn and(self, next: Inverse) -> Inverse {
        match (self, next) {
            (Inverse::Never(why), _) | (_, Inverse::Never(why)) => Inverse::Never(why),
            (Inverse::Own, _) | (_, Inverse::Own) => {
                Inverse::Never("it turns the weight and changes it otherwise, too")
            }
            _ => Inverse::Pointwise,
        }
    }

    /// Whether every element can be found by itself.
    pub fn is_by_element(self) -> bool {
        matches!(self, Inverse::Product | Inverse::Pointwise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_as_good_as_its_worst_part() {
        assert_eq!(Inverse::Product.and(Inverse::Product), Inverse::Pointwise);
        assert_eq!(Inverse::Pointwise.and(Inverse::Never("why")), Inverse::Never("why"));
        assert!(matches!(Inverse::Own.and(Inverse::Product), Inverse::Never(_)));
    }
}
