//! A device: its context, the kernels compiled for it, and the lanes and the memory that callers share.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use cudarc::driver::sys::{self as cuda, CUcontext, CUdevice, CUdevice_attribute as Attribute, CUmodule};

use super::fault::{self, Done, Fault};
use super::lane::{Functions, Lane, Routine};
use super::text::{self, Text};

/// Most lanes of a device. Of more the copies into pinned memory would only wait for each other.
const MOST_LANES: u64 = 16;
/// Device memory that a lane takes beside what callers ask for: cuBLAS has a workspace of 32 MiB on large devices.
const LANE_BYTES: u64 = 64 << 20;
/// Bytes of a tile on a small and on a large device.
const LEAST_TILE: usize = 1 << 20;
const MOST_TILE: usize = 64 << 20;
/// What a caller may have beside what it asked for, which is within what a lane is reckoned with: roundings up, results of
/// a few bytes.
const SPARE: u64 = 1 << 20;
/// The share of the free memory that is used if nothing is said, in hundredths: others may work on the device.
const SHARE: u64 = 85;

/// What a device is, for people.
#[derive(Clone, Debug)]
pub struct About {
    /// Its number among those the driver shows.
    pub number: i32,
    /// Its name.
    pub name: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability.
    pub capability: (i32, i32),
}

/// A device that is ready.
pub struct Device {
    /// What it is.
    pub about: About,
    device: CUdevice,
    context: CUcontext,
    kernels: Mutex<Loaded>,
    pooled: bool,
    tf32: bool,
    /// Bytes that callers may have at once.
    limit: u64,
    shared: Mutex<Shared>,
    changed: Condvar,
    /// It failed in a way that it does not recover from.
    broken: AtomicBool,
    /// It has done something.
    used: AtomicBool,
}

/// The kernels that are there.
struct Loaded {
    texts: Vec<Text>,
    modules: Vec<CUmodule>,
    functions: Functions,
}

/// What callers take and give back.
#[derive(Default)]
struct Shared {
    idle: Vec<Lane>,
    lanes: u64,
    bytes: u64,
}

// SAFETY: the handles of the driver may be used by any thread whose current context is the device's.
unsafe impl Send for Device {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Device {}

/// How many devices the driver shows; 0 where it has none.
pub fn count() -> Done<i32> {
    let mut count = 0;
    // SAFETY: writes one number.
    unsafe {
        match cuda::cuInit(0) {
            cuda::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
            status => fault::driver("cuInit", status)?,
        }
        fault::driver("cuDeviceGetCount", cuda::cuDeviceGetCount(&raw mut count))?;
    }
    Ok(count)
}

/// The newest version of CUDA that the driver knows: 13000 is 13.0.
pub fn driver_version() -> Done<i32> {
    let mut version = 0;
    // SAFETY: writes one number.
    fault::driver("cuDriverGetVersion", unsafe { cuda::cuDriverGetVersion(&raw mut version) })?;
    Ok(version)
}

/// What a device is, without opening it.
pub fn about(number: i32) -> Done<About> {
    let device = handle(number)?;
    let (mut name, mut memory) = ([0u8; 256], 0usize);
    // SAFETY: the name's buffer has the length that is given; the other call writes one number.
    unsafe {
        fault::driver("cuDeviceGetName", cuda::cuDeviceGetName(name.as_mut_ptr().cast(), 256, device))?;
        fault::driver("cuDeviceTotalMem", cuda::cuDeviceTotalMem_v2(&raw mut memory, device))?;
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let name = String::from_utf8_lossy(&name[..end]).into_owned();
    Ok(About { number, name, memory: memory as u64, capability: (major, minor) })
}

fn handle(number: i32) -> Done<CUdevice> {
    let mut device = 0;
    // SAFETY: writes one handle.
    fault::driver("cuDeviceGet", unsafe { cuda::cuDeviceGet(&raw mut device, number) })?;
    Ok(device)
}

fn attribute(device: CUdevice, which: Attribute) -> Done<i32> {
    let mut value = 0;
    // SAFETY: writes one number.
    fault::driver("cuDeviceGetAttribute", unsafe { cuda::cuDeviceGetAttribute(&raw mut value, which, device) })?;
    Ok(value)
}

impl Device {
    /// Opens a device. `memory` bounds what is taken of it.
    pub fn open(number: i32, memory: Option<u64>, tf32: bool) -> Done<Device> {
        let (about, device) = (about(number)?, handle(number)?);
        let mut out = Device {
            device,
            context: null_mut(),
            kernels: Mutex::new(Loaded {
                texts: Vec::new(),
                modules: Vec::new(),
                functions: [null_mut(); Routine::ALL.len()],
            }),
            pooled: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0,
            tf32,
            limit: 0,
            shared: Mutex::default(),
            changed: Condvar::new(),
            broken: AtomicBool::new(false),
            used: AtomicBool::new(false),
            about,
        };
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: every call writes one handle or number; what was made is undone in `drop`.
        unsafe {
            fault::driver("cuDevicePrimaryCtxRetain", cuda::cuDevicePrimaryCtxRetain(&raw mut out.context, device))?;
            out.enter()?;
            fault::driver("cuMemGetInfo", cuda::cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        }
        out.functions(Text::Matrix)?;
        out.limit = memory.unwrap_or((free as u64 / 100).saturating_mul(SHARE));
        if out.pooled {
            out.keep_memory()?;
        }
        Ok(out)
    }

    /// Memory that is given back stays with this program, up to the limit, instead of going back to the driver.
    fn keep_memory(&self) -> Done<()> {
        let (mut pool, mut bytes) = (null_mut(), self.limit);
        let which = cuda::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the attribute is a number of 64 bits.
        unsafe {
            fault::driver("cuDeviceGetDefaultMemPool", cuda::cuDeviceGetDefaultMemPool(&raw mut pool, self.device))?;
            let value = (&raw mut bytes).cast();
            fault::driver("cuMemPoolSetAttribute", cuda::cuMemPoolSetAttribute(pool, which, value))
        }
    }

    /// The kernels, those of a text among them; they are compiled when they are asked for first.
    fn functions(&self, text: Text) -> Done<Functions> {
        let mut loaded = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.texts.contains(&text) {
            return Ok(loaded.functions);
        }
        let code = text::compile(text, self.about.capability)?;
        let mut module = null_mut();
        // SAFETY: each call writes one handle. The code stays until it is loaded, and the names end in zero.
        unsafe {
            fault::driver("cuModuleLoadData", cuda::cuModuleLoadData(&raw mut module, code.as_ptr().cast()))?;
            loaded.modules.push(module);
            for (routine, name, _) in Routine::ALL.into_iter().filter(|(_, _, of)| *of == text) {
                let place = &raw mut loaded.functions[routine as usize];
                fault::driver("cuModuleGetFunction", cuda::cuModuleGetFunction(place, module, name.as_ptr()))?;
            }
        }
        loaded.texts.push(text);
        Ok(loaded.functions)
    }

    /// Makes its context that of this thread.
    fn enter(&self) -> Done<()> {
        // SAFETY: the context lives as long as the device.
        fault::driver("cuCtxSetCurrent", unsafe { cuda::cuCtxSetCurrent(self.context) })
    }

    /// Whether it may be asked for anything.
    pub fn works(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }

    /// Whether it has done something.
    pub fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// It has.
    pub fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// As if it had not.
    pub fn forget(&self) {
        self.used.store(false, Ordering::Relaxed);
    }

    /// It is not asked again. Whether this is news.
    pub fn give_up(&self) -> bool {
        let before = self.broken.swap(true, Ordering::Relaxed);
        self.changed.notify_all();
        !before
    }

    /// Bytes for the callers of all lanes.
    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.most_lanes() * LANE_BYTES)
    }

    fn most_lanes(&self) -> u64 {
        (self.limit / (4 * LANE_BYTES)).clamp(1, MOST_LANES)
    }

    /// Bytes of f32 that are worked on at a time where a matrix is not held.
    pub fn tile(&self) -> usize {
        usize::try_from(self.limit / 64).unwrap_or(usize::MAX).clamp(LEAST_TILE, MOST_TILE)
    }

    /// Whether callers can ever have so much.
    pub fn fits(&self, bytes: u64) -> bool {
        bytes <= self.room()
    }

    /// How much there is to do here already, for dealing work over several devices.
    pub fn load(&self) -> (u64, u64) {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        (shared.lanes - shared.idle.len() as u64, shared.bytes)
    }

    /// Takes a lane with the kernels of a text, and `bytes` of memory beside it; waits for those who have them. Full where
    /// there is never so much.
    pub fn lane(&self, bytes: u64, text: Text) -> Done<Taken<'_>> {
        if bytes > self.room() {
            return Err(Fault::Full);
        }
        self.enter()?;
        let functions = self.functions(text)?;
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = loop {
            if !self.works() {
                return Err(Fault::Broken("it failed before".into()));
            }
            let fits = shared.bytes + bytes <= self.room();
            if fits && let Some(lane) = shared.idle.pop() {
                break Some(lane);
            }
            if fits && shared.lanes < self.most_lanes() {
                shared.lanes += 1;
                break None;
            }
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        };
        shared.bytes += bytes;
        drop(shared);
        let mut taken = Taken { device: self, lane, bytes };
        if taken.lane.is_none() {
            taken.lane = Some(Lane::new(self.pooled, self.tf32)?);
        }
        taken.lane()?.allow(bytes + SPARE, functions);
        Ok(taken)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.context.is_null() || self.enter().is_err() {
            return;
        }
        self.shared.get_mut().unwrap_or_else(PoisonError::into_inner).idle.clear();
        let loaded = self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: loaded and retained by this device, and not used any more.
        unsafe {
            for module in &loaded.modules {
                let _ = cuda::cuModuleUnload(*module);
            }
            let _ = cuda::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// A lane that is this caller's, and its share of the memory.
pub struct Taken<'d> {
    device: &'d Device,
    lane: Option<Lane>,
    bytes: u64,
}

impl Taken<'_> {
    /// The lane.
    pub fn lane(&self) -> Done<&Lane> {
        self.lane.as_ref().ok_or_else(|| Fault::Broken("no lane".into()))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut shared = self.device.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.bytes -= self.bytes;
        match self.lane.take() {
            Some(lane) => shared.idle.push(lane),
            None => shared.lanes -= 1,
        }
        drop(shared);
        self.device.changed.notify_all();
    }
}
