//! The kernels' texts, compiled for a device when they are first needed: that takes a tenth of a second and half a second.

use std::ffi::{CString, c_char};
use std::ptr::{null, null_mut};

use cudarc::nvrtc::sys as nvrtc;

use super::fault::{Done, Fault};

/// Which kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Those of decompositions.
    Matrix,
    /// The merge step and its kin.
    Step,
}

impl Text {
    fn get(self) -> &'static str {
        match self {
            Text::Matrix => concat!(include_str!("common.cu"), include_str!("matrix.cu")),
            Text::Step => concat!(include_str!("common.cu"), include_str!("step.cu")),
        }
    }
}

/// A text as code for a device of this capability.
///
/// It is code of the device itself where the compiler knows the device: PTX of a newer compiler than the driver would be
/// refused, code is not. For a device that is newer than the compiler it is PTX of the newest that the compiler knows, of
/// which the driver makes code.
pub fn compile(text: Text, (major, minor): (i32, i32)) -> Done<Vec<u8>> {
    let own = 10 * major + minor;
    let known = known_devices();
    if known.contains(&own) || known.is_empty() {
        return compiled(text, &format!("sm_{own}"));
    }
    match known.into_iter().filter(|&device| device < own).max() {
        Some(newest) => compiled(text, &format!("compute_{newest}")),
        None => Err(Fault::Broken(format!("this NVRTC makes no code for sm_{own}: another version of CUDA does"))),
    }
}

/// The devices that the compiler knows; none where it does not say.
fn known_devices() -> Vec<i32> {
    let mut count = 0;
    // SAFETY: the first call writes a number, the second so many.
    unsafe {
        if nvrtc::nvrtcGetNumSupportedArchs(&raw mut count) != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Vec::new();
        }
        let mut all = vec![0; usize::try_from(count).unwrap_or(0)];
        if nvrtc::nvrtcGetSupportedArchs(all.as_mut_ptr()) != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Vec::new();
        }
        all
    }
}

fn compiled(text: Text, target: &str) -> Done<Vec<u8>> {
    let text = CString::new(text.get()).map_err(|e| Fault::Broken(e.to_string()))?;
    let options = [format!("--gpu-architecture={target}"), "--std=c++17".into(), "--fmad=false".into()];
    let options = options.map(|option| CString::new(option).unwrap_or_default());
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(null_mut());
    let (name, is_code) = (c"lora-tool.cu", target.starts_with("sm_"));
    // SAFETY: the texts end in zero and live through the calls; buffers are as long as the library says.
    unsafe {
        let made = nvrtc::nvrtcCreateProgram(&raw mut program.0, text.as_ptr(), name.as_ptr(), 0, null(), null());
        check("nvrtcCreateProgram", made)?;
        let status = nvrtc::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr());
        if status != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Err(Fault::Broken(format!("NVRTC for {target}: {status:?}: {}", program.log())));
        }
        let mut size = 0;
        if is_code {
            check("nvrtcGetCUBINSize", nvrtc::nvrtcGetCUBINSize(program.0, &raw mut size))?;
        } else {
            check("nvrtcGetPTXSize", nvrtc::nvrtcGetPTXSize(program.0, &raw mut size))?;
        }
        let mut code = vec![0u8; size];
        if is_code {
            check("nvrtcGetCUBIN", nvrtc::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()))?;
        } else {
            check("nvrtcGetPTX", nvrtc::nvrtcGetPTX(program.0, code.as_mut_ptr().cast()))?;
        }
        Ok(code)
    }
}

/// The version of the library.
pub fn version() -> Option<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    let status = unsafe { nvrtc::nvrtcVersion(&raw mut major, &raw mut minor) };
    (status == nvrtc::nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
}

fn check(what: &str, status: nvrtc::nvrtcResult) -> Done<()> {
    if status == nvrtc::nvrtcResult::NVRTC_SUCCESS { Ok(()) } else { Err(Fault::Broken(format!("{what}: {status:?}"))) }
}

struct Program(nvrtc::nvrtcProgram);

impl Program {
    /// What the compiler said.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the buffer is as long as the library says.
        unsafe {
            if nvrtc::nvrtcGetProgramLogSize(self.0, &raw mut size) != nvrtc::nvrtcResult::NVRTC_SUCCESS {
                return String::new();
            }
            let mut log = vec![0u8; size];
            let _ = nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast());
            String::from_utf8_lossy(&log).trim_matches(['\0', '\n']).to_string()
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the library and not used any more.
            let _ = unsafe { nvrtc::nvrtcDestroyProgram(&raw mut self.0) };
        }
    }
}
