//! A lane: a stream of a device with what works on it, for one caller at a time. Several lanes keep the copy engines and
//! the processors busy at once.

use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::cublas::sys as cublas;
use cudarc::cusolver::sys as cusolver;
use cudarc::driver::sys::{self as cuda, CUevent, CUfunction, CUstream};

use super::fault::{self, Done, Fault};
use super::text::Text;

/// Bytes of each of the two pinned buffers, through which everything goes over the bus.
pub const CHUNK: usize = 4 << 20;
/// Threads of a block in every kernel of ours.
pub const THREADS: usize = 256;

/// The kernels of ours.
#[derive(Clone, Copy, Debug)]
pub enum Routine {
    /// The difference of stored elements.
    Subtract,
    /// Squares of the lengths of rows.
    SquaresOfRows,
    /// f32 to f64.
    Widen,
    /// Times a factor.
    Scale,
    /// A sum.
    Add,
    /// Rows times factors.
    ScaleRows,
    /// Rows by their lengths.
    DivideRows,
    /// Random numbers.
    Normals,
    /// The merge step on f64.
    StepF64,
    /// The merge step on f32.
    StepF32,
    /// The merge step on f16.
    StepF16,
    /// The merge step on bf16.
    StepBf16,
    /// LoHa's product.
    Hadamard,
    /// LoKr's product.
    Blocks,
    /// Squares of the lengths of rows in the order of the host.
    SquaresInLanes,
    /// DoRA's lengths.
    Stretch,
}

impl Routine {
    /// Each with its name and the text it is in.
    pub const ALL: [(Routine, &'static std::ffi::CStr, Text); 16] = [
        (Routine::Subtract, c"subtract", Text::Matrix),
        (Routine::SquaresOfRows, c"squares_of_rows", Text::Matrix),
        (Routine::Widen, c"widen", Text::Matrix),
        (Routine::Scale, c"scale", Text::Matrix),
        (Routine::Add, c"add", Text::Matrix),
        (Routine::ScaleRows, c"scale_rows", Text::Matrix),
        (Routine::DivideRows, c"divide_rows", Text::Matrix),
        (Routine::Normals, c"normals", Text::Matrix),
        (Routine::StepF64, c"step_f64", Text::Step),
        (Routine::StepF32, c"step_f32", Text::Step),
        (Routine::StepF16, c"step_f16", Text::Step),
        (Routine::StepBf16, c"step_bf16", Text::Step),
        (Routine::Hadamard, c"hadamard", Text::Step),
        (Routine::Blocks, c"blocks", Text::Step),
        (Routine::SquaresInLanes, c"squares_in_lanes", Text::Step),
        (Routine::Stretch, c"stretch", Text::Step),
    ];
}

/// The functions of a device, by `Routine`; those of a text that is not there yet are null.
pub type Functions = [CUfunction; Routine::ALL.len()];

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// A place in device memory.
    At(u64),
    /// A count.
    Long(u64),
    /// A small number.
    Int(u32),
    /// A value.
    Float(f32),
}

/// One of the pinned buffers and what says that it may be written to again.
struct Pinned {
    at: *mut u8,
    free: CUevent,
}

/// A stream and what works on it.
pub struct Lane {
    stream: CUstream,
    /// None until something is asked of it.
    blas: std::cell::Cell<Option<cublas::cublasHandle_t>>,
    solver: std::cell::Cell<Option<cusolver::cusolverDnHandle_t>>,
    pinned: [Pinned; 2],
    /// Which of the two is used next.
    next: std::cell::Cell<usize>,
    functions: std::cell::Cell<Functions>,
    /// Memory comes from the device's pool, in the order of the stream.
    pooled: bool,
    /// TF32 is allowed.
    tf32: bool,
    /// Bytes that the caller may have, and has.
    share: std::cell::Cell<u64>,
    live: std::cell::Cell<u64>,
}

// SAFETY: a lane is used by one thread at a time, which makes its device's context current first; the driver's handles
// may be used by any thread.
unsafe impl Send for Lane {}

/// Device memory that is given back at the end, in the order of the lane's stream.
pub struct Buffer<'l> {
    /// Where it begins; 0 where it is empty.
    pub at: u64,
    bytes: usize,
    lane: &'l Lane,
}

impl Buffer<'_> {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if self.at != 0 {
            self.lane.live.set(self.lane.live.get().saturating_sub(self.bytes as u64));
            // SAFETY: allocated by this lane in the same way, and not used after what was put on its stream before.
            let _of_no_use_here = unsafe {
                if self.lane.pooled {
                    cuda::cuMemFreeAsync(self.at, self.lane.stream)
                } else {
                    cuda::cuMemFree_v2(self.at)
                }
            };
        }
    }
}

impl Lane {
    /// A lane of the device whose context is current.
    pub fn new(pooled: bool, tf32: bool) -> Done<Lane> {
        let mut stream = null_mut();
        let flag = cuda::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle.
        fault::driver("cuStreamCreate", unsafe { cuda::cuStreamCreate(&raw mut stream, flag) })?;
        let mut lane = Lane {
            stream,
            blas: std::cell::Cell::new(None),
            solver: std::cell::Cell::new(None),
            pinned: [const { Pinned { at: null_mut(), free: null_mut() } }; 2],
            next: std::cell::Cell::new(0),
            functions: std::cell::Cell::new([null_mut(); Routine::ALL.len()]),
            pooled,
            tf32,
            share: std::cell::Cell::new(0),
            live: std::cell::Cell::new(0),
        };
        for pinned in &mut lane.pinned {
            let mut at: *mut c_void = null_mut();
            let untimed = cuda::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
            // SAFETY: writes one pointer and one handle; what was made is undone in `drop`.
            unsafe {
                fault::driver("cuMemHostAlloc", cuda::cuMemHostAlloc(&raw mut at, CHUNK, 0))?;
                pinned.at = at.cast();
                fault::driver("cuEventCreate", cuda::cuEventCreate(&raw mut pinned.free, untimed))?;
            }
        }
        Ok(lane)
    }

    /// Sets what the next caller may have and call.
    pub fn allow(&self, bytes: u64, functions: Functions) {
        self.share.set(bytes);
        self.functions.set(functions);
    }

    /// Whether products may round to TF32.
    pub fn may_round(&self) -> bool {
        self.tf32
    }

    /// Waits until all that was put on the stream is done.
    pub fn wait(&self) -> Done<()> {
        // SAFETY: the stream lives as long as the lane.
        fault::driver("cuStreamSynchronize", unsafe { cuda::cuStreamSynchronize(self.stream) })
    }

    /// Memory for so many values of type T.
    pub fn room<T>(&self, count: usize) -> Done<Buffer<'_>> {
        let bytes = count.checked_mul(size_of::<T>()).ok_or(Fault::Full)?;
        let mut at = 0;
        if bytes > 0 {
            if self.live.get().saturating_add(bytes as u64) > self.share.get() {
                return Err(Fault::Full);
            }
            // SAFETY: writes one address.
            fault::driver("cuMemAlloc", unsafe {
                if self.pooled {
                    cuda::cuMemAllocAsync(&raw mut at, bytes, self.stream)
                } else {
                    cuda::cuMemAlloc_v2(&raw mut at, bytes)
                }
            })?;
            self.live.set(self.live.get() + bytes as u64);
        }
        Ok(Buffer { at, bytes, lane: self })
    }

    /// The same, of zeros.
    pub fn zeros<T>(&self, count: usize) -> Done<Buffer<'_>> {
        let buffer = self.room::<T>(count)?;
        if buffer.bytes > 0 {
            // SAFETY: the buffer is so long.
            fault::driver("cuMemsetD8Async", unsafe {
                cuda::cuMemsetD8Async(buffer.at, 0, buffer.bytes, self.stream)
            })?;
        }
        Ok(buffer)
    }

    /// Memory for a product over `inner` terms that replaces what is there: zeros where there are none.
    pub fn filled_by_product<T>(&self, count: usize, inner: usize) -> Done<Buffer<'_>> {
        if inner == 0 { self.zeros::<T>(count) } else { self.room::<T>(count) }
    }

    /// Has `fill` write `bytes` into a pinned buffer, which then go to `to`.
    pub fn send(&self, to: u64, bytes: usize, fill: impl FnOnce(&mut [u8]) -> Done<()>) -> Done<()> {
        if bytes == 0 {
            return Ok(());
        }
        assert!(bytes <= CHUNK, "more than a pinned buffer holds");
        let pinned = &self.pinned[self.turn()];
        // SAFETY: the buffer is CHUNK long, and what was last copied from or to it is done.
        unsafe {
            fault::driver("cuEventSynchronize", cuda::cuEventSynchronize(pinned.free))?;
            fill(std::slice::from_raw_parts_mut(pinned.at, bytes))?;
            let from = pinned.at.cast_const().cast();
            fault::driver("cuMemcpyHtoDAsync", cuda::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream))?;
            fault::driver("cuEventRecord", cuda::cuEventRecord(pinned.free, self.stream))
        }
    }

    fn turn(&self) -> usize {
        let turn = self.next.get();
        self.next.set(1 - turn);
        turn
    }

    /// Copies values to a place in device memory.
    pub fn put<T: Plain>(&self, to: u64, values: &[T]) -> Done<()> {
        let bytes = bytes_of(values);
        for (i, part) in bytes.chunks(CHUNK).enumerate() {
            self.send(to + (i * CHUNK) as u64, part.len(), |pinned| {
                pinned.copy_from_slice(part);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The same into new memory.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Done<Buffer<'_>> {
        let buffer = self.room::<T>(values.len())?;
        self.put(buffer.at, values)?;
        Ok(buffer)
    }

    /// Copies values from a place in device memory, and waits for them.
    pub fn get<T: Plain>(&self, from: u64, out: &mut [T]) -> Done<()> {
        let bytes = bytes_of_mut(out);
        let mut late: Option<(usize, &mut [u8])> = None;
        for (i, part) in bytes.chunks_mut(CHUNK).enumerate() {
            let turn = self.turn();
            self.fetch(turn, from + (i * CHUNK) as u64, part.len())?;
            if let Some((turn, part)) = late.replace((turn, part)) {
                self.take(turn, part)?;
            }
        }
        late.map_or(Ok(()), |(turn, part)| self.take(turn, part))
    }

    /// Starts a copy into a pinned buffer.
    fn fetch(&self, turn: usize, from: u64, bytes: usize) -> Done<()> {
        let pinned = &self.pinned[turn];
        // SAFETY: the buffer is CHUNK long, what was last copied from it is done, and `take` waits for what comes.
        unsafe {
            fault::driver("cuEventSynchronize", cuda::cuEventSynchronize(pinned.free))?;
            fault::driver("cuMemcpyDtoHAsync", cuda::cuMemcpyDtoHAsync_v2(pinned.at.cast(), from, bytes, self.stream))?;
            fault::driver("cuEventRecord", cuda::cuEventRecord(pinned.free, self.stream))
        }
    }

    /// What came into a pinned buffer.
    fn take(&self, turn: usize, out: &mut [u8]) -> Done<()> {
        let pinned = &self.pinned[turn];
        // SAFETY: the copy into the buffer, which is at least as long, is done.
        unsafe {
            fault::driver("cuEventSynchronize", cuda::cuEventSynchronize(pinned.free))?;
            out.copy_from_slice(std::slice::from_raw_parts(pinned.at, out.len()));
        }
        Ok(())
    }

    /// The values of a new buffer.
    pub fn download<T: Plain>(&self, from: u64, count: usize) -> Done<Vec<T>> {
        let mut out = vec![T::default(); count];
        self.get(from, &mut out)?;
        Ok(out)
    }

    /// Bytes a second over the bus, one way.
    pub fn rate(&self, up: bool) -> Done<f64> {
        const COPIES: usize = 256;
        let (pinned, buffer) = (&self.pinned[0], self.room::<u8>(CHUNK)?);
        let mut best = 0f64;
        for _ in 0..3 {
            self.wait()?;
            let began = std::time::Instant::now();
            for _ in 0..COPIES {
                // SAFETY: both buffers are CHUNK long, and the stream is waited for before either is used again.
                let status = unsafe {
                    if up {
                        cuda::cuMemcpyHtoDAsync_v2(buffer.at, pinned.at.cast_const().cast(), CHUNK, self.stream)
                    } else {
                        cuda::cuMemcpyDtoHAsync_v2(pinned.at.cast(), buffer.at, CHUNK, self.stream)
                    }
                };
                fault::driver("cuMemcpyAsync", status)?;
            }
            self.wait()?;
            best = best.max((COPIES * CHUNK) as f64 / began.elapsed().as_secs_f64());
        }
        Ok(best)
    }

    /// Copies within device memory.
    pub fn copy(&self, from: u64, to: u64, bytes: usize) -> Done<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the callers' buffers are so long.
        fault::driver("cuMemcpyDtoDAsync", unsafe { cuda::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) })
    }

    /// Puts a kernel on the stream: blocks side by side and one below the other.
    pub fn launch(&self, routine: Routine, (across, down): (usize, usize), args: &[Arg]) -> Done<()> {
        if across == 0 || down == 0 {
            return Ok(());
        }
        let across = u32::try_from(across).ok().filter(|n| i32::try_from(*n).is_ok()).ok_or(Fault::Full)?;
        let down = u16::try_from(down).map_err(|_| Fault::Full)?;
        let mut places: Vec<*mut c_void> = args
            .iter()
            .map(|arg| match arg {
                Arg::At(v) | Arg::Long(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::Int(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::Float(v) => std::ptr::from_ref(v).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the arguments are those of the kernel's text, in order, and are copied by the call; the callers see to
        // it that what they point to is as large as the counts say.
        fault::driver("cuLaunchKernel", unsafe {
            cuda::cuLaunchKernel(
                self.functions.get()[routine as usize],
                across,
                down.into(),
                1,
                THREADS as u32,
                1,
                1,
                0,
                self.stream,
                places.as_mut_ptr(),
                null_mut(),
            )
        })
    }

    /// A kernel with a thread for each of `count` values.
    pub fn each(&self, routine: Routine, count: usize, args: &[Arg]) -> Done<()> {
        self.launch(routine, (count.div_ceil(THREADS), 1), args)
    }

    /// cuBLAS on this stream.
    pub fn blas(&self) -> Done<cublas::cublasHandle_t> {
        if let Some(handle) = self.blas.get() {
            return Ok(handle);
        }
        let mut handle = null_mut();
        // SAFETY: writes one handle, which is kept until the lane ends.
        unsafe {
            fault::blas("cublasCreate", cublas::cublasCreate_v2(&raw mut handle))?;
            self.blas.set(Some(handle));
            fault::blas("cublasSetStream", cublas::cublasSetStream_v2(handle, self.stream.cast()))?;
        }
        Ok(handle)
    }

    /// cuSOLVER on this stream.
    pub fn solver(&self) -> Done<cusolver::cusolverDnHandle_t> {
        if let Some(handle) = self.solver.get() {
            return Ok(handle);
        }
        let mut handle = null_mut();
        // SAFETY: writes one handle, which is kept until the lane ends.
        unsafe {
            fault::solver("cusolverDnCreate", cusolver::cusolverDnCreate(&raw mut handle))?;
            self.solver.set(Some(handle));
            fault::solver("cusolverDnSetStream", cusolver::cusolverDnSetStream(handle, self.stream.cast()))?;
        }
        Ok(handle)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: all of these were made by this lane, and nothing of it is in use. What the calls say is of no use here.
        unsafe {
            let _ = cuda::cuStreamSynchronize(self.stream);
            if let Some(handle) = self.solver.get() {
                let _ = cusolver::cusolverDnDestroy(handle);
            }
            if let Some(handle) = self.blas.get() {
                let _ = cublas::cublasDestroy_v2(handle);
            }
            for pinned in &self.pinned {
                if !pinned.free.is_null() {
                    let _ = cuda::cuEventDestroy_v2(pinned.free);
                }
                if !pinned.at.is_null() {
                    let _ = cuda::cuMemFreeHost(pinned.at.cast());
                }
            }
            let _ = cuda::cuStreamDestroy_v2(self.stream);
        }
    }
}

/// Values whose bytes may be copied as they are.
///
/// # Safety
///
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Plain: Copy + Default {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for i32 {}
// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}

/// The bytes of values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values are bytes without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of values.
pub fn bytes_of_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: plain values are bytes without padding, and every pattern is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
