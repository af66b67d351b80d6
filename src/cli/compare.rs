//! `lora-tool compare`: how far two adapters, or two models, are apart.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{ReadAs, adapter_and_strength};
use super::inspect::is_adapter;
use super::loaded::open_finite;
use super::progress::Bar;
use super::signals::Signals;
use super::{output, size};
use crate::adapter::Note;
use crate::container;
use crate::error::{Error, Kind, Result, printable};
use crate::kernels::OpenBlas;
use crate::layout::Opened;
use crate::limits;
use crate::model::BaseModel;
use crate::ops::compare::elements::CLASSES;
use crate::ops::compare::{self, Adapters, Apart, Beyond, Differing, Form, Models, Module, Tolerance, Unlike, models};
use crate::ops::merge::{Applied, Options};
use crate::stream::{Limits, Progress};

/// Rows of a table without `-v`.
const SHOWN: usize = 20;
/// Names in a list without `-v`.
const NAMES_SHOWN: usize = 5;

/// Show how far two adapters, or two models, are apart
///
/// Adapters: for each module the size of both changes, of their difference, the cosine of the angle between them and how
/// far the spaces agree in which they lie, from the factors where there are factors. Models: tensors that are in one
/// only, of another type or shape, or with other values, and how far these are apart in units in the last place.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool compare my-adapter its-copy --tolerance 1e-6
  lora-tool compare my-adapter@0.5 other-adapter --json
  lora-tool compare dora lora --base Llama-3.1-8B
  lora-tool compare merged expected.safetensors --tolerance 1ulp")]
pub struct Args {
    /// An adapter, with an optional strength behind an @, or a model: a folder or a file
    #[arg(value_name = "A[@STRENGTH]")]
    first: PathBuf,
    /// What it is compared with: the same sort of thing
    #[arg(value_name = "B[@STRENGTH]")]
    second: PathBuf,
    /// Fail if they are further apart: a relative difference, for models also a number of ulps (2ulp); 0: the same
    #[arg(long, value_name = "X", value_parser = tolerance)]
    tolerance: Option<Tolerance>,
    /// The model both adapters are for: compares what they change in its weights, tensor by tensor
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// With --base: leave out modules that match nothing in it
    #[arg(long, requires = "base")]
    allow_unmatched: bool,
    #[command(flatten)]
    read: ReadAs,
    /// Layout of the second adapter
    #[arg(long, value_name = "LAYOUT")]
    from_b: Option<String>,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=limits::THREADS), help_heading = "Machine")]
    threads: Option<u16>,
    /// Working memory
    #[arg(long, value_name = "SIZE", default_value = "256MB", value_parser = size::parse, help_heading = "Machine")]
    memory: u64,
}

impl Args {
    fn limits(&self) -> Limits {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Limits { threads: self.threads.map_or_else(cores, usize::from), memory: self.memory }
    }
}

fn tolerance(text: &str) -> std::result::Result<Tolerance, String> {
    if let Some(number) = text.strip_suffix("ulps").or_else(|| text.strip_suffix("ulp")) {
        let number = number.trim_end().parse().map_err(|_| "expected a whole number of ulps".to_string())?;
        return Ok(Tolerance::Ulps(number));
    }
    match text.parse::<f64>() {
        Ok(number) if number >= 0.0 && number.is_finite() => Ok(Tolerance::Relative(number)),
        _ => Err("expected a number that is not negative, or a number of ulps as in 1ulp".to_string()),
    }
}

/// What stands in one of the two places.
struct Given {
    path: PathBuf,
    strength: f64,
    is_adapter: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let first = given(&args.first, args.read.from.as_deref())?;
    let second = given(&args.second, args.from_b.as_deref())?;
    match (first.is_adapter, second.is_adapter) {
        (true, true) => of_adapters(args, &first, &second),
        (false, false) => of_models(args, &first, &second),
        (one, _) => {
            let model = if one { &second.path } else { &first.path };
            BaseModel::open(model)?;
            let word = |given: &Given| if given.is_adapter { "an adapter" } else { "a model" };
            let what = format!(
                "this is {}, and {} is {}; expected two adapters or two models",
                word(&first),
                second.path.display(),
                word(&second)
            );
            let hint = format!(
                "`lora-tool inspect {}` shows what is in it; an adapter file needs its config beside it",
                model.display()
            );
            Err(Error::new(Kind::Usage, what).in_file(&first.path).hint(hint))
        }
    }
}

fn given(argument: &Path, from: Option<&str>) -> Result<Given> {
    let (path, strength) = adapter_and_strength(argument, 1.0)?;
    std::fs::metadata(&path).map_err(|e| container::cannot_open(&path, e))?;
    let is_adapter = from.is_some() || is_adapter(&path)?;
    if !is_adapter && path != argument {
        let what = "a strength behind a model, expected one behind adapters only";
        return Err(Error::new(Kind::Usage, what).in_file(argument));
    }
    Ok(Given { path, strength, is_adapter })
}

/// The error of a comparison that lies beyond the tolerance; the answer has been given.
fn judge(beyond: Option<Beyond>, first: &Given, second: &Given, tolerance: Option<Tolerance>) -> Result<()> {
    let Some(Beyond { key, what }) = beyond else { return Ok(()) };
    let most = match tolerance {
        Some(Tolerance::Ulps(most)) => format!("{most} ulp"),
        Some(Tolerance::Relative(most)) => format!("{most}"),
        None => return Ok(()),
    };
    let what = format!("{what}, compared with {} at a tolerance of {most}", first.path.display());
    let error = Error::new(Kind::Differs, what).in_file(&second.path);
    Err(if key.is_empty() { error } else { error.at_key(key) })
}

/// A comparison that a signal may end.
struct Unseen(Signals);

impl Progress for Unseen {
    fn advance(&self, _bytes: u64) {}

    fn stop(&self) -> i32 {
        self.0.arrived()
    }
}

// Adapters

fn of_adapters(args: &Args, first: &Given, second: &Given) -> Result<()> {
    if let Some(Tolerance::Ulps(_)) = args.tolerance {
        let what = "--tolerance in ulps is for models; for adapters, expected a relative difference";
        return Err(Error::new(Kind::Usage, what));
    }
    let signals = Signals::listen()?;
    let base = args.base.as_deref().map(BaseModel::open).transpose()?;
    let read_second = ReadAs { from: args.from_b.clone(), ..args.read };
    let one = open_finite(&first.path, &args.read, base.as_ref())?;
    let two = open_finite(&second.path, &read_second, base.as_ref())?;
    let options = Options { allow_unmatched: args.allow_unmatched, ..Options::default() };
    let kernels = OpenBlas::new();
    let mut found = compare::adapters::compare(
        &applied(first, &one),
        &applied(second, &two),
        base.as_ref().map(|base| (base, &options)),
        args.limits(),
        &kernels,
        &Unseen(signals),
    )
    .map_err(|e| match e.file() {
        None => e.in_file(&first.path).with("the other", &second.path),
        Some(_) => e,
    })?;
    found.notes.splice(0..0, one.notes.iter().chain(&two.notes).cloned());
    output::notes(&found.notes);
    if base.is_none() && found.counts().0 == 0 {
        output::warn("no module in both; --base BASE matches them by the tensors they change");
    }
    let beyond = args.tolerance.and_then(|tolerance| found.beyond(tolerance));
    if args.json {
        let mut document = adapters_json(first, second, &found);
        judged(&mut document, args.tolerance, beyond.as_ref());
        output::document(&document)?;
    } else {
        output::answer(&adapters_text((first, &one), (second, &two), &found))?;
    }
    judge(beyond, first, second, args.tolerance)
}

fn applied<'a>(given: &Given, opened: &'a Opened) -> Applied<'a> {
    Applied {
        label: given.path.display().to_string(),
        strength: given.strength,
        adapter: &opened.adapter,
        identity: None,
    }
}

fn adapters_text(first: (&Given, &Opened), second: (&Given, &Opened), found: &Adapters) -> String {
    let line = |word: &str, (given, opened): (&Given, &Opened)| {
        let strength = if given.strength == 1.0 { String::new() } else { format!(" at strength {}", given.strength) };
        let count = opened.adapter.targets.len();
        format!("{word}  {}{strength}: {count} modules", printable(&given.path.display().to_string()))
    };
    let (both, only_first, only_second) = found.counts();
    let mut lines = vec![
        line("first ", first),
        line("second", second),
        format!("changes {both} in both, {only_first} in the first only, {only_second} in the second only"),
        String::new(),
    ];
    let shown = if output::is_verbose() { found.modules.len() } else { SHOWN };
    let mut rows: Vec<_> = found.modules.iter().take(shown).map(module_row).collect();
    rows.push(total_row(found));
    lines.push(output::table(
        &["module", "kind", "norm 1", "norm 2", "difference", "cosine", "left", "right"],
        &[2, 3, 4, 5, 6, 7],
        rows,
    ));
    if found.modules.len() > shown {
        lines.push(format!("… {} more; -v shows them", found.modules.len() - shown));
    }
    let same = found.unsized_modules();
    if same > 0 {
        lines.push(format!("{same} the same in both, of a size that only the base tells: not in the sums"));
    }
    lines.join("\n")
}

fn total_row(found: &Adapters) -> Vec<String> {
    if found.unsized_modules() == found.modules.len() {
        // No size is known, and no difference is there.
        return ["all", "", "–", "–", "0"].map(str::to_string).to_vec();
    }
    let total = found.total;
    let (first, second) = (number(total.first.sqrt()), number(total.second.sqrt()));
    vec!["all".to_string(), String::new(), first, second, number(total.relative()), fixed(total.cosine())]
}

fn module_row(module: &Module) -> Vec<String> {
    let kind = match (module.first, module.second) {
        (Some(one), Some(two)) if one == two => one.to_string(),
        (one, two) => format!("{} / {}", one.unwrap_or("–"), two.unwrap_or("–")),
    };
    let norm = |here: Option<&str>, square: Option<f64>| match (here, square) {
        (Some(_), Some(square)) => number(square.sqrt()),
        _ => "–".to_string(),
    };
    vec![
        module.name.clone(),
        kind,
        norm(module.first, module.sums.map(|s| s.first)),
        norm(module.second, module.sums.map(|s| s.second)),
        number(module.relative()),
        fixed(module.sums.and_then(|s| s.cosine())),
        fixed(module.overlap.and_then(|o| o.left_share())),
        fixed(module.overlap.and_then(|o| o.right_share())),
    ]
}

fn adapters_json(first: &Given, second: &Given, found: &Adapters) -> Value {
    let side = |given: &Given| json!({ "path": output::path(&given.path), "strength": given.strength });
    let modules: Vec<_> = found
        .modules
        .iter()
        .map(|m| {
            json!({
                "module": m.name, "kinds": [m.first, m.second],
                "norms": m.sums.map(|s| [s.first.sqrt(), s.second.sqrt()]),
                "difference": m.sums.map_or(0.0, |s| s.difference.sqrt()), "relative_difference": m.relative(),
                "cosine": m.sums.and_then(|s| s.cosine()),
                "left_overlap": m.overlap.and_then(|o| o.left_share()),
                "right_overlap": m.overlap.and_then(|o| o.right_share()),
            })
        })
        .collect();
    let (both, only_first, only_second) = found.counts();
    let total = found.total;
    json!({
        "type": "adapters", "first": side(first), "second": side(second),
        "in_both": both, "only_in_first": only_first, "only_in_second": only_second,
        "norms": [total.first.sqrt(), total.second.sqrt()], "difference": total.difference.sqrt(),
        "relative_difference": total.relative(), "cosine": total.cosine(), "modules": modules,
        "notes": found.notes.iter().map(Note::to_string).collect::<Vec<_>>(),
    })
}

// Models

fn of_models(args: &Args, first: &Given, second: &Given) -> Result<()> {
    if args.base.is_some() {
        return Err(Error::new(Kind::Usage, "--base is for adapters, and these are models").in_file(&first.path));
    }
    let signals = Signals::listen()?;
    let (one, two) = (BaseModel::open(&first.path)?, BaseModel::open(&second.path)?);
    let bar = Bar::new(one.files.tensors().map(|(.., t)| t.bytes.len() as u64).sum(), signals);
    let found = models::compare(&one, &two, args.limits().threads, &bar);
    bar.finish();
    let found = found?;
    let beyond = args.tolerance.and_then(|tolerance| found.beyond(tolerance));
    if args.json {
        let mut document = models_json(first, second, &found);
        judged(&mut document, args.tolerance, beyond.as_ref());
        output::document(&document)?;
    } else {
        output::answer(&models_text(first, second, &found))?;
    }
    judge(beyond, first, second, args.tolerance)
}

fn models_text(first: &Given, second: &Given, found: &Models) -> String {
    let line = |word: &str, given: &Given, tensors: usize, bytes: u64| {
        let path = printable(&given.path.display().to_string());
        format!("{word}  {path}: {tensors} tensors, {}", size::show(bytes))
    };
    let mut lines = vec![
        line("first ", first, found.common + found.only_first.len(), found.bytes.0),
        line("second", second, found.common + found.only_second.len(), found.bytes.1),
    ];
    if found.is_same() {
        lines.push(format!("the same {} tensors, bit for bit", found.common));
        return lines.join("\n");
    }
    lines.push(format!(
        "tensors {} in both: {} equal, {} with other values, {} of another type or shape",
        found.common,
        found.equal(),
        found.differing.len(),
        found.unlike.len()
    ));
    for (names, which) in [(&found.only_first, "first"), (&found.only_second, "second")] {
        if !names.is_empty() {
            lines.push(format!("only in the {which}: {}", listed(names)));
        }
    }
    if !found.unlike.is_empty() {
        lines.push(String::new());
        lines.push(cut_table(&["tensor", "first", "second", "difference"], &[3], &found.unlike, unlike_row));
    }
    if !found.differing.is_empty() {
        lines.push(String::new());
        let head = ["tensor", "dtype", "shape", "differing", "ulps", "difference", "largest"];
        lines.push(cut_table(&head, &[3, 4, 5, 6], &found.differing, differing_row));
        lines.push(String::new());
        lines.push(totals_text(&found.total));
    }
    lines.join("\n")
}

fn cut_table<T>(head: &[&str], right: &[usize], all: &[T], row: impl Fn(&T) -> Vec<String>) -> String {
    let shown = if output::is_verbose() { all.len() } else { SHOWN };
    let mut text = output::table(head, right, all.iter().take(shown).map(row).collect());
    if all.len() > shown {
        text += &format!("\n… {} more; -v shows them", all.len() - shown);
    }
    text
}

fn listed(names: &[String]) -> String {
    let shown = if output::is_verbose() { names.len() } else { NAMES_SHOWN };
    let mut text = names.iter().take(shown).map(|n| printable(n)).collect::<Vec<_>>().join(", ");
    if names.len() > shown {
        text += &format!(" and {} more; -v shows them", names.len() - shown);
    }
    text
}

fn unlike_row(unlike: &Unlike) -> Vec<String> {
    let form = |f: &Form| format!("{} {}", f.dtype, f.shape);
    let difference = unlike.values.as_ref().map_or("–".to_string(), |apart| number(models::relative(apart)));
    vec![unlike.key.clone(), form(&unlike.first), form(&unlike.second), difference]
}

fn differing_row(d: &Differing) -> Vec<String> {
    vec![
        d.key.clone(),
        d.form.dtype.to_string(),
        d.form.shape.to_string(),
        format!("{} of {}", d.apart.differing, d.apart.elements),
        d.max_ulps().map_or("–".to_string(), |n| n.to_string()),
        number(d.relative()),
        number(d.apart.max),
    ]
}

/// Over the tensors that differ: how many elements are how far apart.
fn totals_text(total: &Apart) -> String {
    let share = |n: u64| 100.0 * n as f64 / total.elements.max(1) as f64;
    let mut rows: Vec<_> = CLASSES
        .iter()
        .zip(total.classes)
        .map(|((name, _), n)| vec![(*name).to_string(), n.to_string(), format!("{:.2} %", share(n))])
        .collect();
    if total.nan > 0 {
        rows.push(vec!["NaN".to_string(), total.nan.to_string(), format!("{:.2} %", share(total.nan))]);
    }
    let table = output::table(&["ulps apart", "elements", "share"], &[1, 2], rows);
    format!("{table}\nrelative difference of these tensors together {}", number(models::relative(total)))
}

fn models_json(first: &Given, second: &Given, found: &Models) -> Value {
    let form = |f: &Form| json!({ "dtype": f.dtype.to_string(), "shape": f.shape.dims() });
    let unlike: Vec<_> = found
        .unlike
        .iter()
        .map(|u| {
            json!({
                "tensor": u.key, "first": form(&u.first), "second": form(&u.second),
                "differing": u.values.as_ref().map(|v| v.differing),
                "relative_difference": u.values.as_ref().map(models::relative),
                "max_difference": u.values.as_ref().map(|v| v.max),
            })
        })
        .collect();
    let differing: Vec<_> = found
        .differing
        .iter()
        .map(|d| {
            let mut value = apart_json(&d.apart);
            value["max_ulps"] = json!(d.max_ulps());
            value["relative_difference"] = json!(d.relative());
            let mut out = json!({ "tensor": d.key, "dtype": d.form.dtype.to_string(), "shape": d.form.shape.dims() });
            if let (Value::Object(out), Value::Object(value)) = (&mut out, value) {
                out.extend(value);
            }
            out
        })
        .collect();
    json!({
        "type": "models", "first": { "path": output::path(&first.path), "bytes": found.bytes.0 },
        "second": { "path": output::path(&second.path), "bytes": found.bytes.1 },
        "in_both": found.common, "equal": found.equal(), "same": found.is_same(),
        "only_in_first": found.only_first, "only_in_second": found.only_second, "unlike": unlike,
        "differing": differing, "total": apart_json(&found.total),
    })
}

fn apart_json(apart: &Apart) -> Value {
    let classes = CLASSES.iter().zip(apart.classes).map(|((name, _), n)| ((*name).to_string(), json!(n)));
    json!({
        "elements": apart.elements, "differing": apart.differing, "nan": apart.nan, "max_ulps": apart.max_ulps,
        "ulps": Value::Object(classes.collect()), "relative_difference": models::relative(apart),
        "max_difference": apart.max,
    })
}

// Words for numbers

/// Adds what the tolerance says of it.
fn judged(document: &mut Value, tolerance: Option<Tolerance>, beyond: Option<&Beyond>) {
    let Some(tolerance) = tolerance else { return };
    document["tolerance"] = match tolerance {
        Tolerance::Relative(most) => json!(most),
        Tolerance::Ulps(most) => json!(format!("{most}ulp")),
    };
    document["within_tolerance"] = json!(beyond.is_none());
}

/// A number that may be large, small, zero or infinite.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_string(),
        v if v.is_infinite() => "infinite".to_string(),
        v if v.is_nan() => "NaN".to_string(),
        v if (1e-3..1e6).contains(&v.abs()) => format!("{v:.4}"),
        v => format!("{v:.2e}"),
    }
}

fn fixed(value: Option<f64>) -> String {
    value.map_or("–".to_string(), |v| format!("{v:.4}"))
}
