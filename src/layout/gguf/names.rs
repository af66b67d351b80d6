//! What llama.cpp calls the modules of a model, architecture by architecture, there and back: the search in the table
//! of `architectures`.

pub use super::architectures::{ARCHITECTURES, Architecture};
use super::architectures::{BEGINNINGS, EVERYWHERE, Module};
use super::change::Change;

/// Stands for the number of a block.
const BLOCK: &str = "{}";
/// Stands for the number of an expert, in paths only: a stack of experts is one tensor in GGUF.
pub const EXPERT: &str = "{x}";

/// The architecture of llama.cpp's name, or of transformers' class.
pub fn architecture(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.name == name || a.classes.contains(&name))
}

/// Where a tensor lies in GGUF.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What the file is sorted by: the embedding, the blocks, the output.
    order: (usize, usize),
    /// Its name, without `.weight`.
    pub name: String,
}

/// Where a module of transformers lies in GGUF.
#[derive(Debug)]
pub struct Found {
    /// Its tensors.
    pub places: Vec<Place>,
    /// Which expert of a stack it is.
    pub expert: Option<usize>,
    /// What conversion does to its weight.
    pub change: Option<&'static Change>,
}

/// The module of transformers that a tensor of GGUF is of.
#[derive(Debug)]
pub struct Origin {
    /// Its path, with [`EXPERT`] in it where the tensor has the modules of all experts.
    pub path: String,
    /// Which of the module's tensors this is, and how many there are.
    pub part: (usize, usize),
    /// What conversion does to its weight.
    pub change: Option<&'static Change>,
}

impl Architecture {
    fn all(&'static self) -> impl Iterator<Item = &'static Module> {
        self.modules.iter().flat_map(|group| group.iter())
    }

    fn change(&self, path: &str) -> Option<&'static Change> {
        let ends_so = |(end, _): &&(&str, Change)| {
            path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        self.changes.iter().chain(EVERYWHERE).find(ends_so).map(|(_, change)| change)
    }

    /// Why the module of this path cannot be adapted, where that is known.
    pub fn refusal(&self, path: &str) -> Option<&'static str> {
        self.refused.iter().find(|(end, _)| path.ends_with(end)).map(|(_, why)| *why)
    }

    /// Where the module of this path lies.
    pub fn place(&'static self, path: &str) -> Option<Found> {
        let path = self.in_text_model(path);
        let headless = BEGINNINGS.iter().filter(|(class, _, own)| own.is_empty() && self.classes.contains(class));
        let with_beginning = |(_, before, _): &(&str, &str, &str)| self.placed_all(&format!("{before}{path}"));
        self.placed_all(&path).or_else(|| headless.map(with_beginning).find_map(|found| found))
    }

    fn placed_all(&'static self, path: &str) -> Option<Found> {
        let (names, numbers) = self.all().find_map(|(names, template)| Some((names, matched(template, path)?)))?;
        let places = names.split(' ').map(|name| self.placed(name, numbers.block)).collect();
        Some(Found { places, expert: numbers.expert, change: self.change(path) })
    }

    fn placed(&'static self, name: &str, block: Option<usize>) -> Place {
        let number = self.all().position(|(names, _)| names.split(' ').any(|other| other == name)).unwrap_or(0);
        let order = match block {
            Some(block) => (block.saturating_add(1), number),
            None => (if name == "output" { usize::MAX } else { 0 }, number),
        };
        Place { order, name: filled(name, block) }
    }

    /// The module that has a tensor of this name in GGUF.
    pub fn origin(&'static self, name: &str) -> Option<Origin> {
        self.all().find_map(|(names, path)| {
            let found = |template: &str| Some(matched(template, name)?.block);
            let (part, block) = names.split(' ').enumerate().find_map(|(n, name)| Some((n, found(name)?)))?;
            let count = names.split(' ').count();
            Some(Origin { path: filled(path, block), part: (part, count), change: self.change(path) })
        })
    }

    /// The numbers of the base without which there is no way back.
    pub fn needs(&self) -> Vec<&'static str> {
        let mut all: Vec<_> = self.changes.iter().flat_map(|(_, change)| change.cut().needs()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The path inside the language model, which models of several kinds of input have beside others.
    fn in_text_model(&self, path: &str) -> String {
        let path = path.replace("language_model.", "");
        if self.name == "llama" { path.replace("text_model.", "") } else { path }
    }
}

/// The path as this class of transformers has it.
pub fn of_class(class: &str, path: String) -> String {
    let own = |(_, before, own): &(&str, &str, &str)| Some(format!("{own}{}", path.strip_prefix(before)?));
    BEGINNINGS.iter().filter(|(other, ..)| *other == class).find_map(own).unwrap_or(path)
}

#[derive(Default)]
struct Numbers {
    block: Option<usize>,
    expert: Option<usize>,
}

/// The numbers in `text` where it is this template.
fn matched(template: &str, text: &str) -> Option<Numbers> {
    let (mut left, mut right) = (template.split('.'), text.split('.'));
    let mut out = Numbers::default();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Some(out),
            (Some(BLOCK), Some(word)) => out.block = Some(number(word)?),
            (Some(EXPERT), Some(word)) => out.expert = Some(number(word)?),
            (Some(a), Some(b)) if a == b => {}
            _ => return None,
        }
    }
}

/// A number as it is printed: no sign, no zeros in front.
fn number(word: &str) -> Option<usize> {
    word.parse().ok().filter(|n: &usize| n.to_string() == word)
}

fn filled(template: &str, block: Option<usize>) -> String {
    block.map_or_else(|| template.to_string(), |n| template.replacen(BLOCK, &n.to_string(), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_way_back() {
        for architecture in ARCHITECTURES {
            for name in architecture.all().flat_map(|(names, _)| names.split(' ')) {
                let name = filled(name, Some(12));
                let origin = architecture.origin(&name).unwrap();
                let found = architecture.place(&origin.path.replace(EXPERT, "3")).unwrap();
                assert_eq!(found.places.len(), origin.part.1);
                assert_eq!(found.places[origin.part.0].name, name, "{}", architecture.name);
                assert_eq!(found.expert.is_some(), origin.path.contains(EXPERT));
                if let Some(change) = found.change {
                    let tensors = change.cut().parts.iter().map(|part| part.to).max().unwrap() + 1;
                    assert_eq!(tensors, found.places.len(), "{}: {name}", architecture.name);
                } else {
                    assert_eq!(found.places.len(), 1);
                }
            }
        }
    }

    #[test]
    fn paths_begin_as_in_their_class() {
        for (class, path) in [
            ("Qwen3Model", "layers.1.self_attn.q_proj"),
            ("Gemma3ForConditionalGeneration", "model.language_model.layers.1.self_attn.q_proj"),
            ("Llama4ForConditionalGeneration", "language_model.model.layers.1.self_attn.q_proj"),
            ("Qwen3ForCausalLM", "model.layers.1.self_attn.q_proj"),
        ] {
            let architecture = architecture(class).unwrap();
            let found = architecture.place(path).unwrap();
            assert_eq!(found.places[0].name, "blk.1.attn_q");
            assert_eq!(of_class(class, architecture.origin("blk.1.attn_q").unwrap().path), path);
        }
    }

    #[test]
    fn every_class_is_one_architecture() {
        let mut all: Vec<_> = ARCHITECTURES.iter().flat_map(|a| a.classes.iter().copied()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_file_is_in_the_order_of_the_model() {
        let llama = architecture("MistralForCausalLM").unwrap();
        let place = |path| llama.place(path).unwrap().places.remove(0);
        let q = place("model.layers.2.self_attn.q_proj");
        assert_eq!(q, place("model.language_model.layers.2.self_attn.q_proj"));
        assert!(place("model.embed_tokens") < q && q < place("model.layers.10.self_attn.q_proj"));
        assert!(place("model.layers.10.mlp.up_proj") < place("lm_head"));
        assert_eq!(place("model.layers.1.mlp.experts.0.gate_proj"), place("model.layers.1.mlp.experts.gate_up_proj"));
        for path in ["model.layers.02.self_attn.q_proj", "model.layers.x.self_attn.q_proj", "model.norm"] {
            assert!(llama.place(path).is_none());
        }
    }
}
