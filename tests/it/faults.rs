//! The machine and other programs get in the way: inputs change under the run, limits are low, names are odd.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fixtures::{self, Scratch, text};
use crate::program::{PROGRAM, Ran, command, merge, names};

fn base(name: &str) -> PathBuf {
    fixtures::root().join("models").join(name)
}

fn adapter(name: &str) -> PathBuf {
    fixtures::root().join("adapters/peft").join(name)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// A merge in a shell that sets a limit first.
fn limited(limit: &str, base: &Path, out: &Path) -> Ran {
    let script = format!("ulimit {limit} && exec \"$0\" merge \"$1\" \"$2\" -o \"$3\" --no-sync");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(PROGRAM).arg(base).arg(adapter("lora")).arg(out);
    command.output().expect("a shell").into()
}

#[cfg(target_os = "linux")]
#[test]
fn an_input_that_changes_under_the_run_gives_no_result() {
    use crate::signals::Held;
    type Change = fn(&Path);
    let cut: Change = |file| fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap();
    let replaced: Change = |file| {
        let new = file.with_extension("new");
        fs::copy(file, &new).unwrap();
        fs::rename(&new, file).unwrap();
    };
    let removed: Change = |file| fs::remove_file(file).unwrap();
    // With numbers that would be refused: that they are others than at the start is what there is to say.
    let overwritten: Change = |file| {
        let bytes = fs::read(file).unwrap();
        let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
        fs::File::options().write(true).open(file).unwrap().write_all_at(&vec![0xff; bytes.len()], head).unwrap();
    };
    for (what, change) in [("cut", cut), ("replaced", replaced), ("removed", removed), ("overwritten", overwritten)] {
        for victim in ["base", "lora"] {
            let scratch = Scratch::new();
            let (model, lora) = (scratch.join("base"), scratch.join("lora"));
            copy(&base("llama_tied"), &model);
            copy(&adapter("tied_lm_head"), &lora);
            let held = Held::on(&model, &lora, &scratch.join("out"));
            held.wait_until_it_stands();
            let folder = scratch.join(victim);
            let file = names(&folder).into_iter().find(|name| name.ends_with(".safetensors")).unwrap();
            change(&folder.join(&file));
            let (code, said) = held.let_go();
            assert_eq!(code, Some(1), "{victim} {what}: {said}");
            assert!(said.contains(&format!("{victim}/{file}: ")), "{victim} {what}: {said}");
            assert_eq!(names(&scratch.join(".")), ["base", "lora"], "{victim} {what}");
        }
    }
}

#[test]
fn low_limits_are_kept_or_end_the_run_cleanly() {
    let scratch = Scratch::new();
    let many = scratch.join("many");
    merge(&base("llama"), adapter("lora"), &many, &["--max-shard-size", "1KB", "--no-provenance"]).expect(0);
    assert!(names(&many).len() > 20, "{:?}", names(&many));
    limited("-n 16", &many, &scratch.join("few-open")).expect(0);
    assert_eq!(names(&scratch.join("few-open")), names(&many));
    let refused = limited("-f 1", &base("llama"), &scratch.join("large")).expect(1);
    assert!(refused.err.contains("/large/config.json: "), "{}", refused.err);
    assert_eq!(names(&scratch.join(".")), ["few-open", "many"]);
}

#[test]
fn an_input_that_a_link_leads_to_is_not_replaced_either() {
    let scratch = Scratch::new();
    let (real, snapshot) = (scratch.join("real"), scratch.join("snapshot"));
    copy(&base("llama"), &real);
    fs::create_dir(&snapshot).unwrap();
    for name in names(&real) {
        symlink(Path::new("../real").join(&name), snapshot.join(&name)).unwrap();
    }
    merge(&snapshot, adapter("lora"), &real, &["--force"]).expect(1);
    merge(&snapshot, adapter("lora"), &scratch.join("out"), &[]).expect(0);
    let shard = real.join("model-00001-of-00003.safetensors");
    merge(&shard, adapter("lora"), &real.join("config.json"), &["--force", "--allow-unmatched"]).expect(1);
    assert_eq!(fs::read(real.join("config.json")).unwrap(), fs::read(base("llama").join("config.json")).unwrap());
}

#[test]
fn force_replaces_results_and_nothing_else() {
    let scratch = Scratch::new();
    let home = scratch.join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis.txt"), "years").unwrap();
    let refused = merge(&base("llama"), adapter("lora"), &home, &["--force"]).expect(1);
    assert!(refused.err.contains("no result"), "{}", refused.err);
    assert_eq!(names(&home), ["thesis.txt"]);
}

#[test]
fn what_somebody_put_beside_a_result_stays_when_it_is_replaced() {
    let scratch = Scratch::new();
    let (out, clean) = (scratch.join("out"), scratch.join("clean"));
    // The old result has other shards, and a record of its own.
    let shards = ["--max-shard-size", "1KB", "--undo", "out.undo"].map(str::to_string);
    let mut old = command();
    old.args(["merge", &text(&base("llama")), &text(&adapter("lora")), "-o", &text(&out), "--no-sync"]);
    old.args(&shards[..3]).arg(out.join(&shards[3]));
    assert!(old.output().unwrap().status.success());
    let theirs = ["thesis.txt", "runs/1/log", ".git/HEAD", "my-own.safetensors"];
    for name in theirs {
        fs::create_dir_all(out.join(name).parent().unwrap()).unwrap();
        fs::write(out.join(name), name).unwrap();
    }
    merge(&base("llama"), adapter("lora"), &clean, &[]).expect(0);
    merge(&base("llama"), adapter("lora"), &out, &["--force"]).expect(0);
    let mut expected = names(&clean);
    expected.extend([".git", "my-own.safetensors", "runs", "thesis.txt"].map(str::to_string));
    expected.sort();
    assert_eq!(names(&out), expected, "no shard of the old result is left, and no record");
    for name in names(&clean) {
        assert_eq!(fs::read(out.join(&name)).unwrap(), fs::read(clean.join(&name)).unwrap(), "{name}");
    }
    for name in theirs {
        assert_eq!(fs::read_to_string(out.join(name)).unwrap(), name);
    }
    assert_eq!(names(&scratch.join(".")), ["clean", "out"]);
}

#[test]
fn names_may_be_any_bytes() {
    let scratch = Scratch::new();
    for name in [&b"caf\xe9"[..], b"two\nlines", b"-o", b"a b", b"at@home", &[b'x'; 255]] {
        let name = OsStr::from_bytes(name);
        let lora = scratch.join("in").join(name);
        copy(&adapter("lora"), &lora);
        let mut argument = lora.clone().into_os_string();
        argument.push("@2");
        let folder = scratch.join("out");
        fs::create_dir_all(&folder).unwrap();
        merge(&base("llama"), argument, &folder.join(name), &[]).expect(0);
        assert_eq!(names(&folder).len(), 1, "nothing beside {name:?}");
        fs::remove_dir_all(&folder).unwrap();
    }
    let missing = merge(&base("llama"), "at@home/none", &scratch.join("out"), &[]).expect(1);
    assert!(missing.err.contains("at@home/none: cannot open"), "{}", missing.err);
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    let scratch = Scratch::new();
    let cache = scratch.join("cache");
    fs::create_dir_all(cache.join("refs")).unwrap();
    copy(&base("llama"), &cache.join("snapshots/abc"));
    let fifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    fifo(&cache.join("refs/main"));
    fifo(&cache.join("snapshots/abc/notes"));
    merge(&cache, adapter("lora"), &scratch.join("out"), &[]).expect(0);
    let config = cache.join("snapshots/abc/config.json");
    fs::remove_file(&config).unwrap();
    fifo(&config);
    let refused = merge(&cache, adapter("lora"), &scratch.join("out2"), &[]).expect(1);
    assert!(refused.err.contains("config.json: not a regular file"), "{}", refused.err);
    fifo(&scratch.join("pipe.safetensors"));
    merge(&scratch.join("pipe.safetensors"), adapter("lora"), &scratch.join("out2"), &[]).expect(1);
    merge(&base("llama"), scratch.join("pipe.safetensors"), &scratch.join("out2"), &[]).expect(1);
}

/// Below some limit nothing can be done; from there on there is a message, and nothing is left, whoever asks in vain: the
/// program itself, its threads, or OpenBLAS.
#[cfg(target_os = "linux")]
#[test]
fn memory_that_cannot_be_had_ends_the_run_cleanly() {
    use crate::models::{Model, tensor, write};
    use safetensors::tensor::Dtype;
    let scratch = Scratch::new();
    let (model, lora, out) = (scratch.join("model.safetensors"), scratch.join("lora"), scratch.join("out.safetensors"));
    let key = |factor: &str| format!("base_model.model.q.{factor}.weight");
    write(&model, &Model::from([("q.weight".to_string(), tensor(Dtype::F32, &[512, 1024], 1))]), None);
    fs::create_dir(&lora).unwrap();
    let factors =
        [(key("lora_A"), tensor(Dtype::F32, &[48, 1024], 2)), (key("lora_B"), tensor(Dtype::F32, &[512, 48], 3))];
    write(&lora.join("adapter_model.safetensors"), &Model::from(factors), None);
    fs::write(lora.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 48, "lora_alpha": 48}"#).unwrap();
    let run = |limit: &str, threads: u32| -> Ran {
        let options = format!("--no-sync --dtype f64 --force --threads {threads}");
        let script = format!("{limit}; exec \"$0\" merge \"$1\" \"$2\" -o \"$3\" {options}");
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", "60", "sh", "-c", &script, PROGRAM])
            .args([&model, &lora, &out])
            .env_remove("RUST_BACKTRACE");
        command.output().expect("a shell").into()
    };
    run("true", 2).expect(0);
    let whole = fs::read(&out).unwrap();
    fs::remove_file(&out).unwrap();
    let (mut done, mut refused) = (0, 0);
    for limit in (4..44).map(|n| n * 1501) {
        let ran = run(&format!("ulimit -d {limit}"), 1 + limit % 4);
        match ran.code {
            Some(0) => {
                done += 1;
                assert!(fs::read(&out).unwrap() == whole, "{limit} KiB");
                fs::remove_file(&out).unwrap();
            }
            Some(1) => {
                refused += 1;
                assert!(ran.err.lines().any(|line| line.starts_with("lora-tool: ")), "{limit} KiB: {}", ran.err);
            }
            other => panic!("{limit} KiB: {other:?} {}", ran.err),
        }
        assert_eq!(names(&scratch.join(".")), ["lora", "model.safetensors"], "{limit} KiB: {}", ran.err);
    }
    assert!(done > 5 && refused > 5, "{done} done, {refused} refused");
}

#[test]
fn of_runs_onto_one_output_one_wins_whole() {
    let scratch = Scratch::new();
    let wanted = |strength: &str| {
        let alone = scratch.join(strength);
        merge(&base("llama"), format!("{}@{strength}", text(&adapter("lora"))), &alone, &[]).expect(0);
        let all: Vec<_> = names(&alone).into_iter().map(|name| (fs::read(alone.join(&name)).unwrap(), name)).collect();
        fs::remove_dir_all(alone).unwrap();
        all
    };
    let results = [wanted("1"), wanted("2")];
    let out = scratch.join("out");
    for force in [false, true] {
        let start = |n: usize| {
            let mut command = command();
            let lora = format!("{}@{}", text(&adapter("lora")), 1 + n % 2);
            command.args(["merge", &text(&base("llama")), &lora, "-o", &text(&out), "--no-sync"]);
            command.args(force.then_some("--force"));
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let runs: Vec<_> = (0..8).map(start).collect();
        let ended: Vec<Ran> = runs.into_iter().map(|run| run.wait_with_output().unwrap().into()).collect();
        for ran in &ended {
            assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
            assert!(ran.code == Some(0) || ran.err.contains("out"), "{ran:?}");
        }
        let done = ended.iter().filter(|ran| ran.code == Some(0)).count();
        assert!(if force { done > 0 } else { done == 1 }, "{done} of them did it: {ended:?}");
        let found: Vec<_> = names(&out).into_iter().map(|name| (fs::read(out.join(&name)).unwrap(), name)).collect();
        assert!(results.contains(&found), "not the whole of one");
        assert_eq!(names(&scratch.join(".")), ["out"]);
    }
}

#[test]
fn streams_that_are_closed_or_full_do_not_spoil_a_result() {
    let scratch = Scratch::new();
    let redirections = [
        ("<&-", 0),
        (">/dev/full", 1),
        (">&-", 0),
        ("2>/dev/full", 0),
        ("2>&-", 0),
        ("<&- >&- 2>&-", 0),
        ("| true", 0),
    ];
    for (number, (how, code)) in redirections.into_iter().enumerate() {
        for verbose in ["-v", "--json"] {
            let out = scratch.join(&format!("{number}{verbose}"));
            let script = format!("\"$0\" merge \"$1\" \"$2\" -o \"$3\" {verbose} --no-sync {how}");
            let mut command = Command::new("sh");
            command.arg("-c").arg(script).arg(PROGRAM);
            command.arg(base("llama_tied")).arg(adapter("tied_lm_head")).arg(&out);
            let ran: Ran = command.output().unwrap().into();
            assert_eq!(ran.code, Some(code), "{how} {verbose}: {}", ran.err);
            assert!(out.join("config.json").exists(), "{how} {verbose}: the result is not there");
        }
    }
}

#[test]
fn results_have_the_modes_that_the_umask_gives() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    for (umask, folder, file) in [("022", 0o755, 0o644), ("027", 0o750, 0o640), ("077", 0o700, 0o600)] {
        let out = scratch.join(umask);
        let script = format!("umask {umask}; exec \"$0\" merge \"$1\" \"$2\" -o \"$3\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(PROGRAM).arg(base("llama")).arg(adapter("lora")).arg(&out);
        Ran::from(command.output().unwrap()).expect(0);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&out), folder);
        for name in names(&out) {
            assert_eq!(mode(&out.join(&name)), file, "{name} under {umask}");
        }
    }
}

/// In a name space of its own, where mounting is allowed in one; else it says so.
#[cfg(target_os = "linux")]
#[test]
fn a_small_disk_is_found_too_small_before_the_work_or_ends_it_cleanly() {
    let scratch = Scratch::new();
    let disk = scratch.join("disk");
    fs::create_dir(&disk).unwrap();
    let (mut done, mut refused) = (0, 0);
    for pages in [1, 4, 8, 9, 10, 11, 12, 14, 16, 24, 64] {
        let script = format!(
            "mount -t tmpfs -o size={}k none \"$3\" || exit 99
             \"$0\" merge \"$1\" \"$2\" -o \"$3/out\" 2>&1; echo \"status $?\"; ls -A \"$3\"",
            4 * pages
        );
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", &script, PROGRAM]).arg(base("llama")).arg(adapter("lora")).arg(&disk);
        let Ok(ran) = command.output().map(Ran::from) else {
            eprintln!("skipped: no unshare");
            return;
        };
        if ran.code == Some(99) || !ran.out.contains("status") {
            eprintln!("skipped: nothing can be mounted here");
            return;
        }
        if ran.out.contains("status 0") {
            done += 1;
            assert!(ran.out.ends_with("\nout\n"), "{pages} pages: {}", ran.out);
        } else {
            refused += 1;
            let is_clean = ran.out.trim_end().ends_with("status 1");
            assert!(is_clean && ran.out.to_lowercase().contains("no space"), "{pages} pages: {}", ran.out);
        }
    }
    assert!(done > 1 && refused > 3, "{done} done, {refused} refused");
}
