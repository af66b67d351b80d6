//! An undo record whose seal fits, whatever it says: nothing but an error, or a base beside the merged model.
//!
//! An input is the text of a record's sections, each below a line with its name and how it is written there (`== NAME WORD…`):
//! `hex`, `head` (JSON, which gets its length in front), and `packed` where the record has it compressed.

use std::path::{Path, PathBuf};

use lora_tool::container::undo::{Record, RecordWriter};
use lora_tool::error::Result;
use lora_tool::kernels::OpenBlas;
use lora_tool::layout::{self, Source};
use lora_tool::model::BaseModel;
use lora_tool::ops::merge::{self, Applied};
use lora_tool::ops::undo::Restore;
use lora_tool::stream::{Unwatched, Watch};

use super::support::{Place, file_of, floats, writing};

/// Begins the line of a section's name.
pub const MARK: &str = "== ";
/// The section that a record writes piece by piece, which is the first.
pub const CORRECTIONS: &str = "corrections";

pub fn one(data: &[u8]) {
    let place = Place::new();
    let merged = made(&place).2;
    let record = place.join("record.undo");
    if sealed(&record, data).is_none() {
        place.put("record.undo", data);
    }
    let before = names(place.path());
    let is_restored = undo(&merged, &record, &place.join("out/base.safetensors")).is_ok();
    let mut after = names(place.path());
    after.retain(|name| !is_restored || name != "base.safetensors");
    assert_eq!(after, before, "something was left behind");
}

/// A base, an adapter and the model merged from them: the same in every run, so that a record of them fits.
pub fn made(place: &Place) -> (PathBuf, PathBuf, PathBuf) {
    std::fs::create_dir_all(place.join("out")).unwrap();
    let ramp = |from: f32, n: usize| floats(&(0..n).map(|i| from + i as f32 / 7.0).collect::<Vec<_>>());
    let weight = "model.layers.0.self_attn.q_proj.weight";
    let base = place.put(
        "start.safetensors",
        &file_of(&[(weight, "F32", vec![4, 4], ramp(-1.0, 16)), ("model.norm.weight", "F32", vec![4], ramp(1.0, 4))]),
    );
    let key = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
    let (a, b) = (key("A"), key("B"));
    let factors =
        file_of(&[(a.as_str(), "F32", vec![2, 4], ramp(0.1, 8)), (b.as_str(), "F32", vec![4, 2], ramp(-0.3, 8))]);
    place.put("adapter/adapter_model.safetensors", &factors);
    place.put("adapter/adapter_config.json", br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 3}"#);
    let (adapter, merged) = (place.join("adapter"), place.join("merged.safetensors"));
    let (model, opened) = (BaseModel::open(&base).unwrap(), layout::open(&adapter, None).unwrap());
    let applied = [Applied { label: String::new(), strength: 1.0, adapter: &opened.adapter, identity: None }];
    let merge = merge::merge(&model, &applied, &merge::Options::default()).unwrap();
    merge.output.write(&merged, writing(), &OpenBlas::new(), &Unwatched).unwrap();
    (base, adapter, merged)
}

/// Writes a record of these sections with a seal that fits; none where that is no record.
fn sealed(path: &Path, data: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(data).ok()?;
    let mut sections: Vec<(&str, Vec<u8>)> = Vec::new();
    for section in text.split(MARK).skip(1) {
        let (line, content) = section.split_once('\n')?;
        let mut words = line.split(' ');
        sections.push((words.next()?, content_of(&words.collect::<Vec<_>>(), content.trim_end())));
    }
    let at = sections.iter().position(|(name, _)| *name == CORRECTIONS);
    let corrections = at.map(|at| sections.remove(at).1).unwrap_or_default();
    let (names, contents): (Vec<&str>, Vec<Vec<u8>>) = sections.into_iter().unzip();
    let writer = RecordWriter::create(path, &names).ok()?;
    let written = writer.put(0, &corrections).and_then(|()| writer.finish(&contents, false));
    if written.is_err() {
        let _ = std::fs::remove_file(path);
    }
    written.ok().map(drop)
}

fn content_of(words: &[&str], content: &str) -> Vec<u8> {
    let mut out = content.as_bytes().to_vec();
    if words.contains(&"hex") {
        let digits: Vec<u8> = content.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        out = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    }
    if words.contains(&"head") {
        out = [&(out.len() as u64).to_le_bytes()[..], &out].concat();
    }
    if words.contains(&"packed") { zstd::bulk::compress(&out, 1).unwrap() } else { out }
}

/// What `unmerge --undo` does, of a record that holds its adapters.
fn undo(merged: &Path, record: &Path, out: &Path) -> Result<()> {
    let restore = Restore::new(Record::open(record)?)?;
    let merged = BaseModel::open(merged)?;
    let mut adapters = Vec::new();
    for (number, note) in restore.adapters().iter().enumerate() {
        let source = Source::within(record, &restore.embedded(number)?, note.config.clone(), note.aside.as_ref())?;
        adapters.push(layout::open_source(source, Some(&note.layout))?.adapter);
    }
    let undone = restore.plan(&merged, adapters)?;
    undone.output.check(out, &[&merged.path, record], false)?;
    let writing = lora_tool::stream::Writing { replace: false, ..writing() };
    let pending = undone.output.begin(out, writing, true)?;
    undone.check.rest(1, &Unwatched)?;
    let watch = Watch { progress: &Unwatched, witness: Some(&undone.check) };
    undone.output.fill(&pending, writing, &OpenBlas::new(), watch)?;
    pending.commit()
}

/// Names of all files below a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            out.push(entry.file_name().to_string_lossy().into_owned());
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    out.sort();
    out
}
