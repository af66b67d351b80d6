//! The families, a file for each.

mod sd1;
mod sd2;
mod sdxl;
mod sdxl_refiner;
mod unet;
mod unet_places;

use super::family::Family;

/// All of them. Where names and extents leave more than one, the one that is met more often stands first.
pub static FAMILIES: &[&Family] = &[&sd1::SD1, &sd2::SD2, &sdxl::SDXL, &sdxl_refiner::SDXL_REFINER];

/// A family by its name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.name == name)
}
