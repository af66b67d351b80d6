//! Limits: what the program prints, what the page says, and what an error says of one that is met.

use lora_tool::error::Kind;
use lora_tool::{layout, limits};

use crate::fixtures::Scratch;
use crate::program;
use crate::sources::project;

/// Lines of the table in `docs/robustness.md`, as (what, at most).
fn page() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(project().join("docs/robustness.md")).expect("the page");
    let section = text.split("\n## Limits\n").nth(1).expect("a section about limits");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        (cells[0].to_string(), cells[1].to_string())
    })
    .collect()
}

#[test]
fn the_page_says_what_the_program_prints() {
    let printed: Vec<_> = limits::ALL.iter().map(|l| (l.what.to_string(), l.to_string())).collect();
    let wanted = || limits::ALL.iter().map(|l| format!("| {} | {l} |", l.what)).collect::<Vec<_>>().join("\n");
    assert!(page() == printed, "the table in docs/robustness.md should be:\n{}", wanted());
}

#[test]
fn both_spellings_print_the_table() {
    let said = program::run(["help", "limits"]).expect(0);
    assert_eq!(program::run(["--help", "limits"]).expect(0).out, said.out);
    for (line, limit) in said.out.lines().skip(1).zip(limits::ALL) {
        assert!(line.starts_with(limit.what) && line.ends_with(&limit.to_string()), "{line}");
    }
    assert_eq!(said.out.lines().count(), limits::ALL.len() + 1);
}

#[test]
fn only_these_words_ask_for_it() {
    let usual = program::run(["--help"]).expect(0);
    assert_eq!(program::run(["--help", "limit"]).expect(0).out, usual.out);
    program::run(["help", "limits", "more"]).expect(2);
    program::run(["limits"]).expect(2);
}

#[test]
fn an_error_names_what_was_found_and_what_is_allowed() {
    let scratch = Scratch::new();
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let name = "n".repeat(limits::NAME_BYTES + 1);
    let ones = ["1"; limits::DIMENSIONS + 1].join(",");
    let files: Vec<(&str, Vec<u8>, [String; 2])> = vec![
        (
            "name.safetensors",
            header(&format!(r#"{{"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}"#)),
            [(limits::NAME_BYTES + 1).to_string(), limits::NAME_BYTES.to_string()],
        ),
        (
            "dimensions.safetensors",
            [header(&format!(r#"{{"w":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#)), vec![0]].concat(),
            [(limits::DIMENSIONS + 1).to_string(), limits::DIMENSIONS.to_string()],
        ),
        (
            "alignment.gguf",
            gguf(&[("general.alignment", 4, &(1u32 << 20).to_le_bytes())]),
            ["1048576".into(), "65536".into()],
        ),
        ("array.gguf", gguf(&[("a", 9, &array((64 << 20) + 1))]), ["67108877".into(), "67108864".into()]),
        ("integer.bin", b"\x80\x02\x8a\x11".to_vec(), ["17".into(), "16".into()]),
        ("header.npz", npz(limits::NPY_HEADER_BYTES + 1), ["10001".into(), "10000".into()]),
    ];
    for (name, bytes, numbers) in files {
        let path = scratch.join(name);
        std::fs::write(&path, &bytes).expect("a file");
        let fault = layout::open(&path, None).map(drop).expect_err(name);
        assert_eq!(fault.kind(), Kind::Limit, "{name}: {fault}");
        assert!(numbers.iter().all(|n| fault.what().contains(n.as_str())), "{name}: {fault}");
    }
}

/// A GGUF file of version 3 without tensors: (key, type, bytes).
fn gguf(keys: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut out = [&b"GGUF"[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &(keys.len() as u64).to_le_bytes()].concat();
    for (key, kind, value) in keys {
        out.extend((key.len() as u64).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(*value);
    }
    out
}

/// An array of bytes.
fn array(length: usize) -> Vec<u8> {
    let mut out = [&0u32.to_le_bytes()[..], &(length as u64).to_le_bytes()].concat();
    out.resize(out.len() + length, 0);
    out
}

/// An archive with one array whose header is so long.
fn npz(header: usize) -> Vec<u8> {
    let mut array = [&b"\x93NUMPY\x01\x00"[..], &(header as u16).to_le_bytes()].concat();
    array.resize(array.len() + header, b' ');
    zip("a.lora_a.npy", &array)
}

/// A zip archive with one stored member.
fn zip(name: &str, bytes: &[u8]) -> Vec<u8> {
    let size = (bytes.len() as u32).to_le_bytes();
    let sum = crc32fast::hash(bytes).to_le_bytes();
    let length = (name.len() as u16).to_le_bytes();
    // Version to read it by, flags, method, time, date; the checksum and the two sizes; the lengths of name and extra field.
    let about = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &sum, &size, &size, &length, &[0, 0]].concat();
    let mut out = [&b"PK\x03\x04"[..], &about, name.as_bytes(), bytes].concat();
    let directory = out.len() as u32;
    // The version of the writer before, and comment, disk, attributes and place behind.
    out.extend([&b"PK\x01\x02\x14\x00"[..], &about, &[0; 14], name.as_bytes()].concat());
    let length = (out.len() as u32 - directory).to_le_bytes();
    out.extend([&b"PK\x05\x06\0\0\0\0\x01\0\x01\0"[..], &length, &directory.to_le_bytes(), &[0, 0]].concat());
    out
}
