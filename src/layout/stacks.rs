//! What the fused stacks of experts hold that other layouts have apart.

use crate::error::{Error, Result};
use crate::names::ModulePath;
use crate::tensor::{Tensor, rearrange};

/// The projections of one expert that a fused parameter holds, in the order of its outputs. Of gpt-oss, which has them
/// in turns, only the name of the base tells.
pub fn projections(path: &ModulePath, base: Option<&str>) -> Result<&'static [&'static str]> {
    let known: &[&str] = match path.leaf() {
        "gate_up_proj" => &["gate_proj", "up_proj"],
        "down_proj" => &["down_proj"],
        _ => return Err(Error::unsupported("a stack of matrices that is not known to be experts")),
    };
    if path.parent().is_none_or(|parent| parent.leaf() != "experts") {
        return Err(Error::unsupported("a stack of matrices outside of a module of experts"));
    }
    if known.len() > 1 && base.is_some_and(|name| name.contains("gpt-oss")) {
        let what = "experts of gpt-oss, whose gate and up projection lie in turns and cannot be adapted apart here";
        return Err(Error::unsupported(what).hint("--base names the base, and with it they are told apart"));
    }
    Ok(known)
}

/// The module of experts that are one by one: where transformers has them in memory, but Mixtral's where its files have
/// them.
pub fn holder(path: &ModulePath, base: Option<&str>) -> ModulePath {
    let holder = path.parent().unwrap_or_default();
    match holder.as_str().strip_suffix(".mlp.experts") {
        Some(layer) if base.is_some_and(|name| name.contains("mixtral")) => {
            ModulePath::from(format!("{layer}.block_sparse_moe.experts"))
        }
        _ => holder,
    }
}

/// B cut into as many equal shares of its outputs.
pub fn shares(b: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    let (outputs, rank) = rearrange::matrix(b)?;
    if outputs % count.max(1) != 0 {
        return Err(Error::mismatch(format!("{outputs} outputs, expected a multiple of {count}")));
    }
    rearrange::cut(b, count, &[outputs / count.max(1), rank])
}
