//! Folders: what is in them, whether something is there, and removing what is.
//!
//! The standard library's listing ends the program in a panic where closing a folder fails, as it can on a network, and
//! its `exists` takes a disk that fails for a file that is not there. Both have to be errors.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Names in a folder, sorted.
pub fn names(folder: &Path) -> std::io::Result<Vec<OsString>> {
    let opened = rustix::fs::openat(CWD, folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(names_in(opened.as_fd())?)
}

/// Paths of what is in a folder, sorted.
pub fn entries(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    Ok(names(folder)?.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether there is anything of this name, a link to nothing included. An error where that cannot be told.
pub fn is_there(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(Error::io("cannot tell whether it is there", e).in_file(path)),
    }
}

/// Removes a file, a link or a folder with all that is in it. Links are not followed, whoever puts them there meanwhile.
pub fn remove(path: &Path) -> std::io::Result<()> {
    Ok(remove_at(CWD, path.as_os_str())?)
}

fn remove_at(parent: BorrowedFd, name: &OsStr) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOTDIR | Errno::LOOP) => return rustix::fs::unlinkat(parent, name, AtFlags::empty()),
        Err(e) => return Err(e),
    };
    for inner in names_in(folder.as_fd())? {
        remove_at(folder.as_fd(), &inner)?;
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn names_in(folder: BorrowedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_os_string();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn folders_are_listed_and_removed_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("lora-tool-folder-{}", std::process::id()));
        let _ = remove(&root);
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("kept")).unwrap();
        for file in ["a/b/file", "a/z", "kept/file"] {
            fs::write(root.join(file), b"x").unwrap();
        }
        std::os::unix::fs::symlink("../kept", root.join("a/link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("a/dangling")).unwrap();
        assert_eq!(names(&root.join("a")).unwrap(), ["b", "dangling", "link", "z"]);
        assert!(is_there(&root.join("a/dangling")).unwrap());
        assert!(!is_there(&root.join("a/none")).unwrap() && !is_there(&root.join("a/z/none")).unwrap());
        remove(&root.join("a")).unwrap();
        assert_eq!(entries(&root).unwrap(), [root.join("kept")]);
        assert!(root.join("kept/file").exists());
        assert_eq!(remove(&root.join("a")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(names(&root.join("kept/file")).unwrap_err().kind(), ErrorKind::NotADirectory);
        remove(&root).unwrap();
    }
}
