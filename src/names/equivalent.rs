//! Spellings that mean the same in every model.
//!
//! Versions of transformers disagree on where the parts of a model hang: `language_model.model.layers` became
//! `model.language_model.layers`, and a model loaded without its head says `layers`. Instead of guessing from one to
//! the other, both are brought to one form, and forms are compared. What is taken off stands outside the path only: a
//! `language_model` further in stays, and `vision_tower`, `visual` and `audio_tower` always do, so that the parts of a
//! model are never mistaken for each other.

/// Where a language model may hang.
const PLACES: &[&str] = &["model", "language_model", "backbone"];

/// What wraps a model: trainers, PEFT, models of several parts around this one.
const WRAPPERS: &[&str] = &["base_model", "module", "thinker", "vlm"];

/// `base_model_prefix` of language models and text encoders.
const TEXT_MODELS: &[&str] = &[
    "transformer",
    "albert",
    "bert",
    "bert_model",
    "biogpt",
    "blip",
    "bros",
    "canine",
    "convbert",
    "cpmant",
    "data2vec_text",
    "deberta",
    "distilbert",
    "electra",
    "ernie",
    "esm",
    "esmc",
    "fnet",
    "funnel",
    "git",
    "gpt_neox",
    "gpt_neox_japanese",
    "gte",
    "ibert",
    "layoutlm",
    "layoutlmv2",
    "layoutlmv3",
    "led",
    "lilt",
    "longformer",
    "luke",
    "lxmert",
    "markuplm",
    "mobilebert",
    "mpnet",
    "mra",
    "new",
    "nomic_bert",
    "nystromformer",
    "perceiver",
    "prophetnet",
    "reformer",
    "rembert",
    "roberta",
    "roberta_prelayernorm",
    "roc_bert",
    "roformer",
    "rwkv",
    "speecht5",
    "splinter",
    "switch_transformers",
    "tapas",
    "ultrabert",
    "vilt",
    "visual_bert",
    "yoso",
];

/// `base_model_prefix` of vision and audio encoders. These words also name the tower inside a larger model.
const TOWERS: &[&str] = &[
    "audio_spectrogram_transformer",
    "beit",
    "bit",
    "convnext",
    "convnextv2",
    "cvt",
    "data2vec_audio",
    "data2vec_vision",
    "deit",
    "dinat",
    "dinov2",
    "dinov2_with_registers",
    "efficientnet",
    "focalnet",
    "hiera",
    "hubert",
    "ijepa",
    "levit",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilevit",
    "mobilevitv2",
    "pixio",
    "poolformer",
    "pvt",
    "pvt_v2",
    "regnet",
    "resnet",
    "segformer",
    "sew",
    "sew_d",
    "swiftformer",
    "swin",
    "swin2sr",
    "swinv2",
    "timesformer",
    "unispeech",
    "unispeech_sat",
    "videomae",
    "vit",
    "vit_mae",
    "vitdet",
    "vivit",
    "wav2vec2",
    "wav2vec2_bert",
    "wav2vec2_conformer",
    "wavlm",
];

/// What may be taken off the names of one checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Loose {
    prefixes: Vec<&'static str>,
}

impl Loose {
    /// `roots` are the first components of the names on disk. A family's prefix comes off unless it marks one part of
    /// several; that of a vision or audio encoder only where the model is said to be one.
    pub fn new<'a>(roots: impl IntoIterator<Item = &'a str>, model_types: &[String]) -> Loose {
        let roots: Vec<&str> = roots.into_iter().collect();
        let plain = |word: &str| word.replace(['_', '-'], "").to_lowercase();
        let said = |prefix: &str| model_types.iter().any(|name| plain(name).starts_with(&plain(prefix)));
        let towers = TOWERS.iter().filter(|prefix| said(prefix));
        let families: Vec<&str> = TEXT_MODELS.iter().chain(towers).copied().collect();
        let bodies =
            roots.iter().filter(|root| PLACES.contains(root) || families.contains(root) || TOWERS.contains(root));
        let several = bodies.count() > 1;
        let kept = families.into_iter().filter(|prefix| !(several && roots.contains(prefix)));
        Loose { prefixes: WRAPPERS.iter().copied().chain(kept).collect() }
    }

    /// The form that names share which differ only in what is wrapped around the model.
    pub fn core(&self, name: &str) -> String {
        form(strip(name, |component| PLACES.contains(&component) || self.prefixes.contains(&component)))
    }
}

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

/// `name` without those of its outer components that are `loose`. The last component always stays.
fn strip(name: &str, loose: impl Fn(&str) -> bool) -> &str {
    let mut rest = name;
    while let Some((_, inner)) = rest.split_once('.').filter(|(first, _)| loose(first)) {
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
        let loose = Loose::new(["model", "vit", "lm_head"], &["hunyuan_vl".to_owned()]);
        let parts = [
            "model.visual.blocks.#.w",
            "model.vision_model.blocks.#.w",
            "vit.blocks.#.w",
            "model.blocks.#.w",
            "audio.blocks.#.w",
        ];
        for (i, a) in parts.iter().enumerate() {
            for b in &parts[i + 1..] {
                assert_ne!(loose.core(a), loose.core(b));
            }
        }
    }

    #[test]
    fn wrappers_come_off_in_any_number() {
        let loose = Loose::new(["encoder", "h"], &[]);
        assert_eq!(loose.core("base_model.model.bert.encoder.layer.#.w"), loose.core("encoder.layer.#.w"));
        assert_eq!(loose.core("transformer.h.#.attn.w"), loose.core("h.#.attn.w"));
        assert_ne!(form("transformer.h.#.attn.w"), form("h.#.attn.w"));
    }

    #[test]
    fn the_prefix_of_a_tower_comes_off_where_the_model_is_one() {
        let name = "vit.encoder.layer.#.w";
        let is = |words: &[&str]| Loose::new(["vit"], &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(is(&["vit", "ViTForImageClassification"]).core(name), "encoder.layer.#.w");
        assert_eq!(is(&["llama"]).core(name), name);
    }
}
