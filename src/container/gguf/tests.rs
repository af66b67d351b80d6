//! A GGUF file read back, and every way to spoil it that was thought of.

use super::*;

fn metadata() -> Metadata {
    let array = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &1u64.to_le_bytes(), b"a", &0u64.to_le_bytes()].concat();
    [
        ("general.architecture", Value::Text("llama".into())),
        ("adapter.lora.alpha", Value::F32(1.5)),
        ("a.u8", Value::Unsigned(200, 1)),
        ("a.i16", Value::Signed(-7, 2)),
        ("a.u64", Value::Unsigned(u64::MAX, 8)),
        ("a.f64", Value::F64(0.1)),
        ("a.bool", Value::Bool(true)),
        ("a.list", Value::Array(array)),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .into()
}

fn tensors() -> StateDict {
    [
        ("x.lora_a", Tensor::from_f32(Dtype::F32, vec![2, 3], &[1., 2., 3., 4., 5., 6.]).unwrap()),
        ("x.lora_b", Tensor::from_f32(Dtype::F16, vec![4, 2], &[0.5; 8]).unwrap()),
        ("y", Tensor::from_f32(Dtype::BF16, vec![2, 1, 2], &[1.; 4]).unwrap()),
    ]
    .map(|(name, tensor)| (name.to_string(), tensor))
    .into()
}

fn file() -> Vec<u8> {
    let mut out = head(&metadata(), &tensors()).unwrap();
    for tensor in tensors().values() {
        out.extend(tensor.bytes.as_slice());
        out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    }
    out
}

fn parse(bytes: Vec<u8>) -> Result<GgufFile> {
    GgufFile::parse(&Bytes::from(bytes))
}

fn refused(bytes: Vec<u8>) -> String {
    parse(bytes).expect_err("a spoilt file").to_string()
}

/// A file of one key of this type with these bytes, and no tensor.
fn with_value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = [&MAGIC[..], &3u32.to_le_bytes(), &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    out.extend(1u64.to_le_bytes());
    out.push(b'k');
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
    out
}

/// A file of these tensors: name, extents innermost first, type, offset; with `data` bytes behind the header.
fn with_tensors(infos: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
    let mut out = [&MAGIC[..], &3u32.to_le_bytes(), &(infos.len() as u64).to_le_bytes(), &0u64.to_le_bytes()].concat();
    for (name, dims, kind, offset) in infos {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

#[test]
fn what_is_written_is_read_again() {
    let read = parse(file()).unwrap();
    assert_eq!(read.metadata, metadata());
    assert_eq!(read.tensors, tensors());
    assert!(read.others.is_empty());
}

#[test]
fn quantised_tensors_are_listed() {
    let read = parse(with_tensors(&[("q", &[32, 2], 8, 0), ("f", &[1], 0, 96)], 100)).unwrap();
    let [q] = read.others.as_slice() else { panic!() };
    assert_eq!((q.name.as_str(), q.kind), ("q", "Q8_0"));
    assert_eq!(read.tensors.len(), 1);
}

#[test]
fn the_head_is_checked() {
    let start = |version: u32, tensors: u64, keys: u64| {
        [&MAGIC[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    assert!(parse(start(2, 0, 0)).is_ok());
    for (bytes, word) in [
        (b"GGU".to_vec(), "magic"),
        (b"GGML\x03\0\0\0".to_vec(), "GGUF"),
        (start(0, 0, 0), "version"),
        (start(1, 0, 0), "version 1"),
        (start(4, 0, 0), "version 4"),
        (start(0x0300_0000, 0, 0), "big-endian"),
        (start(3, u64::MAX, 0), "tensor_count"),
        (start(3, 1 << 61, 0), "tensor_count"),
        (start(3, 0, u64::MAX), "metadata_kv_count"),
        (start(3, 0, 1), "metadata_kv_count"),
        (start(3, 1, 0), "tensor_count"),
    ] {
        let said = refused(bytes);
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn values_are_checked() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let deep = (0..9).flat_map(|_| array(9, 1)).chain(array(0, 0)).collect::<Vec<_>>();
    for (kind, bytes, word) in [
        (13, vec![0; 8], "type 13"),
        (7, vec![2], "truth"),
        (8, u64::MAX.to_le_bytes().to_vec(), "length"),
        (8, (1u64 << 40).to_le_bytes().to_vec(), "length"),
        (8, [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "UTF-8"),
        (9, array(0, u64::MAX), "element count"),
        (9, array(12, 1 << 61), "element count"),
        (9, array(8, 1 << 40), "element count"),
        (9, array(77, 0), "type 77"),
        (9, deep, "more than 4 levels"),
        (4, vec![0; 3], "left of the file"),
    ] {
        let said = refused(with_value(kind, &bytes));
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn tensors_are_checked() {
    for (infos, data, word) in [
        (vec![("t", &[1u64, 1, 1, 1, 1][..], 0, 0)], 4, "n_dimensions"),
        (vec![("t", &[1 << 62, 4], 0, 0)], 4, "overflow"),
        (vec![("t", &[1 << 40, 1 << 40], 0, 0)], 4, "overflow"),
        (vec![("t", &[2], 0, 0)], 4, "past the end"),
        (vec![("t", &[1], 0, 1 << 62)], 4, "past the end"),
        (vec![("t", &[1], 0, u64::MAX - 31)], 4, "past the end"),
        (vec![("t", &[1], 0, 4)], 8, "multiple of 32"),
        (vec![("t", &[1], 99, 0)], 4, "type 99"),
        (vec![("t", &[31], 8, 0)], 99, "blocks"),
        (vec![("t", &[1], 0, 0), ("t", &[1], 0, 32)], 64, "twice"),
        (vec![("t", &[16], 0, 0), ("u", &[1], 0, 32)], 64, "overlaps"),
        (vec![("", &[1], 0, 0)], 4, "empty"),
    ] {
        let said = refused(with_tensors(&infos, data));
        assert!(said.contains(word), "{word}: {said}");
    }
}

#[test]
fn alignment_is_a_power_of_two_of_the_right_type() {
    let with = |value: Value| {
        let all: Metadata = [(ALIGNMENT.to_string(), value)].into();
        head(&all, &StateDict::new()).unwrap()
    };
    assert!(parse(with(Value::u32(64))).is_ok());
    for value in [Value::u32(0), Value::u32(3), Value::u32(1 << 31), Value::Text("32".into()), Value::Unsigned(32, 8)] {
        assert!(refused(with(value)).contains(ALIGNMENT));
    }
}

#[test]
fn a_key_that_stands_twice_is_refused() {
    let mut bytes = with_value(0, &[1]);
    let key = bytes[24..].to_vec();
    bytes.extend(key);
    bytes[16..24].copy_from_slice(&2u64.to_le_bytes());
    assert!(refused(bytes).contains("twice"));
}

#[test]
fn no_damage_makes_it_panic() {
    let whole = file();
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let words = [0u64, 1, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 61, 1 << 63, u64::MAX];
    let mut read = 0;
    for _ in 0..20_000 {
        let mut bytes = whole.clone();
        for _ in 0..=next(3) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes[at] = next(256) as u8,
                1 => bytes[at] ^= 1 << next(8),
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let word = words[next(words.len())].to_le_bytes();
                    bytes.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
                }
            }
        }
        read += usize::from(parse(bytes).is_ok());
    }
    assert!(read > 100, "hardly any was read: {read}");
    for len in 0..whole.len() {
        let _ = parse(whole[..len].to_vec());
    }
}
