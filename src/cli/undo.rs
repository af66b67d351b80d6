//! What the commands share that write undo records or use them.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Value, json};

use super::args::spelt_for;
use super::loaded::{Loaded, last_name};
use super::{output, size};
use crate::adapter::Adapter;
use crate::container::atomic::{self, Form, Pending, commit_all};
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::Kernels;
use crate::layout::{self, Given, Opened, Source};
use crate::model::BaseModel;
use crate::ops::merge::Merge;
use crate::ops::shares::Shares;
use crate::ops::undo::{About, AdapterNote, MergeOptions, Pair, Recorder, Restore};
use crate::stream::{Building, Outcomes, Progress, Watch, Writing};
use crate::tensor::{Hash, MappedFile, dtype};

/// An adapter up to this size goes into the record.
const SMALL_BYTES: u64 = 64 << 10;
/// So does one of up to this share (1 in …) of the tensors it changes.
const SMALL_SHARE: u64 = 80;

/// When adapters are put into a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Embed {
    /// Adapters that are small beside the tensors they change
    #[default]
    Auto,
    /// All
    Always,
    /// None: the record says where they are
    Never,
}

/// A record that will be written.
pub struct Recording {
    path: PathBuf,
    about: About,
    /// Its name in the output folder, where it goes in there.
    inside: Option<PathBuf>,
    replace: bool,
    touched: u64,
}

/// A record that was written.
pub struct Written {
    path: PathBuf,
    bytes: u64,
    touched: u64,
    named: Vec<String>,
}

impl Recording {
    /// A record at `path` of adapters merged into `base`. `touched` are the bytes of the tensors that change, `out` is
    /// the model's folder where it is one.
    pub fn new(
        path: &Path,
        base: &BaseModel,
        loaded: &[Loaded],
        (touched, embed): (u64, Embed),
        options: MergeOptions,
    ) -> Result<Recording> {
        let mut about = About {
            tool: format!("lora-tool {}", env!("CARGO_PKG_VERSION")),
            name: last_name(&base.path),
            options,
            ..About::default()
        };
        for (number, l) in loaded.iter().enumerate() {
            let source = &l.opened.source;
            let bytes = source.tensor_bytes();
            let embed = match embed {
                Embed::Auto => bytes <= SMALL_BYTES.max(touched / SMALL_SHARE),
                Embed::Always => true,
                Embed::Never => false,
            };
            if embed {
                about.embedded.push((number, source.packed()?));
            }
            let absolute = || l.path.canonicalize().unwrap_or_else(|_| l.path.clone()).to_string_lossy().into_owned();
            about.rebuildable.push(l.opened.adapter.can_be_read_again());
            about.adapters.push(AdapterNote {
                name: last_name(&l.path),
                path: (!embed).then(absolute),
                strength: l.strength,
                weights: l.shares.words().to_vec(),
                hash: l.opened.hash().to_string(),
                settings: if embed { None } else { settings(source) },
                layout: l.opened.layout.to_string(),
                config: source.config.as_ref().filter(|_| embed).map(|(_, config)| config.clone()),
                aside: l.opened.aside(),
            });
        }
        if let Some(config) = base.config_path().filter(|_| !base.is_folder) {
            about.texts.push((crate::model::CONFIG_NAME.to_string(), read(&config)?)); // it lies beside the file
        }
        for index in &base.files.indexes {
            about.texts.push((index.name.clone(), read(&base.path.join(&index.name))?));
        }
        Ok(Recording { path: path.to_path_buf(), about, inside: None, replace: false, touched })
    }

    /// The record of a merge that is about to be written to `out`.
    pub fn of_merge(
        path: &Path,
        (out, replace): (&Path, bool),
        base: &BaseModel,
        merge: &Merge,
        loaded: &[Loaded],
        (embed, options): (Embed, MergeOptions),
    ) -> Result<Recording> {
        let changed = merge.changes.iter().filter_map(|c| base.tensor(&c.key));
        let touched = changed.map(|(_, t)| t.bytes.len() as u64).sum();
        let mut recording = Recording::new(path, base, loaded, (touched, embed), options)?;
        recording.replace = replace;
        recording.inside = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if merge.output.is_folder && same_place(parent, out) => Some(name.into()),
            _ => None,
        };
        for (name, _) in &merge.output.texts {
            let name_text = name.to_string_lossy().into_owned();
            recording.about.texts.push((name_text, read(&base.path.join(name))?));
        }
        for name in &merge.output.copies {
            let text = name.to_string_lossy().into_owned();
            // Indexes of components that stay as they are lie in the record already.
            if !recording.about.texts.iter().any(|(known, _)| *known == text) {
                recording.about.sides.push((text, hash_of(&base.path.join(name))?));
            }
        }
        Ok(recording)
    }

    /// Keeps the side files of the base that the other model does not have as they are.
    pub fn keep_sides(&mut self, base: &BaseModel, other: &BaseModel) -> Result<()> {
        let side = base.side_files()?;
        let same = |name: &Path, own: &MappedFile| {
            let theirs = MappedFile::open(&other.path.join(name)).ok().filter(|_| other.is_folder);
            theirs.is_some_and(|theirs| theirs.as_slice() == own.as_slice())
        };
        for name in side.copied {
            let own = MappedFile::open(&base.path.join(&name))?;
            let text = name.to_string_lossy().into_owned();
            if same(&name, &own) {
                self.about.sides.push((text, Hash::of(own.as_slice())));
            } else {
                self.about.texts.push((text, own.as_slice().to_vec()));
            }
        }
        // Other copies of the weights come back where the other model has them as they are.
        for name in side.left.into_iter().filter(|_| base.pipeline.is_some()) {
            let own = MappedFile::open(&base.path.join(&name))?;
            if same(&name, &own) {
                self.about.sides.push((name.to_string_lossy().into_owned(), Hash::of(own.as_slice())));
            }
        }
        Ok(())
    }

    /// Whether an existing record may be replaced.
    pub fn set_replace(&mut self, replace: bool) {
        self.replace = replace;
    }

    /// Refuses a place that is an input, the model itself or inside of it.
    pub fn check(&self, out: Option<&Path>, inputs: &[&Path]) -> Result<()> {
        if let Some(inside) = &self.inside {
            let name = inside.to_string_lossy();
            if self.about.sides.iter().any(|(side, _)| *side == *name) {
                let what = "the base has a file of this name, which goes into the output";
                return Err(Error::new(Kind::Exists, what).in_file(&self.path).hint("choose another name"));
            }
            if name.ends_with(".safetensors") || name.ends_with(".json") {
                let what = "an undo record in the model's folder would be taken for a part of the model";
                return Err(Error::new(Kind::Usage, what).in_file(&self.path).hint("call it something like base.undo"));
            }
            return Ok(());
        }
        if out.is_some_and(|out| same_place(&self.path, out)) {
            return Err(Error::new(Kind::Usage, "the undo record and the model have the same name").in_file(&self.path));
        }
        if out.is_some_and(|out| lies_below(&self.path, out)) {
            let what = "a folder of the old output, which will be replaced";
            return Err(Error::new(Kind::Usage, what)
                .in_file(&self.path)
                .hint("a record may lie directly in the output's folder, or elsewhere"));
        }
        atomic::refuse_input(&self.path, inputs)?;
        atomic::refuse_existing(&self.path, Form::File, self.replace)
    }

    /// Writes model and record; both take their names together, when all of both is there.
    pub fn write(
        self,
        (base, merge): (&BaseModel, &Merge),
        out: &Path,
        writing: Writing,
        kernels: &dyn Kernels,
        progress: &dyn Progress,
    ) -> Result<((Outcomes, u64), Option<Written>)> {
        let model = merge.output.begin(out, writing, true)?;
        let named = self.named();
        let file = match &self.inside {
            Some(_) => None,
            None => Some(Pending::new(&self.path, Form::File, writing.replace, writing.sync)?),
        };
        let pair = Pair { base, merged: &merge.output.plan, merge: Some(merge), written: true };
        let (outcomes, bytes) = file.as_ref().unwrap_or(&model.pending).build(|place| {
            let path = self.inside.as_ref().map_or_else(|| place.to_path_buf(), |name| place.join(name));
            let recorder = Recorder::new(&path, pair, self.about)?;
            let watch = Watch { progress, witness: Some(&recorder) };
            let outcomes = merge.output.fill(&model, writing, kernels, watch)?;
            Ok((outcomes, recorder.finish(writing.sync)?))
        })?;
        base.unchanged()?; // what has to be stored whole was read only now
        let found = model.found();
        commit_all(file.into_iter().chain([model.pending]).collect())?;
        Ok(((outcomes, found), Some(Written { path: self.path, bytes, touched: self.touched, named })))
    }

    /// What it says beside its corrections, for a record of a pair.
    pub fn into_about(self) -> About {
        self.about
    }

    /// The adapters that it does not hold.
    pub fn named(&self) -> Vec<String> {
        self.about.adapters.iter().filter(|a| a.path.is_some()).map(|a| a.name.clone()).collect()
    }
}

impl Written {
    /// A record of `bytes` at `path`.
    pub fn new(path: PathBuf, bytes: u64, touched: u64, named: Vec<String>) -> Written {
        Written { path, bytes, touched, named }
    }

    /// For people.
    pub fn text(&self) -> String {
        let share = 100.0 * self.share();
        let mut text = format!(
            "undo record {}: {} ({share:.2} % of the changed tensors)",
            self.path.display(),
            size::show(self.bytes)
        );
        if !self.named.is_empty() {
            text += &format!("; undoing needs {} as well (--undo-embed always puts it in)", self.named.join(", "));
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({ "file": output::path(&self.path), "bytes": self.bytes, "share": self.share(), "needs": self.named })
    }

    fn share(&self) -> f64 {
        self.bytes as f64 / (self.touched as f64).max(1.0)
    }
}

/// The options of a merge as a record has them.
pub fn options(options: &crate::ops::merge::Options) -> MergeOptions {
    let word =
        |d: dtype::Dtype| dtype::OUTPUT_NAMES.iter().find(|(_, other)| *other == d).map(|(word, _)| word.to_string());
    MergeOptions {
        allow_unmatched: options.allow_unmatched,
        allow_nonfinite: options.allow_nonfinite,
        dtype: options.dtype.and_then(word),
        max_shard_bytes: options.max_shard_bytes,
        allow_repeat: options.allow_repeat,
        allow_other_base: options.allow_other_base,
        provenance: options.provenance.clone(),
    }
}

/// The same, back again.
pub fn merge_options(options: &MergeOptions) -> crate::ops::merge::Options {
    let word = options.dtype.as_deref();
    crate::ops::merge::Options {
        allow_unmatched: options.allow_unmatched,
        allow_nonfinite: options.allow_nonfinite,
        dtype: dtype::OUTPUT_NAMES.iter().find(|(name, _)| Some(*name) == word).map(|(_, dtype)| *dtype),
        max_shard_bytes: options.max_shard_bytes,
        allow_repeat: options.allow_repeat,
        allow_other_base: options.allow_other_base,
        provenance: options.provenance.clone(),
    }
}

/// The hash of an adapter's config, whatever the order of its fields.
fn settings(source: &Source) -> Option<String> {
    let (_, config) = source.config.as_ref()?;
    let mut config = Value::Object(config.clone());
    config.sort_all_objects();
    Some(Hash::of(config.to_string().as_bytes()).to_string())
}

/// Finds the adapters of a record: in it, where they were, beside the record, or at the places given. One that is not
/// needed and not found is empty. Of those that stay, the config counts as well: nothing else would tell that it is
/// another one.
pub fn find_adapters(
    restore: &Restore,
    (record, merged): (&Path, &BaseModel),
    places: &[PathBuf],
    needed: impl Fn(usize) -> bool,
    stays: impl Fn(usize) -> bool,
) -> Result<Vec<Option<Loaded>>> {
    let find = |number: usize| -> Result<Option<Loaded>> {
        let note = &restore.adapters()[number];
        let loaded = |opened: Opened, path: PathBuf| {
            let names = (note.name.clone(), note.name.clone());
            Loaded::of(opened, names, note.strength, path, Shares::of(&note.weights)?)
        };
        let is_it = |opened: &Opened| {
            opened.hash().to_string() == note.hash && (!stays(number) || settings(&opened.source) == note.settings)
        };
        let Some(path) = &note.path else {
            let source = Source::within(record, &restore.embedded(number)?, note.config.clone(), note.aside.as_ref())?;
            let opened = layout::open_source(source, Some(&note.layout)).in_file(record)?;
            let opened = spelt_for(opened, Some(merged)).in_file(record)?;
            return loaded(opened, record.to_path_buf()).map(Some);
        };
        // A name that leads elsewhere is none of ours.
        let name = Path::new(&note.name).file_name().unwrap_or_default();
        let beside = record.parent().unwrap_or(Path::new("")).join(name);
        let mut tried = Vec::new();
        let candidates = places.iter().flat_map(|p| [p.clone(), p.join(name)]);
        for candidate in candidates.chain([PathBuf::from(path), beside]) {
            if !candidate.exists() {
                continue;
            }
            let given = note.aside.as_ref().map(|aside| Given::of_aside(aside, record)).unwrap_or_default();
            match layout::open_with(&candidate, Some(&note.layout), given) {
                Ok(opened) if is_it(&opened) => {
                    let opened = spelt_for(opened, Some(merged)).in_file(&candidate)?;
                    return loaded(opened, candidate).map(Some);
                }
                _ => tried.push(candidate.display().to_string()),
            }
        }
        if !needed(number) {
            return Ok(None);
        }
        let what = if tried.is_empty() {
            format!("the adapter {} is needed to undo its merge, and is not at {path}", note.name)
        } else {
            format!("the adapter {} is needed to undo its merge, and is another one at {}", note.name, tried.join(", "))
        };
        Err(Error::missing(what).in_file(record).hint("--look-in says where it is now"))
    };
    (0..restore.adapters().len()).map(find).collect()
}

/// The adapters themselves.
pub fn adapters(found: &[Option<Loaded>]) -> Vec<Adapter> {
    found.iter().map(|l| l.as_ref().map(|l| l.opened.adapter.clone()).unwrap_or_default()).collect()
}

/// Writes what a record gives back.
pub fn write_back(
    undone: &crate::ops::undo::Undone,
    building: &Building,
    writing: Writing,
    kernels: &dyn Kernels,
    progress: &dyn Progress,
) -> Result<()> {
    undone.check.rest(writing.limits.threads, progress)?;
    undone.output.fill(building, writing, kernels, Watch { progress, witness: Some(&undone.check) })?;
    Ok(())
}

/// The hash of a file of any size.
fn hash_of(path: &Path) -> Result<Hash> {
    Ok(Hash::of(MappedFile::open(path)?.as_slice()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("cannot read", e)).in_file(path)
}

/// Whether `path` lies in a folder below the folder `out`, as it stands now.
fn lies_below(path: &Path, out: &Path) -> bool {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    matches!((parent.canonicalize(), out.canonicalize()), (Ok(parent), Ok(out)) if parent.starts_with(&out))
}

fn same_place(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name()?;
        Some(parent.canonicalize().ok()?.join(name))
    };
    a == b || matches!((whole(a), whole(b)), (Some(a), Some(b)) if a == b)
}
