//! Files made by `fixtures/make/torch_files.py`: what torch read from the good ones, why the hostile ones are refused, and
//! that no damage to any of them does worse than an error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::*;
use crate::container::json;
use crate::tensor::{Dtype, dtype};

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder)
}

fn expected(folder: &str) -> Map<String, Json> {
    json::read_object(&fixtures(folder).join("expected.json"), 1 << 20).unwrap()
}

fn names(keys: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    keys.into_iter().map(|k| k.to_string()).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype {
        Dtype::BOOL => tensor.bytes.as_slice().iter().map(|&b| f64::from(b)).collect(),
        d if dtype::is_float(d) => tensor.to_f32().unwrap().into_iter().map(f64::from).collect(),
        _ => tensor.to_integers().unwrap().into_iter().map(|n| n as f64).collect(),
    }
}

#[test]
fn tensors_are_those_that_torch_reads() {
    for (name, wanted) in expected("torch") {
        let file = MappedFile::open(&fixtures("torch").join(&name)).unwrap();
        assert!(claims(file.as_slice()), "{name}");
        let (tensors, rest) = read_with_rest(&file).unwrap();
        let wanted_tensors = wanted["tensors"].as_object().unwrap();
        assert_eq!(names(tensors.keys()), names(wanted_tensors.keys()), "{name}");
        assert_eq!(Json::from(rest), wanted["rest"], "{name}");
        for (key, tensor) in &tensors {
            let wanted = &wanted_tensors[key];
            let found = globals::find("torch", wanted["dtype"].as_str().unwrap()).unwrap();
            assert_eq!(globals::Global::Dtype(tensor.dtype), found, "{name} {key}");
            assert_eq!(Json::from(tensor.shape.dims()), wanted["shape"], "{name} {key}");
            let values: Vec<f64> = wanted["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            // Floats are compared as f32: that is what `numbers` reads, and JSON is not read to the last bit of f64.
            let float = dtype::is_float(tensor.dtype);
            let values = if float { values.iter().map(|&v| f64::from(v as f32)).collect() } else { values };
            assert_eq!(numbers(tensor), values, "{name} {key}");
        }
    }
}

#[test]
fn tensors_in_order_stay_in_the_file() {
    let file = MappedFile::open(&fixtures("torch").join("views.pt")).unwrap();
    let (tensors, _) = read_with_rest(&file).unwrap();
    let mapped: Vec<_> = tensors.iter().filter(|(_, t)| t.bytes.origin().is_some()).map(|(k, _)| k.as_str()).collect();
    assert_eq!(mapped, ["whole", "part", "matrix", "one_row", "nothing"]);
}

#[test]
fn hostile_files_are_refused_with_a_reason() {
    let wanted = expected("torch/hostile");
    assert!(wanted.len() > 70);
    let mut wrong = Vec::new();
    for (name, message) in wanted {
        let file = MappedFile::open(&fixtures("torch/hostile").join(&name)).unwrap();
        let message = message.as_str().unwrap();
        let error = match read_with_rest(&file) {
            Ok(_) => "accepted".to_string(),
            Err(error) => error.to_string(),
        };
        if message.is_empty() || !error.contains(message) || !error.contains(&name) || !claims(file.as_slice()) {
            wrong.push(format!("expected `{message}`, found {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn load(body: &[u8]) -> Result<Pickle<'_>> {
    pickle::load(body, 0, Form::Zip)
}

#[test]
fn depth_and_sharing_cost_nothing() {
    // A list in a list, 90,000 deep, and a list of two references to the one before, 40,000 times over.
    let nested = [b"\x80\x02".to_vec(), b"]".repeat(90_000), b"a".repeat(89_999), b".".to_vec()].concat();
    assert!(load(&nested).is_ok());
    let shared = [b"\x80\x02]q\x00".to_vec(), b"0](h\x00h\x00eq\x00".repeat(40_000), b".".to_vec()].concat();
    assert!(load(&shared).unwrap_err().what().contains("POP"));
    let shared = [b"\x80\x02]q\x00".to_vec(), b"](h\x00h\x00eq\x00".repeat(40_000), b"t.".to_vec()].concat();
    assert!(load(&[b"\x80\x02(".as_slice(), &shared[2..]].concat()).is_ok());
}

#[test]
fn the_machine_has_limits() {
    for (opcode, message) in [(b"N", "values on the stack"), (b"(", "marks on the stack")] {
        let body = [b"\x80\x02".to_vec(), opcode.repeat(100_001)].concat();
        assert!(load(&body).unwrap_err().what().contains(message));
    }
    let body = [b"\x80\x02".to_vec(), b"}N\x85".to_vec(), b"q\x00".repeat(10_000_001)].concat();
    assert!(load(&body).unwrap_err().what().contains("opcodes"));
}

#[test]
fn a_call_that_copies_is_counted() {
    // An OrderedDict made again and again from one list of 40,000 pairs.
    let pairs = [b"](".to_vec(), b"NN\x86".repeat(40_000), b"e\x85q\x00".to_vec()].concat();
    let again = b"ccollections\nOrderedDict\nh\x00R".repeat(1_000);
    let body = [b"\x80\x02".to_vec(), pairs, again].concat();
    assert!(load(&body).unwrap_err().what().contains("opcodes"));
}

#[test]
fn safetensors_are_not_claimed() {
    // A header of 640 bytes begins with 80 02, like a pickle.
    assert!(!claims(b"\x80\x02\0\0\0\0\0\0{"));
    assert!(claims(b"\x80\x02}q\x00."));
}

/// Says that the checksum of the first member, the pickle, was not computed, so that damage to it gets further.
fn forget_checksum(archive: &mut [u8]) {
    if let Some(record) = archive.windows(4).position(|w| w == b"PK\x01\x02") {
        archive[record + 16..record + 20].fill(0);
    }
}

/// Damage in place and cuts, from a fixed seed, to every good file. Whatever is still read can be looked at.
#[test]
fn damage_never_panics() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let path = std::env::temp_dir().join(format!("lora-tool-torch-{}", std::process::id()));
    let (mut refused, mut accepted) = (0, 0);
    for name in expected("torch").keys() {
        let mut good = std::fs::read(fixtures("torch").join(name)).unwrap();
        forget_checksum(&mut good);
        for round in 0..400 {
            let mut bad = good.clone();
            for _ in 0..=random(3) {
                let at = random(bad.len());
                bad[at] = if round % 2 == 0 { random(256) as u8 } else { bad[at] ^ (1 << random(8)) };
            }
            if round % 10 == 0 {
                bad.truncate(random(bad.len()));
            }
            let _ = std::fs::remove_file(&path); // a file that is truncated and rewritten goes to disk at once on ext4
            std::fs::write(&path, &bad).unwrap();
            match read_with_rest(&MappedFile::open(&path).unwrap()) {
                Ok((tensors, _)) => {
                    accepted += 1;
                    assert!(tensors.values().all(|t| t.bytes.as_slice().len() == t.bytes.len()));
                }
                Err(_) => refused += 1,
            }
        }
    }
    std::fs::remove_file(&path).unwrap();
    assert!(refused > 1000 && accepted > 100, "{refused} refused, {accepted} accepted");
}

#[test]
fn what_is_written_is_read_again() {
    let scratch = std::env::temp_dir().join(format!("lora-tool-torch-{}.pt", std::process::id()));
    let of = |dtype, shape: &[usize]| {
        let count = shape.iter().product::<usize>();
        Tensor::from_f32(dtype, shape, &(0..count).map(|i| i as f32 - 1.5).collect::<Vec<_>>()).unwrap()
    };
    let given: StateDict = [
        ("layers.0.q.lora_a.weight", of(Dtype::F32, &[2, 3])),
        ("naïve", of(Dtype::BF16, &[4])),
        ("empty", of(Dtype::F16, &[0, 2])),
        ("scalar", of(Dtype::F64, &[])),
    ]
    .map(|(key, tensor)| (key.to_string(), tensor))
    .into();
    for under in [None, Some("model")] {
        let mut bytes = Vec::new();
        write(&mut bytes, &given, under).unwrap();
        assert_eq!(size(&given, under).unwrap(), bytes.len() as u64);
        std::fs::write(&scratch, &bytes).unwrap();
        let (read, rest) = read_with_rest(&MappedFile::open(&scratch).unwrap()).unwrap();
        assert_eq!((read, rest), (given.clone(), Vec::new()));
    }
    std::fs::remove_file(&scratch).unwrap();
}
