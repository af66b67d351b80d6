//! `lora-tool convert`: adapters in another layout, or in their own as it is written today.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::args::{Common, OutputDtype, ReadAs};
use super::flatten::{self, Flatten, Means};
use super::inspect::thousands;
use super::loaded::last_name;
use super::merge::notes_json;
use super::progress::Counter;
use super::signals::Signals;
use super::{output, ranks};
use crate::adapter::{Adapter, Note, Target};
use crate::container::atomic::{self, Form, Pending};
use crate::container::folder;
use crate::error::{Context, Error, Kind, Result, printable};
use crate::layout::consumer::{self, Consumer};
use crate::layout::source::config_alone;
use crate::layout::{self, Content, Draft, Holding, Layout, Opened, SideFile};
use crate::model::BaseModel;
use crate::names::{ModulePath, diffusion};
use crate::ops::approximate::ModuleReport;
use crate::ops::cast::{self, Rounded};
use crate::ops::{matching, retarget, saved};
use crate::stream::{self, Budget, Progress, Workers};
use crate::tensor::size;

/// Write adapters in another layout
///
/// Tensors keep their bytes unless --dtype or --normalise asks for others. To the layout it is in already, an adapter is
/// written as that layout has it today: .bin becomes .safetensors, keys and config are spelt in full. Everything that the
/// new layout cannot hold is an error or named in a note. Several adapters go into a folder, one entry each.
#[derive(Clone, Debug, clap::Args)]
#[command(before_long_help = ranks::HELP, after_long_help = "\
Examples:
  lora-tool convert old-adapter/adapter_model.bin -o adapter --to peft
  lora-tool convert my-adapter -o plain --to peft --normalise
  lora-tool convert my-dora -o plain --to gguf --normalise --base Llama-3.1-8B --rank 32
  lora-tool convert adapters/* -o converted --to peft --dtype bf16 --json")]
pub struct Args {
    /// Adapters: folders or files
    #[arg(required = true, value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// Where the result goes: what the layout is, a folder or a file; a folder for several adapters
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// Layout of the result
    #[arg(long, value_name = "LAYOUT", required_unless_present = "consumer")]
    to: Option<String>,
    /// The program that is to read it: the layout it reads, made so that it reads it right, or an error that says what it
    /// cannot [transformers, vllm, sglang, lmdeploy, ollama, llama.cpp]
    #[arg(long = "for", value_name = "PROGRAM")]
    consumer: Option<String>,
    #[command(flatten)]
    read: ReadAs,
    /// Make every change a plain LoRA whose scale is 1: alpha is the rank, and the old scale goes into B
    #[arg(long)]
    normalise: bool,
    /// The base, for what only it tells: heads and architecture for GGUF; with --normalise the factors of VeRA, RandLoRA,
    /// UniLoRA, PiSSA and OLoRA, and with --rank all changes that depend on the weights
    #[arg(long, value_name = "BASE")]
    base: Option<PathBuf>,
    /// Put the changes onto other modules: those the base has, or projections and experts split or fused
    #[arg(long, value_enum, value_name = "FORM")]
    retarget: Option<FormWord>,
    #[command(flatten)]
    flatten: Flatten,
    /// Leave out modules that the layout has no words for, each with a lossy note
    #[arg(long)]
    leave_out: bool,
    /// Type of the tensors
    #[arg(long, value_enum, default_value = "keep", hide_possible_values = true)]
    dtype: OutputDtype,
    /// Let NaN and infinity through
    #[arg(long)]
    allow_nonfinite: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Which modules the result has.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormWord {
    /// Those that the base has in memory
    Base,
    /// Query, key and value, gate and up, and every expert by themselves
    Split,
    /// Projections and experts in one module each
    Fused,
}

/// What the adapters are to become.
struct Goal {
    layout: &'static dyn Layout,
    consumer: Option<&'static Consumer>,
    base: Option<BaseModel>,
    /// The base's config, which may be all there is of it.
    config: Option<SideFile>,
    /// For one adapter at a time; none where several share the threads.
    workers: Workers,
}

/// One adapter in its new form.
struct Converted {
    from: &'static str,
    to: &'static str,
    because: String,
    draft: Draft,
    modules: usize,
    kinds: BTreeMap<&'static str, usize>,
    /// Scales that went into B.
    folded: usize,
    /// Changes that became the best LoRA of their rank.
    approximated: Vec<ModuleReport>,
    notes: Vec<Note>,
    /// Files that the result must not overwrite.
    inputs: Vec<PathBuf>,
}

/// Bytes up to which an adapter is not worth a thread.
const SMALL: u64 = 1 << 20;

/// What is said of one adapter.
struct Said {
    text: String,
    document: Value,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let consumer = args.consumer.as_deref().map(consumer::named).transpose()?;
    let layout = layout::named(args.to.as_deref().or(consumer.map(|c| c.layout)).unwrap_or_default())?;
    if let Some(consumer) = consumer.filter(|c| c.layout != layout.name()) {
        let what =
            format!("--for {} wants the layout {}, and --to is {}", consumer.name, consumer.layout, layout.name());
        return Err(Error::new(Kind::Usage, what));
    }
    if !layout.can_write() {
        return Err(Error::new(
            Kind::Usage,
            format!("adapters of the layout `{}` are read, not written", layout.name()),
        ));
    }
    let signals = Signals::listen()?;
    let config_only = args.base.as_deref().map(config_alone).transpose()?.flatten();
    let base = args.base.as_deref().filter(|_| config_only.is_none()).map(BaseModel::open).transpose()?;
    let config = base.as_ref().and_then(|base| Some((base.config_path()?, base.config.clone()?))).or(config_only);
    let alone = matches!(args.adapters.as_slice(), [one] if bytes_of(one) > SMALL);
    let workers = if alone { Workers::new(args.common.limits().threads) } else { Workers::default() };
    let goal = Goal { layout, consumer, base, config, workers };
    let began = Instant::now();
    let said = match args.adapters.as_slice() {
        [adapter] => vec![one(args, adapter, &goal, &args.out, signals)?],
        several => all(args, several, &goal, signals)?,
    };
    show(args, goal.layout.name(), &said, began.elapsed().as_secs_f64())
}

/// One adapter to one place.
fn one(args: &Args, adapter: &Path, goal: &Goal, out: &Path, signals: Signals) -> Result<Said> {
    let converted = convert(args, adapter, goal, signals)?;
    let inputs: Vec<&Path> = converted.inputs.iter().map(PathBuf::as_path).collect();
    if args.common.dry_run {
        atomic::refuse_input(out, &inputs)?;
        atomic::refuse_existing(out, form(&converted.draft), args.common.force)?;
    } else {
        let save = || layout::save(&converted.draft, out, &inputs, args.common.force, !args.common.no_sync);
        goal.workers.run(save)?;
    }
    output::notes(&converted.notes);
    Ok(said(args, adapter, out, &converted))
}

/// Several adapters into one folder, which appears with all of them or not at all.
fn all(args: &Args, adapters: &[PathBuf], goal: &Goal, signals: Signals) -> Result<Vec<Said>> {
    let names = entry_names(adapters)?;
    let inputs: Vec<&Path> = adapters.iter().chain(&args.base).map(PathBuf::as_path).collect();
    atomic::refuse_input(&args.out, &inputs)?;
    atomic::refuse_existing(&args.out, Form::Folder, args.common.force)?;
    let pending = if args.common.dry_run {
        None
    } else {
        Some(Pending::new(&args.out, Form::Folder, args.common.force, !args.common.no_sync)?)
    };
    let threads = args.common.limits().threads;
    let at_a_time = threads.min(adapters.len()).max(1);
    let each = Args { common: args.common.on(threads / at_a_time), ..args.clone() };
    let entries = Entries { args: &each, goal, place: pending.as_ref().map(Pending::path), signals: signals.clone() };
    let budget = Budget::new(args.common.limits().memory);
    let progress = Counter::new(adapters.len(), "adapters", signals);
    let done = stream::each(adapters.len(), at_a_time, &progress, |n| {
        let (Some(adapter), Some(name)) = (adapters.get(n), names.get(n)) else {
            return Err(Error::missing("no entry"));
        };
        let _admitted = budget.admit(bytes_of(adapter));
        let (entry, heard) = output::listen_to(|| entries.one(adapter, name));
        progress.advance(1);
        Ok((entry?, heard))
    });
    progress.finish();
    let mut out = Vec::with_capacity(adapters.len());
    let done = match &pending {
        Some(pending) => pending.build(|_| done)?,
        None => done?,
    };
    for ((said, notes), heard) in done {
        output::repeat(heard);
        output::notes(&notes);
        out.push(said);
    }
    pending.map_or(Ok(()), Pending::commit)?;
    Ok(out)
}

/// Bytes that the files of an adapter have, about.
fn bytes_of(adapter: &Path) -> u64 {
    let bytes = |path: &Path| path.metadata().map_or(0, |about| about.len());
    match folder::entries(adapter) {
        Ok(entries) => entries.iter().map(|path| bytes(path)).sum(),
        Err(_) => bytes(adapter),
    }
}

/// Adapters that are written beside each other.
struct Entries<'a> {
    args: &'a Args,
    goal: &'a Goal,
    /// The folder they go into; none where nothing is written.
    place: Option<&'a Path>,
    signals: Signals,
}

impl Entries<'_> {
    fn one(&self, adapter: &Path, name: &OsStr) -> Result<(Said, Vec<Note>)> {
        let args = self.args;
        let converted = convert(args, adapter, self.goal, self.signals.clone())?;
        let mut name = name.to_os_string();
        if form(&converted.draft) == Form::File
            && let Some(extension) = Path::new(&converted.draft.tensor_file).extension()
        {
            name.push(".");
            name.push(extension);
        }
        if let Some(place) = self.place {
            layout::save(&converted.draft, &place.join(&name), &[], false, !args.common.no_sync)?;
        }
        let label = |note: &Note| Note { key: keyed(adapter, &note.key), ..note.clone() };
        let notes = converted.notes.iter().map(label).collect();
        Ok((said(args, adapter, &args.out.join(&name), &converted), notes))
    }
}

fn keyed(adapter: &Path, key: &str) -> String {
    let adapter = adapter.display();
    if key.is_empty() { adapter.to_string() } else { format!("{adapter}: {key}") }
}

/// What each result is called: the last component of the adapter's path, of a file without its ending.
fn entry_names(adapters: &[PathBuf]) -> Result<Vec<OsString>> {
    let mut seen: BTreeMap<OsString, &Path> = BTreeMap::new();
    let mut out = Vec::with_capacity(adapters.len());
    for adapter in adapters {
        let stem = adapter.file_stem().filter(|_| adapter.is_file());
        let name = stem.map_or_else(|| last_name(adapter).into(), OsString::from);
        if let Some(other) = seen.insert(name.clone(), adapter) {
            let what = format!("would be called `{}`, and so would {}", name.to_string_lossy(), other.display());
            return Err(Error::new(Kind::Usage, what).in_file(adapter).hint("convert them one by one"));
        }
        out.push(name);
    }
    Ok(out)
}

fn form(draft: &Draft) -> Form {
    if draft.texts.is_empty() { Form::File } else { Form::Folder }
}

fn convert(args: &Args, path: &Path, goal: &Goal, signals: Signals) -> Result<Converted> {
    let Goal { layout, consumer, base, config, workers } = goal;
    let base = base.as_ref();
    let mut opened = args.read.open_beside(path, config.clone())?;
    let known = config.as_ref().or(opened.source.given.base.as_ref()).filter(|_| layout.name() == "gguf").cloned();
    if let Some((_, config)) = known {
        layout::gguf::base::tell(&mut opened.adapter, &config);
    }
    if !args.allow_nonfinite {
        workers.run(|| opened.source.require_finite())?;
    }
    let mut notes = std::mem::take(&mut opened.notes);
    if let Some(base) = base {
        let shape_of = |path: &ModulePath| base.names.find(&path.tensor("weight")).map(|f| f.memory_shape);
        opened.adapter.read_kernels(&shape_of).in_file(path)?;
        let turned = retarget::settle_facing(&mut opened.adapter, base);
        if turned > 0 {
            let text =
                "which way the factors of experts face is told by the base; written as PEFT has them since 0.19.1";
            notes.push(Note::info("", format!("{turned} stacks: {text}")));
        }
    }
    notes.extend(opened.adapter.unsettled());
    let given = opened.adapter.clone();
    let means = Means { flags: &args.flatten, common: &args.common, dtype: args.dtype.get(), base, signals };
    let mut plain = None;
    for (form, parts) in retargeting(args, goal, &opened.adapter) {
        let mut done = retarget::retarget(&opened.adapter, form, parts, base);
        if done.is_err() && args.normalise && plain.is_none() {
            // A plain LoRA can be taken apart and put together where its own kind cannot.
            plain = Some(normalise(&mut opened, &mut notes, &means).in_file(path)?);
            done = retarget::retarget(&opened.adapter, form, parts, base);
        }
        let done = done.in_file(path)?;
        opened.adapter = done.adapter;
        notes.extend(done.notes);
    }
    if let Some(base) = base {
        notes.extend(retarget::settle_family(&mut opened.adapter, base));
        // What has the modules of another base now had those of this one before.
        let check = |adapter: &Adapter| match base.naming() {
            Some(naming) => matching::check(&retarget::spell_for(adapter, naming, base)?.0, base),
            None => matching::check(adapter, base),
        };
        let matched = match (check(&opened.adapter), check(&given)) {
            (Ok(after), Ok(before)) => Ok(if before.is_empty() { before } else { after }),
            (after, before) => after.or_else(|e| before.map_err(|_| e)),
        };
        notes.extend(matched.in_file(path)?);
    }
    let family = opened.adapter.spelling.and_then(|spelling| diffusion::family(spelling.family));
    if family.is_none() && layout.is_of_pipelines() && opened.layout != layout.name() {
        notes.push(unknown_family(&opened.adapter, layout.name()));
    }
    if let Some(naming) = family.and_then(|family| layout.naming(family)) {
        let mut done = retarget::spell(&opened.adapter, naming);
        if done.is_err() && args.normalise && plain.is_none() {
            // As above.
            plain = Some(normalise(&mut opened, &mut notes, &means).in_file(path)?);
            done = retarget::spell(&opened.adapter, naming);
        }
        let (spelt, spelling) = done.in_file(path)?;
        opened.adapter = spelt;
        notes.extend(spelling);
    }
    // MLX's models are called as the files of the base are, and the others as the model in memory.
    match (opened.layout, layout.name(), base) {
        ("mlx", "mlx", _) | (_, _, None) => {}
        (_, "mlx", Some(base)) => retarget::named_as_on_disk(&mut opened.adapter, base),
        ("mlx", _, Some(base)) => {
            let renamed = retarget::named_as_in_memory(&mut opened.adapter, base);
            if renamed > 0 {
                notes.push(Note::info("", format!("{renamed} modules called as the base calls them")));
            }
        }
        _ => {}
    }
    if layout.holds(Content::Whole) == Holding::No || consumer.is_some_and(Consumer::passes_over_whole_tensors) {
        notes.extend(saved::leave_out(&mut opened.adapter, base).in_file(path)?);
    }
    if args.normalise && plain.is_none() {
        plain = Some(normalise(&mut opened, &mut notes, &means).in_file(path)?);
    }
    let (folded, mut rounded, approximated) = plain.unwrap_or_default();
    if let Some(to) = args.dtype.get() {
        rounded.add(workers.run(|| cast::adapter(&mut opened.adapter, to)).in_file(path)?);
    }
    if let Some(consumer) = consumer {
        let (fitted, fitting) = consumer.fit(&opened.adapter).in_file(path)?;
        opened.adapter = fitted;
        notes.extend(fitting);
    }
    let written = workers.run(|| match args.leave_out {
        true => write_what_fits(*layout, &mut opened.adapter, &mut notes),
        false => layout.write(&opened.adapter),
    });
    let (mut draft, written) = written.map_err(|e| flatten::advised(e, &opened.adapter, path))?;
    notes.extend(written);
    if let Some(consumer) = consumer {
        notes.extend(consumer.finish(&mut draft).in_file(path)?);
    }
    if let Some(to) = args.dtype.get() {
        rounded.add(workers.run(|| cast::tensors(&mut draft.tensors, to)).in_file(path)?);
        if rounded.changed > 0 {
            let (changed, values) = (thousands(rounded.changed), thousands(rounded.values));
            notes.push(Note::info("", format!("{changed} of {values} values were rounded to {to}")));
        }
    }
    if args.common.strict {
        output::require_lossless(&notes).in_file(path)?;
    }
    let mut kinds = BTreeMap::new();
    opened.adapter.targets.values().for_each(|target| *kinds.entry(target.kind()).or_default() += 1);
    let inputs = inputs(path, &opened).into_iter().chain(args.base.clone()).collect();
    let (from, because, modules) = (opened.layout, opened.because, opened.adapter.targets.len());
    Ok(Converted { from, to: layout.name(), because, draft, modules, kinds, folded, approximated, notes, inputs })
}

/// The adapter's files without the modules that the layout cannot hold.
fn write_what_fits(layout: &dyn Layout, adapter: &mut Adapter, notes: &mut Vec<Note>) -> Result<(Draft, Vec<Note>)> {
    loop {
        let error = match layout.write(adapter) {
            Err(error) if error.kind() == Kind::Unsupported => error,
            done => return done,
        };
        let module = error.key().map(ModulePath::from).filter(|path| adapter.targets.contains_key(path));
        let Some(module) = module.filter(|_| adapter.targets.len() > 1) else { return Err(error) };
        adapter.targets.remove(&module);
        notes.push(Note::lossy(module.as_str(), format!("left out: {}", error.what())));
    }
}

/// What a layout of image models has to say of an adapter whose model it does not know.
fn unknown_family(adapter: &Adapter, layout: &str) -> Note {
    // All that follows the component, where the dots of flattened names would be.
    let dotted = !["kohya", "onetrainer"].contains(&layout);
    let flat = |path: &ModulePath| path.as_str().split_once('.').is_none_or(|(_, rest)| !rest.contains('.'));
    let text = "of no image model that is known here: the modules keep their names";
    match dotted && adapter.targets.keys().all(flat) {
        true => Note::lossy("", format!("{text}, which are flattened, and no program will find them dotted")),
        false => Note::info("", text),
    }
}

/// Makes every change a plain LoRA: the scales that were folded, the values that were rounded, and the changes that became
/// the best of their rank.
fn normalise(
    opened: &mut Opened,
    notes: &mut Vec<Note>,
    means: &Means<'_>,
) -> Result<(usize, Rounded, Vec<ModuleReport>)> {
    let (done, reports) = flatten::plain(opened, means)?;
    opened.adapter = done.adapter;
    notes.extend(done.notes);
    Ok((done.folded, done.cast, reports))
}

/// Which modules are taken apart or put together, in order: as the user wants it, and as the program or the layout does.
fn retargeting(args: &Args, goal: &Goal, adapter: &Adapter) -> Vec<(retarget::Form, retarget::Parts)> {
    let form = |word| match word {
        FormWord::Base => retarget::Form::Base,
        FormWord::Split => retarget::Form::Split,
        FormWord::Fused => retarget::Form::Fused,
    };
    let wanted = args.retarget.map(|word| (form(word), retarget::Parts::All));
    let is_stack =
        |target: &Target| target.is_parameter() && target.weight.iter().any(|d| d.kind() == "LoRA on experts");
    // MLX's models have the projections of experts apart, and their modules where the base's files have them.
    let apart = goal.layout.name() == "mlx" && (adapter.base.class.is_some() || adapter.base.family.is_some());
    let single = apart || goal.consumer.is_some_and(Consumer::wants_single_experts);
    let single = single && adapter.targets.values().any(is_stack);
    wanted.into_iter().chain(single.then_some((retarget::Form::Split, retarget::Parts::Experts))).collect()
}

fn inputs(adapter: &Path, opened: &Opened) -> Vec<PathBuf> {
    let config = opened.source.config.as_ref().map(|(path, _)| path.clone());
    [Some(adapter.to_path_buf()), Some(opened.source.tensor_file.clone()), config].into_iter().flatten().collect()
}

fn said(args: &Args, adapter: &Path, out: &Path, converted: &Converted) -> Said {
    let Converted { from, because, draft, modules, kinds, folded, notes, .. } = converted;
    let bytes: u64 = draft.tensors.values().map(|t| t.bytes.len() as u64).sum();
    let parameters: u64 = draft.tensors.values().map(|t| t.elements() as u64).sum();
    let mut dtypes: BTreeMap<String, usize> = BTreeMap::new();
    draft.tensors.values().for_each(|t| *dtypes.entry(t.dtype.to_string()).or_default() += 1);
    let scales = match folded {
        0 => String::new(),
        1 => ", 1 scale folded into B".to_string(),
        n => format!(", {n} scales folded into B"),
    };
    let plural = if *modules == 1 { "" } else { "s" };
    let to = converted.to;
    let text = format!(
        "{}{}{}: {from} to {to}, {modules} module{plural}, {} tensors{scales} · {}",
        flatten::text(&converted.approximated),
        if args.common.dry_run { "would write " } else { "" },
        printable(&out.display().to_string()),
        draft.tensors.len(),
        size::show(bytes),
    );
    let document = json!({
        "adapter": output::path(adapter), "out": output::path(out), "from": from, "because": because, "modules": modules, "kinds": kinds,
        "tensors": draft.tensors.len(), "dtypes": dtypes, "parameters": parameters, "bytes": bytes, "folded": folded,
        "approximated": flatten::document(&args.flatten, &converted.approximated), "notes": notes_json(notes),
    });
    Said { text, document }
}

fn show(args: &Args, to: &str, said: &[Said], seconds: f64) -> Result<()> {
    if args.common.json {
        let adapters: Vec<_> = said.iter().map(|s| &s.document).collect();
        return output::document(&json!({
            "out": output::path(&args.out), "to": to, "for": args.consumer, "normalise": args.normalise, "dry_run": args.common.dry_run,
            "seconds": seconds, "adapters": adapters,
        }));
    }
    let mut lines: Vec<String> = said.iter().map(|s| s.text.clone()).collect();
    match lines.as_mut_slice() {
        [only] => *only += &format!(" in {seconds:.1} s"),
        several => {
            let count = several.len();
            lines.push(format!("{count} adapters in {seconds:.1} s"));
        }
    }
    output::answer(&lines.join("\n"))
}
