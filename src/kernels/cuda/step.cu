// The merge step and its kin on the device, in the order of operations that src/kernels/fused/mod.rs defines: the same
// bytes as on the host. Follows common.cu.

struct Term {
    const float *a;
    const float *b;
    u64 a_stride;
    u64 b_stride;
    u32 rank;
    float scale;
};

// What a block of threads did.
struct Moved {
    u64 still;
    u64 nonfinite;
    double wanted;
    double along;
};

// Rows that a thread works on at a time: a value of a is loaded once for all of them.
#define ROWS 8

static __device__ __forceinline__ u16 to_bf16(float v) {
    u32 bits = __float_as_uint(v);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Small values: adding half puts the last bit of a subnormal where f32 rounds.
static __device__ __forceinline__ u16 to_f16(float v) {
    u32 sign = __float_as_uint(v) >> 16 & 0x8000;
    u32 size = __float_as_uint(v) & 0x7fffffff;
    u32 small = __float_as_uint(__fadd_rn(__uint_as_float(size), 0.5f)) - 0x3f000000u;
    u32 usual = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    u32 finite = size < 113u << 23 ? small : usual;
    return (u16)((size >= 143u << 23 ? 0x7c00 : finite) | sign);
}

static __device__ __forceinline__ bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

static __device__ __forceinline__ bool is_finite(double v) {
    return ((u64)__double_as_longlong(v) & 0x7ff0000000000000ull) != 0x7ff0000000000000ull;
}

static __device__ __forceinline__ float chain(float b, float a, float d) { return fmaf(b, a, d); }
static __device__ __forceinline__ double chain(float b, float a, double d) { return fma((double)b, (double)a, d); }
static __device__ __forceinline__ float scaled(float s, float d, float v) { return fmaf(s, d, v); }
static __device__ __forceinline__ double scaled(float s, double d, double v) { return fma((double)s, d, v); }

// Element types: what is stored, what is computed in, and the one NaN that comes out.
struct OfF64 {
    typedef u64 Bits;
    typedef double Value;
    static __device__ __forceinline__ double widen(u64 bits) { return __longlong_as_double((long long)bits); }
    static __device__ __forceinline__ u64 narrow(double v) {
        return v != v ? 0x7ff8000000000000ull : (u64)__double_as_longlong(v);
    }
};
struct OfF32 {
    typedef u32 Bits;
    typedef float Value;
    static __device__ __forceinline__ float widen(u32 bits) { return __uint_as_float(bits); }
    static __device__ __forceinline__ u32 narrow(float v) { return v != v ? 0x7fc00000u : __float_as_uint(v); }
};
struct OfF16 {
    typedef u16 Bits;
    typedef float Value;
    static __device__ __forceinline__ float widen(u16 bits) { return of_f16(bits); }
    static __device__ __forceinline__ u16 narrow(float v) { return v != v ? (u16)0x7e00 : to_f16(v); }
};
struct OfBf16 {
    typedef u16 Bits;
    typedef float Value;
    static __device__ __forceinline__ float widen(u16 bits) { return of_bf16(bits); }
    static __device__ __forceinline__ u16 narrow(float v) { return v != v ? (u16)0x7fc0 : to_bf16(v); }
};

// Whether a row of a call belongs to the sample that the sums are taken over, as in src/kernels/fused/sample.rs.
static __device__ __forceinline__ bool is_sampled(u64 row, u64 rows) { return rows < 64 || row % 256 < 16; }

// The products of up to ROWS rows and one column, from zero; rows behind the last repeat it.
template <typename V>
static __device__ __forceinline__ void products(const Term &t, const u64 *rows, u64 j, V *d) {
    const float *b[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        d[r] = 0;
        b[r] = t.b + rows[r] * t.b_stride;
    }
    for (u32 k = 0; k < t.rank; k++) {
        float a = t.a[k * t.a_stride + j];
#pragma unroll
        for (int r = 0; r < ROWS; r++) d[r] = chain(b[r][k], a, d[r]);
    }
}

// Rows `first` to `first + here` of a call of `rows` rows lie in w and out. Blocks: x over columns, y over rows.
template <typename E>
static __device__ __forceinline__ void step(const void *w, void *out, u64 here, u64 cols, u64 first, u64 rows,
                                            const Term *terms, u32 count, Moved *moved) {
    typedef typename E::Bits Bits;
    typedef typename E::Value V;
    u64 j = (u64)blockIdx.x * THREADS + threadIdx.x;
    u64 top = (u64)blockIdx.y * ROWS;
    double still = 0, nonfinite = 0, wanted_sum = 0, along = 0;
    if (j < cols) {
        u64 at[ROWS];
        V before[ROWS], v[ROWS], wanted[ROWS], d[ROWS];
        Bits old[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            at[r] = top + r < here ? top + r : here - 1;
            old[r] = ((const Bits *)w)[at[r] * cols + j];
            before[r] = E::widen(old[r]);
            v[r] = before[r];
            wanted[r] = 0;
        }
        for (u32 n = 0; n < count; n++) {
            products<V>(terms[n], at, j, d);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                v[r] = scaled(terms[n].scale, d[r], v[r]);
                wanted[r] = scaled(terms[n].scale, d[r], wanted[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (top + r >= here) continue;
            Bits now = E::narrow(v[r]);
            V after = E::widen(now);
            ((Bits *)out)[at[r] * cols + j] = now;
            still += now == old[r];
            bool finite = is_finite(after);
            nonfinite += !finite;
            if (finite && is_sampled(first + top + r, rows) && is_finite(wanted[r])) {
                wanted_sum += (double)wanted[r] * (double)wanted[r];
                along += (double)wanted[r] * (double)(after - before[r]);
            }
        }
    }
    still = sum_of_block(still);
    __syncthreads();
    nonfinite = sum_of_block(nonfinite);
    __syncthreads();
    wanted_sum = sum_of_block(wanted_sum);
    __syncthreads();
    along = sum_of_block(along);
    if (threadIdx.x == 0) {
        Moved *own = moved + (u64)blockIdx.y * gridDim.x + blockIdx.x;
        own->still = (u64)still;
        own->nonfinite = (u64)nonfinite;
        own->wanted = wanted_sum;
        own->along = along;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    step_f64(const void *w, void *out, u64 here, u64 cols, u64 first, u64 rows, const Term *terms, u32 count, Moved *moved) {
    step<OfF64>(w, out, here, cols, first, rows, terms, count, moved);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    step_f32(const void *w, void *out, u64 here, u64 cols, u64 first, u64 rows, const Term *terms, u32 count, Moved *moved) {
    step<OfF32>(w, out, here, cols, first, rows, terms, count, moved);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    step_f16(const void *w, void *out, u64 here, u64 cols, u64 first, u64 rows, const Term *terms, u32 count, Moved *moved) {
    step<OfF16>(w, out, here, cols, first, rows, terms, count, moved);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    step_bf16(const void *w, void *out, u64 here, u64 cols, u64 first, u64 rows, const Term *terms, u32 count, Moved *moved) {
    step<OfBf16>(w, out, here, cols, first, rows, terms, count, moved);
}

// v += scale · (d₀ · d₁), the elementwise product of two products.
extern "C" __global__ void __launch_bounds__(THREADS)
    hadamard(float *values, u64 rows, u64 cols, const Term *terms, float scale) {
    u64 j = (u64)blockIdx.x * THREADS + threadIdx.x;
    u64 top = (u64)blockIdx.y * ROWS;
    if (j >= cols) return;
    u64 at[ROWS];
    float one[ROWS], other[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) at[r] = top + r < rows ? top + r : rows - 1;
    products<float>(terms[0], at, j, one);
    products<float>(terms[1], at, j, other);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (top + r >= rows) continue;
        // As on the host, where each product is added to zero, which makes the one NaN and no negative zero.
        float x = fmaf(terms[0].scale, one[r], 0.0f), y = fmaf(terms[1].scale, other[r], 0.0f);
        float *v = values + at[r] * cols + j;
        *v = __fadd_rn(*v, __fmul_rn(scale, __fmul_rn(x, y)));
    }
}

// v += (scale · factor of the block) · block, for blocks of `width` columns side by side.
extern "C" __global__ void __launch_bounds__(THREADS)
    blocks(float *values, u64 count, u64 cols, const float *factors, float scale, const float *block, u64 width) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    u64 row = i / cols, col = i % cols;
    float factor = __fmul_rn(scale, factors[col / width]);
    values[i] = __fadd_rn(values[i], __fmul_rn(block[row * width + col % width], factor));
}

// Lanes of a sum of squares, as in src/linalg/norm.rs.
#define LANES 8

// The square of each row's length, in the order in which the host adds: a thread for each lane, then the first of them.
extern "C" __global__ void __launch_bounds__(THREADS) squares_in_lanes(const float *values, double *squares, u64 rows, u64 cols) {
    __shared__ double lanes[THREADS];
    u64 row = ((u64)blockIdx.x * THREADS + threadIdx.x) / LANES;
    u32 lane = threadIdx.x % LANES;
    u64 whole = cols / LANES * LANES;
    double sum = 0;
    if (row < rows) {
        for (u64 j = lane; j < whole; j += LANES) {
            double v = (double)values[row * cols + j];
            sum += v * v;
        }
    }
    lanes[threadIdx.x] = sum;
    __syncthreads();
    if (row < rows && lane == 0) {
        double all = 0, rest = 0;
        for (int l = 0; l < LANES; l++) all += lanes[threadIdx.x + l];
        for (u64 j = whole; j < cols; j++) {
            double v = (double)values[row * cols + j];
            rest += v * v;
        }
        squares[row] = all + rest;
    }
}

// Each row at the length of its magnitude.
extern "C" __global__ void __launch_bounds__(THREADS)
    stretch(float *values, const double *squares, const float *magnitudes, u64 cols, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    double norm = sqrt(squares[i / cols]);
    values[i] = __fmul_rn(values[i], (float)((double)magnitudes[i / cols] / norm));
}
