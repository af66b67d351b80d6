//! Every limit there is, in one place: what a file, or a number in one, may ask for before it is refused.
//!
//! Data alone; who meets a limit says so in an error of kind `limit`, with what was found and what is allowed. The table
//! is what `lora-tool help limits` prints and what `docs/robustness.md` shows. Numbers that are no limits but choices,
//! such as the size of a tile, stand where they are used.

use std::fmt;

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// What is limited.
    pub what: &'static str,
    /// The most there may be of it.
    pub most: u64,
    /// What is counted: `bytes`, `levels`, `elements`.
    pub unit: &'static str,
}

impl fmt::Display for Limit {
    /// The number in groups of three digits with its unit; of bytes, whole MiB and GiB as such.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (most, unit) = match (self.most, self.unit) {
            (n, BYTES) if n > 0 && n % (1 << 30) == 0 => (n >> 30, "GiB"),
            (n, BYTES) if n > 0 && n % (1 << 20) == 0 => (n >> 20, "MiB"),
            plain => plain,
        };
        let digits = most.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i) % 3 == 0 {
                f.write_str(" ")?;
            }
            write!(f, "{digit}")?;
        }
        if unit.is_empty() { Ok(()) } else { write!(f, " {unit}") }
    }
}

const BYTES: &str = "bytes";

/// Constants and the table of all of them, so that none can be left out of it.
macro_rules! limits {
    ($($(#[doc = $why:literal])+ $name:ident: $type:ty = $most:expr, $what:literal, $unit:expr;)+) => {
        $($(#[doc = $why])+ pub const $name: $type = $most;)+

        /// All limits, in the order of this file.
        pub const ALL: &[Limit] = &[$(Limit { what: $what, most: $name as u64, unit: $unit }),+];
    };
}

limits! {
    // --- files of tensors

    /// Bytes, read or written: the reference implementation's own limit.
    HEADER_BYTES: usize = 100_000_000, "header of a safetensors file", BYTES;
    /// Real files have less than 100 000; up to here merging and inspecting take less than a gigabyte and ten seconds.
    TENSORS: usize = 500_000, "tensors in one file", "";
    /// Real tensors have up to five.
    DIMENSIONS: usize = 8, "dimensions of a tensor", "";
    /// In bytes of UTF-8.
    NAME_BYTES: usize = 65_535, "name of a tensor", BYTES;
    /// Of a merged or converted model; each is a file that is opened.
    SHARDS: usize = 100_000, "files of one index", "";
    /// Real ones have up to 15 MB.
    INDEX_BYTES: u64 = 100_000_000, "index of a sharded model", BYTES;
    /// Of diffusers: a few hundred bytes.
    PIPELINE_INDEX_BYTES: u64 = 1 << 20, "model_index.json", BYTES;
    /// A vocabulary may be part of such a header; nothing of it is more than copied.
    GGUF_KEYS: usize = 1_000_000, "metadata keys of a GGUF file", "";
    /// In bytes: what the format allows.
    GGUF_KEY_BYTES: usize = 65_535, "metadata key of a GGUF file", BYTES;
    /// What ggml has room for.
    GGUF_DIMENSIONS: usize = 4, "dimensions of a tensor in a GGUF file", "";
    /// In bytes: the merges of the largest vocabularies take some ten MB.
    GGUF_ARRAY_BYTES: usize = 64 << 20, "array in the metadata of a GGUF file", BYTES;
    /// Arrays of arrays; real ones are flat.
    GGUF_ARRAY_DEPTH: usize = 4, "arrays in arrays of a GGUF file", "levels";
    /// In bytes, a power of two. Padding may waste so much for each tensor.
    GGUF_ALIGNMENT: usize = 65_536, "alignment of a GGUF file", BYTES;
    /// A large model has some ten thousand of them.
    PICKLE_OPCODES: usize = 10_000_000, "opcodes of a pickle", "";
    /// Each takes tens of bytes and may be made by a single one of the file. A tensor needs eight of them.
    PICKLE_OBJECTS: usize = 2_000_000, "objects of a pickle", "";
    /// Values, and marks, that are on the stack at a time. Lists are emptied into their object every 1000.
    PICKLE_STACK: usize = 100_000, "stack of a pickle", "values";
    /// Storage keys of PyTorch's old format are addresses of 8 bytes and a sign.
    PICKLE_INTEGER_BYTES: usize = 16, "integer of a pickle", BYTES;
    /// `torch._utils._rebuild_tensor_v2` is the longest that is known.
    PICKLE_GLOBAL_BYTES: usize = 256, "name of a class or function in a pickle", BYTES;
    /// Bytes beside the size of the file itself: views may name the same elements many times over.
    PICKLE_COPY_BYTES: usize = 64 << 20, "elements of a pickle that have to be copied, beyond the file's size", BYTES;
    /// Bytes: what NumPy itself reads.
    NPY_HEADER_BYTES: usize = 10_000, "header of an array in an npz archive", BYTES;
    /// A `.nemo` archive has a few.
    TAR_MEMBERS: usize = 10_000, "members of a tar archive", "";

    // --- text beside them

    /// Real ones have less than eight.
    JSON_DEPTH: usize = 64, "nesting of JSON", "levels";
    /// Bytes. Real configs have less than 100 kB.
    CONFIG_BYTES: u64 = 16 << 20, "adapter_config.json, config.json or other settings", BYTES;
    /// Bytes of what stands beside one quantised weight.
    SCALED_TEXT_BYTES: usize = 1 << 12, "description of one 8-bit weight", BYTES;
    /// Bytes of a README that is looked through for signs of a trainer; a longer one is not looked at.
    CARD_BYTES: u64 = 1 << 20, "model card that lint looks through", BYTES;
    /// Bytes.
    JOBS_BYTES: u64 = 16 << 20, "file of jobs of batch", BYTES;
    /// Below the model; deeper ones are not followed.
    SIDE_DEPTH: usize = 4, "folders followed for side files", "levels";
    /// Far above what lies beside a model, and below a home folder.
    KEPT_FILES: usize = 100_000, "other files that stay in a folder that is replaced", "";
    /// Bytes of one expression.
    PATTERN_BYTES: usize = 4096, "pattern in a config", BYTES;
    /// Bytes that it takes compiled.
    PATTERN_COMPILED_BYTES: usize = 1 << 20, "pattern in a config, compiled", BYTES;
    /// Bytes that it takes while it matches; where it needs more it is slower, and no error.
    PATTERN_CACHE_BYTES: usize = 1 << 18, "pattern in a config, while it matches", BYTES;
    /// Groups in groups.
    PATTERN_DEPTH: u32 = 50, "nesting of a pattern in a config", "levels";
    /// Of one field; plain module paths are no patterns and not counted.
    PATTERNS: usize = 256, "patterns of one config field that are no plain module paths", "";

    // --- what adapters say

    /// From 1. Alpha is divided by it, and factors are as wide.
    RANK: u64 = 65_536, "rank, from 1", "";
    /// For each of which something is written; models have a few hundred.
    LAYERS: usize = 10_000, "layers of a model, by its config", "";
    /// More than any model's; beyond it the number is taken as not known.
    ATTENTION_ROWS: usize = 1 << 24, "rows of a projection of an attention, by a config", "";
    /// Numbers in a key that count layers or experts; a higher one is no such number.
    COUNTED: usize = 1 << 14, "layers of a model, or experts of a layer, of LitGPT and torchtune", "";
    /// A file with all of them is written.
    LITGPT_MODULES: usize = 1 << 20, "modules that a LitGPT adapter is written for", "";
    /// One expert after another is made of shared factors.
    NEMO_EXPERTS: usize = 1 << 16, "experts that share the factors of a NeMo adapter", "";
    /// Folders of a distributed checkpoint.
    NEMO_RANKS: usize = 1 << 14, "ranks that a NeMo adapter is dealt out to", "";
    /// Of a weight of which the file has only some of the parts.
    GGUF_ROWS: usize = 1 << 22, "rows of a weight that a GGUF adapter has in part", "";
    /// Parts that are missing, or an A for all experts, are made.
    GGUF_FACTOR: usize = 1 << 28, "a factor larger than what a GGUF adapter has of it", "elements";
    /// The zeros between the blocks are not in the file.
    BLOCK_FACTOR: usize = 1 << 27, "a factor written out from blocks (BD-LoRA, GraLoRA)", "elements";
    /// u · r², of which the file has the seed.
    TINYLORA_ELEMENTS: usize = 1 << 27, "random matrices of one TinyLoRA module", "elements";
    /// Logits and bank can both be small where the factors are not.
    VBLORA_ELEMENTS: usize = 1 << 28, "all factors of a VB-LoRA", "elements";
    /// Nothing in the file is as large.
    UNILORA_ELEMENTS: usize = 1 << 28, "all factors of a seeded UniLoRA", "elements";
    /// More terms than this change nothing for a matrix the series converges for.
    OFT_TERMS: usize = 4096, "terms of OFT's series", "";
    /// Core times down: small files may have large ones.
    TUCKER_FACTOR: usize = 1 << 30, "a factor made from a core", "elements";
    /// Two draws for each element take about a minute.
    PERMUTATION: usize = 1 << 33, "random permutation of the positions of a weight", "elements";
    /// Beyond 32 bits NumPy draws in another way.
    CHOICE: usize = u32::MAX as usize, "positions that are drawn as NumPy draws them", "";
    /// Bytes of zeros that fill up what is missing. The largest adapters have some hundred megabytes in a factor.
    ZERO_BYTES: usize = 512 << 20, "zeros in the place of a part that is missing", BYTES;

    // --- what is done with them

    /// Of a LoHa or LoKr; above it no norm is shown.
    SPECTRUM_SIDE: usize = 1024, "side of a matrix that inspect decomposes for a LoHa or LoKr", "";
    /// Beyond it stand only files that multiply a few numbers to more.
    FORMED: usize = 1 << 34, "a change that compare or resize forms without a base", "elements";
    /// Rows that are formed at a time.
    FORMED_ROWS: usize = 1 << 29, "the rows of it that compare forms at a time", "elements";
    /// Of a module together.
    RESIZED: u64 = 1 << 30, "a pair of factors that resize writes", "elements";
    /// The Gram matrix takes 2 GiB there.
    GRAM_SIDE: usize = 16_384, "shorter side of a matrix whose decomposition is full", "";
    /// Extents of matrices are numbers of 32 bits there.
    BLAS_EXTENT: usize = i32::MAX as usize, "extent of a matrix that BLAS computes with", "";
    /// Bytes of the layer whose rows a merge makes longer.
    WIDENED_BYTES: usize = 64 << 20, "first layer that a merge makes wider", BYTES;
    /// Bytes, whatever its size.
    RECORD_SECTION_BYTES: usize = 1 << 30, "section of an undo record, unpacked", BYTES;
    /// Lists of tensors come to 50.
    RECORD_RATIO: usize = 400, "the same for each of its packed bytes, beyond the first MiB", BYTES;
    /// More than there are cores.
    THREADS: i64 = 1024, "worker threads, or jobs of batch at a time", "";
}

/// What a section of an undo record may unpack to in any case.
pub const RECORD_FREE_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        let shown = |most, unit| Limit { what: "", most, unit }.to_string();
        assert_eq!(shown(100_000_000, BYTES), "100 000 000 bytes");
        assert_eq!(shown(16 << 20, BYTES), "16 MiB");
        assert_eq!(shown(3 << 30, BYTES), "3 GiB");
        assert_eq!(shown(4096, ""), "4 096");
        assert_eq!(shown(8, "levels"), "8 levels");
    }

    #[test]
    fn no_two_lines_are_about_the_same() {
        for (i, limit) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.what != limit.what), "{}", limit.what);
        }
    }
}
