//! FLUX.2, dev and Klein: no biases, one modulation for all blocks, gated feed-forward layers.
//!
//! Sources: black-forest-labs/flux2:src/flux2/model.py (left);
//! huggingface/diffusers:src/diffusers/models/transformers/transformer_flux2.py (right). Letters as in `flux1`. What
//! diffusers converts of a base model has the last modulation in its own order; its converter of adapters does not
//! change the order (0.42.1).

use super::super::family::{Family, Variant};
use super::super::part::{Part, Role};
use super::super::table::{Row, TOP, Table, group, row};
use super::{flux1, homes};

const MLP: &[Row] = &[
    row("img_mlp.0", "ff.linear_in", "6d d"),
    row("img_mlp.2", "ff.linear_out", "d 3d"),
    row("txt_mlp.0", "ff_context.linear_in", "6d d"),
    row("txt_mlp.2", "ff_context.linear_out", "d 3d"),
];

/// Queries, keys, values and the gated feed-forward layer stay together in diffusers too.
const SINGLE: &[Row] = &[row("linear1", "attn.to_qkv_mlp_proj", "9d d"), row("linear2", "attn.to_out", "d 4d")];

const MODULATION: &[Row] = &[
    row("double_stream_modulation_img.lin", "double_stream_modulation_img.linear", "6d d"),
    row("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear", "6d d"),
    row("single_stream_modulation.lin", "single_stream_modulation.linear", "3d d"),
];

const TIME: &[Row] = &[
    row("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1", "d 256"),
    row("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2", "d d"),
];

const GUIDANCE: &[Row] = &[
    row("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1", "d 256"),
    row("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2", "d d"),
];

static TRANSFORMER: Table = Table::new(&[
    group(TOP, flux1::ENDS),
    group(TOP, flux1::LAST_MODULATION),
    group(TOP, MODULATION),
    group(TOP, TIME),
    group(TOP, GUIDANCE).when("g"),
    group(flux1::DOUBLE, flux1::DOUBLE_ATTENTION),
    group(flux1::DOUBLE, MLP),
    group(flux1::SINGLE, SINGLE),
    group(flux1::SINGLE, flux1::SINGLE_NORMS),
]);

/// FLUX.2.
pub(super) static FLUX2: Family = Family {
    name: "flux2",
    about: "FLUX.2",
    variants: &[
        Variant {
            name: "FLUX.2 dev",
            extents: &[("d", 6144), ("n", 8), ("s", 48), ("e", 15360), ("x", 128), ("o", 128), ("g", 1)],
        },
        Variant {
            name: "FLUX.2 Klein 9B",
            extents: &[("d", 4096), ("n", 8), ("s", 24), ("e", 12288), ("x", 128), ("o", 128), ("g", 0)],
        },
        Variant {
            name: "FLUX.2 Klein 4B",
            extents: &[("d", 3072), ("n", 5), ("s", 20), ("e", 7680), ("x", 128), ("o", 128), ("g", 0)],
        },
    ],
    parts: &[Part::new(Role::Denoiser, &TRANSFORMER, homes::NATIVE)],
};
