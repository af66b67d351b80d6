//! The families, a file for each.

mod anima;
mod auraflow;
mod chroma;
mod cosmos2;
mod flux1;
mod flux2;
mod hidream;
mod homes;
mod hunyuan_image;
mod hunyuan_video;
mod hunyuan_video_15;
mod ideogram4;
mod kandinsky5;
mod krea2;
mod ltx;
mod ltx2;
mod lumina2;
mod minimax_h3;
mod mochi;
mod pixart;
mod qwen_image;
mod sd1;
mod sd2;
mod sd3;
mod sdxl;
mod sdxl_refiner;
mod unet;
mod unet_places;
mod wan;
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
];

/// A family by its name.
pub fn family(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|family| family.name == name)
}
