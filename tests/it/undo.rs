//! Undo records: what is merged comes back to the last bit, one adapter can be taken out by itself, whatever was altered
//! is noticed, and neither a stranger's record nor an end in the middle does harm.

mod crafted;
mod detection;
mod faults;
mod pairs;
mod roundtrip;
mod selective;
mod sizes;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use lora_tool::container::undo::Record;
use lora_tool::error::Result;
use lora_tool::kernels::OpenBlas;
use lora_tool::layout::{self, Source};
use lora_tool::model::BaseModel;
use lora_tool::ops::undo::Restore;
use lora_tool::stream::{Limits, Resuming, Unwatched, Watch, Writing};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::fixtures;
use crate::program::{Ran, command};

/// A base of the fixtures.
fn base(name: &str) -> PathBuf {
    fixtures::root().join("models").join(name)
}

/// An adapter of the fixtures.
fn adapter(name: &str) -> PathBuf {
    fixtures::root().join("adapters/peft").join(name)
}

/// An adapter with a strength behind it.
fn at(adapter: &Path, strength: f64) -> OsString {
    let mut out = adapter.to_path_buf().into_os_string();
    out.push(format!("@{strength}"));
    out
}

/// `merge BASE ADAPTERS -o OUT --undo RECORD`, not waiting for the disk.
fn merge(base: &Path, adapters: &[OsString], out: &Path, record: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("merge").arg(base).args(adapters).arg("-o").arg(out).arg("--no-sync").args(more);
    command.arg("--undo").arg(record).output().expect("the program starts").into()
}

/// The same without a record.
fn merge_plainly(base: &Path, adapters: &[OsString], out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("merge").arg(base).args(adapters).arg("-o").arg(out).arg("--no-sync").args(more);
    command.output().expect("the program starts").into()
}

/// `unmerge MERGED -o OUT --undo RECORD`, not waiting for the disk.
fn unmerge(merged: &Path, out: &Path, record: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("unmerge").arg(merged).arg("-o").arg(out).arg("--no-sync").args(more);
    command.arg("--undo").arg(record).output().expect("the program starts").into()
}

/// Every file below a folder, or the file itself, with its bytes.
fn contents(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, inside: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(root.join(inside)).expect("a folder") {
            let entry = entry.expect("an entry");
            let relative = inside.join(entry.file_name());
            if entry.path().is_dir() {
                walk(root, &relative, out);
            } else {
                out.insert(relative, fs::read(entry.path()).expect("a file"));
            }
        }
    }
    let mut out = BTreeMap::new();
    if path.is_dir() {
        walk(path, Path::new(""), &mut out);
    } else {
        out.insert(PathBuf::new(), fs::read(path).expect("a file"));
    }
    out
}

/// What is different between two models, in words; nothing where every file agrees to the last bit.
fn differences(found: &Path, wanted: &Path) -> Vec<String> {
    let (found, wanted) = (contents(found), contents(wanted));
    let all: std::collections::BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let difference = |name: &&PathBuf| match (found.get(*name), wanted.get(*name)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) => {
            let first = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
            Some(format!("{}: differs from byte {first} on ({} and {} bytes)", name.display(), a.len(), b.len()))
        }
        (None, _) => Some(format!("{} is missing", name.display())),
        (_, None) => Some(format!("{} should not be there", name.display())),
    };
    all.iter().filter_map(difference).collect()
}

#[track_caller]
fn assert_same(found: &Path, wanted: &Path) {
    let all = differences(found, wanted);
    assert!(all.is_empty(), "{} against {}:\n{}", found.display(), wanted.display(), all.join("\n"));
}

/// Does `work` for every item on all cores and collects what it has to say.
fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Vec<String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let run = || {
        let mut said = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            said.extend(work(item));
        }
        said
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a thread that ends well")).collect()
    })
}

/// A tensor by its bytes.
struct Raw {
    key: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn raw(key: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Raw {
    Raw { key, dtype, shape: shape.to_vec(), bytes }
}

/// Writes tensors as they are.
fn write_raw(path: &Path, tensors: &[Raw]) {
    let views = tensors
        .iter()
        .map(|t| (t.key, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes that fit the shape")));
    safetensors::serialize_to_file(views, None, path).expect("a written file");
}

fn copy_folder(from: &Path, to: &Path) {
    for (name, bytes) in contents(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, bytes).expect("a written file");
    }
}

/// A copy of a model with its floating-point tensors in another type.
fn cast_copy(from: &Path, to: &Path, dtype: Dtype) {
    copy_folder(from, to);
    for name in contents(from).keys().filter(|n| n.extension().is_some_and(|e| e == "safetensors")) {
        let bytes = fs::read(from.join(name)).expect("a file");
        let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
        let mut model = crate::models::read(&from.join(name));
        model.values_mut().for_each(|values| values.dtype = dtype);
        crate::models::write(&to.join(name), &model, metadata.metadata().clone());
    }
}

/// What `unmerge --undo` does, without the program around it; for records that hold their adapters.
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
    let limits = Limits { threads: 1, memory: 64 << 20 };
    let writing = Writing { replace: false, sync: false, limits, resuming: Resuming::Never };
    let pending = undone.output.begin(out, writing, true)?;
    undone.check.rest(1, &Unwatched)?;
    let watch = Watch { progress: &Unwatched, witness: Some(&undone.check) };
    undone.output.fill(&pending, writing, &OpenBlas::new(), watch)?;
    pending.commit()
}
