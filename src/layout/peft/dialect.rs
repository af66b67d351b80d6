//! What other programs write under the names of PEFT's files, made PEFT's before it is read. Each repair is a note.
//!
//! Sources: thinking-machines-lab/tinker-cookbook, `tinker_cookbook/weights/_adapter.py` (stacks of experts, the name of the
//! output, placeholders); unslothai/unsloth-zoo, `saving_utils.py` (experts of gpt-oss one by one).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::adapter::{Adapter, Delta, Note, SiteKind, Target, experts};
use crate::error::{Context, Error, Result};
use crate::layout::Source;
use crate::names::ModulePath;
use crate::tensor::{StateDict, Tensor, rearrange};

/// An adapter's files as PEFT would have them.
pub struct Repaired {
    /// Its tensors.
    pub tensors: StateDict,
    /// Its config.
    pub config: Map<String, Value>,
    /// What was done.
    pub notes: Vec<Note>,
}

const TYPE: &str = "peft_type";
const HALVES: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// Tinker's name of the output layer, and transformers'.
const OUTPUT: (&str, &str) = ("unembed_tokens", "lm_head");
/// Names of an expert's matrices where they are numbered: gate, up, down.
const NUMBERED: [&str; 3] = ["w1", "w3", "w2"];
const NAMED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
/// Unsloth's names of the experts of gpt-oss in 4 bits, one module each, and the parameters that hold all of them.
const SINGLE_EXPERTS: [(&str, &str); 2] = [("gate_up_projs", "gate_up_proj"), ("down_projs", "down_proj")];

/// Whether a config without a type is that of a LoRA all the same.
pub fn lacks_type(config: &Map<String, Value>) -> bool {
    !config.contains_key(TYPE) && config.get("r").is_some_and(Value::is_u64) && config.contains_key("lora_alpha")
}

/// The files of `source`, repaired; its config is `raw`, or one made of what is known where there is none.
pub fn repair(source: &Source) -> Result<Repaired> {
    let mut notes = Vec::new();
    let mut config = match &source.config {
        Some((_, raw)) => raw.clone(),
        None => made(source, &mut notes)?,
    };
    if lacks_type(&config) {
        config.insert(TYPE.to_string(), Value::from("LORA"));
        notes.push(Note::info(TYPE, "not said; taken for LORA, since r and lora_alpha are"));
    }
    let mut tensors = source.tensors.clone();
    if config.get(TYPE).and_then(Value::as_str) == Some("LORA") {
        tensors = with_output_named(tensors, &mut notes)?;
        tensors = with_experts_apart(tensors, source, &mut notes)?;
        if tensors.keys().ne(source.tensors.keys()) {
            config.remove("target_modules"); // it names what the modules are no longer called
        }
    }
    Ok(Repaired { tensors, config, notes })
}

/// The config of tensors that have none, where alpha is given: ranks are those of the tensors.
fn made(source: &Source, notes: &mut Vec<Note>) -> Result<Map<String, Value>> {
    let Some(alpha) = source.given.alpha else {
        return Err(Error::missing("no adapter_config.json beside the tensors, and alpha is only there")
            .in_file(&source.tensor_file)
            .hint("put the adapter's config into the same folder, or give alpha with --assume-alpha"));
    };
    let rank = |(key, tensor): (&String, &Tensor)| {
        let module = key.strip_suffix(HALVES[0])?;
        Some((module.to_string(), tensor.shape.dims().first().copied()?))
    };
    let ranks: Vec<(String, usize)> = source.tensors.iter().filter_map(rank).collect();
    let largest = ranks.iter().map(|(_, r)| *r).max().unwrap_or(0);
    if ranks.iter().any(|(_, r)| *r != largest) {
        let what = "no adapter_config.json beside tensors of several ranks, which would say what alpha means for each";
        return Err(Error::missing(what).in_file(&source.tensor_file));
    }
    let dora = source.tensors.keys().any(|key| key.contains(".lora_magnitude_vector"));
    notes.push(Note::lossy(
        "adapter_config.json",
        format!("not there; taken for a LoRA of rank {largest} and alpha {alpha}, without rank-stabilised scaling"),
    ));
    let fields = [
        (TYPE, Value::from("LORA")),
        ("r", Value::from(largest)),
        ("lora_alpha", Value::from(alpha)),
        ("use_dora", Value::from(dora)),
    ];
    Ok(fields.map(|(name, value)| (name.to_string(), value)).into_iter().collect())
}

/// `model.unembed_tokens` is `lm_head`.
fn with_output_named(tensors: StateDict, notes: &mut Vec<Note>) -> Result<StateDict> {
    let is_other = |key: &str| key.split('.').any(|c| c == OUTPUT.0);
    if !tensors.keys().any(|key| is_other(key)) {
        return Ok(tensors);
    }
    let mut out = StateDict::new();
    for (key, tensor) in tensors {
        let new = if is_other(&key) {
            let inner = format!("model.{}", OUTPUT.0);
            key.replacen(&inner, OUTPUT.1, 1).replacen(OUTPUT.0, OUTPUT.1, 1)
        } else {
            key.clone()
        };
        if out.insert(new, tensor).is_some() {
            return Err(Error::malformed(format!("means the same as `{}`", OUTPUT.1)).at_key(key));
        }
    }
    notes.push(Note::info(OUTPUT.0, "the output layer, called lm_head by transformers"));
    Ok(out)
}

/// Which tensor of a stack of experts a key names.
struct Stack<'a> {
    /// What stands before the number of an expert.
    module: &'a str,
    /// Name of the matrix.
    name: &'a str,
    half: usize,
}

fn stack<'a>(key: &'a str, tensor: &Tensor) -> Option<Stack<'a>> {
    let half = HALVES.iter().position(|half| key.ends_with(half))?;
    let (module, name) = key.strip_suffix(HALVES[half])?.rsplit_once('.')?;
    let holds = module == "experts" || module.ends_with(".experts");
    let is_one = NUMBERED.contains(&name) || NAMED.contains(&name);
    (holds && is_one && tensor.shape.rank() == 3).then_some(Stack { module, name, half })
}

/// Factors of `experts.w1` and its like, one stack for all experts, as those of each expert.
fn with_experts_apart(tensors: StateDict, source: &Source, notes: &mut Vec<Note>) -> Result<StateDict> {
    let mut pairs: BTreeMap<(String, String), [Option<Tensor>; 2]> = BTreeMap::new();
    for (key, tensor) in &tensors {
        if let Some(found) = stack(key, tensor) {
            let pair = pairs.entry((found.module.to_string(), found.name.to_string())).or_default();
            pair[found.half] = Some(tensor.clone());
        }
    }
    if pairs.is_empty() {
        return Ok(tensors);
    }
    // Where the stacks of one matrix are all empty, the model has no gate, and the first matrix is what it would gate.
    let is_empty = |t: &Option<Tensor>| t.as_ref().is_some_and(|t| t.elements() == 0);
    let mut ups = pairs.iter().filter(|((_, name), _)| name == NUMBERED[1]).peekable();
    let ungated = ups.peek().is_some() && ups.all(|(_, pair)| pair.iter().all(is_empty));
    let mut out = StateDict::new();
    let (mut modules, mut placeholders, mut shared) = (0, 0, 0);
    for (key, tensor) in &tensors {
        let Some(found) = stack(key, tensor) else {
            out.insert(key.clone(), tensor.clone());
            continue;
        };
        let pair = pairs.get(&(found.module.to_string(), found.name.to_string()));
        let Some([Some(a), Some(b)]) = pair else {
            return Err(Error::missing("one half of a stack of experts without the other").at_key(key));
        };
        if a.elements() == 0 && b.elements() == 0 {
            placeholders += 1;
            continue;
        }
        let count = count(a, b, source).at_key(key)?;
        let name = called(found.module, found.name, ungated);
        let own = tensor.shape.dims()[0];
        shared += usize::from(own == 1 && count > 1);
        for expert in 0..count {
            let matrix = rearrange::slice(tensor, if own == 1 { 0 } else { expert }).at_key(key)?;
            out.insert(format!("{}.{expert}.{name}{}", found.module, HALVES[found.half]), matrix);
        }
        modules += if found.half == 0 { count } else { 0 };
    }
    let mut text = format!("stacks of experts, taken apart into {modules} modules of one expert");
    if shared > 0 {
        text += &format!("; {shared} factors are shared by all experts of a layer");
    }
    if ungated {
        text += "; the model has no gate";
    }
    notes.push(Note::info("experts", text));
    if placeholders > 0 {
        notes.push(Note::info("experts", format!("{placeholders} empty placeholders of absent matrices left out")));
    }
    Ok(out)
}

/// Number of experts: that of either factor, where not both are shared by all.
fn count(a: &Tensor, b: &Tensor, source: &Source) -> Result<usize> {
    match (a.shape.dims()[0], b.shape.dims()[0]) {
        (1, 1) => source.facts().experts.ok_or_else(|| {
            Error::missing("one pair of factors for all experts, whose number is not known")
                .hint("--base names the base model, whose config says it")
        }),
        (n, 1) | (1, n) => Ok(n),
        (n, m) if n == m => Ok(n),
        (n, m) => Err(Error::mismatch(format!("factors of {n} experts beside factors of {m}"))),
    }
}

/// The name of the matrix in transformers' models.
fn called<'a>(module: &str, name: &'a str, ungated: bool) -> &'a str {
    let Some(at) = NUMBERED.iter().position(|n| *n == name) else { return name };
    match at {
        _ if module.contains("block_sparse_moe") => name, // Mixtral has these names itself
        0 if ungated => NAMED[1],
        _ => NAMED[at],
    }
}

/// Experts that are modules of their own where the model has one parameter for all, put together again.
pub fn gather_experts(adapter: &mut Adapter, known: Option<usize>) -> Result<Vec<Note>> {
    let mut stacks: BTreeMap<String, BTreeMap<usize, ModulePath>> = BTreeMap::new();
    for path in adapter.targets.keys() {
        let Some((rest, number)) = path.as_str().rsplit_once('.') else { continue };
        let Some((module, name)) = rest.rsplit_once('.') else { continue };
        let single = SINGLE_EXPERTS.iter().find(|(single, _)| *single == name && module.ends_with("experts"));
        if let (Some((_, parameter)), Ok(number)) = (single, number.parse()) {
            stacks.entry(format!("{module}.{parameter}")).or_default().insert(number, path.clone());
        }
    }
    if stacks.is_empty() {
        return Ok(Vec::new());
    }
    let seen = stacks.values().filter_map(|s| s.keys().last()).max().map_or(0, |n| n + 1);
    let count = known.unwrap_or(seen);
    let mut grown = 0;
    for (path, numbers) in &stacks {
        let mut all = vec![None; count];
        for (number, single) in numbers {
            let target = adapter.targets.remove(single).unwrap_or_default();
            let place = all.get_mut(*number).ok_or_else(|| {
                Error::mismatch(format!("expert {number}, and the base has {count}")).at_key(single.as_str())
            })?;
            match target.weight.as_slice() {
                [Delta::LowRank(d)] if target.magnitude.is_none() && target.bias.is_empty() => *place = Some(d.clone()),
                _ => return Err(Error::unsupported(format!("{} of one expert", target.kind())).at_key(single.as_str())),
            }
        }
        grown += all.iter().filter(|expert| expert.is_none()).count();
        let parts: Vec<_> = all.iter().map(Option::as_ref).collect();
        let factors = experts::packed(&parts).at_key(path)?;
        let target = Target { weight: vec![Delta::LowRank(factors)], site: SiteKind::Parameter, ..Target::default() };
        adapter.targets.insert(path.as_str().into(), target);
    }
    let mut text = format!("{} parameters of {count} experts, put together from modules of one expert", stacks.len());
    if grown > 0 {
        text += &format!("; zeros for {grown} that are not adapted");
    }
    let note = if known.is_some() { Note::info("experts", text) } else { Note::lossy("experts", text) };
    Ok(vec![note])
}
