// A matrix and stacks of vectors on the device. Follows common.cu.

// Numbers of element types, as in Rust.
#define F64 0
#define F32 1
#define F16 2
#define BF16 3

static __device__ __forceinline__ double load(const void *data, int type, u64 at) {
    switch (type) {
    case F64: return ((const double *)data)[at];
    case F32: return (double)((const float *)data)[at];
    case F16: return (double)of_f16(((const u16 *)data)[at]);
    default: return (double)of_bf16(((const u16 *)data)[at]);
    }
}

// out = after - before and the square of each row's length; one block for each row. A difference of numbers of up to 32
// bits is rounded once either way.
extern "C" __global__ void __launch_bounds__(THREADS)
    subtract(const void *after, int after_type, const void *before, int before_type, float *out, double *squares, u64 cols) {
    u64 row = blockIdx.x;
    double sum = 0;
    for (u64 j = threadIdx.x; j < cols; j += THREADS) {
        u64 at = row * cols + j;
        float d;
        if (after_type == BF16 && before_type == BF16) {
            d = of_bf16(((const u16 *)after)[at]) - of_bf16(((const u16 *)before)[at]);
        } else {
            d = (float)(load(after, after_type, at) - load(before, before_type, at));
        }
        out[at] = d;
        sum += (double)d * (double)d;
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) squares[row] = sum;
}

// The square of each row's length; one block for each row.
extern "C" __global__ void __launch_bounds__(THREADS) squares_of_rows(const float *d, double *squares, u64 cols) {
    u64 row = blockIdx.x;
    double sum = 0;
    for (u64 j = threadIdx.x; j < cols; j += THREADS) {
        double v = (double)d[row * cols + j];
        sum += v * v;
    }
    sum = sum_of_block(sum);
    if (threadIdx.x == 0) squares[row] = sum;
}

// Some columns of rows that are `stride` apart, one row behind the other.
extern "C" __global__ void __launch_bounds__(THREADS)
    widen(const float *from, u64 stride, double *to, u64 cols, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] = (double)from[i / cols * stride + i % cols];
}

// The same in f32, times a factor.
extern "C" __global__ void __launch_bounds__(THREADS)
    scale(const float *from, u64 stride, float factor, float *to, u64 cols, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] = from[i / cols * stride + i % cols] * factor;
}

extern "C" __global__ void __launch_bounds__(THREADS) add(float *to, const float *other, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] += other[i];
}

// Each row times its factor.
extern "C" __global__ void __launch_bounds__(THREADS)
    scale_rows(const float *from, const float *factors, float *to, u64 cols, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) to[i] = from[i] * factors[i / cols];
}

// Each row by its length, but for rows of zeros.
extern "C" __global__ void __launch_bounds__(THREADS)
    divide_rows(float *rows, const double *lengths, u64 cols, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) {
        double length = lengths[i / cols];
        if (length > 0) rows[i] = (float)((double)rows[i] / length);
    }
}

// SplitMix64 from `state` on; four sums of 16 bits make a number, roughly normal.
extern "C" __global__ void __launch_bounds__(THREADS) normals(float *out, u64 state, u64 count) {
    u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    u64 z = state + (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z = z ^ (z >> 31);
    u32 sum = (u32)(z & 0xffff) + (u32)(z >> 16 & 0xffff) + (u32)(z >> 32 & 0xffff) + (u32)(z >> 48);
    out[i] = __fmul_rn(__fsub_rn(__fdiv_rn((float)sum, 65535.0f), 2.0f), 1.7320508f);
}
