//! Finding the fixtures and what they say about themselves.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use lora_tool::layout::{self, Draft};
use lora_tool::tensor::StateDict;

/// The folder of fixtures.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A model of the fixtures.
pub fn base(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// An adapter of the fixtures, in PEFT's layout.
pub fn adapter(name: &str) -> PathBuf {
    root().join("adapters/peft").join(name)
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}

/// One adapter and what is expected of it.
pub struct Case {
    pub name: String,
    pub path: PathBuf,
    about: toml::Table,
}

impl Case {
    pub fn text(&self, field: &str) -> Option<&str> {
        self.about.get(field).and_then(toml::Value::as_str)
    }

    pub fn base(&self) -> PathBuf {
        root().join("models").join(self.text("base").expect("about.toml names a base"))
    }

    /// The adapter itself: the case's folder, or what `adapter` names in it.
    pub fn adapter(&self) -> PathBuf {
        self.text("adapter").map_or_else(|| self.path.clone(), |inner| self.path.join(inner))
    }

    pub fn expects_merge(&self) -> bool {
        self.text("expect") == Some("merge")
    }
}

/// All cases of a layout, in order.
pub fn cases(layout: &str) -> Vec<Case> {
    let mut out: Vec<Case> = std::fs::read_dir(root().join("adapters").join(layout))
        .expect("the folder of the layout")
        .map(|entry| {
            let path = entry.expect("a readable folder").path();
            let text = std::fs::read_to_string(path.join("about.toml")).expect("an about.toml");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            Case { name, path, about: text.parse().expect("TOML") }
        })
        .collect();
    out.sort_by(|a, b| a.name.cmp(&b.name));
    out
}

/// An empty folder for one test, removed when the value goes.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("lora-tool-it-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Scratch(folder)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file of these tensors.
pub fn file(path: &Path, tensors: StateDict) -> PathBuf {
    let draft = Draft { tensor_file: "f.safetensors".into(), tensors, ..Draft::default() };
    layout::save(&draft, path, &[], false, false).expect("saved");
    path.to_path_buf()
}
