//! Records from strangers, with a good seal: whatever they say, there is an error or a result, never a panic, a file in
//! another place, or memory for numbers that somebody made up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lora_tool::container::undo::{Record, RecordWriter};
use lora_tool::error::{Error, Result};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{adapter, assert_same, base, contents, merge, undo, unmerge};
use crate::fixtures::{Scratch, cases};
use crate::program::{PROGRAM, Ran, names};

/// A record taken apart.
#[derive(Clone)]
struct Parts {
    corrections: Vec<u8>,
    sections: Vec<(String, Vec<u8>)>,
}

impl Parts {
    fn of(path: &Path) -> Parts {
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let order = metadata.offset_keys();
        let section = |name: &String| (name.clone(), file.tensor(name).unwrap().data().to_vec());
        let mut sections: Vec<_> = order.iter().map(section).collect();
        assert_eq!(sections.pop().unwrap().0, "seal");
        let corrections = sections.remove(0);
        assert_eq!(corrections.0, "corrections");
        Parts { corrections: corrections.1, sections }
    }

    /// Writes it with a seal that fits.
    fn seal(&self, path: &Path) {
        let _ = fs::remove_file(path);
        let names: Vec<_> = self.sections.iter().map(|(name, _)| name).collect();
        let writer = RecordWriter::create(path, &names).unwrap();
        writer.put(0, &self.corrections).unwrap();
        let sections: Vec<_> = self.sections.iter().map(|(_, bytes)| bytes.clone()).collect();
        writer.finish(&sections, false).unwrap();
        Record::open(path).unwrap();
    }

    fn section(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.sections.iter_mut().find(|(n, _)| n == name).unwrap().1
    }

    fn text(&mut self, name: &str) -> Vec<u8> {
        zstd::stream::decode_all(self.section(name).as_slice()).unwrap()
    }

    fn set_text(&mut self, name: &str, text: &[u8]) {
        *self.section(name) = zstd::bulk::compress(text, 1).unwrap();
    }

    fn manifest(&mut self) -> Value {
        serde_json::from_slice(&self.text("manifest")).unwrap()
    }

    fn with_manifest(&self, change: impl FnOnce(&mut Value)) -> Parts {
        let mut out = self.clone();
        let mut manifest = out.manifest();
        change(&mut manifest);
        out.set_text("manifest", manifest.to_string().as_bytes());
        out
    }

    /// The base's first head, as JSON.
    fn with_head(&self, change: impl FnOnce(&mut Value)) -> Parts {
        let mut out = self.clone();
        let mut head: Value = serde_json::from_slice(&out.text("base/0/head")[8..]).unwrap();
        change(&mut head);
        let text = head.to_string();
        let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        out.set_text("base/0/head", &bytes);
        out
    }
}

/// A merged model, its record with the adapters inside, and a place for crafted ones.
struct Made {
    scratch: Scratch,
    base: PathBuf,
    parts: Parts,
}

impl Made {
    fn new(case: &str) -> Made {
        let case = cases("peft").into_iter().find(|c| c.name == case).unwrap();
        let scratch = Scratch::new();
        let record = scratch.join("good.undo");
        let more = ["--undo-embed", "always", "--allow-nonfinite"];
        merge(&case.base(), &[case.adapter().into()], &scratch.join("merged"), &record, &more).expect(0);
        Made { base: case.base(), parts: Parts::of(&record), scratch }
    }

    /// What comes of a record; nothing may be left behind, and nothing written elsewhere.
    fn try_undo(&self, parts: &Parts) -> Result<()> {
        let record = self.scratch.join("bad.undo");
        parts.seal(&record);
        let out = self.scratch.join("inside/out");
        let _ = fs::remove_dir_all(self.scratch.join("inside"));
        fs::create_dir(self.scratch.join("inside")).unwrap();
        let began = Instant::now();
        let result = undo(&self.scratch.join("merged"), &record, &out);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?} for {result:?}", began.elapsed());
        assert_eq!(names(&self.scratch.join(".")), ["bad.undo", "good.undo", "inside", "merged"], "{result:?}");
        let wanted: &[&str] = if result.is_ok() { &["out"] } else { &[] };
        assert_eq!(names(&self.scratch.join("inside")), wanted, "{result:?}");
        result
    }

    #[track_caller]
    fn refused(&self, parts: &Parts, word: &str) -> Error {
        let e = self.try_undo(parts).expect_err(word);
        assert!(e.to_string().contains(word), "expected `{word}` in: {e}");
        e
    }

    /// The program, with little memory.
    fn run_small(&self, parts: &Parts) -> Ran {
        let record = self.scratch.join("bad.undo");
        parts.seal(&record);
        let script = "ulimit -v 1000000 && exec \"$0\" unmerge \"$1\" -o \"$2\" --undo \"$3\" --no-sync --threads 2";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(PROGRAM);
        command.arg(self.scratch.join("merged")).arg(self.scratch.join("out")).arg(record);
        command.output().expect("a shell").into()
    }
}

/// Bytes of a piece in the table: a hash, a checksum, a length.
const PIECE_BYTES: usize = 56;

#[test]
fn taken_apart_and_put_together_it_still_works() {
    for case in ["lora", "dora", "phi3", "mixtral_both", "grown", "tied_lm_head", "vera_seed"] {
        let made = Made::new(case);
        made.try_undo(&made.parts).unwrap();
        assert_same(&made.scratch.join("inside/out"), &made.base);
        made.try_undo(&made.parts.with_manifest(|_| ())).unwrap();
        assert_same(&made.scratch.join("inside/out"), &made.base);
    }
}

#[test]
fn sections_that_are_missing_or_no_sections() {
    let made = Made::new("lora");
    let names: Vec<_> = made.parts.sections.iter().map(|(name, _)| name.clone()).collect();
    for name in &names {
        let mut parts = made.parts.clone();
        parts.sections.retain(|(n, _)| n != name);
        made.refused(&parts, if name.starts_with("adapter") { "no such section" } else { name });
        let mut parts = made.parts.clone();
        parts.section(name).clear();
        made.try_undo(&parts).expect_err(name);
        let mut parts = made.parts.clone();
        parts.section(name).pop();
        made.try_undo(&parts).expect_err(name);
        let mut parts = made.parts.clone();
        *parts.section(name) = b"not what it should be".to_vec();
        made.try_undo(&parts).expect_err(name);
    }
    let mut parts = made.parts.clone();
    parts.set_text("manifest", "[".repeat(100_000).as_bytes());
    made.refused(&parts, "cannot be understood");
    parts.set_text("manifest", b"{}");
    made.refused(&parts, "missing field");
}

#[test]
fn names_that_lead_out_of_the_folder() {
    let made = Made::new("lora");
    let absolute = made.scratch.join("evil").display().to_string();
    for name in ["../evil", &absolute, "a/../../evil", "", ".", "..", "./../evil"] {
        made.refused(&made.parts.with_manifest(|m| m["base"][0]["name"] = json!(name)), "a file of the name");
        let with_text = made.parts.with_manifest(|m| m["texts"][0] = json!(name));
        made.refused(&with_text, "a file of the name");
        // A side file is looked for beside the merged model and nowhere else.
        let side = made.parts.with_manifest(|m| m["sides"].as_array_mut().unwrap().push(json!([name, "0"])));
        made.try_undo(&side).unwrap();
    }
    made.refused(&made.parts.with_manifest(|m| m["base"][0]["name"] = json!("sub/model.safetensors")), "of the name");
    let twice = made.parts.with_manifest(|m| m["base"][1]["name"] = m["base"][0]["name"].clone());
    made.refused(&twice, "two files of the name");
    let text = made.parts.with_manifest(|m| m["texts"][0] = m["base"][0]["name"].clone());
    made.refused(&text, "two files of the name");
    // An adapter by its name in the record's folder.
    let path = made.parts.with_manifest(|m| {
        m["adapters"][0]["name"] = json!("../../../../etc/passwd");
        m["adapters"][0]["path"] = json!("/nowhere/\u{1b}[31m");
    });
    let said = made.run_small(&path).expect(1);
    assert!(said.err.contains("is needed") && !said.err.contains('\u{1b}'), "{}", said.err);
}

#[test]
fn numbers_that_are_too_large() {
    let huge = [usize::MAX, usize::MAX / 2, 1 << 40, 100_000];
    for case in ["lora", "phi3", "mixtral_both", "qwen3_moe_both", "vera_seed", "waveft", "fourierft"] {
        let made = Made::new(case);
        let tensors = made.parts.clone().manifest()["tensors"].as_array().unwrap().len();
        let has_edits = |m: &Value, n: usize| m["tensors"][n].get("edits").is_some();
        let mut tried = 0;
        for n in (0..tensors).filter(|&n| has_edits(&made.parts.clone().manifest(), n)).take(2) {
            tried += 1;
            for number in huge {
                for field in ["first", "step", "count"] {
                    let parts = made.parts.with_manifest(|m| m["tensors"][n]["blocks"][field] = json!(number));
                    made.try_undo(&parts).expect_err(field);
                }
                let edit = |change: &dyn Fn(&mut Value)| {
                    made.parts.with_manifest(|m| change(&mut m["tensors"][n]["edits"][0]))
                };
                made.try_undo(&edit(&|e| e["adapter"] = json!(number))).expect_err("an adapter");
                for region in ["memory", "disk"] {
                    let _ = made.try_undo(&edit(&|e| e[region][0] = json!(number)));
                    for axis in [1, 2] {
                        for range in [(0, number), (number, number), (number, 0), (number - 1, number)] {
                            let range = json!({ "start": range.0, "end": range.1 });
                            let _ = made.try_undo(&edit(&|e| e[region][axis] = range.clone()));
                        }
                    }
                }
                for shape in
                    [vec![number], vec![number, number], vec![number, 1], vec![1, number], vec![0, number, number]]
                {
                    made.try_undo(&edit(&|e| e["stored"] = json!(shape))).expect_err("a shape");
                }
            }
        }
        assert!(tried > 0, "{case}");
    }
}

#[test]
fn words_that_are_others() {
    for case in ["lora", "dora", "oft", "bias_all", "grown"] {
        let made = Made::new(case);
        let tensors = made.parts.clone().manifest()["tensors"].as_array().unwrap().len();
        for n in (0..tensors).step_by(2) {
            for how in ["same", "sum", "steps", "near", "stored"] {
                let parts = made.parts.with_manifest(|m| m["tensors"][n]["how"] = json!(how));
                // That a changed tensor did not change is a lie that nothing contradicts.
                if made.try_undo(&parts).is_ok() && how != "same" {
                    assert_same(&made.scratch.join("inside/out"), &made.base);
                }
            }
        }
        for dtype in ["F4", "F6_E2M3", "F8_E8M0", "BOOL", "U8", "I32", "F64", "C64", "BF16", "F16", "F32"] {
            let parts = made.parts.with_head(|head| {
                head.as_object_mut().unwrap().values_mut().filter(|t| t.get("dtype").is_some()).for_each(|t| {
                    t["dtype"] = json!(dtype);
                });
            });
            let _ = made.try_undo(&parts);
            // The same number of bytes, and so a head that is in order.
            let parts = made.parts.with_head(|head| {
                for tensor in head.as_object_mut().unwrap().values_mut().filter(|t| t.get("dtype").is_some()) {
                    let range = &tensor["data_offsets"];
                    let bytes = range[1].as_u64().unwrap() - range[0].as_u64().unwrap();
                    let bits = match dtype {
                        "F4" => 4,
                        "F6_E2M3" => 6,
                        "F64" | "C64" => 64,
                        "F32" | "I32" => 32,
                        "F16" | "BF16" => 16,
                        _ => 8,
                    };
                    tensor["dtype"] = json!(dtype);
                    tensor["shape"] = json!([8 * bytes / bits]);
                }
            });
            let _ = made.try_undo(&parts);
        }
    }
}

#[test]
fn shapes_without_elements() {
    let made = Made::new("lora");
    for shape in [json!([0, 1u64 << 40, 1u64 << 40]), json!([0]), json!([]), json!([1, 0, 7])] {
        let parts = made.parts.with_head(|head| {
            for tensor in head.as_object_mut().unwrap().values_mut().filter(|t| t.get("dtype").is_some()) {
                tensor["shape"] = shape.clone();
                tensor["data_offsets"] = json!([0, 0]);
            }
        });
        made.try_undo(&parts).expect_err("a shape");
    }
}

/// Sections of a few bytes that unpack to very many, and tensors that are nowhere.
#[test]
fn what_grows_is_refused_before_memory_is_taken() {
    let made = Made::new("lora");
    let bomb = zstd::bulk::compress(&vec![b' '; 1 << 30], 3).unwrap();
    assert!(bomb.len() < 200_000, "{} bytes", bomb.len());
    for name in ["manifest", "base/0/head", "text/model.safetensors.index.json"] {
        let mut parts = made.parts.clone();
        *parts.section(name) = bomb.clone();
        let e = made.refused(&parts, "another size than it can have");
        assert!(!e.to_string().contains("memory"), "{e}");
        made.run_small(&parts).expect(1);
    }
    // A frame that says nothing of its size, or lies about it.
    let mut parts = made.parts.clone();
    let text = parts.text("manifest");
    *parts.section("manifest") = zstd::stream::encode_all(text.as_slice(), 1).unwrap();
    made.refused(&parts, "another size than it can have");
    // Corrections that unpack to more than their piece could need: all of them in the place of the first.
    let mut parts = made.parts.clone();
    let mut table = parts.section("pieces").clone();
    parts.corrections = bomb.clone();
    for (number, row) in table.chunks_exact_mut(PIECE_BYTES).enumerate() {
        let packed = if number == 0 { bomb.len() as u64 } else { 0 };
        row[48..].copy_from_slice(&packed.to_le_bytes());
    }
    *parts.section("pieces") = table;
    made.try_undo(&parts).expect_err("corrections");
    made.run_small(&parts).expect(1);
    // Stored tensors that share their pieces.
    let parts = made.parts.with_manifest(|m| {
        let first = m["tensors"][0]["blocks"].clone();
        m["tensors"].as_array_mut().unwrap().iter_mut().for_each(|t| t["blocks"] = first.clone());
    });
    made.try_undo(&parts).expect_err("shared pieces");
    // A stored tensor of eight terabytes.
    let parts = made.parts.with_head(|head| {
        for (_, tensor) in head.as_object_mut().unwrap().iter_mut().filter(|(key, _)| *key != "__metadata__") {
            *tensor = json!({ "dtype": "U8", "shape": [1u64 << 43], "data_offsets": [0, 1u64 << 43] });
        }
    });
    made.try_undo(&parts).expect_err("a large tensor");
    made.run_small(&parts).expect(1);
}

#[test]
fn corrections_of_another_length_or_content() {
    for case in ["lora", "dora", "tied_lm_head", "bf16"] {
        let made = Made::new(case);
        let rows = made.parts.clone().section("pieces").len() / PIECE_BYTES;
        for number in 0..rows {
            for packed in [0, 1, 7, u64::MAX, 1 << 40] {
                let mut parts = made.parts.clone();
                let row = &mut parts.section("pieces")[number * PIECE_BYTES..][..PIECE_BYTES];
                if row[48..] == packed.to_le_bytes() {
                    continue;
                }
                row[48..].copy_from_slice(&packed.to_le_bytes());
                made.try_undo(&parts).expect_err("a length");
            }
        }
        let mut parts = made.parts.clone();
        parts.corrections.pop();
        if !made.parts.corrections.is_empty() {
            made.try_undo(&parts).expect_err("cut short");
            let mut parts = made.parts.clone();
            parts.corrections.iter_mut().for_each(|b| *b ^= 0x55);
            made.try_undo(&parts).expect_err("others");
        }
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

/// Alters one value somewhere in a document.
fn alter(value: &mut Value, dice: &mut Dice) {
    let inner = match value {
        Value::Array(all) if !all.is_empty() => {
            let n = dice.below(all.len());
            match dice.below(12) {
                0 => return drop(all.remove(n)),
                1 => return all.push(all[n].clone()),
                2 => return all.reverse(),
                _ => all.get_mut(n),
            }
        }
        Value::Object(all) if !all.is_empty() => {
            let key = all.keys().nth(dice.below(all.len())).unwrap().clone();
            if dice.below(20) == 0 {
                return drop(all.remove(&key));
            }
            all.get_mut(&key)
        }
        _ => None,
    };
    if let Some(inner) = inner {
        return alter(inner, dice);
    }
    let numbers = [0, 1, 2, 3, 7, 8, 16, 255, 1 << 16, 1 << 32, 1 << 33, 1 << 62, 1 << 63, u64::MAX];
    let words =
        ["", ".", "../x", "a", "F4", "BOOL", "F64", "sum", "steps", "near", "stored", "same", "\0", "peft", "é"];
    *value = match (&*value, dice.below(8)) {
        (Value::Number(n), 0) => json!(n.as_u64().unwrap_or(0).wrapping_add(1)),
        (Value::Number(n), 1) => json!(n.as_u64().unwrap_or(1).wrapping_sub(1)),
        (Value::Number(n), 2) => json!(-n.as_f64().unwrap_or(1.0)),
        (Value::Number(_), _) => json!(numbers[dice.below(numbers.len())]),
        (Value::String(text), 0) => json!(format!("{text}x")),
        (Value::String(_), _) => json!(words[dice.below(words.len())]),
        (Value::Bool(b), 0..=5) => json!(!b),
        (Value::Null, 0..=3) => json!({ "start": dice.below(20), "end": dice.below(20) }),
        (Value::Null, 4..=6) => json!(dice.below(20)),
        _ => Value::Null,
    };
}

#[test]
fn altered_documents_never_end_in_a_panic() {
    let mut dice = Dice(2024);
    let (mut refused, mut accepted) = (0, 0);
    for case in
        ["lora", "phi3", "qwen3_moe_both", "dora", "vera_seed", "oft", "grown", "tied_both", "resnet_lokr", "waveft"]
    {
        let made = Made::new(case);
        for _ in 0..40 {
            let mut parts = made.parts.clone();
            for _ in 0..=dice.below(3) {
                parts = match dice.below(10) {
                    0 | 1 => parts.with_head(|head| alter(head, &mut dice)),
                    2 => {
                        let table = parts.section("pieces");
                        let (at, bit) = (dice.below(table.len()), dice.below(8));
                        table[at] ^= 1 << bit;
                        parts
                    }
                    3 if parts.sections.iter().any(|(name, _)| name == "adapter/0") => {
                        let file = parts.section("adapter/0");
                        let (at, bit) = (dice.below(file.len()), dice.below(8));
                        file[at] ^= 1 << bit;
                        parts
                    }
                    4 if !parts.corrections.is_empty() => {
                        let (at, bit) = (dice.below(parts.corrections.len()), dice.below(8));
                        parts.corrections[at] ^= 1 << bit;
                        parts
                    }
                    _ => parts.with_manifest(|manifest| alter(manifest, &mut dice)),
                };
            }
            match made.try_undo(&parts) {
                Ok(()) => accepted += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 150 && accepted > 10, "{refused} refused, {accepted} accepted");
}

#[test]
fn another_file_in_the_place_of_the_record() {
    let scratch = Scratch::new();
    let (out, record) = (scratch.join("out"), scratch.join("base.undo"));
    merge(&base("llama"), &[adapter("lora").into()], &out, &record, &[]).expect(0);
    let shard = out.join(names(&out).into_iter().find(|n| n.ends_with(".safetensors")).unwrap());
    let config = out.join("config.json");
    let empty = scratch.join("empty");
    fs::write(&empty, "").unwrap();
    for (path, word) in [
        (&shard, "not an undo record"),
        (&config, "config.json"),
        (&out, "out"),
        (&empty, "too short"),
        (&scratch.join("none"), "none"),
        (&adapter("lora").join("adapter_model.safetensors"), "not an undo record"),
    ] {
        let said = unmerge(&out, &scratch.join("back"), path, &[]).expect(1);
        assert!(said.err.contains(word), "expected `{word}` in {}", said.err);
    }
    // The record in the place of the model, and of both.
    for (model, word) in [(&record, "not the model"), (&adapter("lora"), "adapter")] {
        let said = unmerge(model, &scratch.join("back"), &record, &[]).expect(1);
        assert!(said.err.contains(word), "expected `{word}` in {}", said.err);
    }
    assert_eq!(names(&scratch.join(".")), ["base.undo", "empty", "out"]);
    assert!(contents(&out).len() > 3);
}

#[test]
fn records_of_another_version_are_refused_by_name() {
    let made = Made::new("lora");
    let path = made.scratch.join("bad.undo");
    made.parts.seal(&path);
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(13).position(|w| w == b"\"version\":\"2\"").unwrap();
    let mut other = bytes.clone();
    other[at + 11] = b'3';
    fs::write(&path, other).unwrap();
    let e = Record::open(&path).unwrap_err();
    assert!(e.to_string().contains("version 3"), "{e}");
}
