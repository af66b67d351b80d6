// Stands in for cuSOLVER (libcusolver.so.12): the checks, and the LAPACK of the host. Results come when the stream is
// waited for, the status in devInfo with them.

#include <algorithm>
#include <cstring>
#include <vector>

#include "device.h"

extern "C" {
void sgeqrf_(const int *, const int *, float *, const int *, float *, float *, const int *, int *);
void sorgqr_(const int *, const int *, const int *, float *, const int *, const float *, float *, const int *, int *);
void sgesvd_(const char *, const char *, const int *, const int *, float *, const int *, float *, float *, const int *,
             float *, const int *, float *, const int *, int *, size_t, size_t);
void spotrf_(const char *, const int *, float *, const int *, int *, size_t);
void dpotrf_(const char *, const int *, double *, const int *, int *, size_t);
void ssyevd_(const char *, const char *, const int *, float *, const int *, float *, float *, const int *, int *,
             const int *, int *, size_t, size_t);
void dsyevd_(const char *, const char *, const int *, double *, const int *, double *, double *, const int *, int *,
             const int *, int *, size_t, size_t);
void dsyevr_(const char *, const char *, const char *, const int *, double *, const int *, const double *,
             const double *, const int *, const int *, const double *, int *, double *, double *, const int *, int *,
             double *, const int *, int *, const int *, int *, size_t, size_t, size_t);

// The one function of the Fortran runtime that LAPACK cannot do without here, for a link with OpenBLAS's archive where
// the runtime is missing or cannot be part of a shared library.
__attribute__((weak, visibility("hidden"))) void _gfortran_concat_string(size_t length, char *to, size_t first_length,
                                                                         const char *first, size_t second_length,
                                                                         const char *second) {
    memset(to, ' ', length);
    memcpy(to, first, std::min(length, first_length));
    if (length > first_length) memcpy(to + first_length, second, std::min(length - first_length, second_length));
}
}

namespace {

using namespace standin;

enum Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 3,
    EXECUTION_FAILED = 6,
};

enum Range { ALL = 1001, INDICES = 1002, VALUES = 1003 };

// Workspaces are asked for and checked, though LAPACK gets its own: it wants other sizes. They come back as NaN.
int workspace_elements(int m, int n) { return 32 * std::max(1, std::max(m, n)) + 64; }

template <class T>
void poison(T *at, int rows, int cols, int ld) {
    for (int col = 0; col < cols; col++) memset(at + size_t(col) * ld, 0xff, sizeof(T) * rows);
}

// Calls LAPACK twice: for the size of its workspace, and with it.
template <class T, class Call>
void with_work(Call call) {
    T size = 0;
    int ask = -1, info = 0;
    call(&size, &ask, &info);
    std::vector<T> work(std::max<size_t>(1, size_t(size) + size_t(size) / 1024 + 1));
    int length = int(work.size());
    call(work.data(), &length, &info);
}

template <class T>
Operand matrix(const char *name, const T *at, int rows, int cols, int ld, bool written = true) {
    return {name, at, rows, cols, ld, sizeof(T), written};
}

template <class T>
Operand vector(const char *name, const T *at, int count, bool written = true) {
    return {name, at, count, 1, count, sizeof(T), written};
}

const char *lower_or_upper(int uplo) { return uplo == 0 ? "L" : "U"; }

int symmetric_size(int uplo, int n, int lda, int *lwork) {
    if ((uplo != 0 && uplo != 1) || n < 0 || lda < std::max(1, n) || !lwork) return INVALID_VALUE;
    *lwork = workspace_elements(n, n);
    return SUCCESS;
}

template <class T, class Factorise>
int potrf(Handle *handle, const char *call, Factorise factorise, int uplo, int n, T *a, int lda, T *work, int lwork,
          int *info) {
    if ((uplo != 0 && uplo != 1) || n < 0 || lda < std::max(1, n) || lwork < workspace_elements(n, n))
        return INVALID_VALUE;
    Stream *stream = bound_stream(handle, call);
    if (!stream) return EXECUTION_FAILED;
    check_operands(stream, call,
                   {matrix("A", a, n, n, lda), vector("workspace", work, lwork), vector("devInfo", info, 1)});
    log(stream->device, stream, "potrf %s n=%d", sizeof(T) == 8 ? "f64" : "f32", n);
    push(stream, [=] {
        factorise(lower_or_upper(uplo), &n, a, &lda, info, 1);
        poison(work, lwork, 1, lwork);
    });
    return SUCCESS;
}

template <class T, class Decompose>
int syevd(Handle *handle, const char *call, Decompose decompose, int jobz, int uplo, int n, T *a, int lda, T *w,
          T *work, int lwork, int *info) {
    if ((jobz != 0 && jobz != 1) || (uplo != 0 && uplo != 1) || n < 0 || lda < std::max(1, n)) return INVALID_VALUE;
    if (lwork < workspace_elements(n, n)) return INVALID_VALUE;
    Stream *stream = bound_stream(handle, call);
    if (!stream) return EXECUTION_FAILED;
    check_operands(stream, call, {matrix("A", a, n, n, lda), vector("W", w, n), vector("workspace", work, lwork),
                                  vector("devInfo", info, 1)});
    log(stream->device, stream, "syevd %s n=%d vectors=%d", sizeof(T) == 8 ? "f64" : "f32", n, jobz);
    push(stream, [=] {
        std::vector<int> integers(size_t(5) * n + 3);
        const int integer_count = int(integers.size());
        with_work<T>([&](T *space, const int *length, int *status) {
            decompose(jobz ? "V" : "N", lower_or_upper(uplo), &n, a, &lda, w, space, length, integers.data(),
                      &integer_count, status, 1, 1);
            *info = *status;
        });
        if (!jobz) poison(a, n, n, lda);
        poison(work, lwork, 1, lwork);
    });
    return SUCCESS;
}

}  // namespace

#define ENTER                                                              \
    if (int status = injected(__func__, EXECUTION_FAILED)) return status; \
    auto guard = standin::lock();
#define ENTER_HANDLE                  \
    ENTER                             \
    if (!raw) return NOT_INITIALIZED; \
    Handle *const handle = checked_handle(raw, __func__);
#define ENTER_HANDLE_ONLY             \
    ENTER                             \
    if (!raw) return NOT_INITIALIZED; \
    checked_handle(raw, __func__);
#define NEED(condition) \
    if (!(condition)) return INVALID_VALUE;
#define ENTER_STREAM                                \
    Stream *const stream = bound_stream(handle, __func__); \
    if (!stream) return EXECUTION_FAILED;

extern "C" {

int cusolverDnCreate(void **out) {
    ENTER
    NEED(out)
    *out = new_handle();
    return *out ? SUCCESS : NOT_INITIALIZED;
}

int cusolverDnDestroy(void *raw) {
    ENTER_HANDLE
    delete_handle(handle);
    return SUCCESS;
}

int cusolverDnSetStream(void *raw, void *stream) {
    ENTER_HANDLE
    return bind_handle(handle, stream, __func__) ? SUCCESS : INVALID_VALUE;
}

int cusolverGetVersion(int *version) {
    ENTER
    NEED(version)
    *version = 12000;
    return SUCCESS;
}

int cusolverGetProperty(int part, int *value) {
    ENTER
    NEED(value)
    *value = part == 0 ? 12 : 0;
    return SUCCESS;
}

// ---- QR ----

int cusolverDnSgeqrf_bufferSize(void *raw, int m, int n, float *, int lda, int *lwork) {
    ENTER_HANDLE_ONLY
    NEED(m >= 0 && n >= 0 && lda >= std::max(1, m) && lwork)
    *lwork = workspace_elements(m, n);
    return SUCCESS;
}

int cusolverDnSgeqrf(void *raw, int m, int n, float *a, int lda, float *tau, float *work, int lwork, int *info) {
    ENTER_HANDLE
    NEED(m >= 0 && n >= 0 && lda >= std::max(1, m) && lwork >= workspace_elements(m, n))
    ENTER_STREAM
    check_operands(stream, __func__, {matrix("A", a, m, n, lda), vector("tau", tau, std::min(m, n)),
                                      vector("workspace", work, lwork), vector("devInfo", info, 1)});
    log(stream->device, stream, "geqrf f32 m=%d n=%d", m, n);
    push(stream, [=] {
        with_work<float>([&](float *space, const int *length, int *status) {
            sgeqrf_(&m, &n, a, &lda, tau, space, length, status);
            *info = *status;
        });
        poison(work, lwork, 1, lwork);
    });
    return SUCCESS;
}

int cusolverDnSorgqr_bufferSize(void *raw, int m, int n, int k, const float *, int lda, const float *, int *lwork) {
    ENTER_HANDLE_ONLY
    NEED(m >= 0 && n >= 0 && n <= m && k >= 0 && k <= n && lda >= std::max(1, m) && lwork)
    *lwork = workspace_elements(m, n);
    return SUCCESS;
}

int cusolverDnSorgqr(void *raw, int m, int n, int k, float *a, int lda, const float *tau, float *work, int lwork,
                     int *info) {
    ENTER_HANDLE
    NEED(m >= 0 && n >= 0 && n <= m && k >= 0 && k <= n && lda >= std::max(1, m) && lwork >= workspace_elements(m, n))
    ENTER_STREAM
    check_operands(stream, __func__, {matrix("A", a, m, n, lda), vector("tau", tau, k, false),
                                      vector("workspace", work, lwork), vector("devInfo", info, 1)});
    log(stream->device, stream, "orgqr f32 m=%d n=%d k=%d", m, n, k);
    push(stream, [=] {
        with_work<float>([&](float *space, const int *length, int *status) {
            sorgqr_(&m, &n, &k, a, &lda, tau, space, length, status);
            *info = *status;
        });
        poison(work, lwork, 1, lwork);
    });
    return SUCCESS;
}

// ---- SVD ----

int cusolverDnSgesvd_bufferSize(void *raw, int m, int n, int *lwork) {
    ENTER_HANDLE_ONLY
    NEED(m >= n && n >= 0 && lwork)
    *lwork = workspace_elements(m, n);
    return SUCCESS;
}

// Only for m >= n, as cuSOLVER's documentation says.
int cusolverDnSgesvd(void *raw, signed char jobu, signed char jobvt, int m, int n, float *a, int lda, float *s,
                     float *u, int ldu, float *vt, int ldvt, float *work, int lwork, float *rwork, int *info) {
    ENTER_HANDLE
    NEED(strchr("ASON", jobu) && jobu && strchr("ASON", jobvt) && jobvt && !(jobu == 'O' && jobvt == 'O'))
    NEED(m >= n && n >= 0 && lda >= std::max(1, m) && lwork >= workspace_elements(m, n))
    const int u_cols = jobu == 'A' ? m : jobu == 'S' ? n : 0, vt_rows = jobvt == 'A' || jobvt == 'S' ? n : 0;
    NEED(ldu >= 1 && ldvt >= 1 && (u_cols == 0 || ldu >= m) && ldvt >= vt_rows)
    ENTER_STREAM
    check_operands(stream, __func__,
                   {matrix("A", a, m, n, lda), vector("S", s, n), matrix("U", u, m, u_cols, ldu),
                    matrix("VT", vt, vt_rows, n, ldvt), vector("workspace", work, lwork),
                    vector("rwork", rwork, rwork ? std::max(0, n - 1) : 0), vector("devInfo", info, 1)});
    log(stream->device, stream, "gesvd f32 %c%c m=%d n=%d", jobu, jobvt, m, n);
    push(stream, [=] {
        const char u_job = char(jobu), vt_job = char(jobvt);
        with_work<float>([&](float *space, const int *length, int *status) {
            sgesvd_(&u_job, &vt_job, &m, &n, a, &lda, s, u, &ldu, vt, &ldvt, space, length, status, 1, 1);
            *info = *status;
        });
        if (jobu != 'O' && jobvt != 'O') poison(a, m, n, lda);
        poison(work, lwork, 1, lwork);
    });
    return SUCCESS;
}

// ---- Cholesky ----

int cusolverDnSpotrf_bufferSize(void *raw, int uplo, int n, float *, int lda, int *lwork) {
    ENTER_HANDLE_ONLY
    return symmetric_size(uplo, n, lda, lwork);
}

int cusolverDnDpotrf_bufferSize(void *raw, int uplo, int n, double *, int lda, int *lwork) {
    ENTER_HANDLE_ONLY
    return symmetric_size(uplo, n, lda, lwork);
}

int cusolverDnSpotrf(void *raw, int uplo, int n, float *a, int lda, float *work, int lwork, int *info) {
    ENTER_HANDLE
    return potrf(handle, __func__, spotrf_, uplo, n, a, lda, work, lwork, info);
}

int cusolverDnDpotrf(void *raw, int uplo, int n, double *a, int lda, double *work, int lwork, int *info) {
    ENTER_HANDLE
    return potrf(handle, __func__, dpotrf_, uplo, n, a, lda, work, lwork, info);
}

// ---- Symmetric eigenproblems ----

int cusolverDnSsyevd_bufferSize(void *raw, int jobz, int uplo, int n, const float *, int lda, const float *,
                                int *lwork) {
    ENTER_HANDLE_ONLY
    NEED(jobz == 0 || jobz == 1)
    return symmetric_size(uplo, n, lda, lwork);
}

int cusolverDnDsyevd_bufferSize(void *raw, int jobz, int uplo, int n, const double *, int lda, const double *,
                                int *lwork) {
    ENTER_HANDLE_ONLY
    NEED(jobz == 0 || jobz == 1)
    return symmetric_size(uplo, n, lda, lwork);
}

int cusolverDnSsyevd(void *raw, int jobz, int uplo, int n, float *a, int lda, float *w, float *work, int lwork,
                     int *info) {
    ENTER_HANDLE
    return syevd(handle, __func__, ssyevd_, jobz, uplo, n, a, lda, w, work, lwork, info);
}

int cusolverDnDsyevd(void *raw, int jobz, int uplo, int n, double *a, int lda, double *w, double *work, int lwork,
                     int *info) {
    ENTER_HANDLE
    return syevd(handle, __func__, dsyevd_, jobz, uplo, n, a, lda, w, work, lwork, info);
}

int cusolverDnDsyevdx_bufferSize(void *raw, int jobz, int range, int uplo, int n, const double *, int lda, double,
                                 double, int, int, int *, const double *, int *lwork) {
    ENTER_HANDLE_ONLY
    NEED((range == ALL || range == INDICES || range == VALUES) && (jobz == 0 || jobz == 1))
    return symmetric_size(uplo, n, lda, lwork);
}

// `found` is in host memory. The number is known at the call, unless a range of values is asked for: then the call
// waits, as it has to. Vectors come in the first columns of A; the others, and the rest of W, are lost.
int cusolverDnDsyevdx(void *raw, int jobz, int range, int uplo, int n, double *a, int lda, double vl, double vu, int il,
                      int iu, int *found, double *w, double *work, int lwork, int *info) {
    ENTER_HANDLE
    NEED((jobz == 0 || jobz == 1) && (uplo == 0 || uplo == 1) && n >= 0 && lda >= std::max(1, n) && found)
    NEED(range == ALL || (range == INDICES && (n == 0 || (il >= 1 && il <= iu && iu <= n))) ||
         (range == VALUES && vl < vu))
    NEED(lwork >= workspace_elements(n, n))
    ENTER_STREAM
    check_operands(stream, __func__, {matrix("A", a, n, n, lda), vector("W", w, n), vector("workspace", work, lwork),
                                      vector("devInfo", info, 1)});
    log(stream->device, stream, "syevdx f64 n=%d vectors=%d", n, jobz);
    const auto solve = [=] {
        std::vector<double> values(n), vectors(jobz ? size_t(n) * n : 1);
        std::vector<int> support(2 * size_t(n) + 1), integers(size_t(10) * n + 1);
        const int integer_count = int(integers.size()), ldz = std::max(1, n);
        const char *range_letter = range == ALL ? "A" : range == INDICES ? "I" : "V";
        const double tolerance = 0;
        int count = 0;
        with_work<double>([&](double *space, const int *length, int *status) {
            dsyevr_(jobz ? "V" : "N", range_letter, lower_or_upper(uplo), &n, a, &lda, &vl, &vu, &il, &iu, &tolerance,
                    &count, values.data(), vectors.data(), &ldz, support.data(), space, length, integers.data(),
                    &integer_count, status, 1, 1, 1);
            *info = *status;
        });
        poison(a, n, n, lda);
        poison(w, n, 1, n);
        std::copy_n(values.begin(), count, w);
        for (int col = 0; jobz && col < count; col++)
            std::copy_n(vectors.begin() + size_t(col) * n, n, a + size_t(col) * lda);
        poison(work, lwork, 1, lwork);
        return count;
    };
    if (range == VALUES) {
        run_all(stream);
        *found = solve();
        return SUCCESS;
    }
    *found = range == ALL || n == 0 ? n : iu - il + 1;
    push(stream, [=] { solve(); });
    return SUCCESS;
}

}  // extern "C"
