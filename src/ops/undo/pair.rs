//! Recording a pair of models that lie there already.

use super::recorder::Recorder;
use crate::error::{Context, Result};
use crate::kernels::Kernels;
use crate::model::BaseModel;
use crate::stream::{self, COPY_BYTES, Entry, Job, Make, PieceOf, Plan, PlannedFile, Progress};

/// A model as a plan: every tensor as it lies.
pub fn as_it_lies(model: &BaseModel) -> Plan {
    let files = model.shards().iter().enumerate().map(|(number, shard)| PlannedFile {
        name: shard.name.clone(),
        metadata: model.metadata(number).clone(),
        head: Some(model.head(number).clone()),
        jobs: shard
            .contents
            .tensors
            .iter()
            .map(|(name, t)| Job {
                entry: Entry { name: name.clone(), dtype: t.dtype, shape: t.shape.clone() },
                make: Make::Copy(t.clone()),
            })
            .collect(),
    });
    Plan { files: files.collect() }
}

/// Shows `recorder` all of a model that lies there.
pub fn observe(
    recorder: &Recorder,
    merged: &Plan,
    kernels: &dyn Kernels,
    threads: usize,
    progress: &dyn Progress,
) -> Result<()> {
    struct Step<'a> {
        piece: PieceOf,
        name: &'a str,
        bytes: crate::tensor::Bytes,
        offset: usize,
        rows: Option<std::ops::Range<usize>>,
    }
    let mut steps = Vec::new();
    for (file, planned) in merged.files.iter().enumerate() {
        for (job, planned) in planned.jobs.iter().enumerate() {
            let Make::Copy(tensor) = &planned.make else { continue };
            let len = tensor.bytes.len();
            let rows = recorder.rows_of(file, job);
            let (row_bytes, step) = match rows {
                Some((rows, rule)) => {
                    let row_bytes = len / rows.max(1);
                    (row_bytes, row_bytes * stream::rows_at_once(rule, rows, len))
                }
                None => (1, COPY_BYTES),
            };
            for offset in (0..len).step_by(step.max(1)) {
                let end = (offset + step).min(len);
                let piece = PieceOf { number: steps.len(), file, job };
                let rows = rows.map(|_| offset / row_bytes..end / row_bytes);
                steps.push(Step {
                    piece,
                    name: &planned.entry.name,
                    bytes: tensor.bytes.slice(offset..end),
                    offset,
                    rows,
                });
            }
        }
    }
    stream::each(steps.len(), threads, progress, |number| {
        let step = &steps[number];
        let all = 0..step.bytes.len();
        step.bytes.fetch(all.clone());
        let bytes = step.bytes.as_slice();
        match &step.rows {
            Some(rows) => {
                let PieceOf { file, job, .. } = step.piece;
                recorder.fetch(file, job, rows.clone());
                let noted = recorder.rows(kernels, step.piece, rows.clone(), bytes);
                recorder.release(file, job, rows.clone());
                noted
            }
            None => recorder.bytes(step.piece, step.offset, bytes),
        }
        .at_key(step.name)?;
        step.bytes.release(all);
        progress.advance(step.bytes.len() as u64);
        Ok(())
    })
    .map(drop)
}
