//! `batch`: jobs are commands, and what came of each is said.

use std::path::Path;

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
    assert!(ran.out.contains("3/4 convert: failed: in/c: no adapter here"), "{}", ran.out);
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
    assert_eq!(ran.err, "1/1: note: 2 tensors hold B times the scale rounded once\n");
}
