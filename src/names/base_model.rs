//! The prefix of the model inside a model with a head, where a checkpoint and the class its config names disagree on it.
//!
//! A checkpoint saved without a head says `h.0.attn.c_attn.weight`; `GPT2LMHeadModel`, which its config may name all the
//! same, has `transformer.h.0.attn.c_attn.weight`. The program that loads it adds the prefix, or takes it off, where the
//! model has a tensor of that name; here no model is built, so the prefix is added where no name has it and the class has
//! a head, and taken off where every name has it and the class has none.
//!
//! Source: `base_model_prefix` of the model classes in huggingface/transformers (5.24), and
//! huggingface/transformers:src/transformers/core_model_loading.py, `rename_source_key`.

/// The prefixes with the model types that have them; [`USUAL`] is that of all others.
const PREFIXES: &[(&str, &[&str])] = &[
    ("albert", &["albert"]),
    ("audio_spectrogram_transformer", &["audio-spectrogram-transformer"]),
    ("backbone", &["falcon_mamba", "mamba", "mamba2", "xlstm"]),
    ("beit", &["beit"]),
    ("bert", &["bert", "bert-generation", "big_bird", "megatron-bert"]),
    ("biogpt", &["biogpt"]),
    ("bit", &["bit"]),
    ("bros", &["bros"]),
    ("canine", &["canine"]),
    ("convbert", &["convbert"]),
    ("convnext", &["convnext"]),
    ("convnextv2", &["convnextv2"]),
    ("cvt", &["cvt"]),
    ("deberta", &["deberta", "deberta-v2"]),
    ("deit", &["deit"]),
    ("dinat", &["dinat"]),
    ("dinov2", &["dinov2"]),
    ("dinov2_with_registers", &["dinov2_with_registers"]),
    ("distilbert", &["distilbert"]),
    ("dpt", &["dpt"]),
    ("efficientnet", &["efficientnet"]),
    ("electra", &["electra"]),
    ("ernie", &["ernie"]),
    ("esm", &["esm"]),
    ("esmc", &["esmc"]),
    ("fnet", &["fnet"]),
    ("focalnet", &["focalnet"]),
    ("funnel", &["funnel"]),
    ("git", &["git"]),
    ("glpn", &["glpn"]),
    ("gpt_neox", &["gpt_neox"]),
    ("gpt_neox_japanese", &["gpt_neox_japanese"]),
    ("gte", &["gte"]),
    ("hiera", &["hiera"]),
    ("hubert", &["hubert"]),
    ("ibert", &["ibert"]),
    ("ijepa", &["ijepa"]),
    ("layoutlm", &["layoutlm"]),
    ("layoutlmv2", &["layoutlmv2"]),
    ("layoutlmv3", &["layoutlmv3"]),
    ("led", &["led"]),
    ("levit", &["levit"]),
    ("lilt", &["lilt"]),
    ("longformer", &["longformer"]),
    ("luke", &["luke"]),
    ("lxmert", &["lxmert"]),
    ("markuplm", &["markuplm"]),
    ("mobilebert", &["mobilebert"]),
    ("mobilenet_v1", &["mobilenet_v1"]),
    ("mobilenet_v2", &["mobilenet_v2"]),
    ("mobilevit", &["mobilevit"]),
    ("mobilevitv2", &["mobilevitv2"]),
    ("mpnet", &["mpnet"]),
    ("mra", &["mra"]),
    (
        "model",
        &[
            "bart",
            "blenderbot",
            "blenderbot-small",
            "conditional_detr",
            "d_fine",
            "deformable_detr",
            "detr",
            "m2m_100",
            "marian",
            "mbart",
            "mvp",
            "nllb-moe",
            "opt",
            "pegasus",
            "pegasus_x",
            "plbart",
            "rt_detr",
            "rt_detr_v2",
            "speech_to_text",
            "whisper",
        ],
    ),
    ("nomic_bert", &["nomic_bert"]),
    ("nystromformer", &["nystromformer"]),
    ("poolformer", &["poolformer"]),
    ("prophetnet", &["prophetnet"]),
    ("pvt", &["pvt"]),
    ("pvt_v2", &["pvt_v2"]),
    ("regnet", &["regnet"]),
    ("rembert", &["rembert"]),
    ("resnet", &["resnet"]),
    ("roberta", &["camembert", "jina_embeddings_v3", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"]),
    ("roberta_prelayernorm", &["roberta-prelayernorm"]),
    ("roc_bert", &["roc_bert"]),
    ("roformer", &["roformer"]),
    ("rwkv", &["rwkv"]),
    ("segformer", &["segformer"]),
    ("sew", &["sew"]),
    ("sew_d", &["sew-d"]),
    ("speecht5", &["speecht5"]),
    ("splinter", &["splinter"]),
    ("swiftformer", &["swiftformer"]),
    ("swin", &["swin"]),
    ("swin2sr", &["swin2sr"]),
    ("swinv2", &["swinv2"]),
    ("tapas", &["tapas"]),
    ("timesformer", &["timesformer"]),
    (
        "transformer",
        &[
            "bloom",
            "codegen",
            "ctrl",
            "dbrx",
            "falcon",
            "flaubert",
            "gpt2",
            "gpt_bigcode",
            "gpt_neo",
            "gptj",
            "imagegpt",
            "mpt",
            "openai-gpt",
            "squeezebert",
            "xlm",
            "xlnet",
        ],
    ),
    ("unispeech", &["unispeech"]),
    ("unispeech_sat", &["unispeech-sat"]),
    ("videomae", &["videomae"]),
    ("vilt", &["vilt"]),
    ("visual_bert", &["visual_bert"]),
    ("vit", &["vit", "vit_mae", "vit_msn", "yolos"]),
    ("vivit", &["vivit"]),
    ("wav2vec2", &["wav2vec2"]),
    ("wav2vec2_bert", &["wav2vec2-bert"]),
    ("wav2vec2_conformer", &["wav2vec2-conformer"]),
    ("wavlm", &["wavlm"]),
    ("yoso", &["yoso"]),
];

/// The prefix of decoders.
const USUAL: &str = "model";

/// What stands beside the model inside, in models with a head.
const HEADS: &[&str] = &[
    "classification_head",
    "classifier",
    "cls",
    "decode_head",
    "embed_out",
    "final_logits_bias",
    "generator_lm_head",
    "generator_predictions",
    "head",
    "lm_head",
    "lm_loss",
    "output_projection",
    "pre_classifier",
    "pred_layer",
    "predictions",
    "proj_out",
    "projector",
    "qa_outputs",
    "score",
    "vocab_layer_norm",
    "vocab_projector",
    "vocab_transform",
];

/// What has to be done to the names of a checkpoint so that they are those of the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The prefix is put before everything but heads.
    Add(&'static str),
    /// It is taken off.
    Strip(&'static str),
}

impl Change {
    /// The change for these names of a model of these types. `None`: they are as they should be, or nothing is known.
    pub fn find<'a>(names: impl Iterator<Item = &'a str>, model_types: &[String]) -> Option<Change> {
        let [model_type, class, ..] = model_types else { return None };
        let known = PREFIXES.iter().find(|(_, types)| types.contains(&model_type.as_str()));
        let prefix = known.map_or(USUAL, |(prefix, _)| prefix);
        let roots: std::collections::BTreeSet<&str> = names.filter_map(root).collect();
        let bodies = || roots.iter().filter(|root| !HEADS.contains(root));
        match is_bare(class)? {
            true => bodies().eq([&prefix]).then_some(Change::Strip(prefix)),
            // In a model of an unknown type the layers show that it is a decoder.
            false => {
                let fits = known.is_some() || (roots.contains("layers") && !class.ends_with("ForQuestionAnswering"));
                (fits && !roots.contains(prefix) && bodies().next().is_some()).then_some(Change::Add(prefix))
            }
        }
    }

    /// What a name becomes.
    pub fn apply(self, name: &str) -> String {
        match self {
            Change::Add(prefix) if root(name).is_none_or(|root| !HEADS.contains(&root)) => format!("{prefix}.{name}"),
            Change::Add(_) => name.to_owned(),
            Change::Strip(prefix) => {
                name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name).to_owned()
            }
        }
    }
}

fn root(name: &str) -> Option<&str> {
    name.split('.').next()
}

/// Whether the class is a model without a head. `None` for a word that is no class, or one of another sort.
fn is_bare(class: &str) -> Option<bool> {
    const WITH: [&str; 6] = ["For", "LMHead", "DoubleHeads", "WithLM", "MTModel", "WithProjection"];
    let other = ["Encoder", "Decoder", "Vision", "Text", "Audio"];
    if !class.starts_with(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let (head, model) = (WITH.iter().any(|word| class.contains(word)), class.ends_with("Model"));
    if head { Some(false) } else { (model && !other.iter().any(|word| class.contains(word))).then_some(true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(types: [&str; 2], names: &[&str]) -> Option<Change> {
        Change::find(names.iter().copied(), &types.map(str::to_owned))
    }

    #[test]
    fn a_checkpoint_without_the_prefix_gets_it() {
        let gpt2 = ["gpt2", "GPT2LMHeadModel"];
        let add = change(gpt2, &["h.0.attn.c_attn.weight", "wte.weight"]).unwrap();
        assert_eq!(add.apply("wte.weight"), "transformer.wte.weight");
        assert_eq!(add.apply("lm_head.weight"), "lm_head.weight");
        assert_eq!(change(gpt2, &["transformer.wte.weight", "lm_head.weight"]), None);
        assert_eq!(change(gpt2, &["lm_head.weight"]), None);
        assert_eq!(change(["gpt2", "GPT2Model"], &["wte.weight"]), None);
        let llama = ["llama", "LlamaForCausalLM"];
        assert_eq!(change(llama, &["layers.0.mlp.w", "norm.weight"]), Some(Change::Add("model")));
        let opt = ["opt", "OPTForCausalLM"];
        assert_eq!(change(opt, &["decoder.embed_tokens.weight"]), Some(Change::Add("model")));
        assert_eq!(change(["t5", "T5ForConditionalGeneration"], &["shared.weight", "encoder.w"]), None);
    }

    #[test]
    fn a_class_without_a_head_has_no_prefix() {
        let bert = ["bert", "BertModel"];
        let strip = change(bert, &["bert.embeddings.w", "cls.predictions.bias"]).unwrap();
        assert_eq!(strip.apply("bert.embeddings.w"), "embeddings.w");
        assert_eq!(strip.apply("cls.predictions.bias"), "cls.predictions.bias");
        assert_eq!(change(["dinov3_vit", "DINOv3ViTModel"], &["model.layer.0.w", "norm.weight"]), None);
    }

    #[test]
    fn what_is_no_class_decides_nothing() {
        for types in [["gpt2", "gpt2_text"], ["", ""], ["clip", "CLIPTextModel"]] {
            assert_eq!(change(types, &["h.0.w"]), None, "{types:?}");
        }
    }
}
