//! Every system call of a run that is about its files fails, one after the other, or is where the run is killed.
//!
//! `tests/inject` traces the program and gets in the way of the calls themselves, so that it makes no difference which
//! library makes them. A run is repeated for each of them: the n-th fails, n = 1, 2, 3 … to the last. What must hold
//! afterwards: the old state or the new one, nothing beside it, one line that names a file, and the same command then
//! works. With `FAULTS=all` each call fails in every way; otherwise each call that writes in one of the ways, which
//! take turns, and some of those that read. What would be left where the power fails is told by [`power`]. Where there is no
//! C compiler, or tracing is not allowed, these tests say so and do nothing.

mod power;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::fixtures::{self, Scratch, text};
use crate::program::{PROGRAM, Ran};
use crate::sources::project;

/// The program that gets in the way; none where it cannot be used.
fn inject() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        if !cfg!(target_os = "linux") || Command::new("cc").arg("--version").output().is_err() {
            eprintln!("skipped: needs Linux and a C compiler, with which tests/inject is built");
            return None;
        }
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inject");
        let source = project().join("tests/inject/inject.c");
        let built = Command::new("cc").args(["-O1", "-Wall", "-o"]).arg(&out).arg(source).output().expect("cc");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let works = Command::new(&out).args(["--", "true"]).output().expect("it starts").status.success();
        if !works {
            eprintln!("skipped: processes may not be traced here");
        }
        works.then_some(out)
    };
    BUILT.get_or_init(build).as_deref()
}

/// All files below a folder with what is in them; links and folders by name.
type Tree = BTreeMap<String, Vec<u8>>;

fn tree(folder: &Path) -> Tree {
    fn add(all: &mut Tree, folder: &Path, before: &str) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{before}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                all.insert(format!("{name}/"), Vec::new());
                add(all, &entry.path(), &format!("{name}/"));
            } else {
                all.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    let mut all = Tree::new();
    add(&mut all, folder, "");
    all
}

/// Stops where two trees differ, and says in which files.
#[track_caller]
fn require_same(found: &Tree, wanted: &Tree, why: &str) {
    let names = found.keys().chain(wanted.keys());
    let others: Vec<_> = names.filter(|name| found.get(*name) != wanted.get(*name)).collect();
    assert!(others.is_empty(), "{why}: another state, in {others:?}");
}

/// Whether everything is to be tried, which takes some minutes.
fn is_thorough() -> bool {
    std::env::var_os("FAULTS").is_some_and(|wanted| wanted == "all")
}

fn is_left_over(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.') && part.contains(".lora-tool."))
}

fn without_left_overs(mut tree: Tree) -> Tree {
    tree.retain(|name, _| !is_left_over(name));
    tree
}

/// A command, on copies of its inputs in `in`, that writes into `out`.
struct Scene {
    name: &'static str,
    scratch: Scratch,
    /// Words of the command, with paths below the scratch folder behind `in/` and `out/`.
    words: Vec<&'static str>,
    /// What stands in `out` before.
    old: Tree,
    /// What stands there afterwards.
    new: Tree,
}

impl Scene {
    /// `prepare` is run first, in the same folder.
    fn new(
        name: &'static str,
        inputs: &[(&str, PathBuf)],
        prepare: &[&[&'static str]],
        words: &[&'static str],
    ) -> Scene {
        let scratch = Scratch::new();
        for (name, from) in inputs {
            copy(from, &scratch.join("in").join(name));
        }
        fs::create_dir_all(scratch.join("out")).unwrap();
        let mut scene = Scene { name, scratch, words: words.to_vec(), old: Tree::new(), new: Tree::new() };
        for words in prepare {
            scene.run(None, words).expect(0);
        }
        scene.old = tree(&scene.out());
        scene.run(None, words).expect(0);
        scene.new = tree(&scene.out());
        assert!(scene.old != scene.new, "{name}: the command does nothing");
        scene.reset();
        scene
    }

    fn out(&self) -> PathBuf {
        self.scratch.join("out")
    }

    /// Back to what stood there before.
    fn reset(&self) {
        let _ = fs::remove_dir_all(self.out());
        fs::create_dir_all(self.out()).unwrap();
        for (name, bytes) in &self.old {
            match name.strip_suffix('/') {
                Some(folder) => fs::create_dir_all(self.out().join(folder)).unwrap(),
                None => fs::write(self.out().join(name), bytes).unwrap(),
            }
        }
    }

    /// Runs a command, and with a rule one that something happens to.
    fn run(&self, rule: Option<&str>, words: &[&str]) -> Ran {
        let place = |word: &&str| match word.starts_with("in/") || word.starts_with("out/") {
            true => text(&self.scratch.join(word)),
            false => word.to_string(),
        };
        let words = words.iter().map(place);
        let mut command = match rule {
            None => Command::new(PROGRAM),
            Some(rule) => {
                let mut command = Command::new(inject().expect("it was asked for before"));
                command.arg("-p").arg(self.out().parent().unwrap()).args([
                    "-c",
                    &text(&self.scratch.join("calls")),
                    rule,
                ]);
                command.args(["--", PROGRAM]);
                command
            }
        };
        command.env_remove("NO_COLOR").args(words).output().expect("it starts").into()
    }

    /// The calls of an undisturbed run, in order.
    fn calls(&self) -> Vec<String> {
        self.run(Some("all:1000000:kill"), &self.words).expect(0);
        self.reset();
        fs::read_to_string(self.scratch.join("calls")).unwrap().lines().map(str::to_string).collect()
    }

    /// The command, allowed to replace what has its name already: all of it, or a record without its model.
    fn once_more(&self) -> Vec<&'static str> {
        let mut words = self.words.clone();
        let is_there = without_left_overs(tree(&self.out())) != self.old;
        if is_there && !words.contains(&"--force") {
            words.push("--force");
        }
        words
    }

    /// The numbers of the calls to be tried.
    fn chosen(&self, calls: &[String]) -> Vec<usize> {
        let writes = |call: &str| {
            !["read", "pread64", "openat", "close", "mmap", "statx", "fstat", "getdents64"].contains(&call)
        };
        let is_chosen = |n: &usize| is_thorough() || writes(&calls[n - 1]) || n.is_multiple_of(9);
        (1..=calls.len()).filter(is_chosen).collect()
    }

    /// The same command works after what has happened, cleans up, and gives the same bytes.
    fn works_again(&self, why: &str) {
        if !is_thorough() && tree(&self.out()) == self.old {
            return; // as if nothing had been
        }
        let again = self.run(None, &self.once_more());
        assert_eq!(again.code, Some(0), "{}: {why}, then again: {}", self.name, again.err);
        require_same(&tree(&self.out()), &self.new, &format!("{}: {why}, then again", self.name));
        self.reset();
    }

    /// Killed at each of its calls, there is the old state or the new one.
    fn is_whole_wherever_it_is_killed(&self, between: &[Tree]) {
        let calls = self.calls();
        let (mut old, mut new) = (0, 0);
        let chosen = self.chosen(&calls);
        for &n in &chosen {
            let why = format!("killed at call {n}, {}", calls[n - 1]);
            let ran = self.run(Some(&format!("all:{n}:kill")), &self.words);
            if ran.code == Some(0) {
                continue; // threads take their calls in another order every time
            }
            assert_eq!(ran.code, Some(137), "{}: {why}: {}", self.name, ran.err);
            let found = without_left_overs(tree(&self.out()));
            old += usize::from(found == self.old);
            new += usize::from(found == self.new);
            let is_whole = found == self.old || found == self.new || between.contains(&found);
            assert!(is_whole, "{}: {why}: {:?}", self.name, found.keys());
            self.works_again(&why);
        }
        assert!(old > chosen.len() / 2, "{}: {old} of {} kills left the old state", self.name, chosen.len());
        assert!(new > 0, "{}: no kill came after the result had its name", self.name);
    }

    /// Each of its calls fails with each of these errors: an error that leaves nothing, or the whole result.
    fn stands_errors(&self, errors: impl Fn(&str) -> &'static [&'static str]) {
        let calls = self.calls();
        let (mut refused, mut tried) = (0, 0);
        for n in self.chosen(&calls) {
            let all = errors(&calls[n - 1]);
            let turn = if is_thorough() { all } else { all.get(n % all.len().max(1)..).unwrap_or_default() };
            let count = if is_thorough() { all.len() } else { 1 };
            for error in turn.iter().take(count) {
                tried += 1;
                let why = format!("call {n}, {}, gives {error}", calls[n - 1]);
                let ran = self.run(Some(&format!("all:{n}:{error}")), &self.words);
                let found = tree(&self.out());
                match ran.code {
                    Some(0) => require_same(&without_left_overs(found), &self.new, &format!("{}: {why}", self.name)),
                    Some(1) => {
                        refused += 1;
                        // The name may be there already when its folder cannot be brought to disk and it is taken back.
                        let after = format!("{}: {why}: {}", self.name, ran.err);
                        require_same(&without_left_overs(found.clone()), &self.old, &after);
                        let left: Vec<_> = found.keys().filter(|name| is_left_over(name)).collect();
                        assert!(left.is_empty(), "{}: {why}: {left:?} is left over", self.name);
                        let line = ran.err.lines().find(|line| line.starts_with("lora-tool: ")).unwrap_or_default();
                        assert!(
                            line.contains(&text(self.out().parent().unwrap())),
                            "{}: {why}: {}",
                            self.name,
                            ran.err
                        );
                    }
                    _ => panic!("{}: {why}: {:?} {}", self.name, ran.code, ran.err),
                }
                self.works_again(&why);
            }
        }
        assert!(refused > tried / 3, "{}: only {refused} of {tried} errors counted", self.name);
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_file() {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

fn model_and_adapter() -> [(&'static str, PathBuf); 2] {
    [("base", fixtures::base("llama")), ("lora", fixtures::adapter("lora"))]
}

const MERGE: [&str; 5] = ["merge", "in/base", "in/lora", "-o", "out/m"];

fn with(words: &[&'static str], more: &[&'static str]) -> Vec<&'static str> {
    [words, more].concat()
}

fn fresh() -> Scene {
    Scene::new("fresh", &model_and_adapter(), &[], &MERGE)
}

fn replacing() -> Scene {
    let before = with(&MERGE, &["--strength", "2"]);
    Scene::new("replacing", &model_and_adapter(), &[&before], &with(&MERGE, &["--force"]))
}

fn one_file() -> Scene {
    let words = ["convert", "in/lora", "-o", "out/a.safetensors", "--to", "kohya", "--force"];
    let before = ["convert", "in/other", "-o", "out/a.safetensors", "--to", "kohya"];
    let inputs = [("lora", fixtures::adapter("lora")), ("other", fixtures::adapter("rslora"))];
    Scene::new("one file", &inputs, &[&before], &words)
}

fn recorded() -> Scene {
    Scene::new("recorded", &model_and_adapter(), &[], &with(&MERGE, &["--undo", "out/r"]))
}

fn undone() -> Scene {
    let before = with(&MERGE, &["--undo", "out/r"]);
    Scene::new("undone", &model_and_adapter(), &[&before], &["unmerge", "out/m", "-o", "out/b", "--undo", "out/r"])
}

#[test]
fn a_run_that_is_killed_leaves_the_old_state_or_the_new_one() {
    if inject().is_none() {
        return;
    }
    for scene in [fresh(), replacing(), one_file(), undone()] {
        scene.is_whole_wherever_it_is_killed(&[]);
    }
    let recorded = recorded();
    let record_alone = Tree::from([("r".to_string(), recorded.new["r"].clone())]);
    recorded.is_whole_wherever_it_is_killed(&[record_alone]);
}

/// What a call of this kind can be refused with.
fn usual(call: &str) -> &'static [&'static str] {
    match call {
        "write" | "pwrite64" | "ftruncate" | "copy_file_range" | "sendfile" => &["ENOSPC", "EIO", "EDQUOT", "EFBIG"],
        "fsync" | "fdatasync" => &["EIO", "ENOSPC"],
        "fallocate" => &["ENOSPC", "EDQUOT"],
        "mkdir" | "mkdirat" | "linkat" | "link" => &["ENOSPC", "EACCES", "EROFS"],
        "openat" => &["EIO", "EACCES", "EMFILE", "ENOSPC"],
        "rename" | "renameat" | "renameat2" => &["EIO", "EACCES", "ENOSPC"],
        "mmap" => &["ENOMEM", "EACCES"],
        "read" | "pread64" | "getdents64" | "statx" | "fstat" => &["EIO", "EACCES"],
        _ => &[],
    }
}

#[test]
fn a_call_that_fails_gives_an_error_that_leaves_nothing_or_no_matter() {
    if inject().is_none() {
        return;
    }
    for scene in [fresh(), replacing(), one_file(), recorded(), undone()] {
        scene.stands_errors(usual);
    }
}

#[test]
fn what_a_file_system_cannot_do_is_done_otherwise() {
    if inject().is_none() {
        return;
    }
    let cases = [
        ("fallocate", ["EOPNOTSUPP", "ENOSYS", "EINVAL"]),
        ("copy_file_range", ["EOPNOTSUPP", "EXDEV", "EINVAL"]),
        ("renameat2", ["EINVAL", "ENOSYS", "EOPNOTSUPP"]),
        ("flock", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"]),
        ("ioctl", ["EOPNOTSUPP", "EXDEV", "EINVAL"]),
        ("statfs", ["ENOSYS", "EIO", "EACCES"]),
        ("close", ["EIO", "EINTR", "ENOSPC"]), // all of it is on disk by then
    ];
    for scene in [fresh(), replacing(), one_file()] {
        for (call, errors) in cases {
            for error in errors {
                let ran = scene.run(Some(&format!("{call}:1+:{error}")), &scene.words);
                assert_eq!(ran.code, Some(0), "{}: every {call} gives {error}: {}", scene.name, ran.err);
                let found = without_left_overs(tree(&scene.out()));
                require_same(&found, &scene.new, &format!("{}: {call} {error}", scene.name));
                scene.works_again(call);
            }
        }
        for call in ["read", "write", "pwrite64", "copy_file_range", "openat", "fsync"] {
            let ran = scene.run(Some(&format!("{call}:2:EINTR")), &scene.words);
            if ran.code == Some(0) {
                require_same(&tree(&scene.out()), &scene.new, &format!("{}: {call} is interrupted", scene.name));
            }
            scene.works_again(call);
        }
    }
}

#[test]
fn a_disk_that_stays_full_or_broken_gives_an_error_that_leaves_nothing() {
    if inject().is_none() {
        return;
    }
    for scene in [fresh(), replacing(), recorded()] {
        let writing = "write,pwrite64,copy_file_range,ftruncate,fallocate,mkdir,mkdirat";
        let calls = scene.calls().iter().filter(|call| writing.split(',').any(|w| w == *call)).count();
        for n in 1..=calls {
            let errors = ["ENOSPC", "EIO"];
            for &error in if is_thorough() { &errors[..] } else { &errors[n % 2..=n % 2] } {
                let why = format!("{error} from call {n} on");
                let ran = scene.run(Some(&format!("{writing}:{n}+:{error}")), &scene.words);
                assert_eq!(ran.code, Some(1), "{}: {why}: {}", scene.name, ran.err);
                require_same(&tree(&scene.out()), &scene.old, &format!("{}: {why}", scene.name));
                scene.works_again(&why);
            }
        }
    }
}

#[test]
fn a_run_that_is_asked_to_end_at_any_call_leaves_nothing() {
    if inject().is_none() {
        return;
    }
    for (scene, signal, code) in [(fresh(), "term", 143), (replacing(), "int", 130), (recorded(), "term", 143)] {
        let chosen = scene.chosen(&scene.calls());
        let mut stopped = 0;
        for &n in &chosen {
            let ran = scene.run(Some(&format!("all:{n}:{signal}")), &scene.words);
            let found = tree(&scene.out());
            match ran.code {
                Some(0) => require_same(&found, &scene.new, &format!("{}: {signal} at call {n}", scene.name)),
                Some(found_code) if found_code == code => {
                    stopped += 1;
                    require_same(&found, &scene.old, &format!("{}: {signal} at call {n}: {}", scene.name, ran.err));
                }
                other => panic!("{}: {signal} at call {n}: {other:?} {}", scene.name, ran.err),
            }
            scene.works_again("a signal");
        }
        assert!(stopped > chosen.len() / 2, "{}: {stopped} of {}", scene.name, chosen.len());
    }
}

#[test]
fn a_run_that_was_killed_goes_on_with_the_same_bytes() {
    if inject().is_none() {
        return;
    }
    let undo = ["unmerge", "out/m", "-o", "out/b", "--undo", "out/r", "--resume"];
    let scenes = [
        Scene::new("merge", &model_and_adapter(), &[], &with(&MERGE, &["--resume"])),
        Scene::new("merge with record", &model_and_adapter(), &[], &with(&MERGE, &["--undo", "out/r", "--resume"])),
        Scene::new("unmerge", &model_and_adapter(), &[&with(&MERGE, &["--undo", "out/r"])], &undo),
    ];
    for scene in scenes {
        let calls = scene.calls();
        let (mut taken_up, mut cut_short) = (0, 0);
        for n in scene.chosen(&calls) {
            let ends = ["kill", "term", "ENOSPC"];
            for &end in if is_thorough() { &ends[..] } else { &ends[n % 3..=n % 3] } {
                if end == "ENOSPC" && !["write", "pwrite64", "copy_file_range"].contains(&calls[n - 1].as_str()) {
                    continue;
                }
                let why = format!("{end} at call {n}, {}", calls[n - 1]);
                let cut = scene.run(Some(&format!("all:{n}:{end}")), &scene.words);
                if cut.code == Some(0) || without_left_overs(tree(&scene.out())) == scene.new {
                    scene.reset();
                    continue;
                }
                cut_short += 1;
                let again = scene.run(None, &scene.once_more()).expect(0);
                taken_up += usize::from(again.err.contains("were there from a run that was cut short"));
                require_same(&tree(&scene.out()), &scene.new, &format!("{}: {why}", scene.name));
                scene.reset();
            }
        }
        // Before anything is written there is nothing to go on with.
        assert!(taken_up > cut_short / 8, "{}: {taken_up} of {cut_short} went on", scene.name);
    }
}
