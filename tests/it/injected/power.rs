//! What a power cut may leave of a run, by a model of a disk that is told of the calls of a real one.
//!
//! The disk forgets what it can: bytes of a file since its last fsync, names in a folder since the last fsync of that
//! folder. And it may remember early whatever it likes of them. So there is the old state or the new one at any moment if
//! and only if
//!
//! - all that a result consists of is on disk before it gets its name, and the names that were given before are, too;
//! - nothing of the old one is removed before the new name is on disk;
//! - at the end the names are on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{
    Command, MERGE, PROGRAM, Ran, Scene, fixtures, fresh, inject, is_left_over, is_thorough, model_and_adapter,
    one_file, recorded, replacing, text, tree, undone, with,
};

/// A call that has succeeded.
struct Call {
    name: String,
    /// Moments, as the tracer counts them.
    began: u64,
    ended: u64,
    flags: u64,
    paths: [PathBuf; 2],
}

impl Call {
    fn read(line: &str) -> Call {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[name, began, ended, flags, first, second] = fields.as_slice() else { panic!("{line}") };
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{line}"));
        let (began, ended, flags) = (number(began), number(ended), number(flags));
        Call { name: name.into(), began, ended, flags, paths: [first.into(), second.into()] }
    }
}

fn calls(log: &Path) -> Vec<Call> {
    fs::read_to_string(log).unwrap().lines().map(Call::read).collect()
}

/// What is not on disk, and what that could lead to.
struct Disk {
    /// Files whose bytes and folders whose names may be forgotten, and when they changed last.
    forgets: BTreeMap<PathBuf, u64>,
    /// Files of the old state, wherever they are now.
    old: BTreeSet<PathBuf>,
    /// Folders in which a result has got its name.
    named_in: BTreeSet<PathBuf>,
    /// What is wrong with the order.
    faults: Vec<String>,
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_path_buf()
}

fn is_temporary(path: &Path) -> bool {
    is_left_over(&path.to_string_lossy())
}

impl Disk {
    fn new(old: impl Iterator<Item = PathBuf>) -> Disk {
        Disk { forgets: BTreeMap::new(), old: old.collect(), named_in: BTreeSet::new(), faults: Vec::new() }
    }

    fn tell(&mut self, call: &Call) {
        const CREATE: u64 = libc::O_CREAT as u64;
        let [path, second] = &call.paths;
        match call.name.as_str() {
            "write" | "pwrite64" | "ftruncate" | "fallocate" | "copy_file_range" | "sendfile" | "ioctl" => {
                self.changed(path, call);
            }
            "openat" if call.flags & CREATE != 0 => self.created(path, call),
            "mkdir" | "mkdirat" => self.created(path, call),
            "link" | "linkat" => {
                if let Some(&when) = self.forgets.get(path) {
                    self.forgets.insert(second.clone(), when);
                }
                self.changed(&parent(second), call);
            }
            "rename" | "renameat" | "renameat2" => self.renamed(call),
            "unlink" | "unlinkat" | "rmdir" => self.removed(path, call),
            "fsync" | "fdatasync" if self.forgets.get(path).is_some_and(|&when| when < call.began) => {
                self.forgets.remove(path);
            }
            _ => {}
        }
    }

    fn changed(&mut self, path: &Path, call: &Call) {
        self.forgets.insert(path.to_path_buf(), call.ended);
    }

    fn created(&mut self, path: &Path, call: &Call) {
        self.changed(path, call);
        self.named(path, call);
    }

    /// A name has come or gone. Those of temporary folders may be forgotten.
    fn named(&mut self, path: &Path, call: &Call) {
        if !is_left_over(&path.file_name().unwrap_or_default().to_string_lossy()) {
            self.changed(&parent(path), call);
        }
    }

    fn renamed(&mut self, call: &Call) {
        const EXCHANGE: u64 = libc::RENAME_EXCHANGE as u64;
        let [from, to] = &call.paths;
        let exchanged = call.name == "renameat2" && call.flags & EXCHANGE != 0;
        if !is_temporary(to) {
            let forgotten: Vec<_> = self.forgets.keys().filter(|path| path.starts_with(from)).collect();
            if !forgotten.is_empty() {
                self.faults.push(format!("{} got its name before {forgotten:?} was on disk", to.display()));
            }
            for folder in self.named_in.iter().filter(|folder| self.forgets.contains_key(*folder)) {
                self.faults.push(format!("{} got its name before another in {folder:?} was on disk", to.display()));
            }
            self.named_in.insert(parent(to));
        }
        let moved = |path: &PathBuf| -> Option<PathBuf> {
            let below = |a: &Path, b: &Path| {
                path.strip_prefix(a).ok().map(|rest| b.components().chain(rest.components()).collect())
            };
            below(from, to).or_else(|| below(to, from).filter(|_| exchanged))
        };
        let replaced = |path: &PathBuf| !exchanged && path.starts_with(to);
        self.old.retain(|path| !replaced(path)); // in the same step
        self.forgets.retain(|path, _| !replaced(path));
        self.old = self.old.iter().map(|path| moved(path).unwrap_or_else(|| path.clone())).collect();
        let forgets = std::mem::take(&mut self.forgets);
        self.forgets = forgets.into_iter().map(|(path, when)| (moved(&path).unwrap_or(path), when)).collect();
        self.named(from, call);
        self.named(to, call);
    }

    fn removed(&mut self, path: &Path, call: &Call) {
        if self.old.remove(path) {
            for folder in self.named_in.iter().filter(|folder| self.forgets.contains_key(*folder)) {
                self.faults.push(format!("{} was removed before the name in {folder:?} was on disk", path.display()));
            }
        }
        self.forgets.retain(|other, _| !other.starts_with(path));
        self.named(path, call);
    }

    /// What is wrong when the run has ended.
    fn ended(mut self) -> Vec<String> {
        let forgotten = self.forgets.keys().filter(|path| !is_temporary(path));
        self.faults.extend(forgotten.map(|path| format!("{} is not on disk at the end", path.display())));
        self.faults
    }
}

/// Runs the command, perhaps with a rule, and says what a power cut could do.
fn faults_of(scene: &Scene, rule: Option<&str>, more: &[&str]) -> Vec<String> {
    let log = scene.scratch.join("log");
    let mut disk = Disk::new(scene.old.keys().map(|name| scene.out().join(name)));
    // Nobody knows what of it a dead run has brought to disk.
    let left = tree(&scene.out()).into_keys().filter(|name| is_left_over(name));
    disk.forgets.extend(left.map(|name| (scene.out().join(name), 0)));
    let place = |word: &&str| match word.starts_with("in/") || word.starts_with("out/") {
        true => text(&scene.scratch.join(word)),
        false => word.to_string(),
    };
    let mut command = Command::new(inject().expect("it was asked for before"));
    command.arg("-p").arg(scene.out()).arg("-l").arg(&log).args(rule).args(["--", PROGRAM]);
    let ran: Ran = command.args(scene.words.iter().chain(more).map(place)).output().expect("it starts").into();
    assert_eq!(ran.code, Some(0), "{}: {}", scene.name, ran.err);
    let calls = calls(&log);
    assert!(calls.iter().any(|call| call.name.starts_with("rename")), "{}: no result got its name", scene.name);
    calls.iter().for_each(|call| disk.tell(call));
    scene.reset();
    disk.ended()
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_old_state_or_the_new_one() {
    if inject().is_none() {
        return;
    }
    let two = [("lora", fixtures::adapter("lora")), ("other", fixtures::adapter("rslora"))];
    let several = ["convert", "in/lora", "in/other", "-o", "out/all", "--to", "kohya"];
    let several = Scene::new("several", &two, &[], &several);
    let extract = ["extract", "in/base", "out/m", "-o", "out/e", "--rank", "2"];
    let extracted = Scene::new("extracted", &model_and_adapter(), &[&MERGE], &extract);
    for scene in [fresh(), replacing(), one_file(), recorded(), undone(), several, extracted] {
        assert_eq!(faults_of(&scene, None, &[]), Vec::<String>::new(), "{}", scene.name);
        // Where folders cannot be exchanged, and where no name is refused that is there already.
        let one_step_less = faults_of(&scene, Some("renameat2:1+:EINVAL"), &[]);
        assert_eq!(one_step_less, Vec::<String>::new(), "{}, in two steps", scene.name);
        // What the model of the disk finds where nothing is brought there.
        let unsafe_ones = faults_of(&scene, None, &["--no-sync"]).join("\n");
        for what in ["got its name before", "is not on disk at the end"] {
            assert!(unsafe_ones.contains(what), "{}: {unsafe_ones}", scene.name);
        }
    }
}

#[test]
fn a_power_cut_after_a_run_that_was_taken_up_does_no_harm_either() {
    if inject().is_none() {
        return;
    }
    let scene = Scene::new("taken up", &model_and_adapter(), &[], &with(&MERGE, &["--resume"]));
    let mut taken_up = 0;
    for n in (1..=scene.calls().len()).filter(|n| is_thorough() || n.is_multiple_of(7)) {
        if scene.run(Some(&format!("all:{n}:kill")), &scene.words).code == Some(137)
            && !tree(&scene.out()).contains_key("m/")
        {
            taken_up += 1;
            assert_eq!(faults_of(&scene, None, &[]), Vec::<String>::new(), "killed at call {n}");
        }
        scene.reset();
    }
    assert!(taken_up > 5, "{taken_up}");
}
