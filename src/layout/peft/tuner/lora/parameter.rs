//! LoRA on parameters by their own names (`target_parameters`): the stacked experts of a mixture
//! (huggingface/peft, `src/peft/tuners/lora/layer.py`, `ParamWrapper`).
//!
//! All parameters of one module share its path. The wrapper of the one registered first is innermost, each further one
//! adds a `base_layer` level, so a key says only how deep its parameter lies; the config says which that is.

use std::collections::{BTreeMap, HashSet};

use crate::adapter::delta::low_rank::Facing;
use crate::adapter::delta::{Delta, Experts, LowRank, Packing};
use crate::adapter::{Note, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::{Config, Patterns};
use crate::layout::peft::keys::Place;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling::Scaled;
use crate::layout::peft::writer::Writer;
use crate::names::ModulePath;
use crate::tensor::{Shape, Tensor};

/// Order in which experts' modules of transformers register their parameters. PEFT wraps the first one innermost.
const REGISTRATION: [&str; 8] =
    ["weight", "bias", "gate_up_proj", "gate_up_proj_bias", "up_proj", "gate_proj", "down_proj", "down_proj_bias"];

/// What the config says about parameters, and how many levels each module of the file has.
pub struct Parameters {
    /// Parameters by module, empty for any.
    entries: BTreeMap<String, Vec<String>>,
    levels: BTreeMap<ModulePath, usize>,
    modules: HashSet<String>,
}

impl Parameters {
    /// Reads `target_parameters` and counts the levels of the modules in the file.
    pub fn of<'p>(config: &Config, places: impl Iterator<Item = &'p Place>) -> Result<Parameters> {
        let mut entries = BTreeMap::<String, Vec<String>>::new();
        for entry in config.names("target_parameters")? {
            let (module, name) = entry.rsplit_once('.').unwrap_or(("", entry.as_str()));
            entries.entry(module.to_string()).or_default().push(name.to_string());
        }
        let mut levels = BTreeMap::new();
        for (path, _) in places {
            *levels.entry(path.clone()).or_insert(0) += 1;
        }
        Ok(Parameters { entries, levels, modules: config.names("target_modules")?.into_iter().collect() })
    }

    /// The parameter that the factors at this place belong to; none for an ordinary layer.
    pub fn name(&self, (path, depth): &Place) -> Result<Option<String>> {
        let mut names = self.names_at(path);
        let levels = self.levels.get(path).copied().unwrap_or(1);
        if names.is_empty() {
            // Wrapped twice and tuned once: the level says nothing.
            if levels == 1 {
                return Ok(None);
            }
            let what = format!("{levels} adapters on one module, and target_parameters does not name its parameters");
            return Err(Error::unrecognised(what));
        }
        if names.len() != levels {
            let what = format!("{levels} levels of nesting, target_parameters names {}", names.join(", "));
            return Err(Error::mismatch(what));
        }
        names.sort_by_key(|name| registration(name));
        // Depth 0 is the outermost wrapper: the parameter registered last.
        let found = names.len().checked_sub(depth + 1).and_then(|i| names.get(i).cloned());
        found.map(Some).ok_or_else(|| Error::mismatch(format!("level {depth} of nesting, expected below {levels}")))
    }

    /// Parameters that the config names for this module: those it names with the module, else those without one,
    /// unless the module is a target of its own.
    fn names_at(&self, path: &ModulePath) -> Vec<String> {
        if self.entries.is_empty() {
            return Vec::new();
        }
        let path = path.as_str();
        let ends = || std::iter::once(path).chain(path.match_indices('.').filter_map(|(at, _)| path.get(at + 1..)));
        let different = |names: &mut dyn Iterator<Item = &String>| {
            let mut seen = HashSet::new();
            names.filter(|name| seen.insert(name.as_str())).cloned().collect::<Vec<_>>()
        };
        let named = ends().filter(|end| !end.is_empty()).filter_map(|end| self.entries.get(end)).flatten();
        let named = different(&mut { named });
        if !named.is_empty() || ends().any(|end| self.modules.contains(end)) {
            return named;
        }
        different(&mut self.entries.get("").into_iter().flatten())
    }
}

/// Reads the factors of one parameter; returns the name its patterns were matched against.
pub fn read(
    reader: &mut Reader,
    patterns: &Patterns,
    (path, _): &Place,
    parameter: &str,
    a: Tensor,
    b: Tensor,
) -> Result<String> {
    let full = format!("{path}.{parameter}");
    let rank = patterns.rank_at(&full)?;
    let rows = a.shape.dims().first().copied().unwrap_or(0);
    if a.shape.rank() != 2 || rows == 0 || rows % rank != 0 || b.shape.dims().get(1) != Some(&rows) {
        let what = format!("A {} and B {} do not hold whole experts of rank {rank}", a.shape, b.shape);
        return Err(Error::mismatch(what).hint("the config may belong to another adapter"));
    }
    let count = rows / rank;
    let experts = Experts { count, packing: packing(reader)?, facing: facing(reader.config) };
    let experts = (count > 1).then_some(experts);
    let delta = LowRank { a, b, scale: patterns.scale_at(&full), experts, name: "LoRA" };
    let target = target(reader, &full);
    target.site = SiteKind::Parameter;
    target.weight.push(Delta::LowRank(delta));
    Ok(full)
}

/// A parameter by its own name and its factors.
pub type Named = (ModulePath, LowRank);

/// Writes all parameters; returns what scales them.
pub fn write(writer: &mut Writer, parameters: Vec<Named>) -> Result<Vec<Scaled>> {
    let mut by_module: BTreeMap<ModulePath, Vec<(String, LowRank)>> = BTreeMap::new();
    let mut scaled = Vec::new();
    for (path, factors) in parameters {
        let Some(module) = path.parent().filter(|module| !writer.adapts(module.as_str())) else {
            let what = "a parameter of the model itself, or of a module that is adapted; PEFT cannot adapt it by name";
            return Err(Error::unsupported(what).at_key(path.as_str()));
        };
        scaled.push(Scaled { name: path.to_string(), rank: factors.rank(), scale: factors.scale });
        by_module.entry(module).or_default().push((path.leaf().to_string(), factors));
    }
    let era = write_era(&by_module)?;
    for (module, mut levels) in by_module {
        levels.sort_by_key(|(name, _)| registration(name));
        if levels.iter().filter(|(name, _)| registration(name) == REGISTRATION.len()).count() > 1 {
            let what = "the order of its parameters in the model is not known here; taken as sorted by name";
            writer.notes.push(Note::lossy(module.as_str(), what));
        }
        let outermost = levels.len() - 1;
        for (level, (name, factors)) in levels.into_iter().enumerate() {
            let full = module.tensor(&name);
            let (a, b) = arranged(&factors, era == Era::Current).at_key(&full)?;
            writer.put(module.as_str(), outermost - level, "lora_A.weight", a)?;
            writer.put(module.as_str(), outermost - level, "lora_B.weight", b)?;
            writer.selection.parameters.push(full);
        }
    }
    match era {
        Era::Current => {}
        Era::First => {
            let what = "the factors of experts face the first axis, as in PEFT 0.17 and 0.18; later versions read them \
                        the other way round";
            writer.notes.push(Note::lossy("peft_version", what));
            writer.set("peft_version", "0.18.1");
        }
        Era::Unknown => {
            let what = "which axis the factors of experts face was not known, and is not said";
            writer.notes.push(Note::lossy("peft_version", what));
            writer.set("peft_version", serde_json::Value::Null);
        }
    }
    if scaled.is_empty() {
        return Ok(scaled);
    }
    // Without a list PEFT takes modules of its own choice for models it knows.
    if writer.selection.modules.is_empty() {
        writer.set("target_modules", serde_json::json!([]));
    }
    Ok(scaled)
}

/// Whose reading of stacks the file is written for. What faces the first axis does so or not, seen from later versions,
/// depending on the model, so it stays as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Era {
    Current,
    First,
    Unknown,
}

fn write_era(by_module: &BTreeMap<ModulePath, Vec<(String, LowRank)>>) -> Result<Era> {
    let mut out = None;
    for (module, levels) in by_module {
        for experts in levels.iter().filter_map(|(_, factors)| factors.experts) {
            let era = match experts.facing {
                Facing::Input | Facing::FirstUnlessTransposed => Era::Current,
                Facing::First => Era::First,
                Facing::Unknown => Era::Unknown,
            };
            if *out.get_or_insert(era) != era {
                let what = "stacks of experts whose factors face different axes; PEFT reads all of a file alike";
                return Err(Error::unsupported(what).at_key(module.as_str()));
            }
        }
    }
    Ok(out.unwrap_or(Era::Current))
}

fn registration(name: &str) -> usize {
    REGISTRATION.iter().position(|r| *r == name).unwrap_or(REGISTRATION.len())
}

/// Both factors with the columns of B in PEFT's order, and turned round where `current` versions would.
fn arranged(factors: &LowRank, current: bool) -> Result<(Tensor, Tensor)> {
    let Some(experts) = factors.experts else { return Ok((factors.a.clone(), factors.b.clone())) };
    let (rank, count) = (factors.rank(), experts.count);
    let turned = current && experts.facing == Facing::FirstUnlessTransposed;
    if experts.packing == Packing::RankMajor && !turned {
        return Ok((factors.a.clone(), factors.b.clone()));
    }
    let (&[rows, inputs], &[outputs, columns]) = (factors.a.shape.dims(), factors.b.shape.dims()) else {
        return Err(Error::mismatch(format!("A {} and B {} are no matrices", factors.a.shape, factors.b.shape)));
    };
    if rank.checked_mul(count) != Some(rows) || columns != rows {
        let what =
            format!("A {} and B {} do not hold {count} experts of rank {rank}", factors.a.shape, factors.b.shape);
        return Err(Error::mismatch(what));
    }
    // Number of (expert, rank) among the columns of B as it is, and in PEFT's order; rows of A have the expert outermost.
    let column = |e: usize, k: usize| match experts.packing {
        Packing::RankMajor => k * count + e,
        Packing::ByExpert => e * rank + k,
    };
    let of_row = |row: usize| (row / rank, row % rank);
    let of_column = |column: usize| (column % count, column / count);
    let old_column = |(e, k): (usize, usize)| column(e, k);
    let old_row = |(e, k): (usize, usize)| e * rank + k;
    if turned {
        let a = gathered(&factors.b, rows, outputs, |row, o| o * rows + old_column(of_row(row)))?;
        let b = gathered(&factors.a, inputs, rows, |i, column| old_row(of_column(column)) * inputs + i)?;
        return Ok((a, b));
    }
    let b = gathered(&factors.b, outputs, rows, |o, column| o * rows + old_column(of_column(column)))?;
    Ok((factors.a.clone(), b))
}

/// A matrix of elements of `source`, by their number there.
fn gathered(source: &Tensor, rows: usize, cols: usize, from: impl Fn(usize, usize) -> usize) -> Result<Tensor> {
    let size = source.dtype.bitsize() / 8;
    let bytes = source.bytes.as_slice();
    if size * 8 != source.dtype.bitsize() || bytes.len() != size * rows * cols {
        return Err(Error::unsupported(format!("dtype {} cannot be put in another order", source.dtype)));
    }
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        for col in 0..cols {
            let at = from(row, col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    Tensor::new(source.dtype, Shape::new([rows, cols]), out.into())
}

fn packing(reader: &mut Reader) -> Result<Packing> {
    const FIELD: &str = "lora_B_layout";
    match reader.config.text(FIELD)?.as_deref() {
        Some("rank_major") => Ok(Packing::RankMajor),
        Some("grouped_by_expert") => Ok(Packing::ByExpert),
        Some(other) => {
            Err(Error::unrecognised(format!("`{other}`, expected rank_major or grouped_by_expert")).at_key(FIELD))
        }
        None => {
            let base = reader.config.text("base_model_name_or_path")?.unwrap_or_default();
            let told = reader.notes.iter().any(|n| n.key == FIELD);
            if base.to_ascii_lowercase().contains("unsloth") && !told {
                let text = "the base is one of Unsloth's, whose older files order B's columns by expert; taken as \
                            PEFT's order. Set lora_B_layout to grouped_by_expert in a copy of the config otherwise";
                reader.notes.push(Note::lossy(FIELD, text));
            }
            Ok(Packing::RankMajor)
        }
    }
}

/// Which axis of a stack `[E, d1, d2]` A faces, by the version that wrote the file; shapes decide before this does.
fn facing(config: &Config) -> Facing {
    match config.version() {
        None => Facing::Unknown,
        Some(v) if v >= (0, 19, 1) => Facing::Input,
        Some(v) if v >= (0, 19, 0) => Facing::FirstUnlessTransposed,
        Some(_) => Facing::First,
    }
}
