//! `lora-tool inspect`: what is in a file or folder.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::ReadAs;
use super::unmerge::tensors;
use super::{output, size};
use crate::adapter::Note;
use crate::container::{Pipeline, SafetensorsFile, Sharded};
use crate::error::{Context, Error, Kind, Result, printable};
use crate::kernels::OpenBlas;
use crate::layout::{self, Opened};
use crate::model::provenance::{KEY, MergedAdapter};
use crate::model::{BaseModel, Provenance};
use crate::names::diffusion::{self, Family, Naming};
use crate::ops::inspect::adapter::{self, rank_for};
use crate::ops::inspect::{AdapterSummary, BaseSummary, ComponentSummary, Share, TargetSummary, base};
use crate::tensor::Tensor;

/// Targets shown without `-v`.
const TARGETS_SHOWN: usize = 24;
/// Keys listed of what is not understood, and names of a model's tensors without their numbers.
const KEYS_SHOWN: usize = 1000;
/// Merged adapters shown without `-v`, and hexadecimal digits of the hash of each.
const MERGED_SHOWN: usize = 24;
const SHORT_HASH: usize = 12;
/// Singular values shown a target: the first, and as bars all of them or so many in even steps.
const VALUES_SHOWN: usize = 4;
const BARS_SHOWN: usize = 16;
/// Orders of magnitude that the bars span.
const BARS_SPAN: f64 = 3.0;
/// Shares of the energy for which the number of singular values is told.
const SHARES: [(f64, &str); 2] = [(0.9, "90 %"), (0.99, "99 %")];

/// Show what is in adapters and base models
///
/// For an adapter: its layout and why it was recognised, kinds, ranks, alphas, scales, the norm of each change and
/// what is wrong with it. For a base model: tensors, types and sizes, its fingerprint, and what was merged into it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool inspect my-adapter
  lora-tool inspect my-adapter --spectrum --json
  lora-tool inspect base --keys")]
pub struct Args {
    /// Adapters or base models: folders or files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// List every tensor as it stands in the file
    #[arg(long)]
    keys: bool,
    /// Show the singular values of every change: how many hold 90 % and 99 % of its energy, their profile, the largest
    #[arg(long)]
    spectrum: bool,
    #[command(flatten)]
    read: ReadAs,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let mut documents = Vec::new();
    for path in &args.paths {
        let (text, document) = look(path, args)?;
        if args.json {
            documents.push(document);
        } else {
            output::answer(&text)?;
        }
    }
    match (args.json, documents.len()) {
        (false, _) => Ok(()),
        (true, 1) => output::document(&documents[0]),
        (true, _) => output::document(&Value::Array(documents)),
    }
}

fn look(path: &Path, args: &Args) -> Result<(String, Value)> {
    if args.keys {
        return keys(path, usize::MAX);
    }
    let is_folder = path.is_dir();
    let fault = if is_folder || args.read.from.is_some() { None } else { no_adapter(path)? };
    if args.read.from.is_some() || !is_folder && fault.is_none() || is_folder && is_adapter(path)? {
        let opened = match args.read.open(path, None) {
            Ok(opened) => opened,
            Err(e) => {
                // What cannot be understood can still be listed; the error follows.
                if !args.json
                    && e.kind() != Kind::Io
                    && let Ok((list, _)) = keys(path, KEYS_SHOWN)
                {
                    output::answer(&list)?;
                }
                return Err(e);
            }
        };
        let summary = adapter::summarise(&opened.adapter, &OpenBlas::new()).in_file(path)?;
        return Ok((adapter_text(&opened, &summary, args), adapter_json(&opened, &summary, args)));
    }
    let model = BaseModel::open(path).map_err(|e| fault.unwrap_or(e))?;
    let summary = base::summarise(&model);
    // One of the two: of very many tensors each takes as much memory as all else.
    Ok(match args.json {
        true => (String::new(), base_json(path, &summary)),
        false => (base_text(path, &summary), Value::Null),
    })
}

/// The error of a file that is no adapter. What is wrong with its bytes is so for a model, too.
fn no_adapter(path: &Path) -> Result<Option<Error>> {
    match layout::Source::open(path) {
        Ok(source) => Ok(layout::detect(&source).err().map(|e| e.in_file(path))),
        Err(e) if e.file() == Some(path) => Err(e),
        Err(e) => Ok(Some(e)),
    }
}

/// A folder with an adapter's config, or a file whose content a layout claims.
pub(super) fn is_adapter(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(layout::source::looks_like_adapter(path));
    }
    Ok(layout::Source::open(path).is_ok_and(|source| layout::detect(&source).is_ok()))
}

// Raw keys

fn keys(path: &Path, most: usize) -> Result<(String, Value)> {
    let tensors: Vec<(String, Tensor)> = if path.is_dir() && !layout::source::looks_like_adapter(path) {
        let pipeline = Pipeline::is_in(path).then(|| Pipeline::open(path)).transpose()?;
        let files = pipeline.map_or_else(|| Sharded::open_folder(path), |pipeline| Ok(pipeline.files))?;
        files.tensors().map(|(_, k, t)| (k.clone(), t.clone())).collect()
    } else if path.is_dir() {
        layout::Source::open(path)?.tensors.into_iter().collect()
    } else {
        match layout::Source::open(path) {
            Ok(source) => source.tensors.into_iter().collect(),
            Err(_) => SafetensorsFile::open(path)?.tensors.into_iter().collect(),
        }
    };
    let rows = tensors
        .iter()
        .take(most)
        .map(|(k, t)| vec![k.clone(), t.dtype.to_string(), t.shape.to_string(), t.bytes.len().to_string()])
        .collect();
    let list: Vec<_> = tensors
        .iter()
        .take(most)
        .map(
            |(k, t)| json!({ "key": k, "dtype": t.dtype.to_string(), "shape": t.shape.dims(), "bytes": t.bytes.len() }),
        )
        .collect();
    let mut text = output::table(&["key", "dtype", "shape", "bytes"], &[3], rows);
    if tensors.len() > most {
        text += &format!("\n… {} more; --keys lists them", tensors.len() - most);
    }
    Ok((text, json!({ "path": output::path(path), "keys": list })))
}

// Adapters

fn adapter_text(opened: &Opened, summary: &AdapterSummary, args: &Args) -> String {
    let mut lines = vec![
        printable(&opened.source.path.display().to_string()),
        format!("  layout      {}, because {}", opened.layout, printable(&opened.because)),
        format!("  kind        {}", counted(summary.kinds.iter().map(|(k, n)| (*k, *n)))),
    ];
    for (field, word) in
        [("base_model_name_or_path", "base model"), ("task_type", "task"), ("peft_version", "written by")]
    {
        if let Some(text) = summary.about.get(field) {
            let prefix = if field == "peft_version" { "PEFT " } else { "" };
            lines.push(format!("  {word:<11} {prefix}{}", printable(text)));
        }
    }
    if let Some((family, naming)) = image_model(opened) {
        lines.push(format!("  for         {}, by {naming} names", family.about));
    }
    lines.push(format!("  modules     {}", counted(summary.modules.iter().map(|(k, n)| (k.as_str(), *n)))));
    lines.push(format!("  layers      {}", summary.layers));
    lines.push(format!("  ranks       {}", distinct(summary, |t| t.rank.map(|r| r.to_string()))));
    lines.push(format!("  alphas      {}", distinct(summary, |t| t.alpha.map(number))));
    lines.push(format!("  scales      {}", distinct(summary, |t| t.scale.map(number))));
    lines.push(format!("  tensors     {}", shares(&summary.dtypes)));
    lines.push(format!("  parameters  {}", thousands(summary.total.elements)));
    lines.push(format!("  hash        {}", opened.hash()));
    if let Some(base) = opened.base_fingerprint {
        lines.push(format!("  made for    {base}"));
    }
    lines.push(String::new());
    lines.push(targets_table(summary, args));
    for (path, what) in &summary.problems {
        let place = if path.is_empty() { String::new() } else { format!("{}: ", printable(path)) };
        lines.push(format!("problem: {place}{what}"));
    }
    for note in &opened.notes {
        lines.push(format!("note: {note}"));
    }
    lines.join("\n")
}

/// The family of image models that an adapter is for, and whose names its denoiser has.
fn image_model(opened: &Opened) -> Option<(&'static Family, &'static str)> {
    let spelling = opened.adapter.spelling?;
    let naming = match spelling.naming {
        Naming::Native => "its authors'",
        Naming::Diffusers => "diffusers'",
        Naming::Comfy => "ComfyUI's",
    };
    Some((diffusion::family(spelling.family)?, naming))
}

fn targets_table(summary: &AdapterSummary, args: &Args) -> String {
    let shown = if output::is_verbose() { summary.targets.len() } else { TARGETS_SHOWN };
    let dash = || "–".to_string();
    let rows = summary
        .targets
        .iter()
        .take(shown)
        .map(|t| {
            let mut row = vec![
                t.path.clone(),
                t.kind.to_string(),
                t.shape.map_or_else(dash, |(m, n)| format!("{m} × {n}")),
                t.rank.map_or_else(dash, |r| r.to_string()),
                t.scale.map_or_else(dash, number),
                t.dtype.clone(),
                t.norm().map_or_else(dash, |n| format!("{n:.4}")),
                t.stable_rank().map_or_else(dash, |r| format!("{r:.2}")),
            ];
            if args.spectrum {
                row.extend(spectrum(t));
            }
            row
        })
        .collect();
    let mut head = vec!["module", "kind", "shape", "rank", "scale", "dtype", "norm", "stable rank"];
    let mut right = vec![3, 4, 6, 7];
    if args.spectrum {
        right.extend(head.len()..head.len() + SHARES.len());
        head.extend(SHARES.map(|(_, word)| word));
        head.extend(["profile", "largest"]);
    }
    let mut text = output::table(&head, &right, rows);
    if summary.targets.len() > shown {
        text += &format!("\n… {} more; -v shows them", summary.targets.len() - shown);
    }
    text
}

/// How many singular values hold so much of the energy, all of them as bars, and the largest.
fn spectrum(target: &TargetSummary) -> Vec<String> {
    let values = target.singular_values.as_deref().unwrap_or(&[]);
    let count = |(share, _)| if values.is_empty() { "–".to_string() } else { rank_for(values, share).to_string() };
    let mut words: Vec<_> = values.iter().take(VALUES_SHOWN).map(|s| format!("{s:.3e}")).collect();
    if values.len() > VALUES_SHOWN {
        words.push("…".to_string());
    }
    let mut row: Vec<_> = SHARES.into_iter().map(count).collect();
    row.extend([profile(values), words.join(" ")]);
    row
}

/// Singular values as bars of eight heights over three orders of magnitude, the largest full.
fn profile(values: &[f32]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let Some(&largest) = values.first() else { return String::new() };
    let shown = values.len().min(BARS_SHOWN);
    let bar = |k: usize| {
        let value = values[if shown > 1 { k * (values.len() - 1) / (shown - 1) } else { 0 }];
        let height = 1.0 + (f64::from(value) / f64::from(largest)).log10() / BARS_SPAN;
        BARS[(height * 7.0).round().clamp(0.0, 7.0) as usize]
    };
    (0..shown).map(bar).collect()
}

fn adapter_json(opened: &Opened, summary: &AdapterSummary, args: &Args) -> Value {
    let targets: Vec<_> = summary
        .targets
        .iter()
        .map(|t| {
            let mut value = json!({
                "module": t.path, "kind": t.kind, "shape": t.shape, "rank": t.rank, "alpha": t.alpha, "scale": t.scale,
                "dtype": t.dtype, "parameters": t.elements, "norm": t.norm(), "stable_rank": t.stable_rank(),
            });
            if args.spectrum {
                value["singular_values"] = json!(t.singular_values);
                let ranks = |values: &Vec<f32>| {
                    SHARES.map(|(share, _)| (share.to_string(), json!(rank_for(values, share)))).into_iter().collect()
                };
                value["energy_ranks"] = t.singular_values.as_ref().map_or(Value::Null, |v| Value::Object(ranks(v)));
            }
            value
        })
        .collect();
    let problems: Vec<_> = summary.problems.iter().map(|(p, w)| json!({ "module": p, "what": w })).collect();
    json!({
        "path": output::path(&opened.source.path), "type": "adapter", "layout": opened.layout, "because": opened.because,
        "image_model": image_model(opened).map(|(f, naming)| json!({ "family": f.name, "about": f.about, "names": naming })),
        "declared": summary.declared, "kinds": summary.kinds, "about": summary.about, "modules": summary.modules,
        "layers": summary.layers, "parameters": summary.total.elements, "bytes": summary.total.bytes,
        "hash": opened.hash().to_string(), "base_fingerprint": opened.base_fingerprint.map(|hash| hash.to_string()),
        "dtypes": shares_json(&summary.dtypes), "targets": targets, "problems": problems,
        "notes": opened.notes.iter().map(Note::to_string).collect::<Vec<_>>(),
    })
}

// Base models

fn base_text(path: &Path, summary: &BaseSummary) -> String {
    let mut lines = vec![printable(&path.display().to_string())];
    if summary.components.is_empty() {
        let types = printable(&summary.model_types.join(", "));
        lines.push(format!("  base model  {}", if types.is_empty() { "no config" } else { &types }));
    } else {
        lines.push(format!("  pipeline    {}", printable(summary.pipeline.as_deref().unwrap_or("of no class"))));
        lines.extend(summary.components.iter().map(component));
    }
    lines.extend([
        format!("  files       {}", summary.files),
        format!("  layers      {}", summary.layers),
        format!("  tensors     {}", shares(&summary.dtypes)),
        format!("  parameters  {}", thousands(summary.total.elements)),
    ]);
    if summary.components.is_empty() {
        lines.push(format!("  embeddings  {}", embeddings(summary)));
    }
    if let Some(scheme) = &summary.quantisation {
        lines.push(format!("  quantised   {}", printable(scheme)));
    }
    if let (weights @ 1.., scaled) = summary.eight_bit {
        let with = if scaled > 0 { format!(", {scaled} with scales") } else { String::new() };
        lines.push(format!("  8 bits      {weights} weights{with}"));
    }
    for (key, value) in summary.metadata.iter().filter(|(key, _)| key != KEY || summary.provenance.is_none()) {
        lines.push(format!("  metadata    {} = {}", printable(key), printable(value)));
    }
    lines.push(format!("  fingerprint {}", summary.fingerprint));
    if let Some(provenance) = &summary.provenance {
        lines.extend(provenance_lines(provenance));
    }
    lines.push(String::new());
    let rows = summary
        .groups
        .iter()
        .take(KEYS_SHOWN)
        .map(|(name, g)| vec![name.clone(), g.count.to_string(), g.dtype.clone(), g.shape.clone()])
        .collect();
    lines.push(output::table(&["tensor (N: a number)", "count", "dtype", "shape"], &[1], rows));
    if summary.groups.len() > KEYS_SHOWN {
        lines.push(format!("… {} more; --json has all of them", summary.groups.len() - KEYS_SHOWN));
    }
    lines.extend(summary.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

/// A component of a pipeline in a line.
fn component(of: &ComponentSummary) -> String {
    let held = of.tensors.map(|s| format!(": {} ({})", tensors(s.tensors), size::show(s.bytes)));
    format!("  component   {} {}{}", printable(&of.name), printable(&of.class), held.unwrap_or_default())
}

/// What was merged in, the newest last.
fn provenance_lines(provenance: &Provenance) -> Vec<String> {
    let all = &provenance.merged;
    let left_out = if output::is_verbose() { 0 } else { all.len().saturating_sub(MERGED_SHOWN) };
    let mut lines = vec![format!("  merged into {}", provenance.base)];
    if left_out > 0 {
        lines.push(format!("  merged      … {left_out} earlier ones; -v shows them"));
    }
    let short = |m: &MergedAdapter| m.hash.to_string()[..SHORT_HASH].to_string();
    let one = |m: &MergedAdapter| format!("  merged      {} at {} ({})", printable(&m.name), m.strength, short(m));
    lines.extend(all.iter().skip(left_out).map(one));
    lines
}

fn embeddings(summary: &BaseSummary) -> String {
    let e = &summary.embeddings;
    let input = e.input.as_deref().unwrap_or("none found");
    match (&e.output, e.tied) {
        (Some(output), true) => format!("{input} and {output}, tied by the config"),
        (Some(output), false) => format!("{input} and {output}"),
        (None, true) => format!("{input}, tied"),
        (None, false) => input.to_string(),
    }
}

fn base_json(path: &Path, summary: &BaseSummary) -> Value {
    let groups: Vec<_> = summary
        .groups
        .iter()
        .map(|(name, g)| json!({ "name": name, "count": g.count, "dtype": g.dtype, "shape": g.shape }))
        .collect();
    let components: Vec<_> = summary
        .components
        .iter()
        .map(|c| {
            let (tensors, bytes) = (c.tensors.map(|s| s.tensors), c.tensors.map(|s| s.bytes));
            json!({ "name": c.name, "class": c.class, "tensors": tensors, "bytes": bytes })
        })
        .collect();
    json!({
        "path": output::path(path), "type": "base", "pipeline": summary.pipeline, "components": components, "model_types": summary.model_types, "files": summary.files,
        "layers": summary.layers, "parameters": summary.total.elements, "bytes": summary.total.bytes,
        "dtypes": shares_json(&summary.dtypes), "quantisation": summary.quantisation,
        "eight_bit": { "weights": summary.eight_bit.0, "scaled": summary.eight_bit.1 },
        "embeddings": { "input": summary.embeddings.input, "output": summary.embeddings.output, "tied": summary.embeddings.tied },
        "metadata": summary.metadata.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "fingerprint": summary.fingerprint.to_string(), "provenance": summary.provenance.as_ref().map(Provenance::to_json),
        "groups": groups,
        "notes": summary.notes.iter().map(Note::to_string).collect::<Vec<_>>(),
    })
}

// Words for numbers

type Shares = std::collections::BTreeMap<String, Share>;

fn shares(all: &Shares) -> String {
    let part = |(dtype, s): (&String, &Share)| format!("{} {dtype} ({})", s.tensors, size::show(s.bytes));
    all.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn shares_json(all: &Shares) -> Value {
    let part = |(dtype, s): (&String, &Share)| {
        (dtype.clone(), json!({ "tensors": s.tensors, "elements": s.elements, "bytes": s.bytes }))
    };
    Value::Object(all.iter().map(part).collect())
}

fn counted<'a>(all: impl Iterator<Item = (&'a str, usize)>) -> String {
    all.map(|(word, n)| format!("{} × {n}", printable(word))).collect::<Vec<_>>().join(", ")
}

/// The different values of a field, most frequent first.
fn distinct(summary: &AdapterSummary, field: impl Fn(&TargetSummary) -> Option<String>) -> String {
    let mut counts: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for value in summary.targets.iter().filter_map(field) {
        *counts.entry(value).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    match counts.as_slice() {
        [] => "–".to_string(),
        [(one, _)] => one.clone(),
        several => counted(several.iter().map(|(v, n)| (v.as_str(), *n))),
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}
