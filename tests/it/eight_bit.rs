//! Bases in 8-bit floats, plain and with every form of scale: what the program makes of them against formulas in f64 and
//! a search through all 256 patterns.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::fixtures::{Scratch, text};
use crate::models::{self, deltas, rounded, tensor, write_lora};
use crate::program::{Ran, command, merge};

const E4: Dtype = Dtype::F8_E4M3;
const E5: Dtype = Dtype::F8_E5M2;
/// The layer that adapters change, and one that they leave alone.
const PROJ: &str = "blocks.0.proj";
const OTHER: &str = "blocks.1.proj";

/// A tensor as it lies.
#[derive(Clone, Debug, PartialEq)]
struct Raw {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

type Tensors = BTreeMap<String, Raw>;

fn raw(dtype: Dtype, shape: &[usize], data: Vec<u8>) -> Raw {
    Raw { dtype, shape: shape.to_vec(), data }
}

fn f32s(shape: &[usize], values: &[f32]) -> Raw {
    raw(Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let views = tensors
        .iter()
        .map(|(key, t)| (key.as_str(), TensorView::new(t.dtype, t.shape.clone(), &t.data).expect("a size that fits")));
    let about: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect();
    safetensors::serialize_to_file(views, (!about.is_empty()).then_some(about), path).expect("a written file");
}

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let one = |(key, view): (String, TensorView)| (key, raw(view.dtype(), view.shape(), view.data().to_vec()));
    file.tensors().into_iter().map(one).collect()
}

fn metadata(path: &Path) -> Value {
    let bytes = fs::read(path).expect("a file");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let head: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    head["__metadata__"].clone()
}

/// The number of a pattern, by the table of the format.
fn decode(dtype: Dtype, byte: u8) -> f64 {
    let (mantissa, bias) = if dtype == E4 { (3, 7) } else { (2, 15) };
    let (exponent, digits) = (i32::from(byte & 0x7f) >> mantissa, f64::from(byte & ((1 << mantissa) - 1)));
    let unit = f64::powi(2.0, -mantissa);
    let size = match (dtype, byte & 0x7f) {
        (Dtype::F8_E4M3, 0x7f) => f64::NAN,
        (Dtype::F8_E5M2, 0x7c) => f64::INFINITY,
        (Dtype::F8_E5M2, 0x7d..) => f64::NAN,
        _ if exponent == 0 => digits * unit * f64::powi(2.0, 1 - bias),
        _ => (1.0 + digits * unit) * f64::powi(2.0, exponent - bias),
    };
    if byte < 128 { size } else { -size }
}

/// The finite pattern next to a value, of two as near the even one.
fn nearest(dtype: Dtype, value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let apart = |byte: u8| ((decode(dtype, byte) - value.abs()).abs(), byte & 1);
    let finite = (0..0x80u8).filter(|&byte| decode(dtype, byte).is_finite());
    finite.min_by(|&a, &b| apart(a).partial_cmp(&apart(b)).expect("numbers")).expect("a pattern") | sign
}

fn largest(dtype: Dtype) -> f64 {
    if dtype == E4 { 448.0 } else { 57344.0 }
}

/// Which scale an element has.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    One,
    Rows,
    /// Of 128 rows and columns.
    Blocks,
}

fn number(form: Form, cols: usize, element: usize) -> usize {
    let (row, col) = (element / cols, element % cols);
    match form {
        Form::Plain | Form::One => 0,
        Form::Rows => row,
        Form::Blocks => row / 128 * cols.div_ceil(128) + col / 128,
    }
}

/// A weight in 8 bits.
struct Weight {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    form: Form,
    data: Vec<u8>,
    scales: Vec<f32>,
}

impl Weight {
    /// Quantised as converters do it: the largest of a block becomes the largest there is.
    fn new(dtype: Dtype, (rows, cols): (usize, usize), form: Form, size: f64, seed: u64) -> Weight {
        let values: Vec<f64> = tensor(Dtype::F32, &[rows, cols], seed).values.iter().map(|v| v * size).collect();
        let count = number(form, cols, rows * cols - 1) + 1;
        let mut peaks = vec![0f64; count];
        for (i, v) in values.iter().enumerate() {
            let peak = &mut peaks[number(form, cols, i)];
            *peak = peak.max(v.abs());
        }
        let plain = matches!(form, Form::Plain);
        let scales: Vec<f32> = peaks.iter().map(|p| if plain { 1.0 } else { (p / largest(dtype)) as f32 }).collect();
        let data = values
            .iter()
            .enumerate()
            .map(|(i, v)| nearest(dtype, v / f64::from(scales[number(form, cols, i)])))
            .collect();
        Weight { dtype, rows, cols, form, data, scales }
    }

    fn tensor(&self) -> Raw {
        raw(self.dtype, &[self.rows, self.cols], self.data.clone())
    }

    fn scale(&self) -> Raw {
        let shape = match self.form {
            Form::Plain => panic!("no scale"),
            Form::One => vec![],
            Form::Rows => vec![self.rows, 1],
            Form::Blocks => vec![self.rows.div_ceil(128), self.cols.div_ceil(128)],
        };
        f32s(&shape, &self.scales)
    }

    fn values(&self) -> Vec<f64> {
        self.numbers(&self.data, &self.scales)
    }

    fn numbers(&self, data: &[u8], scales: &[f32]) -> Vec<f64> {
        let number = |i: usize| number(self.form, self.cols, i);
        data.iter().enumerate().map(|(i, b)| decode(self.dtype, *b) * f64::from(scales[number(i)])).collect()
    }
}

/// Puts the weight and what lies beside it into a file, as each kind of checkpoint has it.
fn put(tensors: &mut Tensors, layer: &str, weight: &Weight, name: &str) {
    tensors.insert(format!("{layer}.weight"), weight.tensor());
    if !matches!(weight.form, Form::Plain) {
        tensors.insert(format!("{layer}.{name}"), weight.scale());
    }
}

/// A base with both layers and a norm in bf16.
fn base(weight: &Weight, other: &Weight, name: &str) -> Tensors {
    let mut out = Tensors::new();
    put(&mut out, PROJ, weight, name);
    put(&mut out, OTHER, other, name);
    out.insert("blocks.0.norm.weight".to_string(), raw(Dtype::BF16, &[4], vec![0, 0x3f, 0x80, 0x3f, 0, 0x40, 1, 0x3f]));
    if name == "scale_weight" {
        out.insert("scaled_fp8".to_string(), raw(weight.dtype, &[0], Vec::new()));
        out.insert(format!("{PROJ}.scale_input"), f32s(&[], &[0.25]));
    }
    out
}

/// A LoRA on the first layer whose change is `size` times one between −4 and 4.
fn adapter(scratch: &Scratch, weight: &Weight, size: f64) -> PathBuf {
    let folder = scratch.join("adapter");
    write_lora(&folder, &[(PROJ, weight.rows, weight.cols)], 2, 7);
    let file = folder.join("adapter_model.safetensors");
    let mut model = models::read(&file);
    for (key, values) in &mut model {
        if key.contains("lora_B") {
            values.values.iter_mut().for_each(|v| *v = rounded(Dtype::F32, *v * size));
        }
    }
    models::write(&file, &model, None);
    folder
}

fn change(adapter: &Path) -> Vec<f64> {
    deltas(adapter)[&format!("{PROJ}.weight")].clone()
}

/// Checks that the elements are the wanted values under these scales, rounded once; sums in f32 may move a value beside
/// a middle.
#[track_caller]
fn assert_rounded(weight: &Weight, found: &[u8], scales: &[f32], wanted: &[f64]) {
    for (i, (&byte, &wanted)) in found.iter().zip(wanted).enumerate() {
        let scale = f64::from(scales[number(weight.form, weight.cols, i)]);
        let width = 1e-6 * (wanted.abs() + scale);
        let value = |v: f64| decode(weight.dtype, nearest(weight.dtype, v / scale));
        let (low, high) = (value(wanted - width), value(wanted + width));
        let found = decode(weight.dtype, byte);
        assert!(low <= found && found <= high, "element {i}: {found} against {} under {scale}", wanted / scale);
    }
}

fn scales_in(raw: &Raw) -> Vec<f32> {
    raw.data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn json_of(ran: &Ran) -> Value {
    ran.json()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// ⟨realised, wanted⟩ / ⟨wanted, wanted⟩.
fn survived(before: &[f64], after: &[f64], wanted: &[f64]) -> f64 {
    let along: f64 = before.iter().zip(after).zip(wanted).map(|((b, a), w)| (a - b) * w).sum();
    along / wanted.iter().map(|w| w * w).sum::<f64>()
}

fn same_but(before: &Tensors, after: &Tensors, changed: &[&str]) {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (key, raw) in before.iter().filter(|(key, _)| !changed.contains(&key.as_str())) {
        assert_eq!(raw, &after[key], "{key}");
    }
}

fn unmerge(merged: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut command = command();
    command.arg("unmerge").arg(merged).arg("-o").arg(out).args(["--no-sync", "--json"]).args(more);
    command.output().expect("the program starts").into()
}

// Plain

#[test]
fn plain_weights_are_merged_and_rounded_once() {
    for (dtype, seed) in [(E4, 1), (E5, 2)] {
        let scratch = Scratch::new();
        let (weight, other) =
            (Weight::new(dtype, (24, 40), Form::Plain, 0.3, seed), Weight::new(dtype, (8, 8), Form::Plain, 0.1, 9));
        let (before, path) = (base(&weight, &other, ""), scratch.join("base.safetensors"));
        write(&path, &before, &[("format", "pt")]);
        let adapter = adapter(&scratch, &weight, 1e-3);
        let out = scratch.join("merged.safetensors");
        let ran = merge(&path, &adapter, &out, &["--json"]).expect(0);
        let after = read(&out);
        let key = format!("{PROJ}.weight");
        same_but(&before, &after, &[&key]);
        let wanted = change(&adapter);
        assert_rounded(&weight, &after[&key].data, &[1.0], &sum(&weight.values(), &wanted));
        let report = json_of(&ran);
        let share = survived(&weight.values(), &weight.numbers(&after[&key].data, &[1.0]), &wanted);
        let told = report["survived"].as_f64().expect("a share");
        assert!((share - told).abs() < 1e-4, "{told}, calculated {share}");
        assert_eq!(report["changes"][0]["dtype"], json!(dtype.to_string()));
        assert!(ran.err.contains("--dtype bf16 keeps it"), "{}", ran.err);

        // In 16 bits all of it is kept that those can hold.
        let ran = merge(&path, &adapter, &scratch.join("wide.safetensors"), &["--json", "--dtype", "bf16"]).expect(0);
        let wide = models::read(&scratch.join("wide.safetensors"));
        for ((found, w), d) in wide[&key].values.iter().zip(weight.values()).zip(&wanted) {
            models::assert_rounded_once(&key, Dtype::BF16, *found, w + d, w.abs() + d.abs());
        }
        assert_eq!(wide[&format!("{OTHER}.weight")].values, other.values());
        assert!(json_of(&ran)["survived"].as_f64().expect("a share") > 0.5);
    }
}

#[test]
fn what_is_beyond_the_largest_number_is_refused() {
    let scratch = Scratch::new();
    let mut weight = Weight::new(E4, (8, 8), Form::Plain, 0.3, 1);
    weight.data[19] = nearest(E4, 440.0);
    let path = scratch.join("base.safetensors");
    write(&path, &base(&weight, &weight, ""), &[]);
    let adapter = adapter(&scratch, &weight, 3e3);
    let out = scratch.join("merged.safetensors");
    let ran = merge(&path, &adapter, &out, &[]).expect(1);
    assert!(ran.err.contains(PROJ) && ran.err.contains("beyond the range of the type"), "{}", ran.err);
    assert!(!out.exists());
    merge(&path, &adapter, &out, &["--allow-nonfinite"]).expect(0);
    let found = read(&out)[&format!("{PROJ}.weight")].data.clone();
    for ((byte, w), d) in found.iter().zip(weight.values()).zip(change(&adapter)) {
        assert_eq!(byte & 0x7f == 0x7f, (w + d).abs() > 464.0, "{}", w + d);
    }
}

// With scales

/// Names of the scale, and the forms that go by them.
const FORMS: [(&str, Form, (usize, usize)); 4] = [
    ("scale_weight", Form::One, (24, 40)),
    ("weight_scale", Form::One, (24, 40)),
    ("weight_scale", Form::Rows, (24, 40)),
    ("weight_scale_inv", Form::Blocks, (200, 140)),
];

#[test]
fn a_scale_stays_where_the_merged_values_fit() {
    for (dtype, (name, form, shape)) in FORMS.iter().flat_map(|form| [(E4, *form), (E5, *form)]) {
        let scratch = Scratch::new();
        let mut weight = Weight::new(dtype, shape, form, 0.02, 3);
        // Room above every weight.
        weight.scales.iter_mut().for_each(|s| *s *= 2.0);
        weight.data.iter_mut().for_each(|b| *b = nearest(dtype, decode(dtype, *b) / 2.0));
        let other = Weight::new(dtype, (8, 8), Form::One, 0.02, 9);
        let (before, path) = (base(&weight, &other, name), scratch.join("base.safetensors"));
        write(&path, &before, &[]);
        let adapter = adapter(&scratch, &weight, 1e-3);
        let out = scratch.join("merged.safetensors");
        let ran = merge(&path, &adapter, &out, &["--json"]).expect(0);
        let after = read(&out);
        let key = format!("{PROJ}.weight");
        same_but(&before, &after, &[&key]);
        let wanted = change(&adapter);
        assert_rounded(&weight, &after[&key].data, &weight.scales, &sum(&weight.values(), &wanted));
        let share = survived(&weight.values(), &weight.numbers(&after[&key].data, &weight.scales), &wanted);
        let report = json_of(&ran);
        let told = report["survived"].as_f64().expect("a share");
        assert!((share - told).abs() < 1e-4, "{told}, calculated {share}");
        assert_eq!(report["changes"][0]["scale_grown"], Value::Null);
        assert_eq!((&report["totals"]["changed"], &report["totals"]["copied"]), (&json!(1), &json!(after.len() - 1)));
        assert!(!ran.err.contains("became larger"), "{}", ran.err);
    }
}

#[test]
fn a_scale_grows_where_they_do_not() {
    for (dtype, (name, form, shape)) in FORMS.iter().flat_map(|form| [(E4, *form), (E5, *form)]) {
        let scratch = Scratch::new();
        let weight = Weight::new(dtype, shape, form, 0.02, 3);
        let other = Weight::new(dtype, (8, 8), Form::One, 0.02, 9);
        let (before, path) = (base(&weight, &other, name), scratch.join("base.safetensors"));
        write(&path, &before, &[]);
        let adapter = adapter(&scratch, &weight, 2e-2);
        let out = scratch.join("merged.safetensors");
        let ran = merge(&path, &adapter, &out, &["--json", "--threads", "3"]).expect(0);
        let after = read(&out);
        let (key, scale) = (format!("{PROJ}.weight"), format!("{PROJ}.{name}"));
        same_but(&before, &after, &[&key, &scale]);
        let wanted = sum(&weight.values(), &change(&adapter));
        // By the least power of two under which the largest merged value fits.
        let mut scales = weight.scales.clone();
        for (i, v) in wanted.iter().enumerate() {
            let own = &mut scales[number(form, shape.1, i)];
            while v.abs() > largest(dtype) * f64::from(*own) * (1.0 + 1e-6) {
                *own *= 2.0;
            }
        }
        assert_eq!(scales_in(&after[&scale]), scales);
        assert_ne!(scales, weight.scales);
        assert_rounded(&weight, &after[&key].data, &scales, &wanted);
        let most = scales.iter().zip(&weight.scales).map(|(new, old)| f64::from(new / old)).fold(0.0, f64::max);
        let report = json_of(&ran);
        assert_eq!(report["changes"][0]["scale_grown"].as_f64(), Some(most));
        assert_eq!(report["totals"]["changed"], json!(2));
        assert!(ran.err.contains("became larger"), "{}", ran.err);
    }
}

#[test]
fn another_type_is_written_without_scales() {
    for (name, form, shape) in FORMS {
        let scratch = Scratch::new();
        let weight = Weight::new(E4, shape, form, 0.02, 3);
        let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
        let (before, path) = (base(&weight, &other, name), scratch.join("base.safetensors"));
        let about = json!({ "format_version": "1.0", "layers": {
            PROJ: { "format": "float8_e4m3fn" }, OTHER: { "format": "float8_e4m3fn" } } });
        let about = about.to_string();
        let by_metadata = name == "weight_scale" && matches!(form, Form::One);
        let header = [("_quantization_metadata", about.as_str())];
        write(&path, &before, if by_metadata { &header } else { &[] });
        let adapter = adapter(&scratch, &weight, 1e-3);
        let out = scratch.join("merged.safetensors");
        let ran = merge(&path, &adapter, &out, &["--dtype", "bf16"]).expect(0);
        assert!(ran.err.contains("2 weights multiplied by their scales"), "{}", ran.err);
        let after = models::read(&out);
        let keys = [format!("{PROJ}.weight"), format!("{OTHER}.weight"), "blocks.0.norm.weight".to_string()];
        assert!(after.keys().all(|key| keys.contains(key)), "{:?}", after.keys());
        assert_eq!(metadata(&out)["_quantization_metadata"], Value::Null);
        let wanted = sum(&weight.values(), &change(&adapter));
        for (found, wanted) in after[&keys[0]].values.iter().zip(&wanted) {
            models::assert_rounded_once(&keys[0], Dtype::BF16, *found, *wanted, wanted.abs());
        }
        for (found, wanted) in after[&keys[1]].values.iter().zip(other.values()) {
            models::assert_rounded_once(&keys[1], Dtype::BF16, *found, wanted, wanted.abs());
        }
    }
}

// Back again

/// A base of every form, with an adapter that makes scales grow, and its merge.
fn each_form(check: impl Fn(&Scratch, &str, &Path, &Path, &Path)) {
    let forms = FORMS.iter().copied().chain([("", Form::Plain, (24, 40))]);
    for (dtype, (name, form, shape)) in forms.flat_map(|form| [(E4, form), (E5, form)]) {
        let scratch = Scratch::new();
        let weight = Weight::new(dtype, shape, form, 0.02, 3);
        let other = Weight::new(dtype, (8, 8), if name.is_empty() { form } else { Form::One }, 0.02, 9);
        let path = scratch.join("base.safetensors");
        write(&path, &base(&weight, &other, name), &[("format", "pt")]);
        let adapter = adapter(&scratch, &weight, 5e-3);
        let what = format!("{dtype} {name} {shape:?}");
        let merged = scratch.join("merged.safetensors");
        merge(&path, &adapter, &merged, &["--undo", &text(&scratch.join("record"))]).expect(0);
        check(&scratch, &what, &path, &adapter, &merged);
    }
}

#[test]
fn a_record_gives_the_base_back_to_the_bit() {
    each_form(|scratch, what, base, adapter, merged| {
        let record = text(&scratch.join("record"));
        let out = scratch.join("out.safetensors");
        unmerge(merged, &out, &["--undo", &record]).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(base).unwrap(), "{what}");
        // Also of a merge without scales, and of a pair of which nothing is known.
        let (wide, record) = (scratch.join("wide.safetensors"), text(&scratch.join("record2")));
        merge(base, adapter, &wide, &["--undo", &record, "--dtype", "bf16"]).expect(0);
        unmerge(&wide, &out, &["--undo", &record, "--force"]).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(base).unwrap(), "{what} in bf16");
        let record = text(&scratch.join("record3"));
        let mut pair = command();
        pair.arg("undo-record").arg(base).arg(merged).args(["-o", &record, "--no-sync"]);
        Ran::from(pair.output().unwrap()).expect(0);
        unmerge(merged, &out, &["--undo", &record, "--force"]).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(base).unwrap(), "{what} as a pair");
    });
}

#[test]
fn with_the_base_its_own_bytes_come_back() {
    each_form(|scratch, what, base, adapter, merged| {
        let out = scratch.join("out.safetensors");
        let given = ["--adapter", &text(adapter), "--base", &text(base)];
        unmerge(merged, &out, &given).expect(0);
        assert_eq!(read(&out), read(base), "{what}");
    });
}

#[test]
fn without_it_values_come_back_as_near_as_is_said() {
    each_form(|scratch, what, base, adapter, merged| {
        let out = scratch.join("out.safetensors");
        let ran = unmerge(merged, &out, &["--adapter", &text(adapter)]).expect(0);
        let at_most = json_of(&ran)["at_most"].as_f64().unwrap_or_else(|| panic!("{}", ran.out));
        let (before, after) = (numbers(base), numbers(&out));
        let mut furthest = 0f64;
        for (a, b) in before.iter().zip(&after) {
            furthest = furthest.max((a - b).abs());
        }
        assert!(furthest <= at_most * 1.000_001, "{what}: {furthest}, said {at_most}");
        let size = before.iter().fold(0f64, |max, v| max.max(v.abs()));
        assert!(at_most < size / 2.0, "{what}: {at_most} of {size}");
    });
}

/// The numbers of the layer that is changed.
fn numbers(path: &Path) -> Vec<f64> {
    let tensors = read(path);
    let weight = &tensors[&format!("{PROJ}.weight")];
    let (rows, cols) = (weight.shape[0], weight.shape[1]);
    if weight.dtype == Dtype::BF16 {
        return models::widen(Dtype::BF16, &weight.data);
    }
    let scale = ["scale_weight", "weight_scale", "weight_scale_inv"];
    let scale = scale.iter().find_map(|name| tensors.get(&format!("{PROJ}.{name}")));
    let (form, scales) = match scale {
        None => (Form::Plain, vec![1.0]),
        Some(one) if one.data.len() == 4 => (Form::One, scales_in(one)),
        Some(all) if all.shape == [rows, 1] => (Form::Rows, scales_in(all)),
        Some(all) => (Form::Blocks, scales_in(all)),
    };
    let weight = Weight { dtype: weight.dtype, rows, cols, form, data: weight.data.clone(), scales };
    weight.values()
}

// Against one another

fn verify(merged: &Path, base: &Path, adapter: &Path) -> Ran {
    let mut command = command();
    command.arg("verify").arg(merged).arg("--base").arg(base).arg("--adapter").arg(adapter).arg("--json");
    command.output().expect("the program starts").into()
}

#[test]
fn a_merge_is_found_to_be_one() {
    each_form(|scratch, what, base, adapter, merged| {
        let report = json_of(&verify(merged, base, adapter).expect(0));
        assert_eq!(report["verdict"], json!("exact"), "{what}");
        let strength = report["adapters"][0]["strength"].as_f64().unwrap_or_else(|| panic!("{report}"));
        assert!((strength - 1.0).abs() < 0.1, "{what}: {strength}");
        let wide = scratch.join("wide.safetensors");
        merge(base, adapter, &wide, &["--dtype", "bf16"]).expect(0);
        let report = json_of(&verify(&wide, base, adapter).expect(0));
        assert_eq!(report["verdict"], json!("exact"), "{what} in bf16");
        // The base itself is not.
        let ran = verify(base, base, adapter);
        assert_ne!(ran.code, Some(0), "{what}: {}", ran.out);
    });
}
