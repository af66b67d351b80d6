//! One file per PEFT tuner: its roles, its config fields, and how they become deltas.

pub mod adalora;
pub mod beft;
pub mod boft;
pub mod c3a;
pub mod deft;
pub mod delora;
pub mod fourierft;
pub mod glora;
pub mod gralora;
pub mod hira;
pub mod hra;
pub mod ia3;
pub mod ln_tuning;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod miss;
pub mod none;
pub mod oft;
pub mod osf;
pub mod peanut;
pub mod randlora;
pub mod road;
pub mod shira;
pub mod supertuning;
pub mod tinylora;
pub mod unilora;
pub mod vblora;
pub mod vera;
pub mod waveft;

use super::Reader;
use super::config::Config;
use super::keys::{Part, Parts, Place, Role};
use super::saved::empty;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Tensor};

/// What one tuner stores and how to read it.
pub struct Tuner {
    /// `peft_type` in the config.
    pub peft_type: &'static str,
    /// Roles its keys end in.
    pub roles: &'static [Role],
    /// Config fields of its own beside those that are written; any other is reported.
    pub fields: &'static [&'static str],
    /// Takes the modules' tensors and adds targets.
    pub read: fn(&mut Reader) -> Result<()>,
    /// The way back; none where the tuner is only read.
    pub writing: Option<Writing>,
}

/// How a tuner is written.
pub struct Writing {
    /// Fields of its config and their values as JSON where nothing else is said, as PEFT writes them.
    pub fields: &'static [(&'static str, &'static str)],
    /// Takes deltas out of the targets and adds tensors.
    pub write: fn(&mut Writer) -> Result<()>,
}

impl Tuner {
    /// Fields of the config that are this tuner's own.
    pub fn known_fields(&self) -> Vec<&'static str> {
        let written = self.writing.iter().flat_map(|writing| writing.fields).map(|(name, _)| *name);
        self.fields.iter().copied().chain(written).collect()
    }
}

/// All tuners.
pub const TUNERS: &[&Tuner] = &[
    &adalora::TUNER,
    &beft::TUNER,
    &boft::TUNER,
    &c3a::TUNER,
    &deft::TUNER,
    &delora::TUNER,
    &fourierft::TUNER,
    &glora::TUNER,
    &gralora::TUNER,
    &hira::TUNER,
    &hra::TUNER,
    &ia3::TUNER,
    &ln_tuning::TUNER,
    &loha::TUNER,
    &lokr::TUNER,
    &lora::TUNER,
    &miss::BONE,
    &miss::TUNER,
    &none::TRAINABLE_TOKENS,
    &oft::TUNER,
    &osf::TUNER,
    &peanut::TUNER,
    &randlora::TUNER,
    &road::TUNER,
    &shira::TUNER,
    &supertuning::TUNER,
    &tinylora::TUNER,
    &unilora::TUNER,
    &vblora::TUNER,
    &vera::PVERA,
    &vera::VERA,
    &waveft::TUNER,
];

/// The tuner of a `peft_type`, in any case.
pub fn by_type(peft_type: &str) -> Result<&'static Tuner> {
    let wanted = peft_type.to_ascii_uppercase();
    if let Some(tuner) = TUNERS.iter().chain(none::NOT_MERGEABLE).find(|t| t.peft_type == wanted) {
        return Ok(tuner);
    }
    let known: Vec<_> = TUNERS.iter().map(|t| t.peft_type).collect();
    Err(Error::unrecognised(format!("PEFT tuner `{peft_type}` is not known; known: {}", known.join(", ")))
        .at_key("peft_type"))
}

/// All modules with tuned tensors, taken out of the reader: the tuner now answers for every one of them.
pub fn take_modules(reader: &mut Reader) -> Vec<(Place, Parts)> {
    std::mem::take(&mut reader.modules.tuned).into_iter().filter(|(_, parts)| !parts.is_empty()).collect()
}

/// Takes a role that has to be there.
pub fn need(parts: &mut Parts, role: &str) -> Result<Tensor> {
    match take(parts, role)? {
        Some(tensor) => Ok(tensor),
        None => {
            let beside = parts.values().next().map_or_else(|| parts.module.clone(), |p| p.key.clone());
            Err(Error::missing(format!("its partner `{role}` is not in the file")).at_key(beside))
        }
    }
}

/// Takes a role that may be there, checked to hold floating-point values.
pub fn take(parts: &mut Parts, role: &str) -> Result<Option<Tensor>> {
    let Some(Part { key, tensor }) = parts.remove(role) else { return Ok(None) };
    if tensor.elements() == 0 {
        return Err(empty(&key));
    }
    if !crate::tensor::dtype::is_float(tensor.dtype) {
        return Err(Error::mismatch(format!("dtype {}, expected floating-point values", tensor.dtype)).at_key(&key));
    }
    Ok(Some(tensor))
}

/// Takes an integer tensor (indices).
pub fn take_integers(parts: &mut Parts, role: &str) -> Result<Option<Vec<i64>>> {
    let Some(Part { key, tensor }) = parts.remove(role) else { return Ok(None) };
    tensor.to_integers().map(Some).map_err(|e| e.at_key(&key))
}

/// An error that names the first tensor a module's reader did not take.
pub fn require_taken(parts: &Parts, peft_type: &str) -> Result<()> {
    match parts.values().next() {
        None => Ok(()),
        Some(p) => {
            Err(Error::unrecognised(format!("a tensor {} that {peft_type} has no use for here", p.tensor.shape))
                .at_key(&p.key))
        }
    }
}

/// A seed for PyTorch's generator, which takes negative ones as their two's complement.
pub fn seed(config: &Config, name: &str, default: i64) -> Result<u64> {
    let Some(value) = config.value(name) else { return Ok(default as u64) };
    let seed = value.as_i64().map(|v| v as u64).or(value.as_u64());
    seed.ok_or_else(|| Error::malformed(format!("{value}, expected a whole number")).at_key(name))
}

/// A tensor of new values, for kinds that are expanded when they are read. Factors stay in f32.
pub fn owned(matrix: &ndarray::Array2<f32>) -> Result<Tensor> {
    let standard = matrix.as_standard_layout();
    let values: Vec<f32> = standard.iter().copied().collect();
    Tensor::from_f32(Dtype::F32, vec![matrix.nrows(), matrix.ncols()], &values)
}
