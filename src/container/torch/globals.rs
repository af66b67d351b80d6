//! The closed list of names a pickle may use. Nothing here is looked up anywhere
//! else, and a name that is missing is an error.

use super::ADVICE;
use crate::error::{Error, Result};
use crate::tensor::Dtype;

/// A name that a pickle may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2` and `_v3`, whose dtype is an argument.
    RebuildTensor {
        /// True for v3.
        dtype_given: bool,
    },
    /// `torch._utils._rebuild_parameter`.
    RebuildParameter,
    /// `torch.Size`.
    Size,
    /// `torch.FloatStorage` and its kin; none for `UntypedStorage`.
    Storage(Option<Dtype>),
    /// `torch.float32` and its kin.
    Dtype(Dtype),
}

/// The typed storages of PyTorch whose elements safetensors knows, too.
const STORAGES: [(&str, Dtype); 11] = [
    ("DoubleStorage", Dtype::F64),
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
    ("ComplexFloatStorage", Dtype::C64),
];

const DTYPES: [(&str, Dtype); 19] = [
    ("float64", Dtype::F64),
    ("float32", Dtype::F32),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
    ("float8_e8m0fnu", Dtype::F8_E8M0),
    ("int64", Dtype::I64),
    ("int32", Dtype::I32),
    ("int16", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint64", Dtype::U64),
    ("uint32", Dtype::U32),
    ("uint16", Dtype::U16),
    ("uint8", Dtype::U8),
    ("bool", Dtype::BOOL),
    ("complex64", Dtype::C64),
];

/// The typed storage of elements of this type.
pub fn storage(dtype: Dtype) -> Option<&'static str> {
    STORAGES.iter().find(|(_, d)| *d == dtype).map(|(name, _)| *name)
}

/// The global of this name.
pub fn find(module: &str, name: &str) -> Result<Global> {
    let listed = |list: &[(&str, Dtype)]| list.iter().find(|(n, _)| *n == name).map(|(_, dtype)| *dtype);
    let found = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor { dtype_given: false }),
        ("torch._utils", "_rebuild_tensor_v3") => Some(Global::RebuildTensor { dtype_given: true }),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch", "Size") => Some(Global::Size),
        ("torch" | "torch.storage", "UntypedStorage") => Some(Global::Storage(None)),
        ("torch", _) => {
            listed(&STORAGES).map(|d| Global::Storage(Some(d))).or_else(|| listed(&DTYPES).map(Global::Dtype))
        }
        _ => None,
    };
    found.ok_or_else(|| {
        Error::unsupported(format!("global `{module}.{name}` is not among those that tensors need; nothing was run"))
            .hint(ADVICE)
    })
}
