//! An end in the middle, a full disk, places where a record cannot go: either both of model and record are there and
//! fit each other, or neither is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::tensor::Dtype;

use super::{adapter, assert_same, at, base, contents, copy_folder, differences, merge, unmerge};
use crate::fixtures::{Scratch, cases};
use crate::models::{tensor, write, write_lora};
use crate::program::{PROGRAM, Ran, command, names};

/// A folder of two shards and a LoRA, large enough that a merge takes its time.
fn large(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (model, lora) = (scratch.join("base"), scratch.join("lora"));
    fs::create_dir(&model).unwrap();
    let shard = |name: &str, seed: u64| {
        let own = tensor(Dtype::BF16, &[600, 1500], seed);
        let other = tensor(Dtype::BF16, &[300, 1500], seed + 1);
        let all = [(format!("{name}_proj.weight"), own), (format!("{name}.other"), other)];
        write(&model.join(format!("model-0000{seed}-of-00002.safetensors")), &all.into(), None);
    };
    shard("q", 1);
    shard("v", 2);
    let map = serde_json::json!({ "metadata": {}, "weight_map": {
        "q_proj.weight": "model-00001-of-00002.safetensors", "q.other": "model-00001-of-00002.safetensors",
        "v_proj.weight": "model-00002-of-00002.safetensors", "v.other": "model-00002-of-00002.safetensors",
    } });
    fs::write(model.join("model.safetensors.index.json"), map.to_string()).unwrap();
    write_lora(&lora, &[("q_proj", 600, 1500), ("v_proj", 600, 1500)], 16, 5);
    (model, lora)
}

fn started(args: &[&Path], more: &[&str]) -> Command {
    let mut command = command();
    command.arg("merge").arg(args[0]).arg(args[1]).arg("-o").arg(args[2]).arg("--undo").arg(args[3]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command and kills it after a while; false where it had ended by then.
fn killed(mut command: Command, after: Duration) -> bool {
    let mut child = command.spawn().unwrap();
    std::thread::sleep(after);
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    alive
}

#[test]
fn killed_at_any_moment_there_are_both_or_neither() {
    let scratch = Scratch::new();
    let (model, lora) = large(&scratch);
    let place = scratch.join("place");
    fs::create_dir(&place).unwrap();
    let (out, record) = (place.join("out"), place.join("base.undo"));
    let began = Instant::now();
    started(&[&model, &lora, &out, &record], &["--no-sync"]).status().unwrap();
    let takes = began.elapsed();
    fs::remove_dir_all(&out).unwrap();
    fs::remove_file(&record).unwrap();
    let mut half_way = 0;
    const TIMES: u32 = 14;
    for n in 0..TIMES {
        let was_alive = killed(started(&[&model, &lora, &out, &record], &["--no-sync"]), takes * n / TIMES);
        half_way += usize::from(was_alive && names(&place).iter().any(|name| name.starts_with('.')));
        match (out.exists(), record.exists()) {
            (false, false) => {}
            // The one moment in between: the record has its name, and the model is about to get it.
            (false, true) => assert!(lora_tool::container::undo::Record::open(&record).is_ok()),
            (true, false) => panic!("a model without its record"),
            (true, true) => {
                unmerge(&out, &scratch.join("back"), &record, &[]).expect(0);
                assert_same(&scratch.join("back"), &model);
                fs::remove_dir_all(scratch.join("back")).unwrap();
            }
        }
        let _ = fs::remove_dir_all(&out);
        let _ = fs::remove_file(&record);
    }
    assert!(half_way > 0, "no run was killed in the middle");
    // The next run clears up after all of them.
    merge(&model, &[lora.into()], &out, &record, &[]).expect(0);
    assert_eq!(names(&place), ["base.undo", "out"]);
}

#[test]
fn killed_while_replacing_the_old_ones_are_whole() {
    let scratch = Scratch::new();
    let (model, lora) = large(&scratch);
    let place = scratch.join("place");
    fs::create_dir(&place).unwrap();
    let (out, record) = (place.join("out"), place.join("base.undo"));
    let twice = PathBuf::from(at(&lora, 2.0));
    let began = Instant::now();
    let mut states = Vec::new();
    for adapter in [&twice, &lora] {
        started(&[&model, adapter, &out, &record], &["--no-sync", "--force"]).status().unwrap();
        states.push((contents(&out), fs::read(&record).unwrap()));
    }
    let takes = began.elapsed() / 2;
    let state = || {
        let (model, record) = (contents(&out), fs::read(&record).unwrap());
        let which = |found: usize| states[found].0 == model;
        let model = (0..2).find(|&n| which(n)).expect("a whole model");
        (model, (0..2).find(|&n| states[n].1 == record).expect("a whole record"))
    };
    const TIMES: u32 = 8;
    for n in 0..TIMES {
        let (before, _) = state();
        let adapter = if before == 0 { &lora } else { &twice };
        killed(started(&[&model, adapter, &out, &record], &["--no-sync", "--force"]), takes * n / TIMES);
        let (found_model, found_record) = state();
        // Between the two renames the record is the new one already.
        assert!(found_model == found_record || found_record != before, "{n}: {found_model} {found_record}");
        started(&[&model, adapter, &out, &record], &["--no-sync", "--force"]).status().unwrap();
        assert_eq!(state(), (1 - before, 1 - before));
        assert_eq!(names(&place), ["base.undo", "out"]);
    }
}

#[test]
fn killed_while_an_adapter_is_taken_out() {
    let scratch = Scratch::new();
    let (model, lora) = large(&scratch);
    let other = scratch.join("other");
    write_lora(&other, &[("q_proj", 600, 1500)], 4, 6);
    let (out, record, place) = (scratch.join("out"), scratch.join("base.undo"), scratch.join("place"));
    fs::create_dir(&place).unwrap();
    merge(&model, &[lora.into(), other.into()], &out, &record, &[]).expect(0);
    let back = place.join("back");
    let run = |more: &[&str]| {
        let mut command = command();
        command.arg("unmerge").arg(&out).arg("-o").arg(&back).arg("--undo").arg(&record).arg("--no-sync").args(more);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    for more in [&[][..], &["--adapter", "other"]] {
        let began = Instant::now();
        assert!(run(more).status().unwrap().success());
        let takes = began.elapsed();
        let whole = contents(&back);
        for n in 0..6 {
            fs::remove_dir_all(&back).unwrap();
            killed(run(more), takes * n / 6);
            assert!(!back.exists() || contents(&back) == whole);
            run(&[more, &["--force"]].concat()).status().unwrap();
            assert!(contents(&back) == whole);
            assert_eq!(names(&place), ["back"], "after {n}");
        }
        fs::remove_dir_all(&back).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_leaves_neither_model_nor_record() {
    use crate::signals::Held;
    let case = cases("peft").into_iter().find(|c| c.name == "tied_lm_head").unwrap();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        for inside in [false, true] {
            let scratch = Scratch::new();
            let out = scratch.join("out");
            let record = if inside { out.join("base.undo") } else { scratch.join("base.undo") };
            let mut command = command();
            command.arg("merge").arg(case.base()).arg(case.adapter()).arg("-o").arg(&out).arg("--undo").arg(&record);
            let held = Held::run(command);
            held.signal(name);
            let (ended, said) = held.let_go();
            assert_eq!(ended, Some(code), "{said}");
            assert_eq!(names(&scratch.join(".")), Vec::<String>::new(), "after SIG{name}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_leaves_the_old_ones_as_they_were() {
    use crate::signals::Held;
    let case = cases("peft").into_iter().find(|c| c.name == "tied_lm_head").unwrap();
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&case.base(), &[at(&case.adapter(), 0.5)], &out, &record, &[]).expect(0);
    let before = (contents(&out), fs::read(&record).unwrap());
    let mut again = command();
    again.arg("merge").arg(case.base()).arg(case.adapter()).arg("-o").arg(&out).arg("--force");
    let held = Held::run({
        again.arg("--undo").arg(&record);
        again
    });
    assert!(before == (contents(&out), fs::read(&record).unwrap()), "while it runs");
    held.signal("INT");
    let (ended, said) = held.let_go();
    assert_eq!(ended, Some(130), "{said}");
    assert!(before == (contents(&out), fs::read(&record).unwrap()), "after it");
    // An unmerge that has something to say.
    fs::write(out.join("generation_config.json"), "{}").unwrap();
    let mut back = command();
    back.arg("unmerge").arg(&out).arg("-o").arg(scratch.join("back")).arg("--undo").arg(&record);
    let held = Held::run(back);
    held.signal("INT");
    let (ended, said) = held.let_go();
    assert_eq!(ended, Some(130), "{said}");
    assert_eq!(names(&scratch.join(".")), ["base.undo", "out"]);
    merge(&case.base(), &[case.adapter().into()], &out, &record, &["--force"]).expect(0);
    unmerge(&out, &scratch.join("back"), &record, &[]).expect(0);
    assert_same(&scratch.join("back"), &case.base());
}

/// The program in a shell that sets a limit first.
fn limited(limit: &str, args: &[&Path], words: &[&str]) -> Ran {
    let script = format!(
        "ulimit {limit} && exec \"$0\" merge \"$1\" \"$2\" -o \"$3\" --undo \"$4\" --no-sync {}",
        words.join(" ")
    );
    Command::new("sh").arg("-c").arg(script).arg(PROGRAM).args(args).output().expect("a shell").into()
}

#[test]
fn a_file_that_cannot_grow_leaves_nothing() {
    let scratch = Scratch::new();
    let (model, lora) = (scratch.join("base.safetensors"), scratch.join("lora"));
    let place = scratch.join("place");
    fs::create_dir(&place).unwrap();
    write(&model, &[("q_proj.weight".into(), tensor(Dtype::BF16, &[64, 64], 1))].into(), None);
    write_lora(&lora, &[("q_proj", 64, 64)], 64, 2);
    let (out, record) = (place.join("out.safetensors"), place.join("base.undo"));
    // Blocks of 512 bytes: first the model is too large, then its record, which holds the adapter.
    for (blocks, which) in [(1, "out.safetensors"), (40, "base.undo")] {
        let said =
            limited(&format!("-f {blocks}"), &[&model, &lora, &out, &record], &["--undo-embed always"]).expect(1);
        assert!(said.err.contains(&format!("{}: ", place.join(which).display())), "{}", said.err);
        assert_eq!(names(&place), Vec::<String>::new());
    }
    limited("-f 400", &[&model, &lora, &out, &record], &["--undo-embed always"]).expect(0);
    unmerge(&out, &place.join("back.safetensors"), &record, &[]).expect(0);
    assert_same(&place.join("back.safetensors"), &model);
    // Old ones stay whole where new ones do not come to be.
    let before = (fs::read(&out).unwrap(), fs::read(&record).unwrap());
    let again = [model.as_path(), &lora, &out, &record];
    limited("-f 40", &again, &["--undo-embed always", "--force"]).expect(1);
    assert!(before == (fs::read(&out).unwrap(), fs::read(&record).unwrap()));
    // Few open files.
    limited("-n 16", &[&base("llama"), &adapter("lora"), &scratch.join("few"), &scratch.join("few.undo")], &[])
        .expect(0);
    unmerge(&scratch.join("few"), &scratch.join("few-back"), &scratch.join("few.undo"), &[]).expect(0);
    assert_same(&scratch.join("few-back"), &base("llama"));
}

#[test]
fn places_where_a_record_cannot_go() {
    let scratch = Scratch::new();
    let (own, lora, out) = (scratch.join("own"), scratch.join("lora"), scratch.join("out"));
    copy_folder(&base("llama"), &own);
    copy_folder(&adapter("lora"), &lora);
    fs::write(scratch.join("taken"), "mine").unwrap();
    fs::create_dir(scratch.join("folder")).unwrap();
    symlink(own.join("config.json"), scratch.join("link")).unwrap();
    fs::hard_link(lora.join("adapter_model.safetensors"), scratch.join("hard")).unwrap();
    assert!(Command::new("mkfifo").arg(scratch.join("pipe")).status().unwrap().success());
    let before = names(&scratch.join("."));
    let shard = own.join("model-00001-of-00003.safetensors");
    for (place, word) in [
        (scratch.join("no/base.undo"), "does not exist"),
        (out.clone(), "same name"),
        (scratch.join("own/../out"), "same name"),
        (scratch.join("taken"), "exists already"),
        (scratch.join("folder"), "a folder of this name"),
        (scratch.join("pipe"), "exist"),
        (own.clone(), "input"),
        (own.join("base.undo"), "input"),
        (shard, "input"),
        (own.join("config.json"), "input"),
        (scratch.join("link"), "input"),
        (scratch.join("hard"), "input"),
        (lora.clone(), "input"),
        (lora.join("base.undo"), "input"),
        (lora.join("adapter_config.json"), "input"),
        (out.join("base.safetensors"), "part of the model"),
        (out.join("config.json"), "file of this name"),
        (out.join("base.json"), "part of the model"),
        (out.join("sub/base.undo"), "does not exist"),
        (PathBuf::from("/"), "not a name"),
    ] {
        for more in [&[][..], &["--force"]] {
            if word == "exists already" && !more.is_empty() {
                continue;
            }
            let said = merge(&own, &[lora.clone().into()], &out, &place, more);
            assert!(matches!(said.code, Some(1 | 2)), "{}: {said:?}", place.display());
            assert!(said.err.contains(word), "{} {more:?}: expected `{word}` in {}", place.display(), said.err);
            assert_eq!(names(&scratch.join(".")), before, "{}", place.display());
        }
    }
    assert_same(&own, &base("llama"));
    assert_same(&lora, &adapter("lora"));
    assert_eq!(fs::read(scratch.join("taken")).unwrap(), b"mine");
    merge(&own, &[lora.into()], &out, &scratch.join("taken"), &["--force"]).expect(0);
    unmerge(&out, &scratch.join("back"), &scratch.join("taken"), &[]).expect(0);
    assert_same(&scratch.join("back"), &own);
}

#[test]
fn a_record_in_the_models_folder() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    merge(&base("llama"), &[adapter("lora").into()], &out, &out.join("base.undo"), &[]).expect(0);
    assert_eq!(names(&scratch.join(".")), ["out"]);
    unmerge(&out, &scratch.join("back"), &out.join("base.undo"), &["--strict"]).expect(0);
    assert_same(&scratch.join("back"), &base("llama"));
    // Through a link, and from a copy of the folder.
    symlink(&out, scratch.join("link")).unwrap();
    unmerge(&scratch.join("link"), &scratch.join("back2"), &out.join("base.undo"), &[]).expect(0);
    assert_same(&scratch.join("back2"), &base("llama"));
    copy_folder(&out, &scratch.join("copy"));
    unmerge(&scratch.join("copy"), &scratch.join("back3"), &scratch.join("copy/base.undo"), &[]).expect(0);
    assert_same(&scratch.join("back3"), &base("llama"));
    // Both are replaced together.
    merge(&base("llama"), &[at(&adapter("lora"), 2.0)], &out, &out.join("base.undo"), &[]).expect(1);
    merge(&base("llama"), &[at(&adapter("lora"), 2.0)], &out, &out.join("base.undo"), &["--force"]).expect(0);
    unmerge(&out, &scratch.join("back4"), &out.join("base.undo"), &[]).expect(0);
    assert_same(&scratch.join("back4"), &base("llama"));
    // A record in a folder of the old output would go with it.
    fs::create_dir(out.join("sub")).unwrap();
    let said = merge(&base("llama"), &[adapter("lora").into()], &out, &out.join("sub/base.undo"), &["--force"]);
    assert_ne!(said.code, Some(0));
    assert!(out.join("base.undo").exists() && names(&out.join("sub")).is_empty(), "{}", said.err);
    fs::remove_dir(out.join("sub")).unwrap();
    // The next merge takes the record for a side file of its base; a new one needs another name.
    let second = scratch.join("second");
    let said = merge(&out, &[adapter("rslora").into()], &second, &second.join("base.undo"), &[]).expect(1);
    assert!(said.err.contains("base.undo"), "{}", said.err);
    assert!(!second.exists());
    merge(&out, &[adapter("rslora").into()], &second, &second.join("second.undo"), &[]).expect(0);
    unmerge(&second, &scratch.join("first"), &second.join("second.undo"), &[]).expect(0);
    assert_same(&scratch.join("first"), &out);
    unmerge(&scratch.join("first"), &scratch.join("zero"), &scratch.join("first/base.undo"), &[]).expect(0);
    assert_same(&scratch.join("zero"), &base("llama"));
}

#[test]
fn folders_that_cannot_be_written_to() {
    let scratch = Scratch::new();
    let closed = scratch.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("try"), "").is_ok() {
        fs::remove_file(closed.join("try")).unwrap();
        return; // root may write anywhere
    }
    let out = scratch.join("out");
    let said = merge(&base("llama"), &[adapter("lora").into()], &out, &closed.join("base.undo"), &[]).expect(1);
    assert!(said.err.contains("base.undo"), "{}", said.err);
    assert!(!out.exists());
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn inputs_that_may_only_be_read_are_enough() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&base("llama"), &[adapter("lora").into()], &out, &record, &[]).expect(0);
    for name in names(&out) {
        fs::set_permissions(out.join(name), fs::Permissions::from_mode(0o444)).unwrap();
    }
    fs::set_permissions(&record, fs::Permissions::from_mode(0o444)).unwrap();
    unmerge(&out, &scratch.join("back"), &record, &[]).expect(0);
    assert!(differences(&scratch.join("back"), &base("llama")).is_empty());
    // Nothing of this was written into the inputs, not even with force.
    let before = contents(&out);
    unmerge(&out, &out, &record, &["--force"]).expect(1);
    unmerge(&out, &record, &record, &["--force"]).expect(1);
    unmerge(&out, &out.join("inner"), &record, &[]).expect(1);
    assert!(before == contents(&out));
}
