//! The words in the names of modules and parameters that tell what they are.
//!
//! Source: the modules of huggingface/transformers:src/transformers/models (5.24). A word is here by what every model
//! that has it makes of it; where they disagree it goes with the model types, or is left out: then it is a parameter.

/// Modules whose weight is a stack of matrices.
#[rustfmt::skip]
pub const STACKS: &[&str] = &[
    "input_linear", "output_linear", "input_projections", "linear", "fc1", "fc2", "dense", "lm_heads",
    "codebooks_head",
];

/// Routers of experts. In transformers 5 most are modules of their own with a matrix for a weight; the others return
/// more than a product, or were linear layers before.
#[rustfmt::skip]
pub const ROUTERS: &[&str] = &["gate", "router"];

/// Embeddings that are called with something else than the numbers of the rows, which PEFT's module expects.
pub const CALLED_OTHERWISE: &[&str] = &["embed_positions"];

/// Convolutions whose weight the model reads without calling them, on one of its ways at least.
pub const READ: &[&str] = &["conv1d", "conv_1d"];

/// Model types where that holds for all convolutions by the name of `conv`, or where their stride is asked for, which
/// PEFT's module does not have.
#[rustfmt::skip]
pub const READ_IN: &[&str] = &[
    "encodec", "lfm2", "lfm2_moe", "lfm3", "mimi", "mobilenet_v1", "mobilenet_v2", "moss_transcribe_diarize", "whisper",
];

/// Embeddings whose matrix the model reads as a whole.
#[rustfmt::skip]
pub const READ_EMBEDDINGS: &[&str] = &[
    "hq_token", "iou_token", "level_embed", "mask_tokens", "ngram_embeddings", "no_mask_embed", "not_a_point_embed",
    "obj_score_token", "patterns", "point_embed", "presence_token", "prompt_ctx", "queries_embedder",
    "queries_features", "query_1024_resolution", "query_768_resolution", "query_feat", "query_position_embeddings",
    "query_refpoint_embeddings", "recycle_disto", "reference_point_embed", "rel_embeddings", "rel_pos_bias",
    "rel_pos_x_bias", "rel_pos_y_bias", "tgt_embed",
];

/// Linear layers and embeddings whose weight the model reads without calling them, by the end of their path, and the
/// model types.
#[rustfmt::skip]
pub const READ_MATRICES: &[(&str, &[&str])] = &[
    ("router.classifier", &["longcat_flash"]),
    ("cls.predictions.dense", &["mobilebert"]),
    ("cls.predictions.decoder", &["mobilebert"]),
    ("bbox_attention.k_proj", &["detr", "conditional_detr"]),
    ("k_linear", &["dab_detr"]),
    ("dt_proj", &["mamba", "falcon_mamba", "jamba"]),
    ("attention.q_proj", &["wavlm"]),
    ("attention.k_proj", &["wavlm"]),
    ("attention.v_proj", &["wavlm"]),
    ("attention.out_proj", &["wavlm"]),
    ("query_key", &["reformer"]),
    ("attention.value", &["reformer"]),
    ("query", &["eomt", "eomt_dinov3", "videomt"]),
    ("reference_points", &["grounding-dino", "mm-grounding-dino", "sam3", "sam3_lite_text"]),
    ("quantize.embedding", &["chameleon", "emu3", "janus", "glm_image"]),
    (
        "position_embedding",
        &[
            "siglip2", "siglip2_vision_model", "glm4v", "glm4v_moe", "glm_image", "hunyuan_vl", "hy_v4_vl",
            "cosmos3_edge",
        ],
    ),
    (
        "embed_positions",
        &[
            "whisper", "audioflamingo3", "audioflamingo3_encoder", "qwen2_audio", "qwen2_audio_encoder", "voxtral",
            "voxtral_encoder", "moss_transcribe_diarize",
        ],
    ),
];

/// Model types in which PEFT refuses an adapter of `out_proj`
/// (huggingface/peft:src/peft/tuners/tuners_utils.py, `_check_lora_target_modules_mamba`).
pub const STATE_SPACE: &[&str] = &["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"];

/// Names that are an embedding in models of these types only, and a linear layer or something else in others.
pub const BOTH: &[(&str, &[&str])] =
    &[("embed", &["dia", "fastspeech2_conformer"]), ("input_embedding", &["cpmant"]), ("w", &["ctrl"])];

/// Names of linear layers or embeddings that are something else in models of these types.
pub const UNLIKE: &[(&str, &[&str])] =
    &[("o_a_proj", &["deepseek_v4"]), ("embedding", &["apertus1p5"]), ("objective", &["prophetnet"])];

/// Modules whose matrix is an embedding.
#[rustfmt::skip]
pub const EMBEDDINGS: &[&str] = &[
    "additional_embedding", "audio_bos_eos_token", "bias_values", "box_position_embeddings",
    "char_position_embeddings", "cls_embed", "code_embedding", "codebook", "codec_embed", "codec_embedding",
    "col_position_embeddings", "column_embedder", "column_embeddings", "denoising_class_embed",
    "dist_bin_pairwise_embed", "distance_embedding", "down_embed", "embed_audio_tokens", "embed_char",
    "embed_global", "embed_in", "embed_positions", "embed_speaker", "embed_text_tokens", "embed_timestep",
    "embed_tokens", "embed_tokens_per_layer", "embedders", "embedding", "embeddings", "encoder_hash_tok_embedding",
    "entity_embeddings", "freq_emb", "generation_embeddings", "global_relative_attention_bias",
    "h_position_embeddings", "hq_token", "input_embeds_layer", "input_embeds_layers", "iou_token", "label_embed",
    "label_embeddings", "lang_embeddings", "language_embedding", "language_id_embedding", "level_embed",
    "mask_tokens", "ngram_embedding", "ngram_embeddings", "no_mask_embed", "not_a_point_embed",
    "num_speakers_embed", "obj_score_token", "patterns", "pe_k", "point_embed", "pos_emb", "pos_embed",
    "position_embedding", "position_embedding_table", "position_embeddings", "position_embeds_layer",
    "positions_embed", "presence_token", "prompt_ctx", "prompt_embedding", "pronunciation_embed",
    "queries_embedder", "queries_features", "query_1024_resolution", "query_768_resolution", "query_embed",
    "query_feat", "query_position_embeddings", "query_refpoint_embeddings", "recycle_disto",
    "reference_point_embed", "rel_attn_embed", "rel_embeddings", "rel_pos_emb", "relative_attention_bias",
    "row_embedder", "row_embeddings", "row_position_embeddings", "scale", "segment_emb", "segment_embedding",
    "shape_embed", "shared", "shift", "speaker_embedding", "speaker_id_embedding", "task_type_embeddings",
    "text_embed_tokens", "text_position_embedding", "text_token_embedding", "tgt_embed", "tile_embedding",
    "tok_embeddings", "token_embedding", "token_type_embeddings", "tokens_embed", "unit_embedding", "up_embed",
    "value_embeddings", "visual_embeddings_table", "visual_position_embeddings", "visual_token_type_embeddings",
    "w_position_embeddings", "weight_embedding", "word_embedding", "word_embeddings", "wpe", "wte",
    "x_position_embeddings", "xpath_subs_sub_embeddings", "xpath_tag_sub_embeddings", "y_position_embeddings",
];

/// Words in the names of linear layers.
#[rustfmt::skip]
pub const LINEAR_WORDS: &[&str] = &[
    "c", "classifier", "decoder", "dense", "down", "fc", "gate", "head", "heads", "in", "k", "key", "kv", "lin",
    "linear", "o", "out", "output", "outputs", "proj", "projection", "projections", "projector", "projects", "q",
    "qkv", "query", "score", "transform", "up", "v", "value", "w", "wg", "wi", "wk", "wo", "wq", "wv",
];

/// Names of linear layers without such a word.
#[rustfmt::skip]
pub const LINEARS: &[&str] = &[
    "Wi", "Wk", "Wo", "Wq", "Wqkv", "Wv", "att", "attention_weights", "attn_layer", "base_forecast_block",
    "base_pt_block", "block_inject_weight", "boxes_direct_project", "boxes_pos_enc_project", "centroids",
    "class_embed", "class_predictor", "cls", "continuous_position_bias_mlp", "conv_after_patches",
    "conv_kernel_layer", "correction_coefs", "downproject", "embed_action", "embed_return", "embed_state",
    "embedding_transformation", "embeddings_project", "encoder_vision_features", "esm_s_mlp", "feature_extractor",
    "ff", "ffn", "ffw_layer_1", "ffw_layer_2", "film_add", "film_mul", "final", "final_layer", "hidden_layers",
    "hidden_to_hidden", "inner2emb", "input_layer", "input_to_hidden", "intermediate", "inverse_trans_compression",
    "inverse_trans_expansion", "kernel", "layer", "layer1", "layer2", "layer3", "layer_0", "layer_1", "layer_2",
    "layers", "lm_loss", "logit_scale", "logit_shift", "map_inputs_layer", "map_scale_compression",
    "map_scale_expansion", "matchability", "merging_layer", "mlp", "modality_router", "neck", "pair_init_1",
    "pair_init_2", "patch_embed", "patch_embedding", "patcher", "pointwise_conv", "pointwise_conv1",
    "pointwise_conv2", "pooler", "pos_trans", "post", "predict_action", "predict_return", "predict_state",
    "prediction_coefs", "predictor_embeddings", "project_hid", "project_inputs", "prompt_trans", "pwconv1",
    "pwconv2", "readout", "receptance", "reduces", "reduction", "regression", "rel_pos_bias", "rel_pos_x_bias",
    "rel_pos_y_bias", "relative_pos_embeddings", "residual_layer", "sampling_offsets", "seq_relationship",
    "single_to_pair", "single_to_pair_transpose", "single_to_token", "speaker_embeds_layer", "summary",
    "task_project", "time_mlp", "token", "token_bonds", "transformation", "trunk2sm_s", "trunk2sm_z",
    "vision_embed_tokens", "xpath_unitseq2_embeddings", "xpath_unitseq2_inner",
];

/// Words in the names of one-dimensional convolutions.
#[rustfmt::skip]
pub const CONV_WORDS: &[&str] = &[
    "conv", "conv1d", "convolution", "convs", "depthwise", "downsample", "kernel", "key", "pointwise", "post",
    "proj", "project", "query", "resample", "upsampler", "value",
];

/// Words in the names of convolutions with a group for each channel.
#[rustfmt::skip]
pub const DEPTHWISE: &[&str] = &["conv1d", "depthwise", "dilated", "dw", "dwconv"];

/// Model types with convolutions in several groups of several channels.
#[rustfmt::skip]
pub const GROUPED: &[&str] = &[
    "data2vec-audio", "hubert", "sew", "sew-d", "squeezebert", "unispeech", "unispeech-sat", "wav2vec2",
    "wav2vec2-conformer", "wavlm", "speecht5", "resnext", "regnet", "convbert",
];

/// Names of transposed convolutions.
#[rustfmt::skip]
pub const TRANSPOSED: &[&str] = &[
    "conv_transpose", "conv_transpose1", "conv_transpose1d", "conv_transpose2", "fpn2", "resize", "upconv",
    "upsample", "upsampler", "upscale_conv1", "upscale_conv2",
];

/// Buffers that are saved with a model.
#[rustfmt::skip]
pub const BUFFERS: &[&str] = &[
    "beta", "cluster_size", "cluster_usage", "diagonal_decay", "e_score_correction_bias", "embed", "embed_avg",
    "embed_sum", "eps", "expert_bias", "final_logits_bias", "inited", "initialized", "input_max", "input_min",
    "inv_freq", "key_decay", "layer_scalar", "mup_vector", "n_points_scale", "num_batches_tracked",
    "num_points_scale", "output_max", "output_min", "pos_idx_to_embed", "position_ids", "query_decay",
    "relative_position_index", "running_mean", "running_var", "slope_rate", "tid2eid", "token_type_ids",
];

/// The words for the denoiser of an image model. Its matrices are linear layers, whatever they are called (`ff.net.2`,
/// `img_mod.1`).
pub const DENOISERS: &[&str] = &["unet", "transformer", "transformer_2", "prior"];

/// But for the classes and styles of some.
pub const TABLES: &[&str] = &["embedding_table", "style_embedder"];
