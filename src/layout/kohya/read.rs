//! A file of this layout as an adapter.

use super::NAME;
use super::keys::{self, Parts};
use super::kind::{self, KINDS};
use super::metadata::{self, ABOUT, Memory};
use super::names::{Resolver, Spelling};
use crate::adapter::{Adapter, Along, Carried, Delta, Note, SiteKind, Target};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Source, spelling};
use crate::names::ModulePath;
use crate::tensor::{StateDict, Tensor};

/// Parameters that are adapted by their own names, which dotted keys tell.
const PARAMETERS: [&str; 2] = ["modulation", "scale_shift_table"];

/// The adapter in `source`, whose tensors are called `tensors` here.
pub fn read(source: &Source, tensors: &StateDict) -> Result<(Adapter, Vec<Note>)> {
    let mut reader = Reader::default();
    reader.notes.extend(source.other_values.iter().map(|value| Note::info(value, "not a tensor; left out")));
    reader.file(source, tensors).in_file(&source.tensor_file)?;
    let Reader { mut adapter, mut notes, names, other_words, kept } = reader;
    for (key, text) in &source.metadata {
        if let Some(name) = key.strip_prefix(ABOUT) {
            adapter.about.insert(name.to_string(), text.clone());
        }
    }
    if let Some(base) = source.base_fingerprint()? {
        adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
    }
    let network = source.metadata.iter().find(|(key, _)| key == "ss_network_module").map(|(_, text)| text.as_str());
    adapter.declared = network.unwrap_or("LoRA").to_string();
    notes.extend(split_qkv(source, &adapter));
    let own = Spelling::of(names.iter().map(|(name, path)| (name.as_str(), path.as_str())));
    let memory = Memory { spelling: own, other_words, described: metadata::described(&adapter) };
    adapter.carried = Carried {
        layout: NAME.to_string(),
        fields: memory.fields(),
        metadata: source.metadata.clone(),
        outline: adapter.outline(),
        tensors: kept,
    };
    Ok((adapter, notes))
}

#[derive(Default)]
struct Reader {
    adapter: Adapter,
    notes: Vec<Note>,
    /// Names with their paths.
    names: Vec<(String, String)>,
    other_words: Vec<String>,
    /// Tensors that are written again as they are.
    kept: Vec<(String, Tensor)>,
}

impl Reader {
    fn file(&mut self, source: &Source, tensors: &StateDict) -> Result<()> {
        let paths = metadata::paths(&source.metadata)?;
        let sorted = keys::sort(tensors)?;
        let mut modules = Vec::with_capacity(sorted.modules.len());
        for (name, parts) in sorted.modules {
            let module = self.module(&name, parts).at_key(&name)?;
            modules.push((name, module));
        }
        let seen: Vec<_> = modules.iter().map(|(name, (target, _))| (name.clone(), spelling::shape(target))).collect();
        let (resolver, remark) = Resolver::of(&seen);
        self.notes.extend(remark);
        self.adapter.spelling = resolver.spelling();
        for (name, (target, other_word)) in modules {
            let path = paths.get(&name).cloned().unwrap_or_else(|| resolver.path(&name));
            self.place(&name, &path, target).at_key(&name)?;
            if other_word {
                self.other_words.push(path.clone());
            }
            self.names.push((name, path));
        }
        for key in &sorted.embeddings {
            self.notes.push(Note::info(
                key,
                "an embedding packed into the file, which changes no weight; only this layout keeps it",
            ));
        }
        for key in &sorted.bookkeeping {
            self.notes.push(Note::info(
                key,
                "what a tool for sliders keeps for itself, which changes no weight; only this layout does",
            ));
        }
        for key in sorted.embeddings.into_iter().chain(sorted.bookkeeping) {
            if let Some(tensor) = tensors.get(&key) {
                self.kept.push((key, tensor.clone()));
            }
        }
        Ok(())
    }

    /// What is done to a module, and whether its tensors are called otherwise than is usual.
    fn module(&mut self, name: &str, mut parts: Parts) -> Result<(Target, bool)> {
        let small =
            keys::SMALL.iter().filter_map(|suffix| Some((format!("{name}.{suffix}"), parts.get(suffix)?.clone())));
        self.kept.extend(small);
        self.require_supported(name, &mut parts)?;
        let is_vector = parts.get("diff").is_some_and(|tensor| tensor.shape.rank() == 1);
        let lone_norm = parts.contains_key("b_norm") && !parts.contains_key("w_norm");
        let mut target = Target::default();
        let mut found = KINDS.iter().filter(|kind| kind.marks.iter().any(|mark| parts.contains_key(mark)));
        let (first, second) = (found.next(), found.next());
        if second.is_some() {
            let there: Vec<_> = parts.keys().copied().collect();
            return Err(Error::unsupported(format!("changes of several kinds in one module: {}", there.join(", "))));
        }
        if let Some(kind) = first {
            target.weight.push((kind.read)(&mut parts)?);
        }
        if let Some(residual) = kind::read_residual(&mut parts)? {
            self.note_residual(name, &target);
            target.weight.push(residual);
        }
        let scale = target.weight.first().map_or(1.0, factor);
        target.bias.extend(kind::bias(&mut parts, scale));
        self.magnitude(&mut target, &mut parts)?;
        // The scale of a module whose kind has none says nothing.
        parts.retain(|suffix, _| !["alpha", "scale"].contains(suffix));
        if let Some((suffix, tensor)) = parts.first_key_value() {
            return Err(Error::unrecognised(format!(
                "a tensor {suffix} {} that its module has no use for",
                tensor.shape
            )));
        }
        if target.weight.is_empty() && target.bias.is_empty() {
            return Err(Error::missing("nothing but a scale: the tensors of the module are not there"));
        }
        Ok((target, is_vector || lone_norm))
    }

    fn place(&mut self, name: &str, path: &str, mut target: Target) -> Result<()> {
        if name.contains('.') && path.rsplit('.').next().is_some_and(|leaf| PARAMETERS.contains(&leaf)) {
            target.site = SiteKind::Parameter;
        }
        if self.adapter.targets.insert(ModulePath::from(path.to_string()), target).is_some() {
            let other = self.names.iter().find(|(_, known)| known == path).map_or(path, |(name, _)| name);
            return Err(Error::malformed(format!("means the same as `{other}`")));
        }
        Ok(())
    }

    fn require_supported(&mut self, name: &str, parts: &mut Parts) -> Result<()> {
        if parts.contains_key("row_offset") {
            return Err(Error::unsupported("a change of a range of rows, which only ComfyUI's own conversion has"));
        }
        if parts.remove("reshape_weight").is_some() {
            let what = "asks for a base padded with zeros to its own shape; fits only a base of that shape here";
            self.notes.push(Note::info(name, what));
        }
        Ok(())
    }

    fn magnitude(&mut self, target: &mut Target, parts: &mut Parts) -> Result<()> {
        let Some(magnitude) = parts.remove("dora_scale") else { return Ok(()) };
        if target.weight.is_empty() {
            return Err(Error::missing("dora_scale and nothing that it is the length of"));
        }
        // An extent of 1 tells which axis it is not; LyCORIS has had both.
        target.magnitude_along = match *magnitude.shape.dims() {
            [1, inputs, ..] if inputs != 1 => Along::Cols,
            _ => Along::Rows,
        };
        target.magnitude = Some(magnitude);
        Ok(())
    }

    /// LyCORIS writes residuals with an alpha that is the rank. Who applies others does not agree.
    fn note_residual(&mut self, name: &str, target: &Target) {
        let factor = target.weight.first().map_or(1.0, factor);
        if factor != 1.0 {
            let what =
                format!("the sparse residual is added as it is; AUTOMATIC1111 multiplies it by the scale {factor}");
            self.notes.push(Note::lossy(name, what));
        }
    }
}

/// What the factors of a change are multiplied by.
fn factor(delta: &Delta) -> f64 {
    match delta {
        Delta::LowRank(d) => d.factor(),
        Delta::Tucker(d) => d.scale.factor(d.rank()),
        _ => 1.0,
    }
}

/// sd-scripts' `split_qkv` writes several adapters in one with the alpha of one, so that its own reader makes them
/// weaker than they were trained (kohya-ss/sd-scripts#2204). Files are judged as they are read, so it is only told.
fn split_qkv(source: &Source, adapter: &Adapter) -> Option<Note> {
    let text = |name: &str| source.metadata.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str());
    let arguments = serde_json::from_str::<serde_json::Value>(text("ss_network_args")?).ok()?;
    let asked = arguments.get("split_qkv")?;
    if asked.as_str() != Some("True") && asked.as_bool() != Some(true) {
        return None;
    }
    let (dim, alpha): (usize, f64) = (text("ss_network_dim")?.parse().ok()?, text("ss_network_alpha")?.parse().ok()?);
    let is_wide = |delta: &Delta| matches!(delta, Delta::LowRank(d) if d.rank() > dim && d.rank() % dim.max(1) == 0 && d.scale.alpha == alpha);
    let path = adapter.targets.iter().find(|(_, target)| target.weight.iter().any(is_wide))?.0;
    let what = "trained with split_qkv, whose file has the alpha of one part for all: read as it stands, several times \
                weaker than it was trained";
    Some(Note::lossy(path.as_str(), what))
}
