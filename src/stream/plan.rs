//! What model-sized output looks like before it exists: one job per tensor, no job waiting for another.

use std::ops::Range;
use std::sync::Arc;

use crate::container::pipeline::in_file;
use crate::container::{Entry, FileMetadata, Manifest};
use crate::error::Result;
use crate::kernels::{Guess, Kernels, Moved};
use crate::tensor::{Bytes, MappedFile, Rows, Tensor};

/// Everything one run writes: the files, each with its jobs in the order of their data.
pub struct Plan {
    /// Files of tensors.
    pub files: Vec<PlannedFile>,
}

/// One file of a plan.
pub struct PlannedFile {
    /// Name inside the output folder, which may lead into the folder of a pipeline's component; for a single-file output
    /// it is not used.
    pub name: String,
    /// Header metadata.
    pub metadata: FileMetadata,
    /// The head of an input file, used as it stands where this file has the very same form.
    pub head: Option<Bytes>,
    /// One job per tensor.
    pub jobs: Vec<Job>,
}

/// One output tensor and how it is made.
pub struct Job {
    /// Key, dtype and shape. In a pipeline the key is what it is known by, with the component in front.
    pub entry: Entry,
    /// Where its bytes come from.
    pub make: Make,
}

/// The two ways a tensor comes about.
#[derive(Clone)]
pub enum Make {
    /// Byte for byte; never passes through arithmetic.
    Copy(Tensor),
    /// Computed, some rows at a time.
    Compute(Arc<dyn Produce>),
}

/// A computed tensor, seen as a matrix whose rows lie one after the other.
pub trait Produce: Send + Sync {
    /// Rows and columns.
    fn matrix(&self) -> (usize, usize);

    /// Which rows can be made by themselves.
    fn rows(&self) -> Rows;

    /// Memory that making `rows` rows takes, beside the output bytes.
    fn footprint(&self, rows: usize) -> u64;

    /// Writes the bytes of `rows` into `out` and says what moved.
    fn produce(&self, kernels: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved>;

    /// As [`produce`](Produce::produce), and finds on the way what can be told of the input from the output, where the
    /// two are bf16 weights and one product each is added to them: then true, and `guess` holds all of `rows`.
    fn produce_and_guess(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        out: &mut [u8],
        _guess: &mut Guess,
    ) -> Result<(Moved, bool)> {
        Ok((self.produce(kernels, rows, out)?, false))
    }

    /// Whether rows that an earlier run has made can stay as they are. Not where making them also tells something that
    /// the report needs, beside what moved.
    fn can_be_taken_up(&self) -> bool {
        true
    }

    /// Called once after [`produce`](Produce::produce), or where the rows were there, and whatever else was done with its input: lets go of what these
    /// rows were made of.
    fn release(&self, _rows: Range<usize>) {}
}

impl PlannedFile {
    /// What the file's header will say.
    pub fn manifest(&self) -> Manifest {
        let entry = |job: &Job| Entry { name: in_file(&self.name, &job.entry.name).to_string(), ..job.entry.clone() };
        Manifest { entries: self.jobs.iter().map(entry).collect(), metadata: self.metadata.clone() }
    }

    /// The input that this file is a copy of, head and all, where it is one.
    pub fn whole_copy(&self) -> Option<Arc<MappedFile>> {
        let mut so_far = self.head.clone()?;
        for job in &self.jobs {
            let Make::Copy(tensor) = &job.make else { return None };
            so_far = so_far.followed_by(&tensor.bytes)?;
        }
        let (file, start) = so_far.origin()?;
        (start == 0 && so_far.len() == file.as_slice().len()).then(|| Arc::clone(file))
    }

    /// Bytes of tensor data.
    pub fn data_bytes(&self) -> Result<u64> {
        self.jobs.iter().try_fold(0u64, |sum, job| Ok(sum + job.entry.byte_len()? as u64))
    }
}

impl Plan {
    /// Bytes of tensor data in all files.
    pub fn data_bytes(&self) -> Result<u64> {
        self.files.iter().try_fold(0, |sum, file| Ok(sum + file.data_bytes()?))
    }
}
