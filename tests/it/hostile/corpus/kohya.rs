//! Files of kohya's scripts and of LyCORIS, which have everything in the tensors: alphas that are no numbers, kinds of
//! which a part is missing, products that nobody could hold.

use super::made::{Entry, f32_tensor, f32s, tensors};
use super::{ACCEPTED, Corpus, NOT_MERGED, NOT_WRITTEN, Verdicts};

const MODULE: &str = "lora_unet_model_layers_0_mlp_up_proj";

fn alpha(dtype: &'static str, shape: &[usize], bytes: &[u8]) -> Entry {
    (format!("{MODULE}.alpha"), dtype, shape.to_vec(), bytes.to_vec())
}

fn part(name: &str, shape: &[usize]) -> Entry {
    f32_tensor(format!("{MODULE}.{name}"), shape)
}

fn lora(more: &[Entry]) -> Vec<u8> {
    tensors(&[&[part("lora_down.weight", &[2, 8]), part("lora_up.weight", &[12, 2])], more].concat())
}

fn run(cases: &[(&str, Vec<u8>, Verdicts, &[&str])]) {
    let mut corpus = Corpus::new();
    for (case, bytes, verdicts, words) in cases {
        let path = corpus.file("kohya.safetensors", bytes);
        corpus.adapter(case, &path, *verdicts, words);
    }
    corpus.done();
}

#[test]
fn alphas() {
    let one = |number: f32| lora(&[alpha("F32", &[], &f32s(&[number]))]);
    let name = "up_proj: alpha";
    run(&[
        ("none", lora(&[]), [ACCEPTED[0], ACCEPTED[1], super::Verdict::Open], &[]),
        ("4", one(4.0), [ACCEPTED[0], ACCEPTED[1], super::Verdict::Open], &[]),
        ("NaN", one(f32::NAN), NOT_WRITTEN, &[name, "not finite"]),
        ("infinity", one(f32::INFINITY), NOT_WRITTEN, &[name, "not finite"]),
        ("a vector", lora(&[alpha("F32", &[3], &f32s(&[1., 2., 3.]))]), NOT_WRITTEN, &[name, "[3]"]),
        ("empty", lora(&[alpha("F32", &[0], &[])]), NOT_WRITTEN, &[name, "[0]"]),
        ("complex", lora(&[alpha("C64", &[], &[0; 8])]), NOT_WRITTEN, &[name, "C64"]),
        ("alone", tensors(&[alpha("F32", &[], &f32s(&[4.]))]), NOT_WRITTEN, &["up_proj"]),
        (
            "without up",
            tensors(&[part("lora_down.weight", &[2, 8]), alpha("F32", &[], &f32s(&[4.]))]),
            NOT_WRITTEN,
            &["up_proj"],
        ),
        ("without down", tensors(&[part("lora_up.weight", &[12, 2])]), NOT_WRITTEN, &["up_proj"]),
        (
            "ranks that differ",
            tensors(&[part("lora_down.weight", &[2, 8]), part("lora_up.weight", &[12, 3])]),
            NOT_WRITTEN,
            &["up_proj", "[2, 8]", "[12, 3]"],
        ),
        ("an unknown part", lora(&[part("lora_sideways.weight", &[2])]), NOT_WRITTEN, &["lora_sideways"]),
    ]);
}

#[test]
fn other_kinds() {
    let loha = |shapes: [[usize; 2]; 4]| {
        let names = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"];
        names.into_iter().zip(shapes).map(|(name, shape)| part(name, &shape)).collect::<Vec<_>>()
    };
    let good = loha([[12, 2], [2, 8], [12, 2], [2, 8]]);
    let huge = 3_000_000;
    let w = "up_proj";
    run(&[
        ("LoHa", tensors(&good), [ACCEPTED[0], ACCEPTED[1], super::Verdict::Open], &[]),
        ("LoHa, a part missing", tensors(&good[..3]), NOT_WRITTEN, &[w, "hada_w2_b"]),
        ("LoHa, one part", tensors(&good[..1]), NOT_WRITTEN, &[w]),
        (
            "LoHa, ranks that differ",
            tensors(&loha([[12, 2], [3, 8], [12, 2], [2, 8]])),
            NOT_WRITTEN,
            &[w, "[12, 2]", "[3, 8]"],
        ),
        (
            "LoHa, shapes apart",
            tensors(&loha([[12, 2], [2, 8], [11, 2], [2, 8]])),
            NOT_WRITTEN,
            &[w, "[12, 8]", "[11, 8]"],
        ),
        (
            "LoHa, a product of 2^43",
            tensors(&loha([[huge, 1], [1, huge], [huge, 1], [1, huge]])),
            NOT_MERGED,
            &["kohya"],
        ),
        (
            "LoHa, cores without a kernel",
            tensors(&[good.clone(), vec![part("hada_t1", &[2, 2, 3, 3])]].concat()),
            NOT_WRITTEN,
            &[w],
        ),
        (
            "LoKr",
            tensors(&[part("lokr_w1", &[3, 2]), part("lokr_w2", &[4, 4])]),
            [ACCEPTED[0], ACCEPTED[1], super::Verdict::Open],
            &[],
        ),
        ("LoKr, a part missing", tensors(&[part("lokr_w1", &[3, 2])]), NOT_WRITTEN, &[w, "lokr_w2"]),
        (
            "LoKr, half a part missing",
            tensors(&[part("lokr_w1", &[3, 2]), part("lokr_w2_a", &[4, 2])]),
            NOT_WRITTEN,
            &[w, "lokr_w2_b"],
        ),
        (
            "LoKr, both forms of a part",
            tensors(&[
                part("lokr_w1", &[3, 2]),
                part("lokr_w2", &[4, 4]),
                part("lokr_w2_a", &[4, 2]),
                part("lokr_w2_b", &[2, 4]),
            ]),
            NOT_WRITTEN,
            &[w, "lokr_w2"],
        ),
        (
            "LoKr, ranks that differ",
            tensors(&[part("lokr_w1", &[3, 2]), part("lokr_w2_a", &[4, 2]), part("lokr_w2_b", &[3, 4])]),
            NOT_WRITTEN,
            &[w],
        ),
        (
            "LoKr, a product of 2^44",
            tensors(&[part("lokr_w1", &[2048, 2048]), part("lokr_w2_a", &[2048, 1]), part("lokr_w2_b", &[1, 2048])]),
            NOT_MERGED,
            &["kohya"],
        ),
        ("LoKr, a vector", tensors(&[part("lokr_w1", &[6]), part("lokr_w2", &[4, 4])]), NOT_WRITTEN, &[w, "[6]"]),
        (
            "LoKr, no elements",
            tensors(&[part("lokr_w1", &[0, 2]), part("lokr_w2", &[4, 4])]),
            NOT_WRITTEN,
            &[w, "[0, 2]"],
        ),
        (
            "OFT",
            tensors(&[part("oft_blocks", &[3, 4, 4]), alpha("F32", &[], &f32s(&[0.001]))]),
            [ACCEPTED[0], super::Verdict::Open, super::Verdict::Open],
            &[],
        ),
        ("OFT, not square", tensors(&[part("oft_blocks", &[3, 4, 3])]), NOT_WRITTEN, &[w]),
        ("OFT, a matrix", tensors(&[part("oft_blocks", &[3, 4])]), NOT_WRITTEN, &[w]),
        ("OFT, no blocks", tensors(&[part("oft_blocks", &[0, 4, 4])]), NOT_MERGED, &[w]),
        (
            "IA3, not a vector",
            tensors(&[
                part("weight", &[3, 4, 5]),
                ("lora_unet_model_layers_0_mlp_up_proj.on_input".into(), "BOOL", vec![], vec![1]),
            ]),
            NOT_WRITTEN,
            &[w],
        ),
        (
            "GLoRA, parts missing",
            tensors(&[part("a1.weight", &[2, 8]), part("b1.weight", &[12, 2])]),
            NOT_WRITTEN,
            &[w],
        ),
        ("a full change of another shape", tensors(&[part("diff", &[3, 4])]), NOT_MERGED, &["kohya"]),
    ]);
}

/// Products that would need more memory than there is are refused against a base that has the module, too.
#[test]
fn huge_products_over_a_base_with_their_module() {
    let mut corpus = Corpus::new();
    let name = "base_model.model.model.layers.0.mlp.up_proj";
    for (case, kind, entries) in [
        (
            "LoKr",
            "LOKR",
            vec![("lokr_w1", vec![2048, 2048]), ("lokr_w2_a", vec![2048, 1]), ("lokr_w2_b", vec![1, 2048])],
        ),
        (
            "LoHa",
            "LOHA",
            vec![
                ("hada_w1_a", vec![1 << 20, 1]),
                ("hada_w1_b", vec![1, 1 << 20]),
                ("hada_w2_a", vec![1 << 20, 1]),
                ("hada_w2_b", vec![1, 1 << 20]),
            ],
        ),
        ("LoRA", "LORA", vec![("lora_A.weight", vec![1, 1 << 20]), ("lora_B.weight", vec![1 << 20, 1])]),
        ("OFT", "OFT", vec![("oft_R.weight", vec![1, 1 << 20])]),
        ("BOFT", "BOFT", vec![("boft_R", vec![1, 1, 1024, 1024]), ("boft_s", vec![12, 1])]),
        ("VeRA", "VERA", vec![("vera_lambda_b", vec![1 << 20]), ("vera_lambda_d", vec![1 << 20])]),
        ("HRA", "HRA", vec![("hra_u", vec![1 << 20, 1])]),
        ("FourierFT", "FOURIERFT", vec![("fourierft_spectrum", vec![1 << 20])]),
    ] {
        let config = format!(
            r#"{{"peft_type":"{kind}","r":1,"lora_alpha":1,"alpha":1,"n_frequency":1048576,"projection_prng_key":0,"oft_block_size":1024,"boft_block_size":1024,"boft_block_num":0,"boft_n_butterfly_factor":1}}"#
        );
        let all: Vec<_> = entries.iter().map(|(part, shape)| f32_tensor(format!("{name}.{part}"), shape)).collect();
        let path =
            corpus.files(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &tensors(&all))]);
        corpus.adapter(case, &path, NOT_MERGED, &[if case == "VeRA" { "vera_A" } else { "up_proj" }]);
    }
    corpus.done();
}
