//! Pickles that would do something if they were loaded, and those whose numbers lie.

use super::archives::{Member, Zip};
use super::made::{Entry, config, good_entries};
use super::{ACCEPTED, Corpus, OPEN, REFUSED};

/// Opcodes in the making.
#[derive(Clone, Default)]
pub struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, text: &str) -> Pickle {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    fn global(self, module: &str, name: &str) -> Pickle {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// The shortest whole number.
    fn int(self, n: i64) -> Pickle {
        let bytes = n.to_le_bytes();
        match n {
            0..=255 => self.raw(b"K").raw(&bytes[..1]),
            -0x8000_0000..=0x7fff_ffff => self.raw(b"J").raw(&bytes[..4]),
            _ => self.raw(b"\x8a\x08").raw(&bytes),
        }
    }

    fn ints(mut self, all: &[i64]) -> Pickle {
        self = self.raw(b"(");
        for n in all {
            self = self.int(*n);
        }
        self.raw(b"t")
    }

    /// The persistent id of a storage.
    fn storage(self, class: &str, key: &str, count: i64) -> Pickle {
        self.raw(b"(").text("storage").global("torch", class).text(key).text("cpu").int(count).raw(b"tQ")
    }

    fn tensor(self, view: &View) -> Pickle {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"(")
            .storage(view.class, view.key, view.count)
            .int(view.offset)
            .ints(&view.shape)
            .ints(&view.stride)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    pub fn stop(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// What a tensor says of its storage.
#[derive(Clone)]
struct View {
    class: &'static str,
    key: &'static str,
    count: i64,
    offset: i64,
    shape: Vec<i64>,
    stride: Vec<i64>,
}

const KEYS: [&str; 4] = ["0", "1", "2", "3"];

fn view(number: usize, (_, _, shape, bytes): &Entry) -> View {
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    let key = KEYS[number];
    View { class: "FloatStorage", key, count: bytes.len() as i64 / 4, offset: 0, stride: vec![shape[1], 1], shape }
}

fn dict(views: &[(String, View)]) -> Vec<u8> {
    let mut out = Pickle::new().raw(b"}(");
    for (name, view) in views {
        out = out.text(name).tensor(view);
    }
    out.raw(b"u").stop()
}

fn views() -> Vec<(String, View)> {
    good_entries().iter().enumerate().map(|(i, entry)| (entry.0.clone(), view(i, entry))).collect()
}

/// The pickle of a dict of these tensors.
pub fn state_dict(entries: &[Entry]) -> Vec<u8> {
    dict(&entries.iter().enumerate().map(|(i, entry)| (entry.0.clone(), view(i, entry))).collect::<Vec<_>>())
}

/// The archive that holds a pickle and the storages of these tensors.
pub fn zip_of(pickle: &[u8], entries: &[Entry]) -> Zip {
    let mut members = vec![Member::new("archive/data.pkl", pickle)];
    for (number, (_, _, _, bytes)) in entries.iter().enumerate() {
        members.push(Member::new(&format!("archive/data/{number}"), bytes.clone()));
    }
    members.push(Member::new("archive/version", "3\n"));
    Zip::of(members)
}

/// Number of elements and bytes of each storage of the old format.
type Storages = Vec<(u64, Vec<u8>)>;

/// The old format: five pickles and the storages.
fn legacy(object: &[u8], keys: &[&str], storages: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Pickle::new().raw(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop();
    out.extend(Pickle::new().raw(b"M\xe9\x03").stop());
    let machine =
        Pickle::new().raw(b"}(").text("protocol_version").raw(b"M\xe9\x03").text("little_endian").raw(b"\x88u");
    out.extend(machine.stop());
    out.extend(object);
    let mut list = Pickle::new().raw(b"](");
    for key in keys {
        list = list.text(key);
    }
    out.extend(list.raw(b"e").stop());
    for (count, bytes) in storages {
        out.extend(count.to_le_bytes());
        out.extend(bytes);
    }
    out
}

/// The same, of a dict whose persistent ids have the sixth field that the old format has.
fn legacy_dict(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Pickle::new().raw(b"}(");
    for (name, view) in views() {
        out = out.text(&name).global("torch._utils", "_rebuild_tensor_v2").raw(b"((");
        out = out.text("storage").global("torch", view.class).text(view.key).text("cpu").int(view.count).raw(b"NtQ");
        out = out.int(view.offset).ints(&view.shape).ints(&view.stride).raw(b"\x89");
        out = out.global("collections", "OrderedDict").raw(b")RtR");
    }
    let mut object = out.raw(b"u").stop();
    change(&mut object);
    object
}

fn refused(name: &str, cases: &[(&str, Vec<u8>, &[&str])]) {
    let mut corpus = Corpus::new();
    for (case, bytes, words) in cases {
        let path = corpus.files(&[("adapter_config.json", config("").as_bytes()), (name, bytes)]);
        corpus.adapter(case, &path, REFUSED, words);
        assert!(!std::path::Path::new("/tmp/lora-tool-payload").exists(), "{case}: a payload was run");
    }
    corpus.done();
}

/// What would leave a mark if anything were run.
const MARK: &str = "touch /tmp/lora-tool-payload";

#[test]
fn what_a_pickle_may_not_do() {
    let entries = good_entries();
    let zip = |pickle: Vec<u8>| zip_of(&pickle, &entries).bytes();
    // A dict with one more value, behind the tensors.
    let also = |value: Pickle| {
        let mut pickle = state_dict(&entries);
        pickle.truncate(pickle.len() - 2);
        pickle.extend(Pickle::default().text("x").0);
        pickle.extend(value.0);
        pickle.extend(b"u.");
        zip(pickle)
    };
    let call = |module: &str, name: &str| also(Pickle::default().global(module, name).text(MARK).raw(b"\x85R"));
    let p = Pickle::default;
    let module = "global `";
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("os.system", call("os", "system"), vec!["pickle, byte", "os.system"]),
        ("posix.system", call("posix", "system"), vec!["posix.system"]),
        ("nt.system", call("nt", "system"), vec!["nt.system"]),
        ("builtins.eval", call("builtins", "eval"), vec!["builtins.eval"]),
        ("__builtin__.exec", call("__builtin__", "exec"), vec!["__builtin__.exec"]),
        ("subprocess.Popen", call("subprocess", "Popen"), vec!["subprocess.Popen"]),
        ("pip", call("pip", "main"), vec!["pip.main"]),
        ("pty", call("pty", "spawn"), vec!["pty.spawn"]),
        ("resolve_name", call("pkgutil", "resolve_name"), vec!["pkgutil.resolve_name"]),
        ("FileHandler", call("logging", "FileHandler"), vec!["logging.FileHandler"]),
        ("torch.load", call("torch", "load"), vec!["torch.load"]),
        ("torch.hub", call("torch.hub", "load"), vec!["torch.hub.load"]),
        ("a submodule", call("torch._utils.os", "system"), vec!["torch._utils.os.system"]),
        ("numpy's scalars", call("numpy.core.multiarray", "scalar"), vec!["numpy.core.multiarray.scalar"]),
        ("sparse tensors", call("torch._utils", "_rebuild_sparse_tensor"), vec!["_rebuild_sparse_tensor"]),
        ("bytes of storages", call("torch.storage", "_load_from_bytes"), vec!["torch.storage._load_from_bytes"]),
        ("quantised tensors", call("torch._utils", "_rebuild_qtensor"), vec!["_rebuild_qtensor"]),
        ("a name with a dot", call("collections", "OrderedDict.__init__"), vec!["collections.OrderedDict.__init__"]),
        ("a name with escape codes", call("os\u{1b}[31m", "system"), vec!["os\\u{1b}[31m.system"]),
        ("a name that does not end", also(p().raw(b"c").raw(&[b'a'; 400])), vec!["pickle, byte"]),
        ("a name that is not UTF-8", also(p().raw(b"c\xff\nx\n")), vec!["pickle, byte", "UTF-8"]),
        (
            "STACK_GLOBAL",
            also(p().text("os").text("system").raw(b"\x93").text(MARK).raw(b"\x85R")),
            vec![module, "os.system"],
        ),
        ("STACK_GLOBAL of numbers", also(p().int(1).int(2).raw(b"\x93")), vec!["pickle, byte"]),
        ("no name is even called", also(p().global("os", "system")), vec!["os.system"]),
        ("REDUCE on a dict", also(p().raw(b"}").text(MARK).raw(b"\x85R")), vec!["pickle, byte", "a call of a dict"]),
        ("REDUCE on text", also(p().text("os.system").text(MARK).raw(b"\x85R")), vec!["a call of text"]),
        ("REDUCE on a tensor", also(p().tensor(&view(0, &entries[0])).raw(b")R")), vec!["a call of a tensor"]),
        (
            "REDUCE on a storage class",
            also(p().global("torch", "FloatStorage").int(1 << 40).raw(b"\x85R")),
            vec!["a call of"],
        ),
        ("REDUCE on a dtype", also(p().global("torch", "float32").raw(b")R")), vec!["a call of"]),
        ("REDUCE without a tuple", also(p().global("collections", "OrderedDict").raw(b"]R")), vec!["arguments"]),
        ("OBJ", also(p().raw(b"(").global("os", "system").text(MARK).raw(b"o")), vec!["os.system"]),
        ("OBJ of a known name", also(p().raw(b"(").global("collections", "OrderedDict").raw(b"o")), vec!["OBJ"]),
        ("INST", also(p().raw(b"(").text(MARK).raw(b"ios\nsystem\n")), vec!["INST", "os.system"]),
        ("NEWOBJ", also(p().global("collections", "OrderedDict").raw(b")\x81")), vec!["NEWOBJ"]),
        ("NEWOBJ_EX", also(p().global("collections", "OrderedDict").raw(b")}\x92")), vec!["NEWOBJ_EX"]),
        ("BUILD on a dict", also(p().raw(b"}}b")), vec!["state of"]),
        (
            "BUILD on a tensor",
            also(p().tensor(&view(0, &entries[0])).raw(b"}").text("__setstate__").text("x").raw(b"sb")),
            vec!["state of"],
        ),
        (
            "BUILD of other attributes",
            also(p().global("collections", "OrderedDict").raw(b")R}").text("__class__").text("x").raw(b"sb")),
            vec!["__class__"],
        ),
        ("BUILD of slots", also(p().global("collections", "OrderedDict").raw(b")RN}\x86b")), vec!["state of"]),
        ("EXT1", also(p().raw(b"\x82\x01")), vec!["EXT"]),
        ("EXT4", also(p().raw(b"\x84\x01\0\0\0")), vec!["EXT"]),
        ("PERSID", also(p().raw(b"P0\n")), vec!["PERSID"]),
        (
            "persistent id of a module",
            also(p().raw(b"(").text("module").text("x").text("y").text("z").raw(b"tQ")),
            vec!["kind `module`"],
        ),
        ("persistent id that is text", also(p().text("storage").raw(b"Q")), vec!["persistent id"]),
        (
            "persistent id of two",
            also(p().text("storage").global("torch", "FloatStorage").raw(b"\x86Q")),
            vec!["pickle, byte"],
        ),
        (
            "a storage that is no class",
            also(p().raw(b"(").text("storage").text("FloatStorage").text("0").text("cpu").int(16).raw(b"tQ")),
            vec!["pickle, byte"],
        ),
        ("bytes", also(p().raw(b"C\x01a")), vec!["(bytes)"]),
        ("a bytearray", also(p().raw(b"\x96\x01\0\0\0\0\0\0\0a")), vec!["(buffers)"]),
        ("a set", also(p().raw(b"\x8f")), vec!["(sets)"]),
        ("text protocol", zip(b"(dp0\nS'a'\nI1\ns.".to_vec()), vec!["pickle, byte 1"]),
        ("protocol 0", zip(b"\x80\0}.".to_vec()), vec!["protocol 0"]),
        ("protocol 6", zip(b"\x80\x06}.".to_vec()), vec!["protocol 6"]),
        ("an opcode that is none", also(p().raw(b"\xff")), vec!["0xff"]),
        ("nested loads", call("pickle", "loads"), vec!["pickle.loads"]),
        (
            "a pickle behind the pickle",
            zip([state_dict(&entries), b"\x80\x02cos\nsystem\n.".to_vec()].concat()),
            vec!["data.pkl", "after the end"],
        ),
        ("no end", zip(state_dict(&entries).split_last().unwrap().1.to_vec()), vec!["pickle, byte", "cut"]),
        ("an end without a value", zip(b"\x80\x02.".to_vec()), vec!["pickle, byte 2"]),
        ("values left over", zip(b"\x80\x02}}.".to_vec()), vec!["left over"]),
        ("an empty pickle", zip(vec![]), vec!["pickle, byte 0"]),
        ("a number", zip(b"\x80\x02K\x07.".to_vec()), vec!["a whole number"]),
        ("a list of tensors", zip(b"\x80\x02].".to_vec()), vec!["a list"]),
        ("a dict of numbers", zip(b"\x80\x02}X\x01\0\0\0aK\x01s.".to_vec()), vec![]),
        ("a key without a value", zip(b"\x80\x02}(K\x01u.".to_vec()), vec!["pickle, byte"]),
        ("a mark that is not there", zip(b"\x80\x02}u.".to_vec()), vec!["pickle, byte"]),
        ("a tuple of nothing", zip(b"\x80\x02\x87.".to_vec()), vec!["pickle, byte"]),
        ("items for a tuple", zip(b"\x80\x02)K\x01a.".to_vec()), vec!["pickle, byte"]),
        ("a memo that is empty", zip(b"\x80\x02h\x07.".to_vec()), vec!["memo slot 7"]),
        ("memo slot 2^32-1", zip(b"\x80\x02}r\xff\xff\xff\xff.".to_vec()), vec!["memo slot 4294967295"]),
        ("an integer of 2 GiB", zip(b"\x80\x02\x8b\0\0\0\x80".to_vec()), vec!["2147483648"]),
        ("text of 2^64-1", zip(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()), vec!["cut"]),
        ("text of 4 GiB", zip(b"\x80\x02X\xff\xff\xff\xff".to_vec()), vec!["cut"]),
        ("text that is not UTF-8", zip(b"\x80\x02X\x01\0\0\0\xff.".to_vec()), vec!["UTF-8"]),
        (
            "a frame of 2^64-1",
            zip(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffcos\nsystem\n.".to_vec()),
            vec!["os.system"],
        ),
        ("a million marks", zip([b"\x80\x02".to_vec(), b"(".repeat(1_000_000)].concat()), vec!["100000 marks"]),
        ("a million dicts", zip([b"\x80\x02".to_vec(), b"}".repeat(1_000_000)].concat()), vec!["100000 values"]),
        (
            "tuples 1,000,000 deep",
            zip([b"\x80\x02N".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat()),
            vec!["a tuple"],
        ),
        ("a dict that holds itself", zip(b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec()), vec![]),
        ("a list that holds itself", zip(b"\x80\x02]q\0h\0a.".to_vec()), vec!["a list"]),
        (
            "a memo bomb",
            zip([b"\x80\x02]q\0".to_vec(), b"(h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0eq\0".repeat(2000), b".".to_vec()].concat()),
            vec!["a list"],
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(case, bytes, words)| (*case, bytes.clone(), words.as_slice())).collect();
    refused("adapter_model.bin", &cases);
}

/// Objects cost more than the byte that makes them: a file of ten million of them.
#[test]
fn very_many_objects() {
    let mut corpus = Corpus::new();
    let row = [b"(".to_vec(), b")".repeat(90_000), b"e".to_vec()].concat();
    let bytes = [b"\x80\x02]".to_vec(), row.repeat(105), b".".to_vec()].concat();
    let bytes = zip_of(&bytes, &[]).bytes();
    let path = corpus.files(&[("adapter_config.json", config("").as_bytes()), ("adapter_model.bin", &bytes)]);
    corpus.adapter("nine million tuples", &path, REFUSED, &["adapter_model.bin"]);
    corpus.done();
}

#[test]
fn numbers_that_lie() {
    let entries = good_entries();
    let q = entries[0].0.as_str();
    let with = |change: &dyn Fn(&mut View)| {
        let mut all = views();
        change(&mut all[0].1);
        zip_of(&dict(&all), &entries).bytes()
    };
    let twice = {
        let mut all = views();
        all.push(all[0].clone());
        zip_of(&dict(&all), &entries).bytes()
    };
    let numbered = {
        let mut out = Pickle::new().raw(b"}(").int(7).tensor(&views()[0].1);
        out = out.raw(b"u");
        zip_of(&out.stop(), &entries).bytes()
    };
    let untyped = |fields: &[u8]| {
        let pickle = Pickle::new()
            .raw(b"}")
            .text(q)
            .global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"(")
            .raw(fields)
            .raw(b"tRs");
        zip_of(&pickle.stop(), &entries).bytes()
    };
    refused(
        "adapter_model.bin",
        &[
            ("storage too small", with(&|v| v.count = 8), &[q, "storage `0`"]),
            ("storage too large", with(&|v| v.count = 1 << 40), &[q, "storage `0`"]),
            ("storage negative", with(&|v| v.count = -16), &["pickle, byte", "-16"]),
            ("storage 2^63-1", with(&|v| v.count = i64::MAX), &[q]),
            ("storage of doubles", with(&|v| v.class = "DoubleStorage"), &[q, "storage `0`"]),
            ("storage of bytes", with(&|v| v.class = "ByteStorage"), &[q, "storage `0`"]),
            ("storage that is not there", with(&|v| v.key = "9"), &[q, "`9`"]),
            ("storage that leads out", with(&|v| v.key = "../version"), &[q, "`../version`"]),
            ("storage with escape codes", with(&|v| v.key = "\u{1b}[2J"), &[q, "\\u{1b}[2J"]),
            ("offset behind the end", with(&|v| v.offset = 1), &[q, "reaches element 17"]),
            ("offset 2^62", with(&|v| v.offset = 1 << 62), &[q]),
            ("offset negative", with(&|v| v.offset = -1), &[q, "offset -1"]),
            ("offset 2^63-1", with(&|v| v.offset = i64::MAX), &[q]),
            ("shape too large", with(&|v| v.shape = vec![3, 8]), &[q, "reaches element 24"]),
            ("shape negative", with(&|v| v.shape = vec![-2, 8]), &[q, "shape -2"]),
            ("shape that wraps", with(&|v| v.shape = vec![1 << 32, 1 << 32]), &[q]),
            ("shape of 2^62 by nothing", with(&|v| (v.shape, v.stride) = (vec![1 << 62, 1], vec![0, 0])), &[q]),
            ("stride too large", with(&|v| v.stride = vec![9, 1]), &[q, "reaches element 17"]),
            ("stride negative", with(&|v| v.stride = vec![-8, 1]), &[q, "stride -8"]),
            ("stride 2^62", with(&|v| v.stride = vec![1 << 62, 1]), &[q]),
            ("stride that wraps", with(&|v| (v.shape, v.stride) = (vec![5, 8], vec![1 << 62, 1])), &[q]),
            ("fewer strides", with(&|v| v.stride = vec![1]), &[q, "2 extents and 1 strides"]),
            ("40 dimensions", with(&|v| (v.shape, v.stride) = (vec![1; 40], vec![1; 40])), &[q, "40 dimensions"]),
            (
                "a view of gigabytes",
                with(&|v| (v.shape, v.stride) = (vec![1 << 20, 1 << 10], vec![0, 0])),
                &[q, "4294967296 bytes"],
            ),
            ("key twice", twice, &[q, "twice"]),
            ("a key that is a number", numbered, &["7"]),
            ("no arguments", untyped(b""), &[q]),
            ("a storage that is text", untyped(b"X\x01\0\0\0aK\0))\x89)"), &[q]),
            ("integers", with(&|v| v.class = "IntStorage"), &[q]),
        ],
    );
}

#[test]
fn the_old_formats() {
    let entries = good_entries();
    let storages: Storages = entries.iter().map(|entry| (entry.3.len() as u64 / 4, entry.3.clone())).collect();
    let good = legacy(&legacy_dict(|_| ()), &KEYS, &storages);
    let with = |change: &dyn Fn(&mut Storages)| {
        let mut all = storages.clone();
        change(&mut all);
        legacy(&legacy_dict(|_| ()), &KEYS, &all)
    };
    let evil = Pickle::new().global("os", "system").text(MARK).raw(b"\x85R").stop();
    // tarfile, as torch wrote before 0.1.10: it ran without restriction under weights_only.
    let mut tar = vec![0u8; 512];
    tar[..7].copy_from_slice(b"storage");
    tar[257..262].copy_from_slice(b"ustar");
    tar.extend([0; 1024]);
    // 334 bytes that ask for gigabytes.
    let huge = {
        let object = Pickle::new()
            .raw(b"}")
            .text("x")
            .global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", "FloatStorage")
            .text("0")
            .text("cpu")
            .int(1 << 33)
            .raw(b"NtQ")
            .int(0)
            .ints(&[1 << 33])
            .ints(&[1])
            .raw(b"\x89)tRs")
            .stop();
        legacy(&object, &["0"], &[(1 << 33, vec![])])
    };
    refused(
        "adapter_model.bin",
        &[
            ("a pickle by itself", evil.clone(), &["os.system"]),
            ("a pickle without a magic number", state_dict(&entries), &["pickle"]),
            ("an evil object", legacy(&evil, &[], &[]), &["os.system"]),
            ("an evil list of keys", [legacy(&legacy_dict(|_| ()), &[], &[]), evil].concat(), &[]),
            ("a tar", tar, &[]),
            ("protocol 0", b"cos\nsystem\n(S'true'\ntR.".to_vec(), &["os.system"]),
            ("protocol 0, INST", b"(S'true'\nios\nsystem\n.".to_vec(), &["pickle, byte"]),
            ("protocol 1", b"(cos\nsystem\nU\x04trueo.".to_vec(), &["os.system"]),
            ("a text protocol that would be safe", b"(dp0\nS'a'\np1\nI1\ns.".to_vec(), &["pickle, byte"]),
            ("gigabytes asked for", huge, &["0", "8589934592"]),
            ("a count that differs", with(&|s| s[0].0 = 7), &["0", "storage of 7 elements"]),
            ("a count of 2^63", with(&|s| s[0].0 = 1 << 63), &["0", "storage of -"]),
            ("a storage that is cut", with(&|s| s[3].1.truncate(28)), &["3", "does not fit"]),
            ("bytes behind", [good.clone(), vec![0; 3]].concat(), &["3 bytes after"]),
            ("a key too few", legacy(&legacy_dict(|_| ()), &KEYS[..3], &storages[..3]), &["3"]),
            ("a key twice", legacy(&legacy_dict(|_| ()), &["0", "0"], &storages[..2]), &["0", "twice"]),
            ("a key that nothing uses", legacy(&legacy_dict(|_| ()), &["9"], &storages[..1]), &["9"]),
            ("cut", good[..200].to_vec(), &["pickle"]),
            ("cut in the magic number", good[..8].to_vec(), &[]),
        ],
    );
    let mut corpus = Corpus::new();
    let path = corpus.files(&[("adapter_config.json", config("").as_bytes()), ("adapter_model.bin", &good)]);
    corpus.adapter("a good one", &path, ACCEPTED, &[]);
    let zip = zip_of(&state_dict(&entries), &entries).bytes();
    let path = corpus.files(&[("adapter_config.json", config("").as_bytes()), ("adapter_model.bin", &zip)]);
    corpus.adapter("a good archive", &path, ACCEPTED, &[]);
    let path = corpus.files(&[("adapter_config.json", config("").as_bytes()), ("adapter_model.safetensors", &zip)]);
    corpus.adapter("under the name of safetensors", &path, REFUSED, &["zip"]);
    let path = corpus.file("weights.pickle", &zip);
    corpus.adapter("under another name", &path, OPEN, &[]);
    let path = corpus.file("model.bin", &zip);
    corpus.base("as a base", &path, [super::Verdict::Open, super::Verdict::Open, super::Verdict::Refused], &[]);
    corpus.done();
}
