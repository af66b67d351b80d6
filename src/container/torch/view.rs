//! From a call that rebuilds a tensor to the tensor: storage, offset, shape and stride are checked as a set, since
//! each of them alone can be plausible while together they point outside the file.

use std::ops::Range;
use std::sync::Arc;

use super::globals::Global;
use super::objects::{Call, Object, Objects, Storage, Value};
use crate::error::{Error, Kind, Result};
use crate::limits;
use crate::tensor::{Bytes, Dtype, MappedFile, Shape, Tensor, dtype};

/// A part of a storage.
#[derive(Debug, PartialEq)]
pub struct View<'a> {
    /// Where the elements are.
    pub storage: Storage<'a>,
    /// What they are.
    dtype: Dtype,
    /// First element.
    offset: usize,
    /// Extents.
    size: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    stride: Vec<usize>,
}

/// The view a call asks for.
pub fn of_call<'a>(objects: &Objects<'a>, call: Call) -> Result<View<'a>> {
    let arguments = objects.tuple(Value::Object(call.arguments)).unwrap_or_default();
    let (&[storage, offset, size, stride, _, _], rest) = arguments
        .split_first_chunk::<6>()
        .ok_or_else(|| Error::malformed(format!("a tensor of {} arguments, expected at least 6", arguments.len())))?;
    let Some(Object::Storage(storage)) = objects.get(storage) else {
        return Err(Error::malformed(format!("a tensor over {}, expected a storage", objects.type_name(storage))));
    };
    let (given, rest) = match rest {
        [Value::Global(Global::Dtype(given)), rest @ ..] if call.dtype_given => (Some(*given), rest),
        _ if call.dtype_given => return Err(Error::malformed("a tensor without its dtype")),
        rest => (None, rest),
    };
    refuse_marks(objects, rest)?;
    let dtype = match (storage.dtype, given) {
        (Some(dtype), None) | (None, Some(dtype)) => dtype,
        (None, None) => return Err(Error::malformed("a tensor over an untyped storage names no dtype")),
        (Some(a), Some(b)) => return Err(Error::malformed(format!("a tensor of {b} over a storage of {a}"))),
    };
    let offset = whole(objects, offset, "offset")?;
    let (size, stride) = (wholes(objects, size, "shape")?, wholes(objects, stride, "stride")?);
    if size.len() != stride.len() {
        return Err(Error::malformed(format!("{} extents and {} strides", size.len(), stride.len())));
    }
    if size.len() > limits::DIMENSIONS {
        return Err(Error::limit(format!("{} dimensions", size.len()), limits::DIMENSIONS));
    }
    Ok(View { storage: *storage, dtype, offset, size, stride })
}

/// The last argument marks tensors whose values have to be conjugated or negated when read.
fn refuse_marks<'a>(objects: &Objects<'a>, rest: &[Value<'a>]) -> Result<()> {
    match rest {
        [] | [Value::None] => Ok(()),
        [marks] if matches!(objects.get(*marks), Some(Object::Dict(d)) if d.items.is_empty()) => Ok(()),
        _ => Err(Error::unsupported("a tensor with marks (conjugated, negated)").hint(super::ADVICE)),
    }
}

fn whole<'a>(objects: &Objects<'a>, value: Value<'a>, what: &str) -> Result<usize> {
    match value {
        Value::Int(n) => usize::try_from(n)
            .map_err(|_| Error::malformed(format!("{what} {n}, expected a whole number that is not negative"))),
        Value::Wide(_) => Err(Error::malformed(format!("{what} of more than 64 bits"))),
        other => Err(Error::malformed(format!("{what} is {}, expected a whole number", objects.type_name(other)))),
    }
}

fn wholes<'a>(objects: &Objects<'a>, value: Value<'a>, what: &str) -> Result<Vec<usize>> {
    let items = objects.tuple(value).ok_or_else(|| {
        Error::malformed(format!("{what} is {}, expected a tuple of whole numbers", objects.type_name(value)))
    })?;
    items.iter().map(|item| whole(objects, *item, what)).collect()
}

/// Makes tensors of views, mapped where their elements lie in order and copied where not.
pub struct Maker<'f> {
    file: &'f Arc<MappedFile>,
    copies_left: usize,
}

impl<'f> Maker<'f> {
    /// For the views of one file.
    pub fn new(file: &'f Arc<MappedFile>) -> Self {
        Maker { file, copies_left: file.as_slice().len().saturating_add(limits::PICKLE_COPY_BYTES) }
    }

    /// The tensor; `place` is where its storage lies in the file.
    pub fn tensor(&mut self, view: &View, place: &Range<usize>) -> Result<Tensor> {
        let width = view.dtype.bitsize() / 8;
        let shape = Shape::new(view.size.clone());
        let elements = shape.elements()?;
        let bytes = dtype::byte_len(view.dtype, elements)?;
        let stored = check_storage(view, place.len(), width)?;
        let end = view.end().ok_or_else(|| Error::malformed(format!("shape {shape} and its strides overflow")))?;
        if end > stored {
            let what = format!(
                "shape {shape} with strides {:?} from element {} reaches element {end}, storage `{}` has {stored}",
                view.stride, view.offset, view.storage.key
            );
            return Err(Error::malformed(what));
        }
        let bytes = if elements == 0 {
            Bytes::mapped(self.file, place.start..place.start)?
        } else if view.is_contiguous() {
            let start = place.start + view.offset * width; // inside the storage, as `end` is
            Bytes::mapped(self.file, start..start + bytes)?
        } else {
            self.copy(view, place, bytes, width)?
        };
        Tensor::new(view.dtype, shape, bytes)
    }

    fn copy(&mut self, view: &View, place: &Range<usize>, bytes: usize, width: usize) -> Result<Bytes> {
        let left = self.copies_left.checked_sub(bytes).ok_or_else(|| {
            let found = format!("{bytes} bytes of elements that do not lie in order");
            let most = format!("{} more", self.copies_left);
            Error::limit(found, most).hint("save the tensors with .contiguous()")
        })?;
        self.copies_left = left;
        let mut out = Vec::new();
        out.try_reserve_exact(bytes).map_err(|e| Error::new(Kind::Limit, format!("{bytes} bytes: {e}")))?;
        let storage = self.file.as_slice().get(place.clone()).unwrap_or_default();
        view.gather(storage, width, &mut out);
        Ok(out.into())
    }
}

/// Elements in the storage, whose size in the pickle and in the file have to agree.
fn check_storage(view: &View, found: usize, width: usize) -> Result<usize> {
    let storage = &view.storage;
    let expected = if storage.dtype.is_some() { storage.count.checked_mul(width) } else { Some(storage.count) };
    if expected != Some(found) {
        let dtype = storage.dtype.map_or("bytes".to_string(), |d| format!("elements of {d}"));
        let what = format!("storage `{}` has {found} bytes, the pickle says {} {dtype}", storage.key, storage.count);
        return Err(Error::malformed(what));
    }
    Ok(found / width)
}

impl View<'_> {
    /// The element after the last one that is reached; none on overflow.
    fn end(&self) -> Option<usize> {
        if self.size.contains(&0) {
            return Some(0);
        }
        let steps = self.size.iter().zip(&self.stride);
        let last = steps.map(|(n, s)| (n - 1).checked_mul(*s)).try_fold(self.offset, |sum, s| sum.checked_add(s?))?;
        last.checked_add(1)
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.size.iter().zip(&self.stride).rev().all(|(&n, &s)| {
            let fits = n == 1 || s == expected;
            expected *= n; // the product of the shape is known to fit
            fits
        })
    }

    /// Appends the elements in row-major order. Every index is known to lie inside `storage`.
    fn gather(&self, storage: &[u8], width: usize, out: &mut Vec<u8>) {
        let (Some((&inner, outer)), Some((&step, outer_steps))) = (self.size.split_last(), self.stride.split_last())
        else {
            return;
        };
        let mut index = vec![0; outer.len()];
        let mut row = self.offset;
        loop {
            for i in 0..inner {
                let at = (row + i * step) * width;
                out.extend_from_slice(storage.get(at..at + width).unwrap_or_default());
            }
            let mut axis = outer.len();
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                if index[axis] < outer[axis] {
                    row += outer_steps[axis];
                    break;
                }
                row -= (outer[axis] - 1) * outer_steps[axis];
                index[axis] = 0;
            }
        }
    }
}
