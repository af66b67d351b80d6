// Stands in for cuBLAS (libcublas.so.13): checks what it is given as strictly as can be and leaves the arithmetic to
// the BLAS of the host. Scalars are read at the call (host pointer mode).

#include <algorithm>
#include <cstring>
#include <vector>

#include "device.h"

extern "C" {
void sgemm_(const char *, const char *, const int *, const int *, const int *, const float *, const float *,
            const int *, const float *, const int *, const float *, float *, const int *, size_t, size_t);
void dgemm_(const char *, const char *, const int *, const int *, const int *, const double *, const double *,
            const int *, const double *, const int *, const double *, double *, const int *, size_t, size_t);
void strsm_(const char *, const char *, const char *, const char *, const int *, const int *, const float *,
            const float *, const int *, float *, const int *, size_t, size_t, size_t, size_t);
void dtrsm_(const char *, const char *, const char *, const char *, const int *, const int *, const double *,
            const double *, const int *, double *, const int *, size_t, size_t, size_t, size_t);
}

namespace {

using namespace standin;

enum Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};

enum Type { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };

enum Compute {
    COMPUTE_32F = 68,
    COMPUTE_32F_PEDANTIC = 69,
    COMPUTE_64F = 70,
    COMPUTE_64F_PEDANTIC = 71,
    COMPUTE_32F_FAST_16F = 74,
    COMPUTE_32F_FAST_16BF = 75,
    COMPUTE_32F_FAST_TF32 = 77,
    COMPUTE_32F_EMULATED_16BFX9 = 78,
};

constexpr int TF32_TENSOR_OP_MATH = 3;

size_t size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

char letter(int operation) { return operation == 0 ? 'N' : 'T'; }

bool valid_operation(int operation) { return operation >= 0 && operation <= 2; }

float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 31) return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = float(fraction) * 0x1p-24f;
    return sign ? -tiny : tiny;
}

// To `bits` bits of fraction, ties to even: what the units that are fast with few bits are given.
float rounded(float value, int bits) {
    uint32_t raw;
    memcpy(&raw, &value, sizeof raw);
    if ((raw & 0x7f800000) == 0x7f800000) return value;
    const int dropped = 23 - bits;
    raw += (uint32_t(1) << (dropped - 1)) - 1 + (raw >> dropped & 1);
    return from_bits(raw >> dropped << dropped);
}

// A matrix in f32: as it lies there, or a copy that is converted or rounded.
struct Floats {
    const float *at;
    int ld;
    std::vector<float> copy;

    Floats(const void *source, int type, int rows, int cols, int source_ld, int fraction_bits)
        : at(static_cast<const float *>(source)), ld(source_ld) {
        if (type == R_32F && fraction_bits == 23) return;
        copy.resize(size_t(rows) * cols);
        for (int col = 0; col < cols; col++)
            for (int row = 0; row < rows; row++) {
                const size_t from = size_t(col) * source_ld + row;
                const auto half = static_cast<const uint16_t *>(source);
                float value = type == R_32F    ? at[from]
                              : type == R_16BF ? from_bits(uint32_t(half[from]) << 16)
                                               : from_half(half[from]);
                copy[size_t(col) * rows + row] = fraction_bits < 23 ? rounded(value, fraction_bits) : value;
            }
        at = copy.data();
        ld = std::max(rows, 1);
    }
};

struct Gemm {
    int transa, transb, m, n, k;
    const void *alpha, *a;
    int a_type, lda;
    const void *b;
    int b_type, ldb;
    const void *beta;
    void *c;
    int c_type, ldc;
    int fraction_bits;  // that are kept of the factors
};

int gemm(Handle *handle, const char *call, const Gemm &g) {
    if (!valid_operation(g.transa) || !valid_operation(g.transb) || g.m < 0 || g.n < 0 || g.k < 0)
        return INVALID_VALUE;
    const int a_rows = g.transa ? g.k : g.m, a_cols = g.transa ? g.m : g.k;
    const int b_rows = g.transb ? g.n : g.k, b_cols = g.transb ? g.k : g.n;
    if (g.lda < std::max(1, a_rows) || g.ldb < std::max(1, b_rows) || g.ldc < std::max(1, g.m)) return INVALID_VALUE;
    if (!g.alpha || !g.beta) return INVALID_VALUE;
    Stream *stream = bound_stream(handle, call);
    if (!stream) return EXECUTION_FAILED;
    if (g.m == 0 || g.n == 0) return SUCCESS;
    check_operands(stream, call,
                   {{"A", g.a, a_rows, a_cols, g.lda, size_of(g.a_type)},
                    {"B", g.b, b_rows, b_cols, g.ldb, size_of(g.b_type)},
                    {"C", g.c, g.m, g.n, g.ldc, size_of(g.c_type), true}});
    const char *name = g.a_type == R_64F ? "f64" : g.a_type == R_32F ? "f32" : g.a_type == R_16F ? "f16" : "bf16";
    log(stream->device, stream, "gemm %s %c%c m=%d n=%d k=%d", name, letter(g.transa), letter(g.transb), g.m, g.n, g.k);
    const char ta = letter(g.transa), tb = letter(g.transb);
    if (g.c_type == R_64F) {
        const double alpha = *static_cast<const double *>(g.alpha), beta = *static_cast<const double *>(g.beta);
        push(stream, [=] {
            dgemm_(&ta, &tb, &g.m, &g.n, &g.k, &alpha, static_cast<const double *>(g.a), &g.lda,
                   static_cast<const double *>(g.b), &g.ldb, &beta, static_cast<double *>(g.c), &g.ldc, 1, 1);
        });
        return SUCCESS;
    }
    const float alpha = *static_cast<const float *>(g.alpha), beta = *static_cast<const float *>(g.beta);
    push(stream, [=] {
        const Floats a(g.a, g.a_type, a_rows, a_cols, g.lda, g.fraction_bits);
        const Floats b(g.b, g.b_type, b_rows, b_cols, g.ldb, g.fraction_bits);
        sgemm_(&ta, &tb, &g.m, &g.n, &g.k, &alpha, a.at, &a.ld, b.at, &b.ld, &beta, static_cast<float *>(g.c), &g.ldc,
               1, 1);
    });
    return SUCCESS;
}

template <class T, class Solve>
int trsm(Handle *handle, const char *call, Solve solve, int side, int uplo, int trans, int diag, int m, int n,
         const T *alpha, const T *a, int lda, T *b, int ldb) {
    const bool left = side == 0;
    const int order = left ? m : n;
    if ((side != 0 && side != 1) || (uplo != 0 && uplo != 1) || !valid_operation(trans) || (diag != 0 && diag != 1))
        return INVALID_VALUE;
    if (m < 0 || n < 0 || lda < std::max(1, order) || ldb < std::max(1, m) || !alpha) return INVALID_VALUE;
    Stream *stream = bound_stream(handle, call);
    if (!stream) return EXECUTION_FAILED;
    if (m == 0 || n == 0) return SUCCESS;
    check_operands(stream, call, {{"A", a, order, order, lda, sizeof(T)}, {"B", b, m, n, ldb, sizeof(T), true}});
    log(stream->device, stream, "trsm %s %s m=%d n=%d", sizeof(T) == 8 ? "f64" : "f32", left ? "left" : "right", m, n);
    const T factor = *alpha;
    push(stream, [=] {
        solve(left ? "L" : "R", uplo == 0 ? "L" : "U", trans == 0 ? "N" : "T", diag == 0 ? "N" : "U", &m, &n, &factor,
              a, &lda, b, &ldb, 1, 1, 1, 1);
    });
    return SUCCESS;
}

}  // namespace

#define ENTER                                                              \
    if (int status = injected(__func__, EXECUTION_FAILED)) return status; \
    auto guard = standin::lock();
#define ENTER_HANDLE                     \
    ENTER                                \
    if (!raw) return NOT_INITIALIZED;    \
    Handle *const handle = checked_handle(raw, __func__);

extern "C" {

int cublasCreate_v2(void **out) {
    ENTER
    if (!out) return INVALID_VALUE;
    *out = new_handle();
    return *out ? SUCCESS : NOT_INITIALIZED;
}

int cublasDestroy_v2(void *raw) {
    ENTER_HANDLE
    delete_handle(handle);
    return SUCCESS;
}

int cublasSetStream_v2(void *raw, void *stream) {
    ENTER_HANDLE
    return bind_handle(handle, stream, __func__) ? SUCCESS : INVALID_VALUE;
}

int cublasSetMathMode(void *raw, unsigned mode) {
    ENTER_HANDLE
    handle->math_mode = int(mode & 15);
    return SUCCESS;
}

int cublasSetWorkspace_v2(void *raw, void *workspace, size_t bytes) {
    ENTER_HANDLE
    if (bytes && reinterpret_cast<uintptr_t>(workspace) % 256) return INVALID_VALUE;
    check_range(handle->device, workspace, bytes, __func__);
    return SUCCESS;
}

int cublasGetVersion_v2(void *, int *version) {
    ENTER
    *version = 130000;
    return SUCCESS;
}

int cublasGetProperty(int part, int *value) {
    ENTER
    *value = part == 0 ? 13 : 0;
    return SUCCESS;
}

int cublasSgemm_v2(void *raw, int transa, int transb, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
    ENTER_HANDLE
    const int bits = handle->math_mode == TF32_TENSOR_OP_MATH ? 10 : 23;
    return gemm(handle, __func__,
                {transa, transb, m, n, k, alpha, a, R_32F, lda, b, R_32F, ldb, beta, c, R_32F, ldc, bits});
}

int cublasDgemm_v2(void *raw, int transa, int transb, int m, int n, int k, const double *alpha, const double *a,
                   int lda, const double *b, int ldb, const double *beta, double *c, int ldc) {
    ENTER_HANDLE
    return gemm(handle, __func__,
                {transa, transb, m, n, k, alpha, a, R_64F, lda, b, R_64F, ldb, beta, c, R_64F, ldc, 52});
}

int cublasGemmEx(void *raw, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type,
                 int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                 int compute, int) {
    ENTER_HANDLE
    int bits = 23;
    if (compute == COMPUTE_64F || compute == COMPUTE_64F_PEDANTIC) {
        if (a_type != R_64F || b_type != R_64F || c_type != R_64F) return NOT_SUPPORTED;
    } else {
        if (a_type != b_type || c_type != R_32F || (a_type != R_32F && a_type != R_16F && a_type != R_16BF))
            return NOT_SUPPORTED;
        if (compute == COMPUTE_32F_FAST_TF32 || compute == COMPUTE_32F_FAST_16F) {
            bits = 10;
        } else if (compute == COMPUTE_32F_FAST_16BF) {
            bits = 7;
        } else if (compute == COMPUTE_32F) {
            bits = handle->math_mode == TF32_TENSOR_OP_MATH && a_type == R_32F ? 10 : 23;
        } else if (compute != COMPUTE_32F_PEDANTIC && compute != COMPUTE_32F_EMULATED_16BFX9) {
            return NOT_SUPPORTED;
        }
    }
    return gemm(handle, __func__,
                {transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, bits});
}

// C = alpha op(A) + beta op(B). C may be A or B, where that one is not transposed and has the same leading dimension.
int cublasSgeam(void *raw, int transa, int transb, int m, int n, const float *alpha, const float *a, int lda,
                const float *beta, const float *b, int ldb, float *c, int ldc) {
    ENTER_HANDLE
    if (!valid_operation(transa) || !valid_operation(transb) || m < 0 || n < 0 || !alpha || !beta) return INVALID_VALUE;
    const int a_rows = transa ? n : m, a_cols = transa ? m : n, b_rows = transb ? n : m, b_cols = transb ? m : n;
    if (lda < std::max(1, a_rows) || ldb < std::max(1, b_rows) || ldc < std::max(1, m)) return INVALID_VALUE;
    if ((a == c && (transa || lda != ldc)) || (b == c && (transb || ldb != ldc))) return INVALID_VALUE;
    Stream *stream = bound_stream(handle, __func__);
    if (!stream) return EXECUTION_FAILED;
    if (m == 0 || n == 0) return SUCCESS;
    const float factor_a = *alpha, factor_b = *beta;
    // What is multiplied by nothing is not read.
    const int a_used = factor_a != 0 && a != c ? a_cols : 0, b_used = factor_b != 0 && b != c ? b_cols : 0;
    check_operands(stream, __func__,
                   {{"A", a, a_rows, a_used, lda, sizeof *a},
                    {"B", b, b_rows, b_used, ldb, sizeof *b},
                    {"C", c, m, n, ldc, sizeof *c, true}});
    log(stream->device, stream, "geam f32 %c%c m=%d n=%d", letter(transa), letter(transb), m, n);
    push(stream, [=] {
        const auto element = [](const float *at, int trans, int ld, int row, int col) {
            return trans ? at[size_t(row) * ld + col] : at[size_t(col) * ld + row];
        };
        for (int col = 0; col < n; col++)
            for (int row = 0; row < m; row++) {
                float sum = 0;
                if (factor_a != 0) sum += factor_a * element(a, transa, lda, row, col);
                if (factor_b != 0) sum += factor_b * element(b, transb, ldb, row, col);
                c[size_t(col) * ldc + row] = sum;
            }
    });
    return SUCCESS;
}

int cublasStrsm_v2(void *raw, int side, int uplo, int trans, int diag, int m, int n, const float *alpha,
                   const float *a, int lda, float *b, int ldb) {
    ENTER_HANDLE
    return trsm(handle, __func__, strsm_, side, uplo, trans, diag, m, n, alpha, a, lda, b, ldb);
}

int cublasDtrsm_v2(void *raw, int side, int uplo, int trans, int diag, int m, int n, const double *alpha,
                   const double *a, int lda, double *b, int ldb) {
    ENTER_HANDLE
    return trsm(handle, __func__, dtrsm_, side, uplo, trans, diag, m, n, alpha, a, lda, b, ldb);
}

const char *cublasGetStatusString(int status) {
    switch (status) {
        case 0: return "CUBLAS_STATUS_SUCCESS";
        case 1: return "CUBLAS_STATUS_NOT_INITIALIZED";
        case 3: return "CUBLAS_STATUS_ALLOC_FAILED";
        case 7: return "CUBLAS_STATUS_INVALID_VALUE";
        case 8: return "CUBLAS_STATUS_ARCH_MISMATCH";
        case 11: return "CUBLAS_STATUS_MAPPING_ERROR";
        case 13: return "CUBLAS_STATUS_EXECUTION_FAILED";
        case 14: return "CUBLAS_STATUS_INTERNAL_ERROR";
        case 15: return "CUBLAS_STATUS_NOT_SUPPORTED";
        default: return "CUBLAS_STATUS unknown";
    }
}

}  // extern "C"
