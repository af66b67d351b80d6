//! Searches and listings over the tables of `fixtures/names`, and over names that no model has.

use std::collections::HashSet;
use std::path::Path;

use super::super::place::{How, Piece, Region};
use super::*;

/// A table of `fixtures/names`; `fixtures/make/names.py` says how to read one.
#[derive(Default)]
struct Table {
    model_types: Vec<String>,
    disk: Vec<(String, Vec<usize>)>,
    memory: Vec<Tensor>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    /// `None`: it cannot be described by parts.
    pieces: Option<Vec<Piece>>,
}

fn table(path: &Path) -> Table {
    let mut table = Table::default();
    let shape = |text: &str| text.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.as_slice() {
            ["#", words @ ..] => table.model_types = words.iter().map(|word| (*word).to_owned()).collect(),
            ["=", name, dims] => {
                table.disk.push(((*name).to_owned(), shape(dims)));
                let pieces = Some(vec![Piece::whole(*name)]);
                table.memory.push(Tensor { name: (*name).to_owned(), shape: shape(dims), pieces });
            }
            ["K", name, dims] => table.disk.push(((*name).to_owned(), shape(dims))),
            [kind @ ("M" | "X"), name, dims] => {
                let pieces = (*kind == "M").then(Vec::new);
                table.memory.push(Tensor { name: (*name).to_owned(), shape: shape(dims), pieces });
            }
            ["P", memory, key, disk, rest @ ..] => {
                let piece = Piece {
                    key: (*key).to_owned(),
                    memory: region(memory),
                    disk: region(disk),
                    transposed: rest == ["T"],
                };
                table.memory.last_mut().unwrap().pieces.as_mut().unwrap().push(piece);
            }
            _ => panic!("{line}"),
        }
    }
    table
}

fn region(text: &str) -> Region {
    let mut region = Region::ALL;
    for part in text.split(' ').filter(|part| *part != "*") {
        let (letter, rest) = part.split_at(1);
        let range = || rest.split_once(':').map(|(a, b)| a.parse().unwrap()..b.parse().unwrap());
        match letter {
            "e" => region.expert = rest.parse().ok(),
            "r" => region.rows = range(),
            "c" => region.cols = range(),
            _ => panic!("{part}"),
        }
    }
    region
}

fn sorted(mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_by_key(|piece| format!("{piece:?}"));
    pieces
}

/// What is wrong with the answers to the names of a table.
fn faults(table: &Table) -> Vec<String> {
    let index = Index::new(table.disk.iter().cloned(), &table.model_types);
    let mut faults = Vec::new();
    for Tensor { name, shape, pieces } in &table.memory {
        let found = index.find(name);
        let wanted = pieces.clone().map(sorted);
        let got = found.clone().map(|found| sorted(found.pieces));
        if got != wanted {
            faults.push(format!("{name}: found {got:?}, expected {wanted:?}"));
        } else if found.as_ref().is_some_and(|found| found.memory_shape != *shape) {
            faults.push(format!("{name}: found shape {:?}, expected {shape:?}", found.unwrap().memory_shape));
        }
    }
    faults
}

/// The tables, by the names of their files.
fn tables() -> Vec<(String, Table)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/names");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let tables: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "tsv"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), table(&path)))
        .collect();
    assert!(!tables.is_empty());
    tables
}

fn none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn names_of_real_models_are_found_where_they_were_saved() {
    let faults = |(name, table): &(String, Table)| -> Vec<String> {
        faults(table).into_iter().map(|fault| format!("{name}: {fault}")).collect()
    };
    none(&tables().iter().flat_map(faults).collect::<Vec<_>>());
}

#[test]
fn the_list_of_a_real_model_is_what_it_has_in_memory() {
    let mut all = Vec::new();
    for (model, table) in tables() {
        let listing = Index::new(table.disk.iter().cloned(), &table.model_types).memory();
        let listed: HashMap<_, _> = listing.tensors.iter().map(|(name, found)| (name.as_str(), found)).collect();
        let mut in_parts: HashSet<&str> = HashSet::new();
        for Tensor { name, shape, pieces } in &table.memory {
            let found = listed.get(name.as_str());
            match pieces {
                Some(pieces) if found.is_none_or(|found| found.memory_shape != *shape) => {
                    all.push(format!("{model}: {name} {shape:?} of {pieces:?} is listed as {found:?}"));
                }
                None if found.is_some() => all.push(format!("{model}: {name} cannot be described, but is")),
                _ => {}
            }
            in_parts.extend(pieces.iter().flatten().map(|piece| piece.key.as_str()));
        }
        // The tables have no counters; those have one name.
        let known: HashSet<&str> = table.memory.iter().map(|tensor| tensor.name.as_str()).collect();
        let others = listed.keys().filter(|name| !known.contains(**name) && in_parts.contains(**name));
        all.extend(others.map(|name| format!("{model}: {name} is not in memory")));
    }
    none(&all);
}

/// How often each element of each tensor on disk is in the list.
fn uses(disk: &[(String, Vec<usize>)], listing: &Listing) -> HashMap<String, Vec<u8>> {
    let mut uses: HashMap<_, _> =
        disk.iter().map(|(key, shape)| (key.clone(), vec![0u8; shape.iter().product()])).collect();
    let shapes: HashMap<_, _> = disk.iter().cloned().collect();
    for Piece { key, disk, .. } in listing.tensors.iter().flat_map(|(_, found)| &found.pieces) {
        let (shape, used) = (&shapes[key], uses.get_mut(key).unwrap());
        let axes = usize::from(disk.expert.is_some());
        let width: usize = shape.iter().skip(axes + 1).product();
        let rows = shape.get(axes).copied().unwrap_or(1);
        let start = disk.expert.unwrap_or(0) * rows * width;
        for row in disk.rows.clone().unwrap_or(0..rows) {
            for col in disk.cols.clone().unwrap_or(0..width) {
                used[start + row * width + col] += 1;
            }
        }
    }
    uses
}

#[test]
fn a_list_has_every_part_of_every_key_once() {
    for (model, table) in tables() {
        let index = Index::new(table.disk.iter().cloned(), &table.model_types);
        let listing = index.memory();
        for (key, uses) in uses(&table.disk, &listing) {
            let most = u8::from(!listing.unplaced.contains(&key));
            assert!(uses.iter().all(|n| *n == 1 || *n == most), "{model}: {key} {uses:?}");
        }
        for (name, found) in &listing.tensors {
            assert_eq!(index.find(name).as_ref(), Some(found), "{model}: {name}");
        }
    }
}

#[test]
fn keys_without_a_place_are_said() {
    let mut names = single_experts("model.layers.0.mlp.experts", ["gate_proj", "up_proj", "down_proj"], 1);
    names.push(("model.norm.weight".into(), vec![8]));
    let listing = Index::new(names.clone(), &["qwen3_moe".to_owned()]).memory();
    assert_eq!(listing.tensors.len(), 1);
    assert_eq!(listing.unplaced.len(), 6);
    // Queries and keys are turned, values are not.
    let key = "vision_tower.encoder.blocks.0.wqkv.weight";
    let listing = index(&["kimi_k25"], &[(key, &[12, 4])]).memory();
    assert_eq!(listing.unplaced, [key]);
    assert_eq!(listing.tensors.len(), 1);
}

#[test]
fn a_list_has_the_prefix_of_the_class() {
    let names = |types: &[&str], keys: &[&str]| -> Vec<String> {
        let disk: Vec<_> = keys.iter().map(|key| (*key, &[4][..])).collect();
        index(types, &disk).memory().tensors.into_iter().map(|(name, _)| name).collect()
    };
    let keys = ["h.0.ln_1.weight", "wte.weight"];
    assert_eq!(names(&["gpt2", "GPT2LMHeadModel"], &keys), keys.map(|key| format!("transformer.{key}")));
    assert_eq!(names(&["gpt2", "GPT2Model"], &keys), keys);
    let keys = ["layers.0.attn.wq_a.weight", "norm.weight", "head.weight"];
    assert_eq!(
        names(&["deepseek_v4", "DeepseekV4ForCausalLM"], &keys),
        ["model.layers.0.self_attn.q_a_proj.weight", "model.norm.weight", "lm_head.weight"]
    );
}

fn index(model_types: &[&str], names: &[(&str, &[usize])]) -> Index {
    let types: Vec<String> = model_types.iter().map(|word| (*word).to_owned()).collect();
    Index::new(names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())), &types)
}

fn plain(index: &Index, name: &str) -> Option<String> {
    Some(index.find(name)?.plain().unwrap().to_owned())
}

#[test]
fn both_places_of_a_language_model_are_found() {
    let disk = [
        ("language_model.model.layers.0.mlp.up_proj.weight", &[6, 4][..]),
        ("language_model.lm_head.weight", &[9, 4]),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", &[5, 3]),
        ("multi_modal_projector.linear_1.weight", &[4, 3]),
    ];
    let spellings: [&[&str]; 4] = [
        &[
            "model.language_model.layers.0.mlp.up_proj.weight",
            "language_model.model.layers.0.mlp.up_proj.weight",
            "language_model.layers.0.mlp.up_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "layers.0.mlp.up_proj.weight",
            "base_model.model.model.layers.0.mlp.up_proj.weight",
        ],
        &["lm_head.weight", "language_model.lm_head.weight"],
        &[
            "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
            "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
            "vision_tower.encoder.layers.0.mlp.fc1.weight",
        ],
        &["model.multi_modal_projector.linear_1.weight"],
    ];
    for types in [&["llava", "LlavaForConditionalGeneration", "llama", "clip_vision_model"][..], &[]] {
        let index = index(types, &disk);
        for ((key, _), names) in disk.iter().zip(spellings) {
            for name in names {
                assert_eq!(plain(&index, name).as_deref(), Some(*key), "{name} of {types:?}");
            }
        }
        // Neither tower nor layer is taken for another.
        for name in ["model.encoder.layers.0.mlp.fc1.weight", "layers.1.mlp.up_proj.weight", "model.linear_1.weight"] {
            assert_eq!(index.find(name), None, "{name}");
        }
    }
}

#[test]
fn a_model_with_and_without_its_head_is_the_same() {
    let bert = index(&["bert"], &[("bert.encoder.layer.0.output.dense.weight", &[4, 4])]);
    assert!(plain(&bert, "encoder.layer.0.output.dense.weight").is_some());
    let bare = index(&["bert"], &[("encoder.layer.0.output.dense.weight", &[4, 4])]);
    assert!(plain(&bare, "bert.encoder.layer.0.output.dense.weight").is_some());
    let gpt2 = index(&["gpt2"], &[("h.0.attn.c_attn.weight", &[4, 12])]);
    assert!(plain(&gpt2, "transformer.h.0.attn.c_attn.weight").is_some());
    let neox = index(&[], &[("embed_out.weight", &[9, 4]), ("gpt_neox.embed_in.weight", &[9, 4])]);
    assert_eq!(plain(&neox, "lm_head.weight").as_deref(), Some("embed_out.weight"));
}

#[test]
fn two_candidates_are_none() {
    let two = index(&[], &[("model.layers.0.w.weight", &[4]), ("language_model.layers.0.w.weight", &[4])]);
    assert_eq!(two.find("layers.0.w.weight"), None);
    assert!(two.find("model.layers.0.w.weight").is_some_and(|found| found.how == How::Direct));
}

#[test]
fn how_it_was_found_is_said() {
    let mixtral =
        index(&["mixtral"], &[("model.layers.0.block_sparse_moe.gate.weight", &[2, 4]), ("model.norm.weight", &[4])]);
    let how = |name: &str| mixtral.find(name).map(|found| found.how);
    assert_eq!(how("model.layers.0.block_sparse_moe.gate.weight"), Some(How::Direct));
    assert_eq!(how("model.layers.0.mlp.gate.weight"), Some(How::Renamed("mixtral")));
    assert_eq!(how("norm.weight"), Some(How::Equivalent));
    assert_eq!(how("base_model.model.model.norm.weight"), Some(How::Suffix));
    assert_eq!(how("model.layers.1.mlp.gate.weight"), None);
    let clippable = index(&["gemma4"], &[("model.layers.0.q_proj.linear.weight", &[4, 4])]);
    assert!(clippable.find("model.layers.0.q_proj.weight").is_some());
}

/// Three experts of hidden size 8 and intermediate size 6, one by one.
fn single_experts(module: &str, leaves: [&str; 3], skip: usize) -> Vec<(String, Vec<usize>)> {
    let leaf = |expert: usize, leaf: &str| format!("{module}.{expert}.{leaf}.weight");
    (0..3)
        .filter(|expert| *expert != skip)
        .flat_map(|e| {
            leaves.iter().zip([[6, 8], [6, 8], [8, 6]]).map(move |(name, shape)| (leaf(e, name), shape.to_vec()))
        })
        .collect()
}

#[test]
fn single_experts_make_a_fused_tensor() {
    let (mixtral, qwen) = (["w1", "w3", "w2"], ["gate_proj", "up_proj", "down_proj"]);
    // The last is of no family that is known.
    for (types, module, leaves, memory) in [
        (&["mixtral"][..], "model.layers.0.block_sparse_moe.experts", mixtral, "model.layers.0.mlp.experts"),
        (&["qwen3_moe"], "model.layers.0.mlp.experts", qwen, "model.layers.0.mlp.experts"),
        (&["lfm2_moe"], "model.layers.0.feed_forward.experts", mixtral, "layers.0.feed_forward.experts"),
        (&["not_known_yet"], "model.layers.0.moe.experts", qwen, "model.layers.0.moe.experts"),
    ] {
        let types: Vec<String> = types.iter().map(|word| (*word).to_owned()).collect();
        let index = Index::new(single_experts(module, leaves, 9), &types);
        let found = index.find(&format!("{memory}.gate_up_proj")).unwrap();
        assert_eq!((found.memory_shape.as_slice(), found.pieces.len()), (&[3, 12, 8][..], 6));
        let up = Piece {
            memory: Region { expert: Some(2), rows: Some(6..12), cols: None },
            ..Piece::whole(format!("{module}.2.{}.weight", leaves[1]))
        };
        assert!(found.pieces.contains(&up), "{types:?}");
        assert_eq!(index.find(&format!("{memory}.down_proj")).unwrap().memory_shape, [3, 8, 6]);
        // One by one, by any of the names.
        for (name, leaf) in [("up_proj", leaves[1]), ("w3", leaves[1]), ("down_proj", leaves[2]), ("w1", leaves[0])] {
            let key = format!("{module}.1.{leaf}.weight");
            assert_eq!(plain(&index, &format!("{memory}.1.{name}.weight")), Some(key), "{name} of {types:?}");
        }
        assert_eq!(index.find(&format!("{memory}.3.{}.weight", leaves[0])), None);
        // One is missing.
        let index = Index::new(single_experts(module, leaves, 1), &types);
        assert_eq!(index.find(&format!("{memory}.gate_up_proj")), None);
    }
}

#[test]
fn experts_of_different_shapes_are_none() {
    let mut names = single_experts("mlp.experts", ["gate_proj", "up_proj", "down_proj"], 9);
    names[3].1 = vec![7, 8];
    let index = Index::new(names, &["qwen3_moe".to_owned()]);
    assert_eq!(index.find("mlp.experts.gate_up_proj"), None);
    assert!(index.find("mlp.experts.down_proj").is_some());
}

#[test]
fn a_fused_tensor_has_parts_for_single_experts() {
    let fused = |module: &str, transposed: bool| -> Vec<(String, Vec<usize>)> {
        let (gate_up, down) = if transposed { ([3, 8, 12], [3, 6, 8]) } else { ([3, 12, 8], [3, 8, 6]) };
        vec![(format!("{module}.gate_up_proj"), gate_up.into()), (format!("{module}.down_proj"), down.into())]
    };
    let module = "model.language_model.layers.0.mlp.experts";
    for (types, transposed) in [("qwen3_vl_moe", true), ("llama4", true), ("qwen3_5_moe", false), ("", false)] {
        let index = Index::new(fused(module, transposed), &[types.to_owned()]);
        let found = index.find("model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
        let region = Region { expert: Some(1), ..Region::ALL };
        let disk = if transposed {
            Region { cols: Some(6..12), ..region.clone() }
        } else {
            Region { rows: Some(6..12), ..region.clone() }
        };
        let piece = |leaf: &str| Piece { transposed, ..Piece::whole(format!("{module}.{leaf}")) };
        assert_eq!(found.pieces, [Piece { disk, ..piece("gate_up_proj") }], "{types}");
        assert_eq!(found.memory_shape, [6, 8]);
        let found = index.find(&format!("{module}.2.w2.weight")).unwrap();
        assert_eq!(found.pieces, [Piece { disk: Region::expert(2), ..piece("down_proj") }], "{types}");
        assert_eq!(found.memory_shape, [8, 6]);
    }
    // Gate and up alternate here.
    let mut names = fused(module, true);
    assert_eq!(Index::new(names.clone(), &["gpt_oss".to_owned()]).find(&format!("{module}.0.up_proj.weight")), None);
    names.push((format!("{module}.gate_up_proj_bias"), vec![3, 12]));
    assert_eq!(Index::new(names, &[]).find(&format!("{module}.0.up_proj.weight")), None);
}

#[test]
fn experts_that_lie_transposed_are_turned_once() {
    let name = "model.language_model.layers.0.mlp.experts.gate_up_proj";
    let down = "model.language_model.layers.0.mlp.experts.down_proj";
    let types = ["qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"];
    let found = index(&types, &[(name, &[3, 8, 12]), (down, &[3, 6, 8])]).find(name).unwrap();
    assert_eq!(found.memory_shape, [3, 12, 8]);
    assert_eq!(found.pieces, [Piece { transposed: true, ..Piece::whole(name) }]);
    let found = index(&types, &[(name, &[3, 12, 8]), (down, &[3, 8, 6])]).find(name).unwrap();
    assert_eq!((found.plain(), found.memory_shape.as_slice()), (Some(name), &[3, 12, 8][..]));
}

#[test]
fn what_ranges_cannot_say_is_not_found() {
    let kimi = index(&["kimi_k25"], &[("vision_tower.encoder.blocks.0.wqkv.weight", &[12, 4])]);
    assert_eq!(kimi.find("model.vision_tower.layers.0.attn.q_proj.weight"), None);
    let v = kimi.find("model.vision_tower.layers.0.attn.v_proj.weight").unwrap();
    assert_eq!((&v.pieces[0].disk, v.memory_shape.as_slice()), (&Region::rows(8..12), &[4, 4][..]));
    let uneven = index(&["gte"], &[("new.encoder.layer.0.attention.qkv_proj.weight", &[13, 4])]);
    assert_eq!(uneven.find("layers.0.self_attn.q_proj.weight"), None);
}

#[test]
fn text_and_vision_experts_share_one_list() {
    let mut names = Vec::new();
    for expert in 0..4 {
        let size = if expert < 2 { 6 } else { 2 };
        names.push((format!("model.layers.1.mlp.experts.{expert}.down_proj.weight"), vec![8, size]));
    }
    let index = Index::new(names, &["ernie4_5_vl_moe".to_owned()]);
    let found = index.find("model.language_model.layers.1.mlp.vision_moe.experts.down_proj").unwrap();
    let keys: Vec<_> = found.pieces.iter().map(|piece| (piece.memory.expert, piece.key.as_str())).collect();
    let key = |expert: usize| format!("model.layers.1.mlp.experts.{expert}.down_proj.weight");
    assert_eq!(keys, [(Some(0), key(2).as_str()), (Some(1), key(3).as_str())]);
    assert_eq!(found.memory_shape, [2, 8, 2]);
}

#[test]
fn the_nearest_name_has_the_same_numbers_if_it_can() {
    let names = ["model.layers.0.attn.q_proj.weight", "model.layers.1.attn.q_proj.weight", "model.norm.weight"];
    let index = index(&[], &names.map(|name| (name, &[4][..])));
    assert_eq!(index.nearest("layers.1.self_attn.q_proj.weight").as_deref(), Some(names[1]));
    assert_eq!(index.nearest("layers.7.self_attn.q_proj.weight").as_deref(), Some(names[0]));
    assert_eq!(index.nearest("something.else"), None);
    assert_eq!(Index::default().nearest(""), None);
}

#[test]
fn hostile_names_and_shapes_do_no_harm() {
    let most = usize::MAX;
    let shapes: [&[usize]; 7] =
        [&[], &[0], &[most], &[most, most], &[3, 0, most], &[most, 0, most], &[1, most, most - 1]];
    let names = ["", ".", "...", "experts.0.w1.weight", "a.experts.gate_up_proj", "a.experts.down_proj"];
    let more = ["layers.73007300730001.weight", "é.experts.00.w1.weight", "a.experts.18446744073709551616.w1.weight"];
    for shape in shapes {
        for types in ["mixtral", "qwen3_vl_moe", "step3p7", "llama4", "gte", "ernie4_5_vl_moe", ""] {
            let disk = names.iter().chain(&more).map(|name| ((*name).to_owned(), shape.to_vec()));
            let pair = ["moe.gate_proj.weight", "moe.up_proj.weight", "mlp.up_gate_proj.weight"];
            let disk = disk.chain(pair.map(|name| (name.to_owned(), shape.to_vec())));
            let index = Index::new(disk, &[types.to_owned()]);
            let listing = index.memory();
            assert!(listing.tensors.len() + listing.unplaced.len() >= 1);
            let asked = [
                "a.experts.0.up_proj.weight",
                "a.experts.18446744073709551615.w2.weight",
                "experts.gate_up_proj",
                "mlp.experts.gate_up_proj",
                "mlp.gate_proj.weight",
                "experts.down_proj",
            ];
            for name in names.iter().chain(&more).chain(&asked) {
                let _ = (index.find(name), index.nearest(name));
            }
        }
    }
}
