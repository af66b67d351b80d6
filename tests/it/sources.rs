//! Reading the project's own sources: the code of each file without comments and texts, and what it uses.
//!
//! Not a Rust parser. It goes by formatted code (`cargo fmt`): inline modules open and close at the margin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One file under `src`.
pub struct SourceFile {
    /// Path under `src`, with `/`.
    pub path: String,
    /// The file as it stands.
    pub text: String,
    /// Path of its module; empty for the two roots.
    pub module: Vec<String>,
    /// Its lines without comments and texts.
    pub code: Vec<Line>,
}

/// One line of code.
pub struct Line {
    pub number: usize,
    pub text: String,
    /// How many inline modules it lies in: 0 or 1.
    pub depth: usize,
}

impl SourceFile {
    /// The room: the first folder or file of the path; none for `lib.rs` and `main.rs`.
    pub fn room(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }

    /// Lines outside of inline test modules in which `word` stands by itself.
    pub fn lines_with(&self, word: &str) -> Vec<usize> {
        let outside = self.code.iter().filter(|line| line.depth == 0);
        outside.filter(|line| words(&line.text).any(|w| w == word)).map(|line| line.number).collect()
    }
}

/// The project's folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files under `src`, in order.
pub fn all() -> Vec<SourceFile> {
    let root = project().join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    paths.iter().map(|path| open(&root, path)).collect()
}

fn walk(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            walk(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn open(root: &Path, path: &Path) -> SourceFile {
    let text = std::fs::read_to_string(path).expect("a readable source");
    let relative = path.strip_prefix(root).expect("a path under src");
    let path = relative.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
    file(path, text)
}

fn file(path: String, text: String) -> SourceFile {
    let mut module: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_string).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    // The tests at the foot of a file may use what stands above it.
    let own = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code = lines(&code_of(own));
    SourceFile { path, text, module, code }
}

fn lines(code: &str) -> Vec<Line> {
    let mut depth = 0;
    let mut out = Vec::new();
    for (i, text) in code.lines().enumerate() {
        if (text.starts_with("mod ") || text.starts_with("pub mod ")) && text.trim_end().ends_with('{') {
            depth = 1;
        }
        out.push(Line { number: i + 1, text: text.to_string(), depth });
        if text.starts_with('}') {
            depth = 0;
        }
    }
    out
}

/// The text with comments, strings and character literals blanked, line breaks kept.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => find(&chars, i, |j| at(j) == '\n'),
            ('/', '*') => find(&chars, i + 2, |j| at(j) == '*' && at(j + 1) == '/') + 2,
            ('r', '"' | '#') if i == 0 || !is_word(at(i - 1)) => raw_string_end(&chars, i),
            ('"', _) => string_end(&chars, i + 1, '"'),
            ('\'', '\\') => string_end(&chars, i + 1, '\''),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end == i {
            out.push(at(i));
            i += 1;
        } else {
            let end = end.min(chars.len());
            out.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            i = end;
        }
    }
    out
}

fn find(chars: &[char], from: usize, test: impl Fn(usize) -> bool) -> usize {
    (from..chars.len()).find(|&j| test(j)).unwrap_or(chars.len())
}

fn string_end(chars: &[char], mut i: usize, quote: char) -> usize {
    while i < chars.len() && chars[i] != quote {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The end of `r"…"` or `r#"…"#`; the start itself where it is only a name.
fn raw_string_end(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let closes =
        |j: usize| chars[j] == '"' && chars[j + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    find(chars, open + 1, closes) + 1 + hashes
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|w| !w.is_empty())
}

/// Which files each file uses, by paths that begin with `crate`, `super`, `self` or the name of a child module.
pub struct Uses {
    /// Module path → file.
    files: BTreeMap<Vec<String>, String>,
}

impl Uses {
    pub fn of(sources: &[SourceFile]) -> Uses {
        Uses { files: sources.iter().map(|s| (s.module.clone(), s.path.clone())).collect() }
    }

    /// Full module paths that a file names, with the lines. A path stops at the first name that is no module.
    pub fn modules(&self, source: &SourceFile) -> Vec<(usize, Vec<String>)> {
        let mut out = Vec::new();
        for (number, depth, path) in paths(source) {
            if let Some(full) = self.absolute(source, depth, &path) {
                out.push((number, full));
            }
        }
        out
    }

    /// The files that a file uses, itself left out.
    pub fn files(&self, source: &SourceFile) -> BTreeSet<String> {
        let modules = self.modules(source).into_iter().map(|(_, module)| module);
        modules.filter_map(|m| self.files.get(&m).cloned()).filter(|f| *f != source.path).collect()
    }

    fn absolute(&self, source: &SourceFile, depth: usize, path: &[String]) -> Option<Vec<String>> {
        let (first, rest) = path.split_first()?;
        let mut full: Vec<String>;
        let mut rest = rest;
        match first.as_str() {
            "crate" => full = Vec::new(),
            "self" => full = source.module.clone(),
            "super" => {
                let mut up = 1;
                while let Some((_, later)) = rest.split_first().filter(|(next, _)| *next == "super") {
                    up += 1;
                    rest = later;
                }
                let kept = (source.module.len() + depth).checked_sub(up)?;
                full = source.module.get(..kept.min(source.module.len()))?.to_vec();
            }
            child => {
                full = source.module.clone();
                full.push(child.to_string());
                self.files.get(&full)?;
            }
        }
        for name in rest {
            full.push(name.clone());
            if !self.files.contains_key(&full) {
                full.pop();
                break;
            }
        }
        Some(full)
    }
}

/// Every `a::b::c` of a file; groups are taken apart: `a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(source: &SourceFile) -> Vec<(usize, usize, Vec<String>)> {
    let mut out = Vec::new();
    // One text, so that a group may span lines; each character knows its line.
    let text: Vec<(char, usize, usize)> = source
        .code
        .iter()
        .flat_map(|line| line.text.chars().chain(['\n']).map(move |c| (c, line.number, line.depth)))
        .collect();
    let mut i = 0;
    while i < text.len() {
        let begins = is_word(text[i].0) && (i == 0 || (!is_word(text[i - 1].0) && !follows_path(&text, i)));
        if begins {
            let (_, number, depth) = text[i];
            let mut found = Vec::new();
            let end = path(&text, i, &mut Vec::new(), &mut found);
            out.extend(found.into_iter().filter(|p| p.len() > 1).map(|p| (number, depth, p)));
            i = end.max(i + 1);
        } else {
            i += 1;
        }
    }
    out
}

fn follows_path(text: &[(char, usize, usize)], i: usize) -> bool {
    i >= 2 && text[i - 1].0 == ':' && text[i - 2].0 == ':'
}

/// Reads one path at `i` behind `prefix` into `out` and returns where it ends.
fn path(text: &[(char, usize, usize)], mut i: usize, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let at = |i: usize| text.get(i).map_or('\0', |t| t.0);
    let mark = prefix.len();
    loop {
        let mut name = String::new();
        while is_word(at(i)) {
            name.push(at(i));
            i += 1;
        }
        prefix.push(name);
        if (at(i), at(i + 1)) != (':', ':') {
            out.push(prefix.clone());
            break;
        }
        i += 2;
        if at(i) == '{' {
            i += 1;
            while at(i) != '}' && at(i) != '\0' {
                if is_word(at(i)) {
                    i = path(text, i, prefix, out);
                } else {
                    i += 1;
                }
            }
            i += 1;
            break;
        }
        if !is_word(at(i)) {
            out.push(prefix.clone()); // `::<` or `::*`
            break;
        }
    }
    prefix.truncate(mark);
    i
}

#[test]
fn uses_are_found_however_they_are_written() {
    let text = r##"//! crate::not::this
use crate::{error::Error, tensor::{Tensor, dtype::{self, of}}};
use child::Thing; // super::nor::this
fn f<'a>(c: char) -> &'a str {
    if c == '"' { crate::names::find("crate::cli::main") } else { r#"super::b"# }
}
mod tests {
    use super::super::b::X;
}
"##;
    let files =
        ["error.rs", "tensor/mod.rs", "tensor/dtype.rs", "names.rs", "cli.rs", "a/mod.rs", "a/child.rs", "b.rs"];
    let mut all: Vec<_> = files.iter().map(|path| file((*path).to_string(), String::new())).collect();
    all[5] = file("a/mod.rs".to_string(), text.to_string());
    let found = Uses::of(&all).files(&all[5]);
    let expected = ["a/child.rs", "b.rs", "error.rs", "names.rs", "tensor/dtype.rs", "tensor/mod.rs"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(all[5].lines_with("find"), [5]);
}
