//! safetensors files whose header lies, and odd ones that are legal.

use std::time::{Duration, Instant};

use lora_tool::container::SafetensorsFile;

use super::{Scratch, fault, require_none, safetensors};

const NAME: &str = "model.safetensors";

/// `{"w": {…}}` over eight bytes.
fn entry(fields: &str) -> Vec<u8> {
    safetensors(format!(r#"{{"w":{{{fields}}}}}"#), [0; 8])
}

fn refused(cases: &[(Vec<u8>, &[&str])]) {
    let folder = Scratch::new();
    let faults = cases.iter().filter_map(|(bytes, parts)| {
        let path = folder.put(NAME, bytes);
        let case = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        fault(&case, &[parts, [NAME].as_slice()].concat(), || SafetensorsFile::open(&path))
    });
    require_none(faults.collect());
}

#[test]
fn the_length_in_front() {
    let good = entry(r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#);
    let with_length = |n: u64| [&n.to_le_bytes(), &good[8..]].concat();
    let size = format!("the file of {} bytes", good.len());
    let big_endian = [&(good.len() as u64 - 16).to_be_bytes(), &good[8..]].concat();
    refused(&[
        (vec![], &["0 bytes, too short"]),
        (good[..1].to_vec(), &["1 bytes, too short"]),
        (good[..7].to_vec(), &["7 bytes, too short"]),
        (good[..8].to_vec(), &["does not fit into the file of 8 bytes"]),
        (good[..20].to_vec(), &["does not fit into the file of 20 bytes"]),
        (with_length(0), &["header of 0 bytes"]),
        (with_length(good.len() as u64 - 7), &["header of", &size]),
        (with_length(1 << 63), &["header of 9223372036854775808 bytes", &size]),
        (with_length(u64::MAX), &["header of 18446744073709551615 bytes", &size]),
        (with_length(u64::MAX - 7), &["header of 18446744073709551608 bytes", &size]),
        (with_length(100_000_001), &["header of 100000001 bytes", &size]),
        (big_endian, &["does not fit"]),
    ]);
}

#[test]
fn a_header_above_the_limit() {
    let folder = Scratch::new();
    let path = folder.put(NAME, 100_000_001u64.to_le_bytes());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(200_000_000).unwrap(); // a hole, no blocks
    let parts = ["header of 100000001 bytes", "at most 100000000", NAME];
    let mut faults: Vec<_> = fault("limit", &parts, || SafetensorsFile::open(&path)).into_iter().collect();
    // A length whose first byte is a brace.
    folder.put(NAME, 109_888_891u64.to_le_bytes());
    let parts = ["header of 109888891 bytes does not fit", NAME];
    faults.extend(fault("brace", &parts, || SafetensorsFile::open(&path)));
    require_none(faults);
}

#[test]
fn a_header_that_is_not_json() {
    let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let deep = 100_000;
    let arrays = "[".repeat(deep) + &"]".repeat(deep);
    let objects = r#"{"a":"#.repeat(deep) + "1" + &"}".repeat(deep);
    refused(&[
        (safetensors([0xff, 0xfe, b'{', b'}'], []), &["not UTF-8 at byte 0"]),
        (safetensors(b"{\"\xc3\x28\":{}}", []), &["not UTF-8 at byte 2"]),
        (safetensors(utf16, []), &["line 1 column 2"]),
        (safetensors("\u{feff}{}", []), &["line 1 column 1"]),
        (safetensors("nonsense", []), &["line 1"]),
        (safetensors("[]", []), &["expected a JSON object of tensors"]),
        (safetensors("null", []), &["expected a JSON object of tensors"]),
        (safetensors("   ", []), &["EOF"]),
        (safetensors("{", []), &["EOF"]),
        (safetensors(r#"{"w":{"dtype":"F32","#, []), &["w: ", "EOF"]),
        (safetensors("{}{}", []), &["trailing characters", "column 3"]),
        (safetensors("{}x", []), &["trailing characters", "column 3"]),
        (safetensors("{}\0", []), &["trailing characters", "column 3"]),
        (safetensors(r#"{"w":{},}"#, []), &["w: "]),
        (safetensors("{'w':{}}", []), &["column 2"]),
        (safetensors(r#"{"\ud800":{}}"#, []), &["line 1"]),
        (safetensors("{\"a\nb\":{}}", []), &["control character"]),
        (safetensors(r#"{"w":NaN}"#, []), &["w: "]),
        (safetensors(&arrays, []), &["expected a JSON object of tensors"]),
        (safetensors(&objects, []), &["a: ", "nested deeper than 64"]),
        (safetensors(format!(r#"{{"w":{arrays}}}"#), []), &["w: ", "nested deeper than 64"]),
        (safetensors(format!(r#"{{"__metadata__":{{"k":{arrays}}}}}"#), []), &["__metadata__: ", "`k`", "deeper"]),
        (entry(&format!(r#""shape":{arrays}"#)), &["w: ", "`shape`", "nested deeper than 64"]),
        (
            entry(&format!(r#""dtype":"F32","shape":[2],"data_offsets":[0,8],"more":{arrays}"#)),
            &["w: ", "`more`", "nested deeper than 64"],
        ),
    ]);
}

#[test]
fn names_that_stand_twice() {
    let one = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let two = r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#;
    refused(&[
        (safetensors(format!(r#"{{"w":{one},"w":{one}}}"#), [0; 4]), &["w: ", "twice"]),
        (safetensors(format!(r#"{{"w":{one},"w":{two}}}"#), [0; 8]), &["w: ", "twice"]),
        (safetensors(format!(r#"{{"w":{one},"\u0077":{two}}}"#), [0; 8]), &["w: ", "twice"]),
        (safetensors(r#"{"__metadata__":{"k":"1","k":"2"}}"#, []), &["__metadata__: ", "`k`", "twice"]),
        (safetensors(r#"{"__metadata__":{"k":"1","\u006b":"1"}}"#, []), &["__metadata__: ", "`k`", "twice"]),
        (safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, []), &["__metadata__: ", "twice"]),
        (entry(r#""dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]"#), &["w: ", "`dtype`", "twice"]),
        (entry(r#""dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]"#), &["w: ", "`shape`", "twice"]),
    ]);
}

#[test]
fn fields_missing_or_of_other_types() {
    let dtype = |value: &str| entry(&format!(r#""dtype":{value},"shape":[2],"data_offsets":[0,8]"#));
    let shape = |value: &str| entry(&format!(r#""dtype":"F32","shape":{value},"data_offsets":[0,8]"#));
    let offsets = |value: &str| entry(&format!(r#""dtype":"F32","shape":[2],"data_offsets":{value}"#));
    let mut cases: Vec<(Vec<u8>, &[&str])> = vec![
        (entry(""), &["w: no `shape`"]),
        (entry(r#""shape":[2],"data_offsets":[0,8]"#), &["w: no `dtype`"]),
        (entry(r#""dtype":"F32","data_offsets":[0,8]"#), &["w: no `shape`"]),
        (entry(r#""dtype":"F32","shape":[2]"#), &["w: no `data_offsets`"]),
        (safetensors(r#"{"w":null}"#, []), &["w: found null"]),
        (safetensors(r#"{"w":["F32",[2],[0,8]]}"#, [0; 8]), &["w: found an array"]),
        (offsets("[0]"), &["w: data_offsets of 1 numbers"]),
        (offsets("[0,8,8]"), &["w: data_offsets of 3 numbers"]),
        (offsets("[]"), &["w: data_offsets of 0 numbers"]),
    ];
    for bad in ["null", "1", "\"\"", "\"f32\"", "\"F33\"", "\"float32\"", "[\"F32\"]", "{\"F32\":null}"] {
        cases.push((dtype(bad), &["w: dtype: found"]));
    }
    for bad in ["null", "2", "\"2\"", "{}", "[-1]", "[2.0]", "[1e0]", "[\"2\"]", "[true]", "[[2]]", "[null]"] {
        cases.push((shape(bad), &["w: shape: found"]));
    }
    cases.push((shape("[18446744073709551616]"), &["w: shape: found", "1.8446744073709552e+19"]));
    for bad in ["null", "8", "{}", "\"0,8\"", "[0,-8]", "[0,8.0]", "[\"0\",\"8\"]", "[0,18446744073709551616]"] {
        cases.push((offsets(bad), &["w: data_offsets: found"]));
    }
    refused(&cases);
}

#[test]
fn sizes_that_wrap_or_differ() {
    let case = |dtype: &str, shape: &str, end: &str| {
        entry(&format!(r#""dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]"#))
    };
    refused(&[
        (case("F32", "[4294967296,4294967296]", "8"), &["w: shape [4294967296, 4294967296] overflows"]),
        (case("F32", "[9223372036854775808,2]", "0"), &["w: ", "overflow"]),
        (case("F32", "[9223372036854775808,2,0]", "0"), &["w: ", "overflow"]),
        (case("F32", "[4611686018427387904]", "0"), &["w: 4611686018427387904 elements of F32 overflow"]),
        (case("F64", "[2305843009213693952]", "8"), &["w: ", "overflow"]),
        (case("F32", "[3]", "8"), &["w: F32 [3] takes 12 bytes", "give 8"]),
        (case("F32", "[1]", "8"), &["w: F32 [1] takes 4 bytes", "give 8"]),
        (case("F16", "[2]", "8"), &["w: F16 [2] takes 4 bytes", "give 8"]),
        (case("F32", "[]", "8"), &["w: F32 [] takes 4 bytes", "give 8"]),
        (case("F32", "[0]", "8"), &["w: F32 [0] takes 0 bytes", "give 8"]),
        (case("F4", "[3]", "2"), &["w: ", "whole bytes"]),
        (case("F32", "[2,1,1,1,1,1,1,1,1]", "8"), &["w: 9 dimensions, at most 8"]),
    ]);
}

/// Two tensors of eight bytes each over `len` bytes of data.
fn two(first: [u64; 2], second: [u64; 2], len: usize) -> Vec<u8> {
    let entry = |[a, b]: [u64; 2]| {
        let n = b.saturating_sub(a);
        format!(r#"{{"dtype":"U8","shape":[{n}],"data_offsets":[{a},{b}]}}"#)
    };
    safetensors(format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second)), vec![0; len])
}

#[test]
fn ranges_that_do_not_cover_the_data() {
    refused(&[
        (two([8, 0], [8, 16], 16), &["a: data_offsets [8, 0] lie outside"]),
        (two([0, 8], [0, 8], 8), &["b: data_offsets [0, 8]", "overlaps"]),
        (two([0, 8], [4, 12], 12), &["b: data_offsets [4, 12]", "start at 8", "overlaps"]),
        (two([0, 16], [4, 8], 16), &["b: data_offsets [4, 8]", "overlaps"]),
        (two([0, 8], [12, 20], 20), &["b: data_offsets [12, 20]", "start at 8", "hole"]),
        (two([4, 8], [8, 16], 16), &["a: data_offsets [4, 8]", "start at 0", "hole"]),
        (two([0, 8], [8, 16], 15), &["b: data_offsets [8, 16] lie outside the 15 bytes"]),
        (two([0, 8], [8, 16], 0), &["a: data_offsets [0, 8] lie outside the 0 bytes"]),
        (two([0, 8], [8, 16], 17), &["b: ", "ends at byte 16 of 17"]),
        (two([0, 8], [8, u64::MAX], 16), &["b: "]),
        (two([u64::MAX, u64::MAX], [0, 8], 8), &["a: data_offsets [18446744073709551615, 18446744073709551615]"]),
        (two([0, 8], [9, 9], 8), &["b: data_offsets [9, 9]"]),
        (two([0, 8], [4, 4], 8), &["b: data_offsets [4, 4]", "overlaps"]),
        (safetensors("{}", [0; 4]), &["no tensors, but 4 bytes of data"]),
    ]);
}

#[test]
fn metadata_that_is_not_text() {
    let metadata = |value: &str| safetensors(format!(r#"{{"__metadata__":{value}}}"#), []);
    refused(&[
        (metadata("[]"), &["__metadata__: found an array"]),
        (metadata("\"pt\""), &["__metadata__: found a string"]),
        (metadata(r#"{"step":4}"#), &["__metadata__: step: found a number `4`, expected a string"]),
        (metadata(r#"{"a":"b","c":null}"#), &["__metadata__: c: found null"]),
        (metadata(r#"{"a":{"b":"c"}}"#), &["__metadata__: a: found an object"]),
    ]);
}

#[test]
fn names_that_are_too_long() {
    let entry = r#"{"dtype":"F32","shape":[0],"data_offsets":[0,0]}"#;
    let name = "n".repeat(65_536);
    refused(&[(safetensors(format!(r#"{{"{name}":{entry}}}"#), []), &["a name of 65536 bytes"])]);
}

#[test]
fn other_files_under_the_name() {
    let with = |start: &[u8]| [start, &[7; 300]].concat();
    refused(&[
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n".to_vec(),
            &["a Git LFS pointer", "expected safetensors"],
        ),
        (b"<!DOCTYPE html><html></html>".to_vec(), &["an HTML or XML page"]),
        (b"\n\n  <html></html>      ".to_vec(), &["an HTML or XML page"]),
        (br#"{"error":"Repository not found"}"#.to_vec(), &["JSON text"]),
        (with(b"PK\x03\x04\x14\0\0\0"), &["a zip archive"]),
        (with(b"\x80\x02}q\x00."), &["a Python pickle"]),
        (with(b"\x80\x04\x95\x05\0\0\0"), &["a Python pickle"]),
        (with(b"GGUF\x03\0\0\0"), &["a GGUF file"]),
        (with(b"\x1f\x8b\x08\0\0\0\0\0"), &["gzip"]),
        ([b"\x1f\x8b\x08\0\0\0\0\0\x02\x03".as_slice(), &[0xb5; 560_000]].concat(), &["gzip"]),
        (with(b"\x93NUMPY\x01\0"), &["a NumPy array"]),
    ]);
}

#[test]
fn what_is_no_regular_file() {
    let folder = Scratch::new();
    std::fs::create_dir(folder.path().join(NAME)).unwrap();
    let fifo = folder.path().join("fifo.safetensors");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let device = folder.path().join("zero.safetensors");
    std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
    let nowhere = folder.path().join("nowhere.safetensors");
    std::os::unix::fs::symlink("missing", &nowhere).unwrap();
    let cases: [(_, &[&str]); 4] = [
        (folder.path().join(NAME), &[NAME, "a folder"]),
        (fifo, &["fifo.safetensors", "not a regular file"]),
        (device, &["zero.safetensors", "not a regular file"]),
        (nowhere, &["nowhere.safetensors", "cannot open"]),
    ];
    require_none(cases.iter().filter_map(|(p, parts)| fault("", parts, || SafetensorsFile::open(p))).collect());
}

#[test]
fn odd_but_legal_files_are_read() {
    let folder = Scratch::new();
    let f = |range: &str, shape: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{range}}}"#);
    let a = f("[0,4]", "[1]");
    for (header, data, names) in [
        (format!("  \n\t{{\"a\":{a}}}"), 4, vec!["a"]),
        (format!("{{\"a\":{a}}}   \r\n "), 4, vec!["a"]),
        (format!("{{\"a\":{a}}} "), 4, vec!["a"]),
        (format!(r#"{{"b":{},"a":{a}}}"#, f("[4,8]", "[1]")), 8, vec!["a", "b"]),
        (format!(r#"{{"\u0061\"\\\/\ud83d\ude00é":{a}}}"#), 4, vec!["a\"\\/😀é"]),
        (format!(r#"{{"a":{}}}"#, f("[0,4]", "[]")), 4, vec!["a"]),
        (format!(r#"{{"a":{},"b":{},"c":{a}}}"#, f("[4,4]", "[0,7]"), f("[0,0]", "[0]")), 4, vec!["b", "c", "a"]),
        (format!(r#"{{"a":{}}}"#, f("[0,0]", "[0,9223372036854775807]")), 0, vec!["a"]),
        (format!(r#"{{"a":{}}}"#, r#"{"shape":[3],"data_offsets":[0,3],"dtype":"U8","note":[1,{}]}"#), 3, vec!["a"]),
        (format!(r#"{{"__metadata__":null,"a":{a}}}"#), 4, vec!["a"]),
        (format!(r#"{{"a":{a},"__metadata__":{{"":"","x":"\u0000é"}}}}"#), 4, vec!["a"]),
        ("{}".to_string(), 0, vec![]),
        (format!(r#"{{"a":{}}}"#, r#"{"dtype":"F4","shape":[8],"data_offsets":[0,4]}"#), 4, vec!["a"]),
    ] {
        let path = folder.put(NAME, safetensors(&header, vec![0; data]));
        let file = SafetensorsFile::open(&path).unwrap_or_else(|e| panic!("{header}: {e}"));
        assert_eq!(file.tensors.keys().collect::<Vec<_>>(), names, "{header}");
    }
}

fn many(count: usize) -> Vec<u8> {
    let entries: Vec<String> =
        (0..count).map(|i| format!(r#""layer.{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    safetensors(format!("{{{}}}", entries.join(",")), [])
}

#[test]
fn very_many_tensors_take_seconds() {
    let folder = Scratch::new();
    let path = folder.put(NAME, many(300_000));
    let start = Instant::now();
    assert_eq!(SafetensorsFile::open(&path).unwrap().tensors.len(), 300_000);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn more_tensors_than_the_limit() {
    let folder = Scratch::new();
    let path = folder.put(NAME, many(500_001));
    let error = SafetensorsFile::open(&path).unwrap_err().to_string();
    assert!(error.contains("more than 500000 tensors") && error.contains(NAME), "{error}");
}

/// Damage to a small file from a fixed seed: an error or a file, never a panic.
#[test]
fn damage_never_panics() {
    let folder = Scratch::new();
    let good = two([0, 8], [8, 16], 16);
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for _ in 0..1000 {
        let mut bad = good.clone();
        for _ in 0..=random(2) {
            let at = random(bad.len());
            bad[at] = [b'9', b'0', b'"', b'[', b'}', b',', b'-', 0, 0xff][random(9)];
        }
        let keep = if random(8) == 0 { random(bad.len()) } else { bad.len() };
        let path = folder.put(NAME, &bad[..keep]);
        if let Ok(file) = SafetensorsFile::open(&path) {
            assert!(file.tensors.values().all(|t| t.bytes.as_slice().len() == t.bytes.len()));
        }
    }
}
