//! `adapter_config.json`: the fields that change the mathematics, typed; the rest known by name.

use std::collections::HashSet;

use regex::Regex;
use serde_json::{Map, Value};

use super::tails::Tails;
use crate::adapter::{Note, Scale, ScaleRule};
use crate::container::json::{field, unexpected};
use crate::error::{Context, Error, Kind, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::limits;
use crate::tensor::Shape;

/// Fields of every tuner that select modules, describe the run, or have no effect on a saved adapter.
const COMMON_FIELDS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    BASE_FINGERPRINT,
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
];

/// The config of one adapter.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which tuner wrote it.
    pub peft_type: String,
    raw: Map<String, Value>,
}

/// One entry of `rank_pattern` or `alpha_pattern`.
struct Pattern {
    text: String,
    matcher: Matcher,
    value: f64,
}

/// PEFT's rule since 0.15: the key is a regular expression that has to match the end of the module path, from its
/// start or from after a dot.
enum Matcher {
    /// A key of letters, digits, `_`, `-` and dots, which stand for any character. All but a few keys are such, and
    /// a file may have very many of them.
    Tail(String),
    /// Any other.
    Regex(Regex),
}

/// Ranks and alphas by module.
pub struct Patterns {
    ranks: Set,
    alphas: Set,
    /// Rank where no pattern matches.
    pub rank: usize,
    /// Alpha where no pattern matches.
    pub alpha: f64,
    rule: ScaleRule,
}

/// All patterns of a field, in file order.
#[derive(Default)]
struct Set {
    all: Vec<Pattern>,
    tails: Tails,
    /// Numbers of those that need an engine.
    engines: Vec<usize>,
}

impl Set {
    fn new(all: Vec<Pattern>) -> Result<Set> {
        let mut out = Set::default();
        for (number, pattern) in all.iter().enumerate() {
            match &pattern.matcher {
                Matcher::Tail(key) => out.tails.add(key, number)?,
                Matcher::Regex(_) => out.engines.push(number),
            }
        }
        Ok(Set { all, ..out })
    }

    /// Numbers of all that match.
    fn matching<'p>(&'p self, path: &'p str) -> impl Iterator<Item = usize> + 'p {
        let fits = |number: &usize| self.all.get(*number).is_some_and(|p| p.matcher.is_match(path));
        self.tails.meaning(path).into_iter().chain(self.engines.iter().copied().filter(fits))
    }

    /// The first in file order that matches.
    fn find(&self, path: &str) -> Option<&Pattern> {
        self.all.get(self.matching(path).min()?)
    }
}

impl Config {
    /// Takes the raw object; only `peft_type` has to be there.
    pub fn read(raw: Map<String, Value>) -> Result<Config> {
        let peft_type: Option<String> = field(&raw, "peft_type", "the name of a tuner")?;
        let peft_type = peft_type.ok_or_else(|| Error::missing("no peft_type").at_key("peft_type"))?;
        Ok(Config { peft_type, raw })
    }

    /// A field as it stands, none where absent or null.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.raw.get(name).filter(|v| !v.is_null())
    }

    /// A boolean, false where absent.
    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(field(&self.raw, name, "true or false")?.unwrap_or(false))
    }

    /// A boolean with another default.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        Ok(field(&self.raw, name, "true or false")?.unwrap_or(default))
    }

    /// A finite number.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let value: Option<f64> = field(&self.raw, name, "a number")?;
        match value {
            Some(v) if !v.is_finite() => Err(Error::malformed(format!("{v}, expected a finite number")).at_key(name)),
            other => Ok(other),
        }
    }

    /// A whole number.
    pub fn integer(&self, name: &str) -> Result<Option<usize>> {
        field(&self.raw, name, "a whole number")
    }

    /// A list of whole numbers.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<usize>>> {
        field(&self.raw, name, "a list of whole numbers")
    }

    /// A rank: a whole number from one up to a limit no adapter reaches.
    pub fn rank(&self, name: &str, default: usize) -> Result<usize> {
        let rank: Option<u64> = field(&self.raw, name, "a whole number above zero")?;
        let rank = rank.unwrap_or(default as u64);
        check_rank(rank).at_key(name)
    }

    /// Text.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        field(&self.raw, name, "text")
    }

    /// One name or a list of names.
    pub fn names(&self, name: &str) -> Result<Vec<String>> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::String(one)) => Ok(vec![one.clone()]),
            Some(_) => Ok(field(&self.raw, name, "a name or a list of names")?.unwrap_or_default()),
        }
    }

    /// Version of PEFT as (major, minor, patch), where the file says it.
    pub fn version(&self) -> Option<(u32, u32, u32)> {
        let text = self.value("peft_version")?.as_str()?;
        let mut numbers = text.split(['.', '@', '+']).map(|p| p.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
    }

    /// Adds a note for each field that neither every tuner nor this one has, unless it says nothing. A switch that is
    /// on is an error: PEFT's words for what changes the mathematics begin with `use_`.
    pub fn report_unknown(&self, known: &[&str], notes: &mut Vec<Note>) -> Result<()> {
        for (name, value) in &self.raw {
            let says_nothing = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(v) => v.is_empty(),
                Value::Object(v) => v.is_empty(),
                _ => false,
            };
            if !says_nothing && !COMMON_FIELDS.contains(&name.as_str()) && !known.contains(&name.as_str()) {
                if name.starts_with("use_") && value == &Value::Bool(true) && !known.is_empty() {
                    let what = "on, and not known here: it may change what the tensors mean";
                    return Err(Error::unsupported(what)
                        .at_key(name)
                        .hint("if it does not, take it out of a copy of the config"));
                }
                let mut shown = value.to_string();
                shown.truncate(shown.floor_char_boundary(60));
                notes.push(Note::lossy(name, format!("unknown field of the config, ignored: {shown}")));
            }
        }
        Ok(())
    }

    /// Rank and alpha patterns. `alpha_name` and the defaults are the tuner's own.
    pub fn patterns(&self, alpha_name: &str, default: usize) -> Result<Patterns> {
        let rule = if self.flag("use_rslora")? { ScaleRule::AlphaOverRootRank } else { ScaleRule::AlphaOverRank };
        Ok(Patterns {
            ranks: self.compile("rank_pattern")?,
            alphas: self.compile("alpha_pattern")?,
            rank: self.rank("r", default)?,
            alpha: self.number(alpha_name)?.unwrap_or(default as f64),
            rule,
        })
    }

    fn compile(&self, name: &str) -> Result<Set> {
        let map = match self.value(name) {
            None => return Ok(Set::default()),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(unexpected(other, "an object of patterns").at_key(name)),
        };
        let mut engines = 0;
        let all = map
            .iter()
            .map(|(text, value)| {
                let matcher = Matcher::new(text).at_key(name)?;
                engines += usize::from(matches!(matcher, Matcher::Regex(_)));
                if engines > limits::PATTERNS {
                    return Err(
                        Error::too_many(limits::PATTERNS, "patterns that are not plain module paths").at_key(name)
                    );
                }
                let number = value.as_f64().filter(|v| v.is_finite());
                let value = number.ok_or_else(|| unexpected(value, "a number").at_key(format!("{name}.{text}")))?;
                Ok(Pattern { text: text.clone(), matcher, value })
            })
            .collect::<Result<_>>()?;
        Set::new(all).at_key(name)
    }
}

impl Matcher {
    fn new(text: &str) -> Result<Matcher> {
        if text.len() > limits::PATTERN_BYTES {
            return Err(Error::limit(format!("pattern of {} bytes", text.len()), limits::PATTERN_BYTES));
        }
        if is_plain(text) {
            return Ok(Matcher::Tail(text.to_string()));
        }
        compile(text).map(Matcher::Regex)
    }

    fn is_match(&self, path: &str) -> bool {
        match self {
            Matcher::Regex(regex) => regex.is_match(path),
            Matcher::Tail(key) => {
                let mut rest = path.chars().rev();
                let fits = key.chars().rev().all(|k| rest.next().is_some_and(|c| c == k || k == '.' && c != '\n'));
                fits && matches!(rest.next(), None | Some('.'))
            }
        }
    }
}

/// Whether a text can only be the path of a module, or its end.
fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// The entries of `rank_pattern` or `alpha_pattern`, and for each whether a module path is one that it means; no more
/// expressions than would be read.
pub fn matchers<'c>(
    config: &'c Config,
    field: &str,
) -> impl Iterator<Item = (&'c str, Result<impl Fn(&str) -> bool + use<>>)> + use<'c> {
    let mut expressions = 0;
    let texts = config.value(field).and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
    let read = texts.filter(move |text| {
        expressions += usize::from(!is_plain(text));
        is_plain(text) || expressions <= limits::PATTERNS
    });
    read.map(|text| {
        let matcher = Matcher::new(text);
        (text.as_str(), matcher.map(|matcher| move |path: &str| matcher.is_match(path)))
    })
}

fn compile(text: &str) -> Result<Regex> {
    build(text, &format!(r"^(?:.*\.)?(?:{text})$"))
}

/// An expression for the whole of a module path.
pub fn compile_whole(text: &str) -> Result<Regex> {
    build(text, &format!("^(?:{text})$"))
}

const ADVICE: &str = "full module paths as keys work everywhere; edit a copy of the config";

fn build(text: &str, anchored: &str) -> Result<Regex> {
    if text.len() > limits::PATTERN_BYTES {
        return Err(Error::limit(format!("pattern of {} bytes", text.len()), limits::PATTERN_BYTES));
    }
    let shown: String = text.chars().take(60).collect();
    regex::RegexBuilder::new(anchored)
        .size_limit(limits::PATTERN_COMPILED_BYTES)
        .dfa_size_limit(limits::PATTERN_CACHE_BYTES)
        .nest_limit(limits::PATTERN_DEPTH)
        .build()
        .map_err(|e| {
            let look = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|l| text.contains(l));
            let most = match &e {
                regex::Error::CompiledTooBig(most) => Some(("too large once compiled", *most, "bytes")),
                e if e.to_string().contains("maximum number of nested") => {
                    Some(("nested too deep", limits::PATTERN_DEPTH as usize, "levels"))
                }
                _ => None,
            };
            if let Some((why, most, unit)) = most {
                return Error::limit(format!("pattern `{shown}`: {why}"), format!("{most} {unit}")).hint(ADVICE);
            }
            let why = match e {
                _ if look => "look-around is not evaluated".to_string(),
                other => other.to_string().lines().last().unwrap_or("not a regular expression").to_string(),
            };
            Error::unsupported(format!("pattern `{shown}`: {why}")).hint(ADVICE)
        })
}

fn check_rank(rank: u64) -> Result<usize> {
    if rank == 0 || rank > limits::RANK {
        return Err(Error::new(Kind::Limit, format!("rank {rank}, expected 1 to {}", limits::RANK)));
    }
    Ok(rank as usize)
}

impl Patterns {
    /// Rank of the module at `path`: the first pattern in file order that matches, else the default.
    pub fn rank_at(&self, path: &str) -> Result<usize> {
        match self.ranks.find(path) {
            None => Ok(self.rank),
            Some(p) if p.value.fract() == 0.0 && p.value >= 0.0 => {
                check_rank(p.value as u64).at_key(format!("rank_pattern.{}", p.text))
            }
            Some(p) => Err(Error::malformed(format!("rank {}, expected a whole number", p.value))
                .at_key(format!("rank_pattern.{}", p.text))),
        }
    }

    /// Scale of the module at `path`. Alpha is looked up independently of the rank.
    pub fn scale_at(&self, path: &str) -> Scale {
        let alpha = self.alphas.find(path).map_or(self.alpha, |p| p.value);
        Scale { alpha, rule: self.rule }
    }

    /// Rank of the module, which has to be that of its factors.
    pub fn checked_rank(&self, path: &str, stored: usize, shape: &Shape) -> Result<usize> {
        let rank = self.rank_at(path)?;
        if rank == stored {
            return Ok(rank);
        }
        Err(Error::mismatch(format!("adapter_config.json gives rank {rank} (r), the tensor {shape} has {stored}"))
            .hint("the config may belong to another adapter"))
    }

    /// Notes on patterns that match none of these paths: PEFT ignores them in silence.
    pub fn report_idle<'p>(&self, paths: impl Iterator<Item = &'p str> + Clone, notes: &mut Vec<Note>) {
        for (name, patterns) in [("rank_pattern", &self.ranks), ("alpha_pattern", &self.alphas)] {
            let used: HashSet<usize> =
                paths.clone().flat_map(|path| patterns.matching(path).collect::<Vec<_>>()).collect();
            for (number, p) in patterns.all.iter().enumerate() {
                if !used.contains(&number) {
                    notes.push(Note::info(format!("{name}.{}", p.text), "matches no module of this adapter"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::json::parse_object;

    fn config(text: &str) -> Config {
        Config::read(parse_object(text).unwrap()).unwrap()
    }

    #[test]
    fn patterns_match_as_in_peft() {
        // Each row was evaluated with `re.match(r"(.*\.)?(" + key + r")$", path)` of Python.
        for (key, path, expected) in [
            ("q_proj", "model.layers.0.self_attn.q_proj", true),
            ("q_proj", "q_proj", true),
            ("proj", "model.q_proj", false),
            (r"model.layers\.[01].*", "model.layers.1.mlp", true),
            ("^model.layers.0.q", "model.layers.0.q", true),
            ("^layers.0.q", "model.layers.0.q", false),
            ("q_proj.0", "a.q_projX0", true),
            ("", "a.b", false),
            ("", "a.", true),
            ("q.", "a.q\n", false),
            ("b.q", "a.éb.q", false),
            (".q", "éq", true),
            ("q_proj|k_proj", "a.k_proj", true),
        ] {
            let matcher = Matcher::new(key).unwrap();
            assert_eq!(matcher.is_match(path), expected, "{key} on {path}");
            let set = Set::new(vec![Pattern { text: key.into(), matcher, value: 1.0 }]).unwrap();
            assert_eq!(set.find(path).is_some(), expected, "{key} on {path}, in a set");
        }
    }

    #[test]
    fn the_first_match_in_file_order_wins() {
        let c = config(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": {"b.q": 2, "q": 3}, "alpha_pattern": {"q": 1.5}}"#,
        );
        let p = c.patterns("lora_alpha", 8).unwrap();
        assert_eq!((p.rank_at("a.b.q").unwrap(), p.rank_at("a.q").unwrap(), p.rank_at("a.k").unwrap()), (2, 3, 4));
        assert_eq!((p.scale_at("a.q").alpha, p.scale_at("a.k").alpha), (1.5, 8.0));
    }

    #[test]
    fn an_unknown_switch_is_an_error_and_an_unknown_field_a_note() {
        let mut notes = Vec::new();
        let on = config(r#"{"peft_type": "LORA", "r": 4, "use_new_scaling": true}"#);
        assert_eq!(on.report_unknown(&["r"], &mut notes).unwrap_err().key(), Some("use_new_scaling"));
        let other = config(r#"{"peft_type": "LORA", "r": 4, "use_new_scaling": false, "trained_by": "somebody"}"#);
        other.report_unknown(&["r"], &mut notes).unwrap();
        assert_eq!(notes.iter().map(|n| n.key.as_str()).collect::<Vec<_>>(), ["trained_by"]);
    }

    #[test]
    fn hostile_patterns_are_refused_at_once() {
        for text in ["(((a{1,100}){1,100}){1,100})", "(?!x)y", "(", &"(".repeat(5000)] {
            assert!(Matcher::new(text).is_err(), "{}", &text[..text.len().min(20)]);
        }
    }
}
