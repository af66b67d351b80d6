//! TinyLoRA: `W + B · (Σᵢ vᵢ Pᵢ) · A`, with A and B from the singular value decomposition of the weight, random Pᵢ, and a
//! trained vector v that groups of modules share (<https://arxiv.org/abs/2602.04118>; huggingface/peft,
//! `src/peft/tuners/tinylora`).

use std::collections::BTreeMap;

use ndarray::Array2;

use super::{Tuner, need, owned, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, LowRank};
use crate::adapter::order;
use crate::adapter::{Note, Scale, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::keys::{Parts, Place};
use crate::layout::peft::saved::target;
use crate::limits;
use crate::names::ModulePath;
use crate::tensor::Tensor;
use crate::tensor::random::TorchRng;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "TINYLORA",
    roles: &[("tinylora_A", &[""]), ("tinylora_B", &[""]), ("tinylora_P", &[""]), ("tinylora_v", &["*"])],
    fields: &[
        "r",
        "u",
        "weight_tying",
        "projection_seed",
        "save_projection",
        "fan_in_fan_out",
        "tinylora_dropout",
        "init_v_bound",
    ],
    read,
    writing: None,
};

/// Which vector a module uses, and what its projection is seeded with.
struct Numbering {
    index: BTreeMap<ModulePath, usize>,
    groups: usize,
    size: usize,
}

fn read(reader: &mut Reader) -> Result<()> {
    let vectors = vectors(reader)?;
    let modules = take_modules(reader);
    let numbering = number(reader, &modules, vectors.len())?;
    let transposed = reader.config.flag("fan_in_fan_out")?;
    let seed = reader.config.integer("projection_seed")?.unwrap_or(42) as u64;
    for ((path, _), mut parts) in modules {
        let (a, b) = (need(&mut parts, "tinylora_A")?, need(&mut parts, "tinylora_B")?);
        let stored = take(&mut parts, "tinylora_P")?;
        require_taken(&parts, TUNER.peft_type)?;
        let index = numbering.index.get(&path).copied().unwrap_or(0);
        let group = (index / numbering.size).min(numbering.groups - 1);
        let v = vectors
            .get(&group)
            .ok_or_else(|| Error::missing(format!("no vector tinylora_v.{group}, which this module shares")))
            .at_key(path.as_str())?;
        let projection = match stored {
            Some(p) => p.to_f32()?,
            None => {
                made_projection(seed.wrapping_add(index as u64), v.len(), a.shape.matrix().0).at_key(path.as_str())?
            }
        };
        let delta = combine(a, &b, v, &projection).at_key(path.as_str())?;
        let target = target(reader, path.as_str());
        target.weight.push(Delta::LowRank(delta));
        if transposed {
            target.site = SiteKind::FanInFanOut;
        }
    }
    Ok(())
}

/// The trained vectors by group.
fn vectors(reader: &mut Reader) -> Result<BTreeMap<usize, Vec<f32>>> {
    let roles: Vec<String> = reader.modules.shared.keys().filter(|r| r.starts_with("tinylora_v.")).cloned().collect();
    let mut out = BTreeMap::new();
    for role in roles {
        let tensor = need(&mut reader.modules.shared, &role)?;
        let group = role.rsplit('.').next().and_then(|g| g.parse().ok());
        let group =
            group.ok_or_else(|| Error::unrecognised("expected the number of a group at the end").at_key(&role))?;
        out.insert(group, tensor.to_f32()?);
    }
    if out.is_empty() {
        return Err(Error::missing("no tinylora_v in the file"));
    }
    Ok(out)
}

/// Numbers the modules as the model lists them, and finds how many share a vector.
fn number(reader: &mut Reader, modules: &[(Place, Parts)], vectors: usize) -> Result<Numbering> {
    let mut paths: Vec<ModulePath> = modules.iter().map(|((path, _), _)| path.clone()).collect();
    let seeded = modules.iter().any(|(_, parts)| !parts.contains_key("tinylora_P"));
    if !order::sort(&mut paths) && (vectors > 1 || seeded) {
        let text = "modules share vectors by their number in the model, and the order of some of them is not known here; \
                    taken by name";
        reader.notes.push(Note::lossy("tinylora_v", text));
    }
    let tying = reader.config.number("weight_tying")?.unwrap_or(0.0);
    // Python rounds halves to even.
    let groups = ((paths.len() as f64) * (1.0 - tying)).round_ties_even().max(1.0) as usize;
    let size = (paths.len() / groups).max(1);
    Ok(Numbering { index: paths.into_iter().enumerate().map(|(i, p)| (p, i)).collect(), groups, size })
}

/// P: [u, r, r], normal with variance 1 / r.
fn made_projection(seed: u64, u: usize, rank: usize) -> Result<Vec<f32>> {
    let count = u.checked_mul(rank).and_then(|n| n.checked_mul(rank)).filter(|&n| n <= limits::TINYLORA_ELEMENTS);
    let count = count.ok_or_else(|| {
        Error::limit(format!("{u} random matrices of rank {rank}"), format!("{} numbers", limits::TINYLORA_ELEMENTS))
    })?;
    Ok(TorchRng::new(seed).normal_f32(count, 0.0, 1.0 / (rank as f64).sqrt()))
}

fn combine(a: Tensor, b: &Tensor, v: &[f32], projection: &[f32]) -> Result<LowRank> {
    let (rank, left) = (a.shape.matrix().0, b.to_matrix()?);
    if left.ncols() != rank || Some(projection.len()) != rank.checked_mul(rank).and_then(|n| n.checked_mul(v.len())) {
        return Err(Error::mismatch(format!(
            "A {}, B {}, v of {} and P of {} elements do not belong together",
            a.shape,
            b.shape,
            v.len(),
            projection.len()
        )));
    }
    let mut core = Array2::<f64>::zeros((rank, rank));
    for (factor, matrix) in v.iter().zip(projection.chunks((rank * rank).max(1))) {
        core.iter_mut().zip(matrix).for_each(|(sum, &p)| *sum += f64::from(*factor) * f64::from(p));
    }
    let b = owned(&left.mapv(f64::from).dot(&core).mapv(|x| x as f32))?;
    Ok(LowRank { a, b, scale: Scale::direct(1.0), experts: None, name: "TinyLoRA" })
}
