//! Which backend a run uses: what `--device` says, what there is, and what pays.

use std::path::PathBuf;
use std::str::FromStr;

use ndarray::Array2;

use super::{Kernels, OpenBlas, Reference};
use crate::error::{Error, Kind, Result};

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A device where it pays, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// All of NVIDIA's devices, or the one of this number.
    Cuda(Option<u8>),
}

impl Device {
    /// Whether it takes a look at the machine's devices, for a run whose decompositions are of so many multiplications.
    pub fn is_looked_for(self, factorising: u64) -> bool {
        match self {
            Device::Cpu => false,
            Device::Auto => factorising >= WORTH_A_DEVICE,
            Device::Cuda(_) => true,
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Device, String> {
        let number = |n: &str| n.parse().ok().filter(|_| n == "0" || !n.starts_with(['0', '+']));
        match word.split_once(':') {
            None if word == "auto" => Ok(Device::Auto),
            None if word == "cpu" => Ok(Device::Cpu),
            None if word == "cuda" => Ok(Device::Cuda(None)),
            Some(("cuda", n)) if number(n).is_some() => Ok(Device::Cuda(number(n))),
            _ => Err("expected auto, cpu, cuda or cuda:N".to_string()),
        }
    }
}

/// What is asked of a backend.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Which one.
    pub device: Device,
    /// Bytes of a device's memory that are used at most; most of what is free where nothing is said.
    pub memory: Option<u64>,
    /// A device may use TF32 on the way to a decomposition.
    pub tf32: bool,
    /// Where a device's libraries are looked for beside where the loader looks.
    pub folders: Vec<PathBuf>,
    /// Multiplications of the decompositions that are to be made, roughly; 0 where there are none.
    pub factorising: u64,
}

/// Multiplications from which on opening a device, which takes about a second, is made up for: the CPU does some 10¹¹ a
/// second on a few cores.
pub const WORTH_A_DEVICE: u64 = 2_000_000_000_000;
/// Error of the self-test from which on a backend is wrong.
pub const MOST_ERROR: f64 = 1e-5;

/// The backend, and what there is to say about the choice.
pub fn choose(options: &Options) -> Result<(Box<dyn Kernels>, Option<String>)> {
    let cpu = || Box::new(OpenBlas::new()) as Box<dyn Kernels>;
    match options.device {
        Device::Cpu => Ok((cpu(), None)),
        _ if !options.device.is_looked_for(options.factorising) => Ok((cpu(), None)),
        Device::Auto => match checked_cuda(options) {
            Ok(backend) => Ok((backend, None)),
            // Most machines have no device, and that is nothing to speak of.
            Err(e) if is_ordinary(&e) => Ok((cpu(), None)),
            Err(e) => Ok((cpu(), Some(format!("no device is used: {}", e.what())))),
        },
        Device::Cuda(number) => {
            let word = number.map_or_else(|| "cuda".to_string(), |n| format!("cuda:{n}"));
            let said = |e: Error| {
                Error::new(e.kind(), format!("--device {word}: {}", e.what())).hint("--device cpu needs none of this")
            };
            Ok((cuda(options, number, false).map_err(said)?, None))
        }
    }
}

/// A machine without an NVIDIA driver.
fn is_ordinary(e: &Error) -> bool {
    e.kind() == Kind::Unsupported || e.what().starts_with("no NVIDIA driver")
}

#[cfg(feature = "cuda")]
fn opened(options: &Options, number: Option<u8>, always: bool) -> Result<super::cuda::Cuda> {
    let Options { memory, tf32, folders, .. } = options.clone();
    super::cuda::Cuda::open(&super::cuda::Options { number, memory, tf32, folders, always })
}

/// The devices; with `always` for work of any size.
#[cfg(feature = "cuda")]
fn cuda(options: &Options, number: Option<u8>, always: bool) -> Result<Box<dyn Kernels>> {
    Ok(Box::new(opened(options, number, always)?))
}

/// The devices, once they have computed rightly here.
#[cfg(feature = "cuda")]
fn checked_cuda(options: &Options) -> Result<Box<dyn Kernels>> {
    let opened = opened(options, None, true)?;
    let error = self_test(&opened)?;
    // The host does what a device fails to do, and that is told in the notes.
    let wrong: Vec<String> = opened.notes().into_iter().filter(|note| !note.starts_with("computed on")).collect();
    if error <= MOST_ERROR && wrong.is_empty() {
        return Ok(Box::new(opened.only_what_pays()));
    }
    Err(Error::mismatch(format!("the self-test has an error of {error:.1e}; {}", wrong.join("; "))))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: &Options, _: Option<u8>, _: bool) -> Result<Box<dyn Kernels>> {
    Err(Error::unsupported("this build has no CUDA backend: it was made without the feature `cuda`"))
}

#[cfg(not(feature = "cuda"))]
fn checked_cuda(options: &Options) -> Result<Box<dyn Kernels>> {
    cuda(options, None, true)
}

/// A backend that was looked for: itself, or why it is not there.
pub type Looked = std::result::Result<Box<dyn Kernels>, Error>;

/// Every backend of this build with its name, the reference first; of those that cannot run here why. Work of any size
/// goes to a device, so that it is the device that is tested.
pub fn all(folders: &[PathBuf]) -> Vec<(&'static str, Looked)> {
    let blas = OpenBlas::new();
    vec![
        (Reference.name(), Ok(Box::new(Reference))),
        (blas.name(), Ok(Box::new(blas))),
        ("cuda", cuda(&Options { folders: folders.to_vec(), ..Options::default() }, None, true)),
    ]
}

/// Every backend that can run here, with the reference first.
pub fn present() -> Vec<Box<dyn Kernels>> {
    all(&[]).into_iter().filter_map(|(_, backend)| backend.ok()).collect()
}

/// The largest relative error of a product, a QR and two singular value decompositions put together again, and of a merge
/// step, against sums in f64.
pub fn self_test(backend: &dyn Kernels) -> Result<f64> {
    let entry = |i: usize, j: usize, seed: usize| (((i * 31 + j * 17 + seed) % 101) as f32 - 50.0) / 50.0;
    let a = Array2::from_shape_fn((67, 43), |(i, j)| entry(i, j, 3));
    let b = Array2::from_shape_fn((43, 59), |(i, j)| entry(i, j, 8));
    let wide = |x: &Array2<f32>| x.mapv(f64::from);
    let mut errors = Vec::new();
    let mut product = Array2::zeros((67, 59));
    backend.gemm(1.0, a.view(), b.view(), 0.0, product.view_mut())?;
    errors.push(relative(&product, &wide(&a).dot(&wide(&b))));
    let svd = backend.svd(a.view())?;
    errors.push(relative(&(&svd.u * &svd.s).dot(&svd.vt), &wide(&a)));
    let (q, r) = backend.qr(a.view())?;
    errors.push(relative(&q.dot(&r), &wide(&a)));
    // A matrix of rank 3 is found whole by an iteration that looks for 4.
    let (left, right) = (a.slice(ndarray::s![.., ..3]), b.slice(ndarray::s![..3, ..]));
    let low = Array2::from_shape_fn((150, 130), |(i, j)| {
        (0..3).map(|k| left[[(i * 7 + k) % 67, k]] * right[[k, (j * 5 + k) % 59]]).sum::<f32>()
    });
    let wanted = super::Wanted { depth: super::Depth::Rank(4), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 };
    let found = backend.truncated_svd(&low, &wanted)?;
    let s: ndarray::Array1<f32> = found.s.iter().map(|&s| s as f32).collect();
    errors.push(relative(&(&found.u * &s).dot(&found.vt), &wide(&low)));
    let mut sum = product.clone();
    backend.add_product(0.5, a.view(), b.view(), sum.view_mut())?;
    errors.push(relative(&sum, &(wide(&product) + wide(&a).dot(&wide(&b)) * 0.5)));
    Ok(errors.into_iter().fold(0.0, |most: f64, e| if e.is_nan() { f64::INFINITY } else { most.max(e) }))
}

fn relative(found: &Array2<f32>, expected: &Array2<f64>) -> f64 {
    let difference = found.mapv(f64::from) - expected;
    let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
    norm(&difference) / norm(expected).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        for (word, device) in [
            ("auto", Device::Auto),
            ("cpu", Device::Cpu),
            ("cuda", Device::Cuda(None)),
            ("cuda:12", Device::Cuda(Some(12))),
        ] {
            assert_eq!(word.parse(), Ok(device));
        }
        for word in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:256", "cuda:01", "cuda:+1", "cpu:0", "CUDA"] {
            assert!(word.parse::<Device>().is_err(), "{word}");
        }
    }

    #[test]
    fn the_self_test_finds_nothing_wrong() {
        for (name, backend) in all(&[]) {
            let Ok(backend) = backend else { continue };
            assert!(self_test(backend.as_ref()).unwrap() <= MOST_ERROR, "{name}");
        }
    }

    #[test]
    fn little_work_and_the_word_cpu_stay_on_the_cpu() {
        for device in [Device::Auto, Device::Cpu] {
            let (backend, note) = choose(&Options { device, ..Options::default() }).unwrap();
            assert_eq!((backend.name(), note), (OpenBlas::new().name(), None));
        }
    }
}
