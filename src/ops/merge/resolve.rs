//! Which tensor on disk each of the adapter's targets changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::source::{Edit, Part, Ready, Source};
use super::tied;
use super::{Applied, Options};
use crate::adapter::delta::{Delta, Full, full::Mode};
use crate::adapter::{Note, Target};
use crate::error::{Context, Error, Kind, Result};
use crate::model::{BaseModel, embedding};
use crate::names::{Found, How, ModulePath};
use crate::ops::orientation::is_transposed;
use crate::tensor::{Shape, Tensor};

/// A tensor the base does not have.
#[derive(Clone, Debug)]
pub struct New {
    /// The tensor on disk whose file it goes into.
    pub anchor: String,
    /// What it starts from: a copy of the anchor, or zeros.
    pub copies_anchor: bool,
    /// Its shape.
    pub shape: Shape,
}

/// Everything that changes, by key on disk.
#[derive(Default)]
pub struct Edits {
    /// Changes of tensors, in the order they apply.
    pub by_key: BTreeMap<String, Vec<Edit>>,
    /// Tensors that are added.
    pub new: BTreeMap<String, New>,
    /// Tensors whose shape becomes another, because they are replaced.
    pub reshaped: BTreeMap<String, Shape>,
    /// The two uses of the embedding part: the config has to say so.
    pub untied: bool,
    /// Adapter tensors used, by adapter.
    pub used: Vec<usize>,
    /// Remarks.
    pub notes: Vec<Note>,
}

/// A target that matches nothing.
struct Unmatched {
    path: ModulePath,
    name: String,
    tensors: usize,
}

/// Resolves every target of every adapter.
pub fn resolve(base: &BaseModel, adapters: &[Applied], options: &Options) -> Result<Edits> {
    let mut edits = Edits { used: vec![0; adapters.len()], ..Edits::default() };
    for (number, (applied, plan)) in adapters.iter().zip(tied::plans(base, adapters)).enumerate() {
        edits.notes.extend(plan.note.clone());
        let untied = plan.untied.clone();
        let mut work = Resolver { base, applied, number, plan, options, edits: &mut edits, unmatched: Vec::new() };
        for (path, target) in &applied.adapter.targets {
            work.target(path, target).in_file(&applied.label)?;
        }
        for (key, anchor) in untied {
            work.untie(&key, &anchor)?;
        }
        let unmatched = std::mem::take(&mut work.unmatched);
        report_unmatched(base, applied, &unmatched, options, &mut edits)?;
    }
    Ok(edits)
}

struct Resolver<'a> {
    base: &'a BaseModel,
    applied: &'a Applied<'a>,
    number: usize,
    plan: tied::Plan,
    options: &'a Options,
    edits: &'a mut Edits,
    unmatched: Vec<Unmatched>,
}

impl Resolver<'_> {
    fn target(&mut self, path: &ModulePath, target: &Target) -> Result<()> {
        let shared = Arc::new(target.clone());
        if !target.weight.is_empty() {
            let name = if target.is_parameter() { path.to_string() } else { path.tensor("weight") };
            self.part(path, &shared, Part::Weight, name)?;
        }
        if !target.bias.is_empty() {
            self.part(path, &shared, Part::Bias, path.tensor("bias"))?;
        }
        Ok(())
    }

    fn part(&mut self, path: &ModulePath, target: &Arc<Target>, part: Part, name: String) -> Result<()> {
        let deltas = if part == Part::Weight { &target.weight } else { &target.bias };
        let mut tensors: usize = deltas.iter().map(|d| d.tensors().len()).sum();
        tensors += usize::from(part == Part::Weight && target.magnitude.is_some());
        if part == Part::Weight && self.plan.is_repeated(path.as_str()) {
            self.edits.used[self.number] += tensors;
            return Ok(());
        }
        if part == Part::Bias && self.changes_tied_bias(path) {
            self.edits.used[self.number] += tensors;
            return Ok(());
        }
        let untied = if part == Part::Weight { self.plan.own_key(path.as_str()).map(str::to_string) } else { None };
        let found = match (untied, self.find(path, part, &name)) {
            (Some(key), _) => self.untie(&key, &self.base.embeddings().input.unwrap_or_default())?,
            (None, Some(found)) => found,
            (None, None) => match self.addition(path, part, deltas)? {
                Missing::Added(found) => found,
                Missing::Nothing => {
                    self.edits.used[self.number] += tensors;
                    return Ok(());
                }
                Missing::Unmatched => {
                    self.unmatched.push(Unmatched { path: path.clone(), name, tensors });
                    return Ok(());
                }
            },
        };
        self.note_how(&name, &found);
        self.edit(path, target, part, found)?;
        if part == Part::Weight {
            for (key, anchor) in self.plan.also_at(path.as_str()).to_vec() {
                let other = self.untie(&key, &anchor)?;
                self.edit(path, target, part, other)?;
            }
        }
        self.edits.used[self.number] += tensors;
        Ok(())
    }

    /// The target's change of the tensor that was found.
    fn edit(&mut self, path: &ModulePath, target: &Arc<Target>, part: Part, found: Found) -> Result<()> {
        let deltas = if part == Part::Weight { &target.weight } else { &target.bias };
        let mut stored = Shape::new(found.memory_shape.clone());
        if let Some(shape) = replaced_shape(deltas, &stored).filter(|_| self.has_a_vocabulary(path)) {
            self.reshape(path, &found, &shape)?;
            stored = shape;
        }
        if let Some(shape) = wider(self.base, deltas, path, &stored).filter(|_| part == Part::Weight) {
            self.widen(path, &found, &shape)?;
            stored = shape;
        }
        let transposed = part == Part::Weight && is_transposed(self.base, self.applied.adapter, path, &stored)?;
        let companion = if part == Part::Bias { self.weight_of(path)? } else { None };
        let source = Arc::new(Source {
            adapter: self.applied.label.clone(),
            number: self.number,
            path: path.clone(),
            target: Arc::clone(target),
            part,
            stored,
            transposed,
            companion,
            strength: self.applied.strength,
            ready: Ready::default(),
        });
        for piece in found.pieces {
            source.expect_user();
            let edit = Edit { source: Arc::clone(&source), piece };
            self.edits.by_key.entry(edit.piece.key.clone()).or_default().push(edit);
        }
        Ok(())
    }

    /// The tensor on disk. The fused input projection of `nn.MultiheadAttention` has a name of its own.
    fn find(&self, path: &ModulePath, part: Part, name: &str) -> Option<Found> {
        let in_proj = if part == Part::Weight { "in_proj_weight" } else { "in_proj_bias" };
        let tied = || self.base.names.find(self.plan.tied_bias(path.as_str()).filter(|_| part == Part::Bias)?);
        self.base.names.find(name).or_else(|| self.base.names.find(&path.tensor(in_proj))).or_else(tied)
    }

    /// Whether the bias of this use of the embedding is tied to a tensor that another target changes: then that one does.
    fn changes_tied_bias(&self, path: &ModulePath) -> bool {
        let Some(shared) = self.plan.tied_bias(path.as_str()) else { return false };
        let is_it = |name: String| self.base.names.find(&name).is_some_and(|f| f.plain() == Some(shared));
        self.applied.adapter.targets.iter().filter(|(other, _)| *other != path).any(|(other, target)| {
            let bias = !target.bias.is_empty() && is_it(other.tensor("bias"));
            bias || (target.is_parameter() && is_it(other.to_string()))
        })
    }

    /// A use of a tied tensor as a tensor of its own, which the base leaves to `anchor`.
    fn untie(&mut self, key: &str, anchor: &str) -> Result<Found> {
        let (_, tensor) =
            self.base.tensor(anchor).ok_or_else(|| Error::missing("no input embedding").at_key(anchor))?;
        let shape = tensor.shape.clone();
        if key == anchor {
            return Ok(whole(key, &shape));
        }
        if let Some(why) = embedding::why_tied_for_good(self.base) {
            return Err(Error::unsupported(format!("one use of a tied embedding is changed, and {why}"))
                .at_key(key)
                .hint("leave the embeddings out of the adapter, or train both uses together (ensure_weight_tying)"));
        }
        self.edits.untied = true;
        if let Some((_, tensor)) = self.base.tensor(key) {
            return Ok(whole(key, &tensor.shape));
        }
        self.edits.new.entry(key.to_string()).or_insert(New {
            anchor: anchor.to_string(),
            copies_anchor: true,
            shape: shape.clone(),
        });
        Ok(whole(key, &shape))
    }

    /// What to do where the base has no such tensor.
    fn addition(&mut self, path: &ModulePath, part: Part, deltas: &[Delta]) -> Result<Missing> {
        let weight = self.base.names.find(&path.tensor("weight"));
        match (part, deltas, weight) {
            // A layer without a bias: a product with it is nothing, a sum creates it.
            (Part::Bias, [Delta::Rescale(_) | Delta::Road(_)], Some(_)) => Ok(Missing::Nothing),
            (Part::Bias, _, Some(_)) if !self.options.allow_unmatched => {
                let what = "the adapter changes the bias of this layer, and the base has none there";
                Err(Error::missing(what)
                    .at_key(path.as_str())
                    .hint("is this the base model the adapter was trained on? --allow-unmatched leaves the bias out"))
            }
            (_, [Delta::Full(Full { tensor, mode: Mode::Replace })], _)
                if is_head(path) && self.matches_elsewhere() =>
            {
                let name = if part == Part::Bias { path.tensor("bias") } else { path.tensor("weight") };
                let of = |name: &str| self.base.component_of(name).map(|c| c.name.as_str());
                let all = self.base.files.tensors().map(|(_, key, _)| key).filter(|key| of(key) == of(&name));
                let Some(anchor) = all.last().cloned() else { return Ok(Missing::Unmatched) };
                self.edits.notes.push(Note::info(&name, "a head that the base does not have; added"));
                Ok(Missing::Added(self.add(&name, anchor, tensor.shape.clone())))
            }
            _ => Ok(Missing::Unmatched),
        }
    }

    fn add(&mut self, key: &str, anchor: String, shape: Shape) -> Found {
        let found = whole(key, &shape);
        self.edits.new.entry(key.to_string()).or_insert(New { anchor, copies_anchor: false, shape });
        found
    }

    /// Whether the adapter fits this base at all: then a head of its own is no sign of a wrong base.
    fn matches_elsewhere(&self) -> bool {
        let mut paths = self.applied.adapter.targets.keys().filter(|p| !is_head(p));
        paths.any(|p| self.base.names.find(&p.tensor("weight")).is_some())
    }

    /// Whether the rows of a module are as many as the model has words or classes, so that there may be more of them.
    fn has_a_vocabulary(&self, path: &ModulePath) -> bool {
        let embeddings = self.base.embeddings();
        let key = self.base.names.find(&path.tensor("weight"));
        let is_embedding =
            |name: Option<String>| name.is_some() && key.as_ref().and_then(Found::plain) == name.as_deref();
        is_head(path)
            || embedding::is_input(path.as_str())
            || is_embedding(embeddings.input)
            || is_embedding(embeddings.output)
    }

    fn reshape(&mut self, path: &ModulePath, found: &Found, shape: &Shape) -> Result<()> {
        let Some(key) = found.plain() else {
            let what = format!("a replacement of shape {shape} for a tensor that the base stores in parts");
            return Err(Error::unsupported(what).at_key(path.as_str()));
        };
        let strength = self.applied.strength * self.applied.adapter.targets.get(path).map_or(1.0, |t| t.share.0);
        if strength != 1.0 {
            let what = format!("a replacement of another shape ({shape}) cannot be taken at strength {strength}");
            return Err(Error::unsupported(what).at_key(path.as_str()));
        }
        let text = format!("{} becomes {shape}", Shape::new(found.memory_shape.clone()));
        self.edits.notes.push(Note::info(key, text));
        self.edits.reshaped.insert(key.to_string(), shape.clone());
        Ok(())
    }

    /// More inputs, which have zeros in the base.
    fn widen(&mut self, path: &ModulePath, found: &Found, shape: &Shape) -> Result<()> {
        let Some(key) = found.plain() else {
            let what = format!("a change of {shape} for a tensor that the base stores in parts");
            return Err(Error::unsupported(what).at_key(path.as_str()));
        };
        let was = Shape::new(found.memory_shape.clone());
        let text = format!("{was} becomes {shape}: the new inputs are zeros in the base, as for a control adapter");
        self.edits.notes.push(Note::info(key, text));
        self.edits.reshaped.insert(key.to_string(), shape.clone());
        Ok(())
    }

    fn note_how(&mut self, name: &str, found: &Found) {
        if found.how == How::Suffix
            && let Some(piece) = found.pieces.first()
        {
            let text = format!("found in the base as `{}`", piece.key);
            self.edits.notes.push(Note::info(name, text));
        }
    }

    fn weight_of(&self, path: &ModulePath) -> Result<Option<Tensor>> {
        let found = self.base.names.find(&path.tensor("weight"));
        found.as_ref().and_then(Found::plain).map_or(Ok(None), |key| self.base.numbers(key))
    }
}

enum Missing {
    Added(Found),
    Nothing,
    Unmatched,
}

/// First layers of image models, which control adapters give more channels.
const FIRST_LAYERS: [&str; 2] = ["img_in", "x_embedder"];

/// The shape that the first layer of an image model takes where an adapter is for more inputs than it has.
fn wider(base: &BaseModel, deltas: &[Delta], path: &ModulePath, stored: &Shape) -> Option<Shape> {
    let (is_image_model, leaf) =
        (base.naming().is_some() || base.pipeline.is_some(), path.as_str().rsplit('.').next()?);
    let Delta::LowRank(d) = deltas.first()? else { return None };
    let &[rows, inputs] = stored.dims() else { return None };
    let (b, a) = (d.b.shape.matrix(), d.a.shape.matrix());
    let is_wider = d.a.shape.rank() == 2 && b.0 == rows && a.1 > inputs;
    (is_image_model && FIRST_LAYERS.contains(&leaf) && is_wider).then(|| Shape::new(vec![rows, a.1]))
}

/// The shape a tensor takes because it is replaced by one of another shape.
fn replaced_shape(deltas: &[Delta], stored: &Shape) -> Option<Shape> {
    match deltas.first()? {
        Delta::Full(Full { tensor, mode: Mode::Replace }) if tensor.shape != *stored => {
            // Only the number of rows may change, as when a vocabulary grows; the rest is a wrong base.
            let same = tensor.shape.rank() == stored.rank() && tensor.shape.dims().get(1..) == stored.dims().get(1..);
            same.then(|| tensor.shape.clone())
        }
        _ => None,
    }
}

/// Modules that a task puts onto a base model.
fn is_head(path: &ModulePath) -> bool {
    const HEADS: [&str; 13] = [
        "score",
        "classifier",
        "pre_classifier",
        "classification_head",
        "projector",
        "decode_head",
        "head",
        "qa_outputs",
        "summary",
        "v_head",
        "regressor",
        "pooler",
        "lm_head",
    ];
    path.components().any(|c| HEADS.contains(&c))
}

fn whole(key: &str, shape: &Shape) -> Found {
    Found::whole(key, shape.dims())
}

/// Whether the weight of the module lies in the base as the two tensors of torch's weight norm, by either name.
fn is_weight_normed(base: &BaseModel, path: &ModulePath) -> bool {
    ["parametrizations.weight.original0", "weight_g"].iter().any(|leaf| base.names.find(&path.tensor(leaf)).is_some())
}

fn report_unmatched(
    base: &BaseModel,
    applied: &Applied,
    unmatched: &[Unmatched],
    options: &Options,
    edits: &mut Edits,
) -> Result<()> {
    let Some(first) = unmatched.first() else { return Ok(()) };
    let all = applied.adapter.targets.len();
    // A module whose weight and bias both match nothing counts once.
    let modules = unmatched.iter().map(|u| &u.path).collect::<BTreeSet<_>>().len();
    if options.allow_unmatched && modules < all {
        for u in unmatched {
            let text = format!("matches nothing in the base; {} tensors left out", u.tensors);
            edits.notes.push(Note::lossy(u.path.as_str(), text));
        }
        return Ok(());
    }
    let names: Vec<_> = unmatched.iter().take(5).map(|u| format!("`{}`", u.name)).collect();
    let more = if unmatched.len() > 5 { format!(" and {} more", unmatched.len() - 5) } else { String::new() };
    let what = format!(
        "{modules} of {all} modules match nothing in the base {}: no tensor {}{more}",
        base.path.display(),
        names.join(", ")
    );
    if let Some(u) = unmatched.iter().find(|u| is_weight_normed(base, &u.path)) {
        let what = "the base keeps this weight as magnitude and direction (weight norm), which cannot be merged into";
        let hint = "remove the parametrisation from the base before (torch's remove_parametrizations), or leave the \
                    layer out with --allow-unmatched";
        return Err(Error::unsupported(what).at_key(u.path.as_str()).hint(hint));
    }
    let component = base.component_of(&first.name).filter(|component| !component.has_tensors);
    if let Some(component) = component {
        let what = format!("{what}: the weights of {} are in no safetensors file", component.name);
        let hint = format!("save them as safetensors first; --allow-unmatched leaves {} as it is", component.name);
        return Err(Error::new(Kind::Missing, what).at_key(first.path.as_str()).in_file(&applied.label).hint(hint));
    }
    let nearest = base.names.nearest(&first.name);
    let nearest = nearest.map_or_else(String::new, |n| format!("the nearest key of the base is `{n}`; "));
    let lift = if modules == all {
        "is this the base model the adapter was trained on?"
    } else {
        "--allow-unmatched leaves them out"
    };
    Err(Error::new(Kind::Missing, what)
        .at_key(first.path.as_str())
        .in_file(&applied.label)
        .hint(format!("{nearest}{lift}")))
}
