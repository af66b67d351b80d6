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

/// The numbers of a preset: one of 17, or a curve of 26.
pub fn preset(name: &str) -> Option<Vec<f64>> {
    let of_17 = PRESETS.iter().find(|(known, _)| *known == name);
    of_17.map(|(_, numbers)| numbers.split(',').filter_map(|n| n.parse().ok()).collect()).or_else(|| curve(name))
}

/// Blocks but the first, which stands for the text encoders, in Supermerger's lists of 26.
const STEPS: usize = 25;

/// A curve of Supermerger's (`scripts/mbwpresets_master.txt`) by its name: 0 for the text encoders, and then a value for
/// each block by where it is between the first, 0, and the last, 1.
fn curve(name: &str) -> Option<Vec<f64>> {
    let smooth = |x: f64| x * x * (3.0 - 2.0 * x);
    let wave = |t: f64| (t - 2.0 * (t / 2.0).round()).abs();
    let last = (STEPS - 1) as f64;
    let (plain, reversed) = match name {
        "REVERSE-SMOOTHSTEP" => ("SMOOTHSTEP", true),
        "COSINE" => ("REVERSE_COSINE", true),
        "TRUE_REVERSE_CUBIC_HERMITE" => ("TRUE_CUBIC_HERMITE", true),
        "FAKE_REVERSE_CUBIC_HERMITE" => ("FAKE_CUBIC_HERMITE", true),
        other => other.strip_prefix("R_").map_or((other, false), |rest| (rest, true)),
    };
    let between = |first: usize, end: usize, n: usize| f64::from(u8::from((first..end).contains(&n)));
    let ends = |width: usize, n: usize| between(0, width, n) + between(STEPS - width, STEPS, n);
    let rings = |first: usize, end: usize, n: usize| between(first, end, n) + between(STEPS - end, STEPS - first, n);
    let value = |n: usize| {
        let x = n as f64 / last;
        Some(match plain {
            "GRAD_V" => (1.0 - 2.0 * x).abs(),
            "GRAD_A" => 1.0 - (1.0 - 2.0 * x).abs(),
            "FLAT_25" => 0.25,
            "FLAT_75" => 0.75,
            "WRAP08" => ends(4, n),
            "WRAP12" => ends(6, n),
            "WRAP14" => ends(7, n),
            "WRAP16" => ends(8, n),
            "MID12_50" => between(5, 19, n) / 2.0,
            "OUT07" => between(18, STEPS, n),
            "OUT12" => between(13, STEPS, n),
            "OUT12_5" => between(13, STEPS, n) + between(12, 13, n) / 2.0,
            "RING08_SOFT" => rings(6, 9, n) + (rings(5, 6, n) + rings(9, 10, n)) / 2.0,
            "RING08_5" => rings(6, 10, n),
            "RING10_5" => rings(5, 10, n),
            "RING10_3" => rings(6, 11, n),
            "SMOOTHSTEP" => smooth(x),
            "SMOOTHSTEP*2" => wave(2.0 * smooth(x)),
            "SMOOTHSTEP*3" => wave(3.0 * smooth(x)),
            "SMOOTHSTEP*4" => wave(4.0 * smooth(x)),
            "SMOOTHSTEP/2" => smooth(wave(2.0 * x)),
            "SMOOTHSTEP/3" => smooth(wave(3.0 * x)),
            "SMOOTHSTEP/4" => smooth(wave(4.0 * x)),
            "REVERSE_COSINE" => (1.0 - (std::f64::consts::PI * x).cos()) / 2.0,
            // Its constant term does not count in the first block.
            "TRUE_CUBIC_HERMITE" if n == 0 => 0.0,
            "TRUE_CUBIC_HERMITE" => ((77.0 / 12.0 * x - 77.0 / 8.0) * x + 25.0 / 6.0) * x + 1.0 / 24.0,
            "FAKE_CUBIC_HERMITE" => ((19.0 / 3.0 * x - 19.0 / 2.0) * x + 25.0 / 6.0) * x,
            "ALL_A" => 0.0,
            "ALL_B" => 1.0,
            _ => return None,
        })
    };
    let all = (0..STEPS).map(|n| Some(if reversed { 1.0 - value(n)? } else { value(n)? }));
    let first = if name == "ALL_B" { 1.0 } else { 0.0 };
    std::iter::once(Some(first)).chain(all).collect()
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
            assert_eq!(preset(name).unwrap().len(), 17, "{name}");
        }
    }

    /// Values of Supermerger's file at the text encoders, at the first, second, eighth, thirteenth and last blocks.
    #[test]
    fn curves_are_those_of_supermerger() {
        for (name, wanted) in [
            ("GRAD_V", [0.0, 1.0, 0.9166666667, 0.4166666667, 0.0, 1.0]),
            ("GRAD_A", [0.0, 0.0, 0.0833333333, 0.5833333333, 1.0, 0.0]),
            ("WRAP12", [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]),
            ("MID12_50", [0.0, 0.0, 0.0, 0.5, 0.5, 0.0]),
            ("OUT12_5", [0.0, 0.0, 0.0, 0.0, 0.5, 1.0]),
            ("RING08_SOFT", [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
            ("SMOOTHSTEP", [0.0, 0.0, 0.00506365740740741, 0.205584490740741, 0.5, 1.0]),
            ("REVERSE-SMOOTHSTEP", [0.0, 1.0, 0.994936342592593, 0.794415509259259, 0.5, 0.0]),
            ("SMOOTHSTEP*3", [0.0, 0.0, 0.0151909722222222, 0.616753472222222, 0.5, 1.0]),
            ("R_SMOOTHSTEP*4", [0.0, 1.0, 0.97974537037037, 0.177662037037037, 1.0, 1.0]),
            ("R_SMOOTHSTEP/3", [0.0, 1.0, 0.95703125, 0.04296875, 0.5, 0.0]),
            ("COSINE", [0.0, 1.0, 0.995722430686905, 0.80438071450436, 0.5, 0.0]),
            ("TRUE_CUBIC_HERMITE", [0.0, 0.0, 0.199031876929012, 0.597360869984568, 0.520833333333333, 1.0]),
            ("FAKE_REVERSE_CUBIC_HERMITE", [0.0, 1.0, 0.842423804012346, 0.435739776234568, 0.5, 0.0]),
            ("ALL_B", [1.0; 6]),
        ] {
            let found = preset(name).unwrap();
            assert_eq!(found.len(), 26, "{name}");
            for (place, wanted) in [0, 1, 2, 8, 13, 25].into_iter().zip(wanted) {
                assert!((found[place] - wanted).abs() < 1e-9, "{name}, {place}: {} for {wanted}", found[place]);
            }
        }
        assert_eq!(preset("R_FLAT"), None);
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
