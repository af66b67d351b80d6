// What both texts begin with. Compiled at run time with --fmad=false: a product and a sum are one operation only where fma
// stands.

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

#define THREADS 256

static __device__ __forceinline__ float of_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

// The exponent moves to its place with a bias that is 112 too small; the product makes up for it, exactly.
static __device__ __forceinline__ float of_f16(u16 bits) {
    float size = __uint_as_float((u32)(bits & 0x7fff) << 13) * __uint_as_float((254u - 15u) << 23);
    if ((bits & 0x7c00) == 0x7c00) size = __uint_as_float(0xffu << 23 | (u32)(bits & 0x3ff) << 13);
    return __uint_as_float(__float_as_uint(size) | (u32)(bits & 0x8000) << 16);
}

// The sum over a block's threads, in a fixed order; for the first thread.
static __device__ __forceinline__ double sum_of_block(double own) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = own;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    return sums[0];
}
