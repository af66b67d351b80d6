//! The tables of `names::diffusion` against lists of parameters: the native model's own, and those of diffusers.

use std::collections::{BTreeMap, BTreeSet};

use lora_tool::names::diffusion::{Ending, Extent, Module, Naming, Order, Part, Role, Target, family};

use crate::sources::project;

/// Modules by name, with a mark of how parameters follow, and the shape of the weight.
type Names = BTreeMap<String, Vec<u64>>;

/// A fixture.
struct Case {
    native: Names,
    diffusers: Names,
}

fn read(case: &str) -> Case {
    let path = project().join("fixtures/diffusion").join(format!("{case}.tsv"));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut out = Case { native: Names::new(), diffusers: Names::new() };
    for line in text.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let shape: Vec<u64> = fields[2].split(' ').filter(|f| !f.is_empty()).map(|f| f.parse().unwrap()).collect();
        let into = if fields[0] == "N" { &mut out.native } else { &mut out.diffusers };
        for name in expand(fields[1]) {
            assert!(into.insert(name, shape.clone()).is_none(), "{line} twice in {case}");
        }
    }
    out
}

/// `a.{0-2,5}.b` in full.
fn expand(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else { return vec![pattern.to_string()] };
    let (numbers, tail) = rest.split_once('}').unwrap();
    let mut out = Vec::new();
    for range in numbers.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        for n in from.parse::<u64>().unwrap()..=to.parse().unwrap() {
            out.extend(expand(tail).iter().map(|tail| format!("{head}{n}{tail}")));
        }
    }
    out
}

/// A module as the fixtures write it.
fn written(module: &Module) -> String {
    match module.ending {
        Ending::Dot => module.path.clone(),
        Ending::Underscore => format!("{}_", module.path),
        Ending::Bare => format!("{}!", module.path),
    }
}

fn listed(part: &Part, naming: Naming, extents: &[Extent]) -> Names {
    let mut out = Names::new();
    for module in part.modules(naming, extents) {
        let shape = module.shape.clone().unwrap_or_else(|| panic!("no shape for {}", module.path));
        assert!(out.insert(written(&module), shape).is_none(), "{} twice", module.path);
        let again = part.module(naming, &module.path, extents).unwrap();
        assert_eq!(again, module, "{}", module.path);
        assert!(part.contains(naming, &module.path, extents), "{}", module.path);
    }
    out
}

fn path(written: &str) -> &str {
    written.trim_end_matches(['!', '_'])
}

/// Every name once and nothing else, but for names that stand on one side only.
fn compare(what: &str, ours: &Names, theirs: &Names, besides: &[&str]) {
    let skip = |name: &str| besides.iter().any(|b| name.starts_with(b));
    let missing: Vec<_> = theirs.iter().filter(|(n, s)| !skip(n) && ours.get(*n) != Some(s)).collect();
    let invented: Vec<_> = ours.iter().filter(|(n, s)| !skip(n) && theirs.get(*n) != Some(s)).collect();
    let first = |all: &Vec<(&String, &Vec<u64>)>| all.iter().take(12).map(|x| format!("{x:?}")).collect::<Vec<_>>();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: {} not in the table or otherwise: {:#?}\n{} only in the table or otherwise: {:#?}",
        missing.len(),
        first(&missing),
        invented.len(),
        first(&invented)
    );
}

/// A flat name leads to one dotted name, that of the list.
fn unflattens(part: &Part, naming: Naming, names: &Names) {
    let mut flat = BTreeSet::new();
    for name in names.keys().map(|n| path(n)) {
        assert!(flat.insert(name.replace('.', "_")), "{name} collides");
        let found = part.unflatten(naming, &name.replace('.', "_"));
        assert_eq!(found.as_deref(), Some(name), "{naming:?}");
    }
}

/// From each name of one list to the other: every name there is reached, its rows once, and each way leads back.
fn translates(part: &Part, (from, ours): (Naming, &Names), (to, theirs): (Naming, &Names), extents: &[Extent]) {
    let shapes =
        |names: &Names| names.iter().map(|(n, s)| (path(n).to_string(), s.clone())).collect::<BTreeMap<_, _>>();
    let (ours, theirs) = (shapes(ours), shapes(theirs));
    let mut filled: BTreeMap<&str, Vec<std::ops::Range<u64>>> = BTreeMap::new();
    for (name, shape) in &ours {
        let targets = part.translate(from, to, name, extents).unwrap_or_else(|| panic!("{name} has no {to:?} name"));
        for target in &targets {
            let there = theirs.get(&target.path).unwrap_or_else(|| panic!("{name} becomes {}", target.path));
            let rows = check_shapes(target, shape, there);
            filled.entry(theirs.get_key_value(&target.path).unwrap().0).or_default().push(rows);
            let back = part.translate(to, from, &target.path, extents).unwrap();
            let mirror = |t: &&Target| t.path == *name && t.take == target.put && t.put == target.take;
            let found = back.iter().find(mirror).unwrap_or_else(|| panic!("{} does not lead to {name}", target.path));
            assert_eq!(found.order, target.order);
        }
    }
    for (name, shape) in &theirs {
        let rows = filled.get_mut(name.as_str()).unwrap_or_else(|| panic!("nothing becomes {name}"));
        rows.sort_by_key(|r| r.start);
        let ends: Vec<u64> = rows.iter().map(|r| r.end).collect();
        let starts: Vec<u64> = rows.iter().map(|r| r.start).collect();
        let whole = shape.first().copied().unwrap_or(1);
        assert_eq!((starts[0], ends[ends.len() - 1]), (0, whole), "{name}");
        assert_eq!(starts[1..], ends[..ends.len() - 1], "{name}");
    }
}

/// That shapes agree, and the rows of the target that are filled.
fn check_shapes(target: &Target, from: &[u64], to: &[u64]) -> std::ops::Range<u64> {
    let mut from = from.to_vec();
    if target.order == Order::Transposed {
        from.reverse();
    }
    let total = |shape: &[u64]| shape.first().copied().unwrap_or(1);
    let take = target.take.range(total(&from)).unwrap();
    let put = target.put.range(total(to)).unwrap();
    assert_eq!(take.end - take.start, put.end - put.start, "{target:?}");
    assert_eq!(from.get(1..), to.get(1..), "{target:?}");
    put
}

fn check(case: &str, name: &str, variant: &str, role: Role, only_native: &[&str], only_diffusers: &[&str]) {
    let family = family(name).unwrap();
    let extents = family.variant(variant).unwrap_or_else(|| panic!("{name} has no {variant}")).extents;
    check_part(
        case,
        family.part(role).unwrap(),
        if role == Role::Denoiser { extents } else { &[] },
        only_native,
        only_diffusers,
    );
}

fn check_part(case: &str, part: &Part, extents: &[Extent], only_native: &[&str], only_diffusers: &[&str]) {
    let lists = read(case);
    let native = listed(part, Naming::Native, extents);
    let diffusers = listed(part, Naming::Diffusers, extents);
    if !lists.native.is_empty() {
        compare(&format!("{case}, native"), &native, &lists.native, only_native);
    }
    if !lists.diffusers.is_empty() {
        compare(&format!("{case}, diffusers"), &diffusers, &lists.diffusers, only_diffusers);
    }
    unflattens(part, Naming::Native, &native);
    unflattens(part, Naming::Diffusers, &diffusers);
    translates(part, (Naming::Native, &native), (Naming::Diffusers, &diffusers), extents);
    translates(part, (Naming::Diffusers, &diffusers), (Naming::Native, &native), extents);
    if part.namings().contains(&Naming::Comfy) {
        let comfy = listed(part, Naming::Comfy, extents);
        unflattens(part, Naming::Comfy, &comfy);
        for (naming, names) in [(Naming::Native, &native), (Naming::Diffusers, &diffusers)] {
            translates(part, (Naming::Comfy, &comfy), (naming, names), extents);
            translates(part, (naming, names), (Naming::Comfy, &comfy), extents);
        }
    }
}

#[test]
fn the_u_nets_of_stable_diffusion() {
    check("sd1", "sd1", "SD 1.5", Role::Denoiser, &[], &[]);
    check("sd2", "sd2", "SD 2.1", Role::Denoiser, &[], &[]);
    check("sdxl", "sdxl", "SDXL base", Role::Denoiser, &[], &[]);
    check("sdxl_refiner", "sdxl_refiner", "SDXL refiner", Role::Denoiser, &[], &[]);
}

#[test]
fn clip_in_all_its_spellings() {
    check("clip_g", "sdxl", "SDXL base", Role::OpenClip, &[], &[]);
    // Transformers no longer has the level `text_model` here.
    let part = family("sdxl").unwrap().part(Role::ClipL).unwrap();
    let full = listed(part, Naming::Diffusers, &[]);
    let short = read("clip_l").diffusers;
    assert_eq!(short.len(), full.len());
    for (name, shape) in short {
        let module = part.module(Naming::Diffusers, &name, &[]).unwrap();
        assert_eq!((&module.path, module.shape), (&format!("text_model.{name}"), Some(shape)));
        assert_eq!(part.unflatten(Naming::Diffusers, &name.replace('.', "_")), Some(module.path));
    }
}
