//! Files to begin with for each fuzz target, made of fixtures: small ones, and such that are all different.

use std::fs;
use std::path::Path;

use lora_tool::layout::Source;
use safetensors::SafeTensors;

use super::targets::support::{Place, zip};
use super::targets::undo_record::{self, MARK};
use crate::fixtures::{self, text};
use crate::kernels::Random;
use crate::program;

/// What the names of files made here begin with; others were found by fuzzing and stay.
const MADE: &str = "made-";
/// Largest file that is taken.
const MOST: usize = 4096;

/// Makes all of them anew.
pub fn write(corpus: &Path) {
    let headers = headers();
    let odd = odd_headers();
    put(corpus, "st_header", headers.iter().chain(&odd).cloned().collect());
    put(corpus, "st_vs_reference", headers.into_iter().take(4).chain(odd).collect());
    put(corpus, "index_json", indexes());
    put(corpus, "adapter_config", configs());
    put(corpus, "gguf", found(&["adapters/gguf", "llama_cpp"], "gguf", 8));
    put(corpus, "pickle", pickles());
    put(corpus, "zip", found(&["torch", "torch/hostile"], "pt", 24));
    put(corpus, "npz", arrays());
    put(corpus, "tar", archives());
    put(corpus, "yaml", texts());
    put(corpus, "names", keys());
    put(corpus, "merge_small", random(12, 260));
    put(corpus, "convert_round_trip", random(10, 160));
    put(corpus, "undo_record", vec![record()]);
}

fn put(corpus: &Path, target: &str, files: Vec<Vec<u8>>) {
    let folder = corpus.join(target);
    fs::create_dir_all(&folder).expect("a folder");
    for entry in fs::read_dir(&folder).expect("a folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with(MADE) {
            fs::remove_file(entry.path()).expect("an old file removed");
        }
    }
    for (number, bytes) in files.iter().enumerate() {
        fs::write(folder.join(format!("{MADE}{number:02}")), bytes).expect("a file");
    }
}

/// All files with this ending below folders of the fixtures, as (path, content), in order.
fn all(folders: &[&str], ending: &str) -> Vec<(String, Vec<u8>)> {
    fn walk(folder: &Path, ending: &str, out: &mut Vec<(String, Vec<u8>)>) {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, ending, out);
            } else if path.extension().is_some_and(|e| e == ending) {
                out.push((text(&path), fs::read(&path).expect("a file")));
            }
        }
    }
    let mut out = Vec::new();
    folders.iter().for_each(|folder| walk(&fixtures::root().join(folder), ending, &mut out));
    out.sort();
    out.dedup_by(|a, b| a.0 == b.0);
    out
}

/// So many of them, spread over all that are small.
fn spread<T>(mut all: Vec<T>, count: usize) -> Vec<T> {
    let step = all.len().div_ceil(count).max(1);
    let mut number = 0;
    all.retain(|_| {
        number += 1;
        (number - 1) % step == 0
    });
    all
}

fn found(folders: &[&str], ending: &str, count: usize) -> Vec<Vec<u8>> {
    let small = all(folders, ending).into_iter().map(|(_, bytes)| bytes).filter(|bytes| bytes.len() <= MOST);
    spread(small.collect(), count)
}

/// Texts of headers, and one whole file.
fn headers() -> Vec<Vec<u8>> {
    let files = all(&["adapters", "kohya"], "safetensors");
    let text = |bytes: &[u8]| {
        let length = u64::from_le_bytes(*bytes.first_chunk()?) as usize;
        bytes.get(8..8 + length).filter(|text| text.len() < 1500).map(<[u8]>::to_vec)
    };
    let whole = files.iter().map(|(_, bytes)| bytes.clone()).min_by_key(Vec::len);
    spread(files.iter().filter_map(|(_, bytes)| text(bytes)).collect(), 14).into_iter().chain(whole).collect()
}

fn odd_headers() -> Vec<Vec<u8>> {
    let of = |fields: &str| format!(r#"{{"w":{{{fields}}}}}"#).into_bytes();
    vec![
        br#"  {"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"I64","shape":[0,3],"data_offsets":[4,4]}}  "#
            .to_vec(),
        br#"{"__metadata__":{"format":"pt","\u00e9":"\ud83d\ude00"},"w":{"shape":[2],"data_offsets":[0,2],"dtype":"BOOL"}}"#
            .to_vec(),
        br#"{"__metadata__":null,"w":{"shape":[2],"data_offsets":[0,2],"dtype":"F8_E4M3","more":[[{}]]}}"#.to_vec(),
        of(r#""dtype":"F4","shape":[4],"data_offsets":[0,2]"#),
        of(r#""dtype":"C64","shape":[1,1],"data_offsets":[0,8]"#),
        of(r#""dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]"#),
        of(r#""dtype":"U16","shape":[2,1,1,1,1],"data_offsets":[0,4]"#),
    ]
}

fn indexes() -> Vec<Vec<u8>> {
    let of = |map: &str| format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {map}}}"#).into_bytes();
    vec![
        of(r#"{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}"#),
        of(r#"{"a": "model-00001-of-00002.safetensors"}"#),
        of(r#"{"secret": "../outside.safetensors", "b": "model-00002-of-00002.safetensors"}"#),
        of(r#"{"secret": "inner/inside.safetensors", "a": "/dev/zero"}"#),
        of(r#"{"a": "model.safetensors.index.json", "b": ".."}"#),
    ]
}

/// One config for each kind of adapter.
fn configs() -> Vec<Vec<u8>> {
    let mut kinds = Vec::new();
    let mut out = Vec::new();
    for (path, bytes) in all(&["tuners"], "json") {
        let config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes).expect("JSON");
        let kind = config.get("peft_type").cloned();
        if path.ends_with("adapter_config.json") && !kinds.contains(&kind) {
            kinds.push(kind);
            // Fields that say nothing are left out: the fewer there are, the sooner one that counts is changed.
            let says = |value: &serde_json::Value| !value.is_null() && value != &serde_json::json!({});
            let config: serde_json::Map<_, _> = config.into_iter().filter(|(_, value)| says(value)).collect();
            out.push(serde_json::to_vec_pretty(&config).expect("JSON"));
        }
    }
    let patterns = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": true, "use_dora": false,
        "target_modules": ".*\\.(q_proj|up_proj)", "rank_pattern": {"layers\\.[01]\\..*up_proj": 2, "q_proj": 2},
        "alpha_pattern": {"^model.*1.*q_proj": 0.5}, "layers_to_transform": [0, 1], "layers_pattern": "layers"}"#;
    out.push(patterns.as_bytes().to_vec());
    out
}

/// The pickles in archives of PyTorch, with the sizes of the storages, found by the archive's directory.
fn pickles() -> Vec<Vec<u8>> {
    let number = |bytes: &[u8], at: usize, width: usize| {
        bytes[at..at + width].iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte))
    };
    let pickle = |bytes: &[u8]| {
        let (mut pickle, mut sizes) = (None, std::collections::BTreeMap::new());
        for at in (0..bytes.len().saturating_sub(46)).filter(|at| bytes[*at..].starts_with(b"PK\x01\x02")) {
            let (size, name, local) = (number(bytes, at + 24, 4), number(bytes, at + 28, 2), number(bytes, at + 42, 4));
            let name = std::str::from_utf8(bytes.get(at + 46..at + 46 + name)?).ok()?;
            if name.ends_with("/data.pkl") {
                let start = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
                pickle = bytes.get(start..start + size);
            } else if let Some(number) = name.split("/data/").nth(1).and_then(|n| n.parse::<usize>().ok()) {
                sizes.insert(number, size as u16);
            }
        }
        let count = sizes.keys().last().map_or(0, |last| last + 1).min(16);
        let sizes = (0..count).flat_map(|n| sizes.get(&n).copied().unwrap_or_default().to_le_bytes());
        Some(std::iter::once(count as u8).chain(sizes).chain(pickle?.iter().copied()).collect::<Vec<u8>>())
    };
    let good = fixtures::root().join("torch");
    let (good, bad): (Vec<_>, Vec<_>) =
        all(&["torch"], "pt").into_iter().partition(|(path, _)| Path::new(path).parent() == Some(&good));
    let of = |files: Vec<(String, Vec<u8>)>| -> Vec<Vec<u8>> {
        files.into_iter().filter_map(|(_, bytes)| pickle(&bytes)).filter(|p| p.len() < 2500).collect()
    };
    of(good).into_iter().chain(spread(of(bad), 40)).collect()
}

fn arrays() -> Vec<Vec<u8>> {
    let array = |descr: &str, order: &str, shape: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        [&b"\x93NUMPY\x01\x00"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    };
    let a = array("<f4", "False", "(4, 2)", &[1; 32]);
    let b = array("<f4", "False", "(2, 4)", &[2; 32]);
    let pair =
        zip(&[("model.layers.0.self_attn.q_proj.lora_a.npy", &a), ("model.layers.0.self_attn.q_proj.lora_b.npy", &b)]);
    vec![pair, a, array("<f2", "True", "(8,)", &[0; 16]), array("|O", "False", "(1,)", b"\x80\x04N.")]
}

fn archives() -> Vec<Vec<u8>> {
    let mut nemo: Vec<_> = all(&["adapters/nemo"], "nemo").into_iter().map(|(_, bytes)| bytes).collect();
    nemo.sort_by_key(Vec::len);
    nemo.truncate(2);
    nemo.retain(|bytes| bytes.len() < 16_384);
    let member = |kind: u8, name: &str, content: &[u8]| {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut out = [&header[..], content].concat();
        out.resize(out.len().next_multiple_of(512), 0);
        out
    };
    let end = [0u8; 1024];
    let plain = [member(b'0', "./model_config.yaml", b"peft:\n  peft_scheme: lora\n"), end.to_vec()].concat();
    let long = [member(b'x', "pax", b"16 path=a/b.txt\n"), member(b'0', "short", b"text"), end.to_vec()].concat();
    let link = [member(b'2', "link", b""), member(b'5', "folder/", b""), end.to_vec()].concat();
    nemo.into_iter().chain([plain, long, link]).collect()
}

fn texts() -> Vec<Vec<u8>> {
    let mut out = found(&["adapters/litgpt", "adapters/nemo", "adapters/torchtune"], "yaml", 6);
    for text in [
        "lora_r: 8\nlora_alpha: 16.5\nnames: [a, 'b', \"c\\n\"]\nnested: {x: ~, y: !!str 1}\nfold: >\n  one\n  two\n",
        "a: &x [1, 2]\nb: *x\n? key\n: value\n\"on\": yes\n1: 0x1F\n.inf: .nan\n---\n",
        r#"{"a": {"b": [1, 2.5, -0.0, 1e300, "\ud83d\ude00", null, true]}, "": {}}"#,
    ] {
        out.push(text.as_bytes().to_vec());
    }
    out
}

/// Keys and extents of adapters of every layout and of models.
fn keys() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for layout in ["native", "diffusers", "kohya", "peft", "mlx", "litgpt", "torchtune", "nemo", "xlabs", "onetrainer"]
    {
        let folder = if layout == "kohya" { "kohya".to_string() } else { format!("adapters/{layout}") };
        let mut cases: Vec<_> =
            fs::read_dir(fixtures::root().join(folder)).expect("a folder").flatten().map(|e| e.path()).collect();
        cases.sort();
        let of = |path: &std::path::PathBuf| {
            let inner = path.join("adapter");
            Source::open(if inner.exists() { &inner } else { path }).ok()
        };
        let opened = cases.iter().filter_map(of).filter(|source| !source.tensors.is_empty());
        files.extend(spread(opened.collect::<Vec<_>>(), 3));
    }
    let line = |(name, tensor): (&String, &lora_tool::tensor::Tensor)| {
        let extents: Vec<String> = tensor.shape.dims().iter().map(ToString::to_string).collect();
        format!("{name}\t{}\n", extents.join(","))
    };
    files
        .iter()
        .map(|source| {
            // Whole lines, of the first modules and the last.
            let lines: Vec<String> = source.tensors.iter().map(line).collect();
            let last = lines.len().saturating_sub(6).max(12.min(lines.len()));
            [lines[..12.min(lines.len())].concat(), lines[last..].concat()].concat().into_bytes()
        })
        .collect()
}

fn random(count: u64, length: usize) -> Vec<Vec<u8>> {
    let bytes = |seed: u64| {
        let mut random = Random::new(seed);
        // Small numbers at first: these choose sizes and kinds.
        (0..length).map(|i| if i < 6 { random.below(8) as u8 } else { (random.bits() >> 32) as u8 }).collect()
    };
    (1..=count).map(bytes).collect()
}

/// The sections of a record that fits the target's model, as the target takes them.
fn record() -> Vec<u8> {
    let place = Place::new();
    let (base, adapter, merged) = undo_record::made(&place);
    let record = place.join("good.undo");
    let paths = [&base, &merged, &adapter].map(|path| text(path));
    let [base, merged, adapter] = &paths;
    let record_text = text(&record);
    let mut line = vec![
        "undo-record",
        base,
        merged,
        "--adapter",
        adapter,
        "-o",
        &record_text,
        "--undo-embed",
        "always",
        "--no-sync",
    ];
    line.push("--quiet");
    program::run(line).expect(0);
    let bytes = fs::read(&record).expect("a record");
    let file = SafeTensors::deserialize(&bytes).expect("a record");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).expect("a record");
    let mut names = metadata.offset_keys();
    names.retain(|name| name != "seal");
    let section = |name: &String| {
        let stored = file.tensor(name).expect("a section").data();
        let unpacked = zstd::stream::decode_all(stored).ok().filter(|_| stored.starts_with(b"\x28\xb5\x2f\xfd"));
        let packed = if unpacked.is_some() { " packed" } else { "" };
        let bytes = unpacked.unwrap_or_else(|| stored.to_vec());
        let length = (bytes.len() as u64).saturating_sub(8).to_le_bytes();
        let head =
            bytes.get(8..).filter(|_| bytes.starts_with(&length)).and_then(|text| std::str::from_utf8(text).ok());
        let (word, content) = match (head, std::str::from_utf8(&bytes)) {
            (Some(text), _) => (" head", text.to_string()),
            (None, Ok(text)) if !text.contains('\0') => ("", text.to_string()),
            _ => (" hex", bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
        };
        format!("{MARK}{name}{packed}{word}\n{content}\n")
    };
    names.iter().map(section).collect::<String>().into_bytes()
}
