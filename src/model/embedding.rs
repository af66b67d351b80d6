//! Input and output embeddings, which many models tie: one matrix in the file, two or more uses in the model.
//!
//! Source of the tables: `_tied_weights_keys` of the model classes in huggingface/transformers (5.24).

use serde_json::{Map, Value};

use super::BaseModel;

/// Last parts of the path of an input embedding, in memory.
const INPUTS: [&str; 11] = [
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "shared",
    "tok_embeddings",
    "embeddings",
    "tokens_embed",
    "word_embedding",
    "token_embedding",
    "w",
];
/// Paths of an output embedding, in memory, in models of any class.
const OUTPUTS: [&str; 6] =
    ["lm_head", "embed_out", "output", "cls.predictions.decoder", "lm_head.decoder", "generator_lm_head"];

/// Ends of the names of the classes that have an output embedding.
const WITH_OUTPUT: [&str; 14] = [
    "ForCausalLM",
    "LMHeadModel",
    "ForConditionalGeneration",
    "ForMaskedLM",
    "ForPreTraining",
    "ForCausalImageModeling",
    "DoubleHeadsModel",
    "MTModel",
    "ChatModel",
    "ForTextToText",
    "ForSpeechToText",
    "ForSpeechToSpeech",
    "GenerationDecoder",
    "ForVision2Seq",
];

/// An output embedding that is not called `lm_head`.
struct Named {
    path: &'static str,
    /// A bias that is tied as well: what the file has, under the path of the module.
    bias: Option<&'static str>,
    /// Starts of the names of the classes; those that end in [`WITH_OUTPUT`] are meant.
    classes: &'static [&'static str],
}

const NAMED: [Named; 19] = [
    Named {
        path: "text_decoder.cls.predictions.decoder",
        bias: Some("text_decoder.cls.predictions.bias"),
        classes: &["BlipFor"],
    },
    Named {
        path: "cls.predictions.decoder",
        bias: Some("cls.predictions.bias"),
        classes: &[
            "BertFor",
            "BertLM",
            "BigBirdFor",
            "BlipText",
            "DebertaFor",
            "DebertaV2For",
            "ErnieForCausal",
            "ErnieForMasked",
            "ErnieForPre",
            "FNetFor",
            "LayoutLMFor",
            "LxmertFor",
            "MegatronBertFor",
            "MobileBertFor",
            "MraFor",
            "NomicBertFor",
            "NystromformerFor",
            "RoCBertFor",
            "RoFormerFor",
            "SqueezeBertFor",
            "TapasFor",
            "VisualBertFor",
            "YosoFor",
        ],
    },
    Named {
        path: "lm_head.decoder",
        bias: Some("lm_head.bias"),
        classes: &[
            "BertGeneration",
            "CamembertFor",
            "Data2VecTextFor",
            "IBertFor",
            "JinaEmbeddingsV3For",
            "LongformerFor",
            "MPNetFor",
            "RobertaFor",
            "RobertaPreLayerNormFor",
            "XLMRobertaFor",
            "XLMRobertaXLFor",
            "XmodFor",
        ],
    },
    Named { path: "lm_head.decoder", bias: None, classes: &["EsmFor", "GteFor"] },
    Named { path: "predictions.decoder", bias: Some("predictions.bias"), classes: &["AlbertFor"] },
    Named { path: "generator_lm_head", bias: None, classes: &["ElectraFor", "ConvBertFor"] },
    Named { path: "pred_layer.proj", bias: None, classes: &["XLMWithLM", "FlaubertWithLM"] },
    Named { path: "decoder", bias: None, classes: &["ModernBertFor", "ModernBertDecoderFor"] },
    Named { path: "output_projection", bias: None, classes: &["BioGptFor", "TrOCRFor"] },
    Named { path: "vocab_projector", bias: None, classes: &["DistilBertFor"] },
    Named {
        path: "proj_out",
        bias: None,
        classes: &["WhisperFor", "MoonshineFor", "MoonshineStreamingFor", "CanaryFor", "CohereAsrFor"],
    },
    Named { path: "embed_out", bias: None, classes: &["GPTNeoXJapaneseFor"] },
    Named { path: "output", bias: None, classes: &["GitFor"] },
    Named { path: "head", bias: None, classes: &["RwkvFor"] },
    Named { path: "lm_head.out_proj", bias: None, classes: &["T5GemmaFor", "T5Gemma2For"] },
    Named { path: "lm_loss", bias: None, classes: &["XLNetLM"] },
    Named { path: "text_model.lm_head", bias: None, classes: &["Kosmos2For"] },
    Named { path: "text_decoder_postnet.lm_head", bias: None, classes: &["SpeechT5For"] },
    Named { path: "mlm_score.decoder", bias: None, classes: &["ViltFor", "BridgeTowerFor"] },
];

/// A use of a tied embedding beside the one whose name the file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiedUse {
    /// Path of the module in memory.
    pub path: String,
    /// The key it gets on disk when it becomes a tensor of its own.
    pub key: String,
    /// What else becomes a tensor of its own with it, and the tensor it is a copy of.
    pub bias: Option<(String, String)>,
    /// The base is saved without a task: the use exists only in the models that are built around it.
    pub around: bool,
}

/// The embeddings of a base.
#[derive(Clone, Debug, Default)]
pub struct Embeddings {
    /// Key on disk of the input embedding.
    pub input: Option<String>,
    /// Key on disk of the output embedding, where the file has one.
    pub output: Option<String>,
    /// Whether the config ties the two, or the file leaves the output to the input.
    pub tied: bool,
    /// The uses that the file leaves to the input embedding.
    pub uses: Vec<TiedUse>,
}

/// Whether a module path in memory names an input embedding.
pub fn is_input(path: &str) -> bool {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    let position = path.contains("position") || path.contains("vision") || path.contains("visual");
    INPUTS.contains(&leaf) && !position && !inside_layers(path)
}

/// Whether a module path in memory names an output embedding.
pub fn is_output(path: &str) -> bool {
    let ends = |o: &str| path == o || path.strip_suffix(o).is_some_and(|rest| rest.ends_with('.'));
    OUTPUTS.iter().any(|o| ends(o)) && !inside_layers(path)
}

/// Whether the path goes through one of several layers, where the words for embeddings mean other things.
fn inside_layers(path: &str) -> bool {
    path.split('.').any(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_digit()))
}

pub(super) fn find(base: &BaseModel) -> Embeddings {
    let keys = || base.files.tensors().filter_map(|(_, key, t)| key.strip_suffix(".weight").map(|p| (p, t)));
    let named = class(base).and_then(named);
    let is_output = |path: &str| named.map_or_else(|| is_output(path), |n| path == n.path);
    let input = keys().filter(|(p, t)| is_input(p) && t.shape.rank() == 2).map(|(p, _)| p).min_by_key(|p| p.len());
    let output = keys().find(|(p, t)| is_output(p) && t.shape.rank() == 2).map(|(p, _)| p);
    let says = base.config.as_ref().and_then(says_tied);
    let mut uses = input.map_or_else(Vec::new, |input| left_out(base, input, output, named));
    if let (Some(_), Some(output), Some(true)) = (input, output, says) {
        // The file holds what the config ties: a change of one use ends the tie all the same.
        let (path, key) = (output.to_string(), format!("{output}.weight"));
        uses.push(TiedUse { path, key, bias: None, around: false });
    }
    // A config that is silent follows its class, whose default is unknown here: then the file decides.
    let tied = uses.iter().any(|u| !u.around) && says != Some(false) || says == Some(true);
    Embeddings {
        input: input.map(|p| format!("{p}.weight")),
        output: output.map(|p| format!("{p}.weight")),
        tied,
        uses,
    }
}

/// `tie_word_embeddings` of the config, or of its inner text config.
fn says_tied(config: &Map<String, Value>) -> Option<bool> {
    let outer = config.get("tie_word_embeddings").and_then(Value::as_bool);
    let inner = config.get("text_config").and_then(|c| c.get("tie_word_embeddings")).and_then(Value::as_bool);
    outer.or(inner)
}

/// Why the uses of this model cannot become tensors of their own: its class scales its output while they are tied.
pub fn why_tied_for_good(base: &BaseModel) -> Option<&'static str> {
    let scales = class(base).is_some_and(|c| c.starts_with("SwitchTransformers") || c.starts_with("Udop"));
    scales.then_some("this model scales its output only while its embeddings are tied")
}

/// The class that the config names first.
fn class(base: &BaseModel) -> Option<&str> {
    base.config.as_ref()?.get("architectures")?.as_array()?.first()?.as_str()
}

fn named(class: &str) -> Option<&'static Named> {
    if let Some(stem) = bare(class) {
        let around = ["ForMaskedLM", "ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "WithLMHeadModel"];
        return around.iter().find_map(|end| named(&format!("{stem}{end}")));
    }
    let with_output = WITH_OUTPUT.iter().any(|end| class.ends_with(end)) || class == "BlipForQuestionAnswering";
    NAMED.iter().find(|n| with_output && n.classes.iter().any(|start| class.starts_with(start)))
}

/// What the name of a class without a task starts with.
fn bare(class: &str) -> Option<&str> {
    let with_output = WITH_OUTPUT.iter().any(|end| class.ends_with(end));
    let encoder = class.ends_with("EncoderModel") || class.ends_with("DecoderModel");
    class.strip_suffix("Model").filter(|_| !with_output && !encoder)
}

/// The uses of the embedding at `input` that a model of this class has and the file does not.
fn left_out(base: &BaseModel, input: &str, output: Option<&str>, named: Option<&Named>) -> Vec<TiedUse> {
    let has = |key: &str| base.tensor(key).is_some();
    let mut uses = Vec::new();
    let around = class(base).and_then(bare).is_some();
    let expects =
        around || class(base).is_none_or(|c| named.is_some() || WITH_OUTPUT.iter().any(|end| c.ends_with(end)));
    if output.is_none() && expects {
        uses.push(TiedUse { around, ..output_use(input, named, &has) });
    }
    // One embedding shared by encoder and decoder, each of which has it as a module of its own.
    if let Some(outer) = input.strip_suffix("shared") {
        for part in ["encoder", "decoder", "text_encoder", "text_decoder"] {
            let path = format!("{outer}{part}.embed_tokens");
            let inside = format!("{outer}{part}.");
            if !has(&format!("{path}.weight")) && base.files.tensors().any(|(_, key, _)| key.starts_with(&inside)) {
                uses.push(TiedUse { key: format!("{path}.weight"), path, bias: None, around: false });
            }
        }
    }
    uses
}

fn output_use(input: &str, named: Option<&Named>, has: &impl Fn(&str) -> bool) -> TiedUse {
    let Some(named) = named else {
        let key = match input.strip_prefix("language_model.model.") {
            Some(_) => "language_model.lm_head.weight",
            None if input.starts_with("gpt_neox.") => "embed_out.weight",
            None => "lm_head.weight",
        };
        return TiedUse { path: "lm_head".to_string(), key: key.to_string(), bias: None, around: false };
    };
    let copy = format!("{}.bias", named.path);
    let bias = named.bias.filter(|bias| has(bias) && !has(&copy)).map(|bias| (copy, bias.to_string()));
    TiedUse { path: named.path.to_string(), key: format!("{}.weight", named.path), bias, around: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_embeddings_mean_other_things_inside_layers() {
        assert!(is_output("lm_head") && is_output("language_model.lm_head") && is_output("output"));
        assert!(!is_output("led.encoder.layers.0.self_attn.output"));
        assert!(is_input("transformer.w") && is_input("led.shared"));
        assert!(!is_input("model.layers.0.w") && !is_input("model.vision_tower.embeddings"));
    }

    #[test]
    fn the_class_says_what_the_output_is_called() {
        let path = |class| named(class).map(|n| n.path);
        assert_eq!(path("BertForMaskedLM"), Some("cls.predictions.decoder"));
        assert_eq!(path("BertForSequenceClassification"), None);
        assert_eq!(path("RobertaForCausalLM"), Some("lm_head.decoder"));
        assert_eq!(path("BlipForQuestionAnswering"), Some("text_decoder.cls.predictions.decoder"));
        assert_eq!(path("WhisperForConditionalGeneration"), Some("proj_out"));
        assert_eq!(path("LlamaForCausalLM"), None);
        assert_eq!(path("RobertaModel"), Some("lm_head.decoder"));
        assert_eq!((bare("LlamaModel"), bare("GPT2LMHeadModel"), bare("T5EncoderModel")), (Some("Llama"), None, None));
    }
}
