//! What is no regular file, and paths that are no usual ones.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::made::{base, good_adapter};
use super::{ACCEPTED, Corpus, REFUSED, Verdict};

/// A named pipe that nobody writes to.
pub fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

#[test]
fn no_regular_files() {
    let mut corpus = Corpus::new();
    for case in ["FIFO", "socket", "folder", "device", "null", "loop", "dangling", "tty"] {
        for name in ["x.safetensors", "x.bin", "x.gguf", "x"] {
            let path = corpus.place().join(name);
            let mut socket = None;
            match case {
                "FIFO" => fifo(&path),
                "socket" => socket = Some(std::os::unix::net::UnixListener::bind(&path).unwrap()),
                "folder" => std::fs::create_dir(&path).unwrap(),
                "device" => symlink("/dev/zero", &path).unwrap(),
                "null" => symlink("/dev/null", &path).unwrap(),
                "tty" => symlink("/dev/full", &path).unwrap(),
                "loop" => symlink(name, &path).unwrap(),
                _ => symlink("nowhere", &path).unwrap(),
            }
            corpus.adapter(&format!("{case} {name}"), &path, REFUSED, &[]);
            drop(socket);
        }
    }
    for device in ["/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/proc/self/mem", "/"] {
        corpus.adapter(device, Path::new(device), REFUSED, &[]);
        corpus.base(device, Path::new(device), REFUSED, &[]);
    }
    corpus.done();
}

/// In the place of each file of an adapter's and a base's folder.
#[test]
fn no_regular_files_in_folders() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    for case in ["FIFO", "folder", "device", "loop", "dangling"] {
        for name in [
            "adapter_config.json",
            "adapter_model.safetensors",
            "config.json",
            "hyperparameters.yaml",
            "adapter_model.bin",
        ] {
            let path =
                corpus.files(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &bytes)]);
            put(case, &path.join(name));
            // What an adapter does not need may be in its way or not; what it needs has to be named.
            let needed = matches!(name, "adapter_config.json" | "adapter_model.safetensors");
            let verdicts = if needed { REFUSED } else { [Verdict::Open; 3] };
            let verdicts =
                if name == "adapter_config.json" { [Verdict::Open, verdicts[1], verdicts[2]] } else { verdicts };
            let words: &[&str] = if needed { &[name] } else { &[] };
            corpus.adapter(&format!("{case} {name}"), &path, verdicts, words);
        }
        for name in
            ["model.safetensors", "config.json", "model.safetensors.index.json", "model_index.json", "tokenizer.json"]
        {
            let path = corpus.files(&[("model.safetensors", &base())]);
            put(case, &path.join(name));
            let needed = name == "model.safetensors" || name == "config.json" || name == "model.safetensors.index.json";
            let verdicts = if needed { REFUSED } else { [Verdict::Open; 3] };
            let words: &[&str] = if needed { &[name] } else { &[] };
            let verdicts = if name == "config.json" { [verdicts[0], Verdict::Open, verdicts[2]] } else { verdicts };
            corpus.base(&format!("{case} {name}"), &path, verdicts, words);
        }
    }
    corpus.done();
}

fn put(case: &str, path: &Path) {
    let _ = std::fs::remove_file(path);
    match case {
        "FIFO" => fifo(path),
        "folder" => std::fs::create_dir(path).unwrap(),
        "device" => symlink("/dev/zero", path).unwrap(),
        "loop" => symlink(path.file_name().unwrap(), path).unwrap(),
        _ => symlink("nowhere", path).unwrap(),
    }
}

#[test]
fn paths() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    // Odd names that are legal.
    for name in [
        b"with space".as_slice(),
        b"-leading",
        b"new\nline",
        b"\xff\xfe not UTF-8",
        "\u{1b}[31m\u{202e}".as_bytes(),
        "é ü 中".as_bytes(),
        &[b'x'; 200],
    ] {
        let place = corpus.place().join(OsStr::from_bytes(name));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("adapter_config.json"), &config).unwrap();
        std::fs::write(place.join("adapter_model.safetensors"), &bytes).unwrap();
        corpus.adapter(
            &format!("{:.20}", String::from_utf8_lossy(name).escape_debug().to_string()),
            &place,
            ACCEPTED,
            &[],
        );
        let broken = corpus.place().join(OsStr::from_bytes(name));
        std::fs::write(&broken, b"nothing").unwrap();
        corpus.adapter(
            &format!("broken {:.20}", String::from_utf8_lossy(name).escape_debug().to_string()),
            &broken,
            REFUSED,
            &["7 bytes"],
        );
    }
    for path in [
        "nowhere",
        "nowhere/at/all",
        "./nowhere.safetensors",
        "nobody/Model-7B",
        "https://localhost/x.safetensors",
        "hf://x/y",
        "~/x",
        "*",
        "good/adapter_model.safetensors/x",
    ] {
        corpus.adapter(path, Path::new(path), REFUSED, &["cannot"]);
        corpus.base(path, Path::new(path), REFUSED, &["cannot"]);
    }
    let long = "x".repeat(5000);
    let names = "y/".repeat(3000);
    for (case, path) in [("a name of 5,000 bytes", &long), ("a path of 6,000 bytes", &names)] {
        let line = ["inspect".as_ref(), OsStr::new(path)];
        corpus.line(case, &line, Some(Path::new(path)), Verdict::Refused, &["cannot"]);
        let out = corpus.path("work/out");
        let line =
            ["convert".as_ref(), OsStr::new(path), "--to".as_ref(), "peft".as_ref(), "-o".as_ref(), out.as_os_str()];
        corpus.line(case, &line, Some(Path::new(path)), Verdict::Refused, &["cannot"]);
    }
    corpus.done();
}

/// Links to folders in a base lead anywhere or in a circle; nothing is taken along from there.
#[test]
fn links_to_folders() {
    let mut corpus = Corpus::new();
    let path = corpus.files(&[("model.safetensors", &base()), ("tokenizer.json", b"{}"), ("sub/notes.txt", b"x")]);
    for (name, to) in [("loop", "."), ("up", ".."), ("system", "/proc"), ("sub/loop", "..")] {
        symlink(to, path.join(name)).unwrap();
    }
    let (good, out) = (corpus.path("good"), corpus.path("work/out"));
    let line = [OsStr::new("merge"), path.as_os_str(), good.as_os_str(), OsStr::new("-o"), out.as_os_str()];
    let ran = super::run(&line, corpus.folder.path());
    assert_eq!(ran.code, Some(0), "{}", String::from_utf8_lossy(&ran.err));
    assert_eq!(crate::program::names(&out), ["model.safetensors", "sub", "tokenizer.json"]);
    assert_eq!(crate::program::names(&out.join("sub")), ["notes.txt"]);
    assert!(String::from_utf8_lossy(&ran.err).contains("system: a link to a folder"));
    corpus.base("links to folders", &path, [Verdict::Accepted, Verdict::Open, Verdict::Accepted], &[]);
    corpus.done();
}

/// JSON is Unicode, and a path need not be.
#[test]
fn documents_of_paths_that_are_not_unicode() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    let place = corpus.place().join(OsStr::from_bytes(b"\xff\xfe"));
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("adapter_config.json"), &config).unwrap();
    std::fs::write(place.join("adapter_model.safetensors"), &bytes).unwrap();
    let out = corpus.path("work/out").into_os_string();
    let other = OsStr::from_bytes(b"work/out\xff");
    for words in [
        vec!["inspect".as_ref(), place.as_os_str(), "--json".as_ref()],
        vec!["inspect".as_ref(), place.as_os_str(), "--keys".as_ref(), "--json".as_ref()],
        vec!["lint".as_ref(), place.as_os_str(), "--json".as_ref()],
        vec!["compare".as_ref(), place.as_os_str(), place.as_os_str(), "--json".as_ref()],
        vec![
            "convert".as_ref(),
            place.as_os_str(),
            "--to".as_ref(),
            "peft".as_ref(),
            "-o".as_ref(),
            &out,
            "--json".as_ref(),
        ],
        vec![
            "convert".as_ref(),
            place.as_os_str(),
            "--to".as_ref(),
            "peft".as_ref(),
            "-o".as_ref(),
            other,
            "--json".as_ref(),
        ],
        vec![
            "resize".as_ref(),
            place.as_os_str(),
            "--rank".as_ref(),
            "1".as_ref(),
            "-o".as_ref(),
            &out,
            "--json".as_ref(),
        ],
    ] {
        let case = words.join(OsStr::new(" ")).to_string_lossy().into_owned();
        corpus.line(&case, &words, Some(&place), Verdict::Open, &[]);
    }
    corpus.done();
}

/// The hub's cache is made of links that lead out of the folder.
#[test]
fn the_cache_of_the_hub() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    for (case, commit, verdicts) in [
        ("as it is", "0123abcd", ACCEPTED),
        ("a ref that leads out", "../../../../etc", ACCEPTED),
        ("a ref of escape codes", "\u{1b}[2J", ACCEPTED),
    ] {
        let cache =
            corpus.files(&[("blobs/1f", config.as_bytes()), ("blobs/2e", &bytes), ("refs/main", commit.as_bytes())]);
        let snapshot = cache.join("snapshots/0123abcd");
        std::fs::create_dir_all(&snapshot).unwrap();
        symlink("../../blobs/1f", snapshot.join("adapter_config.json")).unwrap();
        symlink("../../blobs/2e", snapshot.join("adapter_model.safetensors")).unwrap();
        let base = corpus.path("base");
        corpus.run(&format!("{case}, the snapshot"), &snapshot, verdicts, &[], [&base, &snapshot]);
        corpus.adapter(case, &cache, verdicts, &[]);
    }
    let cache = corpus.files(&[("blobs/1f", &base())]);
    let snapshot = cache.join("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    symlink("../../blobs/1f", snapshot.join("model.safetensors")).unwrap();
    corpus.base("a base", &cache, [Verdict::Accepted, Verdict::Refused, Verdict::Accepted], &[]);
    let cache = corpus.files(&[("snapshots/a/x", b""), ("snapshots/b/x", b"")]);
    corpus.base("two snapshots", &cache, REFUSED, &["snapshots"]);
    let cache = corpus.place();
    std::fs::create_dir_all(cache.join("snapshots")).unwrap();
    corpus.base("no snapshot", &cache, REFUSED, &["snapshots"]);
    corpus.done();
}
