//! Blocks as lists of weights count them: one number for the text encoders, one for each block of the denoiser.
//!
//! Sources: hako-mikan/sd-webui-supermerger and hako-mikan/sd-webui-lora-block-weight (orders and presets).

use super::family::Family;
use super::part::{Container, Naming, Role};

/// A list of one length.
struct List {
    families: &'static [&'static str],
    /// Names of blocks; `A..B` stands for all numbers between.
    blocks: &'static str,
}

const U_NETS: &[&str] = &["sd1", "sd2"];
/// All lists there are.
const LISTS: [List; 5] = [
    List { families: U_NETS, blocks: "BASE IN00..11 M00 OUT00..11" },
    List { families: U_NETS, blocks: "BASE IN01..02 IN04..05 IN07..08 M00 OUT03..11" },
    List { families: &["sdxl"], blocks: "BASE IN00..08 M00 OUT00..08" },
    List { families: &["sdxl"], blocks: "BASE IN04..05 IN07..08 M00 OUT00..05" },
    List { families: &["flux1", "chroma"], blocks: "CLIP T5 IN D00..18 S00..37 OUT" },
];

/// Lists by name, of 17 numbers unless it says otherwise.
const PRESETS: [(&str, &str); 10] = [
    ("NONE", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"),
    ("ALL", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"),
    ("ALL0.5", "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5"),
    ("INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0"),
    ("IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0"),
    ("INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0"),
    ("MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"),
    ("OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0"),
    ("OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1"),
    ("OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"),
];

/// The numbers of a preset, as text.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, numbers)| *numbers)
}

/// Names of all presets.
pub fn presets() -> Vec<&'static str> {
    PRESETS.iter().map(|(name, _)| *name).collect()
}

/// The blocks that a list of this many numbers is of, in a model of this family.
pub fn list(family: &Family, count: usize) -> Option<Vec<String>> {
    LISTS.iter().filter(|list| list.families.contains(&family.name)).map(List::names).find(|names| names.len() == count)
}

/// How many numbers lists of this family have.
pub fn lengths(family: &Family) -> Vec<usize> {
    LISTS.iter().filter(|list| list.families.contains(&family.name)).map(|list| list.names().len()).collect()
}

impl List {
    fn names(&self) -> Vec<String> {
        let expand = |word: &str| match word.split_once("..") {
            None => vec![word.to_string()],
            Some((first, last)) => {
                let digits = first.trim_start_matches(|c: char| !c.is_ascii_digit());
                let head = first.strip_suffix(digits).unwrap_or(first);
                let numbers = digits.parse::<u32>().unwrap_or(0)..=last.parse::<u32>().unwrap_or(0);
                numbers.map(|number| format!("{head}{number:02}")).collect()
            }
        };
        self.blocks.split(' ').flat_map(expand).collect()
    }
}

/// The block of a module, by its component and its path there, in this naming; none for what is in no block.
pub fn block(family: &Family, component: &str, naming: Naming, path: &str) -> Option<String> {
    let is_it = |container| family.parts.iter().find(|part| part.homes(container).any(|home| home.prefix == component));
    let part = is_it(Container::Diffusers)?;
    let flux = !U_NETS.contains(&family.name) && family.name != "sdxl";
    match (part.role, flux) {
        (Role::Denoiser, _) => {}
        (Role::ClipL, true) => return Some("CLIP".to_string()),
        (Role::T5, true) => return Some("T5".to_string()),
        (_, true) => return None,
        (_, false) => return Some("BASE".to_string()),
    }
    let native = part.translate(naming, Naming::Native, path, &[])?;
    let mut parts = native.first()?.path.split('.');
    let (first, number) = (parts.next()?, parts.next().and_then(|n| n.parse::<u32>().ok()));
    match (first, number) {
        ("input_blocks", Some(n)) => Some(format!("IN{n:02}")),
        ("middle_block", _) => Some("M00".to_string()),
        ("output_blocks", Some(n)) => Some(format!("OUT{n:02}")),
        ("double_blocks", Some(n)) => Some(format!("D{n:02}")),
        ("single_blocks", Some(n)) => Some(format!("S{n:02}")),
        ("final_layer", _) => Some("OUT".to_string()),
        (first, _) if flux && first.ends_with("_in") => Some("IN".to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::family;
    use super::*;

    #[test]
    fn lists_have_the_lengths_that_users_know() {
        let of = |name: &str| lengths(family(name).unwrap());
        assert_eq!((of("sd1"), of("sdxl"), of("flux1")), (vec![26, 17], vec![20, 12], vec![61]));
        let sd1 = list(family("sd1").unwrap(), 17).unwrap();
        assert_eq!(sd1[..9], ["BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", "OUT03"]);
        assert_eq!(sd1.last().map(String::as_str), Some("OUT11"));
        for name in presets() {
            assert_eq!(preset(name).unwrap().split(',').count(), 17, "{name}");
        }
    }

    #[test]
    fn modules_are_in_the_blocks_that_their_names_say() {
        for (name, component, path, wanted) in [
            ("sd1", "unet", "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", Some("IN02")),
            ("sd1", "unet", "down_blocks.0.downsamplers.0.conv", Some("IN03")),
            ("sd1", "unet", "mid_block.attentions.0.proj_in", Some("M00")),
            ("sd1", "unet", "up_blocks.1.attentions.2.proj_in", Some("OUT05")),
            ("sd1", "unet", "time_embedding.linear_1", None),
            ("sd1", "text_encoder", "text_model.encoder.layers.0.mlp.fc1", Some("BASE")),
            ("sdxl", "unet", "down_blocks.1.attentions.0.proj_in", Some("IN04")),
            ("flux1", "transformer", "transformer_blocks.7.attn.to_q", Some("D07")),
            ("flux1", "transformer", "single_transformer_blocks.12.proj_out", Some("S12")),
            ("flux1", "transformer", "context_embedder", Some("IN")),
            ("flux1", "transformer", "proj_out", Some("OUT")),
            ("flux1", "text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q", Some("T5")),
        ] {
            let found = block(family(name).unwrap(), component, Naming::Diffusers, path);
            assert_eq!(found.as_deref(), wanted, "{name} {path}");
        }
    }
}
