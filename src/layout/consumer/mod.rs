//! Programs that adapters are written for (`--for`): what each accepts of a layout, and what an adapter has to be like so
//! that it is read as what it means.
//!
//! A program that passes over what it does not know gives wrong results in silence. Here an adapter is made to fit where
//! that changes nothing it does (scales folded, ranks filled up with zeros), and refused where it would.
//!
//! Sources: vllm-project/vllm, `vllm/lora/{lora_model,peft_helper,utils}.py`, `vllm/config/lora.py`; sgl-project/sglang,
//! `python/sglang/srt/lora/{lora,lora_config,mem_pool,utils}.py`; InternLM/lmdeploy, `lmdeploy/pytorch/adapter`;
//! ollama/ollama, `convert/convert_llama_adapter.go`; ggml-org/llama.cpp, `src/llama-adapter.cpp`.

mod fit;

use serde_json::{Value, json};

use crate::adapter::{Adapter, Note};
use crate::container::json;
use crate::error::{Error, Kind, Result};
use crate::layout::Draft;

/// What scales a program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scales {
    /// All that the layout can say.
    All,
    /// One alpha over one rank, for all modules.
    One,
}

/// How a program has experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Experts {
    /// As the layout has them.
    Any,
    /// Each expert by itself.
    Single,
    /// Not at all.
    None,
}

/// A program that reads adapters.
#[derive(Debug)]
pub struct Consumer {
    /// The word after `--for`.
    pub name: &'static str,
    /// One line on it.
    pub about: &'static str,
    /// The layout it reads.
    pub layout: &'static str,
    scales: Scales,
    /// Ranks it can be told to have room for, in order; none where any will do.
    ranks: Option<&'static [usize]>,
    experts: Experts,
    /// Whether only factors of linear layers and embeddings are read.
    plain: bool,
    /// Modules that may be saved whole, by their last component.
    saved: &'static [&'static str],
    /// Whether factors of the embeddings are read.
    embeddings: bool,
    /// Whether query and value have to be there where one of the three is.
    attention: bool,
    /// Whether modules are chosen by a list of their last components.
    leaves: bool,
    /// Most rows of an output layer that is adapted.
    vocabulary: Option<usize>,
}

const SERVED_RANKS: &[usize] = &[1, 8, 16, 32, 64, 128, 256, 320, 512];

/// All of them.
pub const CONSUMERS: &[Consumer] = &[
    Consumer {
        name: "transformers",
        about: "PEFT in Python, and what loads adapters through it",
        layout: "peft",
        scales: Scales::All,
        ranks: None,
        experts: Experts::Any,
        plain: false,
        saved: &[],
        embeddings: true,
        attention: false,
        leaves: false,
        vocabulary: None,
    },
    Consumer {
        name: "vllm",
        about: "vLLM: LoRA without DoRA, biases and whole modules",
        layout: "peft",
        scales: Scales::All,
        ranks: Some(SERVED_RANKS),
        experts: Experts::Any,
        plain: true,
        saved: &["classifier", "score"],
        embeddings: true,
        attention: false,
        leaves: true,
        vocabulary: Some(258_048),
    },
    Consumer {
        name: "sglang",
        about: "SGLang: LoRA of one rank and one scale, experts one by one",
        layout: "peft",
        scales: Scales::One,
        ranks: None,
        experts: Experts::Single,
        plain: true,
        saved: &[],
        embeddings: true,
        attention: true,
        leaves: true,
        vocabulary: None,
    },
    Consumer {
        name: "lmdeploy",
        about: "LMDeploy's PyTorch engine: LoRA of one rank and one scale on linear layers",
        layout: "peft",
        scales: Scales::One,
        ranks: None,
        experts: Experts::None,
        plain: true,
        saved: &[],
        embeddings: false,
        attention: false,
        leaves: true,
        vocabulary: None,
    },
    Consumer {
        name: "ollama",
        about: "Ollama: a GGUF adapter, which it hands to llama.cpp as it is",
        layout: "gguf",
        scales: Scales::All,
        ranks: None,
        experts: Experts::Any,
        plain: false,
        saved: &[],
        embeddings: true,
        attention: false,
        leaves: false,
        vocabulary: None,
    },
    Consumer {
        name: "llama.cpp",
        about: "llama.cpp: a GGUF adapter",
        layout: "gguf",
        scales: Scales::All,
        ranks: None,
        experts: Experts::Any,
        plain: false,
        saved: &[],
        embeddings: true,
        attention: false,
        leaves: false,
        vocabulary: None,
    },
];

/// The program of this name.
pub fn named(name: &str) -> Result<&'static Consumer> {
    CONSUMERS.iter().find(|c| c.name == name).ok_or_else(|| {
        let known: Vec<_> = CONSUMERS.iter().map(|c| c.name).collect();
        Error::new(Kind::Usage, format!("no program named `{name}`; known: {}", known.join(", ")))
    })
}

impl Consumer {
    /// Whether stacks of experts have to be taken apart before [`Consumer::fit`].
    pub fn wants_single_experts(&self) -> bool {
        self.experts == Experts::Single
    }

    /// Whether whole tensors are passed over or refused.
    pub fn passes_over_whole_tensors(&self) -> bool {
        self.plain
    }

    /// The adapter as this program reads it: the same changes, or an error that says what of it the program cannot read.
    pub fn fit(&self, adapter: &Adapter) -> Result<(Adapter, Vec<Note>)> {
        fit::fit(self, adapter)
    }

    /// What of the files is this program's own.
    pub fn finish(&self, draft: &mut Draft) -> Result<Vec<Note>> {
        let mut notes = Vec::new();
        if !self.leaves {
            return Ok(notes);
        }
        for (name, text) in &mut draft.texts {
            if name != "adapter_config.json" {
                continue;
            }
            let written = String::from_utf8(std::mem::take(text)).map_err(|e| Error::malformed(e.to_string()))?;
            let mut config = json::parse_object(&written)?;
            // Modules whose parameters are adapted by name are no targets themselves.
            let parameters = config.get("target_parameters").and_then(Value::as_array).into_iter().flatten();
            let holders: Vec<_> = parameters.filter_map(|name| Some(name.as_str()?.rsplit_once('.')?.0)).collect();
            let leaves = fit::leaves(draft.tensors.keys(), &holders);
            let field = "target_modules";
            if config.get(field) != Some(&json!(leaves)) {
                let text = format!("a list of names, {}, as {} wants it", leaves.join(", "), self.name);
                notes.push(Note::info(field, text));
                config.insert(field.to_string(), json!(leaves));
                for other in ["exclude_modules", "layers_pattern", "layers_to_transform"] {
                    config.insert(other.to_string(), Value::Null);
                }
            }
            *text = json::text(&Value::Object(config))?;
        }
        Ok(notes)
    }
}
