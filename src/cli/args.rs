//! Flags that several commands share.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, ColorChoice, ValueEnum};

use super::size;
use crate::adapter::Note;
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::Kernels;
use crate::kernels::choice::{self, Device};
use crate::layout::{self, Given, Opened, SideFile};
use crate::limits;
use crate::model::BaseModel;
use crate::ops::retarget;
use crate::stream::{Limits, Resuming};
use crate::tensor::hash::Hasher;
use crate::tensor::{Dtype, dtype};

/// How much is said.
#[derive(Clone, Copy, Debug, Args)]
pub struct Verbosity {
    /// Say more: every changed tensor, every note
    #[arg(short, long, global = true, help_heading = "Output")]
    pub verbose: bool,
    /// Say nothing but errors and the answer
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,
    /// When to use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub color: ColorChoice,
}

/// Flags of commands that write a model.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Print the answer as one JSON document
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Show what would be done and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing output
    #[arg(long)]
    pub force: bool,
    /// Treat every lossy note as an error
    #[arg(long)]
    pub strict: bool,
    /// Do not wait for the disk: faster, and not safe against a power cut
    #[arg(long)]
    pub no_sync: bool,
    #[command(flatten)]
    pub machine: Machine,
}

/// An adapter with its modules called as this base calls them.
pub fn spelt_for(mut opened: Opened, base: Option<&BaseModel>) -> Result<Opened> {
    let Some(base) = base else { return Ok(opened) };
    if let Some(naming) = base.naming() {
        opened.notes.extend(retarget::settle_family(&mut opened.adapter, base));
        let (spelt, notes) = retarget::spell_for(&opened.adapter, naming, base)?;
        opened.adapter = spelt;
        opened.notes.extend(notes);
    } else {
        let (own, note) = retarget::of_pipeline(std::mem::take(&mut opened.adapter), base);
        opened.adapter = own;
        opened.notes.extend(note);
    }
    opened.notes.extend(retarget::one_of_two(&opened.adapter, base));
    Ok(opened)
}

/// What becomes of a run that is cut short.
#[derive(Clone, Copy, Debug, Args)]
pub struct Resume {
    /// Go on where the same command was cut short
    ///
    /// What is there is compared with a journal, and what is as it should be is not made again. If this run is asked to end,
    /// or the machine fails it, what it has done is kept for the next.
    #[arg(long)]
    pub resume: bool,
}

impl Resume {
    /// The same for a run of `words`, which say everything that counts, on these inputs.
    pub fn of(self, words: &dyn std::fmt::Debug, inputs: &[&Path]) -> Resuming {
        let mut all = Hasher::default();
        all.text(env!("CARGO_PKG_VERSION")).text(&format!("{words:?}"));
        for path in inputs {
            all.text(&path.to_string_lossy());
            if let Ok(about) = path.metadata() {
                let changed = (about.mtime(), about.mtime_nsec());
                all.text(&format!("{} {} {changed:?}", about.ino(), about.len()));
            }
        }
        let inputs = all.finish();
        if self.resume { Resuming::Now(inputs) } else { Resuming::Later(inputs) }
    }
}

/// How adapters are read.
#[derive(Clone, Debug, Default, Args)]
pub struct ReadAs {
    /// Layout of the adapters, instead of recognising it
    #[arg(long, value_name = "LAYOUT")]
    pub from: Option<String>,
    /// Alpha of adapters whose files do not have it
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true, value_parser = finite)]
    pub assume_alpha: Option<f64>,
}

impl ReadAs {
    /// Opens an adapter, for this base where there is one.
    pub fn open(&self, path: &Path, base: Option<&BaseModel>) -> Result<Opened> {
        let opened = layout::open_with(path, self.from.as_deref(), self.given(base))?;
        spelt_for(opened, base).in_file(path)
    }

    /// What is known beside an adapter's files.
    pub fn given(&self, base: Option<&BaseModel>) -> Given {
        let config = base.and_then(|base| Some((base.config_path()?, base.config.clone()?)));
        Given { base: config, alpha: self.assume_alpha }
    }

    /// The same, where the base's config is all that is known of it.
    pub fn open_beside(&self, path: &Path, config: Option<SideFile>) -> Result<Opened> {
        layout::open_with(path, self.from.as_deref(), Given { base: config, alpha: self.assume_alpha })
    }

    /// The same, where values that are not finite are an error unless they are allowed.
    pub fn open_finite(&self, path: &Path, base: Option<&BaseModel>, allow_nonfinite: bool) -> Result<Opened> {
        let opened = self.open(path, base)?;
        if !allow_nonfinite {
            opened.source.require_finite()?;
        }
        Ok(opened)
    }
}

/// What a command may use of the machine.
#[derive(Clone, Debug, Args)]
pub struct Machine {
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=limits::THREADS), help_heading = "Machine")]
    pub threads: Option<u16>,
    /// Working memory
    #[arg(long, value_name = "SIZE", default_value = "256MB", value_parser = size::parse, help_heading = "Machine")]
    pub memory: u64,
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device, help_heading = "Machine")]
    pub device: Device,
    /// Memory of a device that is used [default: most of what is free]
    #[arg(long, value_name = "SIZE", value_parser = size::parse, hide_short_help = true, help_heading = "Machine")]
    pub device_memory: Option<u64>,
    /// Let a device round to TF32 while it looks for factors; what is reported of them is found in f32
    #[arg(long, hide_short_help = true, help_heading = "Machine")]
    pub tf32: bool,
}

fn finite(word: &str) -> std::result::Result<f64, String> {
    word.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| "expected a finite number".to_string())
}

fn device(word: &str) -> std::result::Result<Device, String> {
    word.parse()
}

impl Common {
    /// Threads and memory.
    pub fn limits(&self) -> Limits {
        self.machine.limits()
    }

    /// The same on so many threads.
    pub fn on(&self, threads: usize) -> Common {
        let threads = u16::try_from(threads.max(1)).ok();
        Common { machine: Machine { threads, ..self.machine.clone() }, ..self.clone() }
    }

    /// The backend of `--device`, for a run whose decompositions do not decide.
    pub fn kernels(&self) -> Result<Backend> {
        self.machine.kernels()
    }
}

impl Machine {
    /// Threads and memory.
    pub fn limits(&self) -> Limits {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Limits { threads: self.threads.map_or_else(cores, usize::from), memory: self.memory }
    }

    /// The backend of `--device`, for a run whose decompositions do not decide.
    pub fn kernels(&self) -> Result<Backend> {
        self.kernels_for(0)
    }

    /// The backend of `--device` for a run that makes decompositions of so many multiplications.
    pub fn kernels_for(&self, factorising: u64) -> Result<Backend> {
        let Machine { device, device_memory: memory, tf32, .. } = *self;
        let folders = if device.is_looked_for(factorising) { folders_of_libraries() } else { Vec::new() };
        let options = choice::Options { device, memory, tf32, folders, factorising };
        let (kernels, note) = choice::choose(&options)?;
        Ok(Backend { kernels, note })
    }
}

/// A backend, and what was said when it was chosen.
pub struct Backend {
    kernels: Box<dyn Kernels>,
    note: Option<String>,
}

impl Backend {
    /// The backend.
    pub fn as_ref(&self) -> &dyn Kernels {
        self.kernels.as_ref()
    }

    /// What there is to know about where the work was done, after it.
    pub fn notes(&self) -> Vec<Note> {
        self.note.clone().into_iter().chain(self.kernels.notes()).map(|text| Note::info("", text)).collect()
    }
}

/// Where the libraries of a device may lie beside where the loader looks: the toolkit's folder, and the packages of the
/// Python that is on the path.
pub fn folders_of_libraries() -> Vec<PathBuf> {
    let mut out = Vec::new();
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let toolkits = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(named).chain([PathBuf::from("/usr/local/cuda")]);
    out.extend(toolkits.map(|toolkit| toolkit.join("lib64")));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let of_python = |folder: &PathBuf| folder.join("python3").exists() || folder.join("python").exists();
    let pythons = std::env::split_paths(&paths).filter(of_python).filter_map(|bin| bin.parent().map(Path::to_path_buf));
    for prefix in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(named).chain(pythons) {
        for pattern in ["lib/python3*/site-packages/nvidia", "lib/python3*/dist-packages/nvidia"] {
            let pattern = prefix.join(pattern);
            out.extend(pattern.to_str().and_then(|p| glob::glob(p).ok()).into_iter().flatten().flatten());
        }
    }
    out
}

/// Types that `--dtype` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputDtype {
    /// The type each tensor has in the base
    Keep,
    /// IEEE 754 single precision
    F32,
    /// IEEE 754 half precision
    F16,
    /// bfloat16
    Bf16,
    /// IEEE 754 double precision
    F64,
}

impl OutputDtype {
    /// The type; none for `keep`.
    pub fn get(self) -> Option<Dtype> {
        let word = match self {
            OutputDtype::Keep => return None,
            OutputDtype::F32 => "f32",
            OutputDtype::F16 => "f16",
            OutputDtype::Bf16 => "bf16",
            OutputDtype::F64 => "f64",
        };
        dtype::OUTPUT_NAMES.iter().find(|(name, _)| *name == word).map(|(_, dtype)| *dtype)
    }
}

/// An adapter's path, with the strength behind an `@` where there is one.
pub fn adapter_and_strength(argument: &Path, default: f64) -> Result<(PathBuf, f64)> {
    let bytes = argument.as_os_str().as_bytes();
    let at = bytes.iter().rposition(|&b| b == b'@').filter(|&at| !bytes[at..].contains(&b'/') && !argument.exists());
    let Some((path, number)) = at.map(|at| (OsStr::from_bytes(&bytes[..at]), &bytes[at + 1..])) else {
        return Ok((argument.to_path_buf(), default));
    };
    let number = String::from_utf8_lossy(number);
    match number.parse::<f64>() {
        Ok(strength) if strength.is_finite() => Ok((PathBuf::from(path), strength)),
        _ => {
            Err(Error::new(Kind::Usage, format!("strength `{number}` after the @, expected a number"))
                .in_file(argument))
        }
    }
}
