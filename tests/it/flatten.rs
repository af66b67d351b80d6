//! `convert --normalise --base --rank`: adapters of any kind as plain LoRA, against what PEFT merges and against the best
//! approximation in f64.

use std::path::Path;

use serde_json::{Value, json};

use crate::fixtures::{Case, Scratch, adapter, base, cases, text};
use crate::models::{Values, json_file, read};
use crate::parity;
use crate::program::{Ran, run};

fn plain(case: &Case, out: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["convert".to_string(), text(&case.adapter()), "-o".to_string(), text(out)];
    args.extend(["--to", "peft", "--no-sync", "--normalise", "--base"].map(str::to_string));
    args.push(text(&case.base()));
    args.extend(more.iter().map(ToString::to_string));
    run(args)
}

fn case(name: &str) -> Case {
    cases("peft").into_iter().find(|c| c.name == name).expect("the case")
}

/// Whether an adapter is plain LoRA already, or holds whole tensors only.
fn is_plain(answer: &Value) -> bool {
    answer["adapters"][0]["approximated"].is_null()
}

// Against PEFT

/// Why an adapter is refused whatever its rank: what PEFT's layout has no place for.
const NOT_WRITTEN: [&str; 2] = ["whose input is adapted with another rank or scale", "which no adapter of PEFT holds"];

#[test]
fn at_full_rank_every_change_is_what_peft_merges() {
    let (mut failed, mut count) = (Vec::new(), 0);
    for case in cases("peft").into_iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let ran = plain(&case, &out, &["--rank", "128", "--json"]);
        if ran.code == Some(1) {
            if !NOT_WRITTEN.iter().any(|reason| ran.err.contains(reason)) {
                failed.push(format!("{}: {}", case.name, ran.err));
            }
            continue;
        }
        count += usize::from(!is_plain(&ran.expect(0).json()));
        failed.extend(parity::differences_of(&case, &out).iter().map(|d| format!("{}: {d}", case.name)));
        let config = json_file(&out.join("adapter_config.json"));
        if config["peft_type"] == "LORA" && config["use_dora"] != json!(false) {
            failed.push(format!("{}: {config}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {count}:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 60, "only {count} were approximated");
}
