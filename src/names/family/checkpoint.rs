//! Checkpoints of image and video models in one file, which have no config: their parts behind prefixes of their own, the
//! larger text encoder as OpenCLIP has it.
//!
//! Sources: Stability-AI/generative-models (prefixes), mlfoundations/open_clip (text encoders); the same maps in
//! kohya-ss/sd-scripts:library/{model_util,sdxl_model_util}.py. In memory each part stands behind diffusers' word for it;
//! what is inside the denoiser keeps the names of the checkpoint.

use super::super::diffusion::Naming;
use super::super::rewrite::{Set, rename, split, transpose};

/// Stable Diffusion 1, with CLIP-L in transformers' names, in older files without their first level.
pub const SD1: &str = "checkpoint of Stable Diffusion 1";
/// Stable Diffusion 2, with OpenCLIP-H.
pub const SD2: &str = "checkpoint of Stable Diffusion 2";
/// SDXL, with CLIP-L and OpenCLIP-G.
pub const SDXL: &str = "checkpoint of SDXL";
/// The refiner of SDXL, with OpenCLIP-G alone.
pub const REFINER: &str = "checkpoint of the refiner of SDXL";
/// The U-Net of one of these by itself.
pub const U_NET: &str = "checkpoint of a U-Net";
/// Stage C of Stable Cascade.
pub const CASCADE: &str = "checkpoint of Stable Cascade";
/// A transformer, with or without text encoders beside it.
pub const TRANSFORMER: &str = "checkpoint of a diffusion transformer";
/// A transformer by itself in diffusers' names.
pub const TRANSFORMER_OF_DIFFUSERS: &str = "checkpoint of a diffusion transformer in diffusers' names";
/// ACE-Step as its authors have it, with a config that names this class.
pub const ACE_STEP: &str = "AceStepConditionGenerationModel";

/// The CLIP text encoder of a pipeline, with or without the level that transformers dropped in version 5.
const CLIP_OF_PIPELINE: &str = "CLIP in a pipeline";
/// Its types and classes.
const CLIP: [&str; 3] = ["clip_text_model", "CLIPTextModel", "CLIPTextModelWithProjection"];

/// Modules at the root of transformers that are stored without any prefix. `blocks.` and `layers.` are those of other models
/// as well; there it is a module beside them that tells.
const ROOTS: &[&str] = &[
    "double_blocks.",
    "single_blocks.",
    "joint_blocks.",
    "transformer_blocks.",
    "single_transformer_blocks.",
    "double_layers.",
    "noise_refiner.",
    // HiDream.
    "double_stream_blocks.",
    "final_layer2.",
    // FLUX.3.
    "content_mode_blocks.",
    // Sana, PixArt.
    "attention_y_norm.",
    "y_embedder.y_proj.",
    // HunyuanDiT.
    "mlp_t5.",
    "extra_embedder.",
    // Wan.
    "head.modulation",
    // Helios.
    "patch_short.",
    // Krea 2, Kandinsky 5, Ideogram 4, Mochi, MiniMax-H3, Ernie-Image, PRX.
    "txtfusion.",
    "visual_transformer_blocks.",
    "embed_image_indicator.",
    "t5_yproj.",
    "video_patch_proj.",
    "layers.0.adaLN_sa_ln.",
    "blocks.0.img_qkv_proj.",
    // Anima.
    "llm_adapter.blocks.",
    // Cosmos-Predict 2 and Anima, after the word for the network.
    "net.blocks.",
    // ACE-Step, the decoder of a whole.
    "decoder.time_embed_r.",
];
/// What only the U-Nets of diffusers have together; their ControlNets have no way up, their VAEs no time.
const OF_U_NETS: [&str; 3] = ["time_embedding.linear_1.", "down_blocks.0.", "up_blocks.0."];
const DENOISERS: &[&str] = &["model.diffusion_model.", "diffusion_model."];

/// What kind of checkpoint has these keys; none where it is nothing of the sort.
pub fn of_keys<'k>(keys: impl Iterator<Item = &'k str> + Clone) -> Option<&'static str> {
    let has = |start: &str| keys.clone().any(|key| key.starts_with(start));
    if has("model.diffusion_model.input_blocks.") {
        return Some(if has("conditioner.embedders.1.") {
            SDXL
        } else if has("conditioner.embedders.0.model.") {
            REFINER
        } else if has("cond_stage_model.model.") {
            SD2
        } else {
            SD1
        });
    }
    let is_u_net = |root: &str| {
        has(&format!("{root}input_blocks."))
            && has(&format!("{root}output_blocks."))
            && has(&format!("{root}middle_block."))
    };
    if is_u_net("") || is_u_net("diffusion_model.") {
        return Some(U_NET);
    }
    if has("clip_txt_pooled_mapper.") || has("model.diffusion_model.clip_txt_pooled_mapper.") {
        return Some(CASCADE);
    }
    if OF_U_NETS.iter().all(|start| has(start)) {
        return Some(UNET_2D);
    }
    // `transformer_blocks` are also LTX-Video's and Qwen-Image's own; SD3 has a `context_embedder` in either naming.
    let of_diffusers = ["single_transformer_blocks.", "all_x_embedder.", "time_caption_embed."].into_iter().any(has)
        || (has("transformer_blocks.") && has("context_embedder."));
    if of_diffusers {
        return Some(TRANSFORMER_OF_DIFFUSERS);
    }
    (DENOISERS.iter().any(|root| has(root)) || ROOTS.iter().any(|root| has(root))).then_some(TRANSFORMER)
}

/// Whose names the denoiser of such a model has.
pub fn naming(model_type: &str) -> Option<Naming> {
    if [SD1, SD2, SDXL, REFINER, U_NET, CASCADE, TRANSFORMER, ACE_STEP].contains(&model_type) {
        return Some(Naming::Native);
    }
    let of_diffusers = model_type == TRANSFORMER_OF_DIFFUSERS
        || [U_NETS, PRIORS, TRANSFORMERS].iter().any(|classes| classes.contains(&model_type));
    of_diffusers.then_some(Naming::Diffusers)
}

/// The types by which a component of a pipeline is named, given those of the model it is: its own name stands before what
/// is inside, so that no rule has to put it there, and CLIP has all its levels, as adapters have them.
pub fn of_component(types: &[String]) -> Vec<String> {
    let is_clip = |name: &String| CLIP.contains(&name.as_str());
    let is_denoiser = |name: &String| [U_NETS, PRIORS, TRANSFORMERS].iter().any(|all| all.contains(&name.as_str()));
    let clip = types.iter().any(is_clip).then(|| CLIP_OF_PIPELINE.to_string());
    types.iter().filter(|name| !is_clip(name) && !is_denoiser(name)).cloned().chain(clip).collect()
}

/// OpenCLIP's names in those of transformers, behind the text encoder's word.
macro_rules! open_clip {
    ($from:literal, $to:literal) => {
        [
            split(
                &[concat!("^", $from, r"transformer\.resblocks\.(\d+)\.attn\.in_proj_weight")],
                &[
                    concat!($to, "text_model.encoder.layers.$1.self_attn.q_proj.weight"),
                    concat!($to, "text_model.encoder.layers.$1.self_attn.k_proj.weight"),
                    concat!($to, "text_model.encoder.layers.$1.self_attn.v_proj.weight"),
                ],
            ),
            split(
                &[concat!("^", $from, r"transformer\.resblocks\.(\d+)\.attn\.in_proj_bias")],
                &[
                    concat!($to, "text_model.encoder.layers.$1.self_attn.q_proj.bias"),
                    concat!($to, "text_model.encoder.layers.$1.self_attn.k_proj.bias"),
                    concat!($to, "text_model.encoder.layers.$1.self_attn.v_proj.bias"),
                ],
            ),
            rename(
                concat!("^", $from, r"transformer\.resblocks\.(\d+)\.attn\.out_proj\."),
                concat!($to, "text_model.encoder.layers.$1.self_attn.out_proj."),
            ),
            rename(
                concat!("^", $from, r"transformer\.resblocks\.(\d+)\.ln_(\d+)\."),
                concat!($to, "text_model.encoder.layers.$1.layer_norm$2."),
            ),
            rename(
                concat!("^", $from, r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\."),
                concat!($to, "text_model.encoder.layers.$1.mlp.fc1."),
            ),
            rename(
                concat!("^", $from, r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\."),
                concat!($to, "text_model.encoder.layers.$1.mlp.fc2."),
            ),
            rename(concat!("^", $from, r"ln_final\."), concat!($to, "text_model.final_layer_norm.")),
            rename(concat!("^", $from, r"token_embedding\."), concat!($to, "text_model.embeddings.token_embedding.")),
            rename(
                concat!("^", $from, r"positional_embedding$"),
                concat!($to, "text_model.embeddings.position_embedding.weight"),
            ),
            // OpenCLIP multiplies by it from the right, a linear layer of transformers from the left.
            transpose(&[concat!("^", $from, r"text_projection$")], &[concat!($to, "text_projection.weight")]),
        ]
    };
}

const OF_SD2: &[super::super::rewrite::Rule] = &open_clip!(r"cond_stage_model\.model\.", "text_encoder.");
const OF_SDXL: &[super::super::rewrite::Rule] = &open_clip!(r"conditioner\.embedders\.1\.model\.", "text_encoder_2.");
const OF_REFINER: &[super::super::rewrite::Rule] =
    &open_clip!(r"conditioner\.embedders\.0\.model\.", "text_encoder_2.");

const UNET: &[super::super::rewrite::Rule] =
    &[rename(r"^model\.diffusion_model\.", "unet."), rename(r"^first_stage_model\.", "vae.")];

/// The class of the U-Nets of Stable Diffusion.
const UNET_2D: &str = "UNet2DConditionModel";

/// The denoisers of diffusers by their classes (`_class_name` of the config), each a model by itself.
const U_NETS: &[&str] = &[
    "DreamLiteUNetModel",
    "I2VGenXLUNet",
    "Kandinsky3UNet",
    UNET_2D,
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
];
const PRIORS: &[&str] = &["StableCascadeUNet"];
const TRANSFORMERS: &[&str] = &[
    "AceStepTransformer1DModel",
    "AllegroTransformer3DModel",
    "AnyFlowFARTransformer3DModel",
    "AnyFlowTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "BriaFibo2Transformer2DModel",
    "BriaFiboTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "ChronoEditTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "CogView3PlusTransformer2DModel",
    "CogView4Transformer2DModel",
    "ConsisIDTransformer3DModel",
    "Cosmos3OmniTransformer",
    "CosmosTransformer3DModel",
    "DiTTransformer2DModel",
    "DreamLiteTransformer2DModel",
    "EasyAnimateTransformer3DModel",
    "ErnieImageTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "GlmImageTransformer2DModel",
    "HeliosTransformer3DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanDiT2DModel",
    "HunyuanImageTransformer2DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoFramepackTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "Ideogram4Transformer2DModel",
    "JoyImageEditPlusTransformer3DModel",
    "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel",
    "Kandinsky6SRTransformer3DModel",
    "Kandinsky6Transformer3DModel",
    "Krea2Transformer2DModel",
    "LTX2VideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "LatteTransformer3DModel",
    "LongCatAudioDiTTransformer",
    "LongCatImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "MiniMaxH3Transformer3DModel",
    "MochiTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "NucleusMoEImageTransformer2DModel",
    "OmniGen2Transformer2DModel",
    "OmniGenTransformer2DModel",
    "OvisImageTransformer2DModel",
    "PRXTransformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SanaVideoTransformer3DModel",
    "SanaWMTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "StableAudio3DiTModel",
    "StableAudioDiTModel",
    "WanAnimate2Transformer3DModel",
    "WanAnimateTransformer3DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "ZImageTransformer2DModel",
];

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(U_NETS, &[rename(r"^", "unet.")]),
    Set::whole(PRIORS, &[rename(r"^", "prior.")]),
    Set::whole(TRANSFORMERS, &[rename(r"^", "transformer.")]),
    Set::whole(&[TRANSFORMER_OF_DIFFUSERS], &[rename(r"^", "transformer.")]),
    Set::whole(&[CLIP_OF_PIPELINE], &[rename(r"^(encoder|embeddings|final_layer_norm)\.", "text_model.$1.")]),
    Set::whole(&[SD1, SD2, SDXL, REFINER], UNET),
    Set::whole(&[U_NET], &[rename(r"^(?:diffusion_model\.)?", "unet.")]),
    Set::whole(&[SD1], &[rename(r"^cond_stage_model\.transformer\.(text_model\.)?", "text_encoder.text_model.")]),
    Set::whole(&[SD2], OF_SD2),
    Set::whole(
        &[SDXL],
        &[rename(r"^conditioner\.embedders\.0\.transformer\.(text_model\.)?", "text_encoder.text_model.")],
    ),
    Set::whole(&[SDXL], OF_SDXL),
    Set::whole(&[REFINER], OF_REFINER),
    Set::whole(
        &[CASCADE],
        &[
            rename(r"^model\.diffusion_model\.", "prior."),
            rename(r"^", "prior.").unless_before(&["prior.", "vae.", "first_stage_model.", "text_encoder"]),
            split(
                &[r"^prior\.(.*)\.attention\.attn\.in_proj_weight"],
                &[
                    "prior.$1.attention.attn.to_q.weight",
                    "prior.$1.attention.attn.to_k.weight",
                    "prior.$1.attention.attn.to_v.weight",
                ],
            ),
            split(
                &[r"^prior\.(.*)\.attention\.attn\.in_proj_bias"],
                &[
                    "prior.$1.attention.attn.to_q.bias",
                    "prior.$1.attention.attn.to_k.bias",
                    "prior.$1.attention.attn.to_v.bias",
                ],
            ),
        ],
    ),
    Set::whole(&[ACE_STEP], &[rename(r"^decoder\.", "transformer.")]),
    Set::whole(
        &[TRANSFORMER],
        &[
            // Black Forest Labs' norms call their weight so.
            rename(r"_norm\.scale$", "_norm.weight"),
            // The decoder of ACE-Step; a VAE's stands after a word of its own.
            rename(
                r"^(?:model\.diffusion_model\.)?decoder\.(layers|time_embed|time_embed_r|condition_embedder|proj_in|proj_out|norm_out)\.",
                "transformer.$1.",
            ),
            // Anima's, a component of its own in diffusers.
            rename(r"^(?:net\.|(?:model\.)?diffusion_model\.)?llm_adapter\.", "text_conditioner."),
            rename(r"^(?:model\.)?diffusion_model\.", "transformer."),
            rename(r"^net\.", "transformer."),
            rename(r"^first_stage_model\.", "vae."),
            rename(r"^vae\.", "vae."),
            rename(r"^text_encoders\.clip_l\.transformer\.(text_model\.)?", "text_encoder.text_model."),
            rename(r"^text_encoders\.clip_g\.transformer\.(text_model\.)?", "text_encoder_2.text_model."),
            rename(r"^text_encoders\.t5xxl\.transformer\.", "text_encoder_3."),
            // Without a prefix the whole file is the transformer.
            rename(r"^", "transformer.").unless_before(&[
                "transformer.",
                "vae.",
                "text_encoder",
                "text_encoders.",
                "text_conditioner.",
            ]),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use super::super::super::Index;
    use super::*;

    fn index(keys: &[(&str, &[usize])]) -> Index {
        let kind = of_keys(keys.iter().map(|(key, _)| *key)).unwrap();
        Index::new(keys.iter().map(|(key, shape)| (key.to_string(), shape.to_vec())), &[kind.to_string()])
    }

    #[test]
    fn parts_of_sdxl_stand_behind_their_words() {
        let index = index(&[
            ("model.diffusion_model.input_blocks.4.1.proj_in.weight", &[8, 8]),
            ("conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight", &[8, 8]),
            ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", &[12, 4]),
            ("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_bias", &[12]),
            ("conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.weight", &[16, 4]),
            ("conditioner.embedders.1.model.text_projection", &[4, 6]),
            ("first_stage_model.decoder.conv_in.weight", &[4, 4, 3, 3]),
        ]);
        let key = |name: &str| index.find(name).unwrap_or_else(|| panic!("{name}")).pieces[0].key.clone();
        assert_eq!(
            key("unet.input_blocks.4.1.proj_in.weight"),
            "model.diffusion_model.input_blocks.4.1.proj_in.weight"
        );
        let te2 = "text_encoder_2.text_model.encoder.layers.0";
        let found = index.find(&format!("{te2}.self_attn.k_proj.weight")).unwrap();
        assert_eq!((found.memory_shape.as_slice(), found.pieces[0].disk.rows.clone()), (&[4, 4][..], Some(4..8)));
        assert!(index.find(&format!("{te2}.self_attn.v_proj.bias")).is_some());
        assert!(key(&format!("{te2}.mlp.fc1.weight")).ends_with("c_fc.weight"));
        let found = index.find("text_encoder_2.text_projection.weight").unwrap();
        assert!(found.pieces[0].transposed && found.memory_shape == [6, 4]);
        assert!(key("vae.decoder.conv_in.weight").starts_with("first_stage_model"));
    }

    #[test]
    fn a_u_net_may_stand_alone() {
        for root in ["", "diffusion_model."] {
            let key = |inner: &str| format!("{root}{inner}");
            let [up, mid] = ["output_blocks.0.0.in_layers.2.weight", "middle_block.1.proj_in.weight"].map(key);
            let down = key("input_blocks.4.1.proj_in.weight");
            let index = index(&[(&down, &[8, 8]), (&mid, &[8, 8]), (&up, &[8, 8, 3, 3])]);
            assert_eq!(index.find("unet.input_blocks.4.1.proj_in.weight").unwrap().pieces[0].key, down);
        }
        let keys =
            ["time_embedding.linear_1.weight", "down_blocks.0.downsamplers.0.conv.weight", "up_blocks.0.q.weight"];
        let of_diffusers = index(&keys.map(|key| (key, &[8, 8][..])));
        assert_eq!(of_diffusers.find(&format!("unet.{}", keys[1])).unwrap().pieces[0].key, keys[1]);
        assert_eq!(of_keys([keys[0], keys[1], "controlnet_mid_block.weight"].into_iter()), None);
    }

    #[test]
    fn older_files_lack_a_level_of_the_text_encoder() {
        let index = index(&[
            ("model.diffusion_model.input_blocks.1.1.proj_in.weight", &[8, 8, 1, 1]),
            ("cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight", &[8, 8]),
        ]);
        assert!(index.find("text_encoder.text_model.encoder.layers.0.mlp.fc1.weight").is_some());
    }

    #[test]
    fn the_attention_of_stable_cascade_comes_apart() {
        let block = "down_blocks.0.2.attention.attn";
        for prefix in ["", "model.diffusion_model."] {
            let index = index(&[
                (&format!("{prefix}clip_txt_pooled_mapper.weight"), &[8, 8]),
                (&format!("{prefix}{block}.in_proj_weight"), &[24, 8]),
                (&format!("{prefix}{block}.in_proj_bias"), &[24]),
                (&format!("{prefix}{block}.out_proj.weight"), &[8, 8]),
            ]);
            let found = index.find(&format!("prior.{block}.to_k.weight")).unwrap();
            assert_eq!((found.memory_shape.as_slice(), found.pieces[0].disk.rows.clone()), (&[8, 8][..], Some(8..16)));
            assert!(index.find(&format!("prior.{block}.to_v.bias")).is_some());
            assert!(index.find(&format!("prior.{block}.out_proj.weight")).is_some());
        }
    }

    #[test]
    fn the_decoder_of_ace_step_is_a_transformer() {
        let name = "transformer.layers.0.self_attn.q_proj.weight";
        for key in [
            "decoder.layers.0.self_attn.q_proj.weight",
            "model.diffusion_model.decoder.layers.0.self_attn.q_proj.weight",
        ] {
            let root = key.split("layers").next().unwrap();
            let index = index(&[(&format!("{root}time_embed_r.linear_1.weight"), &[8, 8]), (key, &[8, 8])]);
            assert_eq!(index.find(name).unwrap().pieces[0].key, key);
        }
        let whole = Index::new([("decoder.layers.0.self_attn.q_proj.weight".into(), vec![8, 8])], &[ACE_STEP.into()]);
        assert!(whole.find(name).is_some());
    }

    #[test]
    fn the_network_for_the_text_of_anima_stands_behind_its_word() {
        for root in ["net.", "model.diffusion_model.", ""] {
            let [key, inner] = ["blocks.0.x.weight", "llm_adapter.blocks.0.x.weight"].map(|key| format!("{root}{key}"));
            let kind =
                Index::new([key.clone(), inner.clone()].map(|key| (key, vec![8, 8])), &[TRANSFORMER.to_string()]);
            assert_eq!(kind.find("text_conditioner.blocks.0.x.weight").unwrap().pieces[0].key, inner);
            assert_eq!(kind.find("transformer.blocks.0.x.weight").unwrap().pieces[0].key, key);
        }
    }

    #[test]
    fn a_transformer_may_stand_alone() {
        for prefix in ["", "model.diffusion_model."] {
            let key = format!("{prefix}double_blocks.0.img_attn.qkv.weight");
            let index = index(&[(&key, &[24, 8])]);
            assert_eq!(index.find("transformer.double_blocks.0.img_attn.qkv.weight").unwrap().pieces[0].key, key);
        }
        let key = "net.blocks.0.self_attn.q_proj.weight";
        assert_eq!(
            index(&[(key, &[8, 8])]).find("transformer.blocks.0.self_attn.q_proj.weight").unwrap().pieces[0].key,
            key
        );
        for (keys, whose) in [
            (
                ["transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.attn.to_q.weight"],
                Naming::Diffusers,
            ),
            (["transformer_blocks.0.attn.to_q.weight", "context_embedder.weight"], Naming::Diffusers),
            (["joint_blocks.0.x_block.attn.qkv.weight", "context_embedder.weight"], Naming::Native),
            (["transformer_blocks.0.attn1.to_q.weight", "adaln_single.linear.weight"], Naming::Native),
        ] {
            assert_eq!(naming(of_keys(keys.into_iter()).unwrap()), Some(whose));
            let index = index(&[(keys[0], &[8, 8])]);
            assert_eq!(index.find(&format!("transformer.{}", keys[0])).unwrap().pieces[0].key, keys[0]);
        }
        let llama = ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"];
        assert_eq!(of_keys(llama.into_iter()), None);
    }
}
