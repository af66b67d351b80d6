//! What llama.cpp calls the modules of a model, architecture by architecture, there and back.
//!
//! Source: ggml-org/llama.cpp, `gguf-py/gguf/tensor_mapping.py` for the names, `conversion/*.py` for which
//! architectures have the rows of query and key in another order. Architectures whose conversion cuts or mixes weights in other ways
//! (Bloom, GPT-NeoX, Falcon, DeepSeek, Llama 4, gpt-oss …) are not here.

/// Stands for the number of a block.
const BLOCK: &str = "{}";
/// Stands for the number of an expert, in paths only: a stack of experts is one tensor in GGUF.
pub const EXPERT: &str = "{x}";

/// An architecture of llama.cpp.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// Classes of transformers that become it.
    pub classes: &'static [&'static str],
    /// Whether the rows of query and key are interleaved head by head.
    pub permuted: bool,
    /// Whether the linear layers of transformers' model are `Conv1D`, stored `[in, out]`.
    pub conv1d: bool,
    /// Names and paths. The first path of a name is the one it is read as.
    modules: &'static [&'static [Module]],
}

/// GGUF's name without `.weight`, and the path of the module.
type Module = (&'static str, &'static str);

const ENDS: &[Module] = &[("token_embd", "model.embed_tokens"), ("output", "lm_head")];
const ATTENTION: &[Module] = &[
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
];
const GATED: &[Module] = &[
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];
const UNGATED: &[Module] =
    &[("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"), ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj")];
const STARCODER: &[Module] =
    &[("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"), ("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj")];
const PHI3: &[Module] = &[
    ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
];
const GPT2: &[Module] = &[
    ("token_embd", "transformer.wte"),
    ("position_embd", "transformer.wpe"),
    ("output", "lm_head"),
    ("blk.{}.attn_qkv", "transformer.h.{}.attn.c_attn"),
    ("blk.{}.attn_output", "transformer.h.{}.attn.c_proj"),
    ("blk.{}.ffn_up", "transformer.h.{}.mlp.c_fc"),
    ("blk.{}.ffn_down", "transformer.h.{}.mlp.c_proj"),
];
const ROUTER: &[Module] = &[("blk.{}.ffn_gate_inp", "model.layers.{}.mlp.gate")];
const EXPERTS: &[Module] = &[
    ("blk.{}.ffn_gate_exps", "model.layers.{}.mlp.experts.{x}.gate_proj"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.mlp.experts.{x}.up_proj"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.mlp.experts.{x}.down_proj"),
];
const MIXTRAL: &[Module] = &[
    ("blk.{}.ffn_gate_inp", "model.layers.{}.block_sparse_moe.gate"),
    ("blk.{}.ffn_gate_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w1"),
    ("blk.{}.ffn_up_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w3"),
    ("blk.{}.ffn_down_exps", "model.layers.{}.block_sparse_moe.experts.{x}.w2"),
];
const SHARED: &[Module] = &[
    ("blk.{}.ffn_gate_inp_shexp", "model.layers.{}.mlp.shared_expert_gate"),
    ("blk.{}.ffn_gate_shexp", "model.layers.{}.mlp.shared_expert.gate_proj"),
    ("blk.{}.ffn_up_shexp", "model.layers.{}.mlp.shared_expert.up_proj"),
    ("blk.{}.ffn_down_shexp", "model.layers.{}.mlp.shared_expert.down_proj"),
];

const DENSE: &[&[Module]] = &[ENDS, ATTENTION, GATED];
const MOE: &[&[Module]] = &[ENDS, ATTENTION, ROUTER, EXPERTS];

const fn plain(
    name: &'static str,
    classes: &'static [&'static str],
    modules: &'static [&'static [Module]],
) -> Architecture {
    Architecture { name, classes, permuted: false, conv1d: false, modules }
}

const fn permuted(
    name: &'static str,
    classes: &'static [&'static str],
    modules: &'static [&'static [Module]],
) -> Architecture {
    Architecture { name, classes, permuted: true, conv1d: false, modules }
}

/// All that are known.
pub const ARCHITECTURES: &[Architecture] = &[
    permuted(
        "llama",
        &[
            "LlamaForCausalLM",
            "LlamaModel",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "InternLM3ForCausalLM",
            "LlavaForConditionalGeneration",
        ],
        &[ENDS, ATTENTION, GATED, ROUTER, MIXTRAL, EXPERTS],
    ),
    permuted("mistral3", &["Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"], DENSE),
    permuted("granite", &["GraniteForCausalLM"], DENSE),
    permuted("smollm3", &["SmolLM3ForCausalLM"], DENSE),
    permuted("arcee", &["ArceeForCausalLM"], &[ENDS, ATTENTION, UNGATED]),
    permuted("olmo", &["OlmoForCausalLM"], DENSE),
    plain("olmo2", &["Olmo2ForCausalLM", "Olmo3ForCausalLM"], DENSE),
    plain("olmoe", &["OlmoeForCausalLM"], MOE),
    plain("qwen2", &["Qwen2ForCausalLM", "Qwen2Model"], DENSE),
    plain("qwen2moe", &["Qwen2MoeForCausalLM"], &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS, SHARED]),
    plain("qwen2vl", &["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"], DENSE),
    plain("qwen3", &["Qwen3ForCausalLM", "Qwen3Model"], DENSE),
    plain("qwen3moe", &["Qwen3MoeForCausalLM"], &[ENDS, ATTENTION, GATED, ROUTER, EXPERTS]),
    plain("qwen3vl", &["Qwen3VLForConditionalGeneration"], DENSE),
    plain("gemma", &["GemmaForCausalLM"], DENSE),
    plain("gemma2", &["Gemma2ForCausalLM"], DENSE),
    plain("gemma3", &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"], DENSE),
    plain("phi3", &["Phi3ForCausalLM"], &[ENDS, PHI3]),
    plain("starcoder2", &["Starcoder2ForCausalLM"], &[ENDS, ATTENTION, STARCODER]),
    plain("command-r", &["CohereForCausalLM"], DENSE),
    plain("cohere2", &["Cohere2ForCausalLM"], DENSE),
    plain("stablelm", &["StableLmForCausalLM"], DENSE),
    plain("nemotron", &["NemotronForCausalLM"], &[ENDS, ATTENTION, UNGATED]),
    plain("seed_oss", &["SeedOssForCausalLM"], DENSE),
    plain("exaone4", &["Exaone4ForCausalLM"], DENSE),
    Architecture {
        name: "gpt2",
        classes: &["GPT2LMHeadModel", "GPT2Model"],
        permuted: false,
        conv1d: true,
        modules: &[GPT2],
    },
];

/// The architecture of llama.cpp's name, or of transformers' class.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name || a.classes.contains(&name))
}

/// Where a module lies in GGUF.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What the file is sorted by: the embedding, the blocks, the output.
    order: (usize, usize),
    /// Its name, without `.weight`.
    pub name: String,
}

impl Architecture {
    fn pairs(&self) -> impl Iterator<Item = (usize, &Module)> {
        self.modules.iter().flat_map(|group| group.iter()).enumerate()
    }

    /// Where the module of this path lies, and which expert of a stack it is.
    pub fn place(&self, path: &str) -> Option<(Place, Option<usize>)> {
        let path = self.in_text_model(path);
        let found = self.pairs().find_map(|(number, (name, template))| Some((number, name, matched(template, &path)?)));
        let (number, name, numbers) = found?;
        let order = match numbers.block {
            Some(block) => (block.saturating_add(1), number),
            None => (if *name == "output" { usize::MAX } else { 0 }, number),
        };
        Some((Place { order, name: filled(name, numbers.block) }, numbers.expert))
    }

    /// Where the parameter that holds all experts lies, one place for each matrix of an expert that is in it.
    pub fn stack(&self, path: &str) -> Option<Vec<Place>> {
        let path = self.in_text_model(path);
        let (layer, leaf) = path.split_once(".mlp.experts.")?;
        let names: &[&str] = match leaf {
            "gate_up_proj" => &["gate", "up"],
            "down_proj" => &["down"],
            _ => return None,
        };
        let block = matched("model.layers.{}", layer)?.block;
        let place = |which: &&str| {
            let wanted = format!("blk.{BLOCK}.ffn_{which}_exps");
            let (number, (name, _)) = self.pairs().find(|(_, (name, _))| *name == wanted)?;
            Some(Place { order: (block?.saturating_add(1), number), name: filled(name, block) })
        };
        names.iter().map(place).collect()
    }

    /// The path of the module that has this name in GGUF; with [`EXPERT`] in it for a stack of experts.
    pub fn path(&self, name: &str) -> Option<String> {
        self.pairs().find_map(|(_, (template, path))| Some(filled(path, matched(template, name)?.block)))
    }

    /// The path inside the language model, which models of several kinds of input have beside others.
    fn in_text_model(&self, path: &str) -> String {
        let path = path.replace("language_model.", "");
        if self.name == "llama" { path.replace("text_model.", "") } else { path }
    }
}

#[derive(Default)]
struct Numbers {
    block: Option<usize>,
    expert: Option<usize>,
}

/// The numbers in `text` where it is this template.
fn matched(template: &str, text: &str) -> Option<Numbers> {
    let (mut left, mut right) = (template.split('.'), text.split('.'));
    let mut out = Numbers::default();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Some(out),
            (Some(BLOCK), Some(word)) => out.block = Some(number(word)?),
            (Some(EXPERT), Some(word)) => out.expert = Some(number(word)?),
            (Some(a), Some(b)) if a == b => {}
            _ => return None,
        }
    }
}

/// A number as it is printed: no sign, no zeros in front.
fn number(word: &str) -> Option<usize> {
    word.parse().ok().filter(|n: &usize| n.to_string() == word)
}

fn filled(template: &str, block: Option<usize>) -> String {
    block.map_or_else(|| template.to_string(), |n| template.replacen(BLOCK, &n.to_string(), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_way_back() {
        for architecture in ARCHITECTURES {
            for (_, (name, _)) in architecture.pairs() {
                let name = filled(name, Some(12));
                let path = architecture.path(&name).unwrap();
                let (place, expert) = architecture.place(&path.replace(EXPERT, "3")).unwrap();
                assert_eq!((place.name, expert.is_some()), (name, path.contains(EXPERT)), "{}", architecture.name);
            }
        }
    }

    #[test]
    fn the_file_is_in_the_order_of_the_model() {
        let llama = architecture("MistralForCausalLM").unwrap();
        let place = |path| llama.place(path).unwrap().0;
        let q = place("model.layers.2.self_attn.q_proj");
        assert_eq!(q, place("model.language_model.layers.2.self_attn.q_proj"));
        assert!(place("model.embed_tokens") < q && q < place("model.layers.10.self_attn.q_proj"));
        assert!(place("model.layers.10.mlp.up_proj") < place("lm_head"));
        for path in ["model.layers.02.self_attn.q_proj", "model.layers.x.self_attn.q_proj", "model.norm"] {
            assert!(llama.place(path).is_none());
        }
    }
}
