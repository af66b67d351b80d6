//! The CUDA backend on machines without a device: against libraries that stand in for NVIDIA's and compute on the CPU
//! (`tests/standin`). They run what is asynchronous as late as they may, look at every address, and fail when they are
//! told to. What they cannot show is how fast a device is and how NVIDIA's libraries round.
//!
//! Where there is no C++ compiler these tests say so and do nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::fixtures::{self, Scratch, text};
use crate::models::{Model, read, rounded, tensor, write};
use crate::program::{Ran, command, names};
use crate::sources::project;
use safetensors::tensor::Dtype;

// --- the libraries ------------------------------------------------------------------------------------------------

/// The folder of the libraries; none where they cannot be built.
fn libraries() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if Command::new("g++").arg("--version").output().is_err() {
            eprintln!("skipped: no g++, with which tests/standin is built");
            return None;
        }
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin");
        let built =
            Command::new("bash").arg(project().join("tests/standin/build.sh")).arg(&out).output().expect("bash");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        Some(out)
    });
    built.as_deref()
}

/// A command that finds these libraries and no others.
fn beside(mut command: Command, folder: &Path, settings: &[(&str, &str)]) -> Command {
    let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin-kernels");
    fs::create_dir_all(&compiled).expect("a folder");
    command.env("LD_LIBRARY_PATH", folder).env("STANDIN_CACHE", compiled).env("PATH", "/usr/bin:/bin");
    for name in ["CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(name);
    }
    command.envs(settings.iter().copied());
    command
}

/// Runs the program there.
fn run(settings: &[(&str, &str)], args: &[&str]) -> Option<Ran> {
    let mut command = beside(command(), libraries()?, settings);
    Some(command.args(args).output().expect("the program starts").into())
}

/// Runs tests of this suite there.
fn tests(filters: &[&str], settings: &[(&str, &str)]) {
    let Some(folder) = libraries() else { return };
    let own = std::env::current_exe().expect("the tests themselves");
    // Threads that wait for each other without end are a failure, too.
    let mut command = beside(Command::new("timeout"), folder, settings);
    let done = command.arg("900").arg(own).args(filters).arg("--test-threads=2").output().expect("tests start");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    let passed =
        said.lines().find_map(|l| l.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok());
    assert!(passed.is_some_and(|n| n >= filters.len()), "{said}");
}

// --- the suite over every backend ----------------------------------------------------------------------------------

#[test]
fn the_kernels_of_a_device_pass_the_tests_of_every_backend() {
    tests(&["kernels::"], &[]);
}

#[test]
fn the_decompositions_of_a_device_pass_the_tests_of_every_backend() {
    tests(&["svd::"], &[]);
}

#[test]
fn kinds_of_change_are_the_same_on_a_device() {
    tests(&["tuners::", "kohya::"], &[]);
}

#[test]
fn a_device_without_pools_of_memory_passes_as_well() {
    tests(&["svd::every_backend", "svd::what_is_empty", "kernels::the_product_on_a_tile"], &[("STANDIN_POOLS", "0")]);
}

// --- what there is ------------------------------------------------------------------------------------------------

fn backend<'v>(document: &'v Value, name: &str) -> &'v Value {
    let all = document["kernels"].as_array().expect("a list");
    all.iter().find(|k| k["name"] == name).expect("the backend")
}

#[test]
fn devices_and_versions_are_listed_and_tested() {
    let Some(ran) = run(&[("STANDIN_DEVICES", "2")], &["kernels", "--self-test", "--json"]) else { return };
    let document = ran.expect(0).json();
    assert_eq!(backend(&document, "cuda")["present"], true);
    assert!(backend(&document, "cuda")["self_test_error"].as_f64().unwrap() < 1e-5);
    let devices = document["devices"]["cuda"].as_array().unwrap();
    assert_eq!(devices.iter().map(|d| d["device"].as_str().unwrap()).collect::<Vec<_>>(), ["cuda:0", "cuda:1"]);
    assert_eq!((&devices[0]["memory"], &devices[0]["compute_capability"]), (&json!(1u64 << 30), &json!("9.0")));
    assert_eq!(document["devices"]["driver_cuda"], "13.0");
    let shown = run(&[], &["kernels"]).unwrap().expect(0).out;
    assert!(shown.contains("cuda:0") && shown.contains("Stand-in 0") && shown.contains("cuBLAS 13.0.0"), "{shown}");
}

/// Without a device everything goes on as before, and who asks for one is told what is missing.
#[test]
fn what_is_missing_is_said() {
    let base = text(&fixtures::base("llama"));
    let adapter = text(&fixtures::adapter("bf16_all"));
    let scratch = Scratch::new();
    let out = text(&scratch.join("out"));
    let args = ["merge", &base, &adapter, "-o", &out, "--device", "cuda", "--no-sync"];
    let empty = scratch.join("empty");
    fs::create_dir_all(&empty).unwrap();
    let ran: Ran = beside(command(), &empty, &[]).args(args).output().unwrap().into();
    let said = ran.expect(1).err;
    let cuda_here = Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists();
    assert!(cuda_here || said.contains("--device cuda: no NVIDIA driver: libcuda.so.1 was not found"), "{said}");
    let Some(folder) = libraries() else { return };
    for (settings, args, expected) in [
        (vec![("STANDIN_DEVICES", "0")], args.to_vec(), "the NVIDIA driver shows no device"),
        (vec![], [&args[..6], &["cuda:3"]].concat(), "there is no device 3: the driver shows 1"),
        (vec![("STANDIN_FAIL", "cuDevicePrimaryCtxRetain:1:2")], args.to_vec(), "memory is full"),
        (vec![("STANDIN_FAIL", "cuModuleLoadData:1:209")], args.to_vec(), "cuModuleLoadData: CUDA_ERROR_NO_BINARY"),
        (vec![("STANDIN_FAIL", "nvrtcCompileProgram:1")], args.to_vec(), "NVRTC for sm_90"),
    ] {
        let said = run(&settings, &args).unwrap().expect(1).err;
        assert!(said.contains(expected) && said.contains("hint: --device cpu"), "{settings:?}: {said}");
    }
    assert!(!Path::new(&out).exists());
    // A driver without the other libraries, which are then looked for in the toolkit's folder.
    let driver = scratch.join("driver");
    let toolkit = scratch.join("toolkit/lib64");
    for (folder_to, names) in [
        (&driver, vec!["libcuda.so.1"]),
        (&toolkit, vec!["libcublas.so.13", "libcusolver.so.12", "libnvrtc.so.13", "kernel.h", "abi.h"]),
    ] {
        fs::create_dir_all(folder_to).unwrap();
        for name in names {
            fs::copy(folder.join(name), folder_to.join(name)).unwrap();
        }
    }
    let ran: Ran = beside(command(), &driver, &[]).args(args).output().unwrap().into();
    let said = ran.expect(1).err;
    if !Path::new("/usr/local/cuda").exists() {
        assert!(said.contains("cuBLAS was not found") && said.contains("CUDA_PATH"), "{said}");
    }
    let listed: Ran = beside(command(), &driver, &[]).args(["kernels", "--json"]).output().unwrap().into();
    let listed = listed.expect(0).json();
    assert_eq!(listed["devices"]["cuda"][0]["name"], "Stand-in 0", "the driver knows the device all the same");
    let path = text(&scratch.join("toolkit"));
    let ran: Ran = beside(command(), &driver, &[("CUDA_PATH", &path)]).args(args).output().unwrap().into();
    let said = ran.expect(0).err;
    assert!(said.contains("computed on cuda:0"), "{said}");
    for word in ["gpu", "cuda:", "cuda:x", "CPU"] {
        let said = run(&[], &["merge", &base, &adapter, "-o", &out, "--device", word]).unwrap().expect(2).err;
        assert!(said.contains("expected auto, cpu, cuda or cuda:N"), "{said}");
    }
}

// --- merges -------------------------------------------------------------------------------------------------------

fn merged(
    settings: &[(&str, &str)],
    base: &Path,
    adapter: &Path,
    device: &str,
    scratch: &Scratch,
) -> Option<(Vec<u8>, String)> {
    let number = fs::read_dir(scratch.join(".")).expect("the folder").count();
    let out = scratch.join(&format!("out-{number}"));
    let (base, adapter, place) = (text(base), text(adapter), text(&out));
    let args = ["merge", &base, &adapter, "-o", &place, "--device", device, "--no-sync"];
    let said = run(settings, &args)?.expect(0).err;
    if out.is_file() {
        return Some((fs::read(out).expect("one file"), said));
    }
    let files = names(&out).into_iter().filter(|name| name.ends_with(".safetensors"));
    Some((files.flat_map(|name| fs::read(out.join(name)).expect("a file")).collect(), said))
}

#[test]
fn merges_on_a_device_give_the_same_bytes() {
    let scratch = Scratch::new();
    let kinds = [
        "bf16_all",
        "dora",
        "embedding_dora",
        "f16_all",
        "randlora",
        "resnet_dora",
        "resnet_loha_effective",
        "rslora",
        "vera",
        "whisper_dora",
        "whisper_loha",
    ];
    let of_peft = fixtures::cases("peft").into_iter().filter(|case| kinds.contains(&case.name.as_str()));
    let mut pairs: Vec<(PathBuf, PathBuf)> = of_peft.map(|case| (case.base(), case.adapter())).collect();
    assert_eq!(pairs.len(), kinds.len());
    let kohya = fixtures::root().join("kohya");
    for name in ["loha", "loha_tucker", "lokr", "lokr_both", "lokr_dora", "locon_dora", "locon_dora_inputs", "oft"] {
        pairs.push((kohya.join("base.safetensors"), kohya.join(name).join("adapter.safetensors")));
    }
    for (base, adapter) in &pairs {
        let Some((on_cpu, said)) = merged(&[], base, adapter, "cpu", &scratch) else { return };
        assert!(!said.contains("cuda"), "{said}");
        let (on_device, said) = merged(&[], base, adapter, "cuda", &scratch).unwrap();
        assert!(said.contains("computed on cuda:0 (Stand-in 0)"), "{}: {said}", adapter.display());
        assert!(on_cpu == on_device, "{} on {}", adapter.display(), base.display());
    }
}

// --- extraction ---------------------------------------------------------------------------------------------------

/// A model and one tuned from it: most matrices changed by one of low rank and noise, one stored in another type.
fn pair(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let mut base = Model::new();
    for layer in 0..4 {
        for (name, shape) in [("self_attn.q_proj", [560, 480]), ("mlp.down_proj", [480, 640])] {
            base.insert(format!("model.layers.{layer}.{name}.weight"), tensor(Dtype::BF16, &shape, 10 + layer));
        }
    }
    base.insert("model.norm.weight".into(), tensor(Dtype::BF16, &[480], 3));
    let mut tuned = base.clone();
    for (seed, (key, values)) in tuned.iter_mut().enumerate().filter(|(_, (key, _))| key.contains("layers")) {
        let (rows, cols) = (values.shape[0], values.shape[1]);
        let left = tensor(Dtype::F64, &[rows, 5], 100 + seed as u64).values;
        let right = tensor(Dtype::F64, &[5, cols], 200 + seed as u64).values;
        let dtype = if key.contains("layers.3") { Dtype::F32 } else { Dtype::BF16 };
        values.dtype = dtype;
        for i in 0..rows {
            for j in 0..cols {
                let change: f64 = (0..5).map(|k| left[i * 5 + k] * right[k * cols + j] * 0.3f64.powi(k as i32)).sum();
                let value = &mut values.values[i * cols + j];
                *value = rounded(dtype, *value + change);
            }
        }
    }
    let place = |name: &str, model: &Model| {
        let path = scratch.join(name);
        fs::create_dir_all(&path).unwrap();
        write(&path.join("model.safetensors"), model, None);
        let config =
            json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": false });
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        path
    };
    (place("base", &base), place("tuned", &tuned))
}

/// The report of an extraction at rank 8.
fn extracted(scratch: &Scratch, pair: &(PathBuf, PathBuf), settings: &[(&str, &str)], more: &[&str]) -> Option<Value> {
    let (base, tuned, out) = (text(&pair.0), text(&pair.1), text(&scratch.join("adapter")));
    let args = ["extract", &base, &tuned, "-o", &out, "--rank", "8", "--json", "--no-sync", "--force"];
    Some(run(settings, &[&args, more].concat())?.expect(0).json())
}

fn error(document: &Value) -> f64 {
    document["overall"]["relative_error"].as_f64().expect("an error")
}

fn notes(document: &Value) -> Vec<String> {
    document["notes"].as_array().expect("notes").iter().map(|n| n["text"].as_str().unwrap().to_string()).collect()
}

#[track_caller]
fn has_note(document: &Value, expected: &str) {
    assert!(notes(document).iter().any(|note| note.contains(expected)), "{expected}: {:?}", notes(document));
}

#[test]
fn an_extraction_on_a_device_is_as_good_and_reads_every_matrix_once() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(on_cpu) = extracted(&scratch, &pair, &[], &["--device", "cpu"]) else { return };
    let log = scratch.join("log");
    let settings = [("STANDIN_LOG", text(&log))];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(a, b)| (*a, b.as_str())).collect();
    let on_device = extracted(&scratch, &pair, &settings, &["--device", "cuda", "--threads", "2"]).unwrap();
    has_note(&on_device, "computed on cuda:0");
    assert_eq!(notes(&on_cpu).iter().filter(|n| n.contains("cuda")).count(), 0);
    assert!(
        (error(&on_cpu) - error(&on_device)).abs() < 1e-3 * error(&on_cpu),
        "{} {}",
        error(&on_cpu),
        error(&on_device)
    );
    // Both models cross the bus once, as they are stored; of what comes back most are factors.
    let log = fs::read_to_string(log).unwrap();
    let bytes = |way: &str| -> u64 {
        let copies = log.lines().filter(|l| l.contains(&format!("copy {way} ")));
        copies.filter_map(|l| l.split("bytes=").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum()
    };
    let elements = 4 * (560 * 480 + 480 * 640) as u64;
    let stored = elements * 2 + elements * 2 / 4 * 3 + elements * 4 / 4;
    assert!(bytes("h2d") >= stored && bytes("h2d") < stored + stored / 5, "{} of {stored}", bytes("h2d"));
    assert!(bytes("d2h") < stored, "{}", bytes("d2h"));
    assert_eq!(log.lines().filter(|l| l.contains("launch subtract")).count(), 8);
    // The same seed gives the same bytes, on any number of threads.
    let adapter = || fs::read(scratch.join("adapter/adapter_model.safetensors")).unwrap();
    let first = adapter();
    extracted(&scratch, &pair, &[], &["--device", "cuda", "--threads", "3"]).unwrap();
    assert!(first == adapter());
}

#[test]
fn a_full_decomposition_on_a_device_is_the_optimum() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(on_cpu) = extracted(&scratch, &pair, &[], &["--device", "cpu", "--exact"]) else { return };
    let on_device = extracted(&scratch, &pair, &[], &["--device", "cuda", "--exact"]).unwrap();
    has_note(&on_device, "computed on cuda:0");
    assert!(
        (error(&on_cpu) - error(&on_device)).abs() < 1e-5 * error(&on_cpu),
        "{} {}",
        error(&on_cpu),
        error(&on_device)
    );
}

/// TF32 has 11 binary digits; the error that is reported is that of the factors all the same.
#[test]
fn with_tf32_the_factors_are_nearly_as_good_and_the_error_is_true() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(plain) = extracted(&scratch, &pair, &[], &["--device", "cuda"]) else { return };
    let rough = extracted(&scratch, &pair, &[], &["--device", "cuda", "--tf32"]).unwrap();
    assert!(error(&rough) <= error(&plain) * 1.02 + 1e-6, "{} {}", error(&rough), error(&plain));
    // The error of the file that was written, in f64, module by module.
    let (base, tuned) = (read(&pair.0.join("model.safetensors")), read(&pair.1.join("model.safetensors")));
    let adapter = read(&scratch.join("adapter/adapter_model.safetensors"));
    for module in rough["modules"].as_array().expect("modules") {
        let name = module["module"].as_str().expect("a name");
        let factor = |which: &str| &adapter[&format!("base_model.model.{name}.lora_{which}.weight")];
        let (a, b) = (factor("A"), factor("B"));
        let (before, after) = (&base[&format!("{name}.weight")], &tuned[&format!("{name}.weight")]);
        let (rows, cols, rank) = (b.shape[0], a.shape[1], a.shape[0]);
        let (mut lost, mut size) = (0f64, 0f64);
        for i in 0..rows {
            for j in 0..cols {
                let change = after.values[i * cols + j] - before.values[i * cols + j];
                let found: f64 = (0..rank).map(|k| b.values[i * rank + k] * a.values[k * cols + j]).sum();
                lost += (change - found).powi(2);
                size += change.powi(2);
            }
        }
        let (said, found) = (module["relative_error"].as_f64().expect("an error"), (lost / size).sqrt());
        assert!((said - found).abs() < 1e-3 * found + 1e-7, "{name}: {said} is {found}");
    }
}

#[test]
fn work_is_dealt_over_several_devices() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let log = scratch.join("log");
    let path = text(&log);
    let settings = [("STANDIN_LOG", path.as_str()), ("STANDIN_DEVICES", "2")];
    let Some(both) = extracted(&scratch, &pair, &settings, &["--device", "cuda", "--threads", "4"]) else { return };
    has_note(&both, "computed on cuda:0");
    has_note(&both, "computed on cuda:1");
    let lines = fs::read_to_string(&log).unwrap();
    let used: BTreeSet<&str> = lines.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["device=0", "device=1"]);
    let one = extracted(&scratch, &pair, &[("STANDIN_DEVICES", "2")], &["--device", "cuda:1"]).unwrap();
    assert!(notes(&one).iter().all(|note| !note.contains("cuda:0")), "{:?}", notes(&one));
    assert_eq!(error(&one), error(&both));
}

#[test]
fn a_small_memory_is_made_do_with() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(expected) = extracted(&scratch, &pair, &[], &["--device", "cpu"]) else { return };
    let near = |found: &Value| assert!((error(found) - error(&expected)).abs() < 1e-3 * error(&expected));
    // Bounded by the user below what anything takes, and full from the start or in the middle.
    let bounded = extracted(&scratch, &pair, &[], &["--device", "cuda", "--device-memory", "64MB"]).unwrap();
    has_note(&bounded, "did not fit the device's memory and was decomposed on the CPU");
    near(&bounded);
    for n in [1, 7, 40] {
        let fail = format!("cuMemAllocAsync:{n}:2");
        let full = extracted(&scratch, &pair, &[("STANDIN_FAIL", &fail)], &["--device", "cuda"]).unwrap();
        has_note(&full, "computed on cuda:0");
        near(&full);
    }
    let fail = "cuMemAllocAsync:9+:2";
    let full = extracted(&scratch, &pair, &[("STANDIN_FAIL", fail)], &["--device", "cuda"]).unwrap();
    has_note(&full, "decomposed on the CPU");
    near(&full);
}

/// A matrix that does not fit crosses the bus in tiles, once for each pass, and the result is as good.
#[test]
fn a_matrix_beyond_the_memory_is_read_in_tiles() {
    tests(&["kernels::tiles_of_a_matrix"], &[]);
}

/// Whatever call fails, the work is done, and what was wrong is said.
#[test]
fn a_device_that_fails_is_left_alone() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(expected) = extracted(&scratch, &pair, &[], &["--device", "cpu"]) else { return };
    for fail in [
        "cuMemcpyHtoDAsync:3",
        "cuMemcpyDtoHAsync:5",
        "cuLaunchKernel:4",
        "cuStreamCreate:1",
        "cuMemHostAlloc:2",
        "cuEventSynchronize:30",
        "cublasCreate:1",
        "cublasSgemm:6",
        "cublasDgemm:2",
        "cuEventRecord:9:719",
    ] {
        let found = extracted(&scratch, &pair, &[("STANDIN_FAIL", fail)], &["--device", "cuda"]).unwrap();
        let gap = (error(&found) - error(&expected)).abs();
        assert!(gap < 1e-3 * error(&expected), "{fail}");
        let name = fail.split(':').next().unwrap_or_default();
        let said = notes(&found);
        assert!(
            said.iter().any(|n| n.contains("cuda:0 failed") && n.contains(name) || n.contains("did not fit")),
            "{fail}: {said:?}"
        );
    }
    // Merges as well, with the same bytes.
    let (base, adapter) = (fixtures::base("llama_bf16"), fixtures::adapter("bf16_all"));
    let (on_cpu, _) = merged(&[], &base, &adapter, "cpu", &scratch).unwrap();
    for fail in ["cuLaunchKernel:2", "cuMemcpyDtoHAsync:3:719", "cuMemAllocAsync:4"] {
        let (bytes, said) = merged(&[("STANDIN_FAIL", fail)], &base, &adapter, "cuda", &scratch).unwrap();
        assert!(bytes == on_cpu && (said.contains("failed") || said.contains("on the CPU")), "{fail}: {said}");
    }
}

/// Small work stays on the CPU by default: opening a device takes longer.
#[test]
fn by_default_a_device_is_used_where_it_pays() {
    let scratch = Scratch::new();
    let pair = pair(&scratch);
    let Some(found) = extracted(&scratch, &pair, &[], &[]) else { return };
    assert!(notes(&found).iter().all(|note| !note.contains("cuda")), "{:?}", notes(&found));
}
