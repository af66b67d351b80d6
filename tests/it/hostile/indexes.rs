//! A folder of shards whose index lies.

use std::path::Path;

use lora_tool::container::Sharded;

use super::{Scratch, fault, require_none, safetensors};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn shard(name: &str) -> Vec<u8> {
    safetensors(format!(r#"{{"{name}":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}}}"#), [1; 3])
}

fn two_shards() -> Scratch {
    let folder = Scratch::new();
    folder.put(FIRST, shard("a"));
    folder.put(SECOND, shard("b"));
    folder
}

fn index(map: &str) -> String {
    format!(r#"{{"metadata":{{"total_size":6}},"weight_map":{map}}}"#)
}

fn refused(folder: &Scratch, cases: &[(String, &[&str])]) {
    let faults = cases.iter().filter_map(|(text, parts)| {
        folder.put(INDEX, text);
        fault(text, parts, || Sharded::open_folder(folder.path()))
    });
    require_none(faults.collect());
}

#[test]
fn names_that_lead_elsewhere() {
    let folder = two_shards();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    folder.put("sub/x.safetensors", shard("b"));
    let outside = Scratch::new();
    let absolute = outside.put("x.safetensors", shard("b"));
    let absolute = absolute.to_str().unwrap();
    let cases: Vec<(String, &[&str])> = [
        "../x.safetensors",
        "..",
        ".",
        "",
        "./x.safetensors",
        "sub/x.safetensors",
        "sub/../x.safetensors",
        absolute,
        r"..\\x.safetensors",
        r"C:\\x.safetensors",
        "C:x.safetensors",
        "file:///x.safetensors",
        "https://example.org/x.safetensors",
        r"x\u0000.safetensors",
        "/dev/zero",
        "pytorch_model.bin",
        INDEX,
    ]
    .iter()
    .map(|name| (index(&format!(r#"{{"a":"{FIRST}","b":"{name}"}}"#)), [INDEX, "b: shard name"].as_slice()))
    .collect();
    refused(&folder, &cases);
}

#[test]
fn an_index_that_is_none() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    refused(
        &two_shards(),
        &[
            (String::new(), &[INDEX, "not valid JSON"]),
            ("[]".into(), &[INDEX, "found an array"]),
            ("{}".into(), &[INDEX, "weight_map: "]),
            (index("null"), &[INDEX, "weight_map: "]),
            (index("[]"), &[INDEX, "weight_map: "]),
            (index("{}"), &[INDEX, "weight_map: names no tensors"]),
            (index(r#"{"a":1}"#), &[INDEX, "a: found a number `1`, expected a file name"]),
            (index(r#"{"a":null}"#), &[INDEX, "a: found null"]),
            (index(&format!(r#"{{"a":["{FIRST}"]}}"#)), &[INDEX, "a: found an array"]),
            (index(&format!(r#"{{"a":"{FIRST}","a":"{SECOND}"}}"#)), &[INDEX, "key `a` stands twice"]),
            (index(&format!(r#"{{"a":"{FIRST}","\u0061":"{FIRST}"}}"#)), &[INDEX, "key `a` stands twice"]),
            (index(&format!(r#"{{"a":{deep}}}"#)), &[INDEX, "nested deeper than 64"]),
            (format!(r#"{{"metadata":7,"weight_map":{{"a":"{FIRST}"}}}}"#), &[INDEX, "metadata: found a number"]),
        ],
    );
}

#[test]
fn tensors_that_are_not_where_it_says() {
    let folder = two_shards();
    refused(
        &folder,
        &[
            (index(&format!(r#"{{"a":"{FIRST}","b":"{SECOND}","c":"{SECOND}"}}"#)), &[INDEX, "c: ", SECOND]),
            (index(&format!(r#"{{"a":"{SECOND}","b":"{FIRST}"}}"#)), &[INDEX, "places it in"]),
        ],
    );
    folder.put(SECOND, shard("a"));
    refused(&folder, &[(index(&format!(r#"{{"a":"{FIRST}","b":"{SECOND}"}}"#)), &[INDEX, "b: ", SECOND])]);
    folder.put("third.safetensors", safetensors(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
        [0; 2],
    ));
    let both = index(&format!(r#"{{"a":"{FIRST}","c":"third.safetensors"}}"#));
    refused(&folder, &[(both, &[INDEX, "a: stands in both", FIRST, "third.safetensors"])]);
}

#[test]
fn shards_that_are_not_there_or_no_shards() {
    let folder = two_shards();
    let text = index(&format!(r#"{{"a":"{FIRST}","b":"{SECOND}"}}"#));
    folder.put(INDEX, &text);
    assert_eq!(Sharded::open_folder(folder.path()).unwrap().tensors().count(), 2);
    let second = folder.path().join(SECOND);
    let open = |case, parts: &[&str]| {
        fault(case, &[parts, [SECOND].as_slice()].concat(), || Sharded::open_folder(folder.path()))
    };
    let mut faults = Vec::new();
    for (bytes, parts) in [
        (shard("b")[..30].to_vec(), ["does not fit"]),
        (shard("b")[..shard("b").len() - 1].to_vec(), ["b: data_offsets [0, 3] lie outside the 2 bytes"]),
        (vec![], ["too short"]),
        (b"\x80\x02}q\x00.        ".to_vec(), ["a Python pickle"]),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), ["a Git LFS pointer"]),
    ] {
        folder.put(SECOND, bytes);
        faults.extend(open("content", &parts));
    }
    std::fs::remove_file(&second).unwrap();
    faults.extend(open("missing", &["named by", INDEX]));
    std::fs::create_dir(&second).unwrap();
    faults.extend(open("folder", &["a folder"]));
    std::fs::remove_dir(&second).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &second, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    faults.extend(open("fifo", &["not a regular file"]));
    std::fs::remove_file(&second).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &second).unwrap();
    faults.extend(open("device", &["not a regular file"]));
    require_none(faults);
}

#[test]
fn several_files_and_no_index() {
    let folder = two_shards();
    let parts = ["2 safetensors files and no index", folder.path().to_str().unwrap()];
    require_none(fault("", &parts, || Sharded::open_folder(folder.path())).into_iter().collect());
}

#[test]
fn odd_but_legal_folders_are_read() {
    let map = format!(r#"{{"a":"{FIRST}","b":"{SECOND}"}}"#);
    let folder = two_shards();
    for text in [
        format!(r#"{{"weight_map":{map}}}"#),
        format!(r#"{{"metadata":null,"weight_map":{map}}}"#),
        format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{map}}}"#),
        format!(r#"{{"metadata":{{"total_size":"much"}},"weight_map":{map},"more":[]}}"#),
        format!("\r\n {{\"weight_map\": {map}\r\n}}\r\n"),
    ] {
        folder.put(INDEX, &text);
        assert_eq!(Sharded::open_folder(folder.path()).unwrap_or_else(|e| panic!("{text}: {e}")).tensors().count(), 2);
    }
}

/// The hub's cache: each file of a snapshot is a link to a blob outside of it.
#[test]
fn the_cache_of_the_hub_is_read() {
    let cache = Scratch::new();
    let snapshot = cache.path().join("snapshots/0123abcd");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir(cache.path().join("blobs")).unwrap();
    let text = index(&format!(r#"{{"a":"{FIRST}","b":"{SECOND}"}}"#));
    for (blob, name, bytes) in [("1f", FIRST, shard("a")), ("2e", SECOND, shard("b")), ("3d", INDEX, text.into_bytes())]
    {
        cache.put(&format!("blobs/{blob}"), bytes);
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
    }
    let opened = Sharded::open_folder(&snapshot).unwrap();
    assert_eq!(opened.tensors().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}
