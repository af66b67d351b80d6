//! Odd and legal: the same adapter in every form comes to the same model, and that is what the formula says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

use super::Corpus;
use super::made::{Entry, base_entries, config, good_adapter, good_entries, tensors, values};
use super::pickles::{state_dict, zip_of};

/// The tensors of a file of F32.
fn read(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let entries = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    entries
        .map(|(name, about)| {
            let at = |i: usize| about["data_offsets"][i].as_u64().unwrap() as usize;
            let floats = data[at(0)..at(1)].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (name.clone(), floats)
        })
        .collect()
}

/// `W + 2 · B · A` of the good adapter, in f64.
fn expected() -> BTreeMap<String, Vec<f64>> {
    let adapter: BTreeMap<String, Entry> = good_entries().into_iter().map(|e| (e.0.clone(), e)).collect();
    base_entries()
        .into_iter()
        .map(|(name, _, shape, _)| {
            let mut out: Vec<f64> = values(&name, shape.iter().product()).into_iter().map(f64::from).collect();
            let module = format!("base_model.model.{}", name.trim_end_matches(".weight"));
            if adapter.contains_key(&format!("{module}.lora_A.weight")) {
                let (a, b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
                let (rows, cols) = (shape[0], shape[1]);
                let (a, b) = (values(&a, 2 * cols), values(&b, rows * 2));
                for row in 0..rows {
                    for col in 0..cols {
                        let sum: f64 = (0..2).map(|k| f64::from(b[row * 2 + k]) * f64::from(a[k * cols + col])).sum();
                        out[row * cols + col] += 2.0 * sum;
                    }
                }
            }
            (name, out)
        })
        .collect()
}

#[test]
fn every_form_comes_to_the_same_model() {
    let mut corpus = Corpus::new();
    let (config_text, bytes) = good_adapter();
    let expected = expected();
    let mut turned = good_entries();
    turned.reverse();
    let zip = zip_of(&state_dict(&good_entries()), &good_entries()).bytes();
    let named = |from: &str, to: &str| {
        let entries = good_entries().into_iter().map(|mut e| {
            e.0 = e.0.replace(from, to);
            e
        });
        tensors(&entries.collect::<Vec<_>>())
    };
    let more = config(r#""from_the_future":[1],"layers_pattern":null,"revision":null"#);
    for (case, name, config, bytes) in [
        ("as it is", "adapter_model.safetensors", config_text.as_str(), bytes.clone()),
        ("in another order", "adapter_model.safetensors", config_text.as_str(), tensors(&turned)),
        ("pickled", "adapter_model.bin", config_text.as_str(), zip),
        (
            "with the adapter's name",
            "adapter_model.safetensors",
            config_text.as_str(),
            named(".weight", ".default.weight"),
        ),
        ("without PEFT's prefix", "adapter_model.safetensors", config_text.as_str(), named("base_model.model.", "")),
        ("with more fields", "adapter_model.safetensors", more.as_str(), bytes),
    ] {
        let path = corpus.files(&[("adapter_config.json", config.as_bytes()), (name, &bytes)]);
        let out = corpus.path("work/out");
        let base = corpus.path("base");
        let words = [OsStr::new("merge"), base.as_os_str(), path.as_os_str(), OsStr::new("-o"), out.as_os_str()];
        let ran = super::run(&words, corpus.folder.path());
        assert_eq!(ran.code, Some(0), "{case}: {}", String::from_utf8_lossy(&ran.err));
        let found = read(&out.join("model.safetensors"));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{case}");
        for (name, values) in &found {
            for (found, expected) in values.iter().zip(&expected[name]) {
                assert!(
                    (f64::from(*found) - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                    "{case}: {name}: {found} {expected}"
                );
            }
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    corpus.done();
}
