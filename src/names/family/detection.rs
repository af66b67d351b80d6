//! Models that find objects and regions in images.
//!
//! Source: huggingface/transformers:src/transformers/conversion_mapping.py (5.24). What that table hangs on the class of
//! an inner model stands here under the model types that contain it.

use super::super::rewrite::{Rule, Set, rename, split};

/// The two layers of a feed-forward block, which move into a module of their own.
const FC1: Rule = rename(r"layers\.(\d+)\.fc1", "layers.${1}.mlp.fc1");
const FC2: Rule = rename(r"layers\.(\d+)\.fc2", "layers.${1}.mlp.fc2");
const OUT: Rule = rename("out_proj", "o_proj");
const BACKBONE: Rule = rename(r"backbone\.conv_encoder", "backbone");

/// The rule sets of this group.
pub(super) const SETS: &[Set] = &[
    Set::whole(&["detr"], &[BACKBONE, OUT, FC1, FC2]),
    Set::whole(
        &["DetrForSegmentation", "ConditionalDetrForSegmentation"],
        &[
            rename(r"bbox_attention\.q_linear", "bbox_attention.q_proj"),
            rename(r"bbox_attention\.k_linear", "bbox_attention.k_proj"),
            rename(r"mask_head\.lay1", "mask_head.conv1.conv"),
            rename(r"mask_head\.gn1", "mask_head.conv1.norm"),
            rename(r"mask_head\.lay2", "mask_head.conv2.conv"),
            rename(r"mask_head\.gn2", "mask_head.conv2.norm"),
            rename(r"mask_head\.adapter1", "mask_head.fpn_stages.0.fpn_adapter"),
            rename(r"mask_head\.lay3", "mask_head.fpn_stages.0.refine.conv"),
            rename(r"mask_head\.gn3", "mask_head.fpn_stages.0.refine.norm"),
            rename(r"mask_head\.adapter2", "mask_head.fpn_stages.1.fpn_adapter"),
            rename(r"mask_head\.lay4", "mask_head.fpn_stages.1.refine.conv"),
            rename(r"mask_head\.gn4", "mask_head.fpn_stages.1.refine.norm"),
            rename(r"mask_head\.adapter3", "mask_head.fpn_stages.2.fpn_adapter"),
            rename(r"mask_head\.lay5", "mask_head.fpn_stages.2.refine.conv"),
            rename(r"mask_head\.gn5", "mask_head.fpn_stages.2.refine.norm"),
            rename(r"mask_head\.out_lay", "mask_head.output_conv"),
        ],
    ),
    Set::whole(
        &["conditional_detr"],
        &[
            BACKBONE,
            rename(r"self_attn\.out_proj", "self_attn.o_proj"),
            rename(r"encoder_attn\.out_proj", "encoder_attn.o_proj"),
            FC1,
            FC2,
            rename(r"decoder\.layers\.(\d+)\.sa_qcontent_proj", "decoder.layers.${1}.self_attn.q_content_proj"),
            rename(r"decoder\.layers\.(\d+)\.sa_qpos_proj", "decoder.layers.${1}.self_attn.q_pos_proj"),
            rename(r"decoder\.layers\.(\d+)\.sa_kcontent_proj", "decoder.layers.${1}.self_attn.k_content_proj"),
            rename(r"decoder\.layers\.(\d+)\.sa_kpos_proj", "decoder.layers.${1}.self_attn.k_pos_proj"),
            rename(r"decoder\.layers\.(\d+)\.sa_v_proj", "decoder.layers.${1}.self_attn.v_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_qcontent_proj", "decoder.layers.${1}.encoder_attn.q_content_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_qpos_proj", "decoder.layers.${1}.encoder_attn.q_pos_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_kcontent_proj", "decoder.layers.${1}.encoder_attn.k_content_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_kpos_proj", "decoder.layers.${1}.encoder_attn.k_pos_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_v_proj", "decoder.layers.${1}.encoder_attn.v_proj"),
            rename(r"decoder\.layers\.(\d+)\.ca_qpos_sine_proj", "decoder.layers.${1}.encoder_attn.q_pos_sine_proj"),
        ],
    ),
    Set::whole(&["deformable_detr"], &[BACKBONE, rename(r"self_attn\.out_proj", "self_attn.o_proj"), FC1, FC2]),
    Set::whole(
        &["rt_detr", "rt_detr_v2", "pp_doclayout_v2", "pp_doclayout_v3"],
        &[OUT, FC1, FC2, rename(r"encoder\.encoder\.(\d+)\.layers", "encoder.aifi.${1}.layers")],
    ),
    Set::whole(
        &["d_fine"],
        &[
            OUT,
            rename(r"layers\.(\d+)\.fc1", "layers.${1}.mlp.layers.0"),
            rename(r"layers\.(\d+)\.fc2", "layers.${1}.mlp.layers.1"),
            rename(r"encoder\.encoder\.(\d+)\.layers", "encoder.aifi.${1}.layers"),
        ],
    ),
    Set::whole(
        &["lw_detr"],
        &[
            rename(r"attention\.attention\.query", "attention.q_proj"),
            rename(r"attention\.attention\.key", "attention.k_proj"),
            rename(r"attention\.attention\.value", "attention.v_proj"),
            rename(r"attention\.output", "attention.o_proj"),
        ],
    ),
    Set::whole(
        &["rf_detr"],
        &[
            rename(r"segmentation_head\.query_features_block\.layers\.0", "query_features_block.mlp.fc1"),
            rename(r"segmentation_head\.query_features_block\.layers\.2", "query_features_block.mlp.fc2"),
            rename(r"segmentation_head\.query_features_block\.norm_in", "query_features_block.norm"),
            rename(r"segmentation_head\.blocks\.(\d+)\.norm", "blocks.${1}.layernorm"),
            rename(r"segmentation_head\.blocks\.(\d+)\.dwconv", "blocks.${1}.depthwise_conv"),
            rename(r"segmentation_head\.blocks\.(\d+)\.pwconv1", "blocks.${1}.pointwise_conv"),
            rename(r"segmentation_head\.spatial_features_proj", "spatial_features_proj"),
            rename(r"segmentation_head\.query_features_proj", "query_features_proj"),
            rename(r"segmentation_head\.bias", "segmentation_bias"),
            rename(r"backbone\.0\.encoder\.encoder", "backbone.backbone"),
            rename(r"backbone\.0\.projector", "backbone.projector"),
            rename(r"projector\.stages\.0\.0\.cv1\.conv", "projector.projector_layer.conv1.conv"),
            rename(r"projector\.stages\.0\.0\.cv1\.bn", "projector.projector_layer.conv1.norm"),
            rename(r"projector\.stages\.0\.0\.cv2\.conv", "projector.projector_layer.conv2.conv"),
            rename(r"projector\.stages\.0\.0\.cv2\.bn", "projector.projector_layer.conv2.norm"),
            rename(r"projector\.stages\.0\.1", "projector.layer_norm"),
            rename(
                r"projector\.stages\.0\.0\.m\.(\d+)\.cv(\d)\.conv",
                "projector.projector_layer.bottlenecks.${1}.conv${2}.conv",
            ),
            rename(
                r"projector\.stages\.0\.0\.m\.(\d+)\.cv(\d)\.bn",
                "projector.projector_layer.bottlenecks.${1}.conv${2}.norm",
            ),
            rename(r"transformer\.decoder", "decoder"),
            rename(r"decoder\.layers\.(\d+)\.norm1", "decoder.layers.${1}.self_attn_layer_norm"),
            rename(r"decoder\.layers\.(\d+)\.norm2", "decoder.layers.${1}.cross_attn_layer_norm"),
            rename(r"decoder\.layers\.(\d+)\.linear1", "decoder.layers.${1}.mlp.fc1"),
            rename(r"decoder\.layers\.(\d+)\.linear2", "decoder.layers.${1}.mlp.fc2"),
            rename(r"decoder\.layers\.(\d+)\.norm3", "decoder.layers.${1}.layer_norm"),
            rename(r"decoder\.norm", "decoder.layernorm"),
            rename(r"transformer\.enc_output_norm", "enc_output_norm"),
            rename(r"transformer\.enc_output", "enc_output"),
            rename(r"transformer\.enc_out_class_embed", "enc_out_class_embed"),
            rename(r"transformer\.enc_out_bbox_embed", "enc_out_bbox_embed"),
            rename(r"refpoint_embed\.weight", "reference_point_embed.weight"),
            rename(r"attention\.attention\.query", "attention.q_proj"),
            rename(r"attention\.attention\.key", "attention.k_proj"),
            rename(r"attention\.attention\.value", "attention.v_proj"),
            rename(r"attention\.output\.dense", "attention.o_proj"),
            rename(r"self_attn\.out_proj", "self_attn.o_proj"),
            split(
                &[r"self_attn\.in_proj_bias"],
                &["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"],
            ),
            split(
                &[r"self_attn\.in_proj_weight"],
                &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            ),
        ],
    ),
    // Swin as the backbone of another model has a module of its own around it.
    Set::whole(
        &["swin"],
        &[rename(
            r"\b(backbone\.conv_encoder\.model|pixel_level_module\.encoder|backbone)\.(encoder|embeddings)\.",
            "${1}.swin.${2}.",
        )],
    ),
    Set::whole(&["maskformer"], &[FC1, FC2]),
    Set::whole(
        &["SegformerForSemanticSegmentation"],
        &[rename(r"decode_head\.linear_c", "decode_head.linear_projections")],
    ),
    // The pyramid pooling modules first, whose parts are called like others elsewhere.
    Set::whole(
        &["BeitForSemanticSegmentation"],
        &[
            rename(
                r"decode_head\.psp_modules\.(\d+)\.1\.conv\.weight",
                "decode_head.psp_modules.blocks.${1}.conv.convolution.weight",
            ),
            rename(
                r"decode_head\.psp_modules\.(\d+)\.1\.bn\.",
                "decode_head.psp_modules.blocks.${1}.conv.normalization.",
            ),
            rename(r"bn\.", "normalization."),
            rename(r"conv\.weight", "convolution.weight"),
            rename(r"^fpn1\.0\.", "fpn.fpn1.conv_transpose1."),
            rename(r"^fpn1\.1\.", "fpn.fpn1.normalization."),
            rename(r"^fpn1\.3\.", "fpn.fpn1.conv_transpose2."),
            rename(r"^fpn2\.0\.", "fpn.fpn2."),
            rename(r"decode_head\.bottleneck\.", "decode_head.psp_bottleneck."),
        ],
    ),
    Set::whole(
        &["yolos"],
        &[rename(r"encoder\.mid_position_embeddings", "encoder.interpolation.mid_position_embeddings")],
    ),
    Set::whole(
        &["sam3_tracker", "sam3_tracker_video"],
        &[
            rename(r"detector_model\.vision_encoder\.backbone\.", "vision_encoder.backbone."),
            rename(r"tracker_neck\.", "vision_encoder.neck."),
            rename(r"tracker_model\.", ""),
        ],
    ),
];
