//! `Bytes`: a cheap handle on owned memory, on a range of a mapped file, or on what is made of others when it is wanted.
//! The only place that maps files.
//!
//! Inputs are mapped read-only and never written. A mapping remembers which file it is of, its size and modification
//! time, so that a change under our feet is noticed before a result is committed. It does not keep the file open: a
//! model may have more shards than a process may have open files.

#![expect(unsafe_code, reason = "mapping a file, and letting mapped pages go")]

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};

/// Pages are counted in this size.
const PAGE: usize = 4096;

/// All files that are mapped, to find one by an address.
static MAPPED: Mutex<Vec<Weak<MappedFile>>> = Mutex::new(Vec::new());

/// A file mapped for reading.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Option<Mmap>, // none for an empty file, which cannot be mapped
    len: usize,
    about: About,
}

/// What a file that did not change has in common with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    device: u64,
    inode: u64,
    len: u64,
    modified: Option<SystemTime>,
}

impl About {
    fn of(file: &Metadata) -> About {
        About { device: file.dev(), inode: file.ino(), len: file.len(), modified: file.modified().ok() }
    }
}

impl MappedFile {
    /// Maps the regular file at `path` (links are followed).
    pub fn open(path: &Path) -> Result<Arc<MappedFile>> {
        let fail = |e: std::io::Error| Error::io("cannot open", e).in_file(path);
        // Ask before opening: opening a FIFO would wait for a writer.
        let about = std::fs::metadata(path).map_err(fail)?;
        if !about.is_file() {
            let found = if about.is_dir() { "a folder" } else { "not a regular file" };
            return Err(Error::unsupported(format!("{found}, expected a file")).in_file(path));
        }
        let file = File::open(path).map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        let len = usize::try_from(about.len())
            .map_err(|_| Error::unsupported("too large to map on this system").in_file(path))?;
        // SAFETY: the mapping is read-only and private to this type. Another process may still truncate or rewrite
        // the file: truncation ends in SIGBUS and a rewrite changes what is read. No invariant of ours rests on the
        // bytes staying equal between two reads, and `unchanged` refuses to commit a result after either.
        let map = if len == 0 { None } else { Some(unsafe { Mmap::map(&file) }.map_err(fail)?) };
        let mapped = Arc::new(MappedFile { path: path.to_path_buf(), map, len, about: About::of(&about) });
        let mut all = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|file| file.strong_count() > 0);
        }
        all.push(Arc::downgrade(&mapped));
        Ok(mapped)
    }

    /// The file that is mapped at this address.
    pub fn path_at(address: usize) -> Option<PathBuf> {
        let all: Vec<_> =
            MAPPED.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect();
        let holds = |file: &MappedFile| {
            let from = file.as_slice().as_ptr() as usize;
            (from..from + file.len.next_multiple_of(PAGE)).contains(&address)
        };
        all.iter().find(|file| holds(file)).map(|file| file.path.clone())
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file opened anew, for copies inside the kernel; none where that fails or another file has taken the name.
    pub fn reopen(&self) -> Option<File> {
        let file = File::open(&self.path).ok()?;
        (About::of(&file.metadata().ok()?) == self.about).then_some(file)
    }

    /// All bytes of the file.
    pub fn as_slice(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// An error if another file has the name now, or size or modification time differ from those at opening.
    pub fn unchanged(&self) -> Result<()> {
        let now = std::fs::metadata(&self.path).map_err(|e| Error::io("cannot check", e).in_file(&self.path))?;
        if About::of(&now) == self.about {
            return Ok(());
        }
        let what = if (now.dev(), now.ino()) == (self.about.device, self.about.inode) { "changed" } else { "replaced" };
        let what = format!("{what} while it was being read");
        Err(Error::new(crate::error::Kind::Io, what).in_file(&self.path).hint("run it again when the file is at rest"))
    }

    /// Has the kernel map `range` in one call, before it is read page by page. Where that cannot be done, reading it
    /// does the same more slowly.
    fn fetch(&self, range: Range<usize>) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(map) = &self.map {
            let start = range.start / PAGE * PAGE;
            let _ = map.advise_range(memmap2::Advice::PopulateRead, start, range.end - start);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = range;
    }

    /// Has the kernel begin to read `range` from disk, without waiting for it.
    fn announce(&self, range: Range<usize>) {
        if let Some(map) = &self.map {
            let start = range.start / PAGE * PAGE;
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, range.end - start);
        }
    }

    /// Tells the kernel that `range` is not needed for now, so that it stops counting as resident memory of this
    /// process. It can still be read again.
    fn release(&self, range: Range<usize>) {
        let Some(map) = &self.map else { return };
        // Whole pages only: a neighbour may be reading the rest of the first and last one.
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end / PAGE * PAGE;
        if start < end {
            // SAFETY: on a shared read-only file mapping, DONTNEED drops page-table entries only; the next access
            // reads the same bytes from the page cache again.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

/// Makes bytes from others.
type Make = Box<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// Bytes that are made when they are wanted, from others.
struct Made {
    from: Bytes,
    len: usize,
    make: Make,
    kept: OnceLock<Vec<u8>>,
}

impl Made {
    fn make(&self) -> Vec<u8> {
        self.from.fetch(0..self.from.len());
        let mut out = (self.make)(&self.from.read());
        self.from.release(0..self.from.len());
        out.resize(self.len, 0);
        out
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Made({} bytes of {:?})", self.len, self.from)
    }
}

#[derive(Clone, Debug)]
enum Owner {
    Memory(Arc<Vec<u8>>), // not Arc<[u8]>, which would copy them
    File(Arc<MappedFile>),
    Made(Arc<Made>),
}

/// A range of bytes; cloning copies the handle, not the bytes.
#[derive(Clone, Debug)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// The range of a mapped file, or an error where it reaches past the end.
    pub fn mapped(file: &Arc<MappedFile>, range: Range<usize>) -> Result<Bytes> {
        if range.start > range.end || range.end > file.len {
            return Err(Error::malformed(format!("bytes {range:?} lie outside the file of {} bytes", file.len))
                .in_file(file.path()));
        }
        Ok(Bytes { owner: Owner::File(Arc::clone(file)), range })
    }

    /// `len` bytes that `make` makes from others when they are wanted. It is to work on the thread it is called on: another
    /// that took over other work meanwhile could wait for the same bytes.
    pub fn made(from: &Bytes, len: usize, make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Bytes {
        let made = Made { from: from.clone(), len, make: Box::new(make), kept: OnceLock::new() };
        Bytes { owner: Owner::Made(Arc::new(made)), range: 0..len }
    }

    /// The bytes. Those that are made are kept from then on.
    pub fn as_slice(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::Memory(bytes) => bytes,
            Owner::File(file) => file.as_slice(),
            Owner::Made(made) => made.kept.get_or_init(|| made.make()),
        };
        &all[self.range.clone()]
    }

    /// The bytes, to be looked at once: those that are made are not kept.
    pub fn read(&self) -> Cow<'_, [u8]> {
        match &self.owner {
            Owner::Made(made) if made.kept.get().is_none() => {
                let mut all = made.make();
                all.truncate(self.range.end);
                Cow::Owned(if self.range.start == 0 { all } else { all.split_off(self.range.start) })
            }
            _ => Cow::Borrowed(self.as_slice()),
        }
    }

    /// The mapped file that they lie in, or are made from.
    pub fn file(&self) -> Option<&Arc<MappedFile>> {
        match &self.owner {
            Owner::Memory(_) => None,
            Owner::File(file) => Some(file),
            Owner::Made(made) => made.from.file(),
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of these bytes; `range` counts from their start.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len(), "slice outside of its bytes");
        Bytes { owner: self.owner.clone(), range: self.range.start + range.start..self.range.start + range.end }
    }

    /// These bytes and `next` as one, where they lie behind one another.
    pub fn followed_by(&self, next: &Bytes) -> Option<Bytes> {
        let same = match (&self.owner, &next.owner) {
            (Owner::Memory(a), Owner::Memory(b)) => Arc::ptr_eq(a, b),
            (Owner::File(a), Owner::File(b)) => Arc::ptr_eq(a, b),
            _ => false,
        };
        (same && self.range.end == next.range.start)
            .then(|| Bytes { owner: self.owner.clone(), range: self.range.start..next.range.end })
    }

    /// The mapped file and the offset these bytes start at, where they come from one.
    pub fn origin(&self) -> Option<(&Arc<MappedFile>, u64)> {
        match &self.owner {
            Owner::Memory(_) | Owner::Made(_) => None,
            Owner::File(file) => Some((file, self.range.start as u64)),
        }
    }

    /// Says that `range` (counted from the start of these bytes) is read next.
    pub fn fetch(&self, range: Range<usize>) {
        if let Owner::File(file) = &self.owner {
            file.fetch(self.range.start + range.start..self.range.start + range.end);
        }
    }

    /// Says that `range` (counted from the start of these bytes) is read soon, after others that are far apart.
    pub fn announce(&self, range: Range<usize>) {
        if let Owner::File(file) = &self.owner {
            file.announce(self.range.start + range.start..self.range.start + range.end);
        }
    }

    /// Lets the pages of `range` (counted from the start of these bytes) leave resident memory.
    pub fn release(&self, range: Range<usize>) {
        if let Owner::File(file) = &self.owner {
            file.release(self.range.start + range.start..self.range.start + range.end);
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Bytes { owner: Owner::Memory(Arc::new(bytes)), range }
    }
}
