//! `adapter_config.json` as strangers write it. `hostile::configs` has the reader's side of most of these; here is what
//! `inspect`, `convert` and `merge` say, and what becomes of text that would lead somewhere or drive a terminal.

use super::made::{Q, f32_tensor, good_adapter, good_entries, pair, tensors};
use super::{ACCEPTED, Corpus, NOT_WRITTEN, OPEN, REFUSED, Verdict, Verdicts};

const NAME: &str = "adapter_config.json";

fn run(cases: &[(&str, Vec<u8>, Verdicts, &[&str])]) {
    let mut corpus = Corpus::new();
    for (case, config, verdicts, words) in cases {
        let path = corpus.files(&[(NAME, config), ("adapter_model.safetensors", &good_adapter().1)]);
        corpus.adapter(case, &path, *verdicts, words);
    }
    corpus.done();
}

fn with(fields: &str) -> Vec<u8> {
    super::made::config(fields).into()
}

#[test]
fn files_that_are_no_config() {
    let deep = "[".repeat(100_000);
    let utf16: Vec<u8> = "{\"r\": 2}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    run(&[
        ("empty", vec![], NOT_WRITTEN, &[NAME]),
        ("blank", b" \n".to_vec(), NOT_WRITTEN, &[NAME]),
        ("no JSON", b"r: 2".to_vec(), NOT_WRITTEN, &[NAME]),
        ("an array", b"[]".to_vec(), NOT_WRITTEN, &[NAME, "array"]),
        ("a number", b"7".to_vec(), NOT_WRITTEN, &[NAME, "number"]),
        ("null", b"null".to_vec(), NOT_WRITTEN, &[NAME, "null"]),
        ("cut", b"{\"peft_type\": \"LO".to_vec(), NOT_WRITTEN, &[NAME, "column"]),
        ("UTF-16", utf16, NOT_WRITTEN, &[NAME]),
        ("byte-order mark", [b"\xef\xbb\xbf".to_vec(), with("")].concat(), NOT_WRITTEN, &[NAME, "byte-order mark"]),
        ("NUL behind", [with(""), vec![0]].concat(), NOT_WRITTEN, &[NAME]),
        ("not UTF-8", b"{\"r\":\"\xff\"}".to_vec(), NOT_WRITTEN, &[NAME, "UTF-8"]),
        ("100,000 levels", deep.clone().into_bytes(), NOT_WRITTEN, &[NAME, "64"]),
        ("100,000 levels in a field", format!(r#"{{"x":{deep}"#).into_bytes(), NOT_WRITTEN, &[NAME, "`x`"]),
        ("an LFS pointer", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), NOT_WRITTEN, &[NAME]),
        ("HTML", b"<html>".to_vec(), NOT_WRITTEN, &[NAME]),
        ("r twice", with(r#""r":2"#), NOT_WRITTEN, &[NAME, "`r`", "twice"]),
        ("r twice by escapes", with(r#""\u0072":2"#), NOT_WRITTEN, &[NAME, "`r`"]),
        ("a key of escape codes twice", with(r#""\u001b[2J":1,"\u001b[2J":1"#), NOT_WRITTEN, &["\\u{1b}[2J"]),
        ("an empty object", b"{}".to_vec(), OPEN, &[]),
    ]);
}

#[test]
fn values() {
    let field = |name: &str, value: &str| {
        let mut fields = vec![("peft_type", "\"LORA\""), ("r", "2"), ("lora_alpha", "4")];
        fields.retain(|(other, _)| *other != name);
        fields.push((name, value));
        let all: Vec<_> = fields.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
        format!("{{{}}}", all.join(",")).into_bytes()
    };
    let mut cases: Vec<(String, Vec<u8>, Verdicts, Vec<&str>)> = Vec::new();
    for (name, values) in [
        (
            "r",
            &["0", "-2", "2.5", "\"2\"", "true", "[2]", "{}", "2147483648", "1000000000000000000000000000000", "NaN"][..],
        ),
        ("lora_alpha", &["\"4\"", "true", "[4]", "{}", "NaN", "Infinity", "-Infinity", "1e400"]),
        (
            "peft_type",
            &[
                "\"NO_SUCH\"",
                "\"\"",
                "\"\\u001b[31mLORA\"",
                "7",
                "null",
                "[\"LORA\"]",
                "\"lora\"",
                "\"LOHA\"",
                "\"PROMPT_TUNING\"",
                "\"PREFIX_TUNING\"",
                "\"P_TUNING\"",
                "\"IA3\"",
                "\"VERA\"",
            ],
        ),
        ("use_rslora", &["\"true\"", "\"false\"", "1", "[]"]),
        ("use_dora", &["\"true\"", "0"]),
        ("fan_in_fan_out", &["\"no\"", "1"]),
        (
            "rank_pattern",
            &[
                "[]",
                "7",
                "\"q\"",
                r#"{"q_proj":"2"}"#,
                r#"{"q_proj":0}"#,
                r#"{"q_proj":3}"#,
                r#"{"q_proj":null}"#,
                r#"{"(":2}"#,
                r#"{"*q":2}"#,
                r#"{"[z-a]":2}"#,
                r#"{"(?<!x)q":2}"#,
                r#"{"(((a{1,100}){1,100}){1,100})":2}"#,
            ],
        ),
        (
            "alpha_pattern",
            &[
                "[]",
                r#"{"q_proj":"2"}"#,
                r#"{"(?=q)q":2}"#,
                r#"{"(q)\\1":2}"#,
                r#"{"q_proj":NaN}"#,
                r#"{"q_proj":1e999}"#,
            ],
        ),
        ("modules_to_save", &["7", "{}", "[7]"]),
        ("bias", &["7", "[]", "\"sometimes\""]),
        ("base_model_name_or_path", &["7"]),
    ] {
        for value in values {
            // Of text that nothing depends on, the kind does not matter.
            let is_loose = matches!(name, "base_model_name_or_path" | "bias") || *value == "\"lora\"";
            let verdicts = if is_loose { OPEN } else { NOT_WRITTEN };
            let contradicts = matches!(
                *value,
                "\"LOHA\""
                    | "\"IA3\""
                    | "\"VERA\""
                    | "\"PROMPT_TUNING\""
                    | "\"PREFIX_TUNING\""
                    | "\"P_TUNING\""
                    | r#"{"q_proj":3}"#
            );
            let words = if contradicts { vec![] } else { vec![NAME, name] };
            cases.push((format!("{name}: {value}"), field(name, value), verdicts, words));
        }
    }
    let cases: Vec<_> = cases
        .iter()
        .map(|(case, config, verdicts, words)| (case.as_str(), config.clone(), *verdicts, words.as_slice()))
        .collect();
    run(&cases);
}

/// Patterns never hang, and those that no command needs are no reason to refuse.
#[test]
fn patterns() {
    let long = "a|".repeat(2500);
    let nested = format!("{}{}", "(".repeat(50_000), ")".repeat(50_000));
    let many: Vec<String> = (0..100_000).map(|i| format!(r#""q_\\d{i}":2"#)).collect();
    let plain: Vec<String> = (0..50_000).map(|i| format!(r#""model.layers.{i}.x":2"#)).collect();
    run(&[
        (
            "a bomb in target_modules",
            with(r#""exclude_modules":"(a+)+$","layers_pattern":"((((((((((a*)*)*)*)*)*)*)*)*)*""#),
            ACCEPTED,
            &[],
        ),
        (
            "a syntax error in target_modules",
            br#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":"((("}"#.to_vec(),
            ACCEPTED,
            &[],
        ),
        (
            "look-around in target_modules",
            br#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":"(?!x).*"}"#.to_vec(),
            ACCEPTED,
            &[],
        ),
        ("a bomb in rank_pattern", with(r#""rank_pattern":{"(a+)+b":2,"(.*.*.*.*.*.*)*x":2}"#), ACCEPTED, &[]),
        (
            "a pattern of 5,000 bytes",
            with(&format!(r#""rank_pattern":{{"{long}":2}}"#)),
            NOT_WRITTEN,
            &["rank_pattern", "5000 bytes"],
        ),
        ("50,000 brackets", with(&format!(r#""rank_pattern":{{"{nested}":2}}"#)), NOT_WRITTEN, &["rank_pattern"]),
        (
            "a class of thousands",
            with(r#""rank_pattern":{"\\pL{5000}":2}"#),
            NOT_WRITTEN,
            &["rank_pattern", "too large"],
        ),
        (
            "100,000 patterns",
            with(&format!(r#""rank_pattern":{{{}}}"#, many.join(","))),
            NOT_WRITTEN,
            &["rank_pattern", "256"],
        ),
        ("50,000 plain paths", with(&format!(r#""rank_pattern":{{{}}}"#, plain.join(","))), ACCEPTED, &[]),
        (
            "50,000 targets",
            format!(
                r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":[{}]}}"#,
                plain.iter().map(|p| p.trim_end_matches(":2")).collect::<Vec<_>>().join(",")
            )
            .into_bytes(),
            ACCEPTED,
            &[],
        ),
    ]);
}

/// As many plain paths as there are modules: no step may be taken for each pair of them.
#[test]
fn lists_as_long_as_the_file() {
    let mut corpus = Corpus::new();
    let count = 4000;
    let module = |n: usize| format!("model.layers.{n}.self_attn.q_proj");
    let entries = (0..count).flat_map(|n| pair(&format!("base_model.model.{}", module(n)), 1, 1));
    let bytes = tensors(&entries.collect::<Vec<_>>());
    let all: Vec<_> = (0..count).map(module).collect();
    let by_module = all.iter().map(|path| format!("{path:?}:2")).collect::<Vec<_>>().join(",");
    let parameters: Vec<_> = all.iter().map(|path| format!("{path}.x.weight")).collect();
    for (case, fields) in [
        ("rank_pattern", format!(r#""rank_pattern":{{{by_module}}}"#)),
        ("alpha_pattern", format!(r#""alpha_pattern":{{{by_module}}}"#)),
        ("target_modules", format!(r#""target_modules":{all:?}"#)),
        ("exclude_modules", format!(r#""exclude_modules":{parameters:?}"#)),
        ("modules_to_save", format!(r#""modules_to_save":{all:?}"#)),
        ("target_parameters", format!(r#""target_parameters":{parameters:?}"#)),
    ] {
        let config = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,{fields}}}"#);
        let path = corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &bytes)]);
        corpus.adapter(
            case,
            &path,
            [Verdict::Accepted, Verdict::Accepted, Verdict::Refused],
            &["layers.10.", "3998 of 4000"],
        );
    }
    corpus.done();
}

/// Nothing that text in a config says is followed, and none of it reaches the terminal as it is.
#[test]
fn text_that_would_lead_somewhere() {
    run(&[
        ("a path", with(r#""base_model_name_or_path":"../../../../etc/passwd""#), ACCEPTED, &[]),
        ("a device", with(r#""base_model_name_or_path":"/dev/zero""#), ACCEPTED, &[]),
        ("an address", with(r#""base_model_name_or_path":"https://localhost:1/x","revision":"main""#), ACCEPTED, &[]),
        ("a class", with(r#""auto_mapping":{"base_model_class":"system","parent_library":"os"}"#), ACCEPTED, &[]),
        (
            "escape codes",
            with(
                r#""base_model_name_or_path":"\u001b]0;x\u0007\u001b[31m\u009b2J\u202e\r\n\t\u0000","task_type":"\u001b[2J""#,
            ),
            ACCEPTED,
            &[],
        ),
        (
            "escape codes in unknown fields",
            with(r#""\u001b[2J\u202e":"\u001b[31m","\n\r\u0007":[true]"#),
            ACCEPTED,
            &[],
        ),
        ("an unknown switch", with(r#""use_\u001b[2J":true"#), NOT_WRITTEN, &["use_"]),
        ("megabytes of text", with(&format!(r#""base_model_name_or_path":"{}""#, "x".repeat(4 << 20))), ACCEPTED, &[]),
        ("unknown fields", with(r#""from_the_future":{"a":[1,2,{"b":null}]},"x":1e300"#), ACCEPTED, &[]),
        ("ends of lines", String::from_utf8(with("")).unwrap().replace(',', ",\r\n").into_bytes(), ACCEPTED, &[]),
    ]);
}

#[test]
fn what_stands_beside_the_config() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    let path = corpus.files(&[("adapter_model.safetensors", &bytes)]);
    corpus.adapter("no config", &path, NOT_WRITTEN, &["adapter_model.safetensors"]);
    let path = corpus.files(&[(NAME, config.as_bytes())]);
    corpus.adapter("no tensors", &path, REFUSED, &[]);
    let path = corpus.files(&[(NAME, config.as_bytes())]);
    corpus.adapter("the config itself", &path.join(NAME), REFUSED, &["a config"]);
    let path =
        corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &bytes), ("config.json", b"[[[")]);
    corpus.adapter("a broken config of a base", &path, ACCEPTED, &[]);
    let path =
        corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &bytes), ("README.md", b"\x1b[2J")]);
    corpus.adapter("a README", &path, ACCEPTED, &[]);
    let metadata = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let end = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header = metadata[..end].replacen('{', r#"{"__metadata__":{"ss_network_dim":"nonsense","ss_network_args":"{{{","ss_tag_frequency":"\u001b[2J","lora_adapter_metadata":"[[[","format":"\u202e"},"#, 1);
    let spoilt = crate_safetensors(&header, &bytes[8 + end..]);
    let path = corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &spoilt)]);
    corpus.adapter("nonsense in the metadata", &path, ACCEPTED, &[]);
    let mut entries = good_entries();
    entries.push(f32_tensor(format!("{Q}.lora_magnitude_vector"), &[8]));
    let path = corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &tensors(&entries))]);
    corpus.adapter("DoRA that the config denies", &path, NOT_WRITTEN, &["lora_magnitude_vector"]);
    corpus.done();
}

/// Settings of a training beside the adapter are YAML, which has aliases and tags.
#[test]
fn settings_in_yaml() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_string();
    for level in 1..12 {
        let all = vec![format!("*a{}", level - 1); 9].join(",");
        bomb += &format!("a{level}: &a{level} [{all}]\n");
    }
    let name = "hyperparameters.yaml";
    for (case, text, verdicts) in [
        ("aliases of aliases", bomb, REFUSED),
        ("200,000 levels", "[".repeat(200_000), REFUSED),
        ("200,000 levels of maps", (0..20_000).map(|n| format!("{}a:\n", " ".repeat(n.min(300)))).collect(), REFUSED),
        ("escape codes", "a: \u{1b}[2J\n".into(), REFUSED),
        ("a call", "a: !!python/object/apply:os.system [\"true\"]\n".into(), OPEN),
        ("an alias of itself", "a: &a [*a]\n".into(), OPEN),
    ] {
        let path =
            corpus.files(&[(NAME, config.as_bytes()), ("adapter_model.safetensors", &bytes), (name, text.as_bytes())]);
        corpus.adapter(case, &path, verdicts, &[name]);
    }
    corpus.done();
}

/// An index beside shards of an adapter leads nowhere else, either.
#[test]
fn an_adapter_in_shards() {
    let mut corpus = Corpus::new();
    let (config, bytes) = good_adapter();
    let index = "adapter_model.safetensors.index.json";
    let shard = "adapter_model-00001-of-00001.safetensors";
    let key = good_entries()[0].0.clone();
    for (case, text) in [
        ("a way out", format!(r#"{{"weight_map":{{"{key}":"../../good/adapter_model.safetensors"}}}}"#)),
        ("a device", format!(r#"{{"weight_map":{{"{key}":"/dev/zero"}}}}"#)),
        ("itself", format!(r#"{{"weight_map":{{"{key}":"{index}"}}}}"#)),
        ("a shard that is not there", format!(r#"{{"weight_map":{{"{key}":"x.safetensors"}}}}"#)),
        ("a tensor that is not there", format!(r#"{{"weight_map":{{"x":"{shard}"}}}}"#)),
        ("no map", "{}".to_string()),
        ("cut", "{\"weight_map\"".to_string()),
    ] {
        let path = corpus.files(&[(NAME, config.as_bytes()), (shard, &bytes), (index, text.as_bytes())]);
        let words: &[&str] = if case == "a shard that is not there" { &["x.safetensors"] } else { &[index] };
        corpus.adapter(case, &path, REFUSED, words);
    }
    corpus.done();
}

fn crate_safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    super::safetensors(header, data)
}
