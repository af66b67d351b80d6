//! The contract of the command line: exit codes, what is written and what is not, what is said and where.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use safetensors::tensor::Dtype;

use crate::fixtures::{Scratch, adapter, base, text};
use crate::models::{Model, assert_merged, deltas, json_file, read, tensor, write, write_lora};
use crate::program::{PROGRAM, Ran, command, merge, names, run};

/// A copy of a folder of files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

// Exit codes

#[test]
fn exit_0_when_done() {
    let scratch = Scratch::new();
    merge(&base("llama"), adapter("lora"), &scratch.join("out"), &[]).expect(0);
    run(["--version"]).expect(0);
    run(["merge", "--help"]).expect(0);
}

#[test]
fn exit_1_when_an_input_is_not_what_it_should_be() {
    let scratch = Scratch::new();
    for name in ["stray_key", "half_a_pair", "wrong_shape", "wrong_rank", "nan", "corda", "xlora", "unknown_tuner"] {
        let ran = merge(&base("llama"), adapter(name), &scratch.join("out"), &[]).expect(1);
        assert!(ran.err.starts_with("lora-tool: "), "{name}: {}", ran.err);
        assert!(ran.err.contains(name), "{name}: the message names no file: {}", ran.err);
        assert_eq!(ran.out, "", "{name}");
    }
    merge(&scratch.join("nothing"), adapter("lora"), &scratch.join("out"), &[]).expect(1);
    merge(&base("llama"), scratch.join("nothing"), &scratch.join("out"), &[]).expect(1);
    let swapped = merge(&adapter("lora"), base("llama"), &scratch.join("out"), &[]).expect(1);
    assert!(swapped.err.contains("base comes first"), "{}", swapped.err);
    assert_eq!(names(&scratch.join(".")), Vec::<String>::new());
}

#[test]
fn exit_2_when_the_command_line_is_wrong() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    run(["merge"]).expect(2);
    run(["nonsense"]).expect(2);
    run(Vec::<String>::new()).expect(2);
    for more in [["--threads", "0"], ["--memory", "2XB"], ["--dtype", "int4"], ["--strength", "strong"]] {
        let ran = merge(&base("llama"), adapter("lora"), &out, &more).expect(2);
        assert!(ran.err.contains(more[0]), "{}", ran.err);
    }
    merge(&base("llama"), format!("{}@strong", text(&adapter("lora"))), &out, &[]).expect(2);
    merge(&base("llama"), adapter("lora"), &out, &["--device", "abacus"]).expect(2);
    assert!(!out.exists());
}

#[test]
fn exit_3_when_strict_refuses_a_loss() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    let lossy = ["--allow-unmatched", "--strict"];
    let ran = merge(&base("llama"), adapter("stray_key"), &out, &lossy).expect(3);
    assert!(ran.err.contains("--strict") && ran.err.contains("layers.5"), "{}", ran.err);
    assert!(!out.exists());
    // A note that is no loss is none.
    merge(&base("llama_tied"), adapter("tied_lm_head"), &out, &["--strict"]).expect(0);
}

// What is written and what is not

#[test]
fn a_dry_run_checks_everything_and_writes_nothing() {
    let scratch = Scratch::new();
    let ran = merge(&base("llama"), adapter("lora"), &scratch.join("out"), &["--dry-run"]).expect(0);
    assert!(ran.out.contains("model.layers.1.self_attn.v_proj.weight"), "{}", ran.out);
    merge(&base("llama"), adapter("wrong_shape"), &scratch.join("out"), &["--dry-run"]).expect(1);
    fs::write(scratch.join("there"), "kept").unwrap();
    merge(&base("llama"), adapter("lora"), &scratch.join("there"), &["--dry-run"]).expect(1);
    assert_eq!(names(&scratch.join(".")), ["there"]);
}

#[test]
fn an_existing_output_is_kept_without_force_and_replaced_whole_with_it() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    fs::create_dir(&out).unwrap();
    merge(&base("llama"), adapter("lora"), &out, &[]).expect(0); // an empty folder is no output
    fs::write(out.join("mine.txt"), "old").unwrap();
    let refused = merge(&base("llama"), adapter("rslora"), &out, &[]).expect(1);
    assert!(refused.err.contains("--force"), "{}", refused.err);
    assert_merged(&read(&base("llama")), &read(&out), &[(1.0, deltas(&adapter("lora")))]);
    merge(&base("llama"), adapter("nan"), &out, &["--force"]).expect(1); // what fails replaces nothing
    assert!(out.join("mine.txt").exists());
    merge(&base("llama"), format!("{}@2", text(&adapter("lora"))), &out, &["--force"]).expect(0);
    assert_merged(&read(&base("llama")), &read(&out), &[(2.0, deltas(&adapter("lora")))]);
    assert!(out.join("mine.txt").exists(), "what is no part of a result stays");
    assert_eq!(names(&scratch.join(".")), ["out"]);
}

#[test]
fn an_input_is_never_the_output() {
    let scratch = Scratch::new();
    let (model, lora) = (scratch.join("model"), scratch.join("lora"));
    copy(&base("llama"), &model);
    copy(&adapter("lora"), &lora);
    std::os::unix::fs::symlink(&model, scratch.join("link")).unwrap();
    for out in ["model", "link", "lora", "model/inside", "lora/inside", ".", "model/../model"] {
        merge(&model, &lora, &scratch.join(out), &["--force"]).expect(1);
    }
    assert_eq!(names(&model), names(&base("llama")));
    assert_eq!(names(&lora), names(&adapter("lora")));
    assert_eq!(read(&model), read(&base("llama")));
    let file = model.join("model-00001-of-00003.safetensors");
    merge(&file, &lora, &file, &["--force"]).expect(1);
}

#[test]
fn what_the_merge_does_not_touch_is_the_same_byte_for_byte() {
    let scratch = Scratch::new();
    let (from, out) = (base("llama"), scratch.join("out"));
    merge(&from, adapter("lora"), &out, &["--no-provenance"]).expect(0);
    assert_eq!(names(&from), names(&out));
    for name in names(&from) {
        let (old, new) = (fs::read(from.join(&name)).unwrap(), fs::read(out.join(&name)).unwrap());
        if name.ends_with(".safetensors") {
            let length = u64::from_le_bytes(*old.first_chunk().unwrap()) as usize;
            assert!(old[..8 + length] == new[..8 + length], "{name}: another header");
        } else {
            assert!(old == new, "{name} is another");
        }
    }
    assert_merged(&read(&from), &read(&out), &[(1.0, deltas(&adapter("lora")))]);
}

#[test]
fn metadata_stays_in_its_order_also_where_the_header_is_new() {
    let scratch = Scratch::new();
    let (from, out) = (scratch.join("base.safetensors"), scratch.join("out.safetensors"));
    let header = r#"{"__metadata__":{"zeta":"1","format":"pt","alpha":"ü"},"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()));
    fs::write(&from, bytes).unwrap();
    write_lora(&scratch.join("lora"), &[("a", 2, 2)], 1, 5);
    merge(&from, scratch.join("lora"), &out, &["--dtype", "bf16"]).expect(0);
    let new = fs::read(&out).unwrap();
    let metadata = r#"{"__metadata__":{"zeta":"1","format":"pt","alpha":"ü","lora_tool.provenance":"#;
    assert!(new[8..].starts_with(metadata.as_bytes()), "{}", String::from_utf8_lossy(&new[8..200]));
}

#[test]
fn a_file_gives_a_file() {
    let scratch = Scratch::new();
    let (from, out) = (base("llama_bf16").join("model.safetensors"), scratch.join("merged.safetensors"));
    merge(&from, adapter("bf16"), &out, &[]).expect(0);
    assert_eq!(names(&scratch.join(".")), ["merged.safetensors"]);
    assert_merged(&read(&from), &read(&out), &[(1.0, deltas(&adapter("bf16")))]);
    merge(&from, adapter("bf16"), &out, &[]).expect(1);
    merge(&from, adapter("bf16"), &out, &["--force"]).expect(0);
}

#[test]
fn an_adapter_may_be_a_bare_file_with_its_config_beside() {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    merge(&base("llama"), adapter("lora").join("adapter_model.safetensors"), &out, &[]).expect(0);
    assert_merged(&read(&base("llama")), &read(&out), &[(1.0, deltas(&adapter("lora")))]);
    let alone = scratch.join("alone.safetensors");
    fs::copy(adapter("lora").join("adapter_model.safetensors"), &alone).unwrap();
    let ran = merge(&base("llama"), &alone, &scratch.join("other"), &[]).expect(1);
    assert!(ran.err.contains("adapter_config.json"), "{}", ran.err);
}

#[test]
fn max_shard_size_deals_the_tensors_out_anew() {
    let scratch = Scratch::new();
    let (from, out) = (base("llama"), scratch.join("out"));
    merge(&from, adapter("lora"), &out, &["--max-shard-size", "8kB"]).expect(0);
    let shards: Vec<_> = names(&out).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    let count = shards.len();
    assert!(count > 3, "{shards:?}");
    let expected: Vec<_> = (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect();
    assert_eq!(shards, expected);
    let index = json_file(&out.join("model.safetensors.index.json"));
    let mut total = 0;
    for shard in &shards {
        let model = read(&out.join(shard));
        let bytes: usize = model.values().map(|v| 4 * v.values.len()).sum();
        assert!(bytes <= 8000 || model.len() == 1, "{shard} holds {bytes} bytes");
        model.keys().for_each(|key| assert_eq!(index["weight_map"][key], shard.as_str(), "{key}"));
        total += bytes;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["weight_map"].as_object().unwrap().len(), read(&from).len());
    assert_merged(&read(&from), &read(&out), &[(1.0, deltas(&adapter("lora")))]);
    // All in one file: no index, the usual name.
    merge(&from, adapter("lora"), &scratch.join("one"), &["--max-shard-size", "1GB"]).expect(0);
    assert!(names(&scratch.join("one")).contains(&"model.safetensors".to_string()));
    assert!(!names(&scratch.join("one")).iter().any(|n| n.contains("index") || n.contains("-of-")));
}

#[test]
fn outputs_have_the_modes_that_umask_gives() {
    let scratch = Scratch::new();
    for (umask, folder, file) in [("022", 0o755, 0o644), ("077", 0o700, 0o600), ("002", 0o775, 0o664)] {
        let (out, single) = (scratch.join(umask), scratch.join(&format!("{umask}.safetensors")));
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let under = |args: &[&str]| {
            let ran: Ran = Command::new("sh").arg("-c").arg(&script).arg(PROGRAM).args(args).output().unwrap().into();
            ran.expect(0)
        };
        under(&["merge", &text(&base("llama")), &text(&adapter("lora")), "-o", &text(&out)]);
        let shard = base("llama_bf16").join("model.safetensors");
        under(&["merge", &text(&shard), &text(&adapter("bf16")), "-o", &text(&single)]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&out), folder, "umask {umask}");
        assert_eq!(mode(&single), file, "umask {umask}");
        names(&out).iter().for_each(|name| assert_eq!(mode(&out.join(name)), file, "umask {umask}: {name}"));
    }
}

#[test]
fn left_overs_of_a_run_that_was_killed_go_with_the_next() {
    let scratch = Scratch::new();
    let dead = scratch.join(".out.lora-tool.4711.0");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("model.safetensors"), "half").unwrap();
    fs::create_dir(scratch.join(".other.lora-tool.4711.0")).unwrap(); // not of this output
    merge(&base("llama"), adapter("lora"), &scratch.join("out"), &[]).expect(0);
    assert_eq!(names(&scratch.join(".")), [".other.lora-tool.4711.0", "out"]);
}

// Pipes

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let scratch = Scratch::new();
    let lora = text(&adapter("lora"));
    let merging = ["merge", &text(&base("llama")), &lora, "-o", &text(&scratch.join("out"))];
    for args in [vec!["inspect", &lora], vec!["layouts"], vec!["completions", "bash"], vec!["--help"], merging.to_vec()]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command().args(&args).stdout(writer).output().unwrap();
        let ran = Ran::from(output).expect(0);
        assert_eq!(ran.err, "", "{args:?}");
    }
    assert_merged(&read(&base("llama")), &read(&scratch.join("out")), &[(1.0, deltas(&adapter("lora")))]);
}

// What is said

#[test]
fn every_json_answer_is_one_document() {
    let scratch = Scratch::new();
    let (model, lora) = (text(&base("llama")), text(&adapter("lora")));
    let dry = merge(&base("llama"), &lora, &scratch.join("out"), &["--json", "--dry-run"]).expect(0).json();
    assert_eq!((&dry["dry_run"], dry["changes"].as_array().unwrap().len()), (&true.into(), 4));
    let done = merge(&base("llama"), &lora, &scratch.join("out"), &["--json"]).expect(0).json();
    assert_eq!((&done["totals"]["changed"], &done["totals"]["copied"]), (&4.into(), &17.into()));
    assert_eq!(done["totals"]["adapter_tensors"], done["totals"]["adapter_tensors_used"]);
    let about = run(["inspect", "--json", &lora]).expect(0).json();
    assert_eq!(about["targets"].as_array().unwrap().len(), 4, "{about}");
    run(["inspect", "--json", &model]).expect(0).json();
    run(["inspect", "--json", "--spectrum", &lora]).expect(0).json();
    let keys = run(["inspect", "--json", "--keys", &lora]).expect(0).json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 8);
    assert_eq!(run(["inspect", "--json", &lora, &model]).expect(0).json().as_array().unwrap().len(), 2);
    let layouts = run(["layouts", "--json"]).expect(0).json();
    assert!(layouts["layouts"].as_array().unwrap().iter().any(|l| l["name"] == "peft"));
    let kernels = run(["kernels", "--self-test", "--json"]).expect(0).json();
    assert!(kernels["kernels"].as_array().unwrap().len() > 1);
}

#[test]
fn a_failure_is_a_json_document_too() {
    let scratch = Scratch::new();
    let ran = merge(&base("llama"), adapter("stray_key"), &scratch.join("out"), &["--json"]).expect(1);
    let error = &ran.json()["error"];
    assert_eq!(error["kind"], "missing");
    assert!(error["key"].as_str().unwrap().contains("layers.5"), "{error}");
    assert!(error["file"].as_str().unwrap().contains("stray_key"), "{error}");
    assert!(error["hint"].is_string(), "{error}");
    let strict = ["--json", "--strict", "--allow-unmatched"];
    let ran = merge(&base("llama"), adapter("stray_key"), &scratch.join("out"), &strict).expect(3);
    assert_eq!(ran.json()["error"]["kind"], "strict");
}

#[test]
fn what_matches_nothing_is_named_with_what_to_do() {
    let scratch = Scratch::new();
    let some = merge(&base("llama"), adapter("stray_key"), &scratch.join("out"), &[]).expect(1);
    assert!(some.err.contains("`model.layers.5.self_attn.q_proj.weight`"), "{}", some.err);
    assert!(some.err.contains("1 of 2 modules"), "{}", some.err);
    assert!(some.err.contains("hint: ") && some.err.contains("--allow-unmatched"), "{}", some.err);
    let left = merge(&base("llama"), adapter("stray_key"), &scratch.join("out"), &["--allow-unmatched"]).expect(0);
    assert!(left.err.contains("warning: ") && left.err.contains("layers.5"), "{}", left.err);
    // Nothing at all matches: that is the wrong base, and leaving it out would leave nothing.
    let lora = scratch.join("lora");
    write_lora(&lora, &[("encoder.block.q", 24, 16)], 2, 1);
    let none = merge(&base("llama"), &lora, &scratch.join("none"), &["--allow-unmatched"]).expect(1);
    assert!(none.err.contains("is this the base model"), "{}", none.err);
    assert_eq!(names(&scratch.join(".")), ["lora", "out"]);
}

#[test]
fn values_that_are_not_finite_are_refused_unless_they_are_allowed() {
    let scratch = Scratch::new();
    let refused = merge(&base("llama"), adapter("nan"), &scratch.join("out"), &[]).expect(1);
    assert!(refused.err.contains("lora_B") && refused.err.contains("--allow-nonfinite"), "{}", refused.err);
    merge(&base("llama"), adapter("nan"), &scratch.join("out"), &["--allow-nonfinite"]).expect(0);
    assert!(read(&scratch.join("out")).values().any(|v| v.values.iter().any(|x| x.is_nan())));
    // A sum beyond the range of the type: found while it is written, and then nothing is.
    let mut model = Model::new();
    let mut weight = tensor(Dtype::F16, &[8, 8], 1);
    weight.values[9] = 65504.0;
    model.insert("a.weight".into(), weight);
    write(&scratch.join("base.safetensors"), &model, None);
    write_lora(&scratch.join("lora"), &[("a", 8, 8)], 4, 5);
    for strength in ["1000", "-1000"] {
        let lora = format!("{}@{strength}", text(&scratch.join("lora")));
        let out = scratch.join("big.safetensors");
        let ran = merge(&scratch.join("base.safetensors"), &lora, &out, &[]);
        if ran.code == Some(0) {
            fs::remove_file(&out).unwrap(); // the sign went the other way
            continue;
        }
        assert!(ran.err.contains("[1, 1]") && ran.err.contains("--dtype"), "{}", ran.err);
        assert!(!out.exists());
        merge(&scratch.join("base.safetensors"), &lora, &out, &["--dtype", "f32"]).expect(0);
        return;
    }
    panic!("neither sign was too large");
}

#[test]
fn quiet_says_nothing_but_the_answer_and_notes_go_to_stderr() {
    let scratch = Scratch::new();
    let (from, lora) = (base("llama_tied"), adapter("tied_lm_head"));
    let usual = merge(&from, &lora, &scratch.join("a"), &[]).expect(0);
    assert!(usual.err.starts_with("note: ") && !usual.out.contains("note"), "{usual:?}");
    let quiet = merge(&from, &lora, &scratch.join("b"), &["--quiet"]).expect(0);
    assert_eq!(quiet.err, "");
    let verbose = merge(&from, &lora, &scratch.join("c"), &["--verbose"]).expect(0);
    assert!(verbose.out.contains("survived") && verbose.out.lines().count() > usual.out.lines().count());
    let coloured = merge(&from, &lora, &scratch.join("d"), &["--color", "always"]).expect(0);
    assert!(coloured.err.contains("\u{1b}["));
}

#[test]
fn a_merge_that_changes_no_value_says_so() {
    let scratch = Scratch::new();
    for (i, strength) in ["0", "1e-30"].iter().enumerate() {
        let lora = format!("{}@{strength}", text(&adapter("lora")));
        let ran = merge(&base("llama"), &lora, &scratch.join(&i.to_string()), &[]).expect(0);
        assert!(ran.err.contains("no value changed"), "{}", ran.err);
    }
}

#[test]
fn inspect_looks_into_adapters_and_bases() {
    let lora = run(["inspect", &text(&adapter("lora"))]).expect(0).out;
    for word in ["peft", "LORA", "LoRA × 4", "PEFT 0.21.2", "q_proj × 2", "stable rank"] {
        assert!(lora.contains(word), "`{word}` in:\n{lora}");
    }
    let llama = run(["inspect", &text(&base("llama"))]).expect(0).out;
    for word in ["LlamaForCausalLM", "21 F32", "model.layers.N.mlp.up_proj.weight"] {
        assert!(llama.contains(word), "`{word}` in:\n{llama}");
    }
    let keys = run(["inspect", "--keys", &text(&base("llama"))]).expect(0).out;
    assert_eq!(keys.lines().count(), 22, "{keys}");
    let file = base("llama").join("model-00002-of-00003.safetensors");
    run(["inspect", &text(&file)]).expect(0);
}

#[test]
fn inspect_shows_what_it_can_of_what_is_broken() {
    let half = run(["inspect", &text(&adapter("half_a_pair"))]).expect(1);
    assert!(half.out.contains("layers.1.self_attn.q_proj.lora_A"), "{}", half.out);
    assert!(half.err.contains("lora_B"), "{}", half.err);
    let nan = run(["inspect", &text(&adapter("nan"))]).expect(0);
    assert!(nan.out.contains("problem: ") && nan.out.contains("NaN"), "{}", nan.out);
    let xlora = run(["inspect", &text(&adapter("xlora"))]).expect(0);
    assert!(xlora.out.contains("cannot be merged"), "{}", xlora.out);
    let scratch = Scratch::new();
    for (name, bytes) in [("empty", &b""[..]), ("short", b"\x10\0\0"), ("page.safetensors", b"<html>not found</html>")]
    {
        fs::write(scratch.join(name), bytes).unwrap();
        run(["inspect", &text(&scratch.join(name))]).expect(1);
    }
    run(["inspect", &text(&scratch.join("absent"))]).expect(1);
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(["completions", shell]).expect(0).out;
        assert!(script.contains("lora-tool") && script.contains("max-shard-size"), "{shell}");
    }
    let scratch = Scratch::new();
    run(["man", &text(&scratch.join("."))]).expect(0);
    let pages = names(&scratch.join("."));
    for page in ["lora-tool.1", "lora-tool-merge.1", "lora-tool-inspect.1", "lora-tool-compare.1"] {
        assert!(pages.contains(&page.to_string()), "{page} in {pages:?}");
    }
    let page = fs::read_to_string(scratch.join("lora-tool-merge.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("strength"));
    run(["man", &text(&scratch.join("absent"))]).expect(1);
}

#[test]
fn the_short_help_fits_a_screen() {
    for args in
        [&["-h"][..], &["merge", "-h"], &["inspect", "-h"], &["compare", "-h"], &["layouts", "-h"], &["kernels", "-h"]]
    {
        let help = run(args).expect(0).out;
        assert!(help.lines().count() <= 40, "{args:?}: {} lines", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{args:?}: a line is too wide:\n{help}");
    }
}
