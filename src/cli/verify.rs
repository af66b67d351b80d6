//! `lora-tool verify`: whether a model is the merge it is said to be.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{Machine, ReadAs};
use super::loaded::Loaded;
use super::output;
use super::progress::Bar;
use super::signals::Signals;
use super::weights::Weights;
use crate::adapter::Severity;
use crate::error::{Error, Result};
use crate::model::BaseModel;
use crate::ops::merge::Applied;
use crate::ops::verify::{self, Changed, Estimate, Finding, Report, Standing, State, Verdict};

/// Rows of the table that are shown without `-v`.
const ROWS_SHOWN: usize = 20;

/// Say what is in a merged model, and at what strength
///
/// Plans the merge of the adapters into the base, as `merge` does, and compares the file with it element by element:
/// whether it is the correctly rounded merge, at what strength each adapter is in it, which modules miss it, what else
/// was changed, or that this is not the base. Ends with 0 only if the claim holds.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool verify merged --base Llama-3.1-8B --adapter my-adapter
  lora-tool verify merged.safetensors --base base.safetensors --adapter style@0.8 --adapter character@0.5
  lora-tool verify merged --base base --adapter adapter@0.5 --json")]
pub struct Args {
    /// The model in question: a folder with shards, a pipeline, or one .safetensors file
    merged: PathBuf,
    /// Base model it is said to be made from
    #[arg(long, value_name = "BASE")]
    base: PathBuf,
    /// Adapter that is said to be in it, with the strength claimed behind an @ [default: 1]; once for each
    #[arg(long = "adapter", required = true, value_name = "ADAPTER[@STRENGTH]")]
    adapters: Vec<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    read: ReadAs,
    /// Leave out modules of the adapter that match nothing in the base
    #[arg(long)]
    allow_unmatched: bool,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    machine: Machine,
}

/// Runs the command. The error is that of a claim that does not hold, after the answer was given.
pub fn run(args: &Args) -> Result<Option<Error>> {
    let signals = Signals::listen()?;
    let kernels = args.machine.kernels()?;
    let base = BaseModel::open(&args.base)?;
    let merged = BaseModel::open(&args.merged)?;
    let (strength, shares) = (args.weights.strength()?.unwrap_or(1.0), args.weights.shares()?);
    let open = |a: &PathBuf| Loaded::open((a, strength), (&args.read, &shares), Some(&base), true);
    let loaded = args.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    // Without an identity: what the base itself was made of is not asked here.
    let applied: Vec<_> = loaded.iter().map(|l| Applied { identity: None, ..l.applied() }).collect();
    let mut planned = verify::verify(&merged, &base, &applied, args.allow_unmatched)?;
    let mut notes: Vec<_> = loaded.iter().flat_map(|l| l.opened.notes.clone()).collect();
    notes.append(&mut planned.notes);
    output::notes(&notes);

    let began = Instant::now();
    let bar = Bar::new(planned.bytes, signals);
    let report = planned.run(kernels.as_ref(), args.machine.limits(), &bar);
    bar.finish();
    let report = report?;
    for model in [&merged, &base] {
        model.unchanged()?;
    }
    loaded.iter().flat_map(|l| l.opened.source.files()).try_for_each(|file| file.unchanged())?;
    output::notes(&kernels.notes());
    notes.extend(kernels.notes());
    let words = Words { args, report: &report };
    if args.json {
        let word = |s: Severity| if s == Severity::Lossy { "lossy" } else { "info" };
        let notes: Vec<_> =
            notes.iter().map(|n| json!({ "severity": word(n.severity), "key": n.key, "text": n.text })).collect();
        output::document(&words.json(began.elapsed().as_secs_f64(), &notes))?;
    } else {
        output::answer(&words.text())?;
    }
    Ok(words.refutation())
}

/// The report in words.
struct Words<'a> {
    args: &'a Args,
    report: &'a Report,
}

impl Words<'_> {
    fn text(&self) -> String {
        let report = self.report;
        let mut text = self.table();
        let changed = report.changed.len();
        let as_before = report.kept - report.differing.len();
        text += &format!(
            "\n{}: {}: {} changed, {as_before} as in the base",
            self.args.merged.display(),
            self.verdict(),
            tensors(changed)
        );
        for about in &report.adapters {
            let present = about.where_present();
            text += &format!("\n{}: ", about.label);
            text += &match present.strength {
                Some(strength) => format!("strength {}", with_deviation(strength, present.deviation)),
                None if present.deviation.is_finite() || about.tensors == about.untold => {
                    "strength not told".to_string()
                }
                None => "strength not told apart from another adapter's".to_string(),
            };
            let missing = if about.missing > 0 { format!(", missing from {}", about.missing) } else { String::new() };
            let agree = about.tensors - about.other - about.missing - about.untold;
            text +=
                &format!(", claimed {}; as claimed in {agree} of {}{missing}", present.claimed, tensors(about.tensors));
        }
        if let Some((left, rounding)) = report.residual {
            text += &format!(
                "\nof the change, {} is not explained by the adapters; rounding alone leaves {}",
                percent(left),
                percent(rounding)
            );
        }
        text
    }

    fn verdict(&self) -> &'static str {
        match self.report.verdict {
            Verdict::Exact => "the correctly rounded merge",
            Verdict::OneUlp => "the merge, within 1 ulp of the correctly rounded one",
            Verdict::Rounding => "the merge, rounded or summed another way",
            Verdict::NotTheBase => "not this base",
            Verdict::OtherChanges => "not the merge: other changes",
            Verdict::OtherStrengths => "not the merge: other strengths",
            Verdict::ModulesMissing => "not the merge: modules are missing",
            Verdict::Untold => "not told: rounding hides the change",
        }
    }

    /// Tensors, worst first.
    fn table(&self) -> String {
        let report = self.report;
        let several = report.adapters.len() > 1;
        let names: Vec<_> = report.adapters.iter().map(|a| if several { leaf(&a.label) } else { "strength" }).collect();
        let none = |count| vec!["–".to_string(); count];
        let mut rows: Vec<Vec<String>> = Vec::new();
        for problem in &report.problems {
            rows.push([vec![problem.key.clone(), problem.what.clone()], none(3 + names.len())].concat());
        }
        let mut differing: Vec<_> = report.differing.iter().collect();
        differing.sort_by_key(|k| std::cmp::Reverse(k.kept.differing));
        for k in differing {
            let what = format!("not the base's: {} of {} elements", k.kept.differing, k.elements);
            rows.push([vec![k.key.clone(), what, ulps(k.kept.max_ulps)], none(2 + names.len())].concat());
        }
        let mut changed: Vec<_> = report.changed.iter().collect();
        changed.sort_by(|a, b| rank(b).cmp(&rank(a)).then(far(b).total_cmp(&far(a))));
        for tensor in changed {
            let mut row = vec![tensor.key.clone(), word(tensor).to_string(), ulps(tensor.off.max_ulps)];
            for number in 0..names.len() {
                let own = tensor.estimates.iter().find(|e| e.adapter == number);
                row.push(own.and_then(|e| e.strength).map_or_else(|| "–".into(), |s| format!("{s:.4}")));
            }
            row.push(tensor.residual.map_or_else(|| "–".into(), |(left, _)| percent(left)));
            row.push(tensor.residual.map_or_else(|| "–".into(), |(_, rounding)| percent(rounding)));
            rows.push(row);
        }
        let all = rows.len();
        rows.truncate(if output::is_verbose() { all } else { ROWS_SHOWN });
        let more = all - rows.len();
        let head = [vec!["tensor", "verdict", "max ulp"], names.clone(), vec!["residual", "rounding"]].concat();
        let right: Vec<usize> = (2..head.len()).collect();
        let table = output::table(&head, &right, rows);
        if more > 0 { format!("{table}\n… {more} more; -v shows them") } else { table }
    }

    /// The error of a claim that does not hold.
    fn refutation(&self) -> Option<Error> {
        let report = self.report;
        if report.verdict.holds() {
            return None;
        }
        let sentences: Vec<_> = report.findings.iter().map(|f| self.sentence(f)).collect();
        let error = Error::mismatch(sentences.join("; ")).in_file(&self.args.merged);
        Some(match report.verdict {
            Verdict::NotTheBase => {
                error.hint("is this the base that was merged into, and was the result trained further?")
            }
            Verdict::OtherStrengths => {
                let found = report.adapters.iter().map(|a| {
                    let strength = a.where_present().strength.unwrap_or(a.overall.claimed);
                    format!("--adapter {}@{}", a.label, rounded(strength))
                });
                error.hint(format!("{} claims what was found", found.collect::<Vec<_>>().join(" ")))
            }
            Verdict::Untold => error.hint("a merge with --dtype f32 keeps such a change"),
            _ => error,
        })
    }

    fn sentence(&self, finding: &Finding) -> String {
        let report = self.report;
        let label = |adapter: &usize| report.adapters.get(*adapter).map_or("", |a| a.label.as_str());
        match finding {
            Finding::Foreign { tensors, of } => {
                format!("not this base with these adapters: {tensors} of {of} tensors have little to do with them")
            }
            Finding::Form { tensors: count } => {
                let first = report.problems.first().map(|p| format!("`{}`: {}", p.key, p.what)).unwrap_or_default();
                format!("{} cannot be compared, first {first}", tensors(*count))
            }
            Finding::Kept { tensors: count } => {
                let first = report.differing.first().map(|k| k.key.as_str()).unwrap_or_default();
                let is = if *count == 1 { "is" } else { "are" };
                format!("{} that no adapter changes {is} not the base's, first `{first}`", tensors(*count))
            }
            Finding::Altered { tensors: count, elements } => {
                let mut altered: Vec<_> = report.changed.iter().filter(|t| t.is_altered()).collect();
                altered.sort_by(|a, b| far(b).total_cmp(&far(a)));
                let worst = altered.first().map(|t| {
                    let (row, column) = t.place(t.off.worst.map_or(0, |(_, at)| at));
                    format!("`{}` at [{row}, {column}]", t.key)
                });
                let worst = worst.unwrap_or_default();
                format!(
                    "{} elements of {} are beyond what rounding can do to the merge, farthest {worst}",
                    elements,
                    tensors(*count)
                )
            }
            Finding::Strength { adapter } => self.other_strength(*adapter),
            Finding::Missing { adapter } => {
                let about = report.adapters.get(*adapter);
                let (missing, of) = about.map_or((0, 0), |a| (a.missing, a.tensors));
                let is_missing = |e: &Estimate| e.adapter == *adapter && e.standing == Standing::Missing;
                let first = report.changed.iter().find(|t| t.estimates.iter().any(is_missing));
                let first = first.map(|t| format!(", first `{}`", t.key)).unwrap_or_default();
                if missing == 0 {
                    return format!("{} is missing", label(adapter));
                }
                format!("{} is missing from {missing} of {}{first}", label(adapter), tensors(of))
            }
            Finding::Untold { adapter } => {
                format!(
                    "rounding hides whether {} is in there: its change is too small for the type, or too near another's",
                    label(adapter)
                )
            }
        }
    }

    fn other_strength(&self, adapter: usize) -> String {
        let Some(about) = self.report.adapters.get(adapter) else { return String::new() };
        let present = about.where_present();
        let claimed = present.claimed;
        let (label, other) = (&about.label, about.other);
        match present.strength {
            Some(s) if other == 0 || other == about.tensors - about.missing - about.untold => {
                format!("{label} is in there at {}, claimed {claimed}", rounded(s))
            }
            Some(_) => {
                format!("{label} is in {other} of {} at another strength than {claimed}", tensors(about.tensors))
            }
            None => format!("{label} cannot be told from another adapter, and together they are not what was claimed"),
        }
    }

    fn json(&self, seconds: f64, notes: &[Value]) -> Value {
        let report = self.report;
        let count = |state: State| report.changed.iter().filter(|t| t.state == state).count();
        let adapters: Vec<_> = report
            .adapters
            .iter()
            .map(|a| {
                json!({
                    "adapter": a.label, "claimed": a.overall.claimed, "strength": a.overall.strength,
                    "deviation": finite(a.overall.deviation), "standing": standing(a.overall.standing),
                    "strength_where_present": a.where_present().strength, "tensors": a.tensors,
                    "as_claimed": a.agree, "other": a.other, "missing": a.missing, "untold": a.untold,
                })
            })
            .collect();
        let differing: Vec<_> = report
            .differing
            .iter()
            .map(|k| {
                json!({
                    "tensor": k.key, "dtype": k.dtype.to_string(), "elements": k.elements,
                    "differing": k.kept.differing, "max_ulps": k.kept.max_ulps, "first": k.kept.first,
                })
            })
            .collect();
        let problems: Vec<_> = report.problems.iter().map(|p| json!({ "tensor": p.key, "what": p.what })).collect();
        json!({
            "merged": output::path(&self.args.merged), "base": output::path(&self.args.base), "seconds": seconds,
            "holds": report.verdict.holds(), "verdict": verdict(report.verdict), "says": self.verdict(),
            "findings": report.findings.iter().map(|f| self.sentence(f)).collect::<Vec<_>>(),
            "adapters": adapters,
            "residual": report.residual.map(|r| r.0), "rounding_residual": report.residual.map(|r| r.1),
            "totals": {
                "changed": report.changed.len(), "exact": count(State::Exact), "one_ulp": count(State::OneUlp),
                "rounding": count(State::Rounding), "differ": count(State::Differs), "kept": report.kept,
                "kept_differ": report.differing.len(), "not_compared": report.problems.len(),
            },
            "changed": report.changed.iter().map(changed_json).collect::<Vec<_>>(),
            "kept_differ": differing, "not_compared": problems, "notes": notes,
        })
    }
}

fn changed_json(t: &Changed) -> Value {
    let strengths: Vec<_> = t
        .estimates
        .iter()
        .map(|e| {
            json!({
                "adapter": e.adapter, "claimed": e.claimed, "strength": e.strength,
                "deviation": finite(e.deviation), "standing": standing(e.standing),
            })
        })
        .collect();
    let worst = t.off.worst.map(|(units, at)| {
        let (row, column) = t.place(at);
        json!({ "units": finite(units), "row": row, "column": column })
    });
    json!({
        "tensor": t.key, "modules": t.modules, "kinds": t.kinds, "dtype": t.dtype.to_string(),
        "state": match t.state {
            State::Exact => "exact",
            State::OneUlp => "one_ulp",
            State::Rounding => "rounding",
            State::Differs => "differs",
        },
        "elements": t.elements, "max_ulps": t.off.max_ulps, "off_by_one": t.off.by_one, "off_by_more": t.off.by_more,
        "beyond_rounding": t.off.beyond, "worst": worst, "strengths": strengths, "change_norm": t.change,
        "residual": t.residual.map(|r| r.0), "rounding_residual": t.residual.map(|r| r.1),
    })
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Exact => "exact",
        Verdict::OneUlp => "one_ulp",
        Verdict::Rounding => "rounding",
        Verdict::NotTheBase => "not_the_base",
        Verdict::OtherChanges => "other_changes",
        Verdict::OtherStrengths => "other_strengths",
        Verdict::ModulesMissing => "modules_missing",
        Verdict::Untold => "untold",
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Agrees => "as_claimed",
        Standing::Other => "other",
        Standing::Missing => "missing",
        Standing::Untold => "untold",
    }
}

/// How bad a tensor is.
fn rank(tensor: &Changed) -> u8 {
    let has = |standing: Standing| tensor.estimates.iter().any(|e| e.standing == standing);
    match tensor.state {
        _ if tensor.is_altered() => 6,
        _ if has(Standing::Missing) => 5,
        _ if has(Standing::Other) => 4,
        State::Differs => 3,
        State::Rounding => 2,
        State::OneUlp => 1,
        State::Exact => 0,
    }
}

fn word(tensor: &Changed) -> &'static str {
    match rank(tensor) {
        6 | 3 => "differs",
        5 => "missing",
        4 => "other strength",
        2 => "rounding",
        1 => "1 ulp",
        _ => "exact",
    }
}

/// Units of rounding of the element that is farthest off.
fn far(tensor: &Changed) -> f64 {
    tensor.off.worst.map_or(0.0, |(units, _)| units)
}

/// Far is far.
fn ulps(count: u64) -> String {
    if count > 99_999 { "> 99999".to_string() } else { count.to_string() }
}

fn leaf(label: &str) -> &str {
    label.trim_end_matches('/').rsplit('/').next().unwrap_or(label)
}

fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}

fn percent(share: f64) -> String {
    if share > 0.0 && share < 5e-5 { format!("{:.0e} %", 100.0 * share) } else { format!("{:.2} %", 100.0 * share) }
}

/// A strength as a person would have written it.
fn rounded(strength: f64) -> f64 {
    (strength * 1e3).round() / 1e3
}

fn with_deviation(strength: f64, deviation: f64) -> String {
    if deviation < 5e-5 { format!("{strength:.4}") } else { format!("{strength:.4} ± {deviation:.4}") }
}

/// JSON has no infinity.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
