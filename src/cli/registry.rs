//! `layouts` and `kernels`: what this build can do; `help limits`: how much.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::args::folders_of_libraries;
use super::output;
use crate::error::{Error, Result};
use crate::kernels::choice;
use crate::layout::consumer::{CONSUMERS, Consumer};
use crate::layout::{Content, LAYOUTS, Layout};
use crate::limits;
use crate::tensor::size;

/// List the adapter layouts this build reads and writes, what each can hold, and the programs it writes for.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  lora-tool layouts --json")]
pub struct LayoutsArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// List the compute backends of this machine.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  lora-tool kernels --self-test")]
pub struct KernelsArgs {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Compare each backend with the reference
    #[arg(long)]
    self_test: bool,
}

/// Runs `layouts`.
pub fn layouts(args: &LayoutsArgs) -> Result<()> {
    if args.json {
        let held = |l: &dyn Layout| -> serde_json::Map<String, Value> {
            Content::ALL.iter().map(|c| (c.word().to_string(), json!(l.holds(*c).word()))).collect()
        };
        let line = |l: &&dyn Layout| json!({ "name": l.name(), "about": l.about(), "write": l.can_write(), "holds": held(*l) });
        let all: Vec<_> = LAYOUTS.iter().map(line).collect();
        let program = |c: &Consumer| json!({ "name": c.name, "layout": c.layout, "about": c.about });
        let programs: Vec<_> = CONSUMERS.iter().map(program).collect();
        return output::document(&json!({ "layouts": all, "programs": programs }));
    }
    let can = |l: &dyn Layout| if l.can_write() { "read, write" } else { "read" };
    let line = |l: &&dyn Layout| [l.name(), can(*l), l.about()].map(str::to_string).to_vec();
    output::answer(&output::table(&["layout", "", "what it is"], &[], LAYOUTS.iter().map(line).collect()))?;
    let heads: Vec<&str> = std::iter::once("holds").chain(LAYOUTS.iter().map(|l| l.name())).collect();
    let row = |content: &Content| {
        let cells = LAYOUTS.iter().map(|l| l.holds(*content).word().to_string());
        std::iter::once(content.word().to_string()).chain(cells).collect()
    };
    output::answer(&format!("\n{}", output::table(&heads, &[], Content::ALL.iter().map(row).collect())))?;
    let program = |c: &Consumer| [c.name, c.layout, c.about].map(str::to_string).to_vec();
    let rows = CONSUMERS.iter().map(program).collect();
    output::answer(&format!("\n{}", output::table(&["--for", "layout", "what reads it"], &[], rows)))
}

/// Prints what `help limits` asks for.
pub fn limits() -> Result<()> {
    let rows = limits::ALL.iter().map(|limit| vec![limit.what.to_string(), limit.to_string()]).collect();
    output::answer(&output::table(&["what", "at most"], &[], rows))
}

/// A backend as it is listed.
struct Listed {
    name: &'static str,
    /// What it is for, or why it cannot run here.
    about: String,
    error: Option<f64>,
    is_present: bool,
}

/// Runs `kernels`.
pub fn kernels(args: &KernelsArgs) -> Result<()> {
    let folders = folders_of_libraries();
    let mut listed = Vec::new();
    for (name, backend) in choice::all(&folders) {
        let (about, error) = match &backend {
            Ok(backend) => {
                let about = match name {
                    "reference" => "the definition",
                    "cuda" => "used for --device cuda, and for long decompositions by default",
                    _ => "used for --device cpu",
                };
                (about.to_string(), if args.self_test { Some(choice::self_test(backend.as_ref())?) } else { None })
            }
            Err(why) => (format!("absent: {}", why.what()), None),
        };
        let error = error.map(|e| if e.is_finite() { e } else { f64::MAX });
        listed.push(Listed { name, about, error, is_present: backend.is_ok() });
    }
    let devices = devices(&folders);
    if args.json {
        let all: Vec<_> = listed
            .iter()
            .map(|l| json!({ "name": l.name, "about": l.about, "present": l.is_present, "self_test_error": l.error }))
            .collect();
        output::document(&json!({ "kernels": all, "devices": devices }))?;
    } else {
        let row = |l: &Listed| {
            let error = l.error.map_or_else(String::new, |e| format!("{e:.1e}"));
            vec![l.name.to_string(), l.about.clone(), error]
        };
        let head: &[&str] = if args.self_test { &["backend", "", "error"] } else { &["backend", "", ""] };
        output::answer(&output::table(head, &[], listed.iter().map(row).collect()))?;
        if let Some(text) = text_of(&devices) {
            output::answer(&text)?;
        }
    }
    let wrong: Vec<_> =
        listed.iter().filter(|l| l.error.is_some_and(|e| e > choice::MOST_ERROR)).map(|l| l.name).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::mismatch(format!("wrong results from {}", wrong.join(", ")))
        .hint("please report it with `lora-tool --version`"))
}

/// The devices and the versions of what works on them; null where there is nothing.
#[cfg(feature = "cuda")]
fn devices(folders: &[PathBuf]) -> Value {
    let Ok(found) = crate::kernels::cuda::present(folders) else { return Value::Null };
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let list = found.devices.iter().map(|d| {
        json!({
            "device": format!("cuda:{}", d.number), "name": d.name, "memory": d.memory,
            "compute_capability": version(d.capability),
        })
    });
    json!({
        "cuda": list.collect::<Vec<_>>(), "driver_cuda": version(found.driver),
        "nvrtc": found.compiler.map(version), "cublas": found.cublas, "cusolver": found.cusolver,
    })
}

#[cfg(not(feature = "cuda"))]
fn devices(_: &[PathBuf]) -> Value {
    Value::Null
}

/// The same for people.
fn text_of(devices: &Value) -> Option<String> {
    let list = devices["cuda"].as_array().filter(|list| !list.is_empty())?;
    let word = |value: &Value| value.as_str().unwrap_or("unknown").to_string();
    let row = |d: &Value| {
        let memory = size::show(d["memory"].as_u64().unwrap_or(0));
        vec![word(&d["device"]), word(&d["name"]), memory, word(&d["compute_capability"])]
    };
    let head = ["device", "name", "memory", "compute capability"];
    let table = output::table(&head, &[], list.iter().map(row).collect());
    let versions =
        [("driver for CUDA", "driver_cuda"), ("NVRTC", "nvrtc"), ("cuBLAS", "cublas"), ("cuSOLVER", "cusolver")]
            .map(|(name, key)| format!("{name} {}", word(&devices[key])));
    Some(format!("\n{table}\n{}", versions.join(" · ")))
}
