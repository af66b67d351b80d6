//! C3A: circulant blocks (huggingface/peft, `src/peft/tuners/c3a`). The block size is the kernel's own.

use super::{Tuner, Writing, need, require_taken, take_modules};
use crate::adapter::delta::{Circulant, Delta};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;
use crate::layout::peft::scaling;
use crate::layout::peft::writer::{Taken, Writer};

/// The tuner.
pub static TUNER: Tuner = Tuner {
    peft_type: "C3A",
    roles: &[("c3a_kernel", &[""])],
    fields: &[],
    read,
    writing: Some(Writing { fields: FIELDS, write }),
};

/// The config as PEFT 0.21 writes it.
const FIELDS: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("block_size", "256"),
    ("block_size_pattern", "{}"),
    ("init_weights", "\"xavier_uniform\""),
    ("layers_pattern", "null"),
    ("layers_to_transform", "null"),
    ("modules_to_save", "null"),
];

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let kernel = need(&mut parts, "c3a_kernel")?;
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Circulant(Circulant { kernel }));
    }
    Ok(())
}

fn write(writer: &mut Writer) -> Result<()> {
    let taken = writer.take(|delta| if let Delta::Circulant(delta) = delta { Some(delta.clone()) } else { None });
    let names: Vec<_> = taken.iter().map(|t| t.path.as_str()).collect();
    let sizes: Vec<_> = taken.iter().map(|t| t.change.kernel.shape.dims().last().copied().unwrap_or(1)).collect();
    scaling::say_numbers(writer, &names, &sizes, "block_size", "block_size_pattern")?;
    for Taken { path, change, .. } in taken {
        writer.put(&path, 0, "c3a_kernel", change.kernel)?;
    }
    Ok(())
}
