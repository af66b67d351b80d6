//! Rules that turn a name on disk into the name of the same tensor in memory.
//!
//! A rule is a regular expression and what to put in place of its first match. First every rename of every rule set is
//! applied, in order, then at most one conversion: a rule for a tensor that is put together from several, or taken
//! apart. The pattern of a rule ends where a word ends: `fc1` does not match in `fc11`. The rules see marked text (see
//! `outline`), so `\d+` stands for a counting number as well as for a plain one.
//!
//! The semantics follow huggingface/transformers:src/transformers/core_model_loading.py; the tables of that program use
//! look-around, which has its own words here: [`Rule::unless_before`], [`Rule::unless_after`].

use regex::Regex;

/// The rules of some model types.
pub struct Set {
    /// The values of `model_type` and `architectures` that call for these rules.
    pub names: &'static [&'static str],
    /// What a name has to start with for these rules to see it; they see what follows. If the checkpoint has no such
    /// name, the part stands alone in it and the rules see every name whole.
    within: &'static [&'static str],
    /// Whether they see nothing there.
    only_within: bool,
    /// The rules, in order.
    pub rules: &'static [Rule],
}

impl Set {
    /// Rules for the whole of a model.
    pub const fn whole(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set { names, within: &[], only_within: false, rules }
    }

    /// Rules for the language model inside a model.
    pub const fn text(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set { names, within: &["model.language_model.", "language_model."], only_within: false, rules }
    }

    /// Rules for the part of an omni model that understands, beside the part that talks.
    pub const fn thinker(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set { names, within: &["thinker."], only_within: false, rules }
    }

    /// Rules for the audio tower of a model.
    pub const fn audio(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set { names, within: &["model.audio_tower.", "audio_tower."], only_within: false, rules }
    }

    /// Rules for the vision tower of a model.
    pub const fn tower(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        let within = &[
            "model.vision_tower.",
            "model.vision_model.",
            "model.vision_encoder.",
            "model.image_tower.",
            "model.video_tower.",
            "model.visual.",
            "vision_tower.",
            "vision_model.",
            "vision_encoder.",
            "visual.",
        ];
        Set { names, within, only_within: false, rules }
    }

    /// Rules for the backbone of a model that finds or segments objects.
    pub const fn backbone(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        let within = &["model.backbone.", "model.pixel_level_module.", "backbone.", "pixel_level_module."];
        Set { names, within, only_within: false, rules }
    }

    /// Rules for the first of two image encoders inside a tower.
    pub const fn sam_encoder(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set {
            names,
            within: &["model.vision_tower.sam_encoder.", "vision_tower.sam_encoder."],
            only_within: false,
            rules,
        }
    }

    /// Rules for the second.
    pub const fn vision_encoder(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        Set {
            names,
            within: &["model.vision_tower.vision_encoder.", "vision_tower.vision_encoder."],
            only_within: false,
            rules,
        }
    }

    /// Rules for a tower that contains a `vision_model` of its own, never for a whole model.
    pub const fn clip(names: &'static [&'static str], rules: &'static [Rule]) -> Set {
        let within = &[
            "model.vision_tower.",
            "model.image_tower.",
            "model.video_tower.",
            "model.vision_encoder.",
            "vision_tower.",
            "image_tower.",
            "video_tower.",
        ];
        Set { names, within, only_within: true, rules }
    }

    /// For each name what the rules see of it: from which byte. `None`: it is not for them.
    fn starts(&self, names: &[String]) -> Vec<Option<usize>> {
        let start = |name: &String| self.within.iter().find(|prefix| name.starts_with(**prefix)).map(|p| p.len());
        let inside: Vec<_> = names.iter().map(start).collect();
        if self.only_within || inside.iter().any(Option::is_some) { inside } else { vec![Some(0); names.len()] }
    }
}

/// What a conversion does with the tensors it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The matrices of all experts become one tensor; several sources lie above each other in each expert.
    Stack,
    /// The same, and each matrix is transposed: the sources lie side by side.
    StackTransposed,
    /// The same as `Stack`, and the first half of the experts is the first target, the second half the second.
    StackHalves,
    /// The sources lie above each other.
    Join,
    /// The sources are tensors of all experts and lie above each other in each of them.
    JoinExperts,
    /// The targets are equal shares of the rows of the source.
    Split,
    /// The same, and the rows of all targets but the last are permuted (queries and keys, for rotary embedding).
    SplitTurned,
    /// The last two axes change places.
    Transpose,
    /// The same for a tensor of all experts, unless its shape shows that it was done before.
    TransposeExperts,
    /// The target cannot be described by parts of the source.
    Opaque,
}

/// One rule.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Pairs of patterns and replacements for a rename; a conversion pairs every source with every target.
    kind: Kind,
    unless_before: &'static [&'static str],
    unless_after: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    Rename { pattern: &'static str, replacement: &'static str, shift: usize },
    Cascade(&'static [(&'static str, &'static str)]),
    Convert { op: Op, sources: &'static [&'static str], targets: &'static [&'static str] },
}

impl Rule {
    const fn new(kind: Kind) -> Rule {
        Rule { kind, unless_before: &[], unless_after: &[] }
    }

    /// The rule does not hold where one of these texts follows.
    pub const fn unless_before(self, texts: &'static [&'static str]) -> Rule {
        Rule { unless_before: texts, ..self }
    }

    /// The rule does not hold where one of these texts precedes.
    pub const fn unless_after(self, texts: &'static [&'static str]) -> Rule {
        Rule { unless_after: texts, ..self }
    }

    /// Every pattern of the rule.
    #[cfg(test)]
    pub fn patterns(&self) -> Vec<&'static str> {
        match self.kind {
            Kind::Rename { pattern, .. } => vec![pattern],
            Kind::Cascade(pairs) => pairs.iter().map(|pair| pair.0).collect(),
            Kind::Convert { sources, .. } => sources.to_vec(),
        }
    }
}

/// `replacement` for `pattern`.
pub const fn rename(pattern: &'static str, replacement: &'static str) -> Rule {
    Rule::new(Kind::Rename { pattern, replacement, shift: 0 })
}

/// The same, where the group of the pattern is a number that counts from `shift` in memory.
pub const fn rename_shifted(pattern: &'static str, replacement: &'static str, shift: usize) -> Rule {
    Rule::new(Kind::Rename { pattern, replacement, shift })
}

/// Renames where one makes what the next would match. Each name takes at most one, and none takes any if the
/// checkpoint has no match for the first: then it is renamed already.
pub const fn cascade(pairs: &'static [(&'static str, &'static str)]) -> Rule {
    Rule::new(Kind::Cascade(pairs))
}

macro_rules! conversions {
    ($($name:ident: $op:ident;)*) => {$(
        #[doc = concat!("A conversion, see [`Op::", stringify!($op), "`].")]
        pub const fn $name(sources: &'static [&'static str], targets: &'static [&'static str]) -> Rule {
            Rule::new(Kind::Convert { op: Op::$op, sources, targets })
        }
    )*};
}

conversions! {
    stack: Stack;
    stack_transposed: StackTransposed;
    stack_halves: StackHalves;
    join: Join;
    join_experts: JoinExperts;
    split: Split;
    split_turned: SplitTurned;
    transpose: Transpose;
    transpose_experts: TransposeExperts;
    opaque: Opaque;
}

/// What the rules make of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// The names in memory of what comes of it: one, or one for each target of a conversion.
    pub names: Vec<String>,
    /// The conversion that takes the tensor in.
    pub conversion: Option<Conversion>,
    /// The model type of the last rule that changed something. `None`: nothing did, or a rule that holds for all.
    pub by: Option<&'static str>,
}

/// The part of a tensor in a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Which conversion: no two rules have the same number.
    pub rule: usize,
    /// What it does.
    pub op: Op,
    /// Which of the sources the tensor is, and of how many.
    pub source: (usize, usize),
}

/// What these rule sets make of these names, which are all the names of one checkpoint.
pub fn rewrite(names: &[String], sets: &[(&Set, Option<&'static str>)]) -> Vec<Rewritten> {
    let mut renamed = names.to_vec();
    let mut by = vec![None; names.len()];
    for (set, label) in sets {
        let before = renamed.clone();
        rename_all(set, &mut renamed);
        for ((old, new), by) in before.iter().zip(&renamed).zip(&mut by) {
            *by = if old == new { *by } else { *label };
        }
    }
    let mut out: Vec<_> = renamed
        .iter()
        .zip(by)
        .map(|(name, by)| Rewritten { names: vec![name.clone()], conversion: None, by })
        .collect();
    let mut rule = 0;
    for (set, label) in sets {
        rule = convert_all(set, *label, rule, &renamed, &mut out);
    }
    out
}

fn rename_all(set: &Set, names: &mut [String]) {
    for rule in set.rules {
        let pairs = match rule.kind {
            Kind::Rename { pattern, replacement, shift } => vec![(pattern, replacement, shift)],
            Kind::Cascade(pairs) => pairs.iter().map(|(pattern, replacement)| (*pattern, *replacement, 0)).collect(),
            Kind::Convert { .. } => continue,
        };
        let guarded = matches!(rule.kind, Kind::Cascade(_));
        let pairs: Vec<_> = pairs.into_iter().filter_map(|(p, r, shift)| Some((compile(p)?, r, shift))).collect();
        // One rule may move a name under the prefix of the part that the next is for.
        let starts = set.starts(names);
        let seen = |name: &str, start: usize, regex: &Regex| first_match(regex, rule, name.get(start..)?).map(|_| ());
        let first = pairs.first();
        let active = !guarded
            || first.is_some_and(|(regex, ..)| {
                names.iter().zip(&starts).any(|(name, start)| start.and_then(|s| seen(name, s, regex)).is_some())
            });
        if !active {
            continue;
        }
        for (name, start) in names.iter_mut().zip(&starts) {
            let Some(start) = *start else { continue };
            let new = pairs.iter().find_map(|(regex, by, shift)| replaced(regex, rule, name, start, by, *shift));
            if let Some(new) = new {
                *name = new;
            }
        }
    }
}

fn convert_all(
    set: &Set,
    label: Option<&'static str>,
    mut number: usize,
    names: &[String],
    out: &mut [Rewritten],
) -> usize {
    let starts = set.starts(names);
    for rule in set.rules {
        let Kind::Convert { op, sources, targets } = rule.kind else { continue };
        number += 1;
        for (source, pattern) in sources.iter().enumerate() {
            let Some(regex) = compile(pattern) else { continue };
            for ((name, start), out) in names.iter().zip(&starts).zip(out.iter_mut()) {
                let Some(start) = start.filter(|_| out.conversion.is_none()) else { continue };
                let made: Option<Vec<_>> =
                    targets.iter().map(|target| replaced(&regex, rule, name, start, target, 0)).collect();
                if let Some(made) = made {
                    let conversion = Conversion { rule: number, op, source: (source, sources.len()) };
                    *out = Rewritten { names: made, conversion: Some(conversion), by: label.or(out.by) };
                }
            }
        }
    }
    number
}

/// The pattern, ending where a word ends. No pattern of the tables fails to compile; one that did would match nothing.
fn compile(pattern: &str) -> Option<Regex> {
    let word = pattern.ends_with(|c: char| c.is_ascii_alphanumeric()) && !pattern.ends_with(r"\d");
    if word { Regex::new(&format!(r"{pattern}\b")) } else { Regex::new(pattern) }.ok()
}

fn first_match<'a>(regex: &Regex, rule: &Rule, text: &'a str) -> Option<regex::Captures<'a>> {
    regex.captures_iter(text).find(|captures| {
        let Some(whole) = captures.get(0) else { return false };
        let (before, after) = (text.get(..whole.start()), text.get(whole.end()..));
        !rule.unless_after.iter().any(|end| before.is_some_and(|text| text.ends_with(end)))
            && !rule.unless_before.iter().any(|start| after.is_some_and(|text| text.starts_with(start)))
    })
}

/// `name` with the first match after byte `start` replaced.
fn replaced(regex: &Regex, rule: &Rule, name: &str, start: usize, by: &str, shift: usize) -> Option<String> {
    let (head, text) = name.split_at_checked(start)?;
    let captures = first_match(regex, rule, text)?;
    let whole = captures.get(0)?;
    let mut out = format!("{head}{}", text.get(..whole.start())?);
    if shift == 0 {
        captures.expand(by, &mut out);
    } else {
        let number = captures.get(1)?.as_str().parse::<usize>().ok()?.checked_add(shift)?;
        out.push_str(&by.replace("${1}", &number.to_string()));
    }
    out.push_str(text.get(whole.end()..)?);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::family;
    use super::*;

    fn names(names: &[&str], model_types: &[&str]) -> Vec<String> {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let types: Vec<String> = model_types.iter().map(|n| (*n).to_owned()).collect();
        rewrite(&names, &family::sets(&types)).into_iter().map(|r| r.names.join(" + ")).collect()
    }

    #[test]
    fn every_pattern_of_the_tables_compiles() {
        for pattern in family::all().flat_map(Rule::patterns) {
            assert!(compile(pattern).is_some(), "{pattern}");
        }
    }

    #[test]
    fn what_precedes_and_what_follows_can_forbid() {
        let made = names(
            &["model.layers.0.w", "model.language_model.layers.0.w", "visual.merger.w", "model.visual.w"],
            &["qwen2_vl"],
        );
        let stays = "model.language_model.layers.0.w";
        assert_eq!(made, [stays, stays, "model.visual.merger.w", "model.visual.w"]);
        let made = names(&["embed_tokens.w", "model.language_model.embed_tokens.w"], &["ernie4_5_vl_moe"]);
        assert_eq!(made, ["language_model.embed_tokens.w", "model.language_model.embed_tokens.w"]);
    }

    #[test]
    fn a_pattern_ends_where_a_word_ends() {
        assert_eq!(
            names(&["layers.0.mlp.fc11.weight", "layers.0.mlp.fc2.weight"], &["nomic_bert"]),
            ["layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight"]
        );
        assert_eq!(names(&["a.weight_g", "a.weight_global"], &[])[1], "a.weight_global");
    }

    #[test]
    fn a_cascade_starts_only_where_its_first_name_is() {
        let block = |leaf: &str| format!("vision_tower.encoder.blocks.3.{leaf}.weight");
        let (zero, one) = (block("norm0"), block("norm1"));
        let layer = |leaf: &str| format!("model.vision_tower.layers.3.{leaf}.weight");
        assert_eq!(names(&[&zero, &one], &["kimi_k25"]), [layer("norm1"), layer("norm2")]);
        assert_eq!(names(&[&one], &["kimi_k25"]), [layer("norm1")]);
    }

    #[test]
    fn rules_of_a_part_see_that_part() {
        let types = ["mistral_large4", "mistral_large4_text"];
        let made = names(&["layers.0.attention.wkv_b.weight", "vision_encoder.layers.0.attention.wv.weight"], &types);
        assert_eq!(made[0], "model.language_model.layers.0.self_attn.kv_b_proj.weight");
        assert_eq!(made[1], "model.vision_tower.layers.0.attention.v_proj.weight");
    }

    #[test]
    fn a_number_may_be_shifted() {
        let made = names(&["model.llm.attn_res.attn_queries.4"], &["inkling2_text"]);
        assert_eq!(made, ["model.layers.5.attention_input.query"]);
    }
}
