//! The fuzz targets of `fuzz/targets`, as plain tests: on every file of `fuzz/corpus`, and on each of them changed at random,
//! the same ways in every run. Nothing may end in a panic, take long, or take much memory.
//!
//! `FUZZ=1000 cargo test --release fuzzing` makes so many changes of each file. `UPDATE_CORPUS=1 cargo test fuzzing` writes the
//! files that were made from fixtures anew and leaves the others, which were found.

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

mod seeds;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::heap;
use crate::kernels::Random;
use crate::mutator::changed;
use crate::sources::project;

/// Changes of each file, where nothing else is said.
const USUAL: usize = 20;
/// Time for one input; the usual takes some milliseconds.
const MOST_TIME: Duration = Duration::from_secs(10);
/// Memory for one input, beside 64 times its size.
const MOST_BYTES: usize = 64 << 20;
/// All files together: they are part of every clone.
const MOST_CORPUS: usize = 300_000;

fn corpus() -> PathBuf {
    project().join("fuzz/corpus")
}

/// Files of a target, in order.
fn files(target: &str) -> Vec<PathBuf> {
    let mut out: Vec<_> = fs::read_dir(corpus().join(target))
        .unwrap_or_else(|e| panic!("fuzz/corpus/{target}: {e}; UPDATE_CORPUS=1 makes it"))
        .map(|e| e.expect("an entry").path())
        .collect();
    out.sort();
    assert!(!out.is_empty(), "fuzz/corpus/{target} is empty");
    out
}

fn walk(name: &str) {
    let (_, target) = targets::ALL.iter().find(|(other, _)| *other == name).expect("a target");
    let count = std::env::var("FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(USUAL);
    for file in files(name) {
        let good = fs::read(&file).expect("a file");
        check(*target, &good, &file, "as it is");
        for number in 0..count {
            let mut random = Random::new(1 + number as u64 * 7919 + good.len() as u64);
            let mut bytes = changed(&good, &mut random);
            for _ in 0..random.below(3) {
                bytes = changed(&bytes, &mut random);
            }
            check(*target, &bytes, &file, &format!("change {number}"));
        }
    }
}

fn check(target: targets::Target, bytes: &[u8], file: &Path, what: &str) {
    let (began, before) = (Instant::now(), heap::mark());
    let ended = catch_unwind(AssertUnwindSafe(|| target(bytes)));
    let (took, taken) = (began.elapsed(), heap::peak().saturating_sub(before));
    let fault = match ended {
        Err(_) => "a panic".to_string(),
        Ok(()) if took > MOST_TIME => format!("{took:?}"),
        Ok(()) if taken > MOST_BYTES + 64 * bytes.len() => format!("{taken} bytes of memory"),
        Ok(()) => return,
    };
    let kept = std::env::temp_dir().join(format!("lora-tool-found-{}", std::process::id()));
    let _ = fs::write(&kept, bytes);
    panic!("{}, {what}: {fault}; the input is in {}", file.display(), kept.display());
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        seeds::write(&corpus());
    }
    let text = fs::read_to_string(project().join("fuzz/Cargo.toml")).expect("fuzz/Cargo.toml");
    let manifest: toml::Table = text.parse().expect("TOML");
    let programs = manifest["bin"].as_array().expect("programs").iter();
    let mut programs: Vec<_> = programs.map(|bin| bin["name"].as_str().expect("a name")).collect();
    programs.sort_unstable();
    let targets: Vec<_> = targets::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(programs, targets);
    let call =
        |name: &str| fs::read_to_string(project().join(format!("fuzz/fuzz_targets/{name}.rs"))).expect("a program");
    assert!(targets.iter().all(|name| call(name).contains(&format!("targets::{name}::one"))));
    let mut folders = crate::program::names(&corpus());
    folders.retain(|name| corpus().join(name).is_dir());
    assert_eq!(folders, targets, "folders of fuzz/corpus");
    let sizes =
        targets.iter().flat_map(|name| files(name)).map(|file| fs::metadata(file).expect("a file").len() as usize);
    let size: usize = sizes.sum();
    assert!(size < MOST_CORPUS, "{size} bytes in fuzz/corpus");
}

macro_rules! walks {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            walk(stringify!($name));
        })+

        #[test]
        fn every_target_is_run() {
            assert_eq!([$(stringify!($name)),+].to_vec(), targets::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        }
    };
}

walks! {
    adapter_config convert_round_trip gguf index_json merge_small names npz pickle st_header st_vs_reference tar undo_record
    yaml zip
}
