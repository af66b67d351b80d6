//! An adapter made to fit what a program reads.

use std::collections::{BTreeMap, BTreeSet};

use super::{Consumer, Scales};
use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Experts, Full, LowRank, full::Mode};
use crate::adapter::facts::LATENT;
use crate::adapter::{Adapter, Delta, Note, Scale, ScaleRule, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::names::{ModulePath, Which, expert_of};
use crate::tensor::rearrange;

const EMBEDDINGS: [&str; 2] = ["embed_tokens", "lm_head"];
const ATTENTION: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// See [`Consumer::fit`].
pub fn fit(consumer: &Consumer, adapter: &Adapter) -> Result<(Adapter, Vec<Note>)> {
    let mut out = adapter.clone();
    let mut notes = Vec::new();
    if !consumer.plain {
        return Ok((out, notes));
    }
    if let Some(method) = &adapter.residual_base {
        let what = format!("made by {method} for a changed base, and {} would apply it to the base", consumer.name);
        return Err(Error::unsupported(what).hint("--normalise --base BASE makes a plain LoRA of it"));
    }
    for (path, target) in &adapter.targets {
        require(consumer, path, target).at_key(path.as_str())?;
    }
    if consumer.scales == Scales::One {
        unify(consumer, &mut out, &mut notes)?;
    }
    fill_experts(consumer, &mut out, &mut notes)?;
    fill_stacks(consumer, &mut out, &mut notes)?;
    if consumer.attention {
        fill_attention(consumer, &mut out, &mut notes)?;
    }
    out.carried.outline.clear(); // how its modules were chosen is said anew
    if let Some(ranks) = consumer.ranks {
        room(consumer, &out, ranks, &mut notes)?;
    }
    Ok((out, notes))
}

/// An error for what of a module the program does not read.
fn require(consumer: &Consumer, path: &ModulePath, target: &Target) -> Result<()> {
    let name = consumer.name;
    if target.magnitude.is_some() {
        let what = format!("DoRA, which {name} does not read");
        return Err(Error::unsupported(what).hint("--normalise --base BASE --rank 16 makes plain LoRA of it"));
    }
    if path.as_str().starts_with("visual.") && name == "lmdeploy" {
        return Err(Error::unsupported(format!("a module outside the language model, which {name} does not adapt")));
    }
    let saved = consumer.saved.contains(&path.leaf());
    for delta in target.weight.iter().chain(&target.bias) {
        match delta {
            Delta::LowRank(d) if d.a.shape.rank() == 2 => {
                factors(consumer, path, target, d)?;
            }
            Delta::LowRank(_) => return Err(Error::unsupported(format!("a convolution, which {name} does not adapt"))),
            Delta::Full(Full { mode: Mode::Replace, .. }) if saved => {}
            Delta::Full(_) | Delta::TokenRows(_) => {
                let what = format!("{} of a weight or bias, which {name} does not read", delta.kind());
                return Err(Error::unsupported(what).hint("merge the adapter, and serve the merged model"));
            }
            other => {
                let what = format!("{}, which {name} does not read", other.kind());
                return Err(Error::unsupported(what).hint("--normalise --base BASE --rank 16 makes plain LoRA of it"));
            }
        }
    }
    Ok(())
}

fn factors(consumer: &Consumer, path: &ModulePath, target: &Target, d: &LowRank) -> Result<()> {
    let name = consumer.name;
    let one_of_many = d.experts.is_some() || expert_of(&path.tensor("weight")).is_some();
    if one_of_many && consumer.experts == super::Experts::None {
        return Err(Error::unsupported(format!("experts, which {name} does not adapt")));
    }
    if d.experts.is_some_and(|experts| matches!(experts.facing, Facing::First | Facing::Unknown)) {
        let what = format!("experts as PEFT before 0.19.1 has them, which {name} takes for factors of other sizes");
        return Err(Error::unsupported(what).hint("--base BASE tells which way they face, and they are turned"));
    }
    if target.is_parameter() && d.experts.is_none() {
        return Err(Error::unsupported(format!("a parameter by its own name, which {name} does not adapt")));
    }
    let is_embedding = target.site == SiteKind::Embedding || EMBEDDINGS.contains(&path.leaf());
    if is_embedding && !(consumer.embeddings && EMBEDDINGS.contains(&path.leaf())) {
        return Err(Error::unsupported(format!("an embedding, which {name} does not adapt")));
    }
    if let Some(most) = consumer.vocabulary.filter(|_| path.leaf() == "lm_head") {
        let rows = d.b.shape.matrix().0;
        if rows > most {
            let what = format!("an output layer of {rows} rows; {name} adapts at most {most}");
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}

/// The ranks have to be within what the program can be told to have room for.
fn room(consumer: &Consumer, adapter: &Adapter, ranks: &[usize], notes: &mut Vec<Note>) -> Result<()> {
    let largest = each(adapter).max_by_key(|(_, d)| d.rank());
    let Some((path, d)) = largest else { return Ok(()) };
    let (rank, most) = (d.rank(), ranks.last().copied().unwrap_or(0));
    let Some(served) = ranks.iter().find(|r| **r >= rank) else {
        let what = format!("rank {rank}; {} has room for {most} at most", consumer.name);
        return Err(Error::unsupported(what).at_key(path.as_str()).hint("`lora-tool resize --rank` makes it smaller"));
    };
    notes.push(Note::info("r", format!("{rank} needs --max-lora-rank {served} when the server starts")));
    Ok(())
}

fn each(adapter: &Adapter) -> impl Iterator<Item = (&ModulePath, &LowRank)> {
    adapter.targets.iter().flat_map(|(path, target)| {
        target.weight.iter().filter_map(move |delta| match delta {
            Delta::LowRank(d) => Some((path, d)),
            _ => None,
        })
    })
}

/// One rank and one alpha for all modules: ranks filled up with zeros, scales folded into B.
fn unify(consumer: &Consumer, adapter: &mut Adapter, notes: &mut Vec<Note>) -> Result<()> {
    let all: Vec<_> = each(adapter).map(|(_, d)| (d.rank(), d.scale)).collect();
    let Some((first, scale)) = all.first().copied() else { return Ok(()) };
    let whole = |alpha: f64| alpha.fract() == 0.0;
    if scale.rule == ScaleRule::AlphaOverRank && whole(scale.alpha) && all.iter().all(|own| *own == (first, scale)) {
        return Ok(());
    }
    let rank = all.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
    let (mut padded, mut folded, mut rounded) = (0, 0, 0);
    // One factor for all can be said by alpha where that is a whole number.
    let factor = scale.factor(first);
    let same = all.iter().all(|(rank, scale)| scale.factor(*rank) == factor);
    let alpha = if same && whole(factor * rank as f64) { factor * rank as f64 } else { rank as f64 };
    let wanted = alpha / rank as f64;
    for (path, target) in &mut adapter.targets {
        for delta in &mut target.weight {
            let Delta::LowRank(d) = delta else { continue };
            let (mut new, fold) = d.rescaled(Scale::direct(wanted)).at_key(path.as_str())?;
            folded += usize::from(fold.is_some());
            rounded += usize::from(fold.is_some_and(|fold| !fold.exact));
            if new.rank() < rank {
                let (inputs, outputs) = (new.a.shape.matrix().1, new.b.shape.matrix().0);
                new.a = rearrange::padded(&new.a, rank, inputs)?;
                new.b = rearrange::padded(&new.b, outputs, rank)?;
                padded += 1;
            }
            new.scale = Scale { alpha, rule: ScaleRule::AlphaOverRank };
            *delta = Delta::LowRank(new);
        }
    }
    let name = consumer.name;
    if padded > 0 {
        notes.push(Note::info("r", format!("{padded} modules filled up with zeros to rank {rank}, {name} has one")));
    }
    if folded > 0 {
        let mut text = format!("{folded} scales folded into B, {name} has one for all");
        if rounded > 0 {
            text += &format!("; {rounded} tensors hold B times the scale rounded once");
        }
        notes.push(Note::info("lora_alpha", text));
    }
    Ok(())
}

/// Experts are adapted all or none, with one rank for each matrix: those that are missing get factors of zeros.
fn fill_experts(consumer: &Consumer, adapter: &mut Adapter, notes: &mut Vec<Note>) -> Result<()> {
    let mut layers: BTreeMap<ModulePath, BTreeMap<(usize, Which), ModulePath>> = BTreeMap::new();
    for path in adapter.targets.keys() {
        let name = path.tensor("weight");
        if let Some(expert) = expert_of(&name) {
            let layer = layers.entry(expert.module.into()).or_default();
            layer.insert((expert.number, expert.which), path.clone());
        }
    }
    let mut filled = 0;
    for (module, present) in layers {
        let seen = present.keys().map(|(number, _)| number + 1).max().unwrap_or(0);
        let count = adapter.base.experts.unwrap_or(seen).max(seen);
        for which in [Which::Gate, Which::Up, Which::Down] {
            let like = sibling(adapter, &present, which);
            let Some((path, like)) = like else {
                let what =
                    format!("an adapter of some matrices of the experts; {} needs gate, up and down", consumer.name);
                return Err(Error::unsupported(what).at_key(module.as_str()));
            };
            for number in (0..count).filter(|number| !present.contains_key(&(*number, which))) {
                let name = format!("{module}.{number}.{}", path.leaf());
                adapter.targets.insert(name.as_str().into(), zeros(&like)?);
                filled += 1;
            }
        }
    }
    if filled > 0 {
        let text = format!("{filled} matrices that are not adapted got factors of zeros, {} needs all", consumer.name);
        notes.push(Note::info("experts", text));
    }
    Ok(())
}

/// Both parameters of a stack are adapted or none.
fn fill_stacks(consumer: &Consumer, adapter: &mut Adapter, notes: &mut Vec<Note>) -> Result<()> {
    let mut missing = Vec::new();
    for (path, target) in &adapter.targets {
        let (Some(parent), [Delta::LowRank(d)]) = (path.parent(), target.weight.as_slice()) else { continue };
        let other = match path.leaf() {
            "gate_up_proj" => parent.join("down_proj"),
            "down_proj" => parent.join("gate_up_proj"),
            _ => continue,
        };
        let Some(experts) = d.experts.filter(|_| !adapter.targets.contains_key(&other)) else { continue };
        let ((rows, a), (b, _)) = (rearrange::matrix(&d.a)?, rearrange::matrix(&d.b)?);
        let (inputs, outputs) = if experts.facing == Facing::Input { (a, b) } else { (b, a) };
        let (new_inputs, new_outputs) = match path.leaf() {
            "down_proj" => (outputs, inputs.checked_mul(2)),
            _ => (outputs / 2, Some(inputs)),
        };
        let new_outputs = new_outputs.ok_or_else(|| Error::mismatch("more outputs than can be counted"))?;
        let like = LowRank {
            a: rearrange::zeros(&d.a, [rows, new_inputs])?,
            b: rearrange::zeros(&d.b, [new_outputs, rows])?,
            experts: Some(Experts { facing: Facing::Input, ..experts }),
            ..d.clone()
        };
        missing.push((other, Target { weight: vec![Delta::LowRank(like)], ..target.clone() }));
    }
    if !missing.is_empty() {
        let text = format!(
            "{} stacks that are not adapted got factors of zeros, {} needs gate, up and down",
            missing.len(),
            consumer.name
        );
        notes.push(Note::info("experts", text));
    }
    adapter.targets.extend(missing);
    Ok(())
}

/// Factors of this matrix of another expert, or of the gate for up and the other way round, which have its sizes.
fn sibling(
    adapter: &Adapter,
    present: &BTreeMap<(usize, Which), ModulePath>,
    which: Which,
) -> Option<(ModulePath, LowRank)> {
    let of = |wanted: Which| {
        let path = present.iter().find(|((_, own), _)| *own == wanted).map(|(_, path)| path)?;
        match adapter.targets.get(path)?.weight.first()? {
            Delta::LowRank(d) => Some((path.clone(), d.clone())),
            _ => None,
        }
    };
    let other = match which {
        Which::Gate => Which::Up,
        Which::Up => Which::Gate,
        Which::Down => return of(which).or_else(|| across(of(Which::Gate).or_else(|| of(Which::Up))?, which)),
    };
    let from_other = || {
        let (path, d) = of(other)?;
        let leaf = match (path.leaf(), which) {
            ("w1" | "w3", Which::Gate) => "w1",
            ("w1" | "w3", _) => "w3",
            (_, Which::Gate) => "gate_proj",
            _ => "up_proj",
        };
        Some((path.parent().unwrap_or_default().join(leaf), d))
    };
    of(which).or_else(from_other).or_else(|| across(of(Which::Down)?, which))
}

/// Zeros of the sizes of a matrix of an expert that leads the other way than the one given.
fn across((path, d): (ModulePath, LowRank), which: Which) -> Option<(ModulePath, LowRank)> {
    let numbered = ["w1", "w2", "w3"].contains(&path.leaf());
    let leaf = match (which, numbered) {
        (Which::Gate, true) => "w1",
        (Which::Up, true) => "w3",
        (Which::Down, true) => "w2",
        (Which::Gate, false) => "gate_proj",
        (Which::Up, false) => "up_proj",
        (Which::Down, false) => "down_proj",
    };
    let (rank, inputs, outputs) = (d.rank(), d.a.shape.matrix().1, d.b.shape.matrix().0);
    let a = rearrange::zeros(&d.a, [rank, outputs]).ok()?;
    let b = rearrange::zeros(&d.b, [inputs, rank]).ok()?;
    Some((path.parent().unwrap_or_default().join(leaf), LowRank { a, b, ..d }))
}

/// A change of nothing, of the sizes of another.
fn zeros(like: &LowRank) -> Result<Target> {
    let a = rearrange::zeros(&like.a, like.a.shape.dims())?;
    let b = rearrange::zeros(&like.b, like.b.shape.dims())?;
    Ok(Target { weight: vec![Delta::LowRank(LowRank { a, b, ..like.clone() })], ..Target::default() })
}

/// Query and value wherever one of query, key and value is adapted.
fn fill_attention(consumer: &Consumer, adapter: &mut Adapter, notes: &mut Vec<Note>) -> Result<()> {
    let is_part = |path: &&ModulePath| ATTENTION.contains(&path.leaf());
    let parents: BTreeSet<_> = adapter.targets.keys().filter(is_part).filter_map(ModulePath::parent).collect();
    let mut filled = 0;
    for parent in parents {
        let latent = LATENT.iter().any(|leaf| adapter.targets.contains_key(&parent.join(leaf)));
        if latent || adapter.base.has_latent_keys() {
            continue;
        }
        let of = |leaf: &str| match adapter.targets.get(&parent.join(leaf)).and_then(|t| t.weight.first()) {
            Some(Delta::LowRank(d)) => Some(d.clone()),
            _ => None,
        };
        let [query, key, value] = ATTENTION.map(of);
        let rows = adapter.base.attention_rows();
        let made: [Option<(&str, LowRank)>; 2] = match (query, key, value) {
            (Some(_), _, Some(_)) => [None, None],
            (Some(query), key, None) => {
                // Keys and values have as many outputs.
                let outputs = key.map(|d| d.b.shape.matrix().0).or(rows.map(|r| r[2]));
                [Some(("v_proj", sized(&query, outputs)?)), None]
            }
            (None, Some(key), None) => [Some(("q_proj", sized(&key, rows.map(|r| r[0]))?)), Some(("v_proj", key))],
            (None, _, Some(value)) => [Some(("q_proj", sized(&value, rows.map(|r| r[0]))?)), None],
            (None, None, None) => [None, None],
        };
        for (leaf, like) in made.into_iter().flatten() {
            adapter.targets.insert(parent.join(leaf), zeros(&like)?);
            filled += 1;
        }
    }
    if filled > 0 {
        let text = format!("{filled} of query and value got factors of zeros, {} needs both", consumer.name);
        notes.push(Note::info("self_attn", text));
    }
    Ok(())
}

/// Factors of this many outputs.
fn sized(like: &LowRank, outputs: Option<usize>) -> Result<LowRank> {
    let outputs = outputs.ok_or_else(|| {
        Error::missing("how many rows query, key and value have is not known, and one of them needs factors of zeros")
            .hint("--base names the base model, whose config says how many heads there are")
    })?;
    let rank = like.rank();
    let b = rearrange::zeros(&like.b, [outputs, rank])?;
    Ok(LowRank { b, ..like.clone() })
}

/// The last components of all modules but `holders` that have factors among these keys, sorted.
pub fn leaves<'a>(keys: impl Iterator<Item = &'a String>, holders: &[&str]) -> Vec<String> {
    let leaf = |key: &'a String| {
        let at = [".lora_A.", ".lora_B.", ".lora_embedding_A", ".lora_embedding_B"].iter().find_map(|m| key.find(m))?;
        let path = key[..at].trim_end_matches(".base_layer");
        if holders.iter().any(|holder| path.ends_with(holder)) {
            return None;
        }
        Some(path.rsplit('.').next().unwrap_or(path).to_string())
    };
    keys.filter_map(leaf).collect::<BTreeSet<_>>().into_iter().collect()
}
