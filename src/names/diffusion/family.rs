//! A family of models: those with the same names.

use super::extent::Extent;
use super::part::{Part, Role};

/// Models whose modules have the same names.
#[derive(Debug)]
pub struct Family {
    /// A short name: `flux1`.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// The sizes it comes in; the first is the usual one.
    pub variants: &'static [Variant],
    /// Its parts, the denoiser first.
    pub parts: &'static [Part],
}

/// A size a family comes in.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    /// What it is called: `FLUX.1 dev`.
    pub name: &'static str,
    /// Widths and block counts of its denoiser, by the letters of the table.
    pub extents: &'static [Extent],
}

impl Family {
    /// One of the parts.
    pub fn part(&self, role: Role) -> Option<&'static Part> {
        self.parts.iter().find(|part| part.role == role)
    }

    /// The part that takes the noise away.
    pub fn denoiser(&self) -> Option<&'static Part> {
        self.part(Role::Denoiser)
    }

    /// A size by its name.
    pub fn variant(&self, name: &str) -> Option<&'static Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}
