//! How well changes are approximated, for people: one table for every command that gives adapters ranks.

use super::inspect::thousands;
use super::output;
use crate::ops::approximate::{ModuleReport, Overall};

/// Rows without `-v`: those of the modules that lose the most.
const SHOWN: usize = 20;

/// The table of modules, in order of their names, and a line on all of them.
pub fn text(modules: &[ModuleReport], overall: &Overall) -> String {
    let mut shown: Vec<&ModuleReport> = modules.iter().collect();
    if !output::is_verbose() {
        shown.sort_by(|a, b| b.lost.total_cmp(&a.lost));
        shown.truncate(SHOWN);
        shown.sort_by(|a, b| a.module.cmp(&b.module));
    }
    let head = ["module", "shape", "rank", "error", "energy kept", "largest", "smallest", "stable rank"];
    let rows = shown.iter().map(|m| row(m)).collect();
    let mut text = output::table(&head, &[2, 3, 4, 5, 6, 7], rows);
    if modules.len() > shown.len() {
        text += &format!("\n… {} more, which lose less; -v shows them", modules.len() - shown.len());
    }
    format!("{text}\n{}", summary(modules, overall))
}

fn row(m: &ModuleReport) -> Vec<String> {
    let (rows, cols) = m.shape;
    let stack = if m.matrices == 1 { String::new() } else { format!("{} × ", m.matrices) };
    let rank = m.rank_before.filter(|&before| before != m.rank).map_or(String::new(), |before| format!("{before} → "));
    vec![
        m.module.clone(),
        format!("{stack}{rows} × {cols}"),
        format!("{rank}{}", m.rank),
        error(m.relative_error),
        percent(m.energy_kept),
        format!("{:.3e}", m.sigma_max),
        format!("{:.3e}", m.sigma_min),
        m.stable_rank.map_or("–".to_string(), |r| format!("{r:.2}")),
    ]
}

fn summary(modules: &[ModuleReport], overall: &Overall) -> String {
    let (least, most) = overall.ranks;
    let ranks = if least == most { format!("rank {least}") } else { format!("ranks {least} to {most}") };
    let count = overall.modules;
    let mut text = format!(
        "{count} module{} of {ranks}, {} parameters: relative error {}, energy kept {}",
        if count == 1 { "" } else { "s" },
        thousands(overall.parameters),
        error(overall.relative_error),
        percent(overall.energy_kept),
    );
    let excess = modules.iter().map(|m| m.excess).fold(0.0, f64::max);
    if excess > 0.0 {
        text += &format!(", at most {} above the least possible", percent(excess));
    }
    text
}

/// A relative error. Below 1e-6 it is the rounding of f32, whose digits say nothing.
fn error(value: f64) -> String {
    match value {
        v if v < 1e-6 => "< 1e-6".to_string(),
        v if v < 1e-2 => format!("{v:.2e}"),
        v => format!("{v:.4}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
