//! Sizes in bytes as people write them: `2GB`, `500 MB`, `1GiB`, `4096`.

/// Parses a size. Decimal units count in thousands, binary ones (`KiB` …) in 1024s.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| "expected a number with a unit, such as 2GB".to_string())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("`{other}` is no unit; use KB, MB, GB, KiB, MiB or GiB")),
    };
    let bytes = number * unit;
    if !(1.0..1e18).contains(&bytes) {
        return Err("expected a size above zero".to_string());
    }
    Ok(bytes as u64)
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
}
