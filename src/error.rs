//! The one error type: what kind of fault, in which file, at which key, and what to do about it.
//!
//! Readers deep inside know only what is wrong. The first caller that knows the key or the file adds it with
//! [`Error::at_key`] and [`Error::in_file`]; a place that is already named is not overwritten from further out.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of fault it is. Scripts can tell these apart through the stable word of [`Kind::word`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The operating system refused a read, a write or another call.
    Io,
    /// A file breaks the rules of its own format.
    Malformed,
    /// Two things that belong together do not fit: shapes, ranks, dtypes.
    Mismatch,
    /// Something that is needed is not there.
    Missing,
    /// Understood, but not something this program can do.
    Unsupported,
    /// Not understood: an unknown key, field or layout.
    Unrecognised,
    /// Above a limit set in this program or on the command line.
    Limit,
    /// An output stands in the way, or would overwrite an input; an adapter is in the base already.
    Exists,
    /// NaN or infinity where only finite numbers make sense.
    Nonfinite,
    /// The command line contradicts itself.
    Usage,
    /// Refused because of `--strict`.
    Strict,
    /// A comparison came out beyond what was allowed. The answer has been given already.
    Differs,
    /// Ended by a signal, whose number it carries.
    Stopped(i32),
}

impl Kind {
    /// The stable name of the kind in `--json` output.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Io => "io",
            Kind::Malformed => "malformed",
            Kind::Mismatch => "mismatch",
            Kind::Missing => "missing",
            Kind::Unsupported => "unsupported",
            Kind::Unrecognised => "unrecognised",
            Kind::Limit => "limit",
            Kind::Exists => "exists",
            Kind::Nonfinite => "nonfinite",
            Kind::Usage => "usage",
            Kind::Strict => "strict",
            Kind::Differs => "differs",
            Kind::Stopped(_) => "stopped",
        }
    }
}

/// A fault with the place it was found at. Boxed, so that a `Result` stays one word wide.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    file: Option<PathBuf>,
    key: Option<String>,
    what: String,
    hint: Option<String>,
}

impl Error {
    /// A fault of `kind`, with one sentence (no full stop) that says what was found and what was expected.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, file: None, key: None, what: what.into(), hint: None }))
    }

    /// A file that breaks its own format.
    pub fn malformed(what: impl Into<String>) -> Self {
        Error::new(Kind::Malformed, what)
    }

    /// Two things that should fit together and do not.
    pub fn mismatch(what: impl Into<String>) -> Self {
        Error::new(Kind::Mismatch, what)
    }

    /// Something needed that is absent.
    pub fn missing(what: impl Into<String>) -> Self {
        Error::new(Kind::Missing, what)
    }

    /// Something understood that cannot be done.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::new(Kind::Unsupported, what)
    }

    /// Something not understood.
    pub fn unrecognised(what: impl Into<String>) -> Self {
        Error::new(Kind::Unrecognised, what)
    }

    /// More than a limit allows (`crate::limits`): what was found, and the most there may be.
    pub fn limit(found: impl fmt::Display, most: impl fmt::Display) -> Self {
        Error::new(Kind::Limit, format!("{found}, at most {most}"))
    }

    /// The same where counting stopped there.
    pub fn too_many(most: impl fmt::Display, what: &str) -> Self {
        Error::new(Kind::Limit, format!("more than {most} {what}"))
    }

    /// A system call that failed while doing `action` ("cannot read", "cannot create").
    pub fn io(action: &str, source: impl Into<std::io::Error>) -> Self {
        Error::new(Kind::Io, format!("{action}: {}", source.into()))
    }

    /// Names the tensor or field, unless an inner caller already did.
    #[must_use]
    pub fn at_key(mut self, key: impl Into<String>) -> Self {
        self.0.key.get_or_insert_with(|| key.into());
        self
    }

    /// Names the file, unless an inner caller already did.
    #[must_use]
    pub fn in_file(mut self, file: impl AsRef<Path>) -> Self {
        self.0.file.get_or_insert_with(|| file.as_ref().to_path_buf());
        self
    }

    /// Names the file by the place it would have had, where it lies below `from` and will never be seen there.
    #[must_use]
    pub fn moved(mut self, from: &Path, to: &Path) -> Self {
        if let Some(file) = &mut self.0.file
            && let Ok(rest) = file.strip_prefix(from)
        {
            *file = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
        }
        self
    }

    /// Names the base as well, where the fault lies between it and the file that is named; alone where none is.
    #[must_use]
    pub fn with_base(self, base: impl AsRef<Path>) -> Self {
        let between = self.0.kind == Kind::Mismatch || self.0.file.is_none();
        if between { self.with("the base", base) } else { self }
    }

    /// Names a further file that had a part in it, with a word for what it is, unless the message names it.
    #[must_use]
    pub fn with(mut self, word: &str, other: impl AsRef<Path>) -> Self {
        let other = other.as_ref();
        let Some(file) = &self.0.file else { return self.in_file(other) };
        let shown = other.display().to_string();
        if !file.starts_with(other) && !self.0.what.contains(&shown) {
            self.0.what += &format!("; {word} is {shown}");
        }
        self
    }

    /// Says what the user can do, unless an inner caller already did.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// What sort of fault it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The file it was found in, as the user spelt it.
    pub fn file(&self) -> Option<&Path> {
        self.0.file.as_deref()
    }

    /// The tensor, module or field it was found at.
    pub fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The sentence itself.
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// What to do about it.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            write!(f, "{}: ", printable(&file.to_string_lossy()))?;
        }
        if let Some(key) = self.0.key.as_ref().filter(|key| !key.is_empty()) {
            write!(f, "{}: ", printable(&shortened(key, LONGEST_KEY)))?;
        }
        f.write_str(&printable(&shortened(&self.0.what, LONGEST_SENTENCE)))
    }
}

impl std::error::Error for Error {}

/// Adds a place to the error of a result.
pub trait Context<T> {
    /// See [`Error::at_key`].
    fn at_key(self, key: impl Into<String>) -> Result<T>;
    /// See [`Error::in_file`].
    fn in_file(self, file: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn at_key(self, key: impl Into<String>) -> Result<T> {
        self.map_err(|e| e.at_key(key))
    }
    fn in_file(self, file: impl AsRef<Path>) -> Result<T> {
        self.map_err(|e| e.in_file(file))
    }
}

/// Bytes of a key and of a sentence that are shown; a file may have names of thousands.
const LONGEST_KEY: usize = 400;
const LONGEST_SENTENCE: usize = 1200;

/// The start and the end of a text that is too long to be shown.
fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let (start, end) = (text.floor_char_boundary(most * 2 / 3), text.ceil_char_boundary(text.len() - most / 3));
    Cow::Owned(format!("{}… {} bytes …{}", &text[..start], end - start, &text[end..]))
}

/// Text from a file, made safe for a terminal: control characters and direction overrides become escapes.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

/// Whether a character is seen by what it does to others.
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_places_are_kept() {
        let e = Error::mismatch("rank 8 against 16").at_key("q_proj").at_key("outer").in_file("a.safetensors");
        assert_eq!(e.to_string(), "a.safetensors: q_proj: rank 8 against 16");
    }

    #[test]
    fn what_is_too_long_is_shortened() {
        let text = Error::malformed("é".repeat(5000)).at_key("x".repeat(60_000)).to_string();
        assert!(text.len() < 2000 && text.contains("bytes …"), "{}", text.len());
        assert_eq!(shortened("é", 1).chars().filter(|c| *c == 'é').count(), 0);
    }

    #[test]
    fn hostile_text_cannot_drive_a_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\u{202e}"), "a\\u{1b}[31mb\\u{202e}");
    }
}
