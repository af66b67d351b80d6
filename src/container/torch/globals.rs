//! The closed list of names a pickle may use, and what calling them stands for. Nothing here is looked up anywhere
//! else, and a name that is missing is an error.
//!
//! What the functions take: pytorch/pytorch:torch/_utils.py; persistent ids: torch/serialization.py.

use super::ADVICE;
use super::objects::{Call, Dict, Object, Objects, Storage, Value};
use super::pickle::Form;
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

/// What a call stands for.
pub fn call<'a>(objects: &mut Objects<'a>, function: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>> {
    let Value::Global(global) = function else {
        return Err(Error::unsupported(format!("a call of {}", objects.type_name(function))).hint(ADVICE));
    };
    let (Value::Object(number), Some(given)) = (arguments, objects.tuple(arguments)) else {
        return Err(Error::malformed(format!("a call with {} as arguments", objects.type_name(arguments))));
    };
    match (global, given) {
        (Global::OrderedDict, []) => Ok(objects.add(Object::Dict(Dict { items: Vec::new(), ordered: true }))),
        (Global::OrderedDict, &[pairs]) => {
            let items = pairs_of(objects, pairs)?;
            Ok(objects.add(Object::Dict(Dict { items, ordered: true })))
        }
        (Global::RebuildTensor { dtype_given }, _) => {
            Ok(objects.add(Object::Tensor(Call { arguments: number, dtype_given })))
        }
        (Global::RebuildParameter, &[data, ..]) if matches!(objects.get(data), Some(Object::Tensor(_))) => Ok(data),
        (Global::Size, &[extents]) if objects.tuple(extents).is_some() => Ok(extents),
        _ => Err(Error::unsupported(format!("a call of {global:?} with {} arguments", given.len())).hint(ADVICE)),
    }
}

/// The pairs that Python 2 builds an `OrderedDict` from.
fn pairs_of<'a>(objects: &Objects<'a>, list: Value<'a>) -> Result<Vec<(Value<'a>, Value<'a>)>> {
    let bad = || Error::malformed("an OrderedDict of something else than pairs");
    let Some(Object::List(list)) = objects.get(list) else { return Err(bad()) };
    list.iter()
        .map(|pair| match objects.get(*pair) {
            Some(Object::Tuple(items)) => <[Value; 2]>::try_from(&items[..]).ok(),
            Some(Object::List(items)) => <[Value; 2]>::try_from(&items[..]).ok(),
            _ => None,
        })
        .map(|pair| pair.map(|[key, value]| (key, value)).ok_or_else(bad))
        .collect()
}

/// Attributes are left out, and only those of a module's state dict may be there: `_metadata` holds the versions of
/// its modules.
pub fn set_attributes<'a>(objects: &Objects<'a>, target: Value<'a>, state: Value<'a>) -> Result<()> {
    let (Some(Object::Dict(Dict { ordered: true, .. })), Some(Object::Dict(state))) =
        (objects.get(target), objects.get(state))
    else {
        let what = format!("a state of {} for {}", objects.type_name(state), objects.type_name(target));
        return Err(Error::unsupported(what).hint(ADVICE));
    };
    match state.items.iter().find(|(name, _)| *name != Value::Text("_metadata")) {
        None => Ok(()),
        Some((Value::Text(name), _)) => {
            Err(Error::unsupported(format!("an attribute `{name}` of an OrderedDict")).hint(ADVICE))
        }
        Some(_) => Err(Error::malformed("an attribute whose name is not text")),
    }
}

/// The storage that a persistent id names: ("storage", class, key, location, count), and in the old format a sixth
/// field for a view, which PyTorch has not written since 0.4.
pub fn storage<'a>(objects: &Objects<'a>, id: Value<'a>, form: Form) -> Result<Storage<'a>> {
    let fields = match (objects.tuple(id), form) {
        (Some([fields @ .., Value::None]), Form::Legacy) => fields,
        (Some(fields), _) => fields,
        (None, _) => &[],
    };
    match fields {
        [Value::Text("storage"), Value::Global(Global::Storage(dtype)), Value::Text(key), _, Value::Int(count)] => {
            let count = usize::try_from(*count)
                .map_err(|_| Error::malformed(format!("storage `{key}` of {count} elements")))?;
            Ok(Storage { dtype: *dtype, key, count })
        }
        [Value::Text(kind), ..] => {
            Err(Error::unsupported(format!("persistent id of kind `{kind}`, expected a storage")).hint(ADVICE))
        }
        _ => Err(Error::unsupported("a persistent id that names no storage").hint(ADVICE)),
    }
}
