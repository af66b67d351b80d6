//! Adapters whose files are sound and whose contents are not: half a pair, wrong shapes, names that are not there,
//! values that are no numbers.

use super::made::{self, Entry, K, Q, config, f32_tensor, f32s, good_entries, pair, tensors};
use super::{ACCEPTED, Corpus, NOT_MERGED, NOT_WRITTEN, OPEN, Verdicts};

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
const UP: &str = "base_model.model.model.layers.0.mlp.up_proj";

/// The good adapter with the first pair changed.
fn with(change: &dyn Fn(&mut Vec<Entry>)) -> Vec<u8> {
    let mut entries = good_entries();
    change(&mut entries);
    tensors(&entries)
}

fn a(shape: &[usize]) -> Vec<u8> {
    with(&|all| all[0] = f32_tensor(A, shape))
}

fn b(shape: &[usize]) -> Vec<u8> {
    with(&|all| all[1] = f32_tensor(B, shape))
}

/// One number of A is another one.
fn value(number: f32) -> Vec<u8> {
    with(&|all| all[0].3[20..24].copy_from_slice(&number.to_le_bytes()))
}

/// Both factors of the first pair as bytes of this type.
fn typed(dtype: &'static str, width: usize) -> Vec<u8> {
    with(&|all| {
        for (_, word, shape, bytes) in &mut all[..2] {
            *word = dtype;
            *bytes = vec![0; shape.iter().product::<usize>() * width];
        }
    })
}

fn run(cases: &[(&str, Vec<u8>, Verdicts, &[&str])]) {
    let mut corpus = Corpus::new();
    for (case, bytes, verdicts, words) in cases {
        let path = corpus.peft(bytes);
        corpus.adapter(case, &path, *verdicts, words);
    }
    corpus.done();
}

#[test]
fn halves_shapes_and_names() {
    let module = "layers.0.self_attn.q_proj";
    let more = |name: &str, shape: &[usize]| with(&|all| all.push(f32_tensor(name, shape)));
    run(&[
        ("no tensors", tensors(&[]), NOT_WRITTEN, &["no tensors"]),
        ("A without B", with(&|all| drop(all.remove(1))), NOT_WRITTEN, &[module, "lora_B"]),
        ("B without A", with(&|all| drop(all.remove(0))), NOT_WRITTEN, &[module, "lora_A"]),
        ("ranks that differ", b(&[8, 3]), NOT_WRITTEN, &[module, "[2, 8]", "[8, 3]"]),
        ("A of no dimension", a(&[]), NOT_WRITTEN, &[module, "[]"]),
        ("A of one dimension", a(&[16]), NOT_WRITTEN, &[module, "[16]"]),
        ("A of three", a(&[2, 8, 1]), NOT_MERGED, &[module, "[2, 8, 1]"]),
        ("A of five", a(&[2, 8, 1, 1, 1]), NOT_MERGED, &[module, "[2, 8, 1, 1, 1]"]),
        ("A of rank 0", a(&[0, 8]), NOT_WRITTEN, &[module]),
        ("A of no inputs", a(&[2, 0]), NOT_MERGED, &[module]),
        (
            "both of rank 0",
            with(&|all| (all[0], all[1]) = (f32_tensor(A, &[0, 8]), f32_tensor(B, &[8, 0]))),
            NOT_WRITTEN,
            &[module],
        ),
        ("A of other inputs", a(&[2, 7]), NOT_MERGED, &[module, "[8, 8]", "7"]),
        ("A that would broadcast", a(&[2, 1]), NOT_MERGED, &[module, "[8, 8]", "1"]),
        ("B of other outputs", b(&[9, 2]), NOT_MERGED, &[module, "[8, 8]", "9"]),
        ("B that would broadcast", b(&[1, 2]), NOT_MERGED, &[module, "[8, 8]", "1"]),
        (
            "both turned",
            with(&|all| (all[0], all[1]) = (f32_tensor(A, &[8, 2]), f32_tensor(B, &[2, 8]))),
            NOT_WRITTEN,
            &[module],
        ),
        ("turned, of one size", tensors(&pair(UP, 8, 12)), NOT_MERGED, &["up_proj", "[12, 8]"]),
        (
            "a layer that is not there",
            with(&|all| all.extend(pair(&K.replace("layers.1", "layers.7"), 4, 8))),
            NOT_MERGED,
            &["layers.7.self_attn.k_proj"],
        ),
        (
            "a module that is not there",
            with(&|all| all.extend(pair(&Q.replace("q_proj", "qkv_proj"), 8, 8))),
            NOT_MERGED,
            &["qkv_proj"],
        ),
        (
            "none that is there",
            tensors(&pair("base_model.model.encoder.block.0.x", 8, 8)),
            NOT_MERGED,
            &["encoder.block.0.x"],
        ),
        (
            "very many that are not there",
            tensors(&(0..500).flat_map(|n| pair(&format!("base_model.model.h.{n}.attn"), 8, 8)).collect::<Vec<_>>()),
            NOT_MERGED,
            &["h.0.attn"],
        ),
        (
            "a layer of 2^64",
            tensors(&pair("base_model.model.model.layers.18446744073709551616.self_attn.q_proj", 8, 8)),
            NOT_MERGED,
            &["18446744073709551616"],
        ),
        (
            "an unknown key",
            more("base_model.model.model.layers.0.self_attn.q_proj.lora_C.weight", &[2]),
            NOT_WRITTEN,
            &["lora_C"],
        ),
        ("only unknown keys", tensors(&[f32_tensor("x", &[2]), f32_tensor("y", &[2])]), NOT_WRITTEN, &["x"]),
        ("an unknown key of escape codes", more("\u{1b}[2J\u{202e}\u{7}", &[2]), NOT_WRITTEN, &["\\u{1b}[2J"]),
        ("an empty key", more("", &[2]), NOT_WRITTEN, &[]),
        ("a key of 60,000 bytes", more(&"x.".repeat(30_000), &[2]), NOT_MERGED, &["x.x"]),
        ("a module of no name", tensors(&pair("base_model.model.", 8, 8)), NOT_MERGED, &[]),
        ("a name of dots", tensors(&pair("base_model.model.....", 8, 8)), NOT_MERGED, &[]),
        (
            "a name that leads out",
            tensors(&pair("base_model.model.../../../etc/passwd", 8, 8)),
            NOT_MERGED,
            &["passwd"],
        ),
        (
            "a name of 3,000 levels",
            tensors(&pair(&format!("base_model.model.{}x", "a.".repeat(3000)), 8, 8)),
            NOT_MERGED,
            &["a.a"],
        ),
        (
            "two that mean the same",
            with(&|all| all.extend(pair(&Q.replace("base_model.model.", ""), 8, 8))),
            NOT_WRITTEN,
            &["q_proj"],
        ),
        (
            "two adapters in one",
            with(&|all| all.push(f32_tensor(A.replace("lora_A.weight", "lora_A.other.weight"), &[2, 8]))),
            NOT_WRITTEN,
            &["lora_A"],
        ),
        (
            "two layouts",
            with(&|all| {
                all.extend([
                    f32_tensor("lora_unet_x.lora_down.weight", &[2, 8]),
                    f32_tensor("lora_unet_x.lora_up.weight", &[8, 2]),
                ]);
            }),
            NOT_WRITTEN,
            &["lora_unet_x"],
        ),
        (
            "a norm that is not there",
            more("base_model.model.model.layers.0.extra.weight", &[8]),
            NOT_MERGED,
            &["extra"],
        ),
    ]);
}

#[test]
fn types_and_values() {
    let module = "layers.0.self_attn.q_proj";
    let tiny = f32::from_bits(1);
    // 3e38 times 3e38 is beyond the range.
    let large = with(&|all| {
        all[0].3 = f32s(&[3e38; 16]);
        all[1].3 = f32s(&[3e38; 16]);
    });
    run(&[
        ("integers", typed("I32", 4), NOT_WRITTEN, &[module, "I32"]),
        ("bytes", typed("U8", 1), NOT_WRITTEN, &[module, "U8"]),
        ("truths", typed("BOOL", 1), NOT_WRITTEN, &[module, "BOOL"]),
        ("complex numbers", typed("C64", 8), NOT_WRITTEN, &[module, "C64"]),
        (
            "numbers of 6 bits",
            with(&|all| (all[0].1, all[0].3) = ("F6_E2M3", vec![0; 12])),
            NOT_WRITTEN,
            &[module, "F6_E2M3"],
        ),
        ("NaN", value(f32::NAN), NOT_MERGED, &[A, "NaN", "number 5"]),
        ("a NaN of another kind", value(f32::from_bits(0xffc0_1234)), NOT_MERGED, &[A]),
        ("infinity", value(f32::INFINITY), NOT_MERGED, &[A, "number 5"]),
        ("minus infinity", value(f32::NEG_INFINITY), NOT_MERGED, &[A]),
        ("a product beyond the range", large, NOT_MERGED, &[module]),
        ("subnormal numbers", value(tiny), ACCEPTED, &[]),
        ("minus zero", value(-0.0), ACCEPTED, &[]),
        (
            "a rank above the dimension",
            with(&|all| (all[0], all[1]) = (f32_tensor(A, &[40, 8]), f32_tensor(B, &[8, 40]))),
            OPEN,
            &[],
        ),
    ]);
    let mut corpus = Corpus::new();
    let mut other = |case: &str, config: String, bytes: Vec<u8>, verdicts, words: &[&str]| {
        let path = corpus.files(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &bytes)]);
        corpus.adapter(case, &path, verdicts, words);
    };
    let wide = tensors(&[f32_tensor(A, &[40, 8]), f32_tensor(B, &[8, 40])]);
    other("rank 40 of 8", r#"{"peft_type":"LORA","r":40,"lora_alpha":4}"#.into(), wide, ACCEPTED, &[]);
    other(
        "negative alpha",
        r#"{"peft_type":"LORA","r":2,"lora_alpha":-4}"#.into(),
        tensors(&good_entries()),
        ACCEPTED,
        &[],
    );
    other("alpha 0", r#"{"peft_type":"LORA","r":2,"lora_alpha":0}"#.into(), tensors(&good_entries()), OPEN, &[]);
    other(
        "alpha 1e300",
        r#"{"peft_type":"LORA","r":2,"lora_alpha":1e300}"#.into(),
        tensors(&good_entries()),
        NOT_MERGED,
        &["q_proj"],
    );
    other(
        "another rank",
        r#"{"peft_type":"LORA","r":3,"lora_alpha":4}"#.into(),
        tensors(&good_entries()),
        NOT_WRITTEN,
        &[module, "3", "2"],
    );
    let dora = |shape: &[usize]| with(&|all| all.push(f32_tensor(format!("{Q}.lora_magnitude_vector"), shape)));
    let is_dora = || config(r#""use_dora":true"#);
    other("DoRA without magnitudes", is_dora(), with(&|_| ()), NOT_WRITTEN, &["q_proj", "magnitude"]);
    let both = |shape: &[usize]| {
        with(&|all| {
            all.push(f32_tensor(format!("{Q}.lora_magnitude_vector"), shape));
            all.push(f32_tensor(format!("{K}.lora_magnitude_vector"), &[4]));
        })
    };
    other("DoRA of other lengths", is_dora(), both(&[7]), NOT_MERGED, &["q_proj", "7"]);
    other("DoRA of matrices", is_dora(), both(&[8, 8]), NOT_MERGED, &["q_proj", "[8, 8]"]);
    other("DoRA of no length", is_dora(), both(&[0]), NOT_MERGED, &["q_proj"]);
    other("magnitudes and no DoRA", config(""), dora(&[8]), NOT_WRITTEN, &["magnitude"]);
    let saved = |shape: &[usize]| with(&|all| all.push(f32_tensor("base_model.model.lm_head.weight", shape)));
    let saves = || config(r#""modules_to_save":["lm_head"]"#);
    other("a saved module of another shape", saves(), saved(&[15, 8]), NOT_MERGED, &["lm_head", "[15, 8]", "[16, 8]"]);
    other("a saved module that is turned", saves(), saved(&[8, 16]), NOT_MERGED, &["lm_head", "[8, 16]", "[16, 8]"]);
    other("a saved module of another rank", saves(), saved(&[16, 8, 1]), NOT_MERGED, &["lm_head", "[16, 8, 1]"]);
    other("a saved module", saves(), saved(&[16, 8]), ACCEPTED, &[]);
    let other_saved = |name: &str, shape: &[usize]| {
        with(&|all| all.push(f32_tensor(format!("base_model.model.model.{name}.weight"), shape)))
    };
    let saves_more = || config(r#""modules_to_save":["norm","down_proj","embed_tokens"]"#);
    other(
        "a saved norm of another length",
        saves_more(),
        other_saved("norm", &[7]),
        NOT_MERGED,
        &["norm", "[7]", "[8]"],
    );
    other(
        "a saved layer of other outputs",
        saves_more(),
        other_saved("layers.0.mlp.down_proj", &[9, 12]),
        NOT_MERGED,
        &["down_proj", "[9, 12]", "[8, 12]"],
    );
    other(
        "a saved layer that would broadcast",
        saves_more(),
        other_saved("layers.0.mlp.down_proj", &[1, 12]),
        NOT_MERGED,
        &["down_proj", "[1, 12]"],
    );
    other(
        "a saved embedding that grew by itself",
        saves_more(),
        other_saved("embed_tokens", &[20, 8]),
        NOT_MERGED,
        &["embed_tokens", "[20, 8]", "[16, 8]"],
    );
    let not_finite =
        with(&|all| all.push(("base_model.model.lm_head.weight".into(), "F32", vec![16, 8], f32s(&[f32::NAN; 128]))));
    other("a saved module of NaN", saves(), not_finite, NOT_MERGED, &["lm_head", "128 values"]);
    corpus.done();
}

/// Bases in narrow types: what fits into F32 may not fit into them.
#[test]
fn results_beyond_the_range_of_the_base() {
    let mut corpus = Corpus::new();
    for (dtype, width, alpha) in [("F16", 2, 1e7), ("F8_E4M3", 1, 1e5), ("F8_E5M2", 1, 1e7), ("BF16", 2, 1e39)] {
        let mut entries = made::base_entries();
        for (_, word, shape, bytes) in &mut entries {
            *word = dtype;
            *bytes = vec![0; shape.iter().product::<usize>() * width];
        }
        let base =
            corpus.files(&[("model.safetensors", &tensors(&entries)), ("config.json", made::BASE_CONFIG.as_bytes())]);
        let config = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":{alpha}}}"#);
        let bytes = tensors(&good_entries());
        let path = corpus.files(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &bytes)]);
        let out = corpus.path("work/out");
        let line = ["merge".as_ref(), base.as_os_str(), path.as_os_str(), "-o".as_ref(), out.as_os_str()];
        corpus.line(dtype, &line, Some(&path), super::Verdict::Refused, &["q_proj.weight", dtype]);
    }
    corpus.done();
}
