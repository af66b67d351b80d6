//! What an undo record says in words: of which base, which merged model and which adapters it is, and for each tensor
//! of the base how it is found again.
//!
//! Edits are stored as they were resolved, so that a later version of this program, which may know names better, still
//! takes back what was done.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, Reversal, Share, Target};
use crate::error::{Error, Result};
use crate::limits;
use crate::names::{ModulePath, Piece, Region};
use crate::ops::merge::source::{Edit, Part, Ready, Source};
use crate::tensor::Shape;

/// Section of the manifest.
pub const MANIFEST: &str = "manifest";
/// Section of the pieces' hashes and lengths.
pub const PIECES: &str = "pieces";
const LEVEL: i32 = 3;

/// The whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Program and version that wrote the record.
    pub tool: String,
    /// The base's files, in order.
    pub base: Vec<BaseFile>,
    /// Name of the base, and whether it is a folder.
    pub name: String,
    /// See `name`.
    pub is_folder: bool,
    /// Texts of the base that the merged model does not have as they were: its index, its config. The sections of the
    /// record hold them.
    pub texts: Vec<String>,
    /// Side files and their hashes.
    pub sides: Vec<(String, String)>,
    /// The merged model's files.
    pub merged: Vec<MergedFile>,
    /// The adapters, in the order they were applied.
    pub adapters: Vec<AdapterNote>,
    /// How they were applied.
    pub options: MergeOptions,
    /// Tensors of the base, file by file in the order of their data.
    pub tensors: Vec<TensorNote>,
    /// Tensors that only the merged model has.
    pub added: Vec<Blocks>,
}

/// A file of the base.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BaseFile {
    /// Its name in the folder; of a single file, its name.
    pub name: String,
    /// Number of its tensors.
    pub tensors: usize,
}

/// A file of the merged model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergedFile {
    /// Its name in the folder.
    pub name: String,
    /// Hash of its head.
    pub head: String,
}

/// An adapter that was merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdapterNote {
    /// The last component of its path.
    pub name: String,
    /// Where it lay, as it was given; none where it lies in the record.
    pub path: Option<String>,
    /// The user's multiplier.
    pub strength: f64,
    /// What its modules' shares of the strength were told by, as the user gave it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<String>,
    /// Hash of its tensors.
    pub hash: String,
    /// Hash of its config, where that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// Its layout.
    pub layout: String,
    /// Its config, where it lies in the record.
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
    /// What its layout has to know besides, in words of the layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What a fresh merge of some of the adapters needs to know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergeOptions {
    /// See `merge::Options`.
    pub allow_unmatched: bool,
    /// See `merge::Options`.
    pub allow_nonfinite: bool,
    /// Name of the type written.
    pub dtype: Option<String>,
    /// See `merge::Options`.
    pub max_shard_bytes: Option<u64>,
    /// See `merge::Options`.
    pub allow_repeat: bool,
    /// See `merge::Options`.
    pub allow_other_base: bool,
    /// See `merge::Options`.
    pub provenance: Option<String>,
}

/// How a tensor of the base is found again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorNote {
    /// Its key, the same in both models.
    pub key: String,
    /// Its pieces in the merged model, or of itself where it is stored.
    pub blocks: Blocks,
    /// How.
    pub how: How,
    /// What was done to it, in order, where that is of use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<EditNote>,
}

/// Consecutive pieces of a tensor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Blocks {
    /// Key, for tensors that only the merged model has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Number of the first.
    pub first: usize,
    /// Rows of each but the last, or bytes where the tensor was copied.
    pub step: usize,
    /// How many there are.
    pub count: usize,
}

/// Ways to find a tensor again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It is the merged model's, byte for byte.
    Same,
    /// From the merged rows, the sum that was added taken off.
    Sum,
    /// From the merged rows, divided by a factor for each, the sum that was added taken off. The factors lie before the
    /// corrections.
    Rows,
    /// The same with a factor for each column.
    Cols,
    /// From the merged rows, the changes taken back step by step.
    Steps,
    /// From the merged rows as they are.
    Near,
    /// It is stored.
    Stored,
}

impl How {
    /// For changes of this kind.
    pub fn of(reversal: Reversal) -> How {
        match reversal {
            Reversal::Sum => How::Sum,
            Reversal::Rows => How::Rows,
            Reversal::Cols => How::Cols,
            Reversal::Steps => How::Steps,
            Reversal::Nothing => How::Near,
        }
    }
}

/// A resolved edit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EditNote {
    adapter: usize,
    path: String,
    bias: bool,
    stored: Vec<usize>,
    transposed: bool,
    memory: RegionNote,
    disk: RegionNote,
    turned: bool,
    /// The module's share of the strength; none where it is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RegionNote(Option<usize>, Option<Range<usize>>, Option<Range<usize>>);

impl From<&Region> for RegionNote {
    fn from(r: &Region) -> Self {
        RegionNote(r.expert, r.rows.clone(), r.cols.clone())
    }
}

impl From<&RegionNote> for Region {
    fn from(r: &RegionNote) -> Self {
        Region { expert: r.0, rows: r.1.clone(), cols: r.2.clone() }
    }
}

impl EditNote {
    /// The note of an edit.
    pub fn of(edit: &Edit) -> EditNote {
        let Edit { source, piece } = edit;
        EditNote {
            adapter: source.number,
            path: source.path.to_string(),
            bias: source.part == Part::Bias,
            stored: source.stored.dims().to_vec(),
            transposed: source.transposed,
            memory: (&piece.memory).into(),
            disk: (&piece.disk).into(),
            turned: piece.transposed,
            share: Some(source.target.share.0).filter(|share| *share != 1.0),
        }
    }

    /// An error unless the tensor in memory can be one of a model of so many elements: memory is taken for it.
    pub fn require_size(&self, most: usize) -> Result<()> {
        let stored = Shape::new(self.stored.clone());
        if stored.elements()? <= most {
            return Ok(());
        }
        Err(damaged(&format!("a weight of {stored} in a model of {most} elements")))
    }

    /// Number of the adapter.
    pub fn adapter(&self) -> usize {
        self.adapter
    }

    /// The shape in memory of the module's weight, where this is an edit of it by this adapter.
    pub fn shape_of(&self, adapter: usize, path: &ModulePath) -> Option<Vec<usize>> {
        (self.adapter == adapter && self.path == path.as_str() && !self.bias).then(|| self.stored.clone())
    }

    /// The edit of the tensor `key`, with the adapters at hand.
    pub fn edit(&self, key: &str, adapters: &[(f64, Arc<Adapter>)]) -> Result<Edit> {
        let (strength, adapter) = adapters
            .get(self.adapter)
            .ok_or_else(|| Error::malformed(format!("adapter number {} of {}", self.adapter, adapters.len())))?;
        let path = ModulePath::from(self.path.as_str());
        let target = adapter
            .targets
            .get(&path)
            .ok_or_else(|| Error::missing("the adapter has no such module").at_key(&self.path))?;
        let source = Source {
            adapter: format!("adapter {}", self.adapter + 1),
            number: self.adapter,
            path,
            target: Arc::new(Target { share: Share(self.share.unwrap_or(1.0)), ..target.clone() }),
            part: if self.bias { Part::Bias } else { Part::Weight },
            stored: Shape::new(self.stored.clone()),
            transposed: self.transposed,
            companion: None,
            strength: *strength,
            ready: Ready::default(),
        };
        source.expect_user();
        let piece = Piece {
            key: key.to_string(),
            memory: (&self.memory).into(),
            disk: (&self.disk).into(),
            transposed: self.turned,
        };
        Ok(Edit { source: Arc::new(source), piece })
    }
}

impl Manifest {
    /// The bytes of the section.
    pub fn pack(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(self).map_err(|e| Error::malformed(e.to_string()))?;
        pack(&text)
    }

    /// The manifest in such bytes.
    pub fn unpack(bytes: &[u8]) -> Result<Manifest> {
        serde_json::from_slice(&unpack(bytes)?).map_err(|e| damaged(&e.to_string()))
    }
}

/// Bytes of a size that the reader knows, packed.
pub fn pack_piece(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).map_err(|e| Error::io("cannot compress", e))
}

/// Text, packed. Text that packs too well to be believed gets a frame behind it that zstd skips.
pub fn pack(text: &[u8]) -> Result<Vec<u8>> {
    const SKIPPED: u32 = 0x184d_2a50;
    let mut out = pack_piece(text)?;
    if let Some(missing) = text.len().checked_sub(most_from(out.len())) {
        let size = u32::try_from(missing.div_ceil(limits::RECORD_RATIO)).unwrap_or(u32::MAX);
        out.extend(SKIPPED.to_le_bytes());
        out.extend(size.to_le_bytes());
        out.resize(out.len() + size as usize, 0);
    }
    Ok(out)
}

/// Most bytes that a section of so many unpacks to.
fn most_from(packed: usize) -> usize {
    limits::RECORD_SECTION_BYTES
        .min(limits::RECORD_FREE_BYTES.saturating_add(limits::RECORD_RATIO.saturating_mul(packed)))
}

/// Such text again. What it takes follows the size of the packed bytes, not what they say.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    unpack_at_most(bytes, most_from(bytes.len()))
}

/// The same for bytes of a size that is known from elsewhere.
pub fn unpack_at_most(bytes: &[u8], most: usize) -> Result<Vec<u8>> {
    let size = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten().and_then(|n| usize::try_from(n).ok());
    let size = size.filter(|&n| n <= most).ok_or_else(|| damaged("a section of another size than it can have"))?;
    zstd::bulk::decompress(bytes, size).map_err(|e| damaged(&e.to_string()))
}

/// The error for a record that says nonsense under a good seal.
pub fn damaged(what: &str) -> Error {
    Error::malformed(format!("the undo record cannot be understood: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_however_well_it_packs() {
        for text in [vec![], b"short".to_vec(), vec![b' '; limits::RECORD_FREE_BYTES + 1], vec![0; 50 << 20]] {
            assert_eq!(unpack(&pack(&text).unwrap()).unwrap(), text, "{} bytes", text.len());
        }
        let bomb = pack_piece(&vec![0; 50 << 20]).unwrap();
        assert!(unpack(&bomb).is_err(), "{} bytes", bomb.len());
    }
}
