//! The format that OneTrainer wrote for the Open Model Initiative: the authors' names, with a number behind what they have
//! fused (`img_attn.qkv.0`), and words for the text encoders (`clip_l.`, `t5.`); the networks are [kohya]'s.
//!
//! Defined by Nerogar/OneTrainer before August 2026, `modules/util/convert/lora/*.py`; the Initiative has published no
//! text. Written down in `docs/layouts/omi.md`.

use std::collections::BTreeMap;

use super::{kohya, spelling, words};
use crate::adapter::{Adapter, Note, fused};
use crate::error::{Context, Error, Result};
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict};
use crate::names::ModulePath;
use crate::names::diffusion::{self, Container, Extent, Family, Naming, Order, Part, Role, Rows, Target};
use crate::tensor::StateDict;

/// The layout.
pub struct Omi;

const NAME: &str = "omi";
/// Words for text encoders.
const ENCODERS: [(&str, Role); 4] =
    [("clip_l", Role::ClipL), ("clip_g", Role::OpenClip), ("t5", Role::T5), ("llama", Role::Llm)];
/// Words for denoisers, which are diffusers' for the component.
const DENOISERS: [&str; 2] = ["transformer", "unet"];
/// Names that differ from the authors': its own and theirs. The second is a mistake of OneTrainer's for HunyuanVideo.
const OTHERS: [(&str, &str); 3] = [("img_in.proj", "img_in"), (".mlp.fc0", ".mlp.fc1"), ("_mlp.fc0", "_mlp.fc1")];
/// Modules that a number stands behind, by the ends of their names.
const FUSED: [&str; 7] = [".qkv", "attn_qkv", ".linear1", ".in_proj", ".kv_linear", ".w1qkv", ".q_kv"];

impl Layout for Omi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn about(&self) -> &'static str {
        "OMI, of OneTrainer until 2026: the authors' names, parts of fused projections numbered"
    }

    fn holds(&self, content: Content) -> Holding {
        kohya::Kohya.holds(content)
    }

    fn naming(&self, _: &Family) -> Option<Naming> {
        Some(Naming::Diffusers)
    }

    fn detect(&self, source: &Source) -> Verdict {
        if source.gguf.is_some() || source.config.is_some() {
            return Verdict::No;
        }
        let names = || source.tensors.keys().filter_map(|key| words::is_word(key).then(|| kohya::split(key))?);
        let numbered = names().filter(|(name, _)| numbered(name).is_some()).count();
        let encoders = names().filter(|(name, _)| ENCODERS.iter().any(|(word, _)| strip(name, word).is_some())).count();
        let said = source.metadata.iter().any(|(key, text)| key == "ot_branch" && text == "omi_format");
        if numbered + encoders == 0 && !said {
            return Verdict::No;
        }
        let ours = names().filter(|(name, _)| is_of_a_component(name)).count();
        let all = source.tensors.len();
        if ours * 2 < names().count() || ours == 0 {
            return Verdict::No;
        }
        let because = match said {
            true => "the metadata names the branch omi_format".to_string(),
            false => {
                format!("{} of {all} keys have its words for text encoders or numbered parts", numbered + encoders)
            }
        };
        Verdict::Likely { score: 98, because }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let family = family(&source.tensors)
            .ok_or_else(|| Error::unrecognised("names of no image model that is known").in_file(&source.tensor_file))?;
        let names = source.tensors.keys().filter_map(|key| Some(kohya::split(key)?.0));
        let way = Way::of(family, &[], names);
        let rename = |name: &str| way.path(name).unwrap_or_else(|| name.to_string());
        let renamed = words::in_words_of_kohya(source, rename)?;
        let (mut adapter, notes) = kohya::read_tensors(source, &renamed, NAME)?;
        let swapped: Vec<_> = adapter.targets.keys().filter(|path| way.swaps(path.as_str())).cloned().collect();
        swap(&mut adapter, &swapped).in_file(&source.tensor_file)?;
        Ok((adapter, notes))
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        let family = adapter.spelling.and_then(|spelling| diffusion::family(spelling.family));
        let Some(family) = family else {
            return Err(Error::unsupported("an adapter of no known image model, whose authors' names this layout has"));
        };
        let extents = adapter.spelling.map_or(&[][..], |spelling| spelling.extents);
        let way = Way::of(family, extents, adapter.targets.keys().map(ModulePath::as_str));
        let named = |path: &ModulePath| {
            let what = "a module that the model's authors have no name for";
            let (name, _) = way.name(path.as_str()).ok_or_else(|| Error::unsupported(what).at_key(path.as_str()))?;
            Ok((path.to_string(), name))
        };
        let names: BTreeMap<_, _> = adapter.targets.keys().map(named).collect::<Result<_>>()?;
        let mut turned = adapter.clone();
        let swapped: Vec<_> = adapter.targets.keys().filter(|path| way.swaps(path.as_str())).cloned().collect();
        swap(&mut turned, &swapped)?;
        let (mut draft, notes) = kohya::write_as(NAME, &turned, kohya::prefixes(&turned, Container::Diffusers))?;
        let rename = |key: String| match kohya::split(&key) {
            Some((path, word)) => names.get(path).map_or_else(|| key.clone(), |name| format!("{name}.{word}")),
            None => key,
        };
        let mut tensors: Vec<_> = draft.tensors.into_iter().map(|(key, tensor)| (rename(key), tensor)).collect();
        tensors.sort_by(|(a, s), (b, t)| t.dtype.cmp(&s.dtype).then_with(|| a.cmp(b)));
        draft.tensors = tensors.into_iter().collect();
        Ok((draft, notes))
    }
}

/// Exchanges the halves of the rows of these modules.
fn swap(adapter: &mut Adapter, paths: &[ModulePath]) -> Result<()> {
    for path in paths {
        if let Some(target) = adapter.targets.get_mut(path) {
            *target = fused::swap_halves(target).at_key(path.as_str())?;
        }
    }
    Ok(())
}

/// A name behind a word and a dot.
fn strip<'n>(name: &'n str, word: &str) -> Option<&'n str> {
    name.strip_prefix(word)?.strip_prefix('.')
}

fn is_of_a_component(name: &str) -> bool {
    DENOISERS.iter().chain(ENCODERS.iter().map(|(word, _)| word)).any(|word| strip(name, word).is_some())
}

/// A name without the number of a part of a fused module, and the number.
fn numbered(name: &str) -> Option<(&str, usize)> {
    let (whole, number) = name.rsplit_once('.')?;
    FUSED.iter().any(|end| whole.ends_with(end)).then_some((whole, number.parse().ok()?))
}

/// The name that the authors have for a module that this format calls otherwise.
fn of_the_authors(name: &str) -> String {
    let found = OTHERS.iter().find_map(|(own, theirs)| Some(format!("{}{theirs}", name.strip_suffix(own)?)));
    found.unwrap_or_else(|| name.to_string())
}

/// The family whose authors have the most of these names.
fn family(tensors: &StateDict) -> Option<&'static Family> {
    let denoiser = |key: &String| {
        let (name, _) = kohya::split(key)?;
        let inner = DENOISERS.iter().find_map(|word| strip(name, word))?;
        Some((of_the_authors(numbered(inner).map_or(inner, |(whole, _)| whole)), None))
    };
    let mut names: Vec<_> = tensors.keys().filter_map(denoiser).collect();
    names.dedup();
    spelling::family(&names, Some(Naming::Native)).map(|(found, _)| found.family)
}

/// The number of a joint block, in either naming.
fn block(name: &str) -> Option<u64> {
    let rest = name.split_once("joint_blocks.").or_else(|| name.split_once("transformer_blocks."))?.1;
    rest.split('.').next()?.parse().ok()
}

/// The way between this format's names and diffusers' paths.
struct Way {
    family: &'static Family,
    extents: &'static [Extent],
    /// The last block of SD3's that the file has: OneTrainer takes it for the last of the model, in which the rows of
    /// [`MOST`] lie otherwise.
    last: Option<u64>,
}

/// The module of SD3's blocks whose halves are exchanged in the last one, as diffusers calls it.
const MOST: &str = "norm1_context.linear";

impl Way {
    /// For a model of these sizes (where they are not known, of the usual ones) and a file of these names.
    fn of<'n>(family: &'static Family, extents: &'static [Extent], names: impl Iterator<Item = &'n str>) -> Way {
        let usual = || family.variants.first().map_or(&[][..], |variant| variant.extents);
        let last = (family.name == "sd3").then(|| names.filter_map(block).max()).flatten();
        Way { family, extents: if extents.is_empty() { usual() } else { extents }, last }
    }

    /// A part by its component in diffusers' pipelines.
    fn component(part: &'static Part) -> Option<&'static str> {
        part.homes(Container::Diffusers).next().map(|home| home.prefix)
    }

    /// The path of a module.
    fn path(&self, name: &str) -> Option<String> {
        for (word, role) in ENCODERS {
            if let Some(inner) = strip(name, word) {
                return Some(format!("{}.{inner}", Way::component(self.family.part(role)?)?));
            }
        }
        let part = self.family.denoiser()?;
        let inner = of_the_authors(DENOISERS.iter().find_map(|word| strip(name, word))?);
        let to_diffusers = |name: &str| self.translate(part, Naming::Native, Naming::Diffusers, name);
        let whole = to_diffusers(&inner).filter(|targets| targets.len() == 1);
        let targets = whole.map(|targets| (targets, 0)).or_else(|| {
            let (whole, number) = numbered(&inner)?;
            Some((to_diffusers(whole)?, number))
        });
        let (targets, number) = targets?;
        Some(format!("{}.{}", Way::component(part)?, targets.get(number)?.path))
    }

    /// The name of a module, and how the order of its rows changes on the way.
    fn name(&self, path: &str) -> Option<(String, Order)> {
        for (word, role) in ENCODERS {
            let component = self.family.part(role).and_then(Way::component);
            if let Some(inner) = component.and_then(|component| strip(path, component)) {
                return Some((format!("{word}.{inner}"), Order::Same));
            }
        }
        let part = self.family.denoiser()?;
        let component = Way::component(part)?;
        let inner = strip(path, component)?;
        let targets = self.translate(part, Naming::Diffusers, Naming::Native, inner)?;
        let [one] = targets.as_slice() else { return None };
        let name = match one.put {
            Rows::Whole => self.own(&one.path),
            Rows::Part { number, .. } => format!("{}.{number}", one.path),
        };
        Some((format!("{component}.{name}"), one.order))
    }

    /// Another name; of a module that the usual size has not, the one it has in others.
    fn translate(&self, part: &'static Part, from: Naming, to: Naming, name: &str) -> Option<Vec<Target>> {
        part.translate(from, to, name, self.extents).or_else(|| part.translate(from, to, name, &[]))
    }

    /// Whether the halves of a module's rows change places on the way.
    fn swaps(&self, path: &str) -> bool {
        match self.last {
            Some(last) if path.ends_with(MOST) => block(path) == Some(last),
            _ => self.name(path).is_some_and(|(_, order)| order == Order::SwapHalves),
        }
    }

    /// This format's name for a module of the authors'.
    fn own(&self, name: &str) -> String {
        match (self.family.name, name.strip_suffix("mlp.fc1")) {
            ("flux1" | "chroma", _) if name == "img_in" => "img_in.proj".to_string(),
            ("hunyuan_video", Some(head)) => format!("{head}mlp.fc0"),
            _ => name.to_string(),
        }
    }
}
