//! LoRA and its variants: rank and alpha patterns, rsLoRA, DoRA, biases, embeddings, stacks of experts
//! (huggingface/peft, `src/peft/tuners/lora`).

use ndarray::{Array2, s};

use super::{Tuner, Writing, need, owned, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Full, Kasa, LowRank, Qalora, full::Mode};
use crate::adapter::{Note, Scale, SiteKind};
use crate::error::{Context, Error, Result};
use crate::layout::peft::Reader;
use crate::layout::peft::config::{Config, Patterns};
use crate::layout::peft::keys::{Parts, Place};
use crate::layout::peft::saved::target;
use crate::limits;
use crate::tensor::Tensor;

mod parameter;
mod write;

use parameter::Parameters;

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "LORA",
    roles: &[
        ("lora_A", &["weight"]),
        ("lora_B", &["weight", "bias"]),
        ("lora_embedding_A", &[""]),
        ("lora_embedding_B", &[""]),
        ("lora_magnitude_vector", &[""]),
        ("lora_diag", &[""]),
        ("lora_velora_embed", &["*", ""]),
        ("lora_monteclora_sampler", &["*", ""]),
    ],
    fields: &["use_lora_fa", "lora_B_layout", "merge_weights", "enable_lora"],
    read,
    writing: Some(Writing { fields: FIELDS, write: write::write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "null"),
    ("alpha_pattern", "{}"),
    ("arrow_config", "null"),
    ("bias", "\"none\""),
    ("corda_config", "null"),
    ("ensure_weight_tying", "false"),
    ("eva_config", "null"),
    ("exclude_modules", "null"),
    ("fan_in_fan_out", "false"),
    ("init_lora_weights", "true"),
    ("kasa_config", "null"),
    ("layer_replication", "null"),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("loftq_config", "{}"),
    ("lora_alpha", "8"),
    ("lora_bias", "false"),
    ("lora_dropout", "0.0"),
    ("lora_ga_config", "null"),
    ("megatron_config", "null"),
    ("megatron_core", "\"megatron.core\""),
    ("modules_to_save", "null"),
    ("monteclora_config", "null"),
    ("qalora_group_size", "16"),
    ("r", "8"),
    ("rank_pattern", "{}"),
    ("target_parameters", "null"),
    ("trainable_token_indices", "null"),
    ("use_bdlora", "null"),
    ("use_dora", "false"),
    ("use_qalora", "false"),
    ("use_rslora", "false"),
    ("velora_config", "null"),
];

/// What to do where some modules have what PEFT gives to all or none.
const MIXED_HINT: &str = "PEFT has one setting for the whole adapter; write the modules as two adapters";
/// Inputs that QA-LoRA pools where the config says nothing.
const DEFAULT_GROUP: usize = 16;

/// Initialisations that took their first factors out of the base: the adapter is right only on what was left.
const RESIDUAL_INITS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

fn read(reader: &mut Reader) -> Result<()> {
    refuse_variants(reader.config)?;
    reader.adapter.residual_base = residual_init(reader.config)?;
    reader.adapter.ties_embeddings = reader.config.flag("ensure_weight_tying")?;
    if reader.config.value("megatron_config").is_some() {
        let text = "the adapter of a model split over devices; its tensors are taken as those of the whole model";
        reader.notes.push(Note::info("megatron_config", text));
    }
    let patterns = reader.config.patterns("lora_alpha", 8)?;
    let modules = take_modules(reader);
    let parameters = Parameters::of(reader.config, modules.iter().map(|(place, _)| place))?;
    let mut paths = Vec::new();
    for (place, parts) in modules {
        paths.push(read_module(reader, &patterns, &parameters, place, parts)?);
    }
    patterns.report_idle(paths.iter().map(String::as_str), &mut reader.notes);
    Ok(())
}

fn refuse_variants(config: &Config) -> Result<()> {
    for (field, why) in [
        ("alora_invocation_tokens", "activated LoRA (aLoRA) cannot be merged: it acts only after certain tokens"),
        ("arrow_config", "Arrow cannot be merged: it routes between adapters by the input"),
        ("layer_replication", "layer_replication cannot be merged: the adapted model has more layers than the base"),
        ("enable_lora", "the fused-projection form of PEFT before 0.3 is not read"),
    ] {
        if config.value(field).is_some() {
            return Err(Error::unsupported(why).at_key(field));
        }
    }
    Ok(())
}

fn residual_init(config: &Config) -> Result<Option<String>> {
    let Some(init) = config.value("init_lora_weights").and_then(|v| v.as_str()) else { return Ok(None) };
    Ok(changes_base(init).then(|| init.to_string()))
}

/// Whether this value of `init_lora_weights` took its start out of the base.
fn changes_base(init: &str) -> bool {
    RESIDUAL_INITS.contains(&init) || init.starts_with("pissa_niter")
}

/// Adds what one module's tensors say; returns the name its patterns were matched against.
fn read_module(
    reader: &mut Reader,
    patterns: &Patterns,
    parameters: &Parameters,
    place: Place,
    mut parts: Parts,
) -> Result<String> {
    let (path, _) = &place;
    if parts.contains_key("lora_embedding_A") || parts.contains_key("lora_embedding_B") {
        let a = need(&mut parts, "lora_embedding_A")?;
        let b = need(&mut parts, "lora_embedding_B")?;
        let magnitude = magnitude(reader.config, &mut parts, path.as_str())?;
        require_taken(&parts, TUNER.peft_type)?;
        let delta = plain(patterns, path.as_str(), a, b, reader.adapter.residual_base.is_some())?;
        let target = target(reader, path.as_str());
        target.site = SiteKind::Embedding;
        target.magnitude = magnitude;
        target.weight.push(Delta::LowRank(delta));
        return Ok(path.to_string());
    }
    drop_training_state(reader, &mut parts);
    let key = parts.get("lora_A.weight").map(|p| p.key.clone()).unwrap_or_default();
    let a = need(&mut parts, "lora_A.weight")?;
    let b = need(&mut parts, "lora_B.weight")?;
    for (half, tensor) in [("A", &a), ("B", &b)] {
        if tensor.shape.rank() < 2 {
            return Err(Error::malformed(format!(
                "lora_{half} has shape {}, expected two dimensions or more",
                tensor.shape
            ))
            .at_key(&key)
            .hint("saved from a sharded model without gathering? save the adapter again from the trainer"));
        }
    }
    if let Some(parameter) = parameters.name(&place).at_key(&key)? {
        require_taken(&parts, TUNER.peft_type)?;
        return parameter::read(reader, patterns, &place, &parameter, a, b).at_key(&key);
    }
    read_layer(reader, patterns, path.as_str(), a, b, parts).at_key(&key)
}

fn read_layer(
    reader: &mut Reader,
    patterns: &Patterns,
    path: &str,
    a: Tensor,
    b: Tensor,
    mut parts: Parts,
) -> Result<String> {
    let magnitude = magnitude(reader.config, &mut parts, path)?;
    let bias = take(&mut parts, "lora_B.bias")?;
    let diagonal = diagonal(reader.config, &mut parts)?;
    require_taken(&parts, TUNER.peft_type)?;
    let (a, b) = expand_blocks(reader.config, path, a, b)?;
    let mut delta = plain(patterns, path, a, b, reader.adapter.residual_base.is_some())?;
    let mut path = path.to_string();
    if let Some(outer) = path.strip_suffix(".base_layer.out_proj") {
        // PEFT (0.21, src/peft/tuners/lora/layer.py, MultiheadAttention) adds this update twice, in the forward pass
        // and when it merges. The adapter was trained with it, so we do the same.
        path = format!("{outer}.out_proj");
        delta.scale = Scale::direct(2.0 * delta.factor());
        reader
            .notes
            .push(Note::info(&path, "PEFT applies the output projection of attention twice; so does this merge"));
    }
    let pooled = reader.config.flag("use_qalora")?;
    let group = if pooled { reader.config.integer("qalora_group_size")?.or(Some(DEFAULT_GROUP)) } else { None };
    let factor = delta.factor();
    let fan_in_fan_out = reader.config.flag("fan_in_fan_out")?;
    let lora_bias = reader.config.flag("lora_bias")?;
    if let (Some(_), false) = (&bias, lora_bias) {
        let text = "a bias of the adapter although lora_bias is false; taken as the whole difference of the bias";
        reader.notes.push(Note::info(&path, text));
    }
    let target = target(reader, &path);
    if fan_in_fan_out {
        target.site = SiteKind::FanInFanOut;
    }
    target.magnitude = magnitude;
    target.weight.push(match (diagonal, group) {
        (Some(diagonal), _) => Delta::Kasa(Kasa { factors: delta, diagonal }),
        (None, Some(group)) => Delta::Qalora(Qalora { factors: delta, group }),
        (None, None) => Delta::LowRank(delta),
    });
    if let Some(tensor) = bias {
        let mode = Mode::Add(if lora_bias { factor } else { 1.0 });
        target.bias.push(Delta::Full(Full { tensor, mode }));
    }
    Ok(path)
}

/// Factors of one layer, with the rank the config gives checked against them. Factors taken out of a weight
/// (`from_base`) have no more rank than its smaller side, and keep the scale of the rank that was asked for.
fn plain(patterns: &Patterns, path: &str, a: Tensor, b: Tensor, from_base: bool) -> Result<LowRank> {
    let stored = a.shape.dims().first().copied().unwrap_or(0);
    let wanted = patterns.rank_at(path)?;
    let least = a.shape.dims().get(1).min(b.shape.dims().first());
    let mut scale = patterns.scale_at(path);
    if from_base && stored < wanted && least == Some(&stored) {
        scale = Scale::direct(scale.factor(wanted));
    } else {
        patterns.checked_rank(path, stored, &a.shape)?;
    }
    let delta = LowRank { a, b, scale, experts: None, name: "LoRA" };
    if delta.b.shape.dims().get(1) != Some(&stored) {
        let what = format!("rank of A {} against rank of B {}", delta.a.shape, delta.b.shape);
        return Err(Error::mismatch(what).at_key(path).hint("the two halves may come from different adapters"));
    }
    Ok(delta)
}

fn magnitude(config: &Config, parts: &mut Parts, path: &str) -> Result<Option<Tensor>> {
    let magnitude = take(parts, "lora_magnitude_vector")?;
    match (config.flag("use_dora")?, magnitude) {
        (true, None) => Err(Error::missing("use_dora is set, but the file has no lora_magnitude_vector").at_key(path)),
        (false, Some(_)) => Err(Error::mismatch("the file has a lora_magnitude_vector, but use_dora is not set")
            .at_key(path)
            .hint("PEFT would ignore the magnitude; set use_dora in a copy of the config if it is DoRA")),
        (_, magnitude) => Ok(magnitude),
    }
}

/// KaSA's diagonal, which is there exactly when the config says so.
fn diagonal(config: &Config, parts: &mut Parts) -> Result<Option<Tensor>> {
    let diagonal = take(parts, "lora_diag")?;
    match (config.value("kasa_config").is_some(), &diagonal) {
        (true, None) => Err(Error::missing("kasa_config is set, but the file has no lora_diag")),
        (false, Some(_)) => Err(Error::mismatch("the file has a lora_diag, but kasa_config is not set")
            .hint("PEFT would ignore it; set kasa_config to {} in a copy of the config if it is KaSA")),
        _ => Ok(diagonal),
    }
}

/// Tensors that only steer training.
fn drop_training_state(reader: &mut Reader, parts: &mut Parts) {
    let steering: Vec<String> = parts
        .keys()
        .filter(|role| role.starts_with("lora_velora_embed") || role.starts_with("lora_monteclora_sampler"))
        .cloned()
        .collect();
    for role in steering {
        if let Some(part) = parts.remove(&role) {
            reader.notes.push(Note::info(&part.key, "only steers training; not part of the weight"));
        }
    }
}

/// BD-LoRA's block-diagonal factors, written out as plain ones.
fn expand_blocks(config: &Config, path: &str, a: Tensor, b: Tensor) -> Result<(Tensor, Tensor)> {
    let Some(blocks) = config.value("use_bdlora") else { return Ok((a, b)) };
    let count = blocks.get("nblocks").and_then(serde_json::Value::as_u64).unwrap_or(1).max(1) as usize;
    // PEFT looks for each name anywhere in the path, not for a component of it.
    let listed = |name: &str| {
        let mut names = blocks.get(name).and_then(|v| v.as_array()).into_iter().flatten().filter_map(|v| v.as_str());
        names.any(|n| path.contains(n))
    };
    match (listed("target_modules_bd_a"), listed("target_modules_bd_b")) {
        (true, true) => Err(Error::malformed("matches the block-diagonal names of both A and B").at_key("use_bdlora")),
        (true, false) => Ok((owned(&block_diagonal(&a.to_matrix()?, count)?)?, b)),
        (false, true) => Ok((a, owned(&block_diagonal(&b.to_matrix()?, count)?)?)),
        (false, false) => Ok((a, b)),
    }
}

/// `count` equal bands of rows, moved side by side onto a diagonal.
fn block_diagonal(bands: &Array2<f32>, count: usize) -> Result<Array2<f32>> {
    let (rows, cols) = bands.dim();
    if rows % count != 0 {
        return Err(Error::mismatch(format!("{rows} rows do not fall into {count} blocks")));
    }
    let height = rows / count;
    if cols.checked_mul(count).and_then(|wide| wide.checked_mul(rows)).is_none_or(|n| n > limits::BLOCK_FACTOR) {
        return Err(Error::limit(
            format!("[{rows}, {cols}] written out as {count} blocks"),
            format!("{} elements", limits::BLOCK_FACTOR),
        ));
    }
    let mut out = Array2::zeros((rows, cols * count));
    for i in 0..count {
        let band = i * height..(i + 1) * height;
        out.slice_mut(s![band.clone(), i * cols..(i + 1) * cols]).assign(&bands.slice(s![band, ..]));
    }
    Ok(out)
}
