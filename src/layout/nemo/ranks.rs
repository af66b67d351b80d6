//! The tensors of all ranks put together: layers counted on, and what tensor parallelism had cut joined again.
//!
//! A rank of the pipeline counts its layers from 0. Along the tensor-parallel ranks B is cut by its rows, A by its
//! rows where the layer is (query, key and value; the first of a feed-forward) and by its columns where the layer is by
//! its inputs. Each share of the first layer has its own gate in front of its own up
//! (NVIDIA/NeMo:scripts/nlp_language_modeling/merge_lora_weights/merge.py, `load_lora`, `merge`).

use std::collections::BTreeMap;

use super::keys::{self, Leaf, Linear, Named, Part, Place};
use super::settings::Settings;
use crate::adapter::Note;
use crate::error::{Context, Error, Result};
use crate::limits;
use crate::tensor::{StateDict, Tensor, rearrange};

/// The tensors of one place.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    /// A.
    pub a: Option<Tensor>,
    /// B.
    pub b: Option<Tensor>,
    /// Magnitude.
    pub magnitude: Option<Tensor>,
    /// One of the keys, for messages.
    pub key: String,
}

/// Tensor-parallel and pipeline rank out of the folder's name.
fn rank(folder: &str) -> Option<(usize, usize)> {
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < limits::NEMO_RANKS);
    match folder.strip_prefix("mp_rank_") {
        Some(tensor) => Some((number(tensor)?, 0)),
        None => {
            let (tensor, pipeline) = folder.strip_prefix("tp_rank_")?.split_once("_pp_rank_")?;
            Some((number(tensor)?, number(pipeline)?))
        }
    }
}

/// All tensors by place.
pub fn join(
    tensors: &StateDict,
    settings: &Settings,
    gated: bool,
    notes: &mut Vec<Note>,
) -> Result<BTreeMap<Place, Tensors>> {
    let mut by_rank: BTreeMap<(usize, usize), Vec<(&str, &Tensor)>> = BTreeMap::new();
    for (key, tensor) in tensors {
        let (folder, inner) = key.split_once('/').map_or((None, key.as_str()), |(folder, inner)| (Some(folder), inner));
        let rank = match folder {
            None => (0, 0),
            Some(folder) => rank(folder).ok_or_else(|| {
                Error::unrecognised(format!("a folder `{folder:.60}`, expected mp_rank_XX or tp_rank_XX_pp_rank_XXX"))
            })?,
        };
        by_rank.entry(rank).or_default().push((inner, tensor));
    }
    let shares = by_rank.keys().map(|(tensor, _)| tensor + 1).max().unwrap_or(1);
    let stages = by_rank.keys().map(|(_, stage)| stage + 1).max().unwrap_or(1);
    require_all(&by_rank.keys().copied().collect::<Vec<_>>(), [shares, stages], settings)?;
    let step = match (stages, settings.base.layers) {
        (1, _) => 0,
        (_, Some(layers)) if layers.is_multiple_of(stages) => layers / stages,
        (_, Some(layers)) => {
            return Err(Error::mismatch(format!(
                "{layers} layers, expected a multiple of the {stages} ranks of the pipeline"
            ))
            .at_key("num_layers"));
        }
        (_, None) => {
            let what = "layers dealt to ranks of a pipeline, and their number is not known";
            return Err(Error::missing(what).at_key("num_layers").hint("--base tells it"));
        }
    };
    let mut found: BTreeMap<(Place, Leaf), (String, Vec<Tensor>)> = BTreeMap::new();
    let mut aside: BTreeMap<&'static str, (String, usize)> = BTreeMap::new();
    for ((_, stage), all) in &by_rank {
        for (key, tensor) in all {
            let (mut place, leaf) = match keys::parse(key)? {
                Named::Tensor(place, leaf) => (place, leaf),
                Named::Aside(why) => {
                    aside.entry(why).or_insert_with(|| (key.to_string(), 0)).1 += 1;
                    continue;
                }
            };
            if step > 0 && place.layer >= step {
                let what = format!("layer {} of a rank that has {step}", place.layer);
                return Err(Error::mismatch(what).at_key(*key));
            }
            place.layer = stage.checked_mul(step).and_then(|n| n.checked_add(place.layer)).unwrap_or(place.layer);
            let parts = found.entry((place, leaf)).or_insert_with(|| (key.to_string(), Vec::new()));
            parts.1.push((*tensor).clone());
        }
    }
    for (why, (key, count)) in aside {
        notes.push(Note::info(key, if count > 1 { format!("and {} more: {why}", count - 1) } else { why.to_string() }));
    }
    let mut out: BTreeMap<Place, Tensors> = BTreeMap::new();
    for ((place, leaf), (key, parts)) in found {
        if parts.len() != shares {
            let what = format!("in {} of {shares} tensor-parallel ranks, or there twice", parts.len());
            return Err(Error::mismatch(what).at_key(key));
        }
        let tensor = joined(place, leaf, &parts, gated).at_key(&key)?;
        let tensors = out.entry(place).or_default();
        let spot = match leaf {
            Leaf::In => &mut tensors.a,
            Leaf::Out => &mut tensors.b,
            Leaf::Magnitude => &mut tensors.magnitude,
        };
        *spot = Some(tensor);
        tensors.key = key;
    }
    Ok(out)
}

fn require_all(found: &[(usize, usize)], sizes: [usize; 2], settings: &Settings) -> Result<()> {
    let words = ["tensor_model_parallel_size", "pipeline_model_parallel_size"];
    if sizes[0].checked_mul(sizes[1]) != Some(found.len()) {
        let what = format!("weights of {} ranks, expected {} times {}", found.len(), sizes[0], sizes[1]);
        return Err(Error::missing(what));
    }
    for ((word, size), said) in words.iter().zip(sizes).zip(settings.ranks) {
        if let Some(said) = said.filter(|said| *said != size) {
            let what = format!("weights of {size} ranks, the settings say {said}");
            return Err(Error::mismatch(what).at_key(*word));
        }
    }
    Ok(())
}

/// The shares of all ranks as one tensor.
fn joined(place: Place, leaf: Leaf, shares: &[Tensor], gated: bool) -> Result<Tensor> {
    if let [whole] = shares {
        return Ok(whole.clone());
    }
    let by_inputs = matches!(place.linear, Linear::Dense | Linear::Second);
    match (leaf, by_inputs) {
        (Leaf::In, true) => {
            let turned = shares.iter().map(rearrange::transposed).collect::<Result<Vec<_>>>()?;
            rearrange::transposed(&rearrange::concat_rows(&turned)?)
        }
        (Leaf::Out, _) if place.linear == Linear::First && place.part.is_none() && gated => {
            let half = |share: &Tensor, part: Part| {
                let (rows, _) = rearrange::matrix(share)?;
                if !rows.is_multiple_of(2) {
                    return Err(Error::mismatch(format!("{}, expected a gate and as much that it gates", share.shape)));
                }
                rearrange::row_range(share, if part == Part::Gate { 0..rows / 2 } else { rows / 2..rows })
            };
            let of = |part| shares.iter().map(move |share| half(share, part));
            rearrange::concat_rows(&of(Part::Gate).chain(of(Part::Up)).collect::<Result<Vec<_>>>()?)
        }
        (Leaf::Magnitude, _) => Err(Error::unsupported("magnitudes in several ranks, which NeMo 1 does not have")),
        _ => rearrange::concat_rows(shares),
    }
}
