//! `adapter_config.json` as strangers write it, beside good tensors.

use lora_tool::error::Result;
use lora_tool::layout::{self, Opened};

use super::{Scratch, fault, require_none, safetensors};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// A rank-2 adapter of two modules, 3 → 4.
fn tensors() -> Vec<u8> {
    let mut entries = Vec::new();
    let mut at = 0;
    for module in ["q_proj", "k_proj"] {
        for (half, shape) in [("A", [2, 3]), ("B", [4, 2])] {
            let end = at + 4 * shape[0] * shape[1];
            let key = format!("base_model.model.layers.0.{module}.lora_{half}.weight");
            entries.push(format!(r#""{key}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
    }
    safetensors(format!("{{{}}}", entries.join(",")), vec![0; at])
}

/// An adapter whose config has these fields beside its type, rank and alpha.
fn with(fields: &str) -> Vec<u8> {
    format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4{}{fields}}}"#, if fields.is_empty() { "" } else { "," }).into()
}

fn open(folder: &Scratch, config: &[u8]) -> Result<Opened> {
    folder.put(CONFIG, config);
    layout::open(folder.path(), None)
}

fn refused(cases: &[(Vec<u8>, &[&str])]) {
    let folder = Scratch::new();
    folder.put(TENSORS, tensors());
    let faults = cases.iter().filter_map(|(config, parts)| {
        let case = String::from_utf8_lossy(&config[..config.len().min(200)]).into_owned();
        fault(&case, &[parts, [CONFIG].as_slice()].concat(), || open(&folder, config))
    });
    require_none(faults.collect());
}

#[test]
fn a_file_that_is_no_config() {
    let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_be_bytes).collect();
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    refused(&[
        (b"".to_vec(), &["not valid JSON"]),
        (b"  \n".to_vec(), &["not valid JSON"]),
        (b"not json".to_vec(), &["not valid JSON"]),
        (b"{\"r\": 2".to_vec(), &["not valid JSON"]),
        (b"[1]".to_vec(), &["expected a JSON object, found an array"]),
        (b"null".to_vec(), &["expected a JSON object, found null"]),
        (b"{} {}".to_vec(), &["not valid JSON"]),
        (b"\xef\xbb\xbf{}".to_vec(), &["byte-order mark"]),
        (b"\xff\xfe{\0}\0".to_vec(), &["not UTF-8 at byte 0"]),
        (utf16, &["not valid JSON"]),
        (b"{\"r\": \"\xff\"}".to_vec(), &["not UTF-8 at byte 7"]),
        (with(&format!(r#""x":{deep}"#)), &["`x`", "nested deeper than 64"]),
        (deep.clone().into_bytes(), &["nested deeper than 64"]),
        (with(r#""r":8"#), &["key `r` stands twice"]),
        (with(r#""\u0072":2"#), &["key `r` stands twice"]),
        (with(r#""rank_pattern":{"q":1,"q":2}"#), &["`rank_pattern`", "key `q` stands twice"]),
    ]);
}

#[test]
fn no_config_or_no_regular_file() {
    let folder = Scratch::new();
    folder.put(TENSORS, tensors());
    let path = folder.path().join(CONFIG);
    let open = || layout::open(folder.path(), None);
    let mut faults: Vec<_> = fault("missing", &[TENSORS, "no adapter_config.json"], open).into_iter().collect();
    std::fs::create_dir(&path).unwrap();
    faults.extend(fault("folder", &[CONFIG, "not a regular file"], open));
    std::fs::remove_dir(&path).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    faults.extend(fault("fifo", &[CONFIG, "not a regular file"], open));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("missing", &path).unwrap();
    faults.extend(fault("dangling link", &[CONFIG, "cannot read"], open));
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    faults.extend(fault("too large", &[CONFIG, "16777217 bytes, at most 16777216"], open));
    require_none(faults);
}

#[test]
fn ranks_and_alphas() {
    let rank = |value: &str| format!(r#"{{"peft_type":"LORA","lora_alpha":4,"r":{value}}}"#).into_bytes();
    let alpha = |value: &str| format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":{value}}}"#).into_bytes();
    refused(&[
        (rank("0"), &["r: rank 0"]),
        (rank("-2"), &["r: found a number `-2`"]),
        (rank("2.5"), &["r: found a number `2.5`"]),
        (rank("2.0"), &["r: found a number `2.0`"]),
        (rank("\"2\""), &["r: found a string `\"2\"`"]),
        (rank("true"), &["r: found a boolean `true`"]),
        (rank("[2]"), &["r: found an array `[2]`"]),
        (rank("2147483648"), &["r: rank 2147483648"]),
        (rank("1000000000000000000000000000000"), &["r: found a number `1"]),
        (rank("NaN"), &["`r`"]),
        (alpha("\"4\""), &["lora_alpha: found a string `\"4\"`"]),
        (alpha("true"), &["lora_alpha: found a boolean"]),
        (alpha("[4]"), &["lora_alpha: found an array"]),
        (alpha("NaN"), &["`lora_alpha`"]),
        (alpha("-Infinity"), &["`lora_alpha`"]),
        (alpha("1e400"), &["`lora_alpha`", "out of range"]),
    ]);
}

#[test]
fn a_rank_that_the_tensors_do_not_have() {
    let folder = Scratch::new();
    folder.put(TENSORS, tensors());
    let case = |fields: &str, parts: &[&str]| {
        let config = format!(r#"{{"peft_type":"LORA","lora_alpha":4,{fields}}}"#);
        fault(&config, &[parts, [TENSORS, "layers.0."].as_slice()].concat(), || open(&folder, config.as_bytes()))
    };
    let faults = [
        case(r#""r":3"#, &["rank 3", "[2, 3] has 2"]),
        case(r#""r":65536"#, &["rank 65536"]),
        case(r#""r":2,"rank_pattern":{"q_proj":5}"#, &["rank 5", "q_proj"]),
    ];
    require_none(faults.into_iter().flatten().collect());
}

#[test]
fn patterns() {
    let ranks = |patterns: &str| with(&format!(r#""rank_pattern":{patterns}"#));
    let alphas = |patterns: &str| with(&format!(r#""alpha_pattern":{patterns}"#));
    let long = "a|".repeat(2500);
    let nested = "(".repeat(50_000) + &")".repeat(50_000);
    let deep = "(".repeat(300) + "a" + &")".repeat(300);
    let engines: Vec<String> = (0..100_000).map(|i| format!(r#""q_\\d{i}":2"#)).collect();
    refused(&[
        (ranks("[]"), &["rank_pattern: found an array"]),
        (ranks("\"q\""), &["rank_pattern: found a string"]),
        (ranks(r#"{"q_proj":"2"}"#), &["rank_pattern.q_proj: found a string"]),
        (ranks(r#"{"q_proj":null}"#), &["rank_pattern.q_proj: found null"]),
        (ranks(r#"{"q_proj":true}"#), &["rank_pattern.q_proj: found a boolean"]),
        (ranks(r#"{"q_proj":{"r":2}}"#), &["rank_pattern.q_proj: found an object"]),
        (ranks(r#"{"q_proj":0}"#), &["rank_pattern.q_proj: rank 0"]),
        (ranks(r#"{"q_proj":-2}"#), &["rank_pattern.q_proj: rank -2"]),
        (ranks(r#"{"q_proj":2.5}"#), &["rank_pattern.q_proj: rank 2.5"]),
        (ranks(r#"{"q_proj":1e300}"#), &["rank_pattern.q_proj: rank"]),
        (ranks(r#"{"(":2}"#), &["rank_pattern: pattern `(`"]),
        (ranks(r#"{"*":2}"#), &["rank_pattern: pattern `*`"]),
        (ranks(r#"{"[z-a]":2}"#), &["rank_pattern: pattern `[z-a]`"]),
        (alphas(r#"{"(?!x)q":2}"#), &["alpha_pattern: pattern `(?!x)q`", "look-around"]),
        (alphas(r#"{"(q)\\1":2}"#), &["alpha_pattern: pattern `(q)\\1`"]),
        (ranks(r#"{"(((a{1,100}){1,100}){1,100})":2}"#), &["rank_pattern: pattern", "too large"]),
        (ranks(r#"{"\\pL{5000}":2}"#), &["rank_pattern: pattern", "too large"]),
        (ranks(&format!(r#"{{"{deep}":2}}"#)), &["rank_pattern: pattern"]),
        (ranks(&format!(r#"{{"{long}":2}}"#)), &["rank_pattern: pattern of 5000 bytes, at most 4096"]),
        (ranks(&format!(r#"{{"{nested}":2}}"#)), &["rank_pattern: pattern of 100000 bytes"]),
        (ranks(&format!("{{{}}}", engines.join(","))), &["rank_pattern: more than 256 patterns"]),
    ]);
}

#[test]
fn kinds_and_switches() {
    let kind = |value: &str| format!(r#"{{"peft_type":{value},"r":2,"lora_alpha":4}}"#).into_bytes();
    refused(&[
        (kind("\"NO_SUCH_TUNER\""), &["peft_type: ", "NO_SUCH_TUNER"]),
        (kind("\"\""), &["peft_type: "]),
        (kind("7"), &["peft_type: found a number"]),
        (kind("[\"LORA\"]"), &["peft_type: found an array"]),
        (with(r#""use_rslora":"true""#), &["use_rslora: found a string"]),
        (with(r#""use_rslora":1"#), &["use_rslora: found a number"]),
        (with(r#""use_dora":"false""#), &["use_dora: found a string"]),
        (with(r#""fan_in_fan_out":"no""#), &["fan_in_fan_out: found a string"]),
        (with(r#""target_parameters":7"#), &["target_parameters: found a number"]),
    ]);
}

/// Text that would lead somewhere, or drive a terminal, is text. Nothing here needs it.
#[test]
fn odd_but_legal_configs_are_read() {
    let folder = Scratch::new();
    folder.put(TENSORS, tensors());
    let many: Vec<String> = (0..100_000).map(|i| format!(r#""model.layers.{i}.q_proj":2"#)).collect();
    for fields in [
        "",
        r#""base_model_name_or_path":"../../../etc/passwd""#,
        r#""base_model_name_or_path":"https://example.org/x","revision":"main""#,
        r#""auto_mapping":{"base_model_class":"os","parent_library":"posix"}"#,
        r#""base_model_name_or_path":"\u001b[31mred\u0000""#,
        r#""target_modules":"(((","exclude_modules":"(a+)+$""#,
        r#""target_modules":["q_proj","k_proj"],"layers_pattern":"[""#,
        r#""from_the_future":{"a":[1,2,{"b":null}]}"#,
        r#""rank_pattern":{},"alpha_pattern":{"(.*a){20}":8}"#,
        r#""alpha_pattern":{"q_proj":-1.5e-3}"#,
        &format!(r#""rank_pattern":{{{}}}"#, many.join(",")),
    ] {
        let start = std::time::Instant::now();
        let opened =
            open(&folder, &with(fields)).unwrap_or_else(|e| panic!("{}: {e}", &fields[..fields.len().min(80)]));
        assert_eq!(opened.adapter.targets.len(), 2);
        assert!(start.elapsed().as_secs() < 10, "{:?} for {}", start.elapsed(), &fields[..fields.len().min(80)]);
    }
    let crlf = "{\r\n  \"peft_type\": \"LORA\",\r\n  \"r\": 2,\r\n  \"lora_alpha\": 4\r\n}\r\n";
    assert!(open(&folder, crlf.as_bytes()).is_ok());
}

#[test]
fn pickled_tensors_are_read_by_their_content_and_never_under_the_other_name() {
    let folder = Scratch::new();
    folder.put(CONFIG, with(""));
    let pickle = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/torch");
    let hostile = std::fs::read(pickle.join("hostile/system.pt")).unwrap();
    let open = || layout::open(folder.path(), None);
    folder.put("adapter_model.bin", &hostile);
    let mut faults: Vec<_> = fault("bin", &["adapter_model.bin", "global `posix.system`"], open).into_iter().collect();
    folder.put(TENSORS, &hostile);
    faults.extend(fault("safetensors", &[TENSORS, "a zip archive"], open));
    require_none(faults);
}
