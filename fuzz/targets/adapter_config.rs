//! PEFT's config beside tensors of its kind that are in order: what it makes of them can be looked at and written, and what is
//! written can be read again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use lora_tool::layout::{self, Given, lint};
use serde_json::Value;

use super::support::{self, Place};

pub fn one(data: &[u8]) {
    let place = Place::new();
    place.put("adapter/adapter_config.json", data);
    place.put("adapter/adapter_model.safetensors", tensors(data));
    let folder = place.join("adapter");
    let _ = lint::look(&folder, None, Given::default());
    let Ok(opened) = layout::open(&folder, None) else { return };
    support::look_at(&opened);
    let layout = layout::named("peft").unwrap();
    if let Ok((draft, _)) = layout.write(&opened.adapter) {
        let out = place.join("written");
        layout::save(&draft, &out, &[], false, false).expect("what can be written can be saved");
        let _ = layout::open(&out, Some("peft")).unwrap_or_else(|e| panic!("what was written cannot be read: {e}"));
    }
}

/// The tensors of a fixture whose kind is the config's, of the first one where it is no fixture's.
fn tensors(config: &[u8]) -> &'static [u8] {
    static ALL: OnceLock<BTreeMap<String, Vec<Vec<u8>>>> = OnceLock::new();
    let all = ALL.get_or_init(all);
    let kind = kind(config).unwrap_or_default();
    let of_kind = all.get(&kind).or_else(|| all.values().next()).expect("fixtures");
    &of_kind[config.len() % of_kind.len()]
}

fn kind(config: &[u8]) -> Option<String> {
    serde_json::from_slice::<Value>(config).ok()?.get("peft_type")?.as_str().map(str::to_string)
}

/// Of each kind the tensors of `fixtures/tuners`: one tiny layer each.
fn all() -> BTreeMap<String, Vec<Vec<u8>>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = [here, here.parent().unwrap()].map(|folder| folder.join("fixtures/tuners"));
    let root = root.iter().find(|folder| folder.is_dir()).expect("the fixtures");
    let mut folders: Vec<_> = std::fs::read_dir(root).unwrap().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let mut out = BTreeMap::<String, Vec<Vec<u8>>>::new();
    for folder in folders {
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        if let (Some(config), Some(tensors)) = (read("adapter_config.json"), read("adapter_model.safetensors")) {
            out.entry(kind(&config).expect("a kind")).or_default().push(tensors);
        }
    }
    out
}
