//! Bases that are broken: indexes that lead elsewhere, shards that are not there, values and shapes an adapter cannot
//! be added to.

use super::made::{self, BASE_CONFIG, base, base_entries, f32s, tensors};
use super::{BAD_BASE, Corpus, Verdict, Verdicts};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
/// A base that is sound by itself; `convert` has no use for it.
const NO_MERGE: Verdicts = [Verdict::Open, Verdict::Open, Verdict::Refused];
const GOOD: Verdicts = [Verdict::Accepted, Verdict::Refused, Verdict::Accepted];

/// The base in two shards, and the map of its tensors.
fn shards() -> (Vec<u8>, Vec<u8>, Vec<(String, &'static str)>) {
    let entries = base_entries();
    let (one, two) = entries.split_at(10);
    let place = |all: &[made::Entry], file| all.iter().map(|e| (e.0.clone(), file)).collect::<Vec<_>>();
    (tensors(one), tensors(two), [place(one, FIRST), place(two, SECOND)].concat())
}

fn index(map: &[(String, &str)]) -> String {
    let all: Vec<_> = map.iter().map(|(name, file)| format!("{}:{}", quoted(name), quoted(file))).collect();
    format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{}}}}}"#, all.join(","))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[test]
fn names_that_lead_elsewhere() {
    let mut corpus = Corpus::new();
    let (one, two, map) = shards();
    let outside = corpus.path("outside.safetensors");
    std::fs::write(&outside, &two).unwrap();
    let outside = outside.to_str().unwrap().to_string();
    let long = format!("{}.safetensors", "x".repeat(300));
    for name in [
        "../outside.safetensors",
        "../../outside.safetensors",
        "..",
        ".",
        "",
        "/",
        "/dev/zero",
        "/etc/passwd",
        &outside,
        "sub/../x.safetensors",
        "./x.safetensors",
        "sub/x.safetensors",
        r"..\x.safetensors",
        r"C:\x.safetensors",
        "C:x.safetensors",
        "file:///x.safetensors",
        "https://localhost/x.safetensors",
        "x\0.safetensors",
        INDEX,
        "pytorch_model.bin",
        "\u{1b}[2J",
        "~/x.safetensors/",
        "x.safetensors\n/y",
        &long,
    ] {
        let mut map = map.clone();
        map[15].1 = name;
        let text = index(&map);
        let path = corpus.files(&[
            (FIRST, &one),
            (SECOND, &two),
            (INDEX, text.as_bytes()),
            ("config.json", BASE_CONFIG.as_bytes()),
        ]);
        let words: &[&str] = if name == long { &["x.safetensors"] } else { &[INDEX, &map[15].0, "shard name"] };
        corpus.base(&format!("{:.40}", name.escape_debug().to_string()), &path, BAD_BASE, words);
    }
    corpus.done();
}

#[test]
fn indexes_that_are_none() {
    let mut corpus = Corpus::new();
    let (one, two, map) = shards();
    let (a, deep) = (&map[0].0, "[".repeat(100_000));
    let twice = index(&map).replacen("\"weight_map\":{", &format!("\"weight_map\":{{{}:\"{SECOND}\",", quoted(a)), 1);
    let good = index(&map);
    let cases: Vec<(&str, String, Vec<&str>)> = vec![
        ("empty", String::new(), vec![]),
        ("an array", "[]".into(), vec!["array"]),
        ("no weight_map", "{}".into(), vec!["weight_map"]),
        ("a weight_map of null", r#"{"weight_map":null}"#.into(), vec!["weight_map"]),
        ("a weight_map that is a list", r#"{"weight_map":[]}"#.into(), vec!["weight_map"]),
        ("a weight_map of nothing", r#"{"weight_map":{}}"#.into(), vec!["weight_map"]),
        ("values that are numbers", r#"{"weight_map":{"a":1}}"#.into(), vec!["a", "number"]),
        ("values that are lists", format!(r#"{{"weight_map":{{"a":["{FIRST}"]}}}}"#), vec!["a", "array"]),
        ("values that are null", r#"{"weight_map":{"a":null}}"#.into(), vec!["a", "null"]),
        ("a tensor twice", twice, vec![a, "twice"]),
        ("weight_map twice", good.replacen('{', r#"{"weight_map":{},"#, 1), vec!["weight_map", "twice"]),
        ("100,000 levels", format!(r#"{{"weight_map":{{"a":{deep}"#), vec!["64"]),
        ("cut", good[..good.len() / 2].to_string(), vec!["column"]),
        ("a byte-order mark", format!("\u{feff}{good}"), vec!["byte-order mark"]),
        ("text behind", format!("{good} x"), vec![]),
        ("metadata that is a number", good.replacen(r#"{"total_size":1}"#, "7", 1), vec!["metadata"]),
        (
            "a tensor that is nowhere",
            good.replacen("\"weight_map\":{", &format!("\"weight_map\":{{\"nowhere\":\"{SECOND}\","), 1),
            vec!["nowhere", SECOND],
        ),
        (
            "a tensor in another shard",
            index(
                &map.iter()
                    .enumerate()
                    .map(|(i, (name, file))| (name.clone(), if i == 0 { SECOND } else { *file }))
                    .collect::<Vec<_>>(),
            ),
            vec![a, SECOND],
        ),
        (
            "escape codes",
            good.replacen("\"weight_map\":{", &format!("\"weight_map\":{{\"\\u001b[2J\":\"{SECOND}\","), 1),
            vec!["\\u{1b}[2J"],
        ),
    ];
    for (case, text, words) in &cases {
        let path = corpus.files(&[
            (FIRST, &one),
            (SECOND, &two),
            (INDEX, text.as_bytes()),
            ("config.json", BASE_CONFIG.as_bytes()),
        ]);
        corpus.base(case, &path, BAD_BASE, &[words.as_slice(), &[INDEX]].concat());
    }
    let many: Vec<_> = (0..100_001).map(|i| format!("\"t{i}\":\"s{i}.safetensors\"")).collect();
    let text = format!(r#"{{"weight_map":{{{}}}}}"#, many.join(","));
    let path = corpus.files(&[(INDEX, text.as_bytes())]);
    corpus.base("100,001 shards", &path, BAD_BASE, &[INDEX, "100001 shards", "at most 100000"]);
    for (case, text) in [
        ("as it is", good.clone()),
        ("a total of text", good.replacen("\"total_size\":1", "\"total_size\":\"much\"", 1)),
        ("no metadata", good.replacen(r#""metadata":{"total_size":1},"#, "", 1)),
        ("more fields", good.replacen('{', r#"{"more":[1,{}],"#, 1)),
        ("ends of lines", good.replace(',', ",\r\n")),
    ] {
        let path = corpus.files(&[
            (FIRST, &one),
            (SECOND, &two),
            (INDEX, text.as_bytes()),
            ("config.json", BASE_CONFIG.as_bytes()),
        ]);
        corpus.base(case, &path, GOOD, &[]);
    }
    corpus.done();
}

#[test]
fn shards_that_are_none() {
    let mut corpus = Corpus::new();
    let (one, two, map) = shards();
    let text = index(&map);
    let contents: [(&str, &[u8], &[&str]); 6] = [
        ("cut in the header", &two[..100], &["header"]),
        ("cut in the data", &two[..two.len() - 4], &["lm_head.weight", "data_offsets"]),
        ("empty", &[], &["0 bytes"]),
        ("a pickle", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.                    ", &["pickle"]),
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", &["LFS"]),
        ("the other one", &one, &[]),
    ];
    for (case, bytes, words) in contents {
        let path = corpus.files(&[(FIRST, &one), (SECOND, bytes), (INDEX, text.as_bytes())]);
        corpus.base(case, &path, BAD_BASE, words);
    }
    for case in
        ["missing", "a folder", "a FIFO", "a device", "a loop of links", "a dangling link", "a link to the folder"]
    {
        let path = corpus.files(&[(FIRST, &one), (INDEX, text.as_bytes())]);
        let second = path.join(SECOND);
        let link = |to: &str| std::os::unix::fs::symlink(to, &second).unwrap();
        match case {
            "a folder" => std::fs::create_dir(&second).unwrap(),
            "a FIFO" => super::special::fifo(&second),
            "a device" => link("/dev/zero"),
            "a loop of links" => link(SECOND),
            "a dangling link" => link("nowhere"),
            "a link to the folder" => link("."),
            _ => {}
        }
        corpus.base(case, &path, BAD_BASE, &[SECOND]);
    }
    let path = corpus.files(&[(FIRST, &one), (SECOND, &two)]);
    corpus.base("no index", &path, BAD_BASE, &[]);
    corpus.done();
}

#[test]
fn contents() {
    let mut corpus = Corpus::new();
    let with = |change: &dyn Fn(&mut made::Entry)| {
        let mut entries = base_entries();
        change(entries.iter_mut().find(|e| e.0.ends_with("layers.0.self_attn.q_proj.weight")).unwrap());
        tensors(&entries)
    };
    let q = "layers.0.self_attn.q_proj";
    let cases: Vec<(&str, Vec<u8>, Verdicts, Vec<&str>)> = vec![
        ("no tensors", tensors(&[]), NO_MERGE, vec![]),
        (
            "NaN where it is changed",
            with(&|e| e.3[..4].copy_from_slice(&f32::NAN.to_le_bytes())),
            NO_MERGE,
            vec![q, "NaN", "[0, 0]"],
        ),
        (
            "infinity where it is changed",
            with(&|e| e.3[40..44].copy_from_slice(&f32::INFINITY.to_le_bytes())),
            NO_MERGE,
            vec![q, "[1, 2]"],
        ),
        ("integers", with(&|e| e.1 = "I32"), NO_MERGE, vec![q, "I32"]),
        ("complex numbers", with(&|e| (e.1, e.2) = ("C64", vec![8, 4])), NO_MERGE, vec![q]),
        ("a vector", with(&|e| e.2 = vec![64]), NO_MERGE, vec![q, "[64]"]),
        ("another shape", with(&|e| e.2 = vec![4, 16]), NO_MERGE, vec![q, "[4, 16]"]),
        ("three dimensions", with(&|e| e.2 = vec![2, 4, 8]), NO_MERGE, vec![q, "[2, 4, 8]"]),
        ("no elements", with(&|e| (e.2, e.3) = (vec![0, 8], vec![])), NO_MERGE, vec![q, "[0, 8]"]),
        ("numbers of 4 bits", with(&|e| (e.1, e.2, e.3) = ("F4", vec![8, 8], vec![0; 32])), NO_MERGE, vec![q, "F4"]),
        ("an adapter", made::good_adapter().1, NO_MERGE, vec![]),
    ];
    for (case, bytes, verdicts, words) in &cases {
        let path = corpus.files(&[("model.safetensors", bytes), ("config.json", BASE_CONFIG.as_bytes())]);
        corpus.base(case, &path, *verdicts, words);
    }
    let other = base_entries().into_iter().map(|mut e| {
        e.0 = e.0.replace("model.layers", "transformer.h");
        e
    });
    let path = corpus.file("model.safetensors", &tensors(&other.collect::<Vec<_>>()));
    corpus.base("another model", &path, NO_MERGE, &["q_proj"]);
    let path = corpus
        .files(&[("model.safetensors", &base()), ("config.json", b"{\"model_type\": 7, \"quantization_config\": [[")]);
    corpus.base("a config that is cut", &path, NO_MERGE, &["config.json"]);
    let path = corpus.files(&[
        ("model.safetensors", &base()),
        ("config.json", br#"{"model_type":"\u001b[2J","architectures":["\u202e"],"torch_dtype":"\u0007"}"#),
    ]);
    corpus.base("a config of escape codes", &path, GOOD, &[]);
    let mut entries = base_entries();
    entries.push(("\u{1b}[2J\u{202e}".into(), "F32", vec![1], f32s(&[1.0])));
    let path = corpus.files(&[("model.safetensors", &tensors(&entries)), ("config.json", BASE_CONFIG.as_bytes())]);
    corpus.base("a name of escape codes", &path, GOOD, &[]);
    let path = corpus.files(&[("config.json", BASE_CONFIG.as_bytes())]);
    corpus.base("no tensor file", &path, BAD_BASE, &[]);
    let path = corpus.place();
    corpus.base("an empty folder", &path, BAD_BASE, &[]);
    corpus.done();
}
