//! A file of jobs as command lines. Which names there are, the command line itself says: a key of a job is the name of one
//! of its options or arguments.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::error::{Context, Error, Kind, Result};
use crate::limits;
use crate::tensor::size;

/// Names that are the batch's own.
const NOT_OF_A_JOB: [&str; 6] = ["json", "verbose", "quiet", "color", "help", "version"];

/// One command line.
#[derive(Clone, Debug)]
pub struct Job {
    /// Number of the `[[job]]` it comes from, from 1.
    pub number: usize,
    /// The command.
    pub command: String,
    /// Everything from the program's name on.
    pub line: Vec<String>,
    /// Whether it can be told how many threads to take, and has not been.
    pub may_take_threads: bool,
    /// Whether it can be told how much memory to use, and has not been.
    pub may_take_memory: bool,
    /// The working memory it asks for, in bytes.
    pub memory: Option<u64>,
    /// Its output, where it has one.
    pub out: Option<String>,
    /// Paths that it reads.
    pub inputs: Vec<String>,
    /// Paths that it writes: its output and what goes with it.
    pub outputs: Vec<String>,
}

/// What a job says of one argument.
struct Given<'a> {
    arg: &'a Arg,
    values: Vec<String>,
}

/// All command lines of a file, in order; `program` is the command line's definition.
pub fn read(path: &Path, program: &Command) -> Result<Vec<Job>> {
    let fail = |e: std::io::Error| Error::io("cannot read", e).in_file(path);
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > limits::JOBS_BYTES {
        return Err(Error::limit(format!("a file of {size} bytes, expected jobs"), limits::JOBS_BYTES).in_file(path));
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    parse(&text, program).in_file(path)
}

fn parse(text: &str, program: &Command) -> Result<Vec<Job>> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text.get(..span.start).unwrap_or_default().lines().count().max(1));
        Error::malformed(format!("line {line}: {}", e.message()))
    })?;
    if let Some(key) = table.keys().find(|key| *key != "job") {
        return Err(usage("expected [[job]] tables and nothing else").at_key(key));
    }
    let Some(Value::Array(jobs)) = table.get("job") else { return Err(usage("no [[job]] in it")) };
    let mut out = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let lines = match job {
            Value::Table(job) => lines(i + 1, job, program),
            _ => Err(usage("expected a table: [[job]]")),
        };
        out.extend(lines.map_err(|e| within(i + 1, &e))?);
    }
    require_places_of_their_own(&out)?;
    Ok(out)
}

fn usage(what: impl Into<String>) -> Error {
    Error::new(Kind::Usage, what)
}

fn within(number: usize, e: &Error) -> Error {
    let key = e.key().map_or_else(|| format!("job {number}"), |key| format!("job {number}, {key}"));
    let out = Error::new(e.kind(), e.what()).at_key(key);
    match e.advice() {
        Some(hint) => out.hint(hint),
        None => out,
    }
}

/// The command lines of one job: one, or one for each of its inputs where the output is named after them.
fn lines(number: usize, job: &Table, program: &Command) -> Result<Vec<Job>> {
    let Some(Value::String(name)) = job.get("command") else {
        return Err(usage("a job needs command = \"…\""));
    };
    let command = program.find_subcommand(name).filter(|c| c.get_arguments().any(|a| a.get_id() == "json"));
    let Some(command) = command.filter(|_| name != "batch") else {
        return Err(usage(format!("`{name}` is no command of a job")).at_key("command"));
    };
    let mut given = Vec::new();
    for (key, value) in job.iter().filter(|(key, _)| *key != "command") {
        let arg = argument(command, key).at_key(key)?;
        let values = texts(arg, value).at_key(key)?;
        let values = if is_input(arg) { matches(&values).at_key(key)? } else { values };
        given.push(Given { arg, values });
    }
    let to = given.iter().find(|g| g.arg.get_id() == "to").and_then(|g| g.values.first()).cloned();
    let named = |word: &str| given.iter().any(|g| !is_input(g.arg) && g.values.iter().any(|v| v.contains(word)));
    let (by_stem, by_layout) = (named("{stem}"), named("{layout}"));
    if by_layout && to.is_none() {
        return Err(usage("{layout} stands for the value of `to`, which is not given"));
    }
    let fill = |text: &str, stem: &str| text.replace("{stem}", stem).replace("{layout}", to.as_deref().unwrap_or(""));
    if !by_stem {
        return Ok(vec![line(number, command, &given, None, &|text| fill(text, ""))]);
    }
    let spread = spread(&given)?;
    let inputs = given.get(spread).map_or(&[][..], |g| &g.values);
    Ok(inputs
        .iter()
        .map(|one| line(number, command, &given, Some((spread, one)), &|text| fill(text, &stem(one))))
        .collect())
}

/// The argument with this name: an option by its long name, an argument by that or the word in the help.
fn argument<'a>(command: &'a Command, key: &str) -> Result<&'a Arg> {
    let name = key.replace('_', "-");
    let is_it = |arg: &&Arg| {
        let id = arg.get_id().as_str().replace('_', "-");
        let word = arg.get_value_names().and_then(|names| names.first()).map(|w| w.to_lowercase());
        let plain = word.as_deref().map(|w| w.split('[').next().unwrap_or(w));
        arg.get_long() == Some(&name) || (arg.is_positional() && (id == name || plain == Some(&name)))
    };
    if NOT_OF_A_JOB.contains(&name.as_str()) {
        return Err(usage("this is said once for all jobs, on the command line"));
    }
    command.get_arguments().find(is_it).ok_or_else(|| {
        let known: Vec<_> = command.get_arguments().filter_map(shown).collect();
        usage(format!("`{}` has no such option", command.get_name())).hint(format!("known: {}", known.join(", ")))
    })
}

fn shown(arg: &Arg) -> Option<String> {
    let name = arg.get_long().map_or_else(|| arg.get_id().to_string(), str::to_string);
    (!NOT_OF_A_JOB.contains(&name.as_str())).then_some(name)
}

/// The values as they would be typed. A switch has one where it is on.
fn texts(arg: &Arg, value: &Value) -> Result<Vec<String>> {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let one = |value: &Value| match value {
        Value::String(text) if !is_switch => Ok(text.clone()),
        Value::Integer(n) if !is_switch => Ok(n.to_string()),
        Value::Float(n) if !is_switch => Ok(n.to_string()),
        other if is_switch => Err(usage(format!("{}, expected true or false", other.type_str()))),
        other => Err(usage(format!("{}, expected text or a number", other.type_str()))),
    };
    match value {
        Value::Boolean(on) if is_switch => Ok(if *on { vec![String::new()] } else { Vec::new() }),
        Value::Array(all) => all.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    }
}

/// Whether it names files that are read.
fn is_input(arg: &Arg) -> bool {
    arg.is_positional() || ["adapter", "adapters", "base", "look_in"].contains(&arg.get_id().as_str())
}

/// Paths for patterns, each with the strength behind its `@`.
fn matches(values: &[String]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for value in values {
        if !value.contains(['*', '?', '[']) || Path::new(value).exists() {
            out.push(value.clone());
            continue;
        }
        let strength = value.rfind('@').filter(|&at| value[at + 1..].parse::<f64>().is_ok());
        let (pattern, strength) = value.split_at(strength.unwrap_or(value.len()));
        let found = glob::glob(pattern).map_err(|e| usage(format!("`{pattern}` is no pattern: {}", e.msg)))?;
        let before = out.len();
        for path in found {
            let path = path.map_err(|e| Error::io("cannot list", e))?;
            let text = path.to_str().ok_or_else(|| Error::unsupported("a path that is no UTF-8").in_file(&path))?;
            out.push(format!("{text}{strength}"));
        }
        if out.len() == before {
            return Err(Error::missing(format!("nothing matches `{pattern}`")));
        }
    }
    Ok(out)
}

/// The argument whose values make a command line each: the one with several, else the last input.
fn spread(given: &[Given]) -> Result<usize> {
    let inputs: Vec<usize> = (0..given.len()).filter(|&i| given.get(i).is_some_and(|g| is_input(g.arg))).collect();
    let several: Vec<usize> =
        inputs.iter().copied().filter(|&i| given.get(i).is_some_and(|g| g.values.len() > 1)).collect();
    let last = || inputs.iter().copied().max_by_key(|&i| given.get(i).and_then(|g| g.arg.get_index()));
    match several.as_slice() {
        [one] => Ok(*one),
        [] => last().ok_or_else(|| usage("{stem} is that of an input, and there is none")),
        _ => Err(usage("{stem} could be that of several inputs")),
    }
}

/// The last component of a path, of a file without its ending, and without a strength.
fn stem(input: &str) -> String {
    let path = Path::new(input);
    let bare = input.rfind('@').filter(|_| !path.exists()).and_then(|at| input.get(..at));
    let path = bare.map_or(path, Path::new);
    let name = if path.is_file() { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "adapter".to_string(), |name| name.to_string_lossy().into_owned())
}

fn line(
    number: usize,
    command: &Command,
    given: &[Given],
    one: Option<(usize, &String)>,
    fill: &dyn Fn(&str) -> String,
) -> Job {
    let mut options = Vec::new();
    let mut positional: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let (mut out, mut inputs, mut outputs) = (None, Vec::new(), Vec::new());
    for (i, Given { arg, values }) in given.iter().enumerate() {
        let values = match one {
            Some((spread, value)) if spread == i => std::slice::from_ref(value),
            _ => values,
        };
        for value in values {
            let value = if is_input(arg) { value.clone() } else { fill(value) };
            match arg.get_id().as_str() {
                "undo" if command.get_name() == "unmerge" => inputs.push(value.clone()),
                "out" | "undo" => outputs.push(value.clone()),
                _ if is_input(arg) => inputs.push(value.clone()),
                _ => {}
            }
            match (arg.get_index(), arg.get_long()) {
                (Some(index), _) => positional.entry(index).or_default().push(value),
                (None, Some(long)) if matches!(arg.get_action(), ArgAction::SetTrue) => {
                    options.push(format!("--{long}"));
                }
                (None, long) => {
                    if long == Some("out") {
                        out = Some(value.clone());
                    }
                    options.push(format!("--{}={value}", long.unwrap_or_default()));
                }
            }
        }
    }
    let mut line = vec!["lora-tool".to_string(), command.get_name().to_string()];
    line.extend(options);
    line.push("--".to_string());
    line.extend(positional.into_values().flatten());
    let may_take =
        |id| command.get_arguments().any(|a| a.get_id() == id) && !given.iter().any(|g| g.arg.get_id() == id);
    let memory = given.iter().filter(|g| g.arg.get_id() == "memory").find_map(|g| size::parse(g.values.first()?).ok());
    Job {
        number,
        command: command.get_name().to_string(),
        line,
        may_take_threads: may_take("threads"),
        may_take_memory: may_take("memory"),
        memory,
        out,
        inputs,
        outputs,
    }
}

/// Two jobs that write to one place would be a race.
fn require_places_of_their_own(jobs: &[Job]) -> Result<()> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (job, out) in jobs.iter().flat_map(|job| job.outputs.iter().map(move |out| (job, out))) {
        if let Some(other) = seen.insert(out, job.number) {
            let what = format!("writes to `{out}`, and so does job {other}");
            return Err(usage(what).at_key(format!("job {}", job.number)));
        }
    }
    Ok(())
}
