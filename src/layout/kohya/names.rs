//! Between names of modules as the files have them and paths of modules: the one place that knows which component of a
//! pipeline a prefix stands for, and where dots became underscores.
//!
//! A path begins with the component as a pipeline's folder calls it (`unet`, `transformer`, `text_encoder` …). What a
//! flattened name was before its dots were lost, the vocabulary of the model's family tells; of models that are none of
//! these it stays flat.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::adapter::{self, Note};
use crate::layout::spelling;
use crate::names::diffusion::{self, Container, Family, Naming, Part, Role};

/// Prefixes of names and the component each stands for; longer ones before those they begin with, and of those that
/// stand for one component the one that is written first. A prefix that ends in a dot is followed by a dotted path.
const PREFIXES: [(&str, &str); 16] = [
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
    ("lora_transformer_", "transformer"),
    ("lora_prior_unet_", "prior"),
    ("lora_prior_te_", "text_encoder"),
    ("oft_unet_", "unet"),
    ("oft_te1_", "text_encoder"),
    ("oft_te2_", "text_encoder_2"),
    ("oft_te_", "text_encoder"),
    ("Hunyuan_video_I2V_lora_", "transformer"),
    ("diffusion_model.", "unet"),
    ("lycoris_", ""),
    ("", ""),
];

/// Prefixes of some trainers, and what sd-scripts has for the same.
const DIALECTS: [(&str, &str); 8] = [
    ("lora_unet__", "lora_unet_"),
    ("lora_transformer_", "lora_unet_"),
    ("lycoris_", "lora_unet_"),
    ("Hunyuan_video_I2V_lora_", "lora_unet_"),
    ("oft_unet_", "lora_unet_"),
    ("oft_te1_", "lora_te1_"),
    ("oft_te2_", "lora_te2_"),
    ("oft_te_", "lora_te_"),
];

/// A name as sd-scripts would have it. Some trainers put an underscore behind it.
fn usual(name: &str) -> String {
    if name.contains('.') {
        return name.to_string();
    }
    let name = name.strip_suffix('_').unwrap_or(name);
    let found = DIALECTS.iter().find_map(|(other, own)| Some(format!("{own}{}", name.strip_prefix(other)?)));
    found.unwrap_or_else(|| name.to_string())
}

/// The way from names to paths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resolver {
    family: Option<(&'static Family, adapter::Spelling)>,
}

impl Resolver {
    /// That of the family these names are likeliest of, given with the shapes of their weights; and a remark where they
    /// could be of others.
    pub fn of(names: &[(String, Option<Vec<u64>>)]) -> (Resolver, Option<Note>) {
        let usual: Vec<_> = names.iter().map(|(name, shape)| (usual(name), shape.clone())).collect();
        match spelling::family(&usual, None) {
            Some((found, note)) => {
                let own = adapter::Spelling::of(&found, found.naming);
                (Resolver { family: Some((found.family, own)) }, note)
            }
            None => (Resolver::default(), None),
        }
    }

    /// That of an adapter whose family is known.
    pub fn known(spelling: Option<adapter::Spelling>) -> Resolver {
        let family = spelling.and_then(|spelling| Some((diffusion::family(spelling.family)?, spelling)));
        Resolver { family }
    }

    /// What it makes of an adapter.
    pub fn spelling(&self) -> Option<adapter::Spelling> {
        self.family.map(|(_, spelling)| spelling)
    }

    /// The path of the module that a file calls `name`.
    pub fn path(&self, name: &str) -> String {
        self.of_family(name).unwrap_or_else(|| resolve(name))
    }

    fn of_family(&self, name: &str) -> Option<String> {
        let (family, spelling) = self.family?;
        let name = usual(name);
        let mut places: Vec<_> =
            family.parts.iter().flat_map(|part| part.homes.iter().map(move |home| (part, home.prefix))).collect();
        places.sort_by_key(|(_, prefix)| std::cmp::Reverse(prefix.len()));
        // Bare names are the denoiser's.
        let places = places.into_iter().chain(family.denoiser().map(|part| (part, "")));
        places.into_iter().find_map(|(part, prefix)| {
            let rest = name.strip_prefix(prefix)?;
            let rest = if prefix.is_empty() { rest } else { rest.strip_prefix(['.', '_'])? };
            let naming = if part.role == Role::Denoiser { spelling.naming } else { Naming::Diffusers };
            let path = if rest.contains('.') {
                part.module(naming, rest, &[]).map(|_| rest.to_string())
            } else {
                part.unflatten(naming, rest)
            };
            Some(format!("{}.{}", component(part)?, path?))
        })
    }

    /// What each component's names begin with in files of this container; also those of a level in it that names leave
    /// out, behind the component's name and a dot.
    pub fn prefixes(&self, container: Container) -> Vec<(String, String)> {
        let separator = if container == Container::Kohya { '_' } else { '.' };
        let Some((family, _)) = self.family else {
            let unknown = ["unet", "transformer"].map(|part| (part.to_string(), "diffusion_model.".to_string()));
            return if container == Container::Comfy { unknown.into() } else { Vec::new() };
        };
        let of = |part: &Part| {
            let home = part.homes(container).next()?;
            let (component, prefix) = (component(part)?.to_string(), format!("{}{separator}", home.prefix));
            // sd-scripts trains a language model without the level at its head.
            let level = part.optional_level().filter(|_| container == Container::Kohya && part.role == Role::Llm);
            let inner = level.map(|level| (format!("{component}.{level}"), prefix.clone()));
            Some(inner.into_iter().chain([(component, prefix)]))
        };
        family.parts.iter().filter_map(of).flatten().collect()
    }
}

/// The component of a pipeline that a part is.
fn component(part: &Part) -> Option<&'static str> {
    part.homes(Container::Diffusers).next().map(|home| home.prefix)
}

/// The path of the module that a file calls `name`, of a model of no known family.
pub fn resolve(name: &str) -> String {
    let found = PREFIXES.iter().find_map(|(prefix, component)| Some((name.strip_prefix(prefix)?, *component)));
    match found.filter(|(rest, _)| !rest.is_empty()) {
        Some((rest, "")) => rest.to_string(),
        Some((rest, component)) => format!("{component}.{}", module(rest)),
        None => name.to_string(),
    }
}

/// The path of a module inside its component, which stays flat. Some trainers put a second underscore before it.
fn module(rest: &str) -> &str {
    rest.strip_prefix('_').unwrap_or(rest)
}

/// What follows `head` and a dot.
fn behind<'a>(path: &'a str, head: &str) -> Option<&'a str> {
    path.strip_prefix(head)?.strip_prefix('.')
}

/// How a file spells the names of its modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spelling {
    /// Prefixes by component, or by the head of a path that a prefix stands for.
    prefixes: BTreeMap<String, String>,
    /// Names by path, where prefix and path do not give them.
    others: BTreeMap<String, String>,
}

impl Spelling {
    /// That of these names, given with their paths.
    pub fn of<'a>(names: impl Iterator<Item = (&'a str, &'a str)>) -> Spelling {
        let mut out = Spelling::default();
        for (name, path) in names {
            let (component, rest) = out.parted(path);
            if !out.prefixes.contains_key(component) {
                let own = format!("{component}.");
                let known = PREFIXES.iter().filter(|(_, known)| *known == component).map(|(prefix, _)| *prefix);
                // A family may call what a prefix stands for otherwise.
                let others = PREFIXES.iter().chain(&DIALECTS).map(|(prefix, _)| *prefix);
                let mut all = known.chain([own.as_str()]).chain(others);
                if let Some(prefix) = all.find(|prefix| joined(prefix, rest) == name) {
                    out.prefixes.insert(component.to_string(), prefix.to_string());
                }
            }
            if out.name(path) != name {
                out.others.insert(path.to_string(), name.to_string());
            }
        }
        out
    }

    /// Prefixes for components that have none yet.
    pub fn fill(&mut self, prefixes: Vec<(String, String)>) {
        let has = |head: &String| self.prefixes.keys().any(|own| own == head || behind(head, own).is_some());
        let new: Vec<_> = prefixes.into_iter().filter(|(head, _)| !has(head)).collect();
        self.prefixes.extend(new);
    }

    /// The component of a path, or the longest head of it that has a prefix; empty where it begins with none. And the
    /// rest.
    fn parted<'a>(&'a self, path: &'a str) -> (&'a str, &'a str) {
        let own = self.prefixes.keys().map(String::as_str);
        let heads = own.chain(PREFIXES.iter().map(|(_, component)| *component)).filter(|head| !head.is_empty());
        let parts = heads.filter_map(|head| Some((head, behind(path, head)?)));
        parts.max_by_key(|(head, _)| head.len()).unwrap_or(("", path))
    }

    /// The name of a module.
    pub fn name(&self, path: &str) -> String {
        if let Some(name) = self.others.get(path) {
            return name.clone();
        }
        let (component, rest) = self.parted(path);
        let usual = || PREFIXES.iter().find(|(_, known)| *known == component).map(|(prefix, _)| *prefix);
        // sd-scripts calls what takes the noise away `unet`, whatever it is.
        let usual = if component == "transformer" { Some("lora_unet_") } else { usual() };
        let prefix = self.prefixes.get(component).map(String::as_str).or(usual).unwrap_or_default();
        joined(prefix, rest)
    }

    /// For being carried: prefixes and names as JSON.
    pub fn to_json(&self) -> (Value, Value) {
        (json!(self.prefixes), json!(self.others))
    }

    /// What was carried.
    pub fn of_json(prefixes: &Map<String, Value>, others: &Map<String, Value>) -> Spelling {
        let texts = |map: &Map<String, Value>| {
            let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_string()));
            map.iter().filter_map(text).collect()
        };
        Spelling { prefixes: texts(prefixes), others: texts(others) }
    }
}

fn joined(prefix: &str, rest: &str) -> String {
    if prefix.is_empty() || prefix.ends_with('.') {
        return format!("{prefix}{rest}");
    }
    format!("{prefix}{}", rest.replace('.', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_components() {
        for (name, path) in [
            ("lora_unet_mid_block_q", "unet.mid_block_q"),
            ("lora_unet__blocks_0_q", "unet.blocks_0_q"),
            ("lora_te_text_model_q", "text_encoder.text_model_q"),
            ("lora_te1_text_model_q", "text_encoder.text_model_q"),
            ("lora_te2_text_model_q", "text_encoder_2.text_model_q"),
            ("lora_te3_encoder_q", "text_encoder_3.encoder_q"),
            ("lora_transformer_blocks_0_q", "transformer.blocks_0_q"),
            ("lycoris_blocks_0_q", "blocks_0_q"),
            ("diffusion_model.blocks.0.q", "unet.blocks.0.q"),
            ("transformer.blocks.0.q", "transformer.blocks.0.q"),
            ("lora_unet_", "lora_unet_"),
        ] {
            assert_eq!(Resolver::default().path(name), path);
            let spelling = Spelling::of([(name, path)].into_iter());
            assert_eq!(spelling.name(path), name);
            let (prefixes, others) = spelling.to_json();
            assert_eq!(Spelling::of_json(prefixes.as_object().unwrap(), others.as_object().unwrap()), spelling);
        }
    }

    #[test]
    fn trainers_that_write_otherwise_are_understood() {
        let of = |name: &str| {
            let names: Vec<_> = ["0_cross_attn_k", "1_ffn_0", "2_self_attn_o"]
                .map(|rest| (name.replace('*', &format!("blocks_{rest}")), None))
                .into();
            let (resolver, _) = Resolver::of(&names);
            resolver.path(&names[0].0)
        };
        for form in ["lora_unet_*", "lora_unet__*", "lycoris_*", "lora_transformer_*", "lora_unet_*_"] {
            assert_eq!(of(form), "transformer.blocks.0.cross_attn.k", "{form}");
        }
    }

    #[test]
    fn what_lies_inside_another_part_in_its_trainer_is_called_so() {
        // kohya-ss/sd-scripts:networks/lora_anima.py and convert_anima_lora_to_comfy.py.
        let names = [
            ("lora_unet_blocks_0_adaln_modulation_self_attn_1", "transformer.blocks.0.adaln_modulation_self_attn.1"),
            ("lora_unet_llm_adapter_blocks_0_self_attn_q_proj", "text_conditioner.blocks.0.self_attn.q_proj"),
            ("lora_te_layers_0_self_attn_q_proj", "text_encoder.model.layers.0.self_attn.q_proj"),
        ];
        let modules: Vec<_> = names.iter().map(|(name, _)| (name.to_string(), None)).collect();
        let (resolver, _) = Resolver::of(&modules);
        let mut kohya = Spelling::default();
        kohya.fill(resolver.prefixes(Container::Kohya));
        let mut comfy = Spelling::default();
        comfy.fill(resolver.prefixes(Container::Comfy));
        for (name, path) in names {
            assert_eq!(kohya.name(path), name);
        }
        assert_eq!(comfy.name(names[1].1), "diffusion_model.llm_adapter.blocks.0.self_attn.q_proj");
        let text = "text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj";
        assert_eq!(comfy.name(names[2].1), text);
        // A file that has the level keeps it.
        let mut own = Spelling::of([("lora_te_model_layers_0_q", "text_encoder.model.layers.0.q")].into_iter());
        own.fill(resolver.prefixes(Container::Kohya));
        assert_eq!(own.name("text_encoder.model.layers.1.q"), "lora_te_model_layers_1_q");
    }

    #[test]
    fn only_names_of_another_form_are_kept_one_by_one() {
        let names =
            [("lora_te_a", "text_encoder.a"), ("lora_te_b_c", "text_encoder.b.c"), ("lora_te1_d", "text_encoder.d")];
        let spelling = Spelling::of(names.into_iter());
        assert_eq!(spelling.others.len(), 1);
        assert!(names.iter().all(|(name, path)| spelling.name(path) == *name));
        assert_eq!(spelling.name("text_encoder.e.f"), "lora_te_e_f");
        assert_eq!(Spelling::default().name("transformer.blocks.0.q"), "lora_unet_blocks_0_q");
        assert_eq!(Spelling::default().name("model.layers.0.q"), "lycoris_model_layers_0_q");
    }
}
