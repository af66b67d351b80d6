//! Random changes to files that were good once, for `mutations.rs` and `fuzzing.rs`. Blind ones end at the first check of a
//! reader; these know what they change.

use crate::kernels::Random;

/// Numbers that are large, small, or next to where something wraps.
const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "2",
    "1.5",
    "-0",
    "1e400",
    "NaN",
    "255",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "null",
    "\"8\"",
];

fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len() < 1 << 20 && std::str::from_utf8(bytes).is_ok_and(|t| !t.contains('\0'))
}

/// The number of a little-endian word in front of a JSON text, as safetensors has it.
fn header(bytes: &[u8]) -> Option<usize> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    rest.get(..length).filter(|text| is_text(text)).map(|_| length)
}

/// Places of the tokens of a text: words in quotes, numbers and other words.
fn tokens(text: &str) -> Vec<std::ops::Range<usize>> {
    let (mut out, bytes) = (Vec::new(), text.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if bytes[at] == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            at = (at + 1).min(bytes.len());
            out.push(start..at);
        } else if bytes[at].is_ascii_alphanumeric() || bytes[at] == b'-' {
            while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || b"-+._".contains(&bytes[at])) {
                at += 1;
            }
            out.push(start..at);
        } else {
            at += 1;
        }
    }
    out.retain(|r| text.is_char_boundary(r.start) && text.is_char_boundary(r.end));
    out
}

fn changed_text(text: &str, random: &mut Random) -> String {
    let all = tokens(text);
    let mut out = text.to_string();
    if all.is_empty() {
        return out;
    }
    let one = all[random.below(all.len())].clone();
    let other = text[all[random.below(all.len())].clone()].to_string();
    match random.below(7) {
        0 | 1 => out.replace_range(one, NUMBERS[random.below(NUMBERS.len())]),
        2 => out.replace_range(one, &other),
        3 => out.replace_range(one, &format!("{}1{}", "[".repeat(200), "]".repeat(200))),
        4 => out.replace_range(one, "\"\\u0000\\ud800/../..\\u202e\""),
        5 => {
            // Once more, or gone: a line, or what lies between two commas.
            let parts: Vec<&str> = text.split_inclusive([',', '\n']).collect();
            let at = random.below(parts.len());
            let mut parts: Vec<&str> = parts.clone();
            if random.below(2) == 0 {
                parts.insert(at, parts[at]);
            } else {
                let _ = parts.remove(at);
            }
            out = parts.concat();
        }
        _ => out.truncate((0..=one.start).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)),
    }
    out
}

/// The same bytes with a change that knows what they are: a number of a text becomes an extreme one, a word another word of
/// the same text, a header keeps its length in front of it.
pub fn changed(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    if is_text(bytes) && random.below(8) > 0 {
        return changed_text(std::str::from_utf8(bytes).expect("checked"), random).into_bytes();
    }
    if let Some(length) = header(bytes).filter(|_| random.below(4) > 0) {
        let text = std::str::from_utf8(&bytes[8..8 + length]).expect("checked");
        let text = changed_text(text, random);
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text.as_bytes());
        out.extend(&bytes[8 + length..]);
        return out;
    }
    let mut out = bytes.to_vec();
    if out.is_empty() {
        return vec![random.bits() as u8; random.below(40)];
    }
    // Most of what can be wrong is near the beginning or the end.
    let near = |random: &mut Random, length: usize| match random.below(3) {
        0 => random.below(length.min(400)),
        1 => length - 1 - random.below(length.min(400)),
        _ => random.below(length),
    };
    for _ in 0..1 + random.below(3) {
        let at = near(random, out.len());
        match random.below(6) {
            0 => out[at] ^= 1 << random.below(8),
            1 => out[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            2 => {
                let value = [0u64, 1, 1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 61, 1 << 63, u64::MAX, u64::MAX - 7]
                    [random.below(9)];
                let width = [2, 4, 8][random.below(3)];
                for (i, byte) in value.to_le_bytes()[..width].iter().enumerate() {
                    if let Some(out) = out.get_mut(at + i) {
                        *out = *byte;
                    }
                }
            }
            3 => out.truncate(at),
            4 => {
                let end = (at + 1 + random.below(64)).min(out.len());
                let part = out[at..end].to_vec();
                let to = near(random, out.len());
                out.splice(to..to, part);
            }
            _ => {
                let end = (at + 1 + random.below(16)).min(out.len());
                out.drain(at..end);
            }
        }
        if out.is_empty() {
            break;
        }
    }
    out
}
