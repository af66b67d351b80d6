//! Ctrl-C and its kin, on Linux: what they leave behind, and with which exit code.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixtures::{self, Scratch};
use crate::program::{command, names};

/// A run that stands still before it writes: it has a note to print, and nobody reads the full pipe it prints to.
pub struct Held {
    child: Child,
    reader: std::io::PipeReader,
}

impl Held {
    fn start(out: &Path) -> Held {
        Held::on(&fixtures::root().join("models/llama_tied"), &fixtures::root().join("adapters/peft/tied_lm_head"), out)
    }

    /// On a copy of the inputs that [`start`](Self::start) has.
    pub fn on(base: &Path, adapter: &Path, out: &Path) -> Held {
        let mut command = command();
        command.arg("merge").arg(base).arg(adapter).arg("-o").arg(out);
        Held::run(command)
    }

    /// Any run that has a note to print.
    pub fn run(mut command: Command) -> Held {
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while writer.write(&[b' '; 1024]).is_ok() {}
        while writer.write(b" ").is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap(); // for the program as well
        let child = command.stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        let held = Held { child, reader };
        held.wait_until_it_listens();
        held
    }

    /// Until it has opened its inputs and stands at the pipe.
    pub fn wait_until_it_stands(&self) {
        let began = Instant::now();
        let stands = || {
            let call = fs::read_to_string(format!("/proc/{}/wchan", self.child.id())).unwrap_or_default();
            call.contains("pipe")
        };
        while !stands() && began.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Until the program catches SIGINT, as its status in /proc says.
    fn wait_until_it_listens(&self) {
        let began = Instant::now();
        let catches = || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim();
            Some(u64::from_str_radix(mask, 16).ok()? & 0b10 != 0)
        };
        while catches() != Some(true) {
            assert!(began.elapsed() < Duration::from_secs(30), "the program does not listen for signals");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(kill.success());
    }

    /// Reads what it has to say and waits for its end.
    pub fn let_go(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.reader.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said.trim_start().to_string())
    }
}

#[test]
fn a_signal_ends_the_run_and_leaves_nothing_behind() {
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let scratch = Scratch::new();
        let held = Held::start(&scratch.join("out"));
        held.signal(name);
        let (ended, said) = held.let_go();
        assert_eq!(ended, Some(code), "{said}");
        assert!(said.contains("nothing was written"), "{said}");
        assert_eq!(names(&scratch.join(".")), Vec::<String>::new(), "after SIG{name}");
    }
}

#[test]
fn the_second_ctrl_c_ends_the_run_at_once() {
    let scratch = Scratch::new();
    let mut held = Held::start(&scratch.join("out"));
    held.signal("INT");
    std::thread::sleep(Duration::from_millis(50));
    assert!(held.child.try_wait().unwrap().is_none(), "the first one only asks");
    held.signal("INT");
    let code = held.child.wait().unwrap().code(); // while nobody reads
    assert_eq!(code, Some(130));
    assert_eq!(names(&scratch.join(".")), Vec::<String>::new());
}
