//! A tensor name with its counting numbers taken out, so that rules run once for each kind of name.
//!
//! A large checkpoint has hundreds of thousands of names and a few dozen kinds of them:
//! `model.layers.7.mlp.experts.3.up_proj.weight` differs from its neighbours in two numbers. The rewrite rules treat
//! such numbers alike, so they are replaced by marks, the rules rewrite what is left, and the numbers are put back.

/// Stands for a number. Digits, so that `\d+` in a rule matches it; two more digits say which number.
const MARK: &str = "730073007300";

/// The components whose child modules are counted. Numbers elsewhere stay, since rules name them (`mlp1.0.`).
const COUNTED: &[&str] = &["layers", "layer", "h", "blocks", "block", "resblocks", "experts", "stages"];

/// The text of a name with marks for its counting numbers, and the numbers. `None` for a name that no rule is meant
/// for: one that contains the mark itself or counts too deep.
pub fn mark(name: &str) -> Option<(String, Vec<usize>)> {
    if name.contains(MARK) {
        return None;
    }
    let mut text = String::with_capacity(name.len() + 2 * MARK.len());
    let mut numbers = Vec::new();
    let mut counted = false;
    for (i, component) in name.split('.').enumerate() {
        if i > 0 {
            text.push('.');
        }
        match number(component).filter(|_| counted) {
            Some(n) => {
                text.push_str(&mark_of(numbers.len())?);
                numbers.push(n);
            }
            None => text.push_str(component),
        }
        counted = COUNTED.contains(&component);
    }
    Some((text, numbers))
}

/// The name with the marks of `text` replaced by `numbers`. `None` if one is not there.
pub fn fill(text: &str, numbers: &[Option<usize>]) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    for (i, component) in text.split('.').enumerate() {
        if i > 0 {
            name.push('.');
        }
        match which(component) {
            Some(mark) => name.push_str(&numbers.get(mark).copied().flatten()?.to_string()),
            None => name.push_str(component),
        }
    }
    Some(name)
}

/// A number in a rewritten name: one that was marked, or a plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The number that had this mark.
    Marked(usize),
    /// This number.
    Is(usize),
}

/// A rewritten text with `#` for every number, and what those numbers are. This is the form in which a name from an
/// adapter, where nothing is marked, can be compared with it.
pub fn bare(text: &str) -> (String, Vec<Slot>) {
    let mut slots = Vec::new();
    let mut out = String::with_capacity(text.len());
    for (i, component) in text.split('.').enumerate() {
        if i > 0 {
            out.push('.');
        }
        match which(component).map(Slot::Marked).or_else(|| number(component).map(Slot::Is)) {
            Some(slot) => {
                slots.push(slot);
                out.push('#');
            }
            None => out.push_str(component),
        }
    }
    (out, slots)
}

/// Which mark a component is.
pub fn which(component: &str) -> Option<usize> {
    let digits = component.strip_prefix(MARK)?;
    (digits.len() == 2).then(|| digits.parse().ok()).flatten()
}

fn mark_of(index: usize) -> Option<String> {
    (index < 100).then(|| format!("{MARK}{index:02}"))
}

/// A component that is a number and nothing else, written the usual way.
fn number(component: &str) -> Option<usize> {
    let bytes = component.as_bytes();
    let usual = bytes.iter().all(u8::is_ascii_digit) && (bytes.len() == 1 || bytes.first() != Some(&b'0'));
    if usual { component.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let name = "model.layers.12.mlp.experts.255.up_proj.weight";
        let (text, numbers) = mark(name).unwrap();
        assert_eq!(numbers, [12, 255]);
        assert_eq!(fill(&text, &[Some(12), Some(255)]).as_deref(), Some(name));
        assert_eq!(fill(&text, &[Some(12), None]), None);
        assert_eq!(
            bare(&text),
            ("model.layers.#.mlp.experts.#.up_proj.weight".to_owned(), vec![Slot::Marked(0), Slot::Marked(1)])
        );
    }

    #[test]
    fn numbers_that_rules_name_stay() {
        assert_eq!(mark("perceive.proj.2.weight"), Some(("perceive.proj.2.weight".to_owned(), vec![])));
        assert_eq!(mark("layers.007.weight").unwrap().1, Vec::<usize>::new());
        assert_eq!(bare("perceive.proj.2.weight").1, [Slot::Is(2)]);
    }

    #[test]
    fn hostile_names_are_left_alone() {
        assert_eq!(mark("layers.73007300730001.weight"), None);
        assert_eq!(mark(&"layers.1.".repeat(200)), None);
        assert!(mark("layers.99999999999999999999999.w").unwrap().1.is_empty());
        assert!(mark("").is_some() && mark("...").is_some());
    }
}
