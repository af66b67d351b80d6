//! Sizes in bytes and counts of elements as people write them: `2GB`, `500 MB`, `1GiB`, `4096`; `10M`, `1.5B`.

/// Units of bytes, the largest first, with the words that stand for them. Decimal ones count in thousands.
const BYTES: &[(f64, &[&str])] = &[
    (1e12, &["TB", "T"]),
    (1e9, &["GB", "G"]),
    (1e6, &["MB", "M"]),
    (1e3, &["KB", "K"]),
    (1073741824.0, &["GiB"]),
    (1048576.0, &["MiB"]),
    (1024.0, &["KiB"]),
    (1.0, &["", "B"]),
];

/// Units of a count: thousand, million, billion.
const COUNTS: &[(f64, &[&str])] = &[(1e9, &["B", "G"]), (1e6, &["M"]), (1e3, &["K"]), (1.0, &[""])];

/// Parses a size. Decimal units count in thousands, binary ones (`KiB` …) in 1024s.
pub fn parse(text: &str) -> Result<u64, String> {
    read(text, BYTES, ("2GB", "size", "KB, MB, GB, KiB, MiB or GiB"))
}

/// Parses a count.
pub fn parse_count(text: &str) -> Result<u64, String> {
    read(text, COUNTS, ("10M", "count", "K, M or B"))
}

/// The shortest text that [`parse`] reads as this.
pub fn exact(bytes: u64) -> String {
    shortest(bytes, BYTES)
}

/// The shortest text that [`parse_count`] reads as this.
pub fn exact_count(count: u64) -> String {
    shortest(count, COUNTS)
}

fn read(text: &str, units: &[(f64, &[&str])], (example, what, known): (&str, &str, &str)) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..digits].parse().map_err(|_| format!("expected a number with a unit, such as {example}"))?;
    let word = text[digits..].trim();
    let unit = units.iter().find(|(_, words)| words.iter().any(|w| w.eq_ignore_ascii_case(word)));
    let (unit, _) = unit.ok_or_else(|| format!("`{word}` is no unit; use {known}"))?;
    let all = (number * unit).round();
    if (1.0..1e18).contains(&all) { Ok(all as u64) } else { Err(format!("expected a {what} above zero")) }
}

fn shortest(n: u64, units: &[(f64, &[&str])]) -> String {
    let texts = units.iter().filter_map(|(unit, words)| {
        let number = n as f64 / unit;
        let text = format!("{number}{}", words.first()?);
        ((number * unit).round() as u64 == n).then_some(text)
    });
    texts.min_by_key(String::len).unwrap_or_else(|| n.to_string())
}

/// A size in words: `2.4 GB`.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{value:.*} {}", usize::from(value < 100.0), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse("2GB"), Ok(2_000_000_000));
        assert_eq!(parse("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse("4096"), Ok(4096));
        for bad in ["", "GB", "2XB", "-1", "0"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (show(999).as_str(), show(2_400_000_000).as_str(), show(999_999).as_str()),
            ("999 B", "2.4 GB", "1.0 MB")
        );
    }

    #[test]
    fn exact_words_are_read_back() {
        for text in ["50MB", "1.5GB", "1MiB", "1.5MiB", "4097", "999KB", "1TB"] {
            assert_eq!(exact(parse(text).unwrap()), text);
        }
        for text in ["10M", "1.5B", "1K", "999", "1234567"] {
            assert_eq!(exact_count(parse_count(text).unwrap()).len(), text.len(), "{text}");
        }
        assert_eq!(parse_count("10M"), Ok(10_000_000));
        assert_eq!(parse_count("0.1"), Err("expected a count above zero".to_string()));
        assert!(parse_count("10MB").is_err());
    }
}
