//! What files hold, as BLAKE3 hashes, without reading again what was read before.
//!
//! The way of git's index: with the hash of a file goes what the system says of it (device, inode, size, time of change
//! of its bytes and of its inode), and while that stays the same the hash counts. A program can set a file's size and
//! the first of the two times back, not the second. Clocks of file systems are coarse: of a file that was changed just
//! before it was read, another change might leave the same times, so its hash is not kept beyond the run.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::tensor::hash::Hasher;
use crate::tensor::{Hash, parallel};

/// How old a change has to be before the times of a file tell it from the next, in seconds: FAT counts in twos.
const SETTLED: i64 = 2;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// What the system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds: of the bytes, of the inode.
    times: [i64; 4],
}

impl Stat {
    /// Of the file at this path; links are followed.
    pub fn of(path: &Path) -> Option<Stat> {
        std::fs::metadata(path).ok().filter(Metadata::is_file).map(|about| Stat::from(&about))
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let last = self.times[0].max(self.times[2]);
        i64::try_from(now).is_ok_and(|now| now.saturating_sub(last) > SETTLED)
    }
}

impl From<&Metadata> for Stat {
    fn from(m: &Metadata) -> Stat {
        let times = [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
        Stat { device: m.dev(), inode: m.ino(), size: m.len(), times }
    }
}

/// A file's state and the hash of its bytes in it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    stat: Stat,
    hash: Hash,
}

impl Known {
    /// As it stands in the record.
    pub fn document(&self) -> Value {
        let Stat { device, inode, size, times } = self.stat;
        json!({ "file": [device, inode, size], "times": times, "hash": self.hash.to_string() })
    }

    /// What [`document`](Self::document) gave.
    pub fn from_document(value: &Value) -> Option<Known> {
        let file: [u64; 3] = serde_json::from_value(value.get("file")?.clone()).ok()?;
        let times: [i64; 4] = serde_json::from_value(value.get("times")?.clone()).ok()?;
        let hash = Hash::from_hex(value.get("hash")?.as_str()?)?;
        let [device, inode, size] = file;
        Some(Known { stat: Stat { device, inode, size, times }, hash })
    }
}

/// A place that only one thread looks at a time: what two jobs read is read once.
type Slot = Arc<Mutex<Option<Known>>>;

/// The hashes of files, by device and inode.
#[derive(Debug, Default)]
pub struct Hashes {
    slots: Mutex<BTreeMap<(u64, u64), Slot>>,
}

impl Hashes {
    /// With what is known from earlier; of two states of one file the last.
    pub fn with(known: impl IntoIterator<Item = Known>) -> Hashes {
        let slot = |k: Known| ((k.stat.device, k.stat.inode), Arc::new(Mutex::new(Some(k))));
        Hashes { slots: Mutex::new(known.into_iter().map(slot).collect()) }
    }

    /// State and hash of a file, and whether it had to be read and its times now tell that state from others. None where it
    /// cannot be read, or changes meanwhile.
    pub fn of(&self, path: &Path) -> Option<(Known, bool)> {
        let stat = Stat::of(path)?;
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry((stat.device, stat.inode)).or_default())
        };
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.filter(|known| known.stat == stat) {
            return Some((known, false));
        }
        let settled = stat.is_settled();
        let new = Known { stat, hash: read(path, stat)? };
        *known = Some(new);
        Some((new, settled))
    }

    /// Of several, on all cores. None where one cannot be read.
    pub fn of_all(&self, paths: &[PathBuf]) -> Option<Vec<(Known, bool)>> {
        parallel::on_all(|| paths.par_iter().map(|path| self.of(path)).collect())
    }
}

/// The hash of the bytes, if the file is in this state before and after.
fn read(path: &Path, stat: Stat) -> Option<Hash> {
    let mut file = File::open(path).ok()?;
    let same = |file: &File| file.metadata().is_ok_and(|about| Stat::from(&about) == stat);
    if !same(&file) {
        return None;
    }
    let mut hash = Hasher::default();
    let mut piece = vec![0; usize::try_from(stat.size).map_or(PIECE, |size| size.clamp(1, PIECE))];
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => drop(hash.raw(piece.get(..n)?)),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    same(&file).then(|| hash.finish())
}

/// Files with what they hold, as they were at one time.
#[derive(Debug)]
pub struct Snapshot {
    files: Vec<(PathBuf, Known)>,
}

impl Snapshot {
    /// Of files that were hashed.
    pub fn new(paths: Vec<PathBuf>, known: impl IntoIterator<Item = Known>) -> Snapshot {
        Snapshot { files: paths.into_iter().zip(known).collect() }
    }

    /// Whether all are still as they were.
    pub fn is_current(&self) -> bool {
        self.files.iter().all(|(path, known)| Stat::of(path) == Some(known.stat))
    }

    /// Names and contents in one hash.
    pub fn hash(&self) -> Hash {
        let mut all = Hasher::default();
        for (path, known) in &self.files {
            all.text(&path.to_string_lossy()).raw(&known.hash.0);
        }
        all.finish()
    }

    /// The hash of each, by its path.
    pub fn by_path(&self) -> BTreeMap<String, String> {
        self.files.iter().map(|(path, known)| (path.to_string_lossy().into_owned(), known.hash.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("lora-tool-contents-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn age(path: &Path, seconds: u64) {
        let then = SystemTime::now() - std::time::Duration::from_secs(seconds);
        File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }

    /// The hash of three bytes, by `b3sum` (BLAKE3 team).
    const ABC: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";

    #[test]
    fn a_file_is_read_again_when_the_system_says_that_it_changed() {
        let file = scratch("again").join("a");
        fs::write(&file, "abc").unwrap();
        let hashes = Hashes::default();
        let (first, settled) = hashes.of(&file).unwrap();
        assert_eq!((first.hash.to_string().as_str(), settled), (ABC, false), "written just now");
        // Same size, and the time of its bytes set back: the time of the inode tells.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&file, "abd").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_ne!(hashes.of(&file).unwrap().0.hash, first.hash);
        fs::write(&file, "abc").unwrap();
        assert_eq!(hashes.of(&file).unwrap().0.hash, first.hash);
        assert!(hashes.of(&file.with_file_name("b")).is_none() && hashes.of(file.parent().unwrap()).is_none());
    }

    #[test]
    fn what_is_known_survives_the_record() {
        let file = scratch("record").join("a");
        fs::write(&file, "abc").unwrap();
        age(&file, 100);
        let known = Hashes::default().of(&file).unwrap().0;
        let again = Known::from_document(&known.document()).unwrap();
        assert_eq!((again.stat, again.hash), (known.stat, known.hash));
        // Not read: another hash that is said to be its is believed.
        let said = Known { hash: Hash::of(b"other"), ..known };
        assert_eq!(Hashes::with([known, said]).of(&file).unwrap().0.hash, said.hash);
        assert!(Known::from_document(&json!({ "file": [1, 2], "times": [0, 0, 0, 0], "hash": ABC })).is_none());
    }

    #[test]
    fn a_snapshot_is_current_until_a_file_changes() {
        let file = scratch("snapshot").join("a");
        fs::write(&file, "abc").unwrap();
        let hashes = Hashes::default();
        let of = |paths: Vec<PathBuf>| {
            let known = hashes.of_all(&paths).unwrap();
            Snapshot::new(paths, known.into_iter().map(|(known, _)| known))
        };
        let snapshot = of(vec![file.clone()]);
        assert!(snapshot.is_current());
        age(&file, 50);
        assert!(!snapshot.is_current());
        assert_eq!(of(vec![file.clone()]).hash(), snapshot.hash(), "touched, and the same bytes");
        assert_eq!(snapshot.by_path()[file.to_str().unwrap()], ABC);
    }
}
