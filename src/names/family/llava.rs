//! Models that join a vision or audio tower to a language model, in the way of Llava.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24).

use super::super::rewrite::{Set, rename};

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(
        &[
            "llava",
            "aria",
            "paligemma",
            "aya_vision",
            "got_ocr2",
            "gemma3",
            "internvl",
            "vipllava",
            "mistral3",
            "pp_chart2table",
        ],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^vision_tower", "model.vision_tower"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["llava_next", "llava_next_video", "llava_onevision"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^vision_tower", "model.vision_tower"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename("^image_newline", "model.image_newline"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["video_llava"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^image_tower", "model.image_tower"),
            rename("^video_tower", "model.video_tower"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["fuyu"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^vision_embed_tokens", "model.vision_embed_tokens"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["mllama"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^vision_model", "model.vision_model"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["qwen2_audio", "voxtral", "voxtral_realtime", "audioflamingo3", "glmasr", "musicflamingo"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^audio_tower", "model.audio_tower"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["granite_speech", "granite_speech_plus"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^encoder", "model.encoder"),
            rename("^projector", "model.projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["vibevoice_asr"],
        &[
            rename(r"^language_model\.lm_head", "lm_head"),
            rename("^language_model", "model.language_model"),
            rename("^acoustic_tokenizer_encoder", "model.acoustic_tokenizer_encoder"),
            rename("^semantic_tokenizer_encoder", "model.semantic_tokenizer_encoder"),
            rename("^multi_modal_projector", "model.multi_modal_projector"),
            rename(r"^(model\.)?language_model\.model", "${1}language_model"),
        ],
    ),
    Set::whole(
        &["aria_text"],
        &[
            rename(r"mlp\.experts\.fc1\.weight", "mlp.experts.gate_up_proj"),
            rename(r"mlp\.experts\.fc2\.weight", "mlp.experts.down_proj"),
        ],
    ),
    Set::whole(
        &["emu3"],
        &[
            rename(r"^text_model\.lm_head", "lm_head"),
            rename("^text_model", "model.text_model"),
            rename("^vqmodel", "model.vqmodel"),
            rename(r"^(model\.)?text_model\.model", "${1}text_model"),
        ],
    ),
    Set::whole(
        &["hyperclovax_vision_v2"],
        &[
            rename(r"^model\.language_model\.lm_head", "lm_head"),
            rename(r"^model\.vision_projector", "model.projector"),
            rename(r"^model\.language_model\.model\.", "model.language_model."),
        ],
    ),
    Set::whole(&["colpali"], &[rename(r"^vlm\.language_model\.model\.", "vlm.language_model.")]),
    Set::whole(&["colqwen2"], &[rename(r"^vlm\.model\.", "vlm.")]),
    Set::whole(&["shieldgemma2"], &[rename(r"^model\.", "model.model.").unless_before(&["model."])]),
    Set::whole(
        &["pi0"],
        &[
            rename(r"^model\.", ""),
            rename("state_proj", "embed_action_time.state_proj"),
            rename("action_in_proj", "embed_action_time.action_in_proj"),
            rename("action_time_mlp_in", "embed_action_time.action_time_mlp_in"),
            rename("action_time_mlp_out", "embed_action_time.action_time_mlp_out"),
            rename(r"^paligemma_with_expert\.paligemma\.model", "model.vlm"),
            rename(r"^paligemma_with_expert\.gemma_expert\.model", "model.dit"),
            rename(r"^paligemma_with_expert\.gemma_expert\.lm_head", "model.dit.embed_tokens"),
            rename(r"^paligemma_with_expert\.paligemma\.lm_head", "model.vlm.language_model.embed_tokens"),
        ],
    ),
];
