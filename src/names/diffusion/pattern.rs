//! Paths with a `#` where the number of a block stands, and how a path is found to be one of them.
//!
//! A path is met in two forms: dotted, as in the model, or flat, with every `.` become `_` (the form of
//! kohya-ss/sd-scripts:networks/lora.py). A flat path says nothing about which `_` was a `.`: only the patterns do.

/// How a path is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `transformer_blocks.0.attn.to_q`
    Dotted,
    /// `transformer_blocks_0_attn_to_q`
    Flat,
}

/// Whether this is a number as block numbers are written.
fn is_number(token: &str) -> bool {
    let canonical = token == "0" || !token.starts_with('0');
    canonical && (1..=9).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_digit())
}

/// What a path and its pattern have in common in either form: flat, and every number a `#`.
pub(super) fn key(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for (i, token) in path.split(['.', '_']).enumerate() {
        if i > 0 {
            out.push('_');
        }
        out.push_str(if is_number(token) { "#" } else { token });
    }
    out
}

/// The numbers at the `#` of the pattern, if the path is one of it.
pub(super) fn captures(pattern: &str, path: &str, form: Form) -> Option<Vec<u64>> {
    match form {
        Form::Dotted => zip(pattern.split('.'), path.split('.')),
        Form::Flat => zip(pattern.split(['.', '_']), path.split('_')),
    }
}

fn zip<'a>(mut pattern: impl Iterator<Item = &'a str>, mut path: impl Iterator<Item = &'a str>) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return Some(numbers),
            (Some("#"), Some(token)) if is_number(token) => numbers.push(token.parse().ok()?),
            (Some(want), Some(token)) if want == token => {}
            _ => return None,
        }
    }
}

/// The path of a pattern with these numbers.
pub(super) fn fill(pattern: &str, numbers: &[u64]) -> String {
    let mut numbers = numbers.iter();
    let mut out = String::with_capacity(pattern.len() + 4);
    for (i, component) in pattern.split('.').enumerate() {
        if i > 0 {
            out.push('.');
        }
        match (component, numbers.clone().next()) {
            ("#", Some(number)) => {
                numbers.next();
                out.push_str(&number.to_string());
            }
            _ => out.push_str(component),
        }
    }
    out
}

/// A path inside another; either may be empty.
pub(super) fn join(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", only) | (only, "") => only.to_owned(),
        _ => format!("{parent}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: &str = "down_blocks.0.attentions.1.transformer_blocks.#.attn1.to_out.0";

    #[test]
    fn a_pattern_knows_its_paths_in_both_forms() {
        let path = "down_blocks.0.attentions.1.transformer_blocks.12.attn1.to_out.0";
        let flat = path.replace('.', "_");
        assert_eq!(captures(PATTERN, path, Form::Dotted), Some(vec![12]));
        assert_eq!(captures(PATTERN, &flat, Form::Flat), Some(vec![12]));
        assert_eq!(fill(PATTERN, &[12]), path);
        assert_eq!((key(PATTERN), key(&flat)), (key(path), key(path)));
    }

    #[test]
    fn other_paths_are_not_of_the_pattern() {
        for other in ["down_blocks.0", "", "down_blocks.0.attentions.1.transformer_blocks.x.attn1.to_out.0"] {
            assert_eq!(captures(PATTERN, other, Form::Dotted), None);
        }
        for number in ["", "01", "+1", "1234567890", "٣"] {
            assert_eq!(captures("blocks.#", &format!("blocks.{number}"), Form::Dotted), None, "{number}");
        }
    }
}
