//! `batch`: jobs are commands, and what came of each is said.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::fixtures::{Scratch, adapter, base, text};
use crate::models::{json_file, write_lora};
use crate::program::{Ran, command, names, run};

/// Runs a file of jobs in its folder.
fn batch(scratch: &Scratch, jobs: &str, more: &[&str]) -> Ran {
    std::fs::write(scratch.join("jobs.toml"), jobs).expect("a file of jobs");
    let mut command = command();
    command.current_dir(scratch.join(".")).args(["batch", "jobs.toml"]).args(more);
    command.output().expect("the program starts").into()
}

fn loras(folder: &Path, names: &[&str]) {
    for (i, name) in names.iter().enumerate() {
        std::fs::create_dir_all(folder).expect("a folder");
        write_lora(&folder.join(name), &[("layers.0.q", 8, 6)], 2, 1 + 10 * i as u64);
    }
}

fn statuses(answer: &Value) -> Vec<&str> {
    answer["jobs"].as_array().expect("jobs").iter().map(|j| j["status"].as_str().expect("a word")).collect()
}

#[test]
fn a_job_does_what_its_command_does() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b", "c"]);
    let jobs = format!(
        r#"
        [[job]]
        command = "convert"
        adapter = "in/*"
        out = "{{layout}}-{{stem}}"
        to = "peft"
        normalise = true
        no_sync = true

        [[job]]
        command = "convert"
        adapters = "in/[ab]"
        out = "all"
        to = "peft"
        dtype = "bf16"
        no-sync = true
        strict = false

        [[job]]
        command = "resize"
        adapter = "in/a"
        out = "small"
        rank = 1
        min_rank = 1
        tolerance = 0.5
        no-sync = true

        [[job]]
        command = "merge"
        base = "{}"
        adapter = ["{}@0.5", "{}"]
        out = "merged"
        undo = "base.undo"
        no-sync = true

        [[job]]
        command = "inspect"
        path = "in/*"
        "#,
        text(&base("llama")),
        text(&adapter("lora")),
        text(&adapter("bf16")),
    );
    let answer = batch(&scratch, &jobs, &["--json"]).expect(0).json();
    assert_eq!(statuses(&answer), ["done"; 7]);
    assert_eq!(
        answer["jobs"].as_array().expect("jobs").iter().map(|j| j["job"].clone()).collect::<Vec<_>>(),
        [1, 1, 1, 2, 3, 4, 5]
    );
    assert_eq!(names(&scratch.join("all")), ["a", "b"]);
    assert_eq!(answer["jobs"][4]["answer"]["overall"]["ranks"], json!([1, 1]));
    assert_eq!(answer["jobs"][5]["answer"]["adapters"][0]["strength"], 0.5);
    assert_eq!(answer["jobs"][6]["answer"].as_array().map(Vec::len), Some(3));
    // The same commands by themselves give the same bytes.
    for name in ["a", "b", "c"] {
        let (by_hand, by_job) = (scratch.join("by-hand"), scratch.join(&format!("peft-{name}")));
        let from = text(&scratch.join("in").join(name));
        run(["convert", &from, "-o", &text(&by_hand), "--to", "peft", "--normalise", "--force"]).expect(0);
        for file in names(&by_hand) {
            let bytes = |folder: &Path| std::fs::read(folder.join(&file)).expect("a file");
            assert_eq!(bytes(&by_hand), bytes(&by_job), "{name}: {file}");
        }
        assert_eq!(json_file(&by_job.join("adapter_config.json"))["lora_alpha"], 2);
    }
}

#[test]
fn a_failure_ends_it_unless_it_may_go_on() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b", "d"]);
    std::fs::create_dir(scratch.join("in/c")).expect("a folder that is no adapter");
    let jobs =
        "[[job]]\ncommand = \"convert\"\nadapter = \"in/*\"\nout = \"out-{stem}\"\nto = \"peft\"\nno-sync = true\n";
    let ran = batch(&scratch, jobs, &[]).expect(1);
    assert!(ran.err.contains("3/4 convert: failed: in/c: no adapter here"), "{}", ran.err);
    let rows: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(rows[0], ["job", "status", "command", "output"]);
    assert_eq!([rows[1][1], rows[2][1], rows[3][1]], ["done", "done", "failed"]);
    assert_eq!(rows[4], ["4", "not", "run", "convert"]);
    assert!(!ran.err.contains(['\r', '\u{1b}']), "a bar where nobody watches: {}", ran.err);
    assert!(ran.out.contains("2 done, 1 failed, 1 not run in"), "{}", ran.out);
    assert!(ran.err.contains("1 of 4 jobs failed") && ran.err.contains("--keep-going"), "{}", ran.err);
    assert!(!scratch.join("out-d").exists());
    let answer = batch(&scratch, jobs, &["--keep-going", "--resume", "--json", "--jobs", "3"]).expect(1).json();
    assert_eq!(statuses(&answer), ["up_to_date", "up_to_date", "failed", "done"]);
    assert_eq!(answer["jobs"][2]["error"]["kind"], "missing");
    assert_eq!(answer["counts"], json!({ "done": 1, "failed": 1, "not_run": 0, "up_to_date": 2 }));
}

#[test]
fn what_was_done_is_left_out_until_something_changes() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b"]);
    let jobs = |more: &str| {
        format!(
            "[[job]]\ncommand = \"convert\"\nadapter = \"in/*\"\nout = \"out-{{stem}}\"\nto = \"peft\"\nforce = true\n\
             no-sync = true\n{more}"
        )
    };
    let again = |more: &str, flags: &[&str]| {
        let flags: Vec<_> = flags.iter().copied().chain(["--json"]).collect();
        let answer = batch(&scratch, &jobs(more), &flags).expect(0).json();
        statuses(&answer).join(" ")
    };
    assert_eq!(again("", &["--resume"]), "done done");
    assert_eq!(again("", &["--resume"]), "up_to_date up_to_date");
    assert_eq!(again("", &[]), "done done");
    write_lora(&scratch.join("in/b"), &[("layers.0.q", 8, 6)], 3, 5);
    assert_eq!(again("", &["--resume"]), "up_to_date done");
    std::fs::remove_dir_all(scratch.join("out-a")).expect("an output");
    assert_eq!(again("", &["--resume"]), "done up_to_date");
    assert_eq!(again("normalise = true", &["--resume"]), "done done");
    // Touched and the same, without the tensors' size and times and with another byte in them, and damaged afterwards.
    let touch = |path: &str, to: SystemTime| {
        let file = std::fs::File::options().write(true).open(scratch.join(path)).expect("a file");
        file.set_modified(to).expect("a time");
    };
    touch("in/a/adapter_model.safetensors", SystemTime::now() - Duration::from_secs(1000));
    touch("out-b/adapter_config.json", SystemTime::now() - Duration::from_secs(1000));
    assert_eq!(again("normalise = true", &["--resume"]), "up_to_date up_to_date");
    let change_last_byte = |path: &str| {
        let time = std::fs::metadata(scratch.join(path)).and_then(|about| about.modified()).expect("a time");
        let mut bytes = std::fs::read(scratch.join(path)).expect("a file");
        *bytes.last_mut().expect("a byte") ^= 1;
        std::fs::write(scratch.join(path), bytes).expect("a file");
        touch(path, time);
    };
    change_last_byte("in/a/adapter_model.safetensors");
    assert_eq!(again("normalise = true", &["--resume"]), "done up_to_date");
    change_last_byte("out-b/adapter_model.safetensors");
    assert_eq!(again("normalise = true", &["--resume", "--rehash"]), "up_to_date done");
    // What else lies in an output, and what an input's folder has for its tools, is no one's business; a file that the
    // command may read is.
    std::fs::write(scratch.join("out-a/README.md"), "Mine.").expect("a file");
    std::fs::write(scratch.join("in/a/.gitattributes"), "").expect("a file");
    std::fs::write(scratch.join("in/b/config.json"), "{}").expect("a file");
    assert_eq!(again("normalise = true\nmemory = \"1MB\"\n", &["--resume"]), "up_to_date done");
    // A record that was cut off costs no more than a job.
    let record = scratch.join("jobs.toml.done");
    let bytes = std::fs::read(&record).expect("a record");
    std::fs::write(&record, &bytes[..bytes.len() - 9]).expect("a record");
    assert_eq!(again("normalise = true", &["--resume"]), "up_to_date done");
    // A dry run has done nothing.
    let dry = "normalise = true\ndry_run = true\ndtype = \"f16\"\n";
    assert_eq!(again(dry, &["--resume"]), "done done");
    assert_eq!(again(dry, &["--resume"]), "done done");
}

#[test]
fn a_wrong_file_is_refused_before_anything_runs() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b"]);
    let first = "[[job]]\ncommand = \"convert\"\nadapter = \"in/a\"\nout = \"first\"\nto = \"peft\"\n";
    for (job, code, words) in [
        (
            "command = \"convert\"\nadapter = \"in/a\"\nout = \"x\"\nto = \"peft\"\nnormalize = true",
            2,
            "job 2, normalize: `convert` has no such option",
        ),
        ("command = \"convert\"\nadapter = \"in/a\"\nto = \"peft\"", 2, "job 2: the following required"),
        (
            "command = \"convert\"\nadapter = \"in/a\"\nout = \"first\"\nto = \"peft\"",
            2,
            "writes to `first`, and so does job 1",
        ),
        ("command = \"resize\"\nadapter = \"in/a\"\nout = \"x\"\nrank = \"lots\"", 2, "job 2: invalid value 'lots'"),
        ("command = \"resize\"\nadapter = \"in/a\"\nout = \"{layout}\"\nrank = 1", 2, "which is not given"),
        (
            "command = \"convert\"\nadapter = \"in/z*\"\nout = \"x\"\nto = \"peft\"",
            1,
            "job 2, adapter: nothing matches `in/z*`",
        ),
        (
            "command = \"convert\"\nadapter = \"in/a\"\nout = \"x\"\nto = \"peft\"\nforce = 1",
            2,
            "integer, expected true or false",
        ),
        (
            "command = \"convert\"\nadapter = \"in/a\"\nout = \"x\"\nto = \"peft\"\njson = true",
            2,
            "said once for all jobs",
        ),
        ("command = \"batch\"\nfile = \"jobs.toml\"", 2, "`batch` is no command of a job"),
        ("adapter = \"in/a\"", 2, "a job needs command"),
        ("command = ", 1, "line 7"),
    ] {
        let ran = batch(&scratch, &format!("{first}[[job]]\n{job}\n"), &[]).expect(code);
        assert!(ran.err.contains(words), "expected `{words}` in: {}", ran.err);
        assert!(!scratch.join("first").exists());
    }
    assert!(batch(&scratch, "", &[]).expect(2).err.contains("no [[job]] in it"));
    assert!(batch(&scratch, "[jobs]\n", &[]).expect(2).err.contains("expected [[job]] tables"));
    run(["batch", &text(&scratch.join("nowhere.toml"))]).expect(1);
}

#[test]
fn notes_carry_the_number_of_their_job() {
    let scratch = Scratch::new();
    let jobs = format!(
        "[[job]]\ncommand = \"convert\"\nadapter = \"{}\"\nout = \"x\"\nto = \"peft\"\nnormalise = true\n",
        text(&adapter("rslora"))
    );
    let ran = batch(&scratch, &jobs, &[]).expect(0);
    let mut lines = ran.err.lines();
    assert_eq!(lines.next(), Some("1/1: note: 2 tensors hold B times the scale rounded once"));
    assert!(lines.next().is_some_and(|line| line.starts_with("1/1 convert: x: peft to peft")), "{}", ran.err);
}

#[test]
fn no_record_is_kept_where_none_is_wanted() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a"]);
    let jobs = "[[job]]\ncommand = \"convert\"\nadapter = \"in/a\"\nout = \"out\"\nto = \"peft\"\nno-sync = true\n";
    batch(&scratch, jobs, &["--no-record"]).expect(0);
    assert_eq!(names(&scratch.join(".")), ["in", "jobs.toml", "out"]);
    batch(&scratch, jobs, &["--no-record", "--resume"]).expect(2);
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let scratch = Scratch::new();
    write_lora(&scratch.join("in/a"), &[("layers.0.q", 8, 6)], 2, 1);
    write_lora(&scratch.join("in/b"), &[("layers.0.q", 4096, 4096)], 64, 5);
    let jobs = "[[job]]\ncommand = \"convert\"\nadapter = \"in/*\"\nout = \"out-{stem}\"\nto = \"peft\"\n";
    std::fs::write(scratch.join("jobs.toml"), jobs).expect("a file of jobs");
    let mut first = command();
    first.current_dir(scratch.join(".")).args(["batch", "jobs.toml"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = first.spawn().expect("the program starts");
    let began = Instant::now();
    let has_begun = || names(&scratch.join(".")).iter().any(|name| name.starts_with(".out-b."));
    while !has_begun() && !scratch.join("out-b").exists() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_micros(200));
    }
    first.kill().expect("a kill");
    first.wait().expect("an end");
    let was_done = scratch.join("out-b").exists();
    let answer = batch(&scratch, jobs, &["--resume", "--json"]);
    if was_done {
        return; // killed too late: whole, and perhaps not in the record
    }
    assert_eq!(statuses(&answer.expect(0).json()), ["up_to_date", "done"]);
    assert_eq!(names(&scratch.join(".")), ["in", "jobs.toml", "jobs.toml.done", "out-a", "out-b"]);
    let (by_hand, by_job) = (scratch.join("by-hand"), scratch.join("out-b/adapter_model.safetensors"));
    run(["convert", &text(&scratch.join("in/b")), "-o", &text(&by_hand), "--to", "peft", "--no-sync"]).expect(0);
    let bytes = |path: &Path| std::fs::read(path).expect("a file");
    assert!(bytes(&by_hand.join("adapter_model.safetensors")) == bytes(&by_job));
}

#[test]
fn memory_is_shared_out() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b", "c"]);
    let jobs = |memory: &str| {
        format!(
            "[[job]]\ncommand = \"resize\"\nadapter = \"in/*\"\nout = \"out-{{stem}}\"\nrank = 1\nforce = true\n\
             no-sync = true\n{memory}"
        )
    };
    let flags = ["--jobs", "3", "--memory", "1MB"];
    for memory in ["", "memory = \"1MB\"\n", "memory = \"1KB\"\n"] {
        let ran = batch(&scratch, &jobs(memory), &flags).expect(0);
        assert!(ran.out.contains("3 done in"), "{}", ran.out);
    }
    let ran = batch(&scratch, &jobs("memory = \"2MB\"\n"), &flags).expect(2);
    assert!(ran.err.contains("job 1, memory: 2.0 MB, and all jobs together have 1.0 MB"), "{}", ran.err);
    assert!(ran.err.contains("hint: --memory 2MB"), "{}", ran.err);
}

#[test]
fn a_line_of_json_for_each_job() {
    let scratch = Scratch::new();
    loras(&scratch.join("in"), &["a", "b"]);
    std::fs::create_dir(scratch.join("in/c")).expect("a folder that is no adapter");
    let jobs =
        "[[job]]\ncommand = \"convert\"\nadapter = \"in/*\"\nout = \"out-{stem}\"\nto = \"peft\"\nno-sync = true\n";
    let ran = batch(&scratch, jobs, &["--json-lines", "--keep-going", "--jobs", "2"]).expect(1);
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let mut ends: Vec<_> = lines.iter().filter_map(|l| Some((l["number"].as_u64()?, l["status"].as_str()?))).collect();
    ends.sort_unstable();
    assert_eq!(ends, [(1, "done"), (2, "done"), (3, "failed")]);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[3]["counts"], json!({ "done": 2, "failed": 1, "not_run": 0, "up_to_date": 0 }));
    // As in the document.
    let answer = batch(&scratch, jobs, &["--json", "--keep-going", "--resume"]).expect(1).json();
    assert_eq!(statuses(&answer), ["up_to_date", "up_to_date", "failed"]);
    let failed = lines.iter().find(|l| l["number"] == 3).expect("a line");
    assert_eq!(answer["jobs"][2]["error"], failed["error"]);
    // What is wrong before the jobs is a line as well.
    let ran = batch(&scratch, &jobs.replace("in/*", "in/z*"), &["--json-lines"]).expect(1);
    assert_eq!(ran.out.lines().count(), 1);
    let error: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(error["error"]["kind"], "missing");
}
