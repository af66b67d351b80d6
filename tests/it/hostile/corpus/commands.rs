//! Command lines that are wrong, and outputs that would do harm.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::{Corpus, Verdict};

/// A line of words, all of them paths inside the corpus or options.
fn line(corpus: &mut Corpus, words: &[&[u8]]) -> super::Ran {
    let words: Vec<&OsStr> = words.iter().map(|word| OsStr::from_bytes(word)).collect();
    super::run(&words, corpus.folder.path())
}

/// Mistakes end with 2, say what is wrong, and do nothing.
#[test]
fn mistakes() {
    let mut corpus = Corpus::new();
    let merge = |more: &[&'static str]| [&["merge", "base", "good", "-o", "work/out"], more].concat();
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec![], "Usage"),
        (vec![""], "subcommand"),
        (vec!["no-such-command"], "no-such-command"),
        (vec!["--no-such-option"], "--no-such-option"),
        (vec!["merge"], "required"),
        (vec!["merge", "base"], "required"),
        (vec!["merge", "base", "good"], "--out"),
        (vec!["merge", "base", "good", "-o"], "--out"),
        (vec!["inspect"], "required"),
        (vec!["convert", "good", "-o", "work/out"], "--to"),
        (vec!["convert", "good", "--to", "peft"], "--out"),
        (vec!["convert", "good", "--to", "no-such-layout", "-o", "work/out"], "no-such-layout"),
        (vec!["convert", "good", "--to", "", "-o", "work/out"], ""),
        (vec!["convert", "good", "--from", "no-such-layout", "--to", "peft", "-o", "work/out"], "no-such-layout"),
        (merge(&["--no-such-option"]), "--no-such-option"),
        (merge(&["--\u{1b}[31m"]), ""),
        (merge(&["--dtype", "f31"]), "f31"),
        (merge(&["--threads", "0"]), "0"),
        (merge(&["--threads", "-1"]), "-1"),
        (merge(&["--threads", "100000"]), "100000"),
        (merge(&["--threads", "two"]), "two"),
        (merge(&["--memory", "lots"]), "lots"),
        (merge(&["--memory", "99999999999999999999GB"]), "9999"),
        (merge(&["--memory", ""]), ""),
        (merge(&["--strength", "NaN"]), "NaN"),
        (merge(&["--strength", "inf"]), "inf"),
        (merge(&["--strength", "-inf"]), "-inf"),
        (merge(&["--strength", "1e999"]), "1e999"),
        (merge(&["--strength", "half"]), "half"),
        (merge(&["--strength", ""]), ""),
        (merge(&["--strength"]), "--strength"),
        (merge(&["--assume-alpha", "NaN"]), "NaN"),
        (merge(&["--assume-alpha", "1e999"]), "1e999"),
        (vec!["merge", "base", "good@NaN", "-o", "work/out"], "NaN"),
        (vec!["merge", "base", "good@1e999", "-o", "work/out"], "1e999"),
        (vec!["merge", "base", "good@", "-o", "work/out"], "good@"),
        (merge(&["--max-shard-size", "-5GB"]), ""),
        (merge(&["--device", "abacus"]), "abacus"),
        (merge(&["-q", "-v"]), "cannot be used"),
        (merge(&["-o", "work/two"]), "--out"),
    ];
    for (words, expected) in cases {
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let before = super::Picture::of(corpus.folder.path());
        let ran = line(&mut corpus, &bytes);
        let mut wrong = ran.manners();
        wrong.extend(before.changes(&super::Picture::of(corpus.folder.path()), None));
        let err = String::from_utf8_lossy(&ran.err);
        if ran.code != Some(2) {
            wrong.push(format!("status {:?}, expected 2", ran.code));
        }
        if !err.contains(expected) {
            wrong.push(format!("does not say `{expected}`"));
        }
        super::report(&words.join(" "), "mistake", &ran, corpus.folder.path());
        if !wrong.is_empty() {
            corpus.faults.push(format!("{}: mistake: {}\n    {err}", words.join(" "), wrong.join("; ")));
        }
        let _ = std::fs::remove_dir_all(corpus.path("work"));
        std::fs::create_dir(corpus.path("work")).unwrap();
    }
    corpus.done();
}

/// Outputs that exist, are inputs, lie in one, or cannot be made; empty paths.
#[test]
fn outputs_and_inputs() {
    let mut corpus = Corpus::new();
    std::os::unix::fs::symlink("base", corpus.path("link")).unwrap();
    std::fs::hard_link(corpus.path("base/model.safetensors"), corpus.path("hard.safetensors")).unwrap();
    std::fs::create_dir(corpus.path("full")).unwrap();
    std::fs::write(corpus.path("full/x"), "x").unwrap();
    let merge = |base: &'static str, adapter: &'static str, out: &'static str| {
        vec!["merge", base, adapter, "-o", out, "--no-sync"]
    };
    let force = |mut words: Vec<&'static str>| {
        words.push("--force");
        words
    };
    let convert = |from: &'static str, out: &'static str| vec!["convert", from, "--to", "peft", "-o", out];
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (merge("base", "good", "base"), "base"),
        (force(merge("base", "good", "base")), "base"),
        (force(merge("base", "good", "good")), "good"),
        (force(merge("base", "good", "link")), "link"),
        (force(merge("base", "good", "base/out")), "base/out"),
        (force(merge("base", "good", "good/out")), "good/out"),
        (force(merge("base", "good", "base/model.safetensors")), "base/model.safetensors"),
        (force(merge("base/model.safetensors", "good", "hard.safetensors")), "hard.safetensors"),
        (force(merge("base", "good", ".")), "."),
        (force(merge("base", "good", "..")), ".."),
        (force(merge("base", "good", "/")), "/"),
        (merge("base", "good", "full"), "full"),
        (force(merge("base", "good", "full")), "full"),
        (merge("base", "good", ""), ""),
        (merge("base", "", "work/out"), ""),
        (merge("", "good", "work/out"), ""),
        (merge("base", "good", "work/no/such/folder/out"), "work/no/such"),
        (merge("base", "good", "full/x/out"), "full/x"),
        (merge("base", "good", "/dev/null"), "/dev/null"),
        (merge("base", "good", "/dev/full"), "/dev/full"),
        (merge("base", "good", "/proc/out"), "/proc"),
        (force(convert("good", "good")), "good"),
        (force(convert("good", "good/out")), "good/out"),
        (force(convert("good", ".")), "."),
        (convert("", "work/out"), ""),
        (convert("good", ""), ""),
        (vec!["inspect", ""], ""),
        (merge("good", "base", "work/out"), "adapter"),
        (merge("good", "good", "work/out"), "good"),
        (merge("base", "base", "work/out"), "model"),
    ];
    for (words, expected) in cases {
        let os: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let before = super::Picture::of(corpus.folder.path());
        let ran = super::run(&os, corpus.folder.path());
        let mut wrong = ran.manners();
        wrong.extend(before.changes(&super::Picture::of(corpus.folder.path()), None));
        let err = String::from_utf8_lossy(&ran.err);
        // What cannot be the name of an output, or any path, is a mistake of the command line.
        if !matches!(ran.code, Some(1 | 2)) || !err.contains(expected) {
            wrong.push(format!("status {:?}, expected 1 or 2 and `{expected}`", ran.code));
        }
        super::report(&words.join(" "), "outputs", &ran, corpus.folder.path());
        if !wrong.is_empty() {
            corpus.faults.push(format!("{}: outputs: {}\n    {err}", words.join(" "), wrong.join("; ")));
        }
    }
    let long = format!("work/{}", "x".repeat(300));
    let words = ["merge", "base", "good", "-o", long.as_str()];
    let os: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    corpus.line("an output of 300 bytes", &os, None, Verdict::Refused, &["xxx"]);
    // Once more is not wrong by itself, and has to be the sum or an error.
    let os: Vec<&OsStr> =
        ["merge", "base", "good", "good", "-o", "work/out", "--no-sync"].iter().map(OsStr::new).collect();
    corpus.line("an adapter twice", &os, None, Verdict::Open, &[]);
    corpus.done();
}
