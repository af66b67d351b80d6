//! A pickle machine that can build dicts, lists, tuples, numbers, text, storages and tensors, and nothing else.
//!
//! It is no Python: an opcode that is not in [`Machine::step`] and a global that is not in [`globals`](super::globals)
//! end the reading, and a call is a record of its arguments. Objects live in one flat list and refer to each other by
//! number, so that neither depth nor sharing costs anything and nothing here recurses.
//!
//! Opcodes: python/cpython:Lib/pickletools.py (protocols 2 to 5).

use super::objects::{Dict, Form, Object, Objects, Value};
use super::{calls, globals};
use crate::error::{Error, Result};
use crate::limits;

/// A pickle that has been read.
#[derive(Debug)]
pub struct Pickle<'a> {
    /// What it holds.
    pub root: Value<'a>,
    /// The objects that values refer to.
    pub objects: Objects<'a>,
    /// The byte after its last one.
    pub end: usize,
    /// Opcodes so far, in it and in those before it in the row.
    opcodes: usize,
}

/// Reads the pickle that starts at `start`. Positions in errors count from the start of `data`.
pub fn load(data: &[u8], start: usize, form: Form) -> Result<Pickle<'_>> {
    load_from(data, start, form, 0)
}

/// The pickle after another in a row of them, which all together have as many opcodes as one by itself.
pub fn load_next<'a>(data: &'a [u8], before: &Pickle) -> Result<Pickle<'a>> {
    load_from(data, before.end, Form::Legacy, before.opcodes)
}

fn load_from(data: &[u8], start: usize, form: Form, opcodes: usize) -> Result<Pickle<'_>> {
    let mut machine = Machine {
        data,
        at: start,
        form,
        opcodes,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        objects: Objects::default(),
    };
    loop {
        let opcode_at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => {
                let Machine { objects, at, opcodes, .. } = machine;
                return Ok(Pickle { root, objects, end: at, opcodes });
            }
            Err(e) => return Err(e.at_key(format!("pickle, byte {opcode_at}"))),
        }
    }
}

struct Machine<'a> {
    data: &'a [u8],
    at: usize,
    form: Form,
    opcodes: usize,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: Vec<Option<Value<'a>>>,
    objects: Objects<'a>,
}

impl<'a> Machine<'a> {
    /// One opcode. The value on top at the end of the pickle, when this was the end.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        self.opcodes += 1;
        if self.opcodes > limits::PICKLE_OPCODES {
            return Err(Error::too_many(limits::PICKLE_OPCODES, "opcodes"));
        }
        match self.byte()? {
            0x80 => self.protocol()?,
            0x95 => drop(self.take(8)?), // FRAME: a length to read ahead by
            b'.' => return self.finish().map(Some),
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(i64::from(n)))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(n)))?;
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(n)))?;
            }
            0x8a => {
                let len = usize::from(self.byte()?);
                self.long(len)?;
            }
            0x8b => {
                let len = self.length_u32()?;
                self.long(len)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }
            0x8c => {
                let len = usize::from(self.byte()?);
                self.text(len)?;
            }
            b'X' => {
                let len = self.length_u32()?;
                self.text(len)?;
            }
            0x8d => {
                let len = u64::from_le_bytes(self.array()?);
                self.text(usize::try_from(len).unwrap_or(usize::MAX))?;
            }
            // What Python 2 wrote for text.
            b'U' => {
                let len = usize::from(self.byte()?);
                self.text(len)?;
            }
            b'T' => {
                let len = self.length_u32()?;
                self.text(len)?;
            }
            b']' => self.push_object(Object::List(Vec::new()))?,
            b'}' => self.push_object(Object::Dict(Dict::default()))?,
            b')' => self.push_object(Object::Tuple(Box::default()))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'(' => self.mark()?,
            b't' => {
                let items = self.pop_mark()?;
                self.push_object(Object::Tuple(items.into()))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'q' => {
                let slot = usize::from(self.byte()?);
                self.remember(slot)?;
            }
            b'r' => {
                let slot = self.length_u32()?;
                self.remember(slot)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'h' => {
                let slot = usize::from(self.byte()?);
                self.recall(slot)?;
            }
            b'j' => {
                let slot = self.length_u32()?;
                self.recall(slot)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err(Error::malformed("a global whose name is not text"));
                };
                self.global(module, name)?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = calls::call(&mut self.objects, function, arguments)?;
                if let Some(Object::Dict(copy)) = self.objects.get(result) {
                    self.opcodes += copy.items.len(); // a call that copies many items costs as many opcodes
                }
                self.push(result)?;
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                calls::set_attributes(&self.objects, target, state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = calls::storage(&self.objects, id, self.form)?;
                self.push_object(Object::Storage(storage))?;
            }
            b'i' => {
                let what =
                    format!("opcode 0x69 (INST), a call of `{}.{}`; nothing was run", self.line()?, self.line()?);
                return Err(Error::unsupported(what).hint(super::ADVICE));
            }
            other => return Err(refused(other)),
        }
        Ok(None)
    }

    fn protocol(&mut self) -> Result<()> {
        let protocol = self.byte()?;
        if !(2..=5).contains(&protocol) {
            return Err(Error::unsupported(format!("pickle protocol {protocol}, expected 2 to 5")));
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Value<'a>> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(Error::malformed("the pickle ends with values left over"));
        }
        Ok(root)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.data.get(self.at..end));
        let bytes = bytes.ok_or_else(|| {
            Error::malformed("the pickle is cut").hint("the download may have been cut short; compare the size")
        })?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.first_chunk().copied().ok_or_else(|| Error::malformed("the pickle is cut"))
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn length_u32(&mut self) -> Result<usize> {
        let len = u32::from_le_bytes(self.array()?);
        usize::try_from(len).map_err(|_| Error::malformed(format!("length {len}")))
    }

    /// A line of a global's name.
    fn line(&mut self) -> Result<&'a str> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let rest = &rest[..rest.len().min(limits::PICKLE_GLOBAL_BYTES)];
        let len = rest.iter().position(|&b| b == b'\n');
        let len = len.ok_or_else(|| Error::malformed("a global whose name does not end"))?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| Error::malformed("a global whose name is not UTF-8"))
    }

    fn long(&mut self, len: usize) -> Result<()> {
        if len > limits::PICKLE_INTEGER_BYTES {
            return Err(Error::limit(format!("an integer of {len} bytes"), limits::PICKLE_INTEGER_BYTES));
        }
        let bytes = self.take(len)?;
        if len > 8 {
            return self.push(Value::Wide(bytes));
        }
        let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [sign; 8];
        whole[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn text(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Error::malformed("text that is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= limits::PICKLE_STACK {
            return Err(Error::too_many(limits::PICKLE_STACK, "values on the stack"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn push_object(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() >= limits::PICKLE_OBJECTS {
            return Err(Error::too_many(limits::PICKLE_OBJECTS, "objects"));
        }
        let value = self.objects.add(object);
        self.push(value)
    }

    /// The lowest place on the stack that the current opcode may touch.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>> {
        let above = self.stack.get(self.floor()..).unwrap_or_default();
        above.last().copied().ok_or_else(|| Error::malformed("an opcode that needs a value finds none"))
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() >= limits::PICKLE_STACK {
            return Err(Error::too_many(limits::PICKLE_STACK, "marks on the stack"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let mark = self.marks.pop().ok_or_else(|| Error::malformed("an opcode that needs a mark finds none"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, len: usize) -> Result<()> {
        let from = self.stack.len().checked_sub(len).filter(|&from| from >= self.floor());
        let from = from.ok_or_else(|| Error::malformed(format!("a tuple of {len} finds fewer values")))?;
        let items = self.stack.split_off(from);
        self.push_object(Object::Tuple(items.into()))
    }

    fn extend(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        match self.top_object()? {
            Some(Object::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(Error::malformed("items for something that is not a list")),
        }
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<()> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(Error::malformed("a key without a value"));
        }
        match self.top_object()? {
            Some(Object::Dict(dict)) => {
                dict.items.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(Error::malformed("items for something that is not a dict")),
        }
    }

    fn top_object(&mut self) -> Result<Option<&mut Object<'a>>> {
        let top = self.top()?;
        Ok(self.objects.get_mut(top))
    }

    /// Pickles number their memo from zero, so that a slot is never beyond the opcodes so far.
    fn remember(&mut self, slot: usize) -> Result<()> {
        let value = self.top()?;
        if slot > self.opcodes {
            return Err(Error::malformed(format!("memo slot {slot} after {} opcodes", self.opcodes)));
        }
        if slot >= self.memo.len() {
            self.memo.resize(slot + 1, None);
        }
        self.memo[slot] = Some(value);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Result<()> {
        let value = self.memo.get(slot).copied().flatten();
        let value = value.ok_or_else(|| Error::malformed(format!("memo slot {slot} is empty")))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        self.push(Value::Global(globals::find(module, name)?))
    }
}

fn refused(opcode: u8) -> Error {
    let name = match opcode {
        b'0' => " (POP)",
        b'1' => " (POP_MARK)",
        b'2' => " (DUP)",
        b'B' | b'C' | 0x8e => " (bytes)",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'd' | b'l' | b'p' | b'g' => " (of a text protocol)",
        b'P' => " (PERSID)",
        b'o' => " (OBJ)",
        0x81 => " (NEWOBJ)",
        0x82..=0x84 => " (EXT)",
        0x8f..=0x91 => " (sets)",
        0x92 => " (NEWOBJ_EX)",
        0x96..=0x98 => " (buffers)",
        _ => "",
    };
    Error::unsupported(format!("opcode {opcode:#04x}{name} is not among those that tensors need")).hint(super::ADVICE)
}
