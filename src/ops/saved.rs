//! Whole tensors that an adapter holds although they are the base's own, for what has no place for them.
//!
//! PEFT saves an embedding that is adapted along with its factors (huggingface/peft:src/peft/utils/save_and_load.py,
//! `save_embedding_layers`); nothing in the file says whether it is still the base's.

use crate::adapter::delta::{Full, full::Mode};
use crate::adapter::{Adapter, Delta, Note, Target};
use crate::error::{Context, Error, Result};
use crate::model::{BaseModel, embedding};
use crate::names::ModulePath;
use crate::tensor::{Tensor, cast, dtype};

/// Values compared at a time, so that an embedding takes little memory.
const PIECE: usize = 1 << 20;

/// Takes the base's own tensors out of an adapter that has factors. Beside the base only those that have the same values,
/// and an embedding that has others is an error; without one every embedding that is saved beside its factors, with a
/// lossy note.
pub fn leave_out(adapter: &mut Adapter, base: Option<&BaseModel>) -> Result<Vec<Note>> {
    let mut notes = Vec::new();
    if !adapter.targets.values().any(|target| target.weight.iter().any(|d| matches!(d, Delta::LowRank(_)))) {
        return Ok(notes);
    }
    for (path, target) in &mut adapter.targets {
        let Some(Delta::Full(Full { tensor, mode: Mode::Replace })) = target.weight.first() else { continue };
        let beside = target.weight.len() > 1 && is_embedding(path);
        let same = match base {
            Some(base) => is_own(base, path, target, tensor).at_key(path.as_str())?,
            None => beside,
        };
        if same {
            target.weight.remove(0);
            let text = "the whole tensor saved here is left out";
            notes.push(match base {
                Some(_) => Note::info(path.as_str(), format!("{text}, it is the base's own")),
                None => {
                    let text = format!("{text}, which is right where it is the base's; --base tells");
                    Note::lossy(path.as_str(), text)
                }
            });
        } else if beside {
            let what = "a whole embedding beside its factors which is not the base's";
            return Err(Error::unsupported(what).at_key(path.as_str()).hint(
                "is this the base model the adapter was trained on? Otherwise merge it, and convert the result",
            ));
        }
    }
    adapter.targets.retain(|_, target| !target.tensors().is_empty());
    Ok(notes)
}

fn is_embedding(path: &ModulePath) -> bool {
    embedding::is_input(path.as_str()) || embedding::is_output(path.as_str())
}

fn is_own(base: &BaseModel, path: &ModulePath, target: &Target, tensor: &Tensor) -> Result<bool> {
    let name = if target.is_parameter() { path.to_string() } else { path.tensor("weight") };
    let found = base.names.find(&name);
    let key = found.as_ref().and_then(|found| found.plain()).map(str::to_string);
    // An output that is tied has no tensor of its own.
    let tied = || base.embeddings().input.filter(|_| found.is_none() && embedding::is_output(path.as_str()));
    let Some(key) = key.or_else(tied) else { return Ok(false) };
    // Of a weight whose scales are not understood nothing is known.
    base.numbers(&key).ok().flatten().map_or(Ok(false), |own| same_values(&own, tensor))
}

fn same_values(own: &Tensor, saved: &Tensor) -> Result<bool> {
    if own.shape != saved.shape {
        return Ok(false);
    }
    if own.dtype == saved.dtype {
        return Ok(own.bytes.as_slice() == saved.bytes.as_slice());
    }
    if !dtype::is_float(own.dtype) || !dtype::is_float(saved.dtype) {
        return Ok(false);
    }
    let pieces = |tensor: &Tensor| tensor.dtype.bitsize() / 8 * PIECE;
    let both = own.bytes.as_slice().chunks(pieces(own)).zip(saved.bytes.as_slice().chunks(pieces(saved)));
    for (a, b) in both {
        let mut wide =
            [vec![0.0; a.len() / (own.dtype.bitsize() / 8)], vec![0.0; b.len() / (saved.dtype.bitsize() / 8)]];
        let [wide_a, wide_b] = &mut wide;
        cast::widen(own.dtype, a, wide_a)?;
        cast::widen(saved.dtype, b, wide_b)?;
        if wide_a != wide_b {
            return Ok(false);
        }
    }
    Ok(true)
}
