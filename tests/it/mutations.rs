//! Readers against files that were good once: bits, lengths, numbers and words of the fixtures are changed at random, the same
//! ways in every run, and whatever comes of it has to be a result or an error, soon, and in little memory.
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
use crate::mutator::changed;

/// Changed files for each of the good ones, where nothing else is said.
const USUAL: usize = 40;
/// Time for one of them; the largest takes some milliseconds.
const MOST_TIME: Duration = Duration::from_secs(10);
/// Memory for one of them, beside 64 times the size of its files: they have some ten kilobytes.
const MOST_BYTES: usize = 64 << 20;

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
