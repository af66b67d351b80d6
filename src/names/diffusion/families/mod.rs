//! The families, a file for each.

mod ace_step;
mod ace_step1;
mod anima;
mod auraflow;
mod bria_fibo2;
mod chroma;
mod cogvideox;
mod cogview4;
mod cosmos2;
mod ernie_image;
mod flux1;
mod flux2;
mod flux3;
mod helios;
mod hidream;
mod hidream_o1;
mod homes;
mod hunyuan_dit;
mod hunyuan_image;
mod hunyuan_video;
mod hunyuan_video_15;
mod ideogram4;
mod kandinsky5;
mod krea2;
mod ltx;
mod ltx2;
mod lumina2;
mod lumina_next;
mod minimax_h3;
mod mochi;
mod omnigen2;
mod ovis_image;
mod pixart;
mod prx;
mod qwen_image;
mod qwen_image_21;
mod sana;
mod sd1;
mod sd2;
mod sd3;
mod sdxl;
mod sdxl_refiner;
mod stable_cascade;
mod unet;
mod unet_places;
mod wan;
mod wan_animate2;
mod z_image;

use super::family::Family;

/// All of them. Where names and extents leave more than one, the one that is met more often stands first.
pub static FAMILIES: &[&Family] = &[
    &sd1::SD1,
    &sd2::SD2,
    &sdxl::SDXL,
    &sdxl_refiner::SDXL_REFINER,
    &sd3::SD3,
    &flux1::FLUX1,
    &chroma::CHROMA,
    &flux2::FLUX2,
    &hunyuan_video::HUNYUAN_VIDEO,
    &hunyuan_image::HUNYUAN_IMAGE,
    &hunyuan_video_15::HUNYUAN_VIDEO_15,
    &wan::WAN,
    &qwen_image::QWEN_IMAGE,
    &z_image::Z_IMAGE,
    &lumina2::LUMINA2,
    &ltx::LTX,
    &ltx2::LTX2,
    &auraflow::AURAFLOW,
    &pixart::PIXART,
    &mochi::MOCHI,
    &hidream::HIDREAM,
    &cosmos2::COSMOS2,
    &anima::ANIMA,
    &krea2::KREA2,
    &ideogram4::IDEOGRAM4,
    &minimax_h3::MINIMAX_H3,
    &kandinsky5::KANDINSKY5,
    &wan_animate2::WAN_ANIMATE2,
    &sana::SANA,
    &cogvideox::COGVIDEOX,
    &cogview4::COGVIEW4,
    &ernie_image::ERNIE_IMAGE,
    &stable_cascade::STABLE_CASCADE,
    &ace_step::ACE_STEP,
    &ace_step1::ACE_STEP1,
    &hunyuan_dit::HUNYUAN_DIT,
    &hidream_o1::HIDREAM_O1,
    &flux3::FLUX3,
    &qwen_image_21::QWEN_IMAGE_21,
    &bria_fibo2::BRIA_FIBO2,
    &omnigen2::OMNIGEN2,
    &ovis_image::OVIS_IMAGE,
    &helios::HELIOS,
    &prx::PRX,
    &lumina_next::LUMINA_NEXT,
];

/// A family by its name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::part::Role;
    use super::*;

    #[test]
    fn every_size_has_a_number_for_every_letter() {
        for family in FAMILIES {
            for variant in family.variants {
                for part in family.parts {
                    let extents = if part.role == Role::Denoiser { variant.extents } else { &[] };
                    for naming in part.namings() {
                        for module in part.modules(*naming, extents) {
                            assert!(module.shape.is_some(), "{} {}: {}", family.name, variant.name, module.path);
                        }
                    }
                    assert!(part.missing(extents).is_empty(), "{}: {:?}", family.name, part.missing(extents));
                }
            }
        }
    }

    #[test]
    fn no_two_names_of_a_part_are_the_same_when_flat() {
        for family in FAMILIES {
            for part in family.parts {
                let extents = family.variants.first().map_or(&[][..], |variant| variant.extents);
                for naming in part.namings() {
                    let modules = part.modules(*naming, if part.role == Role::Denoiser { extents } else { &[] });
                    let flat: HashSet<_> = modules.iter().map(|module| module.path.replace('.', "_")).collect();
                    assert_eq!(flat.len(), modules.len(), "{} {:?} {naming:?}", family.name, part.role);
                }
            }
        }
    }

    #[test]
    fn names_of_families_and_sizes_are_their_own() {
        let names: HashSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            let sizes: HashSet<_> = family.variants.iter().map(|variant| variant.name).collect();
            assert_eq!(sizes.len(), family.variants.len(), "{}", family.name);
            assert_eq!(family.parts.first().map(|part| part.role), Some(Role::Denoiser), "{}", family.name);
        }
    }
}
