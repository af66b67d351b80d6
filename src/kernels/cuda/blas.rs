//! Products by cuBLAS, which is column-major: of matrices that lie by rows the transposed product is asked for.

use cudarc::cublas::sys as cublas;

use super::fault::{self, Done, Fault};
use super::lane::{Arg, Lane, Routine};

/// Which digits of f32 a product keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// All of them.
    All,
    /// Those of TF32, where it is allowed.
    Few,
}

/// A matrix in device memory: rows of `cols` values, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Mat {
    /// Its first value.
    pub at: u64,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Values from row to row.
    pub stride: usize,
    /// Whether it is used the other way round.
    pub turned: bool,
}

impl Mat {
    /// Rows one behind the other.
    pub fn new(at: u64, rows: usize, cols: usize) -> Mat {
        Mat { at, rows, cols, stride: cols, turned: false }
    }

    /// The transpose.
    pub fn t(self) -> Mat {
        Mat { turned: !self.turned, ..self }
    }

    fn dim(&self) -> (usize, usize) {
        if self.turned { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn op(&self) -> cublas::cublasOperation_t {
        if self.turned { cublas::cublasOperation_t::CUBLAS_OP_T } else { cublas::cublasOperation_t::CUBLAS_OP_N }
    }
}

impl Lane {
    /// `c = alpha · a · b + beta · c`.
    pub fn gemm(&self, digits: Digits, alpha: f32, (a, b): (Mat, Mat), beta: f32, c: Mat) -> Done<()> {
        let Some([m, n, k, lda, ldb, ldc]) = sizes(a, b, c)? else { return self.only_beta(beta, c) };
        let handle = self.blas()?;
        let mode = match digits {
            Digits::Few if self.may_round() => cublas::cublasMath_t::CUBLAS_TF32_TENSOR_OP_MATH,
            _ => cublas::cublasMath_t::CUBLAS_DEFAULT_MATH,
        };
        // SAFETY: sizes and strides are those of the matrices; alpha and beta are read by the call.
        unsafe {
            fault::blas("cublasSetMathMode", cublas::cublasSetMathMode(handle, mode))?;
            fault::blas(
                "cublasSgemm",
                cublas::cublasSgemm_v2(
                    handle,
                    b.op(),
                    a.op(),
                    n,
                    m,
                    k,
                    &raw const alpha,
                    b.at as *const f32,
                    ldb,
                    a.at as *const f32,
                    lda,
                    &raw const beta,
                    c.at as *mut f32,
                    ldc,
                ),
            )
        }
    }

    /// The same in f64.
    pub fn gemm_f64(&self, (a, b): (Mat, Mat), beta: f64, c: Mat) -> Done<()> {
        let Some([m, n, k, lda, ldb, ldc]) = sizes(a, b, c)? else { return self.only_beta(beta as f32, c) };
        let handle = self.blas()?;
        let alpha = 1f64;
        // SAFETY: as in `gemm`.
        unsafe {
            fault::blas(
                "cublasDgemm",
                cublas::cublasDgemm_v2(
                    handle,
                    b.op(),
                    a.op(),
                    n,
                    m,
                    k,
                    &raw const alpha,
                    b.at as *const f64,
                    ldb,
                    a.at as *const f64,
                    lda,
                    &raw const beta,
                    c.at as *mut f64,
                    ldc,
                ),
            )
        }
    }

    /// What a product over nothing leaves: memory for it is zeros ([`Lane::filled_by_product`]), or is added to.
    fn only_beta(&self, beta: f32, c: Mat) -> Done<()> {
        let is_left = c.rows == 0 || c.cols == 0 || beta == 0.0 || beta == 1.0;
        if is_left { Ok(()) } else { Err(Fault::Full) } // the host does it
    }

    /// Copies a rectangle of f32 out: `rows` rows of `cols` values that are `stride` apart.
    pub fn corner(&self, from: Mat) -> Done<Vec<f32>> {
        let packed = self.room::<f32>(from.rows * from.cols)?;
        let count = from.rows * from.cols;
        let args = [
            Arg::At(from.at),
            Arg::Long(from.stride as u64),
            Arg::Float(1.0),
            Arg::At(packed.at),
            Arg::Long(from.cols as u64),
            Arg::Long(count as u64),
        ];
        self.each(Routine::Scale, count, &args)?;
        self.download(packed.at, count)
    }
}

/// Sizes of a product for the libraries: m, n, k and the three strides. None where it is empty.
fn sizes(a: Mat, b: Mat, c: Mat) -> Done<Option<[i32; 6]>> {
    let ((m, k), (inner, n)) = (a.dim(), b.dim());
    assert!(k == inner && (c.rows, c.cols) == (m, n) && !c.turned, "a product of other sizes");
    if m == 0 || n == 0 || k == 0 {
        return Ok(None);
    }
    let mut out = [0; 6];
    for (out, size) in out.iter_mut().zip([m, n, k, a.stride, b.stride, c.stride]) {
        *out = fault::int(size)?;
    }
    Ok(Some(out))
}
