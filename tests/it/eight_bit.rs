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
            // Half a unit above the largest number still goes to it.
            let most = if dtype == E4 { 464.0 } else { 61440.0 };
            assert!((v.abs() / f64::from(*own) / most - 1.0).abs() > 1e-6, "beside the limit");
            while v.abs() > most * f64::from(*own) {
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
        assert!(ran.err.contains("multiplied by their scales, which are not written: 2"), "{}", ran.err);
        let after = models::read(&out);
        let keys = [format!("{PROJ}.weight"), format!("{OTHER}.weight"), "blocks.0.norm.weight".to_string()];
        assert!(after.keys().all(|key| keys.contains(key)), "{:?}", after.keys());
        assert_eq!(metadata(&out)["_quantization_metadata"], Value::Null);
        let wanted = sum(&weight.values(), &change(&adapter));
        for (found, wanted) in after[&keys[0]].values.iter().zip(&wanted) {
            models::assert_rounded_once(&keys[0], Dtype::BF16, *found, *wanted, 0.1);
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
        assert!(fs::read(&out).unwrap() == fs::read(base).unwrap(), "{what}");
        // Also from a model without scales, in which one weight was changed since.
        let wide = scratch.join("wide.safetensors");
        merge(base, adapter, &wide, &["--dtype", "f32"]).expect(0);
        unmerge(&wide, &out, &[&given[..], &["--force"]].concat()).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(base).unwrap(), "{what} in f32");
        let mut other = read(&wide);
        let weight = other.get_mut(&format!("{PROJ}.weight")).expect("the weight");
        let seventh = f32::from_le_bytes(weight.data[28..32].try_into().unwrap());
        weight.data[28..32].copy_from_slice(&(seventh * 0.5).to_le_bytes());
        write(&wide, &other, &[("format", "pt")]);
        let ran = unmerge(&wide, &out, &[&given[..], &["--force"]].concat()).expect(0);
        assert!(ran.err.contains("1 of"), "{what}: {}", ran.err);
        let differing: usize = numbers(base).iter().zip(numbers(&out)).map(|(a, b)| usize::from(*a != b)).sum();
        assert!(differing <= 1, "{what}: {differing}");
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

/// As ComfyUI writes it: a scale for the largest merged value, and elements rounded up or down by chance.
#[test]
fn a_merge_of_another_program_is_found_to_be_one_too() {
    let scratch = Scratch::new();
    let weight = Weight::new(E4, (64, 96), Form::One, 0.02, 3);
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let path = scratch.join("base.safetensors");
    write(&path, &base(&weight, &other, "scale_weight"), &[]);
    let adapter = adapter(&scratch, &weight, 5e-3);
    let wanted = sum(&weight.values(), &change(&adapter));
    let scale = (wanted.iter().fold(0f64, |max, v| max.max(v.abs())) / 448.0) as f32;
    let chance = tensor(Dtype::F32, &[wanted.len()], 5).values;
    let by_chance = |(v, c): (&f64, &f64)| {
        let exact = v / f64::from(scale);
        let near = nearest(E4, exact);
        // The neighbour on the other side, taken as often as its share of the distance.
        let beyond = if decode(E4, near).abs() < exact.abs() { near.saturating_add(1) } else { near.saturating_sub(1) };
        let share = (exact - decode(E4, near)) / (decode(E4, beyond) - decode(E4, near));
        let takes = (near & 0x7f) > 0 && (beyond & 0x7f) < 0x7f && c.abs() < share;
        if takes { beyond } else { near }
    };
    let data: Vec<u8> = wanted.iter().zip(&chance).map(by_chance).collect();
    let theirs = Weight { data, scales: vec![scale], ..Weight::new(E4, (64, 96), Form::One, 0.02, 3) };
    let merged = scratch.join("merged.safetensors");
    write(&merged, &base(&theirs, &other, "scale_weight"), &[]);
    let report = json_of(&verify(&merged, &path, &adapter).expect(0));
    let strength = report["adapters"][0]["strength"].as_f64().unwrap_or_else(|| panic!("{report}"));
    assert!((strength - 1.0).abs() < 0.05, "{strength}");
    assert_ne!(report["verdict"], json!("exact"));
    // And is taken out again with the base at hand.
    let out = scratch.join("out.safetensors");
    unmerge(&merged, &out, &["--adapter", &text(&adapter), "--base", &text(&path)]).expect(0);
    assert_eq!(read(&out), read(&path));
    // A layer that nobody changed may have another scale.
    let mut again = base(&theirs, &other, "scale_weight");
    let halves = other.data.iter().map(|b| nearest(E4, decode(E4, *b) / 2.0)).collect();
    let halved =
        Weight { data: halves, scales: vec![other.scales[0] * 2.0], ..Weight::new(E4, (8, 8), Form::One, 1.0, 1) };
    put(&mut again, OTHER, &halved, "scale_weight");
    write(&merged, &again, &[]);
    let report = json_of(&verify(&merged, &path, &adapter).expect(0));
    assert_eq!(report["kept_differ"], json!([]), "{report}");
}

#[test]
fn an_adapter_is_extracted_from_values_and_not_from_elements() {
    let scratch = Scratch::new();
    let before = Weight::new(E4, (64, 96), Form::One, 0.02, 3);
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let path = scratch.join("base.safetensors");
    write(&path, &base(&before, &other, "scale_weight"), &[]);
    // Tuned in 16 bits from the values of the base; the other layer has the same values under another scale.
    let adapter = adapter(&scratch, &before, 5e-3);
    let wanted = change(&adapter);
    let values = sum(&before.values(), &wanted);
    let mut tuned = Tensors::new();
    let f32_of = |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<_>>();
    tuned.insert(format!("{PROJ}.weight"), f32s(&[64, 96], &f32_of(&values)));
    tuned.insert(format!("{OTHER}.weight"), f32s(&[8, 8], &f32_of(&other.values())));
    tuned.insert("blocks.0.norm.weight".to_string(), base(&before, &other, "")["blocks.0.norm.weight"].clone());
    let there = scratch.join("tuned.safetensors");
    write(&there, &tuned, &[]);
    let out = scratch.join("extracted");
    let mut extract = command();
    extract.arg("extract").arg(&path).arg(&there).arg("-o").arg(&out).args(["--rank", "2", "--no-sync", "--json"]);
    let ran = Ran::from(extract.output().unwrap()).expect(0);
    let report = json_of(&ran);
    assert_eq!(report["modules"].as_array().map(Vec::len), Some(1), "{report}");
    let found = &deltas(&out)[&format!("{PROJ}.weight")];
    let error: f64 = found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let size: f64 = wanted.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(error < 1e-4 * size, "{error} of {size}");
    // Against a model in which nothing but the scale is another.
    let halves = before.data.iter().map(|b| nearest(E5, decode(E4, *b) / 2.0)).collect::<Vec<_>>();
    let whole = halves.iter().zip(&before.data).all(|(h, b)| decode(E5, *h) * 2.0 == decode(E4, *b));
    assert!(!whole, "e5m2 cannot hold all of e4m3");
    let shifted = Weight {
        data: before.data.clone(),
        scales: vec![before.scales[0] * 2.0],
        ..Weight::new(E4, (64, 96), Form::One, 1.0, 1)
    };
    write(&there, &base(&shifted, &other, "scale_weight"), &[]);
    let mut extract = command();
    extract.arg("extract").arg(&path).arg(&there).arg("-o").arg(scratch.join("doubled"));
    extract.args(["--rank", "64", "--no-sync", "--json"]);
    Ran::from(extract.output().unwrap()).expect(0);
    let found = &deltas(&scratch.join("doubled"))[&format!("{PROJ}.weight")];
    for (found, before) in found.iter().zip(before.values()) {
        assert!((found - before).abs() < 1e-5, "{found} {before}");
    }
}

#[test]
fn models_are_compared_by_their_values() {
    let scratch = Scratch::new();
    let weight = Weight::new(E4, (24, 40), Form::One, 0.02, 3);
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let (one, two) = (scratch.join("one.safetensors"), scratch.join("two.safetensors"));
    write(&one, &base(&weight, &other, "scale_weight"), &[]);
    let doubled = Weight { scales: vec![weight.scales[0] * 2.0], ..Weight::new(E4, (24, 40), Form::One, 0.02, 3) };
    write(&two, &base(&doubled, &other, "scale_weight"), &[]);
    let mut compare = command();
    compare.arg("compare").arg(&one).arg(&two).arg("--json");
    let report = json_of(&Ran::from(compare.output().unwrap()).expect(0));
    let key = format!("{PROJ}.weight");
    let tensors = report["differing"].as_array().unwrap_or_else(|| panic!("{report}"));
    let own = tensors.iter().find(|t| t["tensor"] == json!(key)).unwrap_or_else(|| panic!("{report}"));
    assert!((own["relative_difference"].as_f64().expect("a number") - 1.0).abs() < 1e-9, "{own}");
}

// What is refused, and what is said

#[test]
fn other_formats_are_refused_by_name() {
    let weight = Weight::new(E4, (24, 64), Form::One, 0.02, 3);
    let small = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let scaled = base(&weight, &small, "weight_scale");
    let quant = |format: &str| {
        let text = json!({ "format": format }).to_string().into_bytes();
        raw(Dtype::U8, &[text.len()], text)
    };
    let with = |changes: &[(&str, Option<Raw>)]| {
        let mut out = scaled.clone();
        for (end, raw) in changes {
            let key = format!("{PROJ}.{end}");
            match raw {
                Some(raw) => out.insert(key, raw.clone()),
                None => out.remove(&key),
            };
        }
        out
    };
    let packed = raw(Dtype::U8, &[24, 32], vec![0x12; 24 * 32]);
    let groups = raw(Dtype::F8_E8M0, &[24, 2], vec![120; 48]);
    let header = json!({ "layers": { PROJ: { "format": "mxfp8" } } }).to_string();
    let by_header = [("_quantization_metadata", header.as_str())];
    type Case<'a> = (Tensors, &'a [(&'a str, &'a str)], &'a str);
    let cases: Vec<Case> = vec![
        (with(&[("weight_scale", Some(groups.clone()))]), &[], "dtype F8_E8M0"),
        (with(&[("comfy_quant", Some(quant("mxfp8")))]), &[], "mxfp8"),
        (with(&[("comfy_quant", Some(quant("float8_e5m2")))]), &[], "float8_e5m2"),
        (with(&[("comfy_quant", Some(raw(Dtype::U8, &[2], b"{]".to_vec())))]), &[], "comfy_quant"),
        (with(&[]), &by_header, "mxfp8"),
        (with(&[]), &[("_quantization_metadata", "{")], "_quantization_metadata cannot be read"),
        (with(&[("weight", Some(packed)), ("comfy_quant", Some(quant("nvfp4")))]), &[], "nvfp4"),
        (with(&[("weight_scale_2", Some(f32s(&[], &[1.0])))]), &[], "weight_scale_2"),
        (with(&[("pre_quant_scale", Some(f32s(&[64], &[1.0; 64])))]), &[], "pre_quant_scale"),
        (with(&[("weight_scale", Some(f32s(&[24, 2], &[1.0; 48])))]), &[], "shape [24, 2]"),
        (with(&[("weight_scale", Some(f32s(&[], &[f32::NAN])))]), &[], "a scale of NaN"),
        (with(&[("scale_weight", Some(f32s(&[], &[1.0])))]), &[], "two scales"),
        (with(&[("comfy_quant", Some(quant("float8_e4m3fn"))), ("weight_scale", None)]), &[], "no scale"),
    ];
    for (tensors, metadata, part) in cases {
        let scratch = Scratch::new();
        let path = scratch.join("base.safetensors");
        write(&path, &tensors, metadata);
        let adapter = adapter(&scratch, &weight, 1e-3);
        for more in [&[][..], &["--dtype", "bf16"]] {
            let ran = merge(&path, &adapter, &scratch.join("merged.safetensors"), more).expect(1);
            assert!(ran.err.contains(part) && ran.err.contains(PROJ), "{part}: {}", ran.err);
        }
        let mut extract = command();
        let other = scratch.join("other.safetensors");
        write(&other, &with(&[("weight", Some(f32s(&[24, 64], &[0.5; 24 * 64]))), ("weight_scale", None)]), &[]);
        extract.arg("extract").arg(&path).arg(&other).arg("-o").arg(scratch.join("out")).arg("--allow-unmatched");
        let ran = Ran::from(extract.output().unwrap()).expect(1);
        assert!(ran.err.contains(PROJ), "{part}: {}", ran.err);
    }
}

#[test]
fn both_ways_of_the_metadata_are_understood() {
    let weight = Weight::new(E5, (24, 40), Form::One, 0.02, 3);
    let other = Weight::new(E5, (8, 8), Form::One, 0.02, 9);
    let format = json!({ "format": "float8_e5m2", "full_precision_matrix_mult": true });
    let header = json!({ "format_version": "1.0", "layers": { PROJ: format, OTHER: format } }).to_string();
    for by_tensors in [true, false] {
        let scratch = Scratch::new();
        let mut tensors = base(&weight, &other, "weight_scale");
        if by_tensors {
            for layer in [PROJ, OTHER] {
                let text = format.to_string().into_bytes();
                tensors.insert(format!("{layer}.comfy_quant"), raw(Dtype::U8, &[text.len()], text));
                tensors.insert(format!("{layer}.input_scale"), f32s(&[], &[2.0]));
            }
        }
        let path = scratch.join("base.safetensors");
        let about = [("_quantization_metadata", header.as_str())];
        write(&path, &tensors, if by_tensors { &[] } else { &about });
        let adapter = adapter(&scratch, &weight, 1e-3);
        let merged = scratch.join("merged.safetensors");
        merge(&path, &adapter, &merged, &[]).expect(0);
        assert_eq!(metadata(&merged)["_quantization_metadata"], metadata(&path)["_quantization_metadata"]);
        let report = json_of(&verify(&merged, &path, &adapter).expect(0));
        assert_eq!(report["verdict"], json!("exact"));
        let wide = scratch.join("wide.safetensors");
        merge(&path, &adapter, &wide, &["--dtype", "f32"]).expect(0);
        assert_eq!(read(&wide).len(), 3);
        assert_eq!(metadata(&wide)["_quantization_metadata"], Value::Null);
        let mut inspect = command();
        inspect.arg("inspect").arg(&path).arg("--json");
        let report = json_of(&Ran::from(inspect.output().unwrap()).expect(0));
        assert_eq!(report["eight_bit"], json!({ "weights": 2, "scaled": 2 }), "{report}");
    }
}

/// A folder in the form of DeepSeek's: scales of blocks in another file than the weight, and a config that says so.
#[test]
fn a_folder_with_scales_of_blocks() {
    let scratch = Scratch::new();
    let weight = Weight::new(E4, (200, 140), Form::Blocks, 0.02, 3);
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let all = base(&weight, &other, "weight_scale_inv");
    let folder = scratch.join("base");
    fs::create_dir_all(&folder).unwrap();
    let (mut map, mut files) = (serde_json::Map::new(), [Tensors::new(), Tensors::new()]);
    for (key, raw) in &all {
        let number = usize::from(!key.ends_with("weight_scale_inv"));
        files[number].insert(key.clone(), raw.clone());
        map.insert(key.clone(), json!(format!("model-0000{}-of-00002.safetensors", number + 1)));
    }
    for (number, tensors) in files.iter().enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", number + 1);
        write(&folder.join(name), tensors, &[("format", "pt")]);
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let config = json!({ "model_type": "unknown", "torch_dtype": "bfloat16", "quantization_config": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128] } });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let adapter = adapter(&scratch, &weight, 2e-2);
    let merged = scratch.join("merged");
    let record = text(&scratch.join("record"));
    merge(&folder, &adapter, &merged, &["--undo", &record]).expect(0);
    assert_eq!(models::json_file(&merged.join("config.json")), config);
    let report = json_of(&verify(&merged, &folder, &adapter).expect(0));
    assert_eq!(report["verdict"], json!("exact"));
    let back = scratch.join("back");
    unmerge(&merged, &back, &["--undo", &record]).expect(0);
    for name in crate::program::names(&folder) {
        assert!(fs::read(folder.join(&name)).unwrap() == fs::read(back.join(&name)).unwrap(), "{name}");
    }
    let base_again = |merged: &Path, name: &str| {
        let out = scratch.join(name);
        unmerge(merged, &out, &["--adapter", &text(&adapter), "--base", &text(&folder)]).expect(0);
        assert_eq!(crate::program::names(&folder), crate::program::names(&out));
        for name in crate::program::names(&folder) {
            let same = fs::read(folder.join(&name)).unwrap() == fs::read(out.join(&name)).unwrap();
            assert!(same || name.ends_with(".index.json"), "{name}");
        }
        let map = |folder: &Path| models::json_file(&folder.join("model.safetensors.index.json"))["weight_map"].clone();
        assert_eq!(map(&folder), map(&out));
    };
    base_again(&merged, "again");
    // Without scales the config says nothing of them.
    let wide = scratch.join("wide");
    merge(&folder, &adapter, &wide, &["--dtype", "bf16", "--undo", &text(&scratch.join("record2"))]).expect(0);
    let back = scratch.join("back2");
    unmerge(&wide, &back, &["--undo", &text(&scratch.join("record2"))]).expect(0);
    for name in crate::program::names(&folder) {
        assert!(fs::read(folder.join(&name)).unwrap() == fs::read(back.join(&name)).unwrap(), "{name}");
    }
    assert_eq!(models::json_file(&wide.join("config.json"))["quantization_config"], Value::Null);
    assert!(!wide.join("model-00001-of-00002.safetensors").exists());
    let wanted = sum(&weight.values(), &change(&adapter));
    let key = format!("{PROJ}.weight");
    for (found, wanted) in models::read(&wide)[&key].values.iter().zip(wanted) {
        models::assert_rounded_once(&key, Dtype::BF16, *found, wanted, 0.1);
    }
    base_again(&wide, "from-wide");
    // A weight without its scale is no plain one here.
    let mut without = files[0].clone();
    without.remove(&format!("{PROJ}.weight_scale_inv"));
    write(&folder.join("model-00001-of-00002.safetensors"), &without, &[]);
    map.remove(&format!("{PROJ}.weight_scale_inv"));
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let ran = merge(&folder, &adapter, &scratch.join("never"), &[]).expect(1);
    assert!(ran.err.contains("quantised (fp8), and no scale lies beside it"), "{}", ran.err);
}

/// Kinds of change that are made with the weight see its values.
#[test]
fn a_change_made_with_the_weight_is_made_with_its_values() {
    let scratch = Scratch::new();
    let weight = Weight::new(E4, (24, 40), Form::Rows, 0.02, 3);
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let (scaled, plain) = (scratch.join("scaled.safetensors"), scratch.join("plain.safetensors"));
    let stored = base(&weight, &other, "weight_scale");
    write(&scaled, &stored, &[]);
    let f32_of = |weight: &Weight| weight.values().iter().map(|v| *v as f32).collect::<Vec<_>>();
    let mut wide = Tensors::new();
    wide.insert(format!("{PROJ}.weight"), f32s(&[24, 40], &f32_of(&weight)));
    wide.insert(format!("{OTHER}.weight"), f32s(&[8, 8], &f32_of(&other)));
    wide.insert("blocks.0.norm.weight".to_string(), stored["blocks.0.norm.weight"].clone());
    write(&plain, &wide, &[]);
    // DoRA: every row of the sum brought to a length of 0.1.
    let folder = adapter(&scratch, &weight, 1e-3);
    let file = folder.join("adapter_model.safetensors");
    let mut model = models::read(&file);
    let magnitude = models::Values { dtype: Dtype::F32, shape: vec![24], values: vec![0.1; 24] };
    model.insert(format!("base_model.model.{PROJ}.lora_magnitude_vector"), magnitude);
    models::write(&file, &model, None);
    let mut config = models::json_file(&folder.join("adapter_config.json"));
    config["use_dora"] = json!(true);
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let outs = [(&scaled, "a"), (&plain, "b")].map(|(base, name)| {
        let out = scratch.join(name);
        merge(base, &folder, &out, &["--dtype", "f32"]).expect(0);
        // And as plain LoRA, which is made with the weight, too.
        let lora = scratch.join(&format!("lora-{name}"));
        let mut convert = command();
        convert.arg("convert").arg(&folder).arg("-o").arg(&lora).arg("--base").arg(base);
        convert.args(["--normalise", "--rank", "8", "--to", "peft", "--no-sync"]);
        Ran::from(convert.output().unwrap()).expect(0);
        let mut both = models::read(&out)[&format!("{PROJ}.weight")].values.clone();
        both.extend(&deltas(&lora)[&format!("{PROJ}.weight")]);
        both
    });
    for (a, b) in outs[0].iter().zip(&outs[1]) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    // In 8 bits the rows have that length but for the rounding, under scales of their own.
    let out = scratch.join("eight.safetensors");
    merge(&scaled, &folder, &out, &[]).expect(0);
    for row in numbers(&out).chunks(40) {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert!((length - 0.1).abs() < 2e-3, "{length}");
    }
}

/// A checkpoint of Flux as ComfyUI scales it, whose names are found behind its prefix, with the scales left out of all
/// names; factors of query, key and value apart change rows of one scaled weight.
#[test]
fn an_image_model_with_scales_takes_its_adapters() {
    let scratch = Scratch::new();
    let prefix = "model.diffusion_model.";
    let qkv = Weight::new(E4, (24, 8), Form::One, 0.05, 1);
    let mut tensors = Tensors::new();
    put(&mut tensors, &format!("{prefix}double_blocks.0.img_attn.qkv"), &qkv, "scale_weight");
    for (seed, (key, rows, cols)) in [
        ("double_blocks.0.txt_attn.qkv", 24, 8),
        ("double_blocks.0.img_attn.proj", 8, 8),
        ("single_blocks.0.linear1", 56, 8),
        ("single_blocks.0.linear2", 8, 40),
    ]
    .into_iter()
    .enumerate()
    {
        let weight = Weight::new(E4, (rows, cols), Form::One, 0.05, seed as u64 + 2);
        put(&mut tensors, &format!("{prefix}{key}"), &weight, "scale_weight");
    }
    let plain = |shape: &[usize], seed| {
        let values = tensor(Dtype::BF16, shape, seed).values;
        raw(Dtype::BF16, shape, values.iter().flat_map(|v| half::bf16::from_f64(*v).to_le_bytes()).collect())
    };
    tensors.insert(format!("{prefix}final_layer.linear.weight"), plain(&[4, 8], 20));
    tensors.insert(format!("{prefix}final_layer.adaLN_modulation.1.weight"), plain(&[16, 8], 21));
    tensors.insert(format!("{prefix}scaled_fp8"), raw(E4, &[2], vec![0; 2]));
    let base = scratch.join("flux.safetensors");
    write(&base, &tensors, &[]);

    let factors = |shape: &[usize], seed, size: f64| {
        let mut values = tensor(Dtype::F32, shape, seed);
        values.values.iter_mut().for_each(|v| *v = rounded(Dtype::F32, *v * size));
        values
    };
    let change = |a: &models::Values, b: &models::Values, rows: usize| -> Vec<f64> {
        (0..rows * 8).map(|i| (0..2).map(|k| b.values[i / 8 * 2 + k] * a.values[k * 8 + i % 8]).sum()).collect()
    };
    // As kohya has it: one pair for all of the fused projection.
    let (a, b) = (factors(&[2, 8], 30, 1.0), factors(&[24, 2], 31, 0.01));
    let fused = change(&a, &b, 24);
    let name = "lora_unet_double_blocks_0_img_attn_qkv";
    let kohya = [(format!("{name}.lora_down.weight"), a), (format!("{name}.lora_up.weight"), b)];
    models::write(&scratch.join("kohya.safetensors"), &kohya.into_iter().collect(), None);
    // As diffusers has it: one for each third of its rows.
    let (mut apart, mut model) = (Vec::new(), models::Model::new());
    for (number, name) in ["to_q", "to_k", "to_v"].iter().enumerate() {
        let (a, b) = (factors(&[2, 8], 40 + number as u64, 1.0), factors(&[8, 2], 50 + number as u64, 0.01));
        apart.extend(change(&a, &b, 8));
        let path = format!("transformer.transformer_blocks.0.attn.{name}");
        model.insert(format!("{path}.lora_A.weight"), a);
        model.insert(format!("{path}.lora_B.weight"), b);
    }
    models::write(&scratch.join("diffusers.safetensors"), &model, None);
    let key = format!("{prefix}double_blocks.0.img_attn.qkv.weight");
    for (adapter, wanted) in [("kohya.safetensors", fused), ("diffusers.safetensors", apart)] {
        let (adapter, out, wide) =
            (scratch.join(adapter), scratch.join("out.safetensors"), scratch.join("wide.safetensors"));
        merge(&base, &adapter, &out, &["--force"]).expect(0);
        let after = read(&out);
        let scales = scales_in(&after[&format!("{prefix}double_blocks.0.img_attn.qkv.scale_weight")]);
        let exact = sum(&qkv.values(), &wanted);
        assert_rounded(&qkv, &after[&key].data, &scales, &exact);
        let report = json_of(&verify(&out, &base, &adapter).expect(0));
        assert_eq!(report["verdict"], json!("exact"));
        merge(&base, &adapter, &wide, &["--force", "--dtype", "f32"]).expect(0);
        let wide = models::read(&wide);
        assert_eq!(wide.len(), 7, "{:?}", wide.keys());
        for (found, exact) in wide[&key].values.iter().zip(&exact) {
            assert!((found - exact).abs() < 1e-7, "{found} {exact}");
        }
    }
}

/// A tensor of many pieces, whose threads look for the scale together: the same bytes on any number of them.
#[test]
fn large_tensors_are_the_same_on_any_number_of_threads() {
    let scratch = Scratch::new();
    let (rows, cols) = (6000, 2048);
    let data: Vec<u8> = (0..rows * cols).map(|i| ((i * 2_654_435_761usize) >> 9) as u8 & 0xf7).collect();
    let scales = (0..rows.div_ceil(128) * cols.div_ceil(128)).map(|i| 1e-5 * (1.0 + (i % 7) as f32)).collect();
    let weight = Weight { dtype: E4, rows, cols, form: Form::Blocks, data, scales };
    let other = Weight::new(E4, (8, 8), Form::One, 0.02, 9);
    let path = scratch.join("base.safetensors");
    write(&path, &base(&weight, &other, "weight_scale_inv"), &[]);
    let adapter = adapter(&scratch, &weight, 3e-3);
    let merged = |name: &str, more: &[&str]| {
        let out = scratch.join(name);
        let ran = merge(&path, &adapter, &out, &[&["--json"], more].concat()).expect(0);
        assert!(json_of(&ran)["changes"][0]["scale_grown"].as_f64().expect("a factor") >= 2.0);
        fs::read(out).unwrap()
    };
    let one = merged("one", &["--threads", "1"]);
    assert!(one == merged("eight", &["--threads", "8"]));
    assert!(one == merged("little", &["--threads", "3", "--memory", "1MB"]));
    let record = text(&scratch.join("record"));
    assert!(one == merged("recorded", &["--threads", "4", "--undo", &record]));
    unmerge(&scratch.join("recorded"), &scratch.join("back.safetensors"), &["--undo", &record]).expect(0);
    assert!(fs::read(scratch.join("back.safetensors")).unwrap() == fs::read(&path).unwrap());
}
