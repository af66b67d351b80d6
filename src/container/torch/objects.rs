//! What a pickle builds: values, and the objects that values refer to by number, in one flat list.

use super::globals::Global;
use crate::tensor::Dtype;

/// Where the persistent ids of a file come from, which decides how many fields they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Zip archive.
    Zip,
    /// The format before PyTorch 1.6.
    Legacy,
}

/// What stands on the stack, in the memo and inside objects.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number of up to eight bytes.
    Int(i64),
    /// A longer one, little-endian two's complement.
    Wide(&'a [u8]),
    /// A float, whose value nothing here needs.
    Float,
    /// Text.
    Text(&'a str),
    /// A name from the closed list.
    Global(Global),
    /// Number of an object.
    Object(usize),
}

/// What can be referred to more than once.
#[derive(Clone, Debug)]
pub enum Object<'a> {
    /// A tuple; `torch.Size` is one.
    Tuple(Box<[Value<'a>]>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A dict in order of insertion. A key may stand twice.
    Dict(Dict<'a>),
    /// A block of elements somewhere else in the file.
    Storage(Storage<'a>),
    /// A view of a storage, not looked at yet.
    Tensor(Call),
}

/// The items of a dict.
#[derive(Clone, Debug, Default)]
pub struct Dict<'a> {
    /// Keys and values.
    pub items: Vec<(Value<'a>, Value<'a>)>,
    /// True for an `OrderedDict`, which may have attributes.
    pub ordered: bool,
}

/// A persistent id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Storage<'a> {
    /// Element type; none for bytes whose type each tensor names.
    pub dtype: Option<Dtype>,
    /// Name within the file.
    pub key: &'a str,
    /// Elements, or bytes where there is no type.
    pub count: usize,
}

/// A tensor as it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Number of the tuple of arguments.
    pub arguments: usize,
    /// True for the form whose dtype is an argument (`_rebuild_tensor_v3`).
    pub dtype_given: bool,
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub struct Objects<'a>(Vec<Object<'a>>);

impl<'a> Objects<'a> {
    /// Adds one.
    pub fn add(&mut self, object: Object<'a>) -> Value<'a> {
        self.0.push(object);
        Value::Object(self.0.len() - 1)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The object that `value` refers to, if it is one.
    pub fn get(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(number) => self.0.get(number),
            _ => None,
        }
    }

    /// The same, to be filled.
    pub fn get_mut(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        match value {
            Value::Object(number) => self.0.get_mut(number),
            _ => None,
        }
    }

    /// The elements of a tuple.
    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.get(value) {
            Some(Object::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    /// All storages, each as often as it was referred to.
    pub fn storages(&self) -> impl Iterator<Item = Storage<'a>> {
        self.0.iter().filter_map(|o| if let Object::Storage(s) = o { Some(*s) } else { None })
    }

    /// What a value is, in words for messages.
    pub fn type_name(&self, value: Value<'a>) -> &'static str {
        match value {
            Value::None => "None",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Wide(_) => "a whole number",
            Value::Float => "a float",
            Value::Text(_) => "text",
            Value::Global(_) => "a name",
            Value::Object(_) => match self.get(value) {
                Some(Object::Tuple(_)) => "a tuple",
                Some(Object::List(_)) => "a list",
                Some(Object::Dict(_)) => "a dict",
                Some(Object::Storage(_)) => "a storage",
                Some(Object::Tensor(_)) => "a tensor",
                None => "nothing",
            },
        }
    }
}
