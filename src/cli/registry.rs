//! `layouts` and `kernels`: what this build can do.

use clap::Args;
use ndarray::Array2;
use serde_json::json;

use super::output;
use crate::error::{Error, Result};
use crate::kernels::{self, Kernels};
use crate::layout::consumer::{CONSUMERS, Consumer};
use crate::layout::{Content, LAYOUTS, Layout};

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
        let held = |l: &dyn Layout| -> serde_json::Map<String, serde_json::Value> {
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

/// Runs `kernels`.
pub fn kernels(args: &KernelsArgs) -> Result<()> {
    let chosen = kernels::choose().name();
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for backend in kernels::present() {
        let use_word = if backend.name() == chosen { "used for --device cpu" } else { "the definition" };
        let error = if args.self_test { Some(self_test(backend.as_ref())?) } else { None };
        if error.is_some_and(|e| e > 1e-5) {
            wrong.push(backend.name());
        }
        rows.push((backend.name(), use_word, error));
    }
    if args.json {
        let all: Vec<_> = rows
            .iter()
            .map(|(name, about, error)| json!({ "name": name, "about": about, "self_test_error": error }))
            .collect();
        output::document(&json!({ "kernels": all }))?;
    } else {
        let shown = rows
            .iter()
            .map(|(name, about, error)| {
                vec![name.to_string(), about.to_string(), error.map_or_else(String::new, |e| format!("{e:.1e}"))]
            })
            .collect();
        let head: &[&str] = if args.self_test { &["backend", "", "error"] } else { &["backend", "", ""] };
        output::answer(&output::table(head, &[], shown))?;
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::mismatch(format!("wrong results from {}", wrong.join(", ")))
        .hint("please report it with `lora-tool --version`"))
}

/// Relative error of a product and of a singular value decomposition put together again, against f64 sums.
fn self_test(backend: &dyn Kernels) -> Result<f64> {
    let entry = |i: usize, j: usize, seed: usize| (((i * 31 + j * 17 + seed) % 101) as f32 - 50.0) / 50.0;
    let a = Array2::from_shape_fn((67, 43), |(i, j)| entry(i, j, 3));
    let b = Array2::from_shape_fn((43, 59), |(i, j)| entry(i, j, 8));
    let expected = a.mapv(f64::from).dot(&b.mapv(f64::from));
    let mut product = Array2::zeros((67, 59));
    backend.gemm(1.0, a.view(), b.view(), 0.0, product.view_mut())?;
    let svd = backend.svd(a.view())?;
    let again = (&svd.u * &svd.s).dot(&svd.vt);
    Ok(relative(&product, &expected).max(relative(&again, &a.mapv(f64::from))))
}

fn relative(found: &Array2<f32>, expected: &Array2<f64>) -> f64 {
    let difference = found.mapv(f64::from) - expected;
    let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
    norm(&difference) / norm(expected).max(f64::MIN_POSITIVE)
}
