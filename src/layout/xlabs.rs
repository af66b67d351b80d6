//! XLabs' adapters of FLUX.1: two factors for each attention, where the model's own code has processors.
//!
//! Defined by XLabs-AI/x-flux, `src/flux/modules/layers.py` and `train_flux_lora_deepspeed.py`; bytedance/USO saves the
//! same. Written down in `docs/layouts/xlabs.md`. Read only.

use super::spelling;
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, Target};
use crate::error::{Context, Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::Naming;
use crate::tensor::{StateDict, Tensor, rearrange};

/// The layout.
pub struct XLabs;

const NAME: &str = "xlabs";
/// What stands between a block and the factors.
const PROCESSOR: &str = ".processor.";
/// Factors by the beginning of their block's name: what they are called, and the modules of diffusers' that they are for.
/// Several modules share the factor at the inputs, and have equal parts of the one at the outputs.
const MODULES: [(&str, &str, &str, &[&str]); 6] = [
    ("double_blocks.", "qkv_lora1", "transformer_blocks", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("double_blocks.", "proj_lora1", "transformer_blocks", &["attn.to_out.0"]),
    ("double_blocks.", "qkv_lora2", "transformer_blocks", &["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]),
    ("double_blocks.", "proj_lora2", "transformer_blocks", &["attn.to_add_out"]),
    ("single_blocks.", "qkv_lora", "single_transformer_blocks", &["attn.to_q", "attn.to_k", "attn.to_v"]),
    ("single_blocks.", "proj_lora", "single_transformer_blocks", &["proj_out"]),
];

impl Layout for XLabs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "XLabs and USO: FLUX.1, factors of its attentions' processors"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Ranks => Holding::Yes,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| parse(key).is_some()).count();
        if ours * 2 <= all {
            return Verdict::No;
        }
        Verdict::Likely { score: 99, because: format!("{ours} of {all} keys are factors of a processor of FLUX.1") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let mut adapter = Adapter { declared: "LoRA".to_string(), ..Adapter::default() };
        for key in source.tensors.keys() {
            let place = parse(key).ok_or_else(|| Error::unrecognised("no factor of a processor").at_key(key));
            let place = place.in_file(&source.tensor_file)?;
            if place.is_down {
                place.read(&source.tensors, &mut adapter).at_key(key).in_file(&source.tensor_file)?;
            } else if !source.tensors.contains_key(&place.key("down")) {
                let what = "one of two factors without the other";
                return Err(Error::missing(what).at_key(key).in_file(&source.tensor_file));
            }
        }
        let text = "no alpha in files of this layout: scale 1; XLabs' own program multiplies both factors by the strength, \
                    and so has its square";
        let mut notes = vec![Note::info("", text)];
        notes.extend(spelling::recognise(&mut adapter, Naming::Diffusers));
        adapter.carried = Carried {
            layout: NAME.to_string(),
            metadata: source.metadata.clone(),
            outline: adapter.outline(),
            ..Carried::default()
        };
        Ok((adapter, notes))
    }

    fn can_write(&self) -> bool {
        false
    }

    fn write(&self, _: &Adapter) -> Result<(Draft, Vec<Note>)> {
        Err(Error::unsupported("adapters of XLabs' are read, not written"))
    }
}

/// A key, taken apart.
struct Place<'k> {
    /// All before the word of the factor.
    head: &'k str,
    block: u64,
    blocks: &'static str,
    modules: &'static [&'static str],
    is_down: bool,
}

fn parse(key: &str) -> Option<Place<'_>> {
    let (head, word) = key.strip_suffix(".weight")?.rsplit_once('.')?;
    let is_down = match word {
        "down" => true,
        "up" => false,
        _ => return None,
    };
    let (block, factors) = head.strip_prefix("diffusion_model.").unwrap_or(head).split_once(PROCESSOR)?;
    MODULES.iter().find_map(|(start, name, blocks, modules)| {
        let block = block.strip_prefix(start)?.parse().ok()?;
        (factors == *name).then_some(Place { head, block, blocks, modules, is_down })
    })
}

impl Place<'_> {
    fn key(&self, word: &str) -> String {
        format!("{}.{word}.weight", self.head)
    }

    fn read(&self, tensors: &StateDict, adapter: &mut Adapter) -> Result<()> {
        let get = |word: &str| {
            tensors.get(&self.key(word)).ok_or_else(|| Error::missing("one of two factors without the other"))
        };
        let (down, up) = (get("down")?, get("up")?);
        let (rank, rows) = (down.shape.matrix().0, up.shape.matrix().0);
        if rank == 0 || down.shape.rank() != 2 || up.shape.rank() != 2 || up.shape.matrix().1 != rank {
            return Err(Error::mismatch(format!("down {} and up {} have no rank in common", down.shape, up.shape)));
        }
        if rows % self.modules.len() != 0 {
            return Err(Error::mismatch(format!("up {} for {} modules of one size", up.shape, self.modules.len())));
        }
        let share = rows / self.modules.len();
        for (number, module) in self.modules.iter().enumerate() {
            let own: Vec<usize> = (number * share..(number + 1) * share).collect();
            let b: Tensor = if self.modules.len() == 1 { up.clone() } else { rearrange::pick_rows(up, &own)? };
            let scale = Scale { alpha: rank as f64, rule: ScaleRule::AlphaOverRank };
            let factors = LowRank { a: down.clone(), b, scale, experts: None, name: "LoRA" };
            let target = Target { weight: vec![Delta::LowRank(factors)], ..Target::default() };
            let path = format!("transformer.{}.{}.{module}", self.blocks, self.block);
            adapter.targets.insert(path.as_str().into(), target);
        }
        Ok(())
    }
}
