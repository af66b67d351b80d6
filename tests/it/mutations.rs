//! Readers against files that were good once: bits, lengths, numbers and words of the fixtures are changed at random, the same
//! ways in every run, and whatever comes of it has to be a result or an error, soon, and in little memory.
//!
//! Changes know what they change: a number becomes an extreme one, a word another word of the same text, a header keeps its
//! length in front of it. Blind ones end at the first check.
//!
//! `MUTATIONS=100000 cargo test --release mutations` goes on for longer; what fails says which file and which number.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lora_tool::kernels::OpenBlas;
use lora_tool::layout;
use lora_tool::model::BaseModel;
use lora_tool::ops::inspect;
use lora_tool::ops::merge::{self, Applied};
use lora_tool::stream::{Limits, Resuming, Unwatched, Writing};

use crate::fixtures::{self, Scratch};
use crate::heap;
use crate::kernels::Random;

/// Changed files for each of the good ones, where nothing else is said.
const USUAL: usize = 40;
/// Time for one of them; the largest takes some milliseconds.
const MOST_TIME: Duration = Duration::from_secs(10);
/// Memory for one of them, beside 64 times the size of its files: they have some ten kilobytes.
const MOST_BYTES: usize = 64 << 20;

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

/// The files of a case, of which some are changed.
struct Good {
    name: String,
    files: Vec<(PathBuf, Vec<u8>)>,
    is_folder: bool,
    /// The model that the adapter is for.
    base: Option<PathBuf>,
}

fn good(path: &Path) -> Good {
    let name = path.strip_prefix(fixtures::root()).unwrap_or(path).display().to_string();
    if path.is_file() {
        let file = PathBuf::from(path.file_name().expect("a name"));
        return Good { name, files: vec![(file, fs::read(path).expect("a file"))], is_folder: false, base: None };
    }
    let mut files = Vec::new();
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        entries.sort();
        for entry in entries {
            let word = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() {
                folders.push(entry);
            } else if !word.starts_with("about") && !word.starts_with("expected") {
                let inner = entry.strip_prefix(path).expect("inside").to_path_buf();
                files.push((inner, fs::read(&entry).expect("a file")));
            }
        }
    }
    let about: Option<toml::Table> = fs::read_to_string(path.join("about.toml")).ok().and_then(|t| t.parse().ok());
    let named = about.and_then(|about| Some(fixtures::base(about.get("base")?.as_str()?)));
    Good { name, files, is_folder: true, base: named.filter(|base| base.exists()) }
}

// --- changes ------------------------------------------------------------------------------------------------------

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

fn changed(bytes: &[u8], random: &mut Random) -> Vec<u8> {
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

// --- what every reader has to hold ----------------------------------------------------------------------------------

/// Reads an input as whatever it may be, and merges it where it is an adapter for a model.
fn read(path: &Path, base: Option<&BaseModel>, out: &Path) {
    if let Ok(opened) = layout::open(path, None) {
        if let Some(base) = base {
            let applied = [Applied { label: String::new(), strength: 1.0, adapter: &opened.adapter, identity: None }];
            let limits = Limits { threads: 1, memory: 64 << 20 };
            let writing = Writing { replace: true, sync: false, limits, resuming: Resuming::Never };
            if let Ok(merge) = merge::merge(base, &applied, &merge::Options::default()) {
                let _ = merge.output.write(out, writing, &OpenBlas::new(), &Unwatched);
            }
        }
        let _ = inspect::adapter::summarise(&opened.adapter, &OpenBlas::new());
        let _ = opened.source.require_finite();
        for layout in layout::LAYOUTS.iter().filter(|layout| layout.can_write()) {
            let _ = layout.write(&opened.adapter);
        }
    }
    if let Ok(base) = BaseModel::open(path) {
        let _ = inspect::base::summarise(&base);
    }
}

fn check(good: &Good, scratch: &Scratch, count: usize) {
    let size: usize = good.files.iter().map(|(_, bytes)| bytes.len()).sum();
    let base = good.base.as_deref().map(|base| BaseModel::open(base).expect("a model of the fixtures"));
    for number in 0..count {
        let mut random = Random::new(1 + number as u64 * 7919 + good.name.len() as u64);
        let victim = random.below(good.files.len());
        let folder = scratch.join("case");
        let _ = fs::remove_dir_all(&folder);
        for (i, (inner, bytes)) in good.files.iter().enumerate() {
            let path = folder.join(inner);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            let other = if i == victim { Some(changed(bytes, &mut random)) } else { None };
            fs::write(&path, other.as_ref().unwrap_or(bytes)).expect("a file");
        }
        let path = if good.is_folder { folder.clone() } else { folder.join(&good.files[0].0) };
        let what = format!("{} number {number}, in {}", good.name, good.files[victim].0.display());
        let (began, before) = (Instant::now(), heap::mark());
        let ended = catch_unwind(AssertUnwindSafe(|| read(&path, base.as_ref(), &scratch.join("merged"))));
        let taken = heap::peak().saturating_sub(before);
        assert!(ended.is_ok(), "{what}: a panic; the files are in {}", kept(&folder));
        assert!(began.elapsed() < MOST_TIME, "{what}: {:?}; the files are in {}", began.elapsed(), kept(&folder));
        assert!(taken < MOST_BYTES + 64 * size, "{what}: {taken} bytes; the files are in {}", kept(&folder));
    }
}

/// Keeps the files that were found.
fn kept(folder: &Path) -> String {
    let to = std::env::temp_dir().join(format!("lora-tool-mutation-{}", std::process::id()));
    let _ = fs::remove_dir_all(&to);
    let _ = fs::rename(folder, &to);
    to.display().to_string()
}

fn run(folders: &[&str]) {
    let count = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(USUAL);
    let scratch = Scratch::new();
    for folder in folders {
        let mut cases: Vec<PathBuf> = fs::read_dir(fixtures::root().join(folder))
            .expect("a folder")
            .map(|e| e.expect("an entry").path())
            .collect();
        cases.sort();
        cases.retain(|case| case.extension().is_none_or(|e| e != "json" && e != "tsv" && e != "md"));
        for case in cases {
            let good = good(&case);
            let size: usize = good.files.iter().map(|(_, bytes)| bytes.len()).sum();
            if good.files.is_empty() || size > 400_000 {
                continue;
            }
            check(&good, &scratch, count);
        }
    }
}

#[test]
fn changed_adapters_of_peft_are_read_or_refused() {
    run(&["adapters/peft"]);
}

#[test]
fn changed_adapters_of_other_layouts_are_read_or_refused() {
    let all = [
        "diffusers",
        "onetrainer",
        "ai-toolkit",
        "mlx",
        "nemo",
        "litgpt",
        "loralib",
        "torchtune",
        "xlabs",
        "cloneofsimo",
    ];
    let all: Vec<String> = all.iter().map(|layout| format!("adapters/{layout}")).collect();
    run(&all.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn changed_files_of_kohya_are_read_or_refused() {
    run(&["kohya"]);
}

#[test]
fn changed_gguf_files_are_read_or_refused() {
    run(&["adapters/gguf", "llama_cpp"]);
}

#[test]
fn changed_pickles_are_read_or_refused() {
    run(&["adapters/adapterhub", "torch", "torch/hostile"]);
}

#[test]
fn changed_models_are_read_or_refused() {
    run(&["models", "pipelines"]);
}
