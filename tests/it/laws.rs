//! What holds for the whole house, found by reading its sources and walking its tables: floors, circles, `unsafe`,
//! printing, and that everything registered is written down and has a fixture.

use std::collections::{BTreeMap, BTreeSet};

use lora_tool::layout::LAYOUTS;
use lora_tool::layout::peft::tuner::TUNERS;

use crate::fixtures;
use crate::sources::{self, SourceFile, Uses, project};

/// Which rooms a room may use. Why each of the others is missing is in `docs/architecture.md`.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("limits", &[]),
    ("tensor", &["error", "limits"]),
    ("names", &["error", "limits"]),
    ("container", &["error", "limits", "tensor"]),
    ("kernels", &["error", "limits", "tensor"]),
    ("linalg", &["error", "limits", "tensor", "kernels"]),
    ("adapter", &["error", "limits", "tensor", "names", "kernels", "linalg"]),
    ("stream", &["error", "limits", "tensor", "container", "kernels"]),
    ("model", &["error", "limits", "tensor", "names", "container"]),
    ("layout", &["error", "limits", "tensor", "names", "container", "adapter"]),
    ("ops", &["error", "limits", "tensor", "names", "kernels", "linalg", "adapter", "stream", "model"]),
    (
        "cli",
        &[
            "error",
            "limits",
            "tensor",
            "names",
            "container",
            "kernels",
            "linalg",
            "adapter",
            "stream",
            "model",
            "layout",
            "ops",
        ],
    ),
];

/// Where `unsafe` may stand: mapping, a signal handler, foreign functions, vector instructions, devices.
const UNSAFE: &[&str] =
    &["tensor/bytes.rs", "tensor/heap.rs", "tensor/fatal.rs", "kernels/openblas.rs", "kernels/fused/", "kernels/cuda/"];

/// What only the command line does: print, read the environment, end the process.
const CLI_ONLY: &[&str] =
    &["println", "print", "eprintln", "eprint", "dbg", "stdout", "stderr", "stdin", "env", "exit", "abort"];

fn fail_with(broken: &[String]) {
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Floors as the table at the top of `src/lib.rs` gives them.
fn floors(sources: &[SourceFile]) -> BTreeMap<String, u32> {
    let lib = sources.iter().find(|s| s.path == "lib.rs").expect("src/lib.rs");
    let mut out = BTreeMap::new();
    for line in lib.text.lines() {
        let Some(row) = line.strip_prefix("//! | ") else { continue };
        let Some((floor, rooms)) = row.split_once(" | ") else { continue };
        let Ok(floor) = floor.trim().parse() else { continue };
        for name in rooms.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")) {
            out.insert(name.0.to_string(), floor);
        }
    }
    out
}

/// Uses of other rooms: (file and line, room, room used).
fn room_uses(sources: &[SourceFile]) -> Vec<(String, String, String)> {
    let uses = Uses::of(sources);
    let mut out = Vec::new();
    for source in sources {
        let Some(room) = source.room() else { continue };
        for (number, module) in uses.modules(source) {
            if let Some(used) = module.first().filter(|used| *used != room) {
                out.push((format!("src/{}:{number}", source.path), room.to_string(), used.clone()));
            }
        }
    }
    out
}

#[test]
fn every_room_has_its_floor_and_its_line() {
    let sources = sources::all();
    let floors = floors(&sources);
    let rooms: BTreeSet<_> = sources.iter().filter_map(|s| s.room()).map(str::to_string).collect();
    assert_eq!(rooms, floors.keys().cloned().collect(), "rooms under src against the table of floors in src/lib.rs");
    assert_eq!(rooms, MAY_USE.iter().map(|(room, _)| (*room).to_string()).collect(), "rooms against MAY_USE");
    let upward = |(room, used): (&str, &str)| floors[used] >= floors[room];
    let pairs = MAY_USE.iter().flat_map(|(room, all)| all.iter().map(move |used| (*room, *used)));
    assert_eq!(pairs.filter(|p| upward(*p)).collect::<Vec<_>>(), [], "MAY_USE points upward or sideways");
}

#[test]
fn nothing_imports_upward_or_from_a_room_that_is_none_of_its_business() {
    let sources = sources::all();
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    let uses = room_uses(&sources);
    assert!(uses.len() > 100, "only {} uses of other rooms were found: is this reading the sources?", uses.len());
    let broken: Vec<_> = uses
        .iter()
        .filter(|(_, room, used)| !allowed.get(room.as_str()).is_some_and(|all| all.contains(&used.as_str())))
        .map(|(place, room, used)| format!("{place}: {room} uses {used}"))
        .collect();
    fail_with(&broken);
}

#[test]
fn files_do_not_use_each_other_in_a_circle() {
    // A parent that holds what its children have in common, or hands their names on, is no circle.
    let sources = sources::all();
    let uses = Uses::of(&sources);
    let modules: BTreeMap<_, _> = sources.iter().map(|s| (s.path.as_str(), s.module.as_slice())).collect();
    let is_family = |a: &str, b: &str| modules[a].starts_with(modules[b]) || modules[b].starts_with(modules[a]);
    let graph: BTreeMap<String, Vec<String>> = sources
        .iter()
        .map(|s| (s.path.clone(), uses.files(s).into_iter().filter(|f| !is_family(&s.path, f)).collect()))
        .collect();
    assert!(graph.values().map(Vec::len).sum::<usize>() > 100, "hardly any file uses another: is this reading them?");
    if let Some(circle) = circle(&graph) {
        panic!("files in a circle: {}", circle.join(" → "));
    }
}

/// The first circle of a graph.
fn circle(graph: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    fn visit<'a>(
        node: &'a str,
        graph: &'a BTreeMap<String, Vec<String>>,
        trail: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<String>> {
        if let Some(start) = trail.iter().position(|n| *n == node) {
            let mut found: Vec<String> = trail[start..].iter().map(|n| (*n).to_string()).collect();
            found.push(node.to_string());
            return Some(found);
        }
        if !done.insert(node) {
            return None;
        }
        trail.push(node);
        for next in graph.get(node).into_iter().flatten() {
            if let Some(found) = visit(next, graph, trail, done) {
                return Some(found);
            }
        }
        trail.pop();
        None
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| visit(node, graph, &mut Vec::new(), &mut done))
}

#[test]
fn a_circle_would_be_found() {
    let graph = |arrows: &[(&str, &[&str])]| -> BTreeMap<String, Vec<String>> {
        arrows.iter().map(|(a, to)| (a.to_string(), to.iter().map(|b| (*b).to_string()).collect())).collect()
    };
    assert_eq!(circle(&graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), None);
    let found = circle(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])])).expect("a circle");
    assert_eq!(found, ["b", "c", "b"]);
}

#[test]
fn unsafe_stands_at_its_addresses_only() {
    let broken: Vec<_> = sources::all()
        .iter()
        .filter(|s| !UNSAFE.iter().any(|place| s.path.starts_with(place)))
        .flat_map(|s| s.lines_with("unsafe").into_iter().map(|n| format!("src/{}:{n}: unsafe", s.path)))
        .collect();
    fail_with(&broken);
}

#[test]
fn only_cli_speaks_to_the_world() {
    let broken: Vec<_> = sources::all()
        .iter()
        .filter(|s| s.room().is_some_and(|room| room != "cli") && !s.path.ends_with("tests.rs"))
        .flat_map(|s| {
            let lines = CLI_ONLY.iter().flat_map(|word| s.lines_with(word).into_iter().map(move |n| (n, *word)));
            lines.map(|(n, word)| format!("src/{}:{n}: {word}", s.path)).collect::<Vec<_>>()
        })
        .collect();
    fail_with(&broken);
}

#[test]
fn every_file_says_what_it_is() {
    let broken: Vec<_> = sources::all()
        .iter()
        .filter(|s| !s.text.starts_with("//! "))
        .map(|s| format!("src/{} does not open with a module comment", s.path))
        .collect();
    fail_with(&broken);
}

fn page(layout: &str) -> String {
    let path = project().join("docs/layouts").join(format!("{layout}.md"));
    std::fs::read_to_string(&path).unwrap_or_default()
}

#[test]
fn every_layout_has_its_page() {
    let missing = LAYOUTS.iter().map(|l| l.name()).filter(|name| page(name).is_empty());
    let broken: Vec<_> = missing.map(|name| format!("docs/layouts/{name}.md is not there")).collect();
    fail_with(&broken);
}

#[test]
fn every_tuner_is_written_down_and_has_a_fixture() {
    let page = page("peft");
    let fixtures: BTreeSet<_> = fixtures::cases("peft").iter().filter_map(peft_type).collect();
    let mut broken = Vec::new();
    for tuner in TUNERS {
        if !page.contains(&format!("`{}`", tuner.peft_type)) {
            broken.push(format!("docs/layouts/peft.md does not name `{}`", tuner.peft_type));
        }
        if !fixtures.contains(tuner.peft_type) {
            broken.push(format!("no fixture has peft_type {}", tuner.peft_type));
        }
    }
    fail_with(&broken);
}

#[test]
fn the_readme_names_the_tuners_that_can_be_merged_and_no_others() {
    let readme = std::fs::read_to_string(project().join("README.md")).expect("README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| `") && !line.contains("modules_to_save"));
    let cells = rows.filter_map(|line| line.split('|').nth(1));
    let named: BTreeSet<_> =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).filter(|w| *w != "peft_type").collect();
    assert_eq!(named, TUNERS.iter().map(|t| t.peft_type).collect(), "the table in README.md against TUNERS");
}

fn peft_type(case: &fixtures::Case) -> Option<String> {
    let text = std::fs::read_to_string(case.adapter().join("adapter_config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(config.get("peft_type")?.as_str()?.to_string())
}
