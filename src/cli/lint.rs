//! `lora-tool lint`: what is wrong with adapters, or may be, and the repairs that are certain.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::ReadAs;
use super::output;
use crate::adapter::Finding;
use crate::adapter::finding::{Code, Level, Repair};
use crate::error::{Context, Error, Kind, Result, printable};
use crate::layout::lint::{self, Looked, fix};
use crate::layout::{self, Source};
use crate::model::BaseModel;
use crate::ops::lint::{self as beside, Subject};
use crate::tensor::hash;

/// Findings of one code in one file that are shown without `-v`.
const SHOWN: usize = 5;
/// Letters in a line of an explanation.
const WIDTH: usize = 100;
/// The one finding that only says what a base would tell.
const ASKS_FOR_BASE: &str = "L327";

/// Say what is wrong with adapters, and repair what can be
///
/// Looks at files, keys, values and config, whether or not the adapter can be read, and with --base at what it does beside
/// its base. Every finding has a code; --explain says what it means. Ends with 1 where there is an error among them.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  lora-tool lint my-adapter
  lora-tool lint adapters/* --strict
  lora-tool lint my-adapter --base Llama-3.1-8B --json
  lora-tool lint my-adapter --fix -o repaired
  lora-tool lint --explain L204")]
pub struct Args {
    /// Adapters: folders or files
    #[arg(required_unless_present_any = ["explain", "codes"], value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// The base the adapters are for
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    #[command(flatten)]
    read: ReadAs,
    /// Write the adapter with every certain repair made
    #[arg(long, requires = "out")]
    fix: bool,
    /// Where the repaired adapter goes
    #[arg(short, long, value_name = "OUT", requires = "fix")]
    out: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long, requires = "fix")]
    force: bool,
    /// Do not wait for the disk
    #[arg(long, requires = "fix")]
    no_sync: bool,
    /// End with 3 where there are warnings
    #[arg(long)]
    strict: bool,
    /// Say what a code means
    #[arg(long, value_name = "CODE", conflicts_with_all = ["adapters", "codes"])]
    explain: Option<String>,
    /// List all codes
    #[arg(long, conflicts_with = "adapters")]
    codes: bool,
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What was found at one adapter.
struct Linted<'a> {
    path: &'a Path,
    looked: Looked,
    /// What was written, and what is still to be found in it.
    fixed: Option<Fixed>,
}

struct Fixed {
    repairs: usize,
    marks: HashSet<(&'static str, String, String)>,
    left: Vec<Finding>,
}

/// Runs the command. The error is that of an adapter with errors, after the answer was given.
pub fn run(args: &Args) -> Result<Option<Error>> {
    if let Some(id) = &args.explain {
        return explain(args, id).map(|()| None);
    }
    if args.codes {
        return list(args).map(|()| None);
    }
    if args.fix && args.adapters.len() > 1 {
        return Err(Error::new(Kind::Usage, "--fix takes one adapter").hint("repair them one by one"));
    }
    let base = args.base.as_deref().map(BaseModel::open).transpose()?;
    let mut all = Vec::with_capacity(args.adapters.len());
    for path in &args.adapters {
        all.push(one(args, path, base.as_ref())?);
    }
    show(args, &all)?;
    Ok(verdict(args, &all))
}

fn one<'a>(args: &Args, path: &'a Path, base: Option<&BaseModel>) -> Result<Linted<'a>> {
    let mut looked = look(args, path, base)?;
    let fixed = match &args.out {
        Some(out) => repair(args, &mut looked, out, base)?,
        None => None,
    };
    Ok(Linted { path, looked, fixed })
}

fn look(args: &Args, path: &Path, base: Option<&BaseModel>) -> Result<Looked> {
    let mut looked = lint::look(path, args.read.from.as_deref(), args.read.given(base))?;
    let (Some(base), Some(adapter), Some(source)) = (base, &looked.adapter, &looked.source) else { return Ok(looked) };
    let subject =
        Subject { adapter, hash: hash::of_tensors(&source.tensors), base: source.base_fingerprint().ok().flatten() };
    let found = beside::check(base, &subject).into_iter().map(|f| f.or_file(&source.tensor_file));
    looked.findings.retain(|f| f.code.id != ASKS_FOR_BASE);
    looked.findings.extend(found);
    looked.findings.sort_by_key(|f| (f.code.level, f.code.id));
    Ok(looked)
}

/// Writes the repaired adapter and looks at it as it lies there.
fn repair(args: &Args, looked: &mut Looked, out: &Path, base: Option<&BaseModel>) -> Result<Option<Fixed>> {
    let Some(source) = &looked.source else { return Ok(None) };
    let Some(fixed) = fix::fix(looked)? else { return Ok(None) };
    let inputs = inputs(source);
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    layout::save(&fixed.draft, out, &inputs, args.force, !args.no_sync)?;
    let again = look(args, out, base).in_file(out)?;
    // What showed only once something else was repaired.
    let known: HashSet<_> = looked.findings.iter().map(mark).collect();
    let later = fixed.done.iter().filter(|f| !known.contains(&mark(f))).cloned();
    looked.findings.extend(later);
    looked.findings.sort_by_key(|f| (f.code.level, f.code.id));
    let marks = fixed.done.iter().map(mark).collect();
    Ok(Some(Fixed { repairs: fixed.done.len(), marks, left: again.findings }))
}

fn inputs(source: &Source) -> Vec<PathBuf> {
    let config = source.config.as_ref().map(|(path, _)| path.clone());
    [Some(source.path.clone()), Some(source.tensor_file.clone()), config].into_iter().flatten().collect()
}

/// What is left to be found.
fn left<'l>(linted: &'l Linted) -> &'l [Finding] {
    linted.fixed.as_ref().map_or(&linted.looked.findings, |fixed| &fixed.left)
}

fn count<'f>(findings: impl IntoIterator<Item = &'f Finding>, level: Level) -> usize {
    findings.into_iter().filter(|f| f.code.level == level).count()
}

fn verdict(args: &Args, all: &[Linted]) -> Option<Error> {
    let errors: usize = all.iter().map(|one| count(left(one), Level::Error)).sum();
    let warnings: usize = all.iter().map(|one| count(left(one), Level::Warning)).sum();
    if errors > 0 {
        let of_one = |one: &&Linted| count(left(one), Level::Error) > 0;
        let (first, others) = (all.iter().find(of_one)?, all.iter().filter(of_one).count() - 1);
        let more = match others {
            0 => String::new(),
            n => format!(", some of them in {} beside it", number(n, "adapter")),
        };
        return Some(Error::malformed(number(errors, "error") + &more).in_file(first.path));
    }
    (args.strict && warnings > 0)
        .then(|| Error::new(Kind::Strict, format!("refused because of --strict: {}", number(warnings, "warning"))))
}

fn number(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

// The answer

fn show(args: &Args, all: &[Linted]) -> Result<()> {
    if args.json {
        return output::document(&document(args, all));
    }
    let text: Vec<String> = all.iter().map(|one| text(args, one)).collect();
    output::answer(&text.join("\n\n"))
}

fn text(args: &Args, linted: &Linted) -> String {
    let mut by_file: BTreeMap<Option<&Path>, Vec<&Finding>> = BTreeMap::new();
    for finding in &linted.looked.findings {
        by_file.entry(finding.file.as_deref()).or_default().push(finding);
    }
    let mut lines = Vec::new();
    for (file, findings) in by_file {
        let name = file.unwrap_or(linted.path);
        lines.push(format!("{}:", printable(&name.display().to_string())));
        lines.extend(lines_of(linted, &findings));
    }
    lines.push(summary(args, linted));
    lines.join("\n")
}

/// A line for each finding; of many of one code the first.
fn lines_of(linted: &Linted, findings: &[&Finding]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut hidden = 0;
    for (at, finding) in findings.iter().enumerate() {
        // They are sorted by code, so that those of one code lie together.
        let same = |other: Option<&&Finding>| other.is_some_and(|f| f.code == finding.code);
        let many = at.checked_sub(SHOWN).is_some_and(|first| same(findings.get(first)));
        if !many || output::is_verbose() || is_done(linted, finding) {
            lines.push(format!("  {}", line(linted, finding)));
        } else {
            hidden += 1;
        }
        if hidden > 0 && !same(findings.get(at + 1)) {
            lines.push(format!("  … {hidden} more {}; -v shows them", finding.code.id));
            hidden = 0;
        }
    }
    lines
}

fn is_done(linted: &Linted, finding: &Finding) -> bool {
    linted.fixed.as_ref().is_some_and(|fixed| fixed.marks.contains(&mark(finding)))
}

/// What tells one repair from the others.
fn mark(finding: &Finding) -> (&'static str, String, String) {
    let repair = finding.repair.as_ref().map(ToString::to_string);
    (finding.code.id, finding.key.clone(), repair.unwrap_or_default())
}

fn line(linted: &Linted, finding: &Finding) -> String {
    let mut out = format!("{}[{}] ", finding.code.level.word(), finding.code.id);
    if !finding.key.is_empty() {
        out += &format!("{}: ", printable(&finding.key));
    }
    out += &printable(&finding.what);
    match (&finding.repair, &finding.hint) {
        (Some(repair), _) if is_done(linted, finding) => {
            out += &format!(" (repaired: {})", printable(&repair.to_string()));
        }
        (Some(Repair::Rename(_)), _) if !output::is_verbose() => out += " (--fix renames it)",
        (Some(repair), _) => out += &format!(" (--fix: {})", printable(&repair.to_string())),
        (None, Some(hint)) => out += &format!(" ({})", printable(hint)),
        (None, None) => {}
    }
    out
}

fn summary(args: &Args, linted: &Linted) -> String {
    let findings = &linted.looked.findings;
    let mut out = format!("{}: {}", printable(&linted.path.display().to_string()), counted(findings));
    match (&linted.fixed, &args.out) {
        (Some(fixed), Some(to)) => {
            let to = printable(&to.display().to_string());
            out += &format!("\n{to}: {}, {} left", number(fixed.repairs, "repair"), counted(&fixed.left));
        }
        (None, Some(_)) => out += "; nothing that can be repaired, nothing written",
        _ => {
            let repairs = findings.iter().filter(|f| f.repair.is_some()).count();
            if repairs > 0 && can_fix(&linted.looked) {
                out += &format!("; --fix repairs {repairs}");
            }
        }
    }
    out
}

fn can_fix(looked: &Looked) -> bool {
    looked.layout == Some("peft") && looked.source.as_ref().is_some_and(|source| source.config.is_some())
}

fn counted(findings: &[Finding]) -> String {
    let parts = [(Level::Error, "error"), (Level::Warning, "warning"), (Level::Info, "remark")]
        .map(|(level, word)| (count(findings, level), word));
    let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| number(*n, word)).collect();
    if parts.is_empty() { "nothing found".to_string() } else { parts.join(", ") }
}

fn document(args: &Args, all: &[Linted]) -> Value {
    let adapters: Vec<Value> = all
        .iter()
        .map(|linted| {
            let findings = &linted.looked.findings;
            let each: Vec<Value> = findings.iter().map(|f| finding_json(f, is_done(linted, f))).collect();
            let left: Option<Vec<Value>> =
                linted.fixed.as_ref().map(|fixed| fixed.left.iter().map(|f| finding_json(f, false)).collect());
            json!({
                "path": output::path(linted.path), "layout": linted.looked.layout, "findings": each,
                "errors": count(findings, Level::Error), "warnings": count(findings, Level::Warning),
                "infos": count(findings, Level::Info),
                "out": args.out.as_deref().filter(|_| linted.fixed.is_some()).map(output::path), "left": left,
            })
        })
        .collect();
    let sum = |level| all.iter().map(|one| count(left(one), level)).sum::<usize>();
    json!({
        "base": args.base.as_deref().map(output::path), "strict": args.strict, "adapters": adapters,
        "errors": sum(Level::Error), "warnings": sum(Level::Warning), "infos": sum(Level::Info),
    })
}

fn finding_json(f: &Finding, repaired: bool) -> Value {
    json!({
        "code": f.code.id, "severity": f.code.level.word(), "title": f.code.title, "file": f.file.as_deref().map(output::path),
        "key": if f.key.is_empty() { None } else { Some(&f.key) }, "what": f.what, "hint": f.hint,
        "repair": f.repair.as_ref().map(ToString::to_string), "repaired": repaired,
    })
}

// Codes

fn codes() -> impl Iterator<Item = &'static Code> {
    lint::CODES.iter().chain(beside::CODES).copied()
}

fn code_json(code: &Code) -> Value {
    json!({
        "code": code.id, "severity": code.level.word(), "title": code.title, "why": code.why, "repair": code.repair,
    })
}

fn list(args: &Args) -> Result<()> {
    if args.json {
        return output::document(&json!({ "codes": codes().map(code_json).collect::<Vec<_>>() }));
    }
    let row = |c: &Code| {
        let fix = if c.repair.is_some() { "--fix" } else { "" };
        vec![c.id.to_string(), c.level.word().to_string(), fix.to_string(), c.title.to_string()]
    };
    output::answer(&output::table(&["code", "severity", "", "what it is"], &[], codes().map(row).collect()))
}

fn explain(args: &Args, id: &str) -> Result<()> {
    let code = codes().find(|code| code.id.eq_ignore_ascii_case(id)).ok_or_else(|| {
        Error::new(Kind::Usage, format!("no code `{id}`")).hint("`lora-tool lint --codes` lists them")
    })?;
    if args.json {
        return output::document(&code_json(code));
    }
    let mut text = format!("{}[{}] {}\n\n{}", code.level.word(), code.id, code.title, wrapped(code.why));
    if let Some(repair) = code.repair {
        text += &format!("\n\n{}", wrapped(&format!("--fix: {repair}")));
    }
    output::answer(&text)
}

/// In lines of a width for reading.
fn wrapped(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= WIDTH) {
            Some(line) => *line += &format!(" {word}"),
            None => lines.push(word.to_string()),
        }
    }
    lines.join("\n")
}
