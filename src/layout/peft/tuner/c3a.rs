//! C3A: circulant blocks (huggingface/peft, `src/peft/tuners/c3a`). The block size is the kernel's own.

use super::{Tuner, need, require_taken, take_modules};
use crate::adapter::delta::{Circulant, Delta};
use crate::error::Result;
use crate::layout::peft::Reader;
use crate::layout::peft::saved::target;

/// The tuner.
pub static TUNER: Tuner =
    Tuner { peft_type: "C3A", roles: &[("c3a_kernel", &[""])], fields: &["block_size", "block_size_pattern"], read };

fn read(reader: &mut Reader) -> Result<()> {
    for ((path, _), mut parts) in take_modules(reader) {
        let kernel = need(&mut parts, "c3a_kernel")?;
        require_taken(&parts, TUNER.peft_type)?;
        target(reader, path.as_str()).weight.push(Delta::Circulant(Circulant { kernel }));
    }
    Ok(())
}
