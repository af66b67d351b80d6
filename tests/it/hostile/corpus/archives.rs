//! zip archives that lie, and archives of NumPy's arrays.

use super::made::{Entry, f32s, good_adapter, good_entries, values};
use super::pickles::{state_dict, zip_of};
use super::{ACCEPTED, Corpus, REFUSED, Verdicts};

/// A member of an archive in the making; what is not said otherwise is good.
#[derive(Clone, Default)]
pub struct Member {
    pub name: Vec<u8>,
    pub bytes: Vec<u8>,
    /// What the local header says instead.
    pub local_name: Option<Vec<u8>>,
    pub flags: u16,
    pub local_flags: Option<u16>,
    pub method: u16,
    pub local_method: Option<u16>,
    pub crc: Option<u32>,
    pub local_crc: Option<u32>,
    /// Packed and whole size of the directory, and of the local header.
    pub sizes: Option<[u32; 2]>,
    pub local_sizes: Option<[u32; 2]>,
    pub extra: Vec<u8>,
    pub local_extra: Vec<u8>,
    /// Where the directory says that the local header is.
    pub header: Option<u32>,
    pub version: u16,
    pub attributes: u32,
}

impl Member {
    pub fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Member {
        Member { name: name.into(), bytes: bytes.into(), version: 20, ..Member::default() }
    }
}

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Zip {
    pub front: Vec<u8>,
    pub members: Vec<Member>,
    pub count: Option<u16>,
    pub directory_size: Option<u32>,
    pub directory_at: Option<u32>,
    pub comment: Vec<u8>,
    pub disk: u16,
    /// What stands between the directory and its end.
    pub before_end: Vec<u8>,
    pub behind: Vec<u8>,
}

impl Zip {
    pub fn of(members: Vec<Member>) -> Zip {
        Zip { members, ..Zip::default() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.front.clone();
        let mut directory = Vec::new();
        for m in &self.members {
            let at = out.len() as u32;
            let crc = crc32fast::hash(&m.bytes);
            let len = m.bytes.len() as u32;
            let [packed, whole] = m.sizes.unwrap_or([len; 2]);
            let [local_packed, local_whole] = m.local_sizes.unwrap_or([packed, whole]);
            let name = m.local_name.as_ref().unwrap_or(&m.name);
            out.extend(b"PK\x03\x04");
            out.extend(m.version.to_le_bytes());
            out.extend(m.local_flags.unwrap_or(m.flags).to_le_bytes());
            out.extend(m.local_method.unwrap_or(m.method).to_le_bytes());
            out.extend([0; 4]);
            out.extend(m.local_crc.or(m.crc).unwrap_or(crc).to_le_bytes());
            out.extend(local_packed.to_le_bytes());
            out.extend(local_whole.to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend((m.local_extra.len() as u16).to_le_bytes());
            out.extend(name);
            out.extend(&m.local_extra);
            out.extend(&m.bytes);
            directory.extend(b"PK\x01\x02");
            directory.extend(m.version.to_le_bytes());
            directory.extend(m.version.to_le_bytes());
            directory.extend(m.flags.to_le_bytes());
            directory.extend(m.method.to_le_bytes());
            directory.extend([0; 4]);
            directory.extend(m.crc.unwrap_or(crc).to_le_bytes());
            directory.extend(packed.to_le_bytes());
            directory.extend(whole.to_le_bytes());
            directory.extend((m.name.len() as u16).to_le_bytes());
            directory.extend((m.extra.len() as u16).to_le_bytes());
            directory.extend([0; 6]);
            directory.extend(m.attributes.to_le_bytes());
            directory.extend(m.header.unwrap_or(at).to_le_bytes());
            directory.extend(&m.name);
            directory.extend(&m.extra);
        }
        let at = out.len() as u32;
        let size = directory.len() as u32;
        out.extend(directory);
        out.extend(&self.before_end);
        out.extend(b"PK\x05\x06");
        out.extend(self.disk.to_le_bytes());
        out.extend(self.disk.to_le_bytes());
        let count = self.count.unwrap_or(self.members.len() as u16);
        out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
        out.extend(self.directory_size.unwrap_or(size).to_le_bytes());
        out.extend(self.directory_at.unwrap_or(at).to_le_bytes());
        out.extend((self.comment.len() as u16).to_le_bytes());
        out.extend(&self.comment);
        out.extend(&self.behind);
        out
    }
}

fn run(cases: &[(&str, Vec<u8>, &[&str])], name: &str, verdicts: Verdicts) {
    let mut corpus = Corpus::new();
    for (case, bytes, words) in cases {
        let path = corpus.files(&[("adapter_config.json", good_adapter().0.as_bytes()), (name, bytes)]);
        corpus.adapter(case, &path, verdicts, words);
    }
    corpus.done();
}

/// The archive that `torch.save` would write, its members changed.
fn with(change: impl FnOnce(&mut Zip)) -> Vec<u8> {
    let mut zip = zip_of(&state_dict(&good_entries()), &good_entries());
    change(&mut zip);
    zip.bytes()
}

/// The same, its pickle's member changed.
fn pickle(change: impl FnOnce(&mut Member)) -> Vec<u8> {
    with(|zip| change(&mut zip.members[0]))
}

const PICKLE: &str = "archive/data.pkl";

#[test]
fn archives_that_lie() {
    let evil = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.".to_vec();
    let mut bomb = b"\x01\xff\xff\0\0".to_vec();
    bomb.extend([0; 65_535]);
    run(
        &[
            (
                "two members of one name",
                with(|z| z.members.push(Member::new(PICKLE, evil.clone()))),
                &[PICKLE, "two members"],
            ),
            (
                "another name in the local header",
                pickle(|m| m.local_name = Some(b"archive/xxxx.pkl".to_vec())),
                &[PICKLE, "name"],
            ),
            (
                "a longer name in the local header",
                pickle(|m| m.local_name = Some(b"archive/data.pkl2".to_vec())),
                &[PICKLE, "name"],
            ),
            ("another checksum", pickle(|m| m.crc = Some(1)), &[PICKLE, "checksum"]),
            ("another checksum in the local header", pickle(|m| m.local_crc = Some(1)), &[PICKLE, "checksum"]),
            ("encrypted", pickle(|m| m.flags = 1), &[PICKLE, "encrypted"]),
            (
                "encrypted in the directory alone",
                pickle(|m| (m.flags, m.local_flags) = (1, Some(0))),
                &[PICKLE, "encrypted"],
            ),
            ("encrypted in the local header alone", pickle(|m| m.local_flags = Some(1)), &[PICKLE, "flag"]),
            ("strongly encrypted", pickle(|m| m.flags = 1 << 6), &[PICKLE, "flags"]),
            ("masked directory", pickle(|m| m.flags = 1 << 13), &[PICKLE, "flags"]),
            ("compressed", pickle(|m| m.method = 8), &[PICKLE, "compressed by zip method 8"]),
            ("compressed in the local header alone", pickle(|m| m.local_method = Some(8)), &[PICKLE, "method"]),
            ("method 93", pickle(|m| m.method = 93), &[PICKLE, "method 93"]),
            (
                "a bomb",
                pickle(|m| (m.method, m.bytes, m.sizes) = (8, bomb.clone(), Some([65_540, u32::MAX - 1]))),
                &[PICKLE],
            ),
            ("sizes that differ", pickle(|m| m.sizes = Some([10, 20])), &[PICKLE]),
            (
                "sizes beyond the file",
                pickle(|m| m.sizes = Some([1 << 30; 2])),
                &[PICKLE, "1073741824 bytes do not fit"],
            ),
            ("other sizes in the local header", pickle(|m| m.local_sizes = Some([3; 2])), &[PICKLE, "size"]),
            ("wide sizes that are not there", pickle(|m| m.sizes = Some([u32::MAX; 2])), &[]),
            (
                "wide sizes of 2^63",
                pickle(|m| {
                    let wide =
                        [&1u16.to_le_bytes()[..], &16u16.to_le_bytes(), &[0xff; 7], &[0x7f], &[0xff; 7], &[0x7f]]
                            .concat();
                    (m.sizes, m.extra) = (Some([u32::MAX; 2]), wide);
                }),
                &[PICKLE],
            ),
            ("a header that is elsewhere", pickle(|m| m.header = Some(7)), &[PICKLE, "no local zip header at 7"]),
            ("a header beyond the file", pickle(|m| m.header = Some(u32::MAX - 1)), &[PICKLE]),
            (
                "a header in the directory",
                with(|z| {
                    let at = z.bytes().len() as u32 - 80;
                    z.members[0].header = Some(at);
                }),
                &[PICKLE],
            ),
            ("members that overlap", with(|z| z.members[1].header = Some(0)), &["archive/"]),
            ("a name that is not UTF-8", with(|z| z.members[1].name = b"archive/\xff".to_vec()), &["UTF-8"]),
            (
                "a name with escape codes",
                with(|z| (z.members[1].name, z.members[1].flags) = (b"archive/\x1b[2J".to_vec(), 1)),
                &["\\u{1b}[2J"],
            ),
            ("another checksum of a storage", with(|z| z.members[2].crc = Some(1)), &["archive/data/1", "checksum"]),
            ("text in front", with(|z| z.front = b"#!/bin/sh\necho\n".to_vec()), &[]),
            ("an archive in front", with(|z| z.front = z.bytes()), &["before"]),
            ("text behind", with(|z| z.behind = b"hello".to_vec()), &["end of a zip archive"]),
            ("a comment", with(|z| z.comment = b"hello".to_vec()), &["end of a zip archive"]),
            ("an end in a comment", with(|z| z.comment = [b"PK\x05\x06".as_slice(), &[0; 18]].concat()), &[]),
            ("a count too small", with(|z| z.count = Some(1)), &["members in the directory", "its end says 1"]),
            ("a count too large", with(|z| z.count = Some(60_000)), &["its end says 60000"]),
            ("a directory elsewhere", with(|z| z.directory_at = Some(0)), &["zip directory"]),
            ("a directory beyond the file", with(|z| z.directory_at = Some(u32::MAX - 1)), &["zip directory"]),
            ("a directory of no bytes", with(|z| z.directory_size = Some(0)), &["zip directory"]),
            ("several disks", with(|z| z.disk = 3), &["several parts"]),
            (
                "a wide end that is not there",
                with(|z| z.before_end = [b"PK\x06\x07".as_slice(), &[0; 16]].concat()),
                &["64-bit end"],
            ),
            (
                "a wide end at 2^64-1",
                with(|z| z.before_end = [b"PK\x06\x07".as_slice(), &[0; 4], &[0xff; 8], &[1, 0, 0, 0]].concat()),
                &["64-bit end"],
            ),
            ("cut", with(|_| ()).split_last_chunk::<30>().unwrap().0.to_vec(), &["end of a zip archive"]),
            ("no data.pkl", with(|z| z.members[0].name = b"archive/data.txt".to_vec()), &["data.pkl"]),
            ("two of them", with(|z| z.members.push(Member::new("other/data.pkl", evil))), &["data.pkl"]),
            ("a path that leads out", with(|z| z.members[1].name = b"../../x".to_vec()), &["storage `0`"]),
            ("TorchScript", with(|z| z.members.push(Member::new("archive/constants.pkl", "x"))), &["TorchScript"]),
            ("big-endian", with(|z| z.members.push(Member::new("archive/byteorder", "big"))), &["byteorder", "`big`"]),
            (
                "byte order with escape codes",
                with(|z| z.members.push(Member::new("archive/byteorder", "\u{1b}[2J"))),
                &["byteorder"],
            ),
            ("an empty archive", Zip::default().bytes(), &[]),
        ],
        "adapter_model.bin",
        REFUSED,
    );
}

/// An array as `numpy.save` writes it.
fn npy(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}");
    raw(&format!("{header}{}\n", " ".repeat(128 - (header.len() + 11) % 64)), data)
}

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\0".as_slice(), &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
}

/// MLX's adapter of old: arrays by the names of its parameters.
fn npz(entries: &[Entry]) -> Zip {
    let member = |(name, _, shape, bytes): &Entry| {
        let shape = format!("({})", shape.iter().map(|n| format!("{n},")).collect::<String>());
        Member::new(&format!("{name}.npy"), npy("'<f4'", "False", &shape, bytes))
    };
    Zip::of(entries.iter().map(member).collect())
}

fn mlx_entries() -> Vec<Entry> {
    [("lora_a", vec![8, 2]), ("lora_b", vec![2, 12])]
        .map(|(half, shape)| {
            let name = format!("model.layers.0.mlp.up_proj.{half}");
            let bytes = f32s(&values(&name, shape.iter().product()));
            (name, "F32", shape, bytes)
        })
        .to_vec()
}

const MLX_CONFIG: &str =
    r#"{"fine_tune_type":"lora","num_layers":2,"lora_parameters":{"rank":2,"scale":2.0,"dropout":0.0}}"#;

#[test]
fn arrays_of_numpy() {
    let a = "model.layers.0.mlp.up_proj.lora_a";
    let with = |change: &dyn Fn(&mut Zip)| {
        let mut zip = npz(&mlx_entries());
        change(&mut zip);
        zip.bytes()
    };
    let first = |bytes: Vec<u8>| with(&|z| z.members[0].bytes = bytes.clone());
    let array = |descr: &str, fortran: &str, shape: &str| first(npy(descr, fortran, shape, &[0; 64]));
    let header = |text: &str| first(raw(text, &[0; 64]));
    let mut long = b"\x93NUMPY\x02\0\0\0\0\x80".to_vec();
    long.extend(b"{'descr': '<f4'");
    let mut bomb = Member::new(&format!("{a}.npy"), b"\x01\xff\xff\0\0".repeat(100));
    (bomb.method, bomb.sizes) = (8, Some([500, 3 << 30]));
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("objects", array("'|O'", "False", "(8, 2)"), vec![a, "|O"]),
        (
            "objects that are a pickle",
            first(npy("'|O'", "False", "(1,)", b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.")),
            vec![a],
        ),
        ("records", array("[('a', '<f4'), ('b', '|O')]", "False", "(8, 2)"), vec![a]),
        ("text", array("'<U8'", "False", "(8, 2)"), vec![a, "<U8"]),
        ("complex numbers", array("'<c8'", "False", "(8, 1)"), vec![a, "<c8"]),
        ("truths", array("'|b1'", "False", "(8, 8)"), vec![a]),
        ("8 TiB", array("'<f4'", "False", "(1048576, 2097152)"), vec![a]),
        ("2^62", array("'<f4'", "False", "(4611686018427387904,)"), vec![a]),
        ("2^64", array("'<f4'", "False", "(18446744073709551616,)"), vec![a]),
        ("a product that wraps", array("'<f4'", "False", "(4294967296, 4294967296)"), vec![a]),
        ("a product that wraps to 16", array("'<f4'", "False", "(4611686018427387908, 4)"), vec![a]),
        ("negative", array("'<f4'", "False", "(-8, -2)"), vec![a]),
        ("fractional", array("'<f4'", "False", "(8.0, 2)"), vec![a]),
        ("a call in the shape", array("'<f4'", "False", "(__import__('os').system('true'),)"), vec![a]),
        ("a shape that is a list", array("'<f4'", "False", "[8, 2]"), vec![a]),
        ("1000 dimensions", array("'<f4'", "False", &format!("({})", "1,".repeat(1000))), vec![a]),
        ("less data than it says", array("'<f4'", "False", "(8, 3)"), vec![a]),
        ("more data than it says", array("'<f4'", "False", "(8, 1)"), vec![a]),
        ("Fortran's order", array("'<f4'", "True", "(8, 2)"), vec![a, "Fortran"]),
        ("big-endian", array("'>f4'", "False", "(8, 2)"), vec![a, ">f4"]),
        ("an order that is none", array("'<f4'", "Maybe", "(8, 2)"), vec![a]),
        ("no descr", header("{'fortran_order': False, 'shape': (8, 2), }\n"), vec![a, "descr"]),
        ("no shape", header("{'descr': '<f4', 'fortran_order': False, }\n"), vec![a, "shape"]),
        ("no order", header("{'descr': '<f4', 'shape': (8, 2), }\n"), vec![a, "fortran_order"]),
        (
            "shape twice",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2), 'shape': (2, 8), }\n"),
            vec![a],
        ),
        (
            "a key that is unknown",
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2), 'x': 1, }\n"),
            vec![a],
        ),
        (
            "a shape in text",
            header("{'descr': '<f4', 'fortran_order': False, 'note': \"'shape': (4, 4)\", 'shape': (8, 2), }\n"),
            vec![a],
        ),
        ("a header that is no dict", header("import os\n"), vec![a]),
        ("an empty header", header(""), vec![a]),
        ("brackets", header(&"(".repeat(9000)), vec![a]),
        (
            "a header of escape codes",
            header("{'descr': '\u{1b}[2J', 'fortran_order': False, 'shape': (8, 2), }\n"),
            vec![a],
        ),
        (
            "a header that is not text",
            first([b"\x93NUMPY\x01\0\x04\0".as_slice(), &[0xff; 4], &[0; 64]].concat()),
            vec![a],
        ),
        ("a header of 2 GiB", first(long), vec![a, "2147483648"]),
        ("cut in the header", first(b"\x93NUMPY\x01\0\xff\0{".to_vec()), vec![a]),
        ("cut in the length", first(b"\x93NUMPY\x01\0\x10".to_vec()), vec![a]),
        ("version 9", first([b"\x93NUMPY\x09\0".as_slice(), &[0; 80]].concat()), vec![a, "version 9"]),
        ("no magic", first(vec![0; 80]), vec![a]),
        ("an empty member", first(vec![]), vec![a]),
        ("a member that is a pickle", first(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.".to_vec()), vec![a]),
        ("two members of one name", with(&|z| z.members.push(z.members[0].clone())), vec![a, "two"]),
        (
            "two arrays of one name",
            with(&|z| {
                let mut m = z.members[0].clone();
                m.name.truncate(a.len());
                z.members.push(m);
            }),
            vec![a, "two"],
        ),
        (
            "another name in the local header",
            with(&|z| z.members[0].local_name = Some(b"x.npy".to_vec())),
            vec![a, "name"],
        ),
        ("compressed", with(&|z| z.members[0].method = 8), vec![a, "compressed"]),
        ("a bomb", with(&|z| z.members[0] = bomb.clone()), vec![a]),
        ("encrypted", with(&|z| z.members[0].flags = 1), vec![a, "encrypted"]),
        ("another checksum", with(&|z| z.members[0].crc = Some(1)), vec![a]),
        ("a path that leads out", with(&|z| z.members[0].name = b"../../x.npy".to_vec()), vec!["../../x"]),
        ("no arrays", Zip::default().bytes(), vec![]),
    ];
    let mut corpus = Corpus::new();
    for (case, bytes, words) in &cases {
        let path = corpus.files(&[("adapter_config.json", MLX_CONFIG.as_bytes()), ("adapters.npz", bytes)]);
        corpus.adapter(case, &path, REFUSED, words);
    }
    let good = npz(&mlx_entries()).bytes();
    let path = corpus.files(&[("adapter_config.json", MLX_CONFIG.as_bytes()), ("adapters.npz", &good)]);
    corpus.adapter("a good one", &path, ACCEPTED, &[]);
    corpus.done();
}
