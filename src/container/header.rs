//! The JSON header of a safetensors file, read strictly. Each rule is checked here first, so that the message can name
//! the tensor and the field; what the `safetensors` crate lets pass (a key that stands twice) is refused.
//!
//! Format: <https://github.com/huggingface/safetensors>, README.

use std::fmt;

use indexmap::IndexMap;
use safetensors::tensor::TensorInfo;
use serde::de::value::{Error as Plain, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::json::{self, Strict, unexpected};
use crate::error::{Context, Error, Result, printable};
use crate::limits;
use crate::tensor::{Dtype, Shape, dtype};

/// Header metadata in file order.
pub type FileMetadata = IndexMap<String, String>;

const METADATA: &str = "__metadata__";

/// What a header says.
pub struct Header {
    /// Entries sorted by where their data lies.
    pub entries: Vec<(String, TensorInfo)>,
    /// `__metadata__`, in file order.
    pub metadata: FileMetadata,
}

/// Reads a header. Whitespace before and after it is allowed: writers align the data with it.
pub fn parse(header: &[u8]) -> Result<Header> {
    let text = std::str::from_utf8(header)
        .map_err(|e| Error::malformed(format!("header is not UTF-8 at byte {}", e.valid_up_to())))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut collected = Collected::default();
    let read = json.deserialize_map(&mut collected).and_then(|()| json.end());
    if let Err(e) = read {
        let own = collected.fault.take();
        return Err(own.unwrap_or_else(|| Error::new(json::kind(&e), format!("header: {}", printable(&e.to_string())))));
    }
    let mut entries: Vec<_> = collected.entries.into_iter().collect();
    // Stable: tensors without bytes keep the header's order among those that start where they do.
    entries.sort_by_key(|(_, info)| info.data_offsets);
    Ok(Header { entries, metadata: collected.metadata.unwrap_or_default() })
}

/// Checks that the entries, in the order of their data, cover it without overlap or hole.
pub fn check(entries: &[(String, TensorInfo)], data_len: usize) -> Result<()> {
    let mut expected_start = 0;
    for (name, info) in entries {
        check_entry(info, expected_start, data_len).at_key(name)?;
        expected_start = info.data_offsets.1;
    }
    if expected_start != data_len {
        return Err(match entries.last() {
            None => Error::malformed(format!("no tensors, but {data_len} bytes of data")),
            Some((name, _)) => {
                let what = format!("the last tensor ends at byte {expected_start} of {data_len} bytes of data");
                Error::malformed(what).at_key(name)
            }
        });
    }
    Ok(())
}

fn check_entry(info: &TensorInfo, expected_start: usize, data_len: usize) -> Result<()> {
    let shape = Shape::new(info.shape.clone());
    let (from, to) = info.data_offsets;
    if shape.rank() > limits::DIMENSIONS {
        return Err(Error::limit(format!("{} dimensions", shape.rank()), limits::DIMENSIONS));
    }
    let takes = dtype::byte_len(info.dtype, shape.elements()?)?;
    if from > to || to > data_len {
        let what = format!("data_offsets [{from}, {to}] lie outside the {data_len} bytes of data");
        let hint = "the download may have been cut short; compare the size with its source";
        return Err(Error::malformed(what).hint(hint));
    }
    if to - from != takes {
        let what =
            format!("{} {shape} takes {takes} bytes, data_offsets [{from}, {to}] give {}", info.dtype, to - from);
        return Err(Error::malformed(what));
    }
    if from != expected_start {
        let fault = if from < expected_start { "overlaps the tensor before it" } else { "leaves a hole before it" };
        return Err(Error::malformed(format!(
            "data_offsets [{from}, {to}], expected a start at {expected_start}: {fault}"
        )));
    }
    Ok(())
}

/// What has been read so far. An error of our own waits in `fault`, since that of the parser can only be text.
#[derive(Default)]
struct Collected {
    entries: IndexMap<String, TensorInfo>,
    metadata: Option<FileMetadata>,
    fault: Option<Error>,
}

impl<'de> Visitor<'de> for &mut Collected {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let added = match map.next_value_seed(Strict::default()) {
                Ok(value) => self.add(&name, value),
                Err(e) => Err(Error::new(json::kind(&e), format!("header: {e}"))),
            };
            if let Err(e) = added {
                self.fault = Some(e.at_key(name));
                return Err(M::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

impl Collected {
    fn add(&mut self, name: &str, value: Value) -> Result<()> {
        if name == METADATA {
            if self.metadata.is_some() {
                return Err(twice());
            }
            self.metadata = Some(metadata(value)?);
            return Ok(());
        }
        if name.len() > limits::NAME_BYTES {
            let found = format!("a name of {} bytes", name.len());
            return Err(Error::limit(found, limits::NAME_BYTES).at_key(&name[..name.floor_char_boundary(60)]));
        }
        if self.entries.len() == limits::TENSORS {
            return Err(Error::too_many(limits::TENSORS, "tensors"));
        }
        if self.entries.contains_key(name) {
            return Err(twice());
        }
        self.entries.insert(name.to_string(), entry(value)?);
        Ok(())
    }
}

fn twice() -> Error {
    Error::malformed("this name stands twice in the header")
}

/// `null`, which the reference reader takes as well, or an object of strings.
fn metadata(value: Value) -> Result<FileMetadata> {
    let map = match value {
        Value::Null => return Ok(FileMetadata::new()),
        Value::Object(map) => map,
        other => return Err(unexpected(&other, "an object of strings")),
    };
    map.into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => Ok((key, text)),
            other => Err(unexpected(&other, "a string").at_key(format!("{METADATA}: {key}"))),
        })
        .collect()
}

/// One tensor's entry. Fields of other names are passed over, as the reference reader does.
fn entry(value: Value) -> Result<TensorInfo> {
    let Value::Object(map) = value else {
        return Err(unexpected(&value, "an object with dtype, shape and data_offsets"));
    };
    let shape = array(&map, "shape")?.iter().map(|v| whole(v, "shape")).collect::<Result<_>>()?;
    let data_offsets = match array(&map, "data_offsets")? {
        [from, to] => (whole(from, "data_offsets")?, whole(to, "data_offsets")?),
        other => return Err(Error::malformed(format!("data_offsets of {} numbers, expected two", other.len()))),
    };
    Ok(TensorInfo { dtype: element_type(&map)?, shape, data_offsets })
}

fn field<'m>(map: &'m Map<String, Value>, name: &str) -> Result<&'m Value> {
    map.get(name).ok_or_else(|| Error::malformed(format!("no `{name}` in its entry")))
}

fn array<'m>(map: &'m Map<String, Value>, name: &str) -> Result<&'m [Value]> {
    let value = field(map, name)?;
    let items = value.as_array().ok_or_else(|| in_field(name, value, "an array of whole numbers"))?;
    Ok(items)
}

fn whole(value: &Value, name: &str) -> Result<usize> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| in_field(name, value, "a whole number that is not negative"))
}

fn element_type(map: &Map<String, Value>) -> Result<Dtype> {
    let value = field(map, "dtype")?;
    let text = value.as_str().ok_or_else(|| in_field("dtype", value, "the name of an element type"))?;
    let name: StrDeserializer<Plain> = text.into_deserializer();
    Dtype::deserialize(name).map_err(|_| in_field("dtype", value, "the name of an element type, such as F32"))
}

fn in_field(name: &str, value: &Value, expected: &str) -> Error {
    let inner = unexpected(value, expected);
    Error::malformed(format!("{name}: {}", inner.what()))
}
