//! No network at all: the sources do not speak of one, and the program asks the system for none of its calls. What it may
//! link is in `deny.toml`, which `.ci/dependencies` checks.

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", target_endian = "little"))]
use crate::program::PROGRAM;
use crate::sources;

/// Calls of the system without which nobody reaches another machine.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", target_endian = "little"))]
const CALLS: [&str; 8] = ["socket", "connect", "bind", "listen", "accept", "sendto", "recvfrom", "getaddrinfo"];

#[test]
fn sources_do_not_speak_of_a_network() {
    let words =
        ["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs", "UnixStream", "UnixListener", "UnixDatagram"];
    let found = |s: &sources::SourceFile| {
        let lines = words.iter().flat_map(|word| s.lines_with(word));
        lines.map(|n| format!("src/{}:{n}", s.path)).collect::<Vec<_>>()
    };
    let broken: Vec<_> = sources::all().iter().flat_map(found).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", target_endian = "little"))]
fn the_program_imports_no_call_of_the_network() {
    let names = imported(&std::fs::read(PROGRAM).expect("the program")).expect("an ELF file with symbols");
    assert!(names.iter().any(|name| name == "open64" || name == "open"), "only {} symbols were found", names.len());
    let found: Vec<_> = names.iter().filter(|name| CALLS.contains(&name.as_str())).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// Names that an ELF file takes from shared libraries, by its table of dynamic symbols (the ELF-64 object file format).
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", target_endian = "little"))]
fn imported(elf: &[u8]) -> Option<Vec<String>> {
    const SECTION: usize = 64;
    const SYMBOL: usize = 24;
    const DYNAMIC_SYMBOLS: usize = 11;
    let number = |at: usize, width: usize| {
        Some(elf.get(at..at.checked_add(width)?)?.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte)))
    };
    let (sections, count) = (number(0x28, 8)?, number(0x3c, 2)?);
    let header = |n: usize| sections + n * SECTION;
    let symbols = (0..count).map(header).find(|at| number(at + 4, 4) == Some(DYNAMIC_SYMBOLS))?;
    let (start, size, texts) = (number(symbols + 24, 8)?, number(symbols + 32, 8)?, number(symbols + 40, 4)?);
    let texts = number(header(texts) + 24, 8)?;
    let mut out = Vec::new();
    for at in (start..start + size).step_by(SYMBOL) {
        let is_defined = number(at + 6, 2)? != 0;
        if !is_defined {
            let text = elf.get(texts + number(at, 4)?..)?;
            out.push(String::from_utf8_lossy(text.split(|byte| *byte == 0).next()?).into_owned());
        }
    }
    Some(out)
}
