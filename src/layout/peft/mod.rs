//! PEFT: `adapter_config.json` beside `adapter_model.safetensors` (or `.bin`).
//!
//! Defined by huggingface/peft, `src/peft/utils/save_and_load.py` and `src/peft/tuners/*`; written down in
//! `docs/layouts/peft.md`. Keys are `base_model.model.<module path>.<role>`; what the roles mean is each tuner's own
//! file in `tuner`.

pub mod config;
mod dialect;
pub mod keys;
pub mod saved;
pub mod scaling;
mod tails;
pub mod tuner;
mod write;
pub mod writer;

use std::collections::BTreeSet;

use crate::adapter::{Adapter, Carried, Note};
use crate::error::{Context, Error, Result};
use crate::layout::source::BASE_FINGERPRINT;
use crate::layout::{Content, Draft, Holding, Layout, Source, Verdict, torchtune};

use config::Config;
use keys::Modules;

/// The layout.
pub struct Peft;

/// What a tuner reads from: the modules' tensors, the config, and the adapter under construction.
pub struct Reader<'a> {
    /// `adapter_config.json`.
    pub config: &'a Config,
    /// Tensors by module; whatever a tuner leaves in here is an error.
    pub modules: Modules,
    /// What has been understood so far.
    pub adapter: Adapter,
    /// Remarks.
    pub notes: Vec<Note>,
}

impl Layout for Peft {
    fn name(&self) -> &'static str {
        "peft"
    }

    fn about(&self) -> &'static str {
        "Hugging Face PEFT: adapter_config.json with adapter_model.safetensors or .bin"
    }

    fn holds(&self, _: Content) -> Holding {
        Holding::Yes
    }

    fn detect(&self, source: &Source) -> Verdict {
        if torchtune::own_keys(&source.tensors) > 0 {
            // torchtune saves a config for PEFT beside its own tensors.
            return Verdict::No;
        }
        if let Some((_, config)) = &source.config {
            if let Some(kind) = config.get("peft_type") {
                return Verdict::Likely { score: 100, because: format!("adapter_config.json has peft_type {kind}") };
            }
            if !dialect::lacks_type(config) {
                return Verdict::No;
            }
        }
        let all = source.tensors.len();
        let ours = source.tensors.keys().filter(|k| keys::is_lora_key(k)).count();
        if ours == 0 {
            return Verdict::No;
        }
        Verdict::Likely { score: 50, because: format!("{ours} of {all} keys end like PEFT's LoRA") }
    }

    fn read(&self, source: &Source) -> Result<(Adapter, Vec<Note>)> {
        let dialect::Repaired { tensors, config: raw, notes } = dialect::repair(source).in_file(&source.tensor_file)?;
        let config_path = source.config.as_ref().map_or(&source.tensor_file, |(path, _)| path);
        let config = Config::read(raw.clone()).in_file(config_path)?;
        let tuner = tuner::by_type(&config.peft_type).in_file(config_path)?;
        // A fault at a field of the config is one of the config's file, any other of the tensors'.
        let placed = |e: Error| {
            let field = e.key().is_some_and(|key| raw.contains_key(key.split('.').next().unwrap_or(key)));
            e.in_file(if field { config_path } else { &source.tensor_file })
        };
        let modules = Modules::sort(&tensors, tuner.roles).in_file(&source.tensor_file)?;
        refuse_other_kinds(&modules, &config.peft_type).in_file(&source.tensor_file)?;
        let adapter = Adapter { declared: config.peft_type.clone(), ..Adapter::default() };
        let mut reader = Reader { config: &config, modules, adapter, notes };
        for value in &source.other_values {
            reader.notes.push(Note::info(value, "not a tensor; left out"));
        }
        config.report_unknown(&tuner.known_fields(), &mut reader.notes).in_file(config_path)?;
        saved::read_tokens(&mut reader).map_err(placed)?;
        saved::read(&mut reader).map_err(placed)?;
        (tuner.read)(&mut reader).map_err(placed)?;
        reader.modules.require_empty(&config.peft_type).in_file(&source.tensor_file)?;
        let mut adapter = reader.adapter;
        let gathered = dialect::gather_experts(&mut adapter, source.facts().experts).map_err(placed)?;
        let renamed = !gathered.is_empty();
        reader.notes.extend(gathered);
        for name in ["base_model_name_or_path", "revision", "task_type", "peft_version"] {
            if let Some(text) = raw.get(name).and_then(|v| v.as_str()) {
                adapter.about.insert(name.to_string(), text.to_string());
            }
        }
        if let Some(base) = source.base_fingerprint()? {
            adapter.about.insert(BASE_FINGERPRINT.to_string(), base.to_string());
        }
        adapter.carried = Carried {
            layout: self.name().to_string(),
            fields: raw
                .iter()
                .filter(|(name, _)| !renamed || *name != "target_modules")
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect(),
            metadata: source.metadata.clone(),
            outline: adapter.outline(),
            ..Carried::default()
        };
        Ok((adapter, reader.notes))
    }

    fn write(&self, adapter: &Adapter) -> Result<(Draft, Vec<Note>)> {
        write::write(adapter)
    }
}

/// Tensors of another kind than the config's are no tensors of the model that were saved along: its modules have no such
/// names.
fn refuse_other_kinds(modules: &Modules, peft_type: &str) -> Result<()> {
    let roles: BTreeSet<&str> = tuner::TUNERS.iter().flat_map(|tuner| tuner.roles).map(|(first, _)| *first).collect();
    for (name, part) in &modules.saved {
        if let Some(role) = name.split('.').find(|component| roles.contains(component)) {
            let what = format!("`{role}` in the key, which adapters of type {peft_type} do not have");
            return Err(Error::mismatch(what).hint("the config may belong to another adapter").at_key(&part.key));
        }
    }
    Ok(())
}
