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
    let skip = |name: &str| besides.iter().any(|b| name.contains(b));
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

#[test]
fn flux_and_its_kin() {
    check("flux1_dev", "flux1", "FLUX.1 dev", Role::Denoiser, &[], &[]);
    check("flux1_schnell", "flux1", "FLUX.1 schnell", Role::Denoiser, &[], &[]);
    check("chroma", "chroma", "Chroma", Role::Denoiser, &[], &[]);
    check("flux2_dev", "flux2", "FLUX.2 dev", Role::Denoiser, &[], &[]);
    check("flux2_klein_9b", "flux2", "FLUX.2 Klein 9B", Role::Denoiser, &[], &[]);
    check("flux2_klein_4b", "flux2", "FLUX.2 Klein 4B", Role::Denoiser, &[], &[]);
}

#[test]
fn stable_diffusion_3() {
    check("sd3_medium", "sd3", "SD 3 medium", Role::Denoiser, &[], &[]);
    check("sd35_medium", "sd3", "SD 3.5 medium", Role::Denoiser, &[], &[]);
    check("sd35_large", "sd3", "SD 3.5 large", Role::Denoiser, &[], &[]);
}

#[test]
fn hunyuan() {
    check("hunyuan_video", "hunyuan_video", "HunyuanVideo", Role::Denoiser, &[], &[]);
    check("hunyuan_video_15", "hunyuan_video_15", "HunyuanVideo 1.5", Role::Denoiser, &[], &[]);
    // What diffusers makes without being told has no encoder of glyphs.
    check("hunyuan_image", "hunyuan_image", "HunyuanImage 2.1", Role::Denoiser, &[], &["context_embedder_2"]);
}

#[test]
fn wan() {
    check("wan_t2v_1_3b", "wan", "Wan 2.1 1.3B T2V", Role::Denoiser, &[], &[]);
    check("wan_t2v_14b", "wan", "Wan 14B T2V", Role::Denoiser, &[], &[]);
    check("wan_i2v_14b", "wan", "Wan 2.1 14B I2V", Role::Denoiser, &[], &[]);
    check("wan_ti2v_5b", "wan", "Wan 2.2 5B TI2V", Role::Denoiser, &[], &[]);
}

#[test]
fn qwen_z_lumina() {
    check("qwen_image", "qwen_image", "Qwen-Image", Role::Denoiser, &[], &[]);
    check("z_image", "z_image", "Z-Image", Role::Denoiser, &[], &[]);
    check(
        "lumina2",
        "lumina2",
        "Lumina Image 2",
        Role::Denoiser,
        &["norm_final"],
        &["time_caption_embed.caption_embedder"],
    );
}

#[test]
fn the_other_families() {
    let all = [
        ("hunyuan_image_distilled", "hunyuan_image", "HunyuanImage 2.1 distilled"),
        ("wan_flf2v_14b", "wan", "Wan 2.1 14B FLF2V"),
        ("wan_vace_14b", "wan", "Wan 2.1 14B VACE"),
        ("ltx_video", "ltx", "LTX-Video 2B"),
        ("ltx2", "ltx2", "LTX-2"),
        ("auraflow", "auraflow", "AuraFlow 0.1"),
        ("pixart_sigma", "pixart", "PixArt sigma"),
        ("pixart_alpha", "pixart", "PixArt alpha"),
        ("mochi", "mochi", "Mochi 1"),
        ("hidream", "hidream", "HiDream-I1"),
        ("cosmos_2b", "cosmos2", "Cosmos-Predict2 2B T2I"),
        ("cosmos_14b", "cosmos2", "Cosmos-Predict2 14B T2I"),
        ("ideogram4", "ideogram4", "Ideogram 4"),
        ("minimax_h3", "minimax_h3", "MiniMax-H3"),
        ("kandinsky5", "kandinsky5", "Kandinsky 5 lite"),
    ];
    for (case, family, variant) in all {
        check(case, family, variant, Role::Denoiser, &[], &[]);
    }
    check("krea2", "krea2", "Krea 2", Role::Denoiser, &[".mod.lin"], &["scale_shift_table"]);
    check("anima", "anima", "Anima", Role::Denoiser, &["llm_adapter."], &[]);
    let inside = family("anima").unwrap().part(Role::Conditioner).unwrap();
    let ours = listed(inside, Naming::Native, &[]);
    let all = read("anima").native;
    let theirs =
        all.iter().filter_map(|(n, s)| Some((n.strip_prefix("llm_adapter.")?.to_string(), s.clone()))).collect();
    compare("llm_adapter", &ours, &theirs, &[]);
}
