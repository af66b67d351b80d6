//! How outputs appear, are replaced and are cleaned up.

use super::left::old_name;
use super::*;
use crate::error::Kind;

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("lora-tool-atomic-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let mut out: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    out.sort();
    out
}

#[test]
fn a_dropped_output_leaves_nothing() {
    let folder = scratch("drop");
    let pending = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
    write_whole(&pending.path().join("a"), b"x", true).unwrap();
    assert_eq!(names(&folder).len(), 1);
    drop(pending);
    assert!(names(&folder).is_empty());
}

#[test]
fn a_folder_is_replaced_whole_and_only_when_asked() {
    let folder = scratch("replace");
    let out = folder.join("out");
    fs::create_dir(&out).unwrap();
    write_whole(&out.join("old"), b"x", false).unwrap();
    for replace in [false, true] {
        let refused = Pending::new(&out, Form::Folder, replace, true).unwrap_err();
        assert_eq!(refused.kind(), Kind::Exists, "it holds no tensors");
    }
    write_whole(&out.join("old.safetensors"), b"x", false).unwrap();
    assert_eq!(Pending::new(&out, Form::Folder, false, true).unwrap_err().kind(), Kind::Exists);
    let pending = Pending::new(&out, Form::Folder, true, true).unwrap();
    write_whole(&pending.path().join("new"), b"y", true).unwrap();
    pending.commit().unwrap();
    let both = vec!["new".to_string(), "old".to_string()];
    assert_eq!((names(&folder), names(&out)), (vec!["out".to_string()], both), "what is no part of a result stays");
}

#[test]
fn left_overs_of_dead_runs_go_and_those_of_live_ones_stay() {
    let folder = scratch("dead");
    fs::create_dir(folder.join(".out.lora-tool.1.0")).unwrap();
    fs::write(folder.join(".out.lora-tool.1.0/part"), b"dead").unwrap();
    let alive = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
    let second = Pending::new(&folder.join("out"), Form::Folder, false, true).unwrap();
    assert_eq!(names(&folder).len(), 2, "both live ones, not the dead one");
    second.commit().unwrap();
    assert_eq!(alive.commit().map_err(|e| e.kind()), Ok(()), "an empty folder counts as absent");
}

#[test]
fn runs_that_write_files_beside_each_other_leave_each_other_alone() {
    let folder = scratch("beside");
    let long = "x".repeat(240);
    let runs: Vec<_> = ["out", "out", "out2", &long]
        .iter()
        .map(|name| {
            let pending = Pending::new(&folder.join(name), Form::File, true, false).unwrap();
            write_whole(pending.path(), name.as_bytes(), false).unwrap();
            pending
        })
        .collect();
    runs.into_iter().for_each(|run| run.commit().unwrap());
    assert_eq!(names(&folder), ["out", "out2", &long]);
}

#[test]
fn where_nothing_can_be_exchanged_the_old_folder_is_back_after_a_kill() {
    let folder = scratch("two-steps");
    let (out, old) = (folder.join("out"), old_name(&folder, "out".as_ref()));
    fs::create_dir(&out).unwrap();
    write_whole(&out.join("old.safetensors"), b"x", false).unwrap();
    let pending = Pending::new(&out, Form::Folder, true, false).unwrap();
    write_whole(&pending.path().join("new"), b"y", false).unwrap();
    let step = pending.replace_in_two_steps().unwrap();
    assert_eq!((names(&out), names(&old)), (vec!["new".to_string()], vec!["old.safetensors".to_string()]));
    pending.take_back(&step).unwrap();
    assert_eq!((names(&out), names(pending.path())), (vec!["old.safetensors".to_string()], vec!["new".to_string()]));
    drop(pending);
    assert_eq!(names(&folder), ["out"]);

    fs::rename(&out, &old).unwrap(); // killed after the first step
    assert_eq!(Pending::new(&out, Form::Folder, false, false).unwrap_err().kind(), Kind::Exists);
    assert_eq!((names(&folder), names(&out)), (vec!["out".to_string()], vec!["old.safetensors".to_string()]));
    fs::create_dir(&old).unwrap(); // killed after the second
    assert!(Pending::new(&out, Form::Folder, false, false).is_err());
    assert_eq!(names(&folder), ["out"]);
}

#[test]
fn what_cannot_be_a_name_is_found_before_the_work() {
    let folder = scratch("name");
    let long = folder.join("x".repeat(256));
    assert!(refuse_existing(&long, Form::File, true).unwrap_err().what().contains("too long"));
    std::os::unix::fs::symlink("nowhere", folder.join("link")).unwrap();
    let refused = refuse_existing(&folder.join("link"), Form::Folder, true).unwrap_err();
    assert!(refused.what().contains("link to nothing"), "{refused}");
}

#[test]
fn an_input_is_never_an_output() {
    let folder = scratch("alias");
    let input = folder.join("model");
    fs::create_dir(&input).unwrap();
    std::os::unix::fs::symlink(&input, folder.join("link")).unwrap();
    for output in ["model", "link", "model/inside"] {
        assert!(refuse_input(&folder.join(output), &[&input]).is_err(), "{output}");
    }
    assert!(refuse_input(&folder, &[&input]).is_err(), "the folder around it");
    assert!(refuse_input(&folder.join("other"), &[&input]).is_ok());
}
