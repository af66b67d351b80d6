//! GGUF files whose numbers lie: every pattern behind the fifteen CVE numbers of llama.cpp, ggml and Ollama, and what
//! their fixes forgot. An adapter of llama.cpp is a GGUF file; a base never is one here.

use super::made::{f32s, values};
use super::{ACCEPTED, Corpus, REFUSED};

/// Numbers of the types of values.
const U8: u32 = 0;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const F64: u32 = 12;

/// A file in the making. What is not said otherwise is good.
#[derive(Clone)]
pub struct Gguf {
    magic: [u8; 4],
    version: [u8; 4],
    tensor_count: Option<u64>,
    key_count: Option<u64>,
    keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    infos: Vec<Info>,
    alignment: usize,
    data: Vec<u8>,
}

#[derive(Clone)]
struct Info {
    name: Vec<u8>,
    rank: Option<u32>,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

pub fn text(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

fn array(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
}

impl Gguf {
    /// An adapter of rank 2 for one module.
    pub fn good() -> Gguf {
        let info = |name: &str, dims: [u64; 2], offset| Info {
            name: name.into(),
            rank: None,
            dims: dims.to_vec(),
            kind: 0,
            offset,
        };
        Gguf {
            magic: *b"GGUF",
            version: 3u32.to_le_bytes(),
            tensor_count: None,
            key_count: None,
            keys: vec![
                (b"general.type".to_vec(), TEXT, text(b"adapter")),
                (b"adapter.type".to_vec(), TEXT, text(b"lora")),
                (b"general.architecture".to_vec(), TEXT, text(b"llama")),
                (b"adapter.lora.alpha".to_vec(), F32, 4f32.to_le_bytes().to_vec()),
            ],
            infos: vec![info("blk.0.ffn_up.weight.lora_a", [8, 2], 0), info("blk.0.ffn_up.weight.lora_b", [2, 12], 64)],
            alignment: 32,
            data: f32s(&values("gguf", 40)),
        }
    }

    /// With one more key.
    pub fn key(mut self, key: &[u8], kind: u32, value: &[u8]) -> Gguf {
        self.keys.push((key.to_vec(), kind, value.to_vec()));
        self
    }

    /// With another value for a key.
    pub fn instead(mut self, key: &[u8], kind: u32, value: &[u8]) -> Gguf {
        self.keys.retain(|(name, ..)| name != key);
        self.key(key, kind, value)
    }

    fn info(mut self, change: impl FnOnce(&mut Info)) -> Gguf {
        change(&mut self.infos[0]);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.magic, self.version].concat();
        out.extend(self.tensor_count.unwrap_or(self.infos.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.keys {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for info in &self.infos {
            out.extend(text(&info.name));
            out.extend(info.rank.unwrap_or(info.dims.len() as u32).to_le_bytes());
            info.dims.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(info.kind.to_le_bytes());
            out.extend(info.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }
}

fn refused(cases: &[(&str, Vec<u8>, &[&str])]) {
    let mut corpus = Corpus::new();
    for (case, bytes, words) in cases {
        let path = corpus.file("adapter.gguf", bytes);
        corpus.adapter(case, &path, REFUSED, words);
    }
    // In the place of a base it is refused for what it is.
    for (case, bytes, _) in cases.iter().step_by(4) {
        let path = corpus.file("model.gguf", bytes);
        corpus.base(case, &path, REFUSED, &[]);
        let path = corpus.file("model.safetensors", bytes);
        corpus.base(case, &path, REFUSED, &[]);
    }
    corpus.done();
}

#[test]
fn heads_and_counts() {
    let good = Gguf::good();
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = good.clone();
        change(&mut file);
        file.bytes()
    };
    let cut = |len: usize| good.bytes()[..len].to_vec();
    refused(&[
        ("version 0", with(&|f| f.version = [0; 4]), &["version"]),
        ("version 1", with(&|f| f.version = 1u32.to_le_bytes()), &["version"]),
        ("version 4", with(&|f| f.version = 4u32.to_le_bytes()), &["version"]),
        ("version of the future", with(&|f| f.version = [0xff; 4]), &["version"]),
        ("byte-swapped", with(&|f| f.version = 3u32.to_be_bytes()), &["version"]),
        ("n_tensors 2^64-1", with(&|f| f.tensor_count = Some(u64::MAX)), &["tensor_count"]),
        ("n_tensors 2^63", with(&|f| f.tensor_count = Some(1 << 63)), &["tensor_count"]),
        ("n_tensors times record wraps", with(&|f| f.tensor_count = Some(u64::MAX / 24 + 1)), &["tensor_count"]),
        ("n_tensors one too many", with(&|f| f.tensor_count = Some(3)), &["tensor"]),
        ("n_tensors one too few", with(&|f| f.tensor_count = Some(1)), &["lora_a"]),
        ("n_tensors 2^32", with(&|f| f.tensor_count = Some(1 << 32)), &["tensor_count"]),
        ("n_kv 2^64-1", with(&|f| f.key_count = Some(u64::MAX)), &["kv_count"]),
        ("n_kv 2^63", with(&|f| f.key_count = Some(1 << 63)), &["kv_count"]),
        ("n_kv times record wraps", with(&|f| f.key_count = Some(u64::MAX / 48 + 1)), &["kv_count"]),
        ("n_kv one too many", with(&|f| f.key_count = Some(5)), &["tensor 0", "length"]),
        ("n_kv 0", with(&|f| f.key_count = Some(0)), &["general.type"]),
        ("magic alone", cut(4), &["version"]),
        ("cut in the version", cut(6), &["version"]),
        ("cut in the counts", cut(20), &["tensor_count"]),
        ("cut in a key", cut(30), &["tensor_count"]),
        ("cut in a value", cut(150), &[]),
        ("cut in the tensors", cut(good.bytes().len() - 170), &[]),
        ("cut in the data", cut(good.bytes().len() - 1), &["blk.0.ffn_up.weight.lora_b", "past the end"]),
        ("lower-case magic", with(&|f| f.magic = *b"gguf"), &[]),
        ("magic of ggla", with(&|f| f.magic = *b"ggla"), &[]),
    ]);
}

#[test]
fn keys_and_values() {
    let good = Gguf::good();
    let key = |key: &[u8], kind: u32, value: &[u8]| good.clone().key(key, kind, value).bytes();
    let deep =
        |levels: usize| (1..levels).flat_map(|_| array(ARRAY, 1, b"")).chain(array(U8, 0, b"")).collect::<Vec<_>>();
    // A key whose length alone lies.
    let length = |length: u64| {
        let mut file = good.clone();
        file.keys.clear();
        file.key_count = Some(1);
        let mut bytes = file.bytes();
        bytes.truncate(24);
        bytes.extend(length.to_le_bytes());
        bytes.extend([b'k'; 64]);
        bytes
    };
    let twice = good.clone().key(b"general.type", TEXT, &text(b"adapter")).bytes();
    refused(&[
        ("key length 2^64-1", length(u64::MAX), &["key 0", "length 18446744073709551615"]),
        ("key length 2^63", length(1 << 63), &["key 0", "length"]),
        ("key length + 1 wraps", length(u64::MAX - 1), &["key 0", "length"]),
        ("key length 2^40", length(1 << 40), &["key 0", "length 1099511627776"]),
        ("key length 2^31", length(1 << 31), &["key 0", "length"]),
        ("key of 70,000 bytes", key(&[b'k'; 70_000], U8, &[1]), &["key 4", "70000"]),
        ("empty key", key(b"", U8, &[1]), &["key 4", "empty"]),
        ("key twice", twice, &["general.type", "twice"]),
        ("key that is not UTF-8", key(b"\xff\xfe", U8, &[1]), &["key 4", "UTF-8"]),
        ("key with escape codes", key(b"\x1b[2Jk", 99, &[1]), &["\\u{1b}[2Jk"]),
        ("type 13", key(b"k", 13, &[0; 8]), &["k", "type 13"]),
        ("type 2^32-1", key(b"k", u32::MAX, &[0; 8]), &["k", "type 4294967295"]),
        ("truth of 2", key(b"k", BOOL, &[2]), &["k"]),
        ("text length 2^64-1", key(b"k", TEXT, &u64::MAX.to_le_bytes()), &["k", "length"]),
        ("text length 2^64-8", key(b"k", TEXT, &(u64::MAX - 7).to_le_bytes()), &["k", "length"]),
        ("text length 2^40", key(b"k", TEXT, &(1u64 << 40).to_le_bytes()), &["k", "length"]),
        ("text that is not UTF-8", key(b"k", TEXT, &text(b"a\xff")), &["k", "UTF-8"]),
        ("array of 2^64-1", key(b"k", ARRAY, &array(U8, u64::MAX, b"")), &["k", "count"]),
        ("array of 2^61", key(b"k", ARRAY, &array(F64, 1 << 61, b"")), &["k", "count"]),
        ("array whose size wraps", key(b"k", ARRAY, &array(U64, (1 << 61) + 1, b"12345678")), &["k", "count"]),
        ("array of 2^40 texts", key(b"k", ARRAY, &array(TEXT, 1 << 40, b"")), &["k", "count"]),
        ("array of 2^60 texts", key(b"k", ARRAY, &array(TEXT, 1 << 60, b"")), &["k", "count"]),
        ("array of text that lies", key(b"k", ARRAY, &array(TEXT, 1, &u64::MAX.to_le_bytes())), &["k", "length"]),
        ("array of type 77", key(b"k", ARRAY, &array(77, 1, b"1")), &["k", "type 77"]),
        ("array of truths", key(b"k", ARRAY, &array(BOOL, 2, b"\x01\x07")), &["k"]),
        ("arrays 9 deep", key(b"k", ARRAY, &deep(9)), &["k", "more than 4 levels"]),
        ("arrays 100,000 deep", key(b"k", ARRAY, &deep(100_000)), &["k", "more than 4 levels"]),
        ("array of arrays that lies", key(b"k", ARRAY, &array(ARRAY, 1 << 58, b"")), &["k", "count"]),
    ]);
}

#[test]
fn alignments() {
    let good = Gguf::good();
    let with = |kind: u32, value: &[u8]| good.clone().key(b"general.alignment", kind, value).bytes();
    let number = |value: u32| with(U32, &value.to_le_bytes());
    let words: &[&str] = &["general.alignment"];
    refused(&[
        ("0", number(0), words),
        ("3", number(3), words),
        ("33", number(33), words),
        ("2^31", number(1 << 31), words),
        ("2^32-1", number(u32::MAX), words),
        ("2^17", number(1 << 17), words),
        ("i32", with(I32, &32i32.to_le_bytes()), words),
        ("u64", with(U64, &32u64.to_le_bytes()), words),
        ("f32", with(F32, &32f32.to_le_bytes()), words),
        ("text", with(TEXT, &text(b"32")), words),
        ("array", with(ARRAY, &array(U32, 1, &32u32.to_le_bytes())), words),
        ("truth", with(BOOL, &[1]), words),
        ("another than the offsets have", number(128), &["lora_b", "multiple of 128"]),
    ]);
}

#[test]
fn tensors() {
    let good = Gguf::good();
    let a = "blk.0.ffn_up.weight.lora_a";
    let dims = |dims: &[u64]| good.clone().info(|i| i.dims = dims.to_vec()).bytes();
    let offset = |offset: u64| good.clone().info(|i| i.offset = offset).bytes();
    let kind = |kind: u32| good.clone().info(|i| i.kind = kind).bytes();
    let both = {
        let mut file = good.clone();
        file.infos[1].name = file.infos[0].name.clone();
        file.bytes()
    };
    let huge = {
        // The sum of the padded sizes wraps.
        let mut file = good.clone();
        file.infos[0].dims = vec![1 << 61];
        file.infos[1].dims = vec![1 << 61];
        file.bytes()
    };
    let behind = good.clone().info(|i| i.offset = 64).bytes();
    refused(&[
        ("5 dimensions", dims(&[8, 2, 1, 1, 1]), &[a, "n_dimensions 5"]),
        ("2^32-1 dimensions", good.clone().info(|i| i.rank = Some(u32::MAX)).bytes(), &[a, "n_dimensions 4294967295"]),
        ("64 dimensions", good.clone().info(|i| i.rank = Some(64)).bytes(), &[a, "n_dimensions 64"]),
        ("0 dimensions", dims(&[]), &["blk.0.ffn_up.weight", "lora_a []"]),
        ("extent 0", dims(&[0, 2]), &[a]),
        ("both extents 0", dims(&[0, 0]), &[a]),
        ("extent 2^63", dims(&[1 << 63, 2]), &[a]),
        ("extent 2^64-1", dims(&[u64::MAX, 1]), &[a]),
        ("extent -8", dims(&[(-8i64) as u64, 2]), &[a]),
        ("product wraps to 0", dims(&[1 << 32, 1 << 32]), &[a]),
        ("product wraps to 16", dims(&[(1 << 62) + 4, 4]), &[a]),
        ("bytes wrap", dims(&[1 << 62, 1]), &[a]),
        ("bytes wrap to 64", dims(&[(1 << 62) + 16, 1]), &[a]),
        ("exabytes in 4 MB", dims(&[1 << 40, 1 << 20]), &[a]),
        ("wraps before a 0", dims(&[1 << 40, 1 << 40, 0]), &[a]),
        ("larger than the data", dims(&[8, 200]), &[a, "past the end"]),
        ("one row too many", dims(&[8, 6]), &[]),
        ("padded sizes wrap", huge, &["blk.0.ffn_up.weight.lora_", "overflow"]),
        ("offset that is not aligned", offset(4), &[a, "multiple of 32"]),
        ("offset 2^64-32", offset(u64::MAX - 31), &[a, "past the end"]),
        ("offset 2^63", offset(1 << 63), &[a, "past the end"]),
        ("offset behind the end", offset(1 << 20), &[a, "past the end"]),
        ("offset into another", behind, &["overlaps"]),
        ("name twice", both, &[a, "twice"]),
        ("empty name", good.clone().info(|i| i.name.clear()).bytes(), &["tensor 0", "empty"]),
        ("name that is not UTF-8", good.clone().info(|i| i.name = b"a\xff".to_vec()).bytes(), &["tensor 0", "UTF-8"]),
        ("type 4, removed", kind(4), &[a, "type 4"]),
        ("type 99", kind(99), &[a, "type 99"]),
        ("type 2^32-1", kind(u32::MAX), &[a, "type 4294967295"]),
        ("rows that are no blocks", kind(8), &[a, "blocks"]),
        ("blocks of K", good.clone().info(|i| (i.kind, i.dims) = (12, vec![256, 1])).bytes(), &[a]),
        ("integers", kind(26), &[a, "I32"]),
        ("f64", good.clone().info(|i| (i.kind, i.dims) = (28, vec![4, 2])).bytes(), &[a]),
        ("one dimension", dims(&[16]), &["blk.0.ffn_up.weight", "lora_a [16]"]),
        ("three dimensions", dims(&[8, 2, 1]), &["blk.0.ffn_up.weight", "lora_a [1, 2, 8]"]),
        ("ranks that differ", dims(&[4, 4]), &["rank"]),
        (
            "a name that says no half",
            good.clone().info(|i| i.name = b"blk.0.ffn_up.weight".to_vec()).bytes(),
            &["blk.0.ffn_up.weight"],
        ),
        (
            "block 2^64",
            good.clone().info(|i| i.name = b"blk.18446744073709551616.ffn_up.weight.lora_a".to_vec()).bytes(),
            &["ffn_up"],
        ),
        ("escape codes", good.clone().info(|i| i.name = b"\x1b]0;x\x07\x9b".to_vec()).bytes(), &["tensor 0"]),
        (
            "escape codes in UTF-8",
            good.clone().info(|i| i.name = "\u{1b}]0;x\u{7}\u{9b}\u{202e}".into()).bytes(),
            &["\\u{1b}]0;x"],
        ),
    ]);
}

#[test]
fn what_an_adapter_says() {
    let good = Gguf::good();
    let with = |key: &[u8], kind: u32, value: &[u8]| good.clone().instead(key, kind, value).bytes();
    let without = |key: &[u8]| {
        let mut file = good.clone();
        file.keys.retain(|(name, ..)| name != key);
        file.bytes()
    };
    let alpha = |kind: u32, value: &[u8]| with(b"adapter.lora.alpha", kind, value);
    let words: &[&str] = &["adapter.lora.alpha"];
    refused(&[
        ("alpha of u32", alpha(U32, &4u32.to_le_bytes()), words),
        ("alpha of f64", alpha(F64, &4f64.to_le_bytes()), words),
        ("alpha of text", alpha(TEXT, &text(b"4")), words),
        ("alpha of arrays", alpha(ARRAY, &array(F32, 1, &4f32.to_le_bytes())), words),
        ("alpha of bytes as an array", alpha(ARRAY, &array(U8, 4, b"\0\0\x80\x40")), words),
        ("alpha NaN", alpha(F32, &f32::NAN.to_le_bytes()), words),
        ("alpha infinite", alpha(F32, &f32::INFINITY.to_le_bytes()), words),
        ("a model", with(b"general.type", TEXT, &text(b"model")), &["general.type"]),
        ("a type that is no text", with(b"general.type", U32, &[0; 4]), &["general.type"]),
        ("another kind", with(b"adapter.type", TEXT, &text(b"control_vector")), &["adapter.type"]),
        ("a kind that is no text", with(b"adapter.type", ARRAY, &array(U8, 4, b"lora")), &["adapter.type"]),
        ("no kind", without(b"adapter.type"), &["adapter.type"]),
        ("no architecture", without(b"general.architecture"), &["general.architecture"]),
        ("an architecture that is a number", with(b"general.architecture", U32, &[0; 4]), &["general.architecture"]),
        (
            "an unknown architecture",
            with(b"general.architecture", TEXT, &text(b"\x1b[31mno")),
            &["general.architecture"],
        ),
        (
            "no tensors",
            {
                let mut file = good.clone();
                file.infos.clear();
                file.bytes()
            },
            &[],
        ),
    ]);
}

#[test]
fn odd_but_legal_files() {
    let mut corpus = Corpus::new();
    let good = Gguf::good();
    for (case, bytes) in [
        ("as it is", good.bytes()),
        ("version 2", {
            let mut file = good.clone();
            file.version = 2u32.to_le_bytes();
            file.bytes()
        }),
        ("no alpha", {
            let mut file = good.clone();
            file.keys.pop();
            file.bytes()
        }),
        ("unknown keys", good.clone().key(b"x.y", ARRAY, &array(TEXT, 2, &[text(b"a"), text(b"")].concat())).bytes()),
        ("arrays in arrays", good.clone().key(b"x", ARRAY, &array(ARRAY, 1, &array(U8, 1, b"1"))).bytes()),
        ("an empty array", good.clone().key(b"x", ARRAY, &array(F64, 0, b"")).bytes()),
        ("bytes behind the data", [good.bytes(), vec![0; 24]].concat()),
        ("alignment 1", {
            let mut file = good.clone().key(b"general.alignment", U32, &1u32.to_le_bytes());
            file.alignment = 1;
            file.bytes()
        }),
    ] {
        let path = corpus.file("adapter.gguf", &bytes);
        corpus.adapter(case, &path, ACCEPTED, &[]);
    }
    corpus.done();
}

/// As many keys and tensors as a file of a few megabytes has.
#[test]
fn very_many_of_them() {
    let mut corpus = Corpus::new();
    let mut file = Gguf::good();
    for number in 0..50_000 {
        file.keys.push((format!("k{number}").into_bytes(), U8, vec![1]));
    }
    let path = corpus.file("adapter.gguf", &file.bytes());
    corpus.adapter("50,000 keys", &path, ACCEPTED, &[]);
    let mut file = Gguf::good();
    for number in 0..50_000 {
        file.infos.push(Info { name: format!("t{number}").into(), rank: None, dims: vec![0], kind: 0, offset: 0 });
    }
    let path = corpus.file("adapter.gguf", &file.bytes());
    corpus.adapter("50,000 tensors", &path, REFUSED, &["t"]);
    corpus.done();
}
