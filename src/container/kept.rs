//! What stays of a folder that a new result takes the place of: everything that is not part of the old one.
//!
//! Part of a result are the weights, by what an index says of them and by the names that weights have; the settings and
//! texts that go along with a model; an undo record. Whatever else lies there is somebody's, and goes into the new folder
//! as a further name of the same file: nothing is copied, and until the old folder goes there are both. A name that the
//! new result has itself is replaced.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use super::sharded::named_by;
use super::{folder, undo};
use crate::error::{Context, Error, Result};
use crate::limits;

/// How weights are called, before numbers and endings.
const STEMS: [&str; 9] = [
    "model",
    "adapter_model",
    "pytorch_model",
    "diffusion_pytorch_model",
    "pytorch_lora_weights",
    "consolidated",
    "adapters",
    "adapter",
    "tf_model",
];
/// Endings of weights.
const WEIGHTS: [&str; 8] = [".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".h5", ".msgpack"];
/// Settings and texts of models and adapters.
const TEXTS: [&str; 25] = [
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "feature_extractor.json",
    "generation_config.json",
    "lora_config.json",
    "merges.txt",
    "model_config.yaml",
    "model_index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "scheduler_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Gives everything in `old` that is no part of a result a name in `new` as well.
pub fn keep_others(old: &Path, new: &Path) -> Result<()> {
    let mut left = limits::KEPT_FILES;
    keep(old, new, &mut left)
}

fn keep(old: &Path, new: &Path, left: &mut usize) -> Result<()> {
    let names = folder::names(old).map_err(|e| Error::io("cannot list", e)).in_file(old)?;
    let texts: Vec<_> = names.iter().filter_map(|name| name.to_str()).collect();
    let mut of_result: BTreeSet<String> = texts.iter().filter(|n| is_of_a_result(n)).map(ToString::to_string).collect();
    for index in texts.iter().filter(|name| name.contains(".safetensors.index.")) {
        of_result.insert((*index).to_string());
        of_result.extend(named_by(&old.join(index)));
    }
    // What would be opened as the model if it were called anything.
    if let [only] = texts.iter().filter(|n| n.ends_with(".safetensors")).collect::<Vec<_>>().as_slice() {
        of_result.insert((**only).to_string());
    }
    for name in &names {
        let (from, to) = (old.join(name), new.join(name));
        let is_folder = is_folder(&from)?;
        if folder::is_there(&to)? {
            if is_folder && self::is_folder(&to)? {
                keep(&from, &to, left)?;
            }
        } else if is_folder {
            take_along(&from, &to, left)?;
        } else if !name.to_str().is_some_and(|name| of_result.contains(name)) && !is_record(&from) {
            link(&from, &to, left)?;
        }
    }
    Ok(())
}

/// A folder with all that is in it.
fn take_along(from: &Path, to: &Path, left: &mut usize) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("cannot be kept in the folder that is replaced", e).in_file(from);
    fs::create_dir(to).map_err(fail)?;
    for name in folder::names(from).map_err(fail)? {
        let (from, to) = (from.join(&name), to.join(&name));
        match is_folder(&from)? {
            true => take_along(&from, &to, left)?,
            false => link(&from, &to, left)?,
        }
    }
    let mode = from.symlink_metadata().map_err(fail)?.permissions();
    fs::set_permissions(to, mode).map_err(fail)
}

fn link(from: &Path, to: &Path, left: &mut usize) -> Result<()> {
    *left = left.checked_sub(1).ok_or_else(|| {
        Error::too_many(limits::KEPT_FILES, "other files in the folder that is to be replaced")
            .in_file(from)
            .hint("choose another name, or empty the folder")
    })?;
    // Of a link the link itself: that is what the call does.
    fs::hard_link(from, to).map_err(|e| {
        Error::io("cannot be kept in the folder that is replaced", e)
            .in_file(from)
            .hint("move it elsewhere, or choose another output")
    })
}

fn is_folder(path: &Path) -> Result<bool> {
    let about = path.symlink_metadata().map_err(|e| Error::io("cannot tell what it is", e).in_file(path))?;
    Ok(about.is_dir())
}

fn is_of_a_result(name: &str) -> bool {
    let is_weights = || {
        let stem = WEIGHTS.iter().find_map(|ending| name.strip_suffix(ending))?;
        let stem =
            stem.split_once("-of-").map_or(stem, |(before, _)| before.trim_end_matches(|c: char| c.is_ascii_digit()));
        let stem = stem.trim_end_matches(['-', '.']);
        // `model.fp16`, `model-00001`
        let base = stem.split_once('.').map_or(stem, |(base, _)| base);
        STEMS.contains(&base).then_some(())
    };
    TEXTS.contains(&name) || is_weights().is_some()
}

fn is_record(path: &Path) -> bool {
    let mut begin = Vec::new();
    let is_file = path.symlink_metadata().is_ok_and(|about| about.is_file());
    let mut read = || fs::File::open(path).and_then(|file| file.take(undo::BEGIN_BYTES).read_to_end(&mut begin));
    is_file && read().is_ok() && undo::begins(&begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_part_of_a_result_is_known_by_its_name() {
        let parts = [
            "model-00001-of-00003.safetensors",
            "model.fp16.safetensors",
            "pytorch_model.bin",
            "vocab.txt",
            "adapter_model.safetensors",
            "diffusion_pytorch_model.non_ema.safetensors",
            "consolidated.00.pth",
        ];
        for name in parts {
            assert!(is_of_a_result(name), "{name}");
        }
        for name in [
            "thesis.txt",
            "README.md",
            "training_args.bin",
            "my-model.safetensors",
            "notes.json",
            ".git",
            "models.safetensors",
        ] {
            assert!(!is_of_a_result(name), "{name}");
        }
    }

    #[test]
    fn the_rest_is_in_both_folders_until_the_old_one_goes() {
        let root = std::env::temp_dir().join(format!("lora-tool-kept-{}", std::process::id()));
        let _ = folder::remove(&root);
        let (old, new) = (root.join("old"), root.join("new"));
        for folder in [old.join(".git/objects"), old.join("unet"), new.join("unet")] {
            fs::create_dir_all(folder).unwrap();
        }
        let index = r#"{"weight_map": {"a": "part-one.safetensors"}}"#;
        let theirs = ["thesis.txt", ".git/objects/ab", "unet/notes", "other.safetensors"];
        let ours = ["part-one.safetensors", "config.json", "unet/model.safetensors", "tokenizer.json"];
        for name in theirs.iter().chain(&ours) {
            fs::write(old.join(name), format!("old {name}")).unwrap();
        }
        fs::write(old.join("model.safetensors.index.json"), index).unwrap();
        std::os::unix::fs::symlink("nowhere", old.join("link")).unwrap();
        fs::write(new.join("config.json"), b"new").unwrap();
        keep_others(&old, &new).unwrap();
        folder::remove(&old).unwrap();
        for name in theirs {
            assert_eq!(fs::read_to_string(new.join(name)).unwrap(), format!("old {name}"));
        }
        assert_eq!(fs::read_link(new.join("link")).unwrap(), Path::new("nowhere"));
        assert_eq!(fs::read(new.join("config.json")).unwrap(), b"new");
        let names = folder::names(&new).unwrap();
        assert_eq!(names, [".git", "config.json", "link", "other.safetensors", "thesis.txt", "unet"]);
        assert_eq!(folder::names(&new.join("unet")).unwrap(), ["notes"]);
        folder::remove(&root).unwrap();
    }
}
