//! safetensors headers that lie, in the place of an adapter and of a base. What `hostile::headers` shows of the reader
//! is not repeated case by case: here is one of every kind, and what only the program can do wrong.

use super::super::safetensors;
use super::made::{self, good_entries, tensors};
use super::{ACCEPTED, Corpus, REFUSED};

/// `{"w": {…}}` over eight bytes.
fn entry(fields: &str) -> Vec<u8> {
    safetensors(format!(r#"{{"w":{{{fields}}}}}"#), [0; 8])
}

fn refused(cases: &[(&str, Vec<u8>, &[&str])]) {
    let mut corpus = Corpus::new();
    for (number, (case, bytes, words)) in cases.iter().enumerate() {
        let path = corpus.peft(bytes);
        corpus.adapter(case, &path, REFUSED, words);
        let path = match number % 2 {
            0 => corpus.file("model.safetensors", bytes),
            _ => corpus.files(&[("model.safetensors", bytes), ("config.json", made::BASE_CONFIG.as_bytes())]),
        };
        corpus.base(case, &path, REFUSED, words);
    }
    corpus.done();
}

#[test]
fn lengths() {
    let good = tensors(&good_entries());
    let length = |n: u64| [&n.to_le_bytes(), &good[8..]].concat();
    let mut sparse = vec![0u8; 200];
    sparse[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    refused(&[
        ("no bytes", vec![], &["0 bytes"]),
        ("1 byte", good[..1].to_vec(), &["1 bytes"]),
        ("7 bytes", good[..7].to_vec(), &["7 bytes"]),
        ("8 bytes", good[..8].to_vec(), &["header of"]),
        ("N = 0", length(0), &["header of 0 bytes"]),
        ("N = 1", length(1), &["header"]),
        ("N beyond the end", length(good.len() as u64), &["header of", "file of"]),
        ("N = 2^63", length(1 << 63), &["header of 9223372036854775808"]),
        ("N = 2^64-8", length(u64::MAX - 7), &["header of 18446744073709551608"]),
        ("N = 2^64-1", length(u64::MAX), &["header of 18446744073709551615"]),
        ("big-endian", [&((good.len() - 8) as u64).to_be_bytes(), &good[8..]].concat(), &["header of"]),
        ("cut in the header", good[..100].to_vec(), &["header of"]),
        ("cut in the data", good[..good.len() - 1].to_vec(), &["data_offsets"]),
        ("above the cap", sparse, &["header of 100000001"]),
    ]);
}

/// The header is as long as the limit says, and more, in a file that is long enough.
#[test]
fn a_header_above_the_limit() {
    let mut corpus = Corpus::new();
    let path = corpus.file("a.safetensors", &100_000_001u64.to_le_bytes());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
    corpus.adapter("a sparse file", &path, REFUSED, &["header of 100000001", "at most 100000000"]);
    let path = corpus.file("b.safetensors", &50_000_000u64.to_le_bytes());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
    corpus.base("a header of zeros", &path, REFUSED, &["header"]);
    corpus.done();
}

#[test]
fn json() {
    let raw = |text: &[u8]| safetensors(text, []);
    let deep = "[".repeat(100_000);
    let closed = format!("{deep}{}", "]".repeat(100_000));
    let objects = r#"{"a":"#.repeat(100_000);
    let good = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused(&[
        ("not UTF-8", raw(b"{\"\xff\":1}"), &["not UTF-8 at byte 2"]),
        ("not JSON", raw(b"hello there"), &["header"]),
        ("an array", raw(b"[1]"), &["header"]),
        ("a string", raw(b"\"{}\""), &["header"]),
        ("null", raw(b"null"), &["header"]),
        ("cut", raw(b"{\"w\":{\"dtype\":\"F32\""), &["w"]),
        ("text behind", safetensors(format!("{good} x"), [0; 8]), &["header"]),
        ("a second object", safetensors(format!("{good}{good}"), [0; 8]), &["header"]),
        ("NUL behind", safetensors(format!("{good}\0"), [0; 8]), &["header"]),
        ("byte-order mark", safetensors(format!("\u{feff}{good}"), [0; 8]), &["header"]),
        ("UTF-16", safetensors(utf16, [0; 8]), &["header"]),
        ("lone surrogate", raw(br#"{"\ud800":{}}"#), &["header", "column"]),
        ("single quotes", raw(b"{'w':1}"), &["header"]),
        ("comment", raw(b"{/**/}"), &["header"]),
        ("trailing comma", safetensors(good.replace("]}}", "]},}"), [0; 8]), &["header"]),
        ("NaN", entry(r#""dtype":"F32","shape":[NaN],"data_offsets":[0,8]"#), &["w"]),
        ("control character", raw(b"{\"a\x1b[31m\":1}"), &["header"]),
        ("100,000 arrays", raw(format!(r#"{{"w":{closed}}}"#).as_bytes()), &["w", "deeper than 64"]),
        ("100,000 arrays, open", raw(deep.as_bytes()), &["header"]),
        ("100,000 objects", raw(objects.as_bytes()), &["deep"]),
        (
            "deep in the metadata",
            raw(format!(r#"{{"__metadata__":{{"a":{closed}}}}}"#).as_bytes()),
            &["deeper than 64"],
        ),
        (
            "deep in a field",
            entry(&format!(r#""x":{closed},"dtype":"F32","shape":[2],"data_offsets":[0,8]"#)),
            &["w", "deeper than 64"],
        ),
        ("deep in the shape", entry(&format!(r#""dtype":"F32","shape":{closed},"data_offsets":[0,8]"#)), &["w"]),
    ]);
}

#[test]
fn entries() {
    let w = |dtype: &str, shape: &str, range: &str| {
        entry(&format!(r#""dtype":{dtype},"shape":{shape},"data_offsets":{range}"#))
    };
    let shape = |shape: &str| w("\"F32\"", shape, "[0,8]");
    let range = |range: &str| w("\"F32\"", "[2]", range);
    let f = r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let long = "x".repeat(70_000);
    refused(&[
        ("twice", safetensors(format!(r#"{{"w":{f},"w":{f}}}"#), [0; 8]), &["w", "twice"]),
        ("twice by escapes", safetensors(format!(r#"{{"w":{f},"\u0077":{f}}}"#), [0; 8]), &["w", "twice"]),
        (
            "field twice",
            entry(r#""dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]"#),
            &["w", "dtype", "twice"],
        ),
        (
            "metadata twice",
            safetensors(format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"w":{f}}}"#), [0; 8]),
            &["__metadata__", "twice"],
        ),
        (
            "metadata key twice",
            safetensors(format!(r#"{{"__metadata__":{{"a":"1","a":"2"}},"w":{f}}}"#), [0; 8]),
            &["__metadata__", "`a`", "twice"],
        ),
        (
            "metadata of numbers",
            safetensors(format!(r#"{{"__metadata__":{{"a":1}},"w":{f}}}"#), [0; 8]),
            &["__metadata__", "a", "number"],
        ),
        (
            "metadata of objects",
            safetensors(format!(r#"{{"__metadata__":{{"a":{{}}}},"w":{f}}}"#), [0; 8]),
            &["__metadata__", "a"],
        ),
        (
            "metadata of null",
            safetensors(format!(r#"{{"__metadata__":{{"a":null}},"w":{f}}}"#), [0; 8]),
            &["__metadata__", "a"],
        ),
        (
            "metadata is an array",
            safetensors(format!(r#"{{"__metadata__":[],"w":{f}}}"#), [0; 8]),
            &["__metadata__", "array"],
        ),
        ("no dtype", entry(r#""shape":[2],"data_offsets":[0,8]"#), &["w", "dtype"]),
        ("no shape", entry(r#""dtype":"F32","data_offsets":[0,8]"#), &["w", "shape"]),
        ("no offsets", entry(r#""dtype":"F32","shape":[2]"#), &["w", "data_offsets"]),
        ("an entry that is a number", safetensors(r#"{"w":7}"#, [0; 8]), &["w"]),
        ("an entry that is null", safetensors(r#"{"w":null}"#, [0; 8]), &["w"]),
        ("dtype of numbers", w("7", "[2]", "[0,8]"), &["w", "dtype"]),
        ("dtype unknown", w("\"F31\"", "[2]", "[0,8]"), &["w", "dtype", "F31"]),
        ("dtype in lower case", w("\"f32\"", "[2]", "[0,8]"), &["w", "dtype", "f32"]),
        ("dtype with escape codes", w(r#""\u001b[31mF32""#, "[2]", "[0,8]"), &["w", "dtype"]),
        ("dtype of 70,000 letters", w(&format!("\"{long}\""), "[2]", "[0,8]"), &["w", "dtype"]),
        ("shape of text", shape(r#"["2"]"#), &["w", "shape"]),
        ("shape is a number", shape("2"), &["w", "shape"]),
        ("negative shape", shape("[-2]"), &["w", "shape", "-2"]),
        ("fractional shape", shape("[2.0]"), &["w", "shape", "2.0"]),
        ("shape of truth", shape("[true]"), &["w", "shape"]),
        ("shape 2^64", shape("[18446744073709551616]"), &["w", "shape"]),
        ("shape 1e400", shape("[1e400]"), &["w"]),
        ("shape in shape", shape("[[2]]"), &["w", "shape"]),
        ("product wraps to 2", shape("[4294967296,4294967296,2]"), &["w", "overflow"]),
        ("product wraps, then 0", shape("[4294967296,4294967296,0]"), &["w"]),
        ("bits wrap", shape("[9223372036854775808]"), &["w", "overflow"]),
        ("bytes wrap to 8", shape("[4611686018427387906]"), &["w", "overflow"]),
        ("9 dimensions", shape("[2,1,1,1,1,1,1,1,1]"), &["w", "9 dimensions"]),
        ("10,000 dimensions", shape(&format!("[{}2]", "1,".repeat(10_000))), &["w", "dimensions"]),
        ("size too small", shape("[1]"), &["w", "4 bytes", "[0, 8]"]),
        ("size too large", shape("[3]"), &["w", "12 bytes", "[0, 8]"]),
        ("half a byte", w("\"F4\"", "[15]", "[0,8]"), &["w"]),
        ("reversed", range("[8,0]"), &["w", "[8, 0]"]),
        ("one offset", range("[0]"), &["w", "data_offsets"]),
        ("three offsets", range("[0,4,8]"), &["w", "data_offsets"]),
        ("offsets of text", range(r#"["0","8"]"#), &["w", "data_offsets"]),
        ("negative offset", range("[-8,0]"), &["w", "data_offsets"]),
        ("fractional offset", range("[0,8.0]"), &["w", "data_offsets"]),
        ("offset 2^64", range("[0,18446744073709551616]"), &["w", "data_offsets"]),
        ("offset 2^64-1", range("[18446744073709551607,18446744073709551615]"), &["w", "data_offsets"]),
        ("offsets are an object", range("{}"), &["w", "data_offsets"]),
        ("past the end", w("\"F32\"", "[4]", "[0,16]"), &["w", "[0, 16]"]),
        ("not from 0", w("\"F32\"", "[1]", "[4,8]"), &["w", "[4, 8]", "hole"]),
        ("bytes behind the last", w("\"F32\"", "[1]", "[0,4]"), &["w", "byte 4 of 8"]),
        ("no tensors, but bytes", safetensors("{}", [0; 8]), &["8 bytes"]),
        (
            "overlap",
            safetensors(
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                [0; 8],
            ),
            &["b", "overlap"],
        ),
        (
            "hole",
            safetensors(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[6],"data_offsets":[2,8]}}"#,
                [0; 8],
            ),
            &["b", "hole"],
        ),
        ("name of 70,000 bytes", safetensors(format!(r#"{{"{long}":{f}}}"#), [0; 8]), &["xxx", "70000"]),
        (
            "name with escape codes",
            safetensors(r#"{"\u001b[2J\u202e":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, [0; 8]),
            &["\\u{1b}[2J\\u{202e}"],
        ),
    ]);
}

#[test]
fn other_files_under_the_name() {
    let hello = b"hello ".repeat(40);
    refused(&[
        (
            "LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n".to_vec(),
            &["Git LFS pointer"],
        ),
        ("HTML", b"<!DOCTYPE html><html><body>404</body></html>".to_vec(), &["HTML"]),
        ("JSON error", b"{\"error\":\"Repository not found\"}".to_vec(), &["JSON"]),
        ("text", hello, &["text"]),
        ("zip", [b"PK\x03\x04".as_slice(), &[0; 80]].concat(), &["zip"]),
        ("pickle", [b"\x80\x02}q\x00.".as_slice(), &[b' '; 80]].concat(), &["pickle"]),
        ("GGUF", super::gguf::Gguf::good().bytes(), &["GGUF"]),
        ("gzip", [b"\x1f\x8b\x08\0".as_slice(), &[0xb5; 800]].concat(), &["gzip"]),
        ("npy", [b"\x93NUMPY\x01\0".as_slice(), &[b' '; 100]].concat(), &["NumPy"]),
        ("zstd", [b"\x28\xb5\x2f\xfd".as_slice(), &[0xb5; 800]].concat(), &["header of"]),
        ("7z", [b"7z\xbc\xaf\x27\x1c".as_slice(), &[0xb5; 800]].concat(), &["header of"]),
        ("ELF", [b"\x7fELF\x02\x01\x01\0".as_slice(), &[0; 800]].concat(), &["header of"]),
        ("zeros", vec![0; 4096], &["header of 0 bytes"]),
        ("ones", vec![0xff; 4096], &["header of 18446744073709551615"]),
    ]);
}

/// A legal header of very many tensors.
#[test]
fn very_many_tensors() {
    let mut corpus = Corpus::new();
    let many = |count: usize, name: &str| {
        let entries: Vec<String> =
            (0..count).map(|i| format!(r#""{name}{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
        safetensors(format!("{{{}}}", entries.join(",")), [])
    };
    let path = corpus.peft(&many(50_000, "t"));
    corpus.adapter("50,000 tensors in an adapter", &path, REFUSED, &["t0"]);
    corpus.done();
}

#[test]
fn odd_but_legal_headers() {
    let mut corpus = Corpus::new();
    let good = tensors(&good_entries());
    let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let (header, data) = (std::str::from_utf8(&good[8..8 + length]).unwrap().to_string(), good[8 + length..].to_vec());
    for (case, header) in [
        ("whitespace in front", format!("\n\t  {header}")),
        ("whitespace behind", format!("{header} \r\n\t ")),
        ("a page of spaces", format!("{header}{}", " ".repeat(4096))),
        ("escapes in names", header.replace("base_model", r"\u0062ase\u005fmodel")),
        ("fields of the future", header.replace(r#""dtype""#, r#""x":[{}],"dtype""#)),
        ("metadata", header.replacen('{', r#"{"__metadata__":{"format":"pt","\u001b[31m":"\u202e\u0000"},"#, 1)),
        ("metadata is null", header.replacen('{', r#"{"__metadata__":null,"#, 1)),
    ] {
        let path = corpus.peft(&safetensors(header, &data));
        corpus.adapter(case, &path, ACCEPTED, &[]);
    }
    corpus.done();
}
