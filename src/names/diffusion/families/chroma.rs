//! Chroma: FLUX.1 with its modulation made by one small network.
//!
//! Sources: lodestone-rock/flow:src/models/chroma/model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_chroma.py (right). Letters as in `flux1`; `a` is
//! the width of the small network, `l` its number of layers; `r` is whether it makes pixels and not latents, as Radiance
//! does: its blocks at the end have the names that comfyanonymous/ComfyUI:comfy/ldm/chroma_radiance has them by.

use super::super::encoders::t5;
use super::super::extent::Count;
use super::super::family::{Family, Variant};
use super::super::part::{Naming, Part, Role, checkpoint, comfy, diffusers, kohya};
use super::super::table::{Row, TOP, Table, group, row, same};
use super::{flux1, homes};

const TEXT_IN: &[Row] = &[row("txt_in", "context_embedder", "d e")];
const LATENTS: &[Row] = &[row("img_in", "x_embedder", "d x"), row("final_layer.linear", "proj_out", "o d")];

const PIXELS: &[Row] = &[
    same("img_in_patch", "d 3 16 16"),
    same("nerf_image_embedder.embedder.0", "64 67"),
    same("nerf_blocks.#.param_generator", "49152 d").numbered(&[Count("4")]),
    same("nerf_blocks.#.norm", "64").numbered(&[Count("4")]),
    same("nerf_final_layer_conv.norm", "64"),
    same("nerf_final_layer_conv.conv", "3 64 3 3"),
];

const GUIDANCE: &[Row] = &[
    same("distilled_guidance_layer.in_proj", "a 64"),
    same("distilled_guidance_layer.out_proj", "d a"),
    layer("distilled_guidance_layer.layers.#.in_layer", "distilled_guidance_layer.layers.#.linear_1", "a a"),
    layer("distilled_guidance_layer.layers.#.out_layer", "distilled_guidance_layer.layers.#.linear_2", "a a"),
    layer("distilled_guidance_layer.norms.#", "distilled_guidance_layer.norms.#", "a"),
];

const fn layer(left: &'static str, right: &'static str, shape: &'static str) -> Row {
    row(left, right, shape).numbered(&[Count("l")])
}

static TRANSFORMER: Table = Table::new(&[
    group(TOP, TEXT_IN),
    group(TOP, LATENTS).when("1-r"),
    group(TOP, PIXELS).when("r"),
    group(TOP, GUIDANCE),
    group(flux1::DOUBLE, flux1::DOUBLE_ATTENTION),
    group(flux1::DOUBLE, flux1::DOUBLE_MLP),
    group(flux1::SINGLE, flux1::SINGLE_LINEAR),
    group(flux1::SINGLE, flux1::SINGLE_NORMS),
]);

const TEXT: Part = t5::part(&[
    kohya("lora_te3", Naming::Diffusers),
    kohya("lora_te", Naming::Diffusers),
    diffusers("text_encoder"),
    comfy("text_encoders.t5xxl.transformer", Naming::Diffusers),
    checkpoint("text_encoders.t5xxl.transformer", Naming::Diffusers),
]);

/// Chroma.
pub(super) static CHROMA: Family = Family {
    name: "chroma",
    about: "Chroma",
    variants: &[
        Variant {
            name: "Chroma",
            extents: &[
                ("d", 3072),
                ("n", 19),
                ("s", 38),
                ("e", 4096),
                ("x", 64),
                ("o", 64),
                ("a", 5120),
                ("l", 5),
                ("r", 0),
            ],
        },
        Variant {
            name: "Chroma1 Radiance",
            extents: &[
                ("d", 3072),
                ("n", 19),
                ("s", 38),
                ("e", 4096),
                ("x", 64),
                ("o", 64),
                ("a", 5120),
                ("l", 5),
                ("r", 1),
            ],
        },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE), TEXT],
};
