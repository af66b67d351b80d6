//! NVIDIA's devices: cuBLAS, cuSOLVER and kernels of ours, found and loaded when a device is asked for.
//!
//! What pays is factorising: a matrix crosses the bus once and is multiplied some hundred vectors at a time where memory
//! is fast (`field`). The merge step is here as well, with the same bytes as on the host, but there the bus is what it
//! takes (`step`). What a device cannot do, because its memory is full or it fails, the host does; what was done so is
//! said in [`Kernels::notes`].
//!
//! `library` finds the libraries, `text` compiles the kernels, a `device` hands out lanes, and a `lane` is a stream with what
//! works on it. `fault` tells apart what can go wrong.

mod blas;
mod device;
mod fault;
mod field;
mod lane;
mod library;
mod solve;
mod step;
mod text;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::truncated::{decompose, decompose_exactly};
use super::{Depth, Eigen, Element, Kernels, Moved, OpenBlas, RowSource, Svd, Term, Truncated, Wanted, fused, tiles};
use crate::error::{Error, Kind, Result};
use blas::{Digits, Mat};
use device::Device;
use fault::{Done, Fault};
use field::OnDevice;
use lane::Lane;
use text::Text;

pub use device::About;

/// What is asked of the devices.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The only one that is used; all of them where there is none.
    pub number: Option<u8>,
    /// Bytes that are taken of each at most.
    pub memory: Option<u64>,
    /// Passes of a decomposition may round their factors to TF32; what is reported is found without that.
    pub tf32: bool,
    /// Where libraries are looked for that the loader does not find.
    pub folders: Vec<PathBuf>,
    /// Work of any size goes to a device, for tests.
    pub always: bool,
}

/// The devices that are used, and the host for the rest.
pub struct Cuda {
    devices: Vec<Device>,
    host: OpenBlas,
    tf32: bool,
    always: bool,
    notes: Mutex<BTreeSet<String>>,
}

/// What there is on this machine.
#[derive(Clone, Debug)]
pub struct Present {
    /// The devices.
    pub devices: Vec<About>,
    /// The newest version of CUDA that the driver knows.
    pub driver: (i32, i32),
    /// The version of NVRTC.
    pub compiler: Option<(i32, i32)>,
    /// The version of cuBLAS.
    pub cublas: Option<String>,
    /// The version of cuSOLVER.
    pub cusolver: Option<String>,
}

/// Products of matrices with fewer multiplications than this stay on the host, where they take about a millisecond.
const LEAST_PRODUCT: usize = 1 << 26;
/// Matrices with fewer elements are decomposed on the host.
const LEAST_MATRIX: usize = 1 << 18;
/// Symmetric matrices of a lower order are decomposed on the host.
const LEAST_ORDER: usize = 512;

/// The number of an element type in the kernels' text.
fn number_of(element: Element) -> u32 {
    match element {
        Element::F64 => 0,
        Element::F32 => 1,
        Element::F16 => 2,
        Element::BF16 => 3,
    }
}

/// What is missing, as an error.
fn absent(what: impl Into<String>) -> Error {
    Error::new(Kind::Missing, what)
}

fn told<T>(done: Done<T>) -> Result<T> {
    done.map_err(|fault| match fault {
        Fault::Input(error) => error,
        Fault::Full => absent("the device's memory is full"),
        Fault::Broken(what) => absent(what),
    })
}

/// Looks what there is. An error says what is missing, where it is the driver; of the other libraries the versions are.
pub fn present(folders: &[PathBuf]) -> Result<Present> {
    library::require_driver().map_err(absent)?;
    let count = told(device::count())?;
    let devices = (0..count).map(|number| told(device::about(number))).collect::<Result<Vec<_>>>()?;
    let driver = told(device::driver_version())?;
    let complete = library::require(folders).is_ok();
    let (cublas, cusolver) = if complete { library::versions() } else { (None, None) };
    let compiler = if complete { text::version() } else { None };
    Ok(Present { devices, driver: (driver / 1000, driver % 1000 / 10), compiler, cublas, cusolver })
}

impl Cuda {
    /// Opens the devices. An error says what is missing.
    pub fn open(options: &Options) -> Result<Cuda> {
        library::require(&options.folders).map_err(absent)?;
        let found = present(&options.folders)?;
        let wanted: Vec<&About> = match options.number {
            Some(number) => found.devices.iter().filter(|d| d.number == i32::from(number)).collect(),
            None => found.devices.iter().collect(),
        };
        if wanted.is_empty() {
            let have = found.devices.len();
            return Err(absent(match options.number {
                Some(number) if have > 0 => format!("there is no device {number}: the driver shows {have}, from 0 on"),
                _ => "the NVIDIA driver shows no device".to_string(),
            }));
        }
        let open = |about: &&About| {
            let (major, minor) = about.capability;
            told(Device::open(about.number, options.memory, options.tf32)).map_err(|e| {
                absent(format!("device {} ({}, sm_{major}{minor}): {}", about.number, about.name, e.what()))
            })
        };
        let devices = wanted.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (tf32, always) = (options.tf32, options.always);
        Ok(Cuda { devices, host: OpenBlas::new(), tf32, always, notes: Mutex::default() })
    }

    /// Work that is not worth a device stays on the host from here on, and what was done before is forgotten.
    #[must_use]
    pub fn only_what_pays(mut self) -> Cuda {
        self.always = false;
        self.notes = Mutex::default();
        self.devices.iter().for_each(Device::forget);
        self
    }

    /// What the devices are.
    pub fn devices(&self) -> impl Iterator<Item = &About> {
        self.devices.iter().map(|d| &d.about)
    }

    /// Bytes a second to the first device and from it, through pinned memory, for benchmarks.
    pub fn bus_rates(&self) -> Result<(f64, f64)> {
        let rates = self.on_device(Text::Matrix, lane::CHUNK as u64, |lane| Ok((lane.rate(true)?, lane.rate(false)?)));
        rates.unwrap_or_else(|| Err(absent("no device works")))
    }

    fn note(&self, what: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
    }

    /// Does `work` on the device that has the least to do, with a lane and `bytes` of memory; none where the host has to.
    ///
    /// What is computed on the way, by a matrix that is made when it is read, the host does: a second lane for a caller
    /// that has one could be waited for without end.
    fn on_device<T>(&self, text: Text, bytes: u64, mut work: impl FnMut(&Lane) -> Done<T>) -> Option<Result<T>> {
        let _here = Here::enter()?;
        loop {
            let device = self.devices.iter().filter(|d| d.works()).min_by_key(|d| d.load())?;
            let done = device.lane(bytes, text).and_then(|taken| {
                let done = work(taken.lane()?);
                if matches!(done, Err(Fault::Full)) {
                    taken.lane()?.wait()?; // what was given back is free from here on
                }
                done
            });
            match done {
                Ok(value) => {
                    device.mark_used();
                    return Some(Ok(value));
                }
                Err(Fault::Input(error)) => return Some(Err(error)),
                Err(Fault::Full) => return None,
                Err(Fault::Broken(why)) => {
                    if !device.give_up() {
                        continue;
                    }
                    let number = device.about.number;
                    self.note(format!("cuda:{number} failed ({why}); the work went on without it"));
                }
            }
        }
    }

    /// The same where the host does what does not fit.
    fn on_small<T>(&self, text: Text, bytes: u64, work: impl FnMut(&Lane) -> Done<T>) -> Option<Result<T>> {
        let done = self.on_device(text, bytes, work);
        if done.is_none() && !Here::is_taken() {
            self.note("some of the work did not fit the device's memory and was done on the CPU".to_string());
        }
        done
    }

    /// A decomposition on a device: with the matrix in its memory, else read in tiles; none where the host has to do it.
    fn decomposed(
        &self,
        d: &dyn RowSource,
        wanted: Option<&Wanted>,
        run: &dyn Fn(&mut OnDevice) -> Result<Truncated>,
    ) -> Option<Result<Truncated>> {
        let (m, n) = d.dim();
        if m == 0 || n == 0 || Here::is_taken() || !self.always && m.saturating_mul(n) < LEAST_MATRIX {
            return None;
        }
        let whole = 4 * m as u64 * n as u64;
        let tile = self.devices.iter().map(Device::tile).min().unwrap_or(0);
        let small = field::workspace((m, n), wanted, 1, tile);
        let large = field::workspace((m, n), wanted, 4, tile);
        // With the matrix held, else in tiles; with more room for vectors where less turns out not to do.
        let ways = [(true, whole + small), (true, whole + large), (false, small), (false, large)];
        let mut tried = None;
        for (hold, bytes) in ways {
            if tried == Some((hold, bytes)) || !self.devices.iter().any(|d| d.works() && d.fits(bytes)) {
                continue;
            }
            tried = Some((hold, bytes));
            let done = self.on_device(Text::Matrix, bytes, |lane| {
                let mut field = OnDevice::new(lane, d, (hold, tile), self.tf32)?;
                let done = run(&mut field);
                match field.fault() {
                    Some(fault) => Err(fault),
                    None => done.map_err(Fault::Input),
                }
            });
            if let Some(done) = done {
                if !hold {
                    self.note(format!("[{m}, {n}] did not fit the device's memory and crossed the bus for every pass"));
                }
                return Some(done);
            }
        }
        self.note(format!("[{m}, {n}] did not fit the device's memory and was decomposed on the CPU"));
        None
    }

    /// A product on a device.
    fn product(
        lane: &Lane,
        alpha: f32,
        (a, b): (ArrayView2<f32>, ArrayView2<f32>),
        beta: f32,
        c: &mut ArrayViewMut2<f32>,
    ) -> Done<()> {
        let ((m, k), n) = (a.dim(), b.ncols());
        let values = |x: ArrayView2<f32>| x.iter().copied().collect::<Vec<f32>>();
        let (at, bt) = (lane.upload(&values(a))?, lane.upload(&values(b))?);
        // beta = 0 overwrites, NaN included.
        let held = if beta == 0.0 { lane.zeros::<f32>(m * n)? } else { lane.upload(&values(c.view()))? };
        let factors = (Mat::new(at.at, m, k), Mat::new(bt.at, k, n));
        lane.gemm(Digits::All, alpha, factors, beta, Mat::new(held.at, m, n))?;
        let out: Vec<f32> = lane.download(held.at, m * n)?;
        c.iter_mut().zip(out).for_each(|(c, v)| *c = v);
        Ok(())
    }
}

thread_local! {
    static IN_WORK: Cell<bool> = const { Cell::new(false) };
}

/// A thread that has work on a device.
struct Here;

impl Here {
    /// None where the thread has already.
    fn enter() -> Option<Here> {
        (!IN_WORK.replace(true)).then(|| Here) // not made, and so not dropped, where it is taken
    }

    fn is_taken() -> bool {
        IN_WORK.get()
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        IN_WORK.set(false);
    }
}

/// Bytes of f32 matrices.
fn bytes_of(sizes: &[usize]) -> u64 {
    sizes.iter().map(|&n| 4 * n as u64).sum()
}

/// Bytes of a step beside the values: what terms point to, of which two chunks have their own, and what is counted.
fn bytes_of_terms((rows, cols): (usize, usize), terms: &[Term]) -> u64 {
    let factors: u64 = terms.iter().map(|t| 4 * (t.rank * (rows + cols)) as u64).sum();
    2 * factors + 4 * (rows * cols.div_ceil(256) + cols) as u64
}

impl Kernels for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn notes(&self) -> Vec<String> {
        let used = self
            .devices
            .iter()
            .filter(|d| d.was_used())
            .map(|d| format!("computed on cuda:{} ({})", d.about.number, d.about.name));
        let mut out: Vec<String> = used.collect();
        out.extend(self.notes.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        out
    }

    fn gemm(
        &self,
        alpha: f32,
        a: ArrayView2<f32>,
        b: ArrayView2<f32>,
        beta: f32,
        mut c: ArrayViewMut2<f32>,
    ) -> Result<()> {
        let ((m, k), n) = (a.dim(), b.ncols());
        let fits = k == b.nrows() && c.dim() == (m, n) && m > 0 && n > 0 && k > 0;
        if fits && (self.always || m.saturating_mul(n).saturating_mul(k) >= LEAST_PRODUCT) {
            let bytes = bytes_of(&[m * k, k * n, m * n]);
            let done = self.on_small(Text::Matrix, bytes, |lane| Cuda::product(lane, alpha, (a, b), beta, &mut c));
            if let Some(done) = done {
                return done;
            }
        }
        self.host.gemm(alpha, a, b, beta, c)
    }

    fn qr(&self, a: ArrayView2<f32>) -> Result<(Array2<f32>, Array2<f32>)> {
        let (m, n) = a.dim();
        let k = m.min(n);
        if k > 0
            && (self.always || m.saturating_mul(n).saturating_mul(k) >= LEAST_PRODUCT)
            && let Some(done) =
                self.on_small(Text::Matrix, bytes_of(&[4 * m * n, 512 * (m + n)]), |lane| solve::qr(lane, a))
        {
            return done;
        }
        self.host.qr(a)
    }

    fn svd(&self, a: ArrayView2<f32>) -> Result<Svd> {
        let (m, n) = a.dim();
        let k = m.min(n);
        if k > 0 && (self.always || m.saturating_mul(n).saturating_mul(k) >= LEAST_PRODUCT) {
            let bytes = bytes_of(&[4 * m * n, 6 * k * k, 512 * (m + n)]);
            if let Some(done) = self.on_small(Text::Matrix, bytes, |lane| solve::svd(lane, a)) {
                return done;
            }
        }
        self.host.svd(a)
    }

    fn add_inner(&self, a: ArrayView2<f32>, b: ArrayView2<f32>, out: ArrayViewMut2<f64>) -> Result<()> {
        self.host.add_inner(a, b, out)
    }

    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>> {
        let n = super::order_of(a)?;
        if n > 0 && (self.always || n >= LEAST_ORDER) {
            let bytes = bytes_of(&[12 * n * n, 512 * n]);
            if let Some(done) = self.on_small(Text::Matrix, bytes, |lane| solve::eigh(lane, a, 0)) {
                return done.map(|eigen| eigen.values);
            }
        }
        self.host.eigenvalues(a)
    }

    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
        let n = super::order_of(a)?;
        if n > 0 && most > 0 && (self.always || n >= LEAST_ORDER) {
            let bytes = bytes_of(&[12 * n * n, 512 * n]);
            if let Some(done) = self.on_small(Text::Matrix, bytes, |lane| solve::eigh(lane, a, most)) {
                return done;
            }
        }
        self.host.eigh(a, most)
    }

    fn truncated_svd(&self, d: &dyn RowSource, wanted: &Wanted) -> Result<Truncated> {
        let run = |field: &mut OnDevice| decompose(field, wanted);
        self.decomposed(d, Some(wanted), &run).unwrap_or_else(|| self.host.truncated_svd(d, wanted))
    }

    fn exact_svd(&self, d: &dyn RowSource, depth: Depth, ceiling: usize) -> Result<Truncated> {
        let run = |field: &mut OnDevice| decompose_exactly(field, depth, ceiling);
        self.decomposed(d, None, &run).unwrap_or_else(|| self.host.exact_svd(d, depth, ceiling))
    }

    fn add_products(&self, element: Element, w: &[u8], out: &mut [u8], dim: (usize, usize), terms: &[Term]) -> Moved {
        fused::check_sizes(element, (w.len(), out.len()), dim, terms);
        if !w.is_empty() {
            let bytes = w.len() as u64 + bytes_of_terms(dim, terms);
            let step = |lane: &Lane| step::add_products(lane, element, Some(w), out, dim, terms);
            if let Some(Ok(moved)) = self.on_small(Text::Step, bytes, step) {
                return moved;
            }
        }
        self.host.add_products(element, w, out, dim, terms)
    }

    fn add_products_to_tile(&self, values: &mut [f32], dim: (usize, usize), terms: &[Term]) -> Moved {
        fused::check_sizes(Element::F32, (4 * values.len(), 4 * values.len()), dim, terms);
        if !values.is_empty() && !terms.is_empty() {
            // In place, so that a device that fails in the middle would leave a tile that is half done.
            let before = values.to_vec();
            let bytes = 4 * values.len() as u64 + bytes_of_terms(dim, terms);
            let step = |lane: &Lane| step::add_products_to_tile(lane, values, dim, terms);
            if let Some(Ok(moved)) = self.on_small(Text::Step, bytes, step) {
                return moved;
            }
            values.copy_from_slice(&before);
        }
        self.host.add_products_to_tile(values, dim, terms)
    }

    fn add_hadamard(&self, values: &mut [f32], dim: (usize, usize), scale: f32, terms: [Term; 2]) {
        fused::check_sizes(Element::F32, (4 * values.len(), 4 * values.len()), dim, &terms);
        if !values.is_empty() {
            let before = values.to_vec();
            let bytes = 4 * values.len() as u64 + bytes_of_terms(dim, &terms);
            let step = |lane: &Lane| step::add_hadamard(lane, values, dim, scale, terms);
            if let Some(Ok(())) = self.on_small(Text::Step, bytes, step) {
                return;
            }
            values.copy_from_slice(&before);
        }
        tiles::add_hadamard(&self.host, values, dim, scale, terms);
    }

    fn add_blocks(&self, values: &mut [f32], rows: usize, factors: (f32, &[f32]), block: (&[f32], usize)) {
        tiles::check_blocks(values.len(), rows, factors.1, block);
        if !values.is_empty() {
            let before = values.to_vec();
            let bytes = bytes_of(&[values.len(), factors.1.len(), block.0.len()]);
            let step = |lane: &Lane| step::add_blocks(lane, values, rows, factors, block);
            if let Some(Ok(())) = self.on_small(Text::Step, bytes, step) {
                return;
            }
            values.copy_from_slice(&before);
        }
        tiles::add_blocks(values, rows, factors, block);
    }

    fn add_products_and_stretch(&self, values: &mut [f32], dim: (usize, usize), terms: &[Term], magnitudes: &[f32]) {
        fused::check_sizes(Element::F32, (4 * values.len(), 4 * values.len()), dim, terms);
        tiles::check_magnitudes(dim.0, magnitudes);
        if !values.is_empty() {
            let before = values.to_vec();
            let bytes = 4 * values.len() as u64 + bytes_of_terms(dim, terms) + 16 * dim.0 as u64;
            let step = |lane: &Lane| step::add_products_and_stretch(lane, values, dim, terms, magnitudes);
            if let Some(Ok(())) = self.on_small(Text::Step, bytes, step) {
                return;
            }
            values.copy_from_slice(&before);
        }
        tiles::add_products_and_stretch(&self.host, values, dim, terms, magnitudes);
    }
}
