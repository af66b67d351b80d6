//! GLoRA: five letters for weight and bias (huggingface/peft, `src/peft/tuners/glora`).

use super::{Tuner, Writing, need, require_taken, take, take_modules};
use crate::adapter::delta::{Delta, Glora, glora::Letter};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::keys::Parts;
use crate::layout::peft::saved::target;
use crate::layout::peft::writer::{Taken, Writer, common};

const TAILS: &[&str] = &["Xd", "Xu", "X", "zeros"];

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "GLORA",
    roles: &[("glora_A", TAILS), ("glora_B", TAILS), ("glora_C", TAILS), ("glora_D", TAILS), ("glora_E", TAILS)],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("config_A_B", "\"lora\""),
    ("config_C", "\"lora\""),
    ("config_D_E", "\"constant\""),
    ("init_weights", "true"),
    ("modules_to_save", "null"),
    ("r", "8"),
];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let (a, b) = (letter(&mut parts, "glora_A")?, letter(&mut parts, "glora_B")?);
        let (c, d, e) =
            (letter(&mut parts, "glora_C")?, letter(&mut parts, "glora_D")?, letter(&mut parts, "glora_E")?);
        require_taken(&parts, TUNER.peft_type)?;
        let target = target(reader, path.as_str());
        if a.is_some() || b.is_some() {
            target.weight.push(Delta::Glora(Glora::Weight { a, b }));
        }
        // PEFT fills the letters of the bias with zeros where the layer has none.
        if c.is_some() || d.is_some() || e.is_some() {
            target.bias.push(Delta::Glora(Glora::Bias { c, d, e }));
        }
    }
    Ok(())
}

/// The tensors of one letter; none where it is a placeholder of zeros.
fn letter(parts: &mut Parts, name: &str) -> Result<Option<Letter>> {
    let role = |tail: &str| format!("{name}.{tail}");
    if let Some(zeros) = take(parts, &role("zeros"))? {
        let all_zero = zeros.to_f32()?.iter().all(|v| *v == 0.0);
        return Ok((!all_zero).then_some(Letter::Plain(zeros)));
    }
    if let Some(down) = take(parts, &role("Xd"))? {
        return Ok(Some(Letter::Product(down, need(parts, &role("Xu"))?)));
    }
    Ok(take(parts, &role("X"))?.map(Letter::Plain))
}

fn write(writer: &mut Writer) -> Result<()> {
    let weights = writer.take(|delta| match delta {
        Delta::Glora(Glora::Weight { a, b }) => Some(vec![("A", a.clone()), ("B", b.clone())]),
        _ => None,
    });
    let mut biases = Vec::new();
    for (path, target) in &mut writer.targets {
        let Some(Delta::Glora(Glora::Bias { c, d, e })) = target.bias.last() else { continue };
        let change = vec![("C", c.clone()), ("D", d.clone()), ("E", e.clone())];
        biases.push(Taken { path: path.to_string(), site: target.site, change });
        target.bias.pop();
        writer.selection.modules.insert(path.to_string());
    }
    let all: Vec<_> = weights.into_iter().chain(biases).collect();
    for (field, letters) in [("config_A_B", "AB"), ("config_C", "C"), ("config_D_E", "DE")] {
        let found: Vec<_> = all.iter().flat_map(|t| forms(t, letters)).collect();
        writer.set(field, common(&found, field, |form| *form)?.unwrap_or("none"));
    }
    let ranks: Vec<_> = all.iter().flat_map(ranks).collect();
    if let Some(rank) = common(&ranks, "rank", |rank| *rank)? {
        writer.set("r", rank);
    }
    for Taken { path, change, .. } in all {
        for (name, letter) in change {
            let role = |tail: &str| format!("glora_{name}.{tail}");
            match letter {
                Some(Letter::Product(down, up)) => {
                    writer.put(&path, 0, &role("Xd"), down)?;
                    writer.put(&path, 0, &role("Xu"), up)?;
                }
                Some(Letter::Plain(tensor)) => writer.put(&path, 0, &role("X"), tensor)?,
                None => {}
            }
        }
    }
    Ok(())
}

/// Letters of a module by name.
type Letters = Taken<Vec<(&'static str, Option<Letter>)>>;

/// PEFT's words for the forms of these letters. A letter that is not there is zero, which every form may be.
fn forms(module: &Letters, letters: &str) -> Vec<Taken<&'static str>> {
    let form = |letter: &Letter| match letter {
        Letter::Product(..) => "lora",
        Letter::Plain(tensor) if tensor.elements() == 1 => "constant",
        Letter::Plain(_) => "vector",
    };
    let ours = module.change.iter().filter(|(name, _)| letters.contains(name));
    let found = ours.filter_map(|(_, letter)| letter.as_ref().map(form));
    found.map(|change| Taken { path: module.path.clone(), site: module.site, change }).collect()
}

fn ranks(module: &Letters) -> Vec<Taken<usize>> {
    let rank = |letter: &Option<Letter>| match letter {
        Some(Letter::Product(down, _)) => Some(down.shape.matrix().1),
        _ => None,
    };
    let found = module.change.iter().filter_map(|(_, letter)| rank(letter));
    found.map(|change| Taken { path: module.path.clone(), site: module.site, change }).collect()
}
