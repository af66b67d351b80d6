//! Spellings that mean the same in every model.
//!
//! Versions of transformers disagree on where the parts of a model hang: `language_model.model.layers` became
//! `model.language_model.layers`, and a model loaded without its head says `layers`. Instead of guessing from one to
//! the other, both are brought to one form, and forms are compared. What is taken off stands outside the path only: a
//! `language_model` further in stays, and `vision_tower`, `visual` and `audio_tower` always do, so that the parts of a
//! model are never mistaken for each other.

/// Where a language model may hang.
const PLACES: &[&str] = &["model", "language_model", "backbone"];

/// What wraps a model: trainers, PEFT, multi-part models around this one, and `base_model_prefix` of the families.
const WRAPPERS: &[&str] = &[
    "base_model",
    "module",
    "transformer",
    "thinker",
    "vlm",
    // base_model_prefix of the encoders and of the older language models
    "albert",
    "audio_spectrogram_transformer",
    "beit",
    "bert",
    "bert_model",
    "biogpt",
    "bit",
    "blip",
    "bros",
    "canine",
    "convbert",
    "convnext",
    "convnextv2",
    "cpmant",
    "data2vec_audio",
    "data2vec_text",
    "data2vec_vision",
    "deberta",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "esmc",
    "fnet",
    "focalnet",
    "funnel",
    "gpt_neox",
    "gpt_neox_japanese",
    "gte",
    "hiera",
    "hubert",
    "ibert",
    "layoutlm",
    "layoutlmv2",
    "layoutlmv3",
    "led",
    "levit",
    "lilt",
    "longformer",
    "luke",
    "lxmert",
    "markuplm",
    "mobilebert",
    "mobilevit",
    "mobilevitv2",
    "mpnet",
    "mra",
    "new",
    "nomic_bert",
    "nystromformer",
    "perceiver",
    "pixio",
    "poolformer",
    "prophetnet",
    "pvt",
    "pvt_v2",
    "reformer",
    "regnet",
    "rembert",
    "resnet",
    "roberta",
    "roberta_prelayernorm",
    "roc_bert",
    "roformer",
    "rwkv",
    "segformer",
    "sew",
    "sew_d",
    "splinter",
    "swin",
    "swin2sr",
    "swinv2",
    "switch_transformers",
    "tapas",
    "timesformer",
    "ultrabert",
    "unispeech",
    "unispeech_sat",
    "videomae",
    "vilt",
    "visual_bert",
    "vit",
    "vivit",
    "wav2vec2",
    "wav2vec2_bert",
    "wav2vec2_conformer",
    "wavlm",
    "yoso",
];

/// The form that equivalent names share. The numbers of the name may be marked or struck out.
pub fn form(name: &str) -> String {
    let inner = strip(name, |component| PLACES.contains(&component));
    let inner = match inner.split_once('.') {
        Some(("embed_out", leaf)) => format!("lm_head.{leaf}"),
        Some((tower @ ("vision_tower" | "image_tower" | "video_tower"), rest)) => {
            format!("{tower}.{}", rest.strip_prefix("vision_model.").unwrap_or(rest))
        }
        _ => inner.to_owned(),
    };
    inner.replace(".block_sparse_moe.", ".mlp.")
}

/// The form that names share which differ only in what is wrapped around the model.
pub fn core(name: &str) -> String {
    form(strip(name, |component| PLACES.contains(&component) || WRAPPERS.contains(&component)))
}

/// `name` without those of its outer components that are `loose`. The last component always stays.
fn strip(name: &str, loose: impl Fn(&str) -> bool) -> &str {
    let mut rest = name;
    while let Some((first, inner)) = rest.split_once('.').filter(|(first, _)| loose(first)) {
        let _ = first;
        rest = inner;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_part_has_the_same_form() {
        for name in ["model.language_model.layers.#.w", "language_model.model.layers.#.w", "model.layers.#.w"] {
            assert_eq!(form(name), "layers.#.w");
        }
        assert_eq!(form("language_model.lm_head.weight"), form("embed_out.weight"));
        assert_eq!(form("model.vision_tower.encoder.w"), form("vision_tower.vision_model.encoder.w"));
        assert_eq!(form("backbone.layers.#.mixer.w"), form("model.layers.#.mixer.w"));
        assert_eq!(form("model"), "model");
    }

    #[test]
    fn parts_of_a_model_stay_apart() {
        let parts =
            ["model.visual.blocks.#.w", "model.vision_model.blocks.#.w", "model.blocks.#.w", "audio.blocks.#.w"];
        for (i, a) in parts.iter().enumerate() {
            for b in &parts[i + 1..] {
                assert_ne!(core(a), core(b));
            }
        }
    }

    #[test]
    fn wrappers_come_off_in_any_number() {
        assert_eq!(core("base_model.model.bert.encoder.layer.#.w"), core("encoder.layer.#.w"));
        assert_eq!(core("transformer.h.#.attn.w"), core("h.#.attn.w"));
        assert_ne!(form("transformer.h.#.attn.w"), form("h.#.attn.w"));
    }
}
