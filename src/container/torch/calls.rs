//! What calling a name of the closed list stands for, and what a persistent id names. Nothing is run.
//!
//! What the functions take: pytorch/pytorch:torch/_utils.py; persistent ids: torch/serialization.py.

use super::ADVICE;
use super::globals::Global;
use super::objects::{Call, Dict, Form, Object, Objects, Storage, Value};
use crate::error::{Error, Result};

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
