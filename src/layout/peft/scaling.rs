//! Ranks and alphas of all modules as PEFT's config says them: one of each for most, patterns for the rest.
//!
//! A pattern is a regular expression that the end of a module path has to match, and the first that matches counts
//! (huggingface/peft, `src/peft/utils/other.py`, `get_pattern_key`). Keys written here are full paths, which every
//! version takes; only where one would match another module of the adapter is it anchored, so that the order of the
//! keys never matters: PEFT sorts them when it saves an adapter again.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Number, Value, json};

use super::writer::Writer;
use crate::adapter::{Note, Scale, ScaleRule};
use crate::error::{Error, Result};

/// Largest whole number that is written as one.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;

/// Rank and alpha where nothing is said.
const DEFAULT: usize = 8;

/// One module: the name its patterns are matched against, its rank and its scale.
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The module path, for parameters with the name behind it.
    pub name: String,
    /// Rank of its factors.
    pub rank: usize,
    /// Scale of their product.
    pub scale: Scale,
}

/// What the config says.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// Rank where no pattern matches.
    pub rank: usize,
    /// Alpha where no pattern matches.
    pub alpha: Value,
    /// Whether alpha is divided by the root of the rank.
    pub root: bool,
    /// Other ranks.
    pub rank_pattern: Map<String, Value>,
    /// Other alphas.
    pub alpha_pattern: Map<String, Value>,
    /// Number of modules whose alpha was calculated from another form of scale.
    pub folded: usize,
}

impl Scaling {
    /// For these modules; 8 and 8 where there are none, as in PEFT. With `roots` the config has a word for alpha over
    /// the root of the rank.
    pub fn of(modules: &[Scaled], roots: bool) -> Result<Scaling> {
        let is_root = |m: &Scaled| m.scale.rule == ScaleRule::AlphaOverRootRank;
        let root = roots && !modules.is_empty() && modules.iter().all(is_root);
        let rule = if root { ScaleRule::AlphaOverRootRank } else { ScaleRule::AlphaOverRank };
        let alphas = modules.iter().map(|m| alpha_of(m, rule)).collect::<Result<Vec<_>>>()?;
        let ranks: Vec<_> = modules.iter().map(|m| m.rank).collect();
        let rank = most_frequent(ranks.iter().copied()).unwrap_or(DEFAULT);
        let bits = most_frequent(alphas.iter().map(|a| a.to_bits()));
        let alpha = bits.map_or(DEFAULT as f64, f64::from_bits);
        let named = |differs: &dyn Fn(usize) -> bool, value: &dyn Fn(usize) -> Value| {
            let names: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
            pattern(&names, differs, value)
        };
        Ok(Scaling {
            rank,
            alpha: number(alpha),
            root,
            rank_pattern: named(&|i| ranks[i] != rank, &|i| json!(ranks[i])),
            alpha_pattern: named(&|i| alphas[i].to_bits() != alpha.to_bits(), &|i| number(alphas[i])),
            folded: modules.iter().filter(|m| m.scale.rule != rule).count(),
        })
    }
}

/// Says the ranks and scales of these modules in the config, alpha by the tuner's name for it.
pub fn say(writer: &mut Writer, modules: &[Scaled], alpha: &str, roots: bool) -> Result<()> {
    let scaling = Scaling::of(modules, roots)?;
    if scaling.folded > 0 {
        let what = format!("calculated from the scales of {} of {} modules", scaling.folded, modules.len());
        writer.notes.push(Note::info(alpha, what));
    }
    writer.set("r", scaling.rank);
    writer.set(alpha, scaling.alpha);
    writer.set("rank_pattern", scaling.rank_pattern);
    writer.set("alpha_pattern", scaling.alpha_pattern);
    if roots {
        writer.set("use_rslora", scaling.root);
    }
    Ok(())
}

/// Says a whole number of each module: the most frequent one by itself, the others in a pattern.
pub fn say_numbers(
    writer: &mut Writer,
    names: &[&str],
    numbers: &[usize],
    field: &str,
    pattern_field: &str,
) -> Result<()> {
    let Some(most) = most_frequent(numbers.iter().copied()) else { return Ok(()) };
    let others = pattern(names, &|i| numbers[i] != most, &|i| json!(numbers[i]));
    // These patterns know no start of the path: `.*\.KEY$`, then the whole path as it is.
    if let Some(key) = others.keys().find(|key| key.starts_with('^')) {
        let what = format!("no pattern can tell `{key}` from other modules, whose number is another");
        return Err(Error::unsupported(what).at_key(pattern_field));
    }
    writer.set(field, most);
    writer.set(pattern_field, others);
    Ok(())
}

/// A number as JSON, whole where it is.
pub fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < MAX_WHOLE && (value != 0.0 || value.is_sign_positive()) {
        return json!(value as i64);
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// The alpha that under `rule` gives the module's multiplier, to the bit where a number does.
fn alpha_of(module: &Scaled, rule: ScaleRule) -> Result<f64> {
    let wanted = module.scale.factor(module.rank);
    if !wanted.is_finite() || !module.scale.alpha.is_finite() {
        return Err(Error::unsupported(format!("a scale of {wanted}, expected a finite number")).at_key(&module.name));
    }
    if module.scale.rule == rule {
        return Ok(module.scale.alpha);
    }
    let divisor = if rule == ScaleRule::AlphaOverRootRank { (module.rank as f64).sqrt() } else { module.rank as f64 };
    let gives = |alpha: f64| Scale { alpha, rule }.factor(module.rank);
    let first = wanted * divisor;
    let near = [first, first.next_up(), first.next_down()];
    let best = near.into_iter().find(|&alpha| gives(alpha) == wanted).unwrap_or(first);
    if !best.is_finite() {
        return Err(Error::unsupported(format!("a scale of {wanted}: its alpha is too large")).at_key(&module.name));
    }
    Ok(best)
}

/// The value that stands most often; of several the smallest.
fn most_frequent<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_insert(0usize) += 1;
    }
    // `max_by_key` takes the last of equals, so the order is turned round.
    counts.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value)
}

/// A pattern that gives `value(i)` to every name for which `differs`, and matches none of the others.
pub fn pattern(names: &[&str], differs: &dyn Fn(usize) -> bool, value: &dyn Fn(usize) -> Value) -> Map<String, Value> {
    let mut by_length: HashMap<usize, Vec<usize>> = HashMap::new();
    for i in (0..names.len()).filter(|&i| differs(i)) {
        by_length.entry(names[i].chars().count()).or_default().push(i);
    }
    let mut anchored = vec![false; names.len()];
    for (other, name) in names.iter().enumerate() {
        let ends = std::iter::once(*name).chain(name.match_indices('.').map(|(at, _)| &name[at + 1..]));
        for end in ends {
            for &i in by_length.get(&end.chars().count()).into_iter().flatten() {
                if i != other && matches_plainly(names[i], end) {
                    anchored[i] = true;
                }
            }
        }
    }
    let mut out = Map::new();
    for i in (0..names.len()).filter(|&i| differs(i)) {
        out.insert(
            if anchored[i] { format!("^{}$", escaped(names[i], true)) } else { escaped(names[i], false) },
            value(i),
        );
    }
    out
}

/// Whether a key that is a path matches `text` of the same length: its dots stand for any character.
fn matches_plainly(key: &str, text: &str) -> bool {
    key.chars().zip(text.chars()).all(|(k, t)| k == t || k == '.')
}

/// A path as a regular expression; dots may stay as they are, since they match themselves.
pub fn escaped(path: &str, dots: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        let plain = c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/') || !c.is_ascii() || (c == '.' && !dots);
        if !plain {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(name: &str, rank: usize, alpha: f64, rule: ScaleRule) -> Scaled {
        Scaled { name: name.into(), rank, scale: Scale { alpha, rule } }
    }

    #[test]
    fn most_modules_need_no_pattern() {
        let over = ScaleRule::AlphaOverRank;
        let all = [scaled("a.q", 8, 16.0, over), scaled("a.k", 8, 16.0, over), scaled("a.v", 4, 2.5, over)];
        let s = Scaling::of(&all, true).unwrap();
        assert_eq!((s.rank, &s.alpha, s.root, s.folded), (8, &json!(16), false, 0));
        assert_eq!(json!(s.rank_pattern), json!({"a.v": 4}));
        assert_eq!(json!(s.alpha_pattern), json!({"a.v": 2.5}));
    }

    #[test]
    fn a_key_that_would_match_another_module_is_anchored() {
        let keys = |names: &[&str], at: usize| {
            let map = pattern(names, &|i| i == at, &|_| json!(1));
            map.keys().next().cloned().unwrap()
        };
        assert_eq!(keys(&["a.q", "b.a.q"], 0), r"^a\.q$");
        assert_eq!(keys(&["a.q", "b.a.q"], 1), "b.a.q");
        assert_eq!(keys(&["a.q", "aXq"], 0), r"^a\.q$");
        assert_eq!(keys(&["a.q", "aXq"], 1), "aXq");
        assert_eq!(keys(&["a.q", "ba.q"], 0), "a.q");
        assert_eq!(keys(&["a+q"], 0), r"a\+q");
    }

    #[test]
    fn a_multiplier_survives_as_alpha() {
        let mut inexact = 0;
        let mut seed = 1u64;
        for rank in 1..200 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let wanted = (seed >> 11) as f64 / (1u64 << 50) as f64;
            for (rule, other) in [
                (ScaleRule::Direct, ScaleRule::AlphaOverRank),
                (ScaleRule::AlphaOverRootRank, ScaleRule::AlphaOverRank),
                (ScaleRule::Direct, ScaleRule::AlphaOverRootRank),
            ] {
                let module = scaled("q", rank, wanted, rule);
                let wanted = module.scale.factor(rank);
                let text = number(alpha_of(&module, other).unwrap()).to_string();
                let found = Scale { alpha: text.parse().unwrap(), rule: other }.factor(rank);
                let apart = found.to_bits().abs_diff(wanted.to_bits());
                assert!(apart <= 1, "rank {rank}: {found} for {wanted}");
                inexact += usize::from(apart > 0);
            }
        }
        assert!(inexact < 100, "{inexact} of 597 multipliers changed in their last bit");
        assert!(alpha_of(&scaled("q", 2, f64::NAN, ScaleRule::Direct), ScaleRule::AlphaOverRank).is_err());
    }
}
