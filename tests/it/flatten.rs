//! `convert --normalise --base --rank`: adapters of any kind as plain LoRA, against what PEFT merges and against the best
//! approximation in f64.

use std::path::Path;

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::fixtures::{Case, Scratch, adapter, base, cases, text};
use crate::models::{Values, json_file, read, tensor, write};
use crate::parity;
use crate::program::{Ran, run};

fn plain(case: &Case, out: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["convert".to_string(), text(&case.adapter()), "-o".to_string(), text(out)];
    args.extend(["--to", "peft", "--no-sync", "--normalise", "--base"].map(str::to_string));
    args.push(text(&case.base()));
    args.extend(more.iter().map(ToString::to_string));
    run(args)
}

fn case(name: &str) -> Case {
    cases("peft").into_iter().find(|c| c.name == name).expect("the case")
}

/// Whether an adapter is plain LoRA already, or holds whole tensors only.
fn is_plain(answer: &Value) -> bool {
    answer["adapters"][0]["approximated"].is_null()
}

// Against PEFT

/// Why an adapter is refused whatever its rank: what PEFT's layout has no place for.
const NOT_WRITTEN: [&str; 2] = ["whose input is adapted with another rank or scale", "which no adapter of PEFT holds"];

#[test]
fn at_full_rank_every_change_is_what_peft_merges() {
    let (mut failed, mut count) = (Vec::new(), 0);
    for case in cases("peft").into_iter().filter(|c| c.expects_merge() && c.text("differs").is_none()) {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let ran = plain(&case, &out, &["--rank", "128", "--json"]);
        if ran.code == Some(1) {
            if !NOT_WRITTEN.iter().any(|reason| ran.err.contains(reason)) {
                failed.push(format!("{}: {}", case.name, ran.err));
            }
            continue;
        }
        count += usize::from(!is_plain(&ran.expect(0).json()));
        failed.extend(parity::differences_above(&case, &out, 1e-5).iter().map(|d| format!("{}: {d}", case.name)));
        let config = json_file(&out.join("adapter_config.json"));
        if config["peft_type"] == "LORA" && config["use_dora"] != json!(false) {
            failed.push(format!("{}: {config}", case.name));
        }
    }
    assert!(failed.is_empty(), "{} of {count}:\n{}", failed.len(), failed.join("\n"));
    assert!(count > 60, "only {count} were approximated");
}

#[test]
fn what_is_exactly_low_rank_needs_no_rank() {
    let kinds =
        ["pissa", "bert_pissa", "olora", "qalora", "miss", "miss_mini", "bone", "vera", "gpt2_pvera", "unilora"];
    for case in kinds.map(case).iter().filter(|c| c.expects_merge()) {
        let scratch = Scratch::new();
        let out = scratch.join("out");
        let answer = plain(case, &out, &["--json"]).expect(0).json();
        assert!(is_plain(&answer), "{}", case.name);
        assert_eq!(answer["adapters"][0]["kinds"].as_object().expect("kinds").len(), 1, "{}", case.name);
        let differences = parity::differences_above(case, &out, 1e-5);
        assert!(differences.is_empty(), "{}: {}", case.name, differences.join("\n"));
        // A rank is for what needs one.
        let again = scratch.join("again");
        assert!(is_plain(&plain(case, &again, &["--rank", "1", "--json"]).expect(0).json()), "{}", case.name);
        let file = |folder: &Path| std::fs::read(folder.join("adapter_model.safetensors")).expect("the tensors");
        assert_eq!(file(&out), file(&again), "{}", case.name);
    }
}

#[test]
fn with_the_base_pissa_and_olora_are_resized() {
    for name in ["pissa", "olora", "bert_pissa"] {
        let (case, scratch) = (case(name), Scratch::new());
        let (out, small) = (scratch.join("out"), scratch.join("small"));
        let resize = |out: &Path, rank: &str| {
            let (from, base) = (text(&case.adapter()), text(&case.base()));
            run(["resize", &from, "-o", &text(out), "--rank", rank, "--base", &base, "--no-sync", "--json"])
                .expect(0)
                .json()
        };
        resize(&out, "32");
        let differences = parity::differences_above(&case, &out, 1e-5);
        assert!(differences.is_empty(), "{name}: {}", differences.join("\n"));
        assert_optimal(&case, &small, &resize(&small, "2"), 2);
    }
    let e = run(["resize", &text(&adapter("pissa")), "-o", "x", "--rank", "2"]).expect(1).err;
    assert!(e.contains("--base"), "{e}");
}

// Against the best approximation in f64

#[test]
fn at_a_lower_rank_the_error_is_the_least_there_is() {
    let names = [
        "dora",
        "gpt2_dora",
        "resnet_dora",
        "whisper_dora",
        "embedding_dora",
        "loha",
        "lokr",
        "resnet_loha",
        "ia3",
        "gpt2_ia3",
        "resnet_ia3",
        "oft",
        "boft",
        "hra",
        "road_1",
        "hira",
        "gpt2_hira",
        "embedding_hira",
        "fourierft",
        "waveft",
        "shira",
        "c3a",
        "miss_bat",
        "deft",
        "glora",
        "kasa",
        "osf",
        "peanut",
    ];
    for case in names.map(case) {
        for (rank, more) in [(1, &[][..]), (3, &["--balance", "a"]), (2, &["--dtype", "bf16"]), (4, &["--exact"])] {
            let scratch = Scratch::new();
            let out = scratch.join("out");
            let text = rank.to_string();
            let args: Vec<_> = ["--rank", &text, "--json"].iter().chain(more).copied().collect();
            let answer = plain(&case, &out, &args).expect(0).json();
            assert_optimal(&case, &out, &answer["adapters"][0]["approximated"], rank);
        }
    }
}

/// Checks every module that an answer lists: the error stated is that of the factors against what PEFT merges, and, but
/// for what rounding adds, the least that a rank can have.
#[track_caller]
fn assert_optimal(case: &Case, out: &Path, answer: &Value, rank: usize) {
    let (old, new) = (read(&case.base()), read(&case.path.join("expected.safetensors")));
    let factors = read(out);
    let config = json_file(&out.join("adapter_config.json"));
    let is_rounded = factors.values().any(|t| t.dtype != Dtype::F32);
    let modules = answer["modules"].as_array().expect("modules");
    let (mut lost, mut energy) = (0.0, 0.0);
    for module in modules {
        let path = module["module"].as_str().expect("a path");
        let found =
            |key: &&String| key.strip_suffix(".weight").is_some_and(|key| ends_with(path, key) || ends_with(key, path));
        let key = new.keys().find(found).unwrap_or_else(|| panic!("{}: {path}", case.name));
        let change = Matrix::of(&new[key]).less(&Matrix::of(&old[key]));
        let (made, is_embedding) = product(&factors, path);
        let turned = is_embedding || config["fan_in_fan_out"] == json!(true) || case.name.starts_with("gpt2");
        let made = if turned { made.transposed() } else { made };
        let size = change.energy();
        let (error, best) = (change.less(&made).energy() / size, change.beyond(rank) / size);
        let stated = module["relative_error"].as_f64().expect("a number");
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-3 * b + 1e-5;
        let what = format!(
            "{} {path} at {rank}: {stated}, {} of the factors, {} at best",
            case.name,
            error.sqrt(),
            best.sqrt()
        );
        assert!(near(stated, error.sqrt()), "{what}");
        assert!(if is_rounded { stated > best.sqrt() - 1e-5 } else { near(stated, best.sqrt()) }, "{what}");
        assert_eq!(module["rank"], json!(rank), "{what}");
        (lost, energy) = (lost + error * size, energy + size);
    }
    assert!(!modules.is_empty(), "{}: {answer}", case.name);
    let all = answer["overall"]["relative_error"].as_f64().expect("a number");
    assert!((all - (lost / energy).sqrt()).abs() < 1e-3 * all + 1e-5, "{}: {all}", case.name);
}

/// A LoHa of the query alone on the projection that a fused model has: refused as it is, and with a rank the query's change
/// over rows of zeros.
#[test]
fn what_cannot_be_put_together_as_it_is_can_as_plain_lora() {
    let (case, scratch) = (case("loha"), Scratch::new());
    let retarget = ["convert", &text(&case.adapter()), "--to", "peft", "--retarget", "fused", "-o"].map(str::to_string);
    let ran = run(retarget.iter().cloned().chain([text(&scratch.join("refused"))])).expect(1);
    assert!(ran.err.contains("qkv_proj") && !scratch.join("refused").exists(), "{}", ran.err);
    let out = scratch.join("out");
    let ran = plain(&case, &out, &["--rank", "16", "--retarget", "fused"]).expect(0);
    assert!(ran.out.contains("relative error < 1e-6"), "{}", ran.out);
    let (q, qkv) = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.qkv_proj");
    let (change, _) = product(&read(&out.join("adapter_model.safetensors")), qkv);
    let key = format!("{q}.weight");
    let of = |path: &Path| Matrix::of(&read(path)[&key]);
    let (before, after) = (of(&case.base()), of(&case.path.join("expected.safetensors")));
    assert_eq!((change.rows, change.cols), (2 * before.rows, before.cols)); // 24 of the query, 12 each of key and value
    for (at, found) in change.values.iter().enumerate() {
        let wanted = after.values.get(at).map_or(0.0, |v| v - before.values[at]);
        assert!((found - wanted).abs() < 1e-5, "{at}: {found} instead of {wanted}");
    }
}

fn ends_with(long: &str, short: &str) -> bool {
    long == short || long.strip_suffix(short).is_some_and(|rest| rest.ends_with('.'))
}

/// B · A of a module of scale 1, and whether it is an embedding's.
fn product(factors: &std::collections::BTreeMap<String, Values>, path: &str) -> (Matrix, bool) {
    let get = |key: &str| factors.get(&format!("base_model.model.{path}.{key}")).map(Matrix::of);
    let layer = get("lora_A.weight").zip(get("lora_B.weight"));
    let (a, b) = layer.clone().or_else(|| get("lora_embedding_A").zip(get("lora_embedding_B"))).expect("factors");
    (b.times(&a), layer.is_none())
}

/// A matrix in f64; of a convolution the kernel flattened.
#[derive(Clone)]
struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn of(v: &Values) -> Matrix {
        let rows = v.shape[0];
        Matrix { rows, cols: v.values.len() / rows, values: v.values.clone() }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.cols + col]
    }

    fn made(rows: usize, cols: usize, of: impl Fn(usize, usize) -> f64) -> Matrix {
        Matrix { rows, cols, values: (0..rows * cols).map(|at| of(at / cols, at % cols)).collect() }
    }

    fn transposed(&self) -> Matrix {
        Matrix::made(self.cols, self.rows, |i, j| self.at(j, i))
    }

    fn less(&self, other: &Matrix) -> Matrix {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        Matrix::made(self.rows, self.cols, |i, j| self.at(i, j) - other.at(i, j))
    }

    fn times(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.rows);
        Matrix::made(self.rows, other.cols, |i, j| (0..self.cols).map(|k| self.at(i, k) * other.at(k, j)).sum())
    }

    fn energy(&self) -> f64 {
        self.values.iter().map(|v| v * v).sum()
    }

    /// The sum of the squares of all singular values but the `rank` largest: eigenvalues of the product with the
    /// transpose, by Jacobi's rotations.
    fn beyond(&self, rank: usize) -> f64 {
        let wide = if self.rows > self.cols { self.transposed() } else { self.clone() };
        let mut g = wide.times(&wide.transposed());
        let n = g.rows;
        for _ in 0..30 {
            for (p, q) in (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q))) {
                let off = g.at(p, q);
                if off.abs() < 1e-300 {
                    continue;
                }
                let theta = (g.at(q, q) - g.at(p, p)) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (g.at(k, p), g.at(k, q));
                    (g.values[k * n + p], g.values[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (g.at(p, k), g.at(q, k));
                    (g.values[p * n + k], g.values[q * n + k]) = (c * x - s * y, s * x + c * y);
                }
            }
        }
        let mut eigenvalues: Vec<f64> = (0..n).map(|i| g.at(i, i).max(0.0)).collect();
        eigenvalues.sort_by(|a, b| b.total_cmp(a));
        eigenvalues.iter().skip(rank).sum()
    }
}

// Weights that are read in pieces

/// A base and an adapter of RoAd on its layer (pairs of outputs in groups of 48); the change in f64.
fn rotated(scratch: &Scratch) -> Matrix {
    let (rows, cols, group) = (1104, 1000, 48);
    std::fs::create_dir_all(scratch.join("base")).expect("a folder");
    std::fs::create_dir_all(scratch.join("road")).expect("a folder");
    let weight = tensor(Dtype::BF16, &[rows, cols], 3);
    let (theta, alpha) = (tensor(Dtype::F32, &[rows / 2], 5), tensor(Dtype::F32, &[rows / 2], 6));
    let mut change = Matrix::of(&weight);
    for o in 0..rows {
        let (g, p, half) = (o / group, o % group, group / 2);
        let at = g * half + p % half;
        let (c, s) = (alpha.values[at] * theta.values[at].cos(), alpha.values[at] * theta.values[at].sin());
        let (pair, sign) = if p < half { (o + half, -1.0) } else { (o - half, 1.0) };
        for j in 0..cols {
            let value = |o: usize| weight.values[o * cols + j];
            change.values[o * cols + j] = c * value(o) + sign * s * value(pair) - value(o);
        }
    }
    let model = [("layers.0.q.weight".to_string(), weight)].into();
    write(&scratch.join("base").join("model.safetensors"), &model, None);
    let key = |role: &str| format!("base_model.model.layers.0.q.road_{role}");
    let model = [(key("theta"), theta), (key("alpha"), alpha)].into();
    write(&scratch.join("road").join("adapter_model.safetensors"), &model, None);
    let config = json!({ "peft_type": "ROAD", "variant": "road_1", "group_size": group, "target_modules": ["q"] });
    std::fs::write(scratch.join("road").join("adapter_config.json"), config.to_string()).expect("a config");
    change
}

#[test]
fn pieces_and_threads_change_nothing() {
    let scratch = Scratch::new();
    let change = rotated(&scratch);
    let flatten = |out: &str, more: &[&str]| {
        let mut args = vec!["convert".to_string(), text(&scratch.join("road")), "-o".into(), text(&scratch.join(out))];
        args.extend(
            ["--to", "peft", "--no-sync", "--normalise", "--rank", "6", "--json", "--base"].map(str::to_string),
        );
        args.push(text(&scratch.join("base")));
        args.extend(more.iter().map(ToString::to_string));
        let answer = run(args).expect(0).json()["adapters"][0]["approximated"]["modules"][0].clone();
        (answer, std::fs::read(scratch.join(out).join("adapter_model.safetensors")).expect("the tensors"))
    };
    let number = |answer: &Value, field: &str| answer[field].as_f64().expect("a number");
    let (one, bytes) = flatten("one", &["--threads", "1", "--memory", "1MB"]);
    let (exact, _) = flatten("exact", &["--exact"]);
    assert!(number(&one, "passes") > 1.0, "{one}");
    assert_eq!(bytes, flatten("four", &["--threads", "4"]).1);
    let energy = change.energy();
    let (made, _) = product(&read(&scratch.join("one")), "layers.0.q");
    let error = (change.less(&made).energy() / energy).sqrt();
    assert!((number(&one, "energy") - energy).abs() < 1e-6 * energy, "{one}: {energy}");
    assert!((number(&one, "relative_error") - error).abs() < 1e-4 * error, "{one}: {error}");
    let (found, best) = (number(&one, "relative_error"), number(&exact, "relative_error"));
    assert!(found < 1.01 * best && found > best - 1e-6, "{found} against {best}");
}

#[test]
fn a_convolution_of_several_groups_and_a_bias_become_whole_tensors() {
    let scratch = Scratch::new();
    let (base, ia3, out, merged) =
        (scratch.join("base"), scratch.join("ia3"), scratch.join("out"), scratch.join("merged"));
    for folder in [&base, &ia3] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    let conv = tensor(Dtype::F32, &[6, 1, 3, 3], 1);
    let bias = tensor(Dtype::F32, &[6], 2);
    let linear = tensor(Dtype::F32, &[6, 4], 3);
    let scales = tensor(Dtype::F32, &[1, 6, 1, 1], 4);
    let model = [("conv.weight", &conv), ("conv.bias", &bias), ("fc.weight", &linear)];
    write(&base.join("model.safetensors"), &model.map(|(k, v)| (k.to_string(), v.clone())).into(), None);
    let of_layer = Values { shape: vec![6, 1], ..scales.clone() };
    let factors = [("conv", scales.clone()), ("fc", of_layer)];
    let factors = factors.map(|(path, v)| (format!("base_model.model.{path}.ia3_l"), v));
    write(&ia3.join("adapter_model.safetensors"), &factors.into(), None);
    let mut config = json!({ "peft_type": "IA3", "target_modules": ["conv", "fc"], "feedforward_modules": [] });
    std::fs::write(ia3.join("adapter_config.json"), config.to_string()).expect("a config");

    let (from, base_text, out_text) = (text(&ia3), text(&base), text(&out));
    let answer =
        run(["convert", &from, "-o", &out_text, "--to", "peft", "--normalise", "--base", &base_text]).expect(1).err;
    assert!(answer.contains("--rank 16"), "{answer}");
    let args = ["convert", &from, "-o", &out_text, "--to", "peft", "--normalise", "--base", &base_text, "--rank", "4"];
    let answer = run(args.iter().chain(&["--json", "--strict"])).expect(0).json();
    assert_eq!(answer["adapters"][0]["approximated"]["overall"]["modules"], json!(1), "{answer}");
    let again = run(args.iter().chain(&["--force"])).expect(0);
    assert!(!again.err.contains("another base"), "{}", again.err);
    config["lora_tool.base_fingerprint"] = json!("0".repeat(64));
    std::fs::write(ia3.join("adapter_config.json"), config.to_string()).expect("a config");
    let e = run(args.iter().chain(&["--force", "--strict"])).expect(3).err;
    assert!(e.contains("made for another base"), "{e}");
    run(["merge", &base_text, &out_text, "-o", &text(&merged), "--no-sync"]).expect(0);
    let new = read(&merged);
    for (key, old) in model {
        let each = old.values.len() / 6;
        for (i, (found, value)) in new[key].values.iter().zip(&old.values).enumerate() {
            let wanted = value * scales.values[i / each];
            assert!((found - wanted).abs() < 1e-6, "{key}: {found} against {wanted}");
        }
    }
}

// Ranks, types and refusals

#[test]
fn budgets_count_what_is_plain_already() {
    // 6 layers of IA3; the rule deals out ranks.
    let (case, scratch) = (case("ia3"), Scratch::new());
    let numbers = |answer: &Value| answer["adapters"][0]["parameters"].as_u64().expect("a number");
    let some = plain(&case, &scratch.join("a"), &["--rank", "params=600", "--json"]).expect(0).json();
    assert!((300..=600).contains(&numbers(&some)), "{some}");
    let bytes =
        plain(&case, &scratch.join("b"), &["--rank", "size=1200", "--dtype", "bf16", "--json"]).expect(0).json();
    assert_eq!(numbers(&bytes), numbers(&some));
    let within = plain(&case, &scratch.join("c"), &["--rank", "error=0.3", "--json"]).expect(0).json();
    let modules = within["adapters"][0]["approximated"]["modules"].as_array().expect("modules");
    assert!(modules.iter().all(|m| m["relative_error"].as_f64().expect("a number") <= 0.3));
}

#[test]
fn where_a_rank_or_a_base_is_needed_the_hint_says_so() {
    let scratch = Scratch::new();
    let out = text(&scratch.join("out"));
    let convert = |name: &str, more: &[&str]| {
        let from = text(&adapter(name));
        run(["convert", from.as_str(), "-o", &out].iter().chain(more)).expect(1).err
    };
    let llama = text(&base("llama"));
    for name in ["dora", "loha", "ia3", "hira"] {
        for more in [
            &["--to", "peft", "--normalise"][..],
            &["--to", "peft", "--normalise", "--base", &llama],
            &["--to", "gguf", "--base", &llama],
            &["--to", "mlx"],
        ] {
            if name == "dora" && more.contains(&"mlx") {
                continue; // MLX has a place for it
            }
            let e = convert(name, more);
            assert!(e.contains("--normalise --base BASE --rank 16"), "{name} {more:?}: {e}");
        }
    }
    let e = convert("pissa", &["--to", "peft", "--normalise"]);
    assert!(e.contains("--base BASE"), "{e}");
    let e = convert("dora", &["--to", "peft", "--normalise", "--rank", "4", "--base", &text(&base("gpt2"))]);
    assert!(e.contains("is this the base model"), "{e}");
    let from = text(&adapter("dora"));
    run(["convert", &from, "-o", &out, "--to", "peft", "--rank", "4"]).expect(2);
    run(["convert", &from, "-o", &out, "--to", "peft", "--normalise", "--max-rank", "4"]).expect(2);
}
