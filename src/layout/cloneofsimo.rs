//! The first LoRA files of Stable Diffusion: factors numbered in the order of a walk over the model, `unet:12:up`.
//!
//! Defined by cloneofsimo/lora, `lora_diffusion/lora.py` (`save_safeloras_with_embeds`, `_find_modules_v2`); written down in
//! `docs/layouts/cloneofsimo.md`. Which module a number means hangs on the version of diffusers it was trained with, and is
//! told by the shapes of all. Read only.

use std::collections::BTreeMap;

use super::spelling;
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::{Adapter, Carried, Note, Scale, ScaleRule, Target};
use crate::error::{Context, Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::diffusion::{self, Naming, Part, Role};
use crate::tensor::Tensor;

/// The layout.
pub struct Cloneofsimo;

const NAME: &str = "cloneofsimo";
/// The value in the metadata of a textual inversion's token.
const EMBEDDING: &str = "<embed>";
/// Models whose walks are known.
const FAMILIES: [&str; 2] = ["sd1", "sd2"];
/// Linear layers of an attention, of CLIP's, and of a block of convolutions, in the order that they have in their classes.
const ATTENTION: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];
const CLIP: [&str; 4] = ["k_proj", "v_proj", "q_proj", "out_proj"];
const RESNET: [&str; 4] = ["conv1", "time_emb_proj", "conv2", "conv_shortcut"];

impl Layout for Cloneofsimo {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "cloneofsimo/lora: Stable Diffusion, factors numbered in the order of a walk, unet:0:up"
    }

    fn holds(&self, content: Content) -> Holding {
        match content {
            Content::Linear | Content::Ranks | Content::Convolutions => Holding::Yes,
            _ => Holding::No,
        }
    }

    fn detect(&self, source: &Source) -> Verdict {
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|key| parse(key).is_some()).count();
        if ours * 2 <= all {
            return Verdict::No;
        }
        Verdict::Likely { score: 99, because: format!("{ours} of {all} keys are numbered factors") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        read(source).in_file(&source.tensor_file)
    }

    fn can_write(&self) -> bool {
        false
    }

    fn write(&self, _: &Adapter) -> Result<(Draft, Vec<Note>)> {
        Err(Error::unsupported("numbered factors are read, not written"))
    }
}

/// Model, number, and whether it is the factor at the inputs.
fn parse(key: &str) -> Option<(&str, usize, bool)> {
    let (head, word) = key.rsplit_once(':')?;
    let (model, number) = head.rsplit_once(':')?;
    let is_down = match word {
        "down" => true,
        "up" => false,
        _ => return None,
    };
    Some((model, number.parse().ok()?, is_down))
}

/// Factors by their numbers: down and up.
type Pairs = BTreeMap<usize, (Option<Tensor>, Option<Tensor>)>;

fn read(source: &Source) -> Result<(Adapter, Vec<Note>)> {
    let mut models: BTreeMap<&str, Pairs> = BTreeMap::new();
    let mut notes = Vec::new();
    for (key, tensor) in &source.tensors {
        let Some((model, number, is_down)) = parse(key) else {
            if source.metadata.iter().any(|(name, text)| name == key && text == EMBEDDING) {
                let text = "an embedding of this token, which changes no weight, and is left out";
                notes.push(Note::lossy(key, text));
                continue;
            }
            return Err(
                Error::unrecognised(format!("a tensor {} that is no numbered factor", tensor.shape)).at_key(key)
            );
        };
        if !["unet", "text_encoder"].contains(&model) {
            return Err(Error::unrecognised("factors of neither `unet` nor `text_encoder`").at_key(key));
        }
        let pair = models.entry(model).or_default().entry(number).or_default();
        *(if is_down { &mut pair.0 } else { &mut pair.1 }) = Some(tensor.clone());
    }
    let mut adapter = Adapter { declared: "LoRA".to_string(), ..Adapter::default() };
    for (model, pairs) in models {
        let pairs = whole(model, pairs)?;
        let shapes: Vec<Vec<u64>> = pairs.iter().map(|(down, up)| shape(down, up)).collect();
        for (path, (down, up)) in walk(model, &shapes)?.into_iter().zip(pairs) {
            let scale = Scale { alpha: down.shape.dims()[0] as f64, rule: ScaleRule::AlphaOverRank };
            let factors = LowRank { a: down, b: up, scale, experts: None, name: "LoRA" };
            let target = Target { weight: vec![Delta::LowRank(factors)], ..Target::default() };
            adapter.targets.insert(format!("{model}.{path}").as_str().into(), target);
        }
    }
    notes.push(Note::info("", "no alpha in files of this layout: scale 1"));
    notes.extend(spelling::recognise(&mut adapter, Naming::Diffusers));
    adapter.carried = Carried {
        layout: NAME.to_string(),
        metadata: source.metadata.clone(),
        outline: adapter.outline(),
        ..Carried::default()
    };
    Ok((adapter, notes))
}

/// Both factors of every number from 0 on.
fn whole(model: &str, pairs: Pairs) -> Result<Vec<(Tensor, Tensor)>> {
    let mut out = Vec::with_capacity(pairs.len());
    for (expected, (number, pair)) in pairs.into_iter().enumerate() {
        let key = format!("{model}:{expected}");
        let (number, Some(down), Some(up)) = (number, pair.0, pair.1) else {
            return Err(Error::missing("one of two factors without the other").at_key(format!("{model}:{number}")));
        };
        if number != expected {
            return Err(Error::missing(format!("no factors of this number, and some of {number}")).at_key(&key));
        }
        let rank = down.shape.dims().first().copied().unwrap_or(0);
        if rank == 0 || down.shape.rank() < 2 || up.shape.dims().get(1) != Some(&rank) {
            let what = format!("down {} and up {} have no rank in common", down.shape, up.shape);
            return Err(Error::mismatch(what).at_key(&key));
        }
        out.push((down, up));
    }
    Ok(out)
}

/// The shape of the weight that two factors are for.
fn shape(down: &Tensor, up: &Tensor) -> Vec<u64> {
    let rows = up.shape.dims().iter().take(1);
    rows.chain(down.shape.dims().iter().skip(1)).map(|n| *n as u64).collect()
}

/// The paths of the modules, in the order of the numbers.
fn walk(model: &str, shapes: &[Vec<u64>]) -> Result<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    for family in FAMILIES.into_iter().filter_map(diffusion::family) {
        let part = family.parts.iter().find(|part| (part.role == Role::Denoiser) == (model == "unet"));
        for (part, variant) in part.into_iter().flat_map(|part| family.variants.iter().map(move |v| (part, v))) {
            let extents = if model == "unet" { variant.extents } else { &[] };
            let walks =
                if model == "unet" { walks_of_u_nets(part, extents) } else { vec![walk_of_clip(part, extents)] };
            found.extend(walks.into_iter().filter(|walk| fits(part, extents, walk, shapes)));
        }
    }
    found.sort();
    found.dedup();
    let first = shapes.first().map(|shape| format!("{shape:?}")).unwrap_or_default();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let what =
                format!("{} numbered factors, the first for {first}, in the order of no known walk", shapes.len());
            Err(Error::unrecognised(what).at_key(model))
        }
        several => Err(Error::unrecognised(format!("could be modules in any of {several} orders")).at_key(model)),
    }
}

fn fits(part: &'static Part, extents: &[diffusion::Extent], walk: &[String], shapes: &[Vec<u64>]) -> bool {
    let same = |(path, shape): (&String, &Vec<u64>)| {
        let own = part.module(Naming::Diffusers, path, extents).and_then(|module| module.shape);
        own.is_some_and(|own| own == *shape)
    };
    walk.len() == shapes.len() && walk.iter().zip(shapes).all(same)
}

/// Attentions of all layers.
fn walk_of_clip(part: &'static Part, extents: &[diffusion::Extent]) -> Vec<String> {
    let path = |layer: usize, leaf: &str| format!("text_model.encoder.layers.{layer}.self_attn.{leaf}");
    let exists = |layer: &usize| part.contains(Naming::Diffusers, &path(*layer, CLIP[0]), extents);
    (0..).take_while(exists).flat_map(|layer| CLIP.map(|leaf| path(layer, leaf))).collect()
}

/// All walks there have been: the feed-forward layer of a block before its second attention or behind it, the middle
/// block between the others or behind them, with or without blocks of convolutions.
fn walks_of_u_nets(part: &'static Part, extents: &[diffusion::Extent]) -> Vec<Vec<String>> {
    let has = |path: &str| part.contains(Naming::Diffusers, path, extents);
    let mut out = Vec::new();
    for (early, middle_last, convolutions) in (0..8).map(|n: u8| (n & 1 == 0, n & 2 == 0, n & 4 != 0)) {
        let block = |name: &str| {
            let mut paths = Vec::new();
            for number in 0..3 {
                let inner = format!("{name}.attentions.{number}.transformer_blocks.0");
                let attention = |which: &str| ATTENTION.map(|leaf| format!("{inner}.{which}.{leaf}"));
                let ff = || [format!("{inner}.ff.net.0.proj")];
                paths.extend(attention("attn1"));
                if early {
                    paths.extend(ff());
                }
                paths.extend(attention("attn2"));
                if !early {
                    paths.extend(ff());
                }
            }
            if convolutions {
                paths.extend((0..3).flat_map(|n| RESNET.map(|leaf| format!("{name}.resnets.{n}.{leaf}"))));
            }
            paths
        };
        let middle = block("mid_block");
        let down = (0..4).flat_map(|n| block(&format!("down_blocks.{n}")));
        let up = (0..4).flat_map(|n| block(&format!("up_blocks.{n}")));
        let all: Vec<String> = match middle_last {
            true => down.chain(up).chain(middle).collect(),
            false => down.chain(middle).chain(up).collect(),
        };
        out.push(all.into_iter().filter(|path| has(path)).collect());
    }
    out
}
