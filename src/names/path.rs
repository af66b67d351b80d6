//! The path of a module inside a model: `model.layers.0.self_attn.q_proj`.

use std::fmt;

/// The dotted path of a module, without the name of a parameter at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModulePath(String);

impl ModulePath {
    /// The path as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component: `q_proj`.
    pub fn leaf(&self) -> &str {
        self.0.rsplit('.').next().unwrap_or_default()
    }

    /// The path without its last component, if it has more than one.
    pub fn parent(&self) -> Option<ModulePath> {
        self.0.rsplit_once('.').map(|(parent, _)| ModulePath(parent.to_owned()))
    }

    /// The path of `name` inside this module. The root module has the empty path.
    #[must_use]
    pub fn join(&self, name: &str) -> ModulePath {
        match (self.0.is_empty(), name.is_empty()) {
            (true, _) => ModulePath(name.to_owned()),
            (_, true) => self.clone(),
            _ => ModulePath(format!("{}.{name}", self.0)),
        }
    }

    /// The components from the outside in. The root module has none.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.').filter(|_| !self.0.is_empty())
    }

    /// Whether one of the components is exactly `name`.
    pub fn has_component(&self, name: &str) -> bool {
        self.components().any(|component| component == name)
    }

    /// The name of the tensor `parameter` of this module: `model.norm.weight`.
    pub fn tensor(&self, parameter: &str) -> String {
        self.join(parameter).0
    }
}

impl From<&str> for ModulePath {
    fn from(path: &str) -> Self {
        ModulePath(path.to_owned())
    }
}

impl From<String> for ModulePath {
    fn from(path: String) -> Self {
        ModulePath(path)
    }
}

impl AsRef<str> for ModulePath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

// `Ord` of the path is that of its text, so a sorted map of paths can be asked with a plain `&str`.
impl std::borrow::Borrow<str> for ModulePath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_apart_and_together() {
        let path = ModulePath::from("model.layers.0.self_attn.q_proj");
        assert_eq!(path.leaf(), "q_proj");
        assert_eq!(path.parent(), Some(ModulePath::from("model.layers.0.self_attn")));
        assert_eq!(path.parent().map(|p| p.join("q_proj")), Some(path.clone()));
        assert_eq!(path.tensor("weight"), "model.layers.0.self_attn.q_proj.weight");
        assert!(path.has_component("layers") && !path.has_component("layer"));
    }

    #[test]
    fn the_root_has_the_empty_path() {
        let root = ModulePath::default();
        assert_eq!(root.join("lm_head").as_str(), "lm_head");
        assert_eq!(root.components().count(), 0);
        assert_eq!((root.parent(), root.leaf()), (None, ""));
    }
}
