//! The tables of `names::diffusion` against lists of parameters: the native model's own, and those of diffusers.

use std::collections::{BTreeMap, BTreeSet};

use lora_tool::names::diffusion::{
    Candidate, Container, Ending, Extent, FAMILIES, Module, Naming, Order, Part, Role, Seen, Target, detect, family,
};

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
fn text_encoders_of_transformers() {
    check("t5_xxl", "flux1", "FLUX.1 dev", Role::T5, &[], &[]);
    check("gemma2_2b", "lumina2", "Lumina Image 2", Role::Llm, &[], &[]);
    check("qwen3_06b", "anima", "Anima", Role::Llm, &[], &[]);
    check("qwen3_4b", "z_image", "Z-Image", Role::Llm, &[], &[]);
    check("qwen25_3b", "omnigen2", "OmniGen 2", Role::Llm, &[], &[]);
    check("qwen25_7b", "qwen_image", "Qwen-Image", Role::Llm, &[], &[]);
    check("llama3_8b", "hunyuan_video", "HunyuanVideo", Role::Llm, &[], &[]);
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
        ("kandinsky5_lite_image", "kandinsky5", "Kandinsky 5 lite, image"),
        ("kandinsky5_lite_video", "kandinsky5", "Kandinsky 5 lite, video"),
        ("kandinsky5_pro", "kandinsky5", "Kandinsky 5 pro"),
        ("sana_1_6b", "sana", "Sana 1.6B"),
        ("sana_0_6b", "sana", "Sana 0.6B"),
        ("sana15_4_8b", "sana", "Sana 1.5 4.8B"),
        ("sana_sprint_0_6b", "sana", "Sana Sprint 0.6B"),
        ("sana_video_2b", "sana", "Sana Video 2B"),
        ("cogvideox_2b", "cogvideox", "CogVideoX 2B"),
        ("cogvideox_5b", "cogvideox", "CogVideoX 5B"),
        ("cogvideox_5b_i2v", "cogvideox", "CogVideoX 5B I2V"),
        ("cogvideox15_5b", "cogvideox", "CogVideoX 1.5 5B"),
        ("cogvideox15_5b_i2v", "cogvideox", "CogVideoX 1.5 5B I2V"),
        ("cogview4_6b", "cogview4", "CogView 4 6B"),
        ("cogview3_plus", "cogview4", "CogView 3 Plus 3B"),
        ("ernie_image", "ernie_image", "Ernie-Image"),
        ("cascade_c", "stable_cascade", "Stable Cascade C"),
        ("cascade_c_lite", "stable_cascade", "Stable Cascade C lite"),
        ("ace_step", "ace_step", "ACE-Step 1.5"),
        ("hunyuan_dit_12", "hunyuan_dit", "HunyuanDiT 1.2"),
        ("hunyuan_dit_11", "hunyuan_dit", "HunyuanDiT 1.1"),
        ("hidream_o1", "hidream_o1", "HiDream-O1"),
        ("flux3", "flux3", "FLUX.3"),
        ("flux3_distilled", "flux3", "FLUX.3 distilled"),
        ("qwen_image_21", "qwen_image_21", "Qwen-Image 2.1"),
        ("longcat_image", "flux1", "LongCat-Image"),
        ("bria", "flux1", "Bria 3"),
        ("bria_fibo", "flux1", "Bria FIBO"),
        ("bria_fibo2", "bria_fibo2", "Bria FIBO 2"),
        ("ovis_image", "ovis_image", "Ovis-Image 7B"),
        ("helios", "helios", "Helios 14B"),
        ("prx", "prx", "PRX 1.2B"),
        ("prx_pixel", "prx", "PRX Pixel 7B"),
        ("lumina_next", "lumina_next", "Lumina-Next 2B"),
        ("chroma_radiance", "chroma", "Chroma1 Radiance"),
        ("z_image_omni", "z_image", "Z-Image Omni"),
        ("framepack", "hunyuan_video", "FramePack"),
        ("wan_animate", "wan", "Wan 2.2 14B Animate"),
        ("wan_animate2", "wan_animate2", "Wan Animate 2 14B"),
        ("skyreels2_df_1_3b", "wan", "SkyReels V2 1.3B DF"),
        ("skyreels2_i2v_1_3b", "wan", "SkyReels V2 1.3B I2V"),
        ("anyflow", "wan", "AnyFlow 14B"),
        ("anyflow_far", "wan", "AnyFlow FAR 14B"),
        ("chronoedit", "wan", "Wan 2.1 14B I2V"),
        ("ace_step1", "ace_step1", "ACE-Step 1 3.5B"),
        ("ace_step_xl", "ace_step", "ACE-Step 1.5 XL"),
        ("omnigen2", "omnigen2", "OmniGen 2"),
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

/// The family and size of a fixture.
const SIZES: &[(&str, &str, &str)] = &[
    ("sd3_medium", "sd3", "SD 3 medium"),
    ("sd35_medium", "sd3", "SD 3.5 medium"),
    ("sd35_large", "sd3", "SD 3.5 large"),
    ("flux1_dev", "flux1", "FLUX.1 dev"),
    ("chroma", "chroma", "Chroma"),
    ("flux2_dev", "flux2", "FLUX.2 dev"),
    ("flux2_klein_4b", "flux2", "FLUX.2 Klein 4B"),
    ("hunyuan_video", "hunyuan_video", "HunyuanVideo"),
    ("wan_i2v_14b", "wan", "Wan 2.1 14B I2V"),
    ("wan_animate", "wan", "Wan 2.2 14B Animate"),
    ("lumina2", "lumina2", "Lumina Image 2"),
    ("ltx_video", "ltx", "LTX-Video 2B"),
    ("ltx2", "ltx2", "LTX-2"),
    ("auraflow", "auraflow", "AuraFlow 0.1"),
    ("mochi", "mochi", "Mochi 1"),
    ("cosmos_2b", "cosmos2", "Cosmos-Predict2 2B T2I"),
    ("krea2", "krea2", "Krea 2"),
    ("sana_1_6b", "sana", "Sana 1.6B"),
    ("flux3_distilled", "flux3", "FLUX.3 distilled"),
    ("hunyuan_dit_11", "hunyuan_dit", "HunyuanDiT 1.1"),
];

#[test]
fn rows_go_where_diffusers_puts_them() {
    let text = std::fs::read_to_string(project().join("fixtures/diffusion/orders.tsv")).unwrap();
    let mut told: BTreeMap<&str, BTreeSet<(String, String)>> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let &[case, source, target, numbers, rows, order] = fields.as_slice() else { panic!("{line}") };
        let (_, name, variant) = SIZES.iter().find(|(c, ..)| *c == case).unwrap();
        let family = family(name).unwrap();
        let (part, extents) = (family.denoiser().unwrap(), family.variant(variant).unwrap().extents);
        let (from, to) = numbers.split_once('-').unwrap_or(("0", "0"));
        for number in from.parse::<u64>().unwrap()..=to.parse().unwrap() {
            let fill = |pattern: &str| pattern.replacen('#', &number.to_string(), 1);
            let (source, target) = (fill(source), fill(target));
            let targets = part.translate(Naming::Native, Naming::Diffusers, &source, extents).unwrap();
            let found = targets.iter().find(|t| t.path == target).unwrap_or_else(|| panic!("{line}: {targets:?}"));
            let total = part.module(Naming::Native, &source, extents).unwrap().shape.unwrap()[0];
            let range = found.take.range(total).unwrap();
            assert_eq!(format!("{}:{}", range.start, range.end), rows, "{line}");
            assert_eq!(found.order, if order == "swap" { Order::SwapHalves } else { Order::Same }, "{line}");
            told.entry(case).or_default().insert((source, target));
        }
    }
    // And nothing is changed of which the file does not tell.
    for (case, name, variant) in SIZES {
        let family = family(name).unwrap();
        let (part, extents) = (family.denoiser().unwrap(), family.variant(variant).unwrap().extents);
        for module in part.modules(Naming::Native, extents).iter().filter(|m| m.ending == Ending::Dot) {
            for target in part.translate(Naming::Native, Naming::Diffusers, &module.path, extents).unwrap() {
                let pair = (module.path.clone(), target.path);
                assert!(pair.0 == pair.1 || told[case].contains(&pair), "{case}: {pair:?}");
            }
        }
    }
}

/// What is detected in modules, by the names of families.
fn detected(modules: &[(String, Option<Vec<u64>>)]) -> Vec<Candidate> {
    let seen: Vec<_> = modules.iter().map(|(path, shape)| Seen { path, shape: shape.as_deref() }).collect();
    detect(&seen)
}

fn names_of(candidates: &[Candidate]) -> Vec<&'static str> {
    candidates.iter().map(|c| c.family.name).collect()
}

/// The modules of a family that `keep`, after a prefix, flat or dotted.
fn some(
    (name, variant): (&str, &str),
    naming: Naming,
    prefix: &str,
    keep: impl Fn(&str) -> bool,
    shapes: bool,
) -> Vec<(String, Option<Vec<u64>>)> {
    let family = family(name).unwrap();
    let part = family.denoiser().unwrap();
    let modules = part.modules(naming, family.variant(variant).unwrap().extents);
    let kept = modules.into_iter().filter(|m| keep(&m.path));
    let write = |path: &str| if prefix.ends_with('_') { path.replace('.', "_") } else { path.to_string() };
    kept.map(|m| (format!("{prefix}{}", write(&m.path)), m.shape.filter(|_| shapes))).collect()
}

#[test]
fn every_family_knows_itself_in_every_naming() {
    for family in FAMILIES {
        let part = family.denoiser().unwrap();
        for variant in family.variants {
            let usual = variant == &family.variants[0];
            for naming in if usual { part.namings() } else { &[Naming::Native] } {
                let prefixes = ["lora_unet_", "diffusion_model.", ""];
                for prefix in if usual { &prefixes[..] } else { &prefixes[..1] } {
                    let all = some((family.name, variant.name), *naming, prefix, |_| true, true);
                    let found = detected(&all);
                    let what = format!("{} {} {naming:?} {prefix}", family.name, variant.name);
                    let own = found.iter().find(|c| c.family.name == family.name).unwrap_or_else(|| {
                        panic!("{what}: found {:?}", found.iter().map(|c| (c.family.name, c.score)).collect::<Vec<_>>())
                    });
                    assert!(own.variants.contains(&variant), "{what}: {own:?}");
                    assert_eq!(own.score, 1.0, "{what}");
                    // The two that have a transformer in common.
                    let twins = ["cosmos2", "anima"];
                    assert!(found.len() == 1 || twins.contains(&family.name), "{what}: {:?}", names_of(&found));
                }
            }
        }
    }
}

#[test]
fn stable_diffusion_is_told_apart() {
    let attention = |path: &str| path.contains("attn") || path.contains("ff.net") || path.contains("proj_");
    let kohya = |name, variant, naming| some((name, variant), naming, "lora_unet_", attention, true);
    let first = |modules: &[_]| names_of(&detected(modules));
    assert_eq!(first(&kohya("sd1", "SD 1.5", Naming::Diffusers)), ["sd1"]);
    assert_eq!(first(&kohya("sd2", "SD 2.1", Naming::Diffusers)), ["sd2"]);
    assert_eq!(first(&kohya("sdxl", "SDXL base", Naming::Native)), ["sdxl"]);
    assert_eq!(first(&kohya("sdxl", "SDXL base", Naming::Diffusers)), ["sdxl"]);
    assert_eq!(first(&kohya("sdxl_refiner", "SDXL refiner", Naming::Native)), ["sdxl_refiner"]);
    // Without shapes, SD1 and SD2 are the same, and SDXL is not.
    let bare = |name, variant, naming| some((name, variant), naming, "lora_unet_", attention, false);
    assert_eq!(first(&bare("sd2", "SD 2.1", Naming::Diffusers)), ["sd1", "sd2"]);
    assert_eq!(first(&bare("sdxl", "SDXL base", Naming::Native)), ["sdxl"]);
    // Self-attention alone: SD1 or SD2.
    let own = some(("sd1", "SD 1.5"), Naming::Diffusers, "unet.", |p| p.contains("attn1"), true);
    assert_eq!(first(&own), ["sd1", "sd2"]);
}

#[test]
fn text_encoders_alone_tell_the_family() {
    let layer = |te: &str, w: u64| (format!("{te}_text_model_encoder_layers_0_self_attn_q_proj"), Some(vec![w, w]));
    assert_eq!(names_of(&detected(&[layer("lora_te", 768)])), ["sd1"]);
    assert_eq!(names_of(&detected(&[layer("lora_te", 1024)])), ["sd2"]);
    assert_eq!(names_of(&detected(&[layer("lora_te1", 768), layer("lora_te2", 1280)])), ["sdxl", "sd3"]);
    let qwen = ("lora_te_layers_0_self_attn_k_proj".to_string(), Some(vec![1024, 1024]));
    assert_eq!(names_of(&detected(&[qwen])), ["anima"]);
    let gemma = ("lora_te_layers_0_self_attn_k_proj".to_string(), Some(vec![1024, 2304]));
    assert_eq!(names_of(&detected(&[gemma])), ["lumina2"]);
}

#[test]
fn the_false_friends_of_flux() {
    let first = |modules: &[_]| names_of(&detected(modules));
    let attention = |path: &str| path.contains("attn.qkv") || path.contains("attn_qkv") || path.contains("linear1");
    // Attention alone has the names and shapes of three families; the number of blocks tells Hunyuan.
    let flux = some(("flux1", "FLUX.1 dev"), Naming::Native, "lora_unet_", attention, true);
    assert_eq!(first(&flux), ["flux1", "chroma", "hunyuan_video"]);
    let hunyuan = some(("hunyuan_video", "HunyuanVideo"), Naming::Native, "lora_unet_", attention, true);
    assert_eq!(first(&hunyuan), ["hunyuan_video"]);
    let image = some(("hunyuan_image", "HunyuanImage 2.1"), Naming::Native, "lora_unet_", attention, true);
    assert_eq!(first(&image), ["hunyuan_image"]);
    let dotted = some(("hunyuan_video", "HunyuanVideo"), Naming::Native, "transformer.", attention, true);
    let found = detected(&dotted);
    assert_eq!((names_of(&found), found[0].naming), (vec!["hunyuan_video"], Naming::Native));
    // Klein 4B is as wide as FLUX.1, and has other shapes.
    let klein = some(("flux2", "FLUX.2 Klein 4B"), Naming::Native, "diffusion_model.", |p| p.contains("mlp"), true);
    assert_eq!(first(&klein), ["flux2"]);
    // With the modulation it is not Chroma; ComfyUI's names for HunyuanVideo are the same.
    let modulated = some(("flux1", "FLUX.1 dev"), Naming::Native, "lora_unet_", |p| p.contains("_blocks"), true);
    assert_eq!(first(&modulated), ["flux1", "hunyuan_video"]);
}

#[test]
fn layers_of_three_families_have_one_name() {
    let first = |modules: &[_]| names_of(&detected(modules));
    let attention = |path: &str| path.starts_with("layers") && path.contains("attention.");
    let names = [("lumina2", "Lumina Image 2"), ("z_image", "Z-Image"), ("ideogram4", "Ideogram 4")];
    for name in names {
        let modules = some(name, Naming::Native, "diffusion_model.", attention, true);
        assert_eq!(first(&modules), [name.0]);
    }
}

#[test]
fn omnigen_is_no_lumina() {
    // The names of its blocks are those of Lumina 2 in diffusers, where the projections are fused elsewhere.
    let attention = |path: &str| path.starts_with("layers") && path.contains("attn.to");
    for (name, variant) in [("omnigen2", "OmniGen 2"), ("lumina2", "Lumina Image 2")] {
        for prefix in ["transformer.", "lora_unet_", ""] {
            let modules = some((name, variant), Naming::Diffusers, prefix, attention, true);
            assert_eq!(names_of(&detected(&modules)), [name], "{prefix}");
        }
    }
}

#[test]
fn models_of_the_kin_of_others_are_told_apart() {
    let first = |modules: &[_]| names_of(&detected(modules));
    let attention = |path: &str| path.contains("att") && !path.contains("norm");
    for (name, variant) in [
        ("sana", "Sana 1.6B"),
        ("cogvideox", "CogVideoX 5B"),
        ("cogvideox", "CogVideoX 2B"),
        ("cogview4", "CogView 4 6B"),
        ("ernie_image", "Ernie-Image"),
        ("hunyuan_dit", "HunyuanDiT 1.2"),
        ("stable_cascade", "Stable Cascade C"),
        ("stable_cascade", "Stable Cascade C lite"),
        ("ace_step", "ACE-Step 1.5"),
        ("ace_step", "ACE-Step 1.5 XL"),
        ("ace_step1", "ACE-Step 1 3.5B"),
        ("hidream_o1", "HiDream-O1"),
        ("flux3", "FLUX.3"),
        ("qwen_image_21", "Qwen-Image 2.1"),
        ("ovis_image", "Ovis-Image 7B"),
        ("lumina_next", "Lumina-Next 2B"),
        ("wan_animate2", "Wan Animate 2 14B"),
    ] {
        let component = if name == "stable_cascade" { "prior." } else { "transformer." };
        let modules = some((name, variant), Naming::Diffusers, component, attention, true);
        assert_eq!(first(&modules).first(), Some(&name), "{variant}: {:?}", first(&modules));
    }
    // Helios has the attention of Wan, and PixArt and the smaller Sana have the same in width and number.
    let helios = some(("helios", "Helios 14B"), Naming::Diffusers, "transformer.", attention, true);
    assert_eq!(first(&helios), ["wan", "helios"]);
    let sana = some(("sana", "Sana 0.6B"), Naming::Diffusers, "transformer.", attention, true);
    assert_eq!(first(&sana), ["pixart", "sana"]);
}

#[test]
fn a_name_that_begins_like_a_prefix_is_not_cut() {
    // `transformer` is a prefix, and Wan has `blocks.#.attn1.to_q`.
    let path = "transformer_blocks.0.attn1.to_q".to_string();
    let found = names_of(&detected(&[(path, None)]));
    assert!(found.contains(&"ltx") && !found.contains(&"wan"), "{found:?}");
}

#[test]
fn homes_take_what_they_write() {
    for part in FAMILIES.iter().flat_map(|family| family.parts) {
        for home in part.homes {
            let written = home.join("a.0.b_c");
            let path = home.strip(&written).unwrap();
            assert_eq!(path.replace('.', "_"), "a_0_b_c", "{home:?}");
            assert_eq!(path.contains('.'), home.container != Container::Kohya, "{home:?}");
        }
    }
}

#[test]
fn what_is_nobodys_is_not_guessed() {
    let llama = ("model.layers.0.self_attn.q_proj".to_string(), Some(vec![4096, 4096]));
    assert_eq!(detected(&[llama]), []);
    assert_eq!(detected(&[]), []);
    for odd in ["", ".", "_", "lora_unet_", "lora_unet_.", "..", "transformer..", "\u{1f600}", "lora_te_\u{e9}"] {
        assert_eq!(detected(&[(odd.to_string(), Some(vec![]))]), [], "{odd}");
    }
}

#[test]
fn the_page_of_families_has_all_of_them() {
    let page = std::fs::read_to_string(project().join("docs/layouts/image-models.md")).unwrap();
    for family in FAMILIES {
        let start = format!("| `{}` |", family.name);
        let line = page.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("no {start}"));
        for variant in family.variants {
            assert!(line.contains(variant.name), "{}: {}", family.name, variant.name);
        }
    }
    let lines = page.lines().filter(|line| line.starts_with("| `") && !line.contains("Mixin"));
    assert_eq!(lines.count(), FAMILIES.len());
}
