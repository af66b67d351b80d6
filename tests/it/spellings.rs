//! The spellings of modules that ComfyUI accepts, family by family: each is read, and is the same module as in diffusers.
//!
//! Source of the list: comfyanonymous/ComfyUI:comfy/lora.py (a125cd84), `model_lora_keys_unet`.

use std::collections::BTreeSet;
use std::path::Path;

use lora_tool::layout::{self, Draft};
use lora_tool::names::diffusion::{Container, Ending, FAMILIES, Family, Kind, Naming, Part};
use lora_tool::ops::retarget;
use lora_tool::tensor::{Dtype, StateDict, Tensor};

use crate::fixtures::Scratch;

/// A way of writing the names of a file.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// What stands before a path.
    before: &'static str,
    naming: Naming,
    /// The words for the factors.
    factors: [&'static str; 2],
}

const KOHYA: [&str; 2] = ["lora_down.weight", "lora_up.weight"];
const PEFT: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

const fn form(before: &'static str, naming: Naming, factors: [&'static str; 2]) -> Form {
    Form { before, naming, factors }
}

/// What holds for all denoisers.
const ALL: &[Form] = &[
    form("lora_unet_", Naming::Comfy, KOHYA),
    form("diffusion_model.", Naming::Comfy, KOHYA),
    form("diffusion_model.", Naming::Comfy, PEFT),
];

const TRANSFORMER: Form = form("transformer.", Naming::Diffusers, PEFT);
const LYCORIS: Form = form("lycoris_", Naming::Diffusers, KOHYA);
const MIXTURE: Form = form("lora_transformer_", Naming::Diffusers, KOHYA);
const BARE: [Form; 2] = [form("", Naming::Diffusers, PEFT), form("", Naming::Diffusers, KOHYA)];
const BARE_NATIVE: [Form; 2] = [form("", Naming::Native, PEFT), form("", Naming::Native, KOHYA)];
const WRAPPED: Form = form("base_model.model.", Naming::Diffusers, PEFT);
const WRAPPED_NATIVE: Form = form("base_model.model.", Naming::Native, PEFT);

/// What holds for some besides.
fn besides(family: &str) -> Vec<Form> {
    let some: &[&[Form]] = match family {
        "sd1" | "sd2" | "sdxl" | "sdxl_refiner" => &[&[form("lora_unet_", Naming::Diffusers, KOHYA), LYCORIS]],
        "stable_cascade" => &[&[form("lora_prior_unet_", Naming::Comfy, KOHYA)]],
        "sd3" => &[&[TRANSFORMER, WRAPPED, MIXTURE, LYCORIS]],
        "auraflow" | "ernie_image" => &[&[TRANSFORMER]],
        "pixart" => &[&[TRANSFORMER, WRAPPED, form("unet.base_model.model.", Naming::Diffusers, PEFT)]],
        "hunyuan_dit" => &[&[WRAPPED_NATIVE]],
        "flux1" | "flux2" => &[&[TRANSFORMER, LYCORIS, MIXTURE], &BARE],
        "mochi" | "ltx" | "ltx2" | "minimax_h3" | "ace_step1" | "omnigen2" => &[&BARE_NATIVE],
        "hunyuan_video" | "hunyuan_video_15" | "hunyuan_image" => {
            &[&[form("transformer.", Naming::Native, PEFT), form("diffusion_model.", Naming::Native, PEFT)]]
        }
        "hidream" => &[&[TRANSFORMER, LYCORIS]],
        "hidream_o1" => &[&[form("lora_unet_model_", Naming::Native, KOHYA), form("model.", Naming::Native, PEFT)]],
        "qwen_image" | "qwen_image_21" | "kandinsky5" => &[&[TRANSFORMER, LYCORIS], &BARE],
        "krea2" | "lumina2" | "z_image" => {
            &[&[TRANSFORMER, LYCORIS, form("diffusion_model.", Naming::Diffusers, PEFT)], &BARE]
        }
        "ace_step" => &[&[WRAPPED_NATIVE, form("lycoris_", Naming::Native, KOHYA)]],
        _ => &[],
    };
    some.concat()
}

/// The one spelling that is not read: so language models are written, and HiDream-O1 is one by its names.
fn not_yet(form: Form) -> bool {
    form.before == "model." && form.factors == PEFT
}

/// Modules of first blocks that are whole in every naming, whatever the size of the model: by their path in diffusers, with
/// the shapes of their weights.
fn modules(family: &Family, part: &Part) -> Vec<(String, [usize; 2])> {
    let first = |path: &str| path.split('.').all(|word| word == "0" || word.parse::<u64>().is_err());
    let whole = |path: &str| {
        [Naming::Native, Naming::Comfy].iter().all(|naming| {
            let there = part.translate(Naming::Diffusers, *naming, path, &[]).unwrap_or_default();
            let back = |path: &str| part.translate(*naming, Naming::Diffusers, path, &[]).unwrap_or_default().len();
            there.len() == 1 && back(&there[0].path) == 1
        })
    };
    let all = part.modules(Naming::Diffusers, family.variants[0].extents).into_iter();
    let kept = all.filter(|m| m.kind == Kind::Linear && m.ending == Ending::Dot && first(&m.path) && whole(&m.path));
    kept.filter_map(|m| Some((m.path.clone(), [m.shape.as_ref()?[0] as usize, m.shape.as_ref()?[1] as usize])))
        .collect()
}

fn filled(shape: &[usize]) -> Tensor {
    Tensor::from_f32(Dtype::F32, shape, &vec![0.5; shape.iter().product()]).expect("floats")
}

/// What stands before the paths of a part where ComfyUI has it inside something.
fn inside(part: &Part, form: Form) -> String {
    let home = part.homes(Container::Comfy).next().expect("a place").prefix;
    let level = home
        .strip_prefix("diffusion_model.")
        .filter(|_| form.before.contains("unet_") || form.before.starts_with("diff"));
    level.map_or_else(String::new, |level| format!("{level}."))
}

/// The paths that are read, in diffusers' names, of a file that is written so.
fn read(path: &Path, part: &Part, form: Form, modules: &[(String, [usize; 2])]) -> Result<BTreeSet<String>, String> {
    let mut tensors = StateDict::new();
    for (module, [rows, columns]) in modules {
        let own = part.translate(Naming::Diffusers, form.naming, module, &[]);
        let own = format!("{}{}", inside(part, form), own.ok_or("no name")?[0].path);
        let own = if form.before.ends_with('_') { own.replace('.', "_") } else { own };
        tensors.insert(format!("{}{own}.{}", form.before, form.factors[0]), filled(&[1, *columns]));
        tensors.insert(format!("{}{own}.{}", form.before, form.factors[1]), filled(&[*rows, 1]));
    }
    let draft = Draft { tensor_file: "f.safetensors".into(), tensors, ..Draft::default() };
    layout::save(&draft, path, &[], true, false).expect("saved");
    let opened = layout::open(path, None).map_err(|e| e.to_string())?;
    let (spelt, _) = retarget::spell(&opened.adapter, Naming::Diffusers).map_err(|e| e.to_string())?;
    Ok(spelt.targets.keys().map(ToString::to_string).collect())
}

#[test]
fn what_comfyui_accepts_is_read() {
    let scratch = Scratch::new();
    let path = scratch.join("adapter.safetensors");
    let mut broken = Vec::new();
    for family in FAMILIES {
        let part = family.denoiser().expect("a denoiser");
        let component = part.homes(Container::Diffusers).next().expect("a place").prefix;
        let modules = modules(family, part);
        assert!(modules.len() > 3, "{}: {modules:?}", family.name);
        let wanted: BTreeSet<_> = modules.iter().map(|(path, _)| format!("{component}.{path}")).collect();
        for form in ALL.iter().copied().chain(besides(family.name)) {
            if not_yet(form) {
                continue;
            }
            let what = format!("{} `{}` {:?} {}", family.name, form.before, form.naming, form.factors[0]);
            match read(&path, part, form, &modules) {
                Ok(found) if found == wanted => {}
                Ok(found) => broken.push(format!(
                    "{what}: {:?} for {:?}",
                    found.difference(&wanted).next(),
                    wanted.difference(&found).next()
                )),
                Err(error) => broken.push(format!("{what}: {error}")),
            }
        }
    }
    assert!(broken.is_empty(), "{} spellings:\n{}", broken.len(), broken.join("\n"));
}
