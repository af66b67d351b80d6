//! Which family an adapter or a checkpoint is for, by the names of its modules and their shapes.
//!
//! Every family is asked how many of the names are its own, in which naming, and how many of the shapes; then for each
//! of its sizes, whether all blocks exist. Several families can have the same answer: adapters that touch attention
//! alone are often for one of many. They are all returned, the likeliest first.

use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;

use super::extent::Extent;
use super::families::FAMILIES;
use super::family::{Family, Variant};
use super::part::{Home, Naming, Part, Role};
use super::pattern::{Form, key};
use super::table::{Hit, Line, Side};

/// A module as a file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// Its path, dotted or flat, with or without the prefix of its container.
    pub path: &'a str,
    /// The shape of its weight, if it is known whole: `[out, in]`, for a convolution with the kernel.
    pub shape: Option<&'a [u64]>,
}

/// A family that modules can be of.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The family.
    pub family: &'static Family,
    /// The sizes they can be of; none of them if their shapes are of no known size.
    pub variants: Vec<&'static Variant>,
    /// The naming of the denoiser.
    pub naming: Naming,
    /// Share of the modules that are this family's, from 0 to 1.
    pub score: f64,
    /// What speaks for it and against it, in sentences.
    pub because: Vec<String>,
    /// How many kinds of blocks end with the last one of a whole model.
    whole: usize,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        std::ptr::eq(self, other)
    }
}

/// The families that explain most of these modules, the likeliest first. Nothing if no module is any family's.
pub fn detect(modules: &[Seen<'_>]) -> Vec<Candidate> {
    let homes = homes();
    let cut: Vec<Cut<'_>> = modules.iter().map(|seen| Cut::new(*seen, &homes)).collect();
    let mut all: Vec<Candidate> =
        FAMILIES.iter().enumerate().filter_map(|(number, family)| candidate(family, bit(number), &cut)).collect();
    let best = all.iter().map(|c| c.score).fold(0.0, f64::max);
    all.retain(|c| c.score >= best);
    // A stable sort: of equals, the one that is met more often stays first.
    all.sort_by_key(|c| std::cmp::Reverse((!c.variants.is_empty(), c.whole)));
    all
}

/// A home for each prefix there is, the longest first.
fn homes() -> Vec<&'static Home> {
    let mut all: Vec<_> = FAMILIES.iter().flat_map(|family| family.parts).flat_map(|part| part.homes).collect();
    all.sort_by_key(|home| (std::cmp::Reverse(home.prefix.len()), home.prefix));
    all.dedup_by_key(|home| home.prefix);
    all
}

/// Families, a bit for each. It only says whom to ask; were there more than there are bits, the others would be asked always.
type Families = u128;

fn bit(number: usize) -> Families {
    u32::try_from(number).ok().and_then(|number| 1u128.checked_shl(number)).unwrap_or(Families::MAX)
}

/// The families that have names with this key, in any of their namings.
fn with_key(key: &str) -> Families {
    static INDEX: OnceLock<HashMap<String, Families>> = OnceLock::new();
    INDEX.get_or_init(index).get(key).copied().unwrap_or_default()
}

fn index() -> HashMap<String, Families> {
    let mut out: HashMap<String, Families> = HashMap::new();
    for (number, family) in FAMILIES.iter().enumerate() {
        for part in family.parts {
            for pattern in part.patterns() {
                let key = key(pattern);
                let optional = part.optional.replace('.', "_");
                let short = key.strip_prefix(&optional).and_then(|rest| rest.strip_prefix('_')).map(str::to_owned);
                for key in short.into_iter().chain([key]) {
                    *out.entry(key).or_default() |= bit(number);
                }
            }
        }
    }
    out
}

/// A module, and what is left of its path after each prefix it has.
struct Cut<'a> {
    rests: Vec<Rest<'a>>,
    shape: Option<&'a [u64]>,
}

/// What is left of a path after a prefix.
struct Rest<'a> {
    prefix: &'static str,
    path: &'a str,
    key: String,
    form: Form,
    families: Families,
}

impl<'a> Cut<'a> {
    fn new(seen: Seen<'a>, homes: &[&'static Home]) -> Cut<'a> {
        let rest = |home: &&'static Home| {
            let path = home.strip(seen.path)?;
            let form = if path.contains('.') { Form::Dotted } else { Form::Flat };
            let key = key(path);
            Some(Rest { prefix: home.prefix, path, families: with_key(&key), key, form })
        };
        Cut { rests: homes.iter().filter_map(rest).collect(), shape: seen.shape }
    }
}

fn candidate(family: &'static Family, own: Families, modules: &[Cut<'_>]) -> Option<Candidate> {
    // Most families have none of the names.
    let known: Vec<_> = modules.iter().filter(|cut| cut.rests.iter().any(|rest| rest.families & own != 0)).collect();
    let mut best: Option<(bool, Candidate)> = None;
    for naming in family.denoiser()?.namings() {
        let mut found = Kinds::default();
        for module in &known {
            found.add(family, *naming, module);
        }
        if found.known == 0 {
            continue;
        }
        // Of two namings with the same names, it is the one that goes with the prefix.
        let this = judge(family, *naming, &found, modules.len());
        let better = |(usual, old): &(bool, Candidate)| (this.score, found.usual) > (old.score, *usual);
        if best.as_ref().is_none_or(better) {
            best = Some((found.usual, this));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Modules that have the name of one of a family's, those of the same lines and shapes together.
#[derive(Default)]
struct Kinds<'a> {
    kinds: HashMap<(*const Line, usize, Option<&'a [u64]>), Kind<'a>>,
    /// How many modules they are.
    known: usize,
    /// Whether a prefix goes with the naming.
    usual: bool,
}

/// Modules of the same lines and shape.
struct Kind<'a> {
    part: &'static Part,
    side: Side,
    lines: Vec<(&'static Line, usize)>,
    shape: Option<&'a [u64]>,
    /// The numbers of the blocks of each.
    numbers: Vec<Vec<u64>>,
}

impl<'a> Kinds<'a> {
    /// Puts a module where it belongs, if the denoiser has this naming.
    fn add(&mut self, family: &'static Family, naming: Naming, module: &Cut<'a>) {
        let Some((part, usual, side, hits)) = find(family, naming, module) else { return };
        let Some(first) = hits.first() else { return };
        let kind =
            self.kinds.entry((std::ptr::from_ref(first.line), first.part, module.shape)).or_insert_with(|| Kind {
                part,
                side,
                lines: hits.iter().map(|hit| (hit.line, hit.part)).collect(),
                shape: module.shape,
                numbers: Vec::new(),
            });
        kind.numbers.push(first.numbers.clone());
        self.known += 1;
        self.usual |= usual;
    }
}

/// Where a module is in a family, if the denoiser has this naming; and whether its prefix goes with it.
fn find(
    family: &'static Family,
    naming: Naming,
    module: &Cut<'_>,
) -> Option<(&'static Part, bool, Side, Vec<Hit<'static>>)> {
    for part in family.parts {
        let denoiser = part.role == Role::Denoiser;
        let namings = if denoiser { std::slice::from_ref(&naming) } else { part.namings() };
        for rest in &module.rests {
            if !(part.homes.iter().any(|home| home.prefix == rest.prefix) || denoiser && rest.prefix.is_empty()) {
                continue;
            }
            for naming in namings {
                let (side, hits) = part.hits(*naming, rest.path, &rest.key, rest.form);
                if !hits.is_empty() {
                    let usual = part.homes.iter().any(|home| home.prefix == rest.prefix && home.naming == *naming);
                    return Some((part, usual, side, hits));
                }
            }
        }
    }
    None
}

/// How well found modules agree with a size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fit {
    /// Shapes that are as they should be.
    agree: usize,
    /// Shapes that are not, and modules this size does without.
    differ: usize,
    /// Blocks that a whole model of this size does not have.
    beyond: usize,
}

impl Fit {
    /// What speaks against it, in halves of a module: a block too many can come of a model that was made larger.
    fn against(self) -> usize {
        2 * self.differ + self.beyond
    }
}

fn judge(family: &'static Family, naming: Naming, found: &Kinds<'_>, total: usize) -> Candidate {
    let fits: Vec<(&'static Variant, Fit)> = family.variants.iter().map(|v| (v, fit(found, v.extents))).collect();
    let least = fits.iter().map(|(_, fit)| fit.against()).min().unwrap_or_default();
    let best: Vec<_> = fits.into_iter().filter(|(_, fit)| fit.against() == least).collect();
    let fit = best.first().map(|(_, fit)| *fit).unwrap_or_default();
    let whole = best.iter().map(|(v, _)| whole(found, v.extents)).max().unwrap_or_default();
    let known = found.known;
    #[expect(clippy::cast_precision_loss, reason = "counts of modules")]
    let score = (known as f64 - least.min(2 * known) as f64 / 2.0) / total as f64;
    let mut because = vec![format!("{known} of {total} modules have its {} names", spoken(naming))];
    if fit.agree > 0 || fit.differ > 0 {
        because.push(format!("{} shapes are its own, {} are not", fit.agree, fit.differ));
    }
    if fit.beyond > 0 {
        because.push(format!("{} modules are in blocks it does not have", fit.beyond));
    }
    if whole > 0 {
        because.push("the last blocks are those of a whole model".to_owned());
    }
    let variants = if fit.differ > 0 { Vec::new() } else { best.into_iter().map(|(variant, _)| variant).collect() };
    Candidate { family, variants, naming, score, because, whole }
}

fn spoken(naming: Naming) -> &'static str {
    match naming {
        Naming::Native => "native",
        Naming::Diffusers => "diffusers",
        Naming::Comfy => "ComfyUI",
    }
}

fn fit(found: &Kinds<'_>, extents: &[Extent]) -> Fit {
    let mut out = Fit::default();
    for kind in found.kinds.values() {
        let extents = kind.extents(extents);
        let lines: Vec<_> = kind
            .lines
            .iter()
            .map(|(line, part)| (line.limits(&extents), line.shape(kind.side, *part, &extents)))
            .collect();
        for numbers in &kind.numbers {
            let here = || lines.iter().filter(|(limits, _)| limits.admit(numbers));
            let right = |own: &Option<Vec<u64>>| match (own, kind.shape) {
                (Some(own), Some(seen)) => own == seen,
                _ => true,
            };
            match here().any(|(_, own)| right(own)) {
                true => out.agree += usize::from(kind.shape.is_some()),
                false => out.differ += 1,
            }
            out.beyond += usize::from(here().count() > 0 && !here().any(|(limits, _)| limits.contain(numbers)));
        }
    }
    out
}

/// How many kinds of blocks of the denoiser end with the last one of a whole model.
fn whole(found: &Kinds<'_>, extents: &[Extent]) -> usize {
    let mut ends = BTreeSet::new();
    for kind in found.kinds.values().filter(|kind| kind.part.role == Role::Denoiser) {
        let extents = kind.extents(extents);
        for (line, _) in &kind.lines {
            let limits = line.limits(&extents);
            ends.extend(kind.numbers.iter().flat_map(|numbers| limits.ends(numbers)));
        }
    }
    ends.len()
}

impl Kind<'_> {
    /// The extents of a size, as they hold in this part.
    fn extents(&self, variant: &[Extent]) -> Vec<Extent> {
        match self.part.role {
            Role::Denoiser => self.part.extents.iter().chain(variant).copied().collect(),
            _ => self.part.extents.to_vec(),
        }
    }
}
