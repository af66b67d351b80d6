// The language device text is written in, for a C++ compiler: what NVRTC has built in, as far as it is needed. No
// library header is included, because NVRTC has none: a text that uses uint32_t or std::min must not compile here.
#pragma once

#include "abi.h"

// nvrtc.cpp looks for these words in the preprocessed text.
#define __global__ __standin_global
#define __shared__ __standin_shared
#define __launch_bounds__(...) __standin_bounds(__VA_ARGS__)

#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

using size_t = decltype(sizeof(0));
using ptrdiff_t = decltype(static_cast<char *>(nullptr) - static_cast<char *>(nullptr));

#define STANDIN_VECTOR(type, base, all2, all4)                                                          \
    struct base##1 { type x; };                                                                         \
    struct __align__(all2) base##2 { type x, y; };                                                      \
    struct base##3 { type x, y, z; };                                                                   \
    struct __align__(all4) base##4 { type x, y, z, w; };                                                \
    static inline base##1 make_##base##1(type x) { return {x}; }                                        \
    static inline base##2 make_##base##2(type x, type y) { return {x, y}; }                             \
    static inline base##3 make_##base##3(type x, type y, type z) { return {x, y, z}; }                  \
    static inline base##4 make_##base##4(type x, type y, type z, type w) { return {x, y, z, w}; }
STANDIN_VECTOR(signed char, char, 2, 4)
STANDIN_VECTOR(unsigned char, uchar, 2, 4)
STANDIN_VECTOR(short, short, 4, 8)
STANDIN_VECTOR(unsigned short, ushort, 4, 8)
STANDIN_VECTOR(int, int, 8, 16)
STANDIN_VECTOR(unsigned, uint, 8, 16)
STANDIN_VECTOR(long long, longlong, 16, 16)
STANDIN_VECTOR(unsigned long long, ulonglong, 16, 16)
STANDIN_VECTOR(float, float, 8, 16)
STANDIN_VECTOR(double, double, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- Threads -----------------------------------------------------------------------------------------------------

constexpr unsigned STANDIN_DYNAMIC = 228 << 10;  // the largest a block may have, and a guard zone
static standin_state standin_self;
static __align__(16) unsigned char standin_dynamic[STANDIN_DYNAMIC];

#define threadIdx standin_self.thread
#define blockIdx standin_self.block
#define blockDim standin_self.block_dim
#define gridDim standin_self.grid_dim
#define warpSize 32

static inline unsigned long long standin_meet(standin_wait_kind kind, unsigned mask, unsigned long long value,
                                              unsigned lane = 0) {
    standin_wait wait = {kind, mask, lane, value, 0};
    standin_self.wait(&wait);
    return wait.result;
}

static inline void __syncthreads() { standin_meet(STANDIN_BLOCK, 0, 0); }
static inline int __syncthreads_count(int held) { return int(standin_meet(STANDIN_BLOCK, 0, held != 0)); }
static inline int __syncthreads_or(int held) { return __syncthreads_count(held) != 0; }
static inline int __syncthreads_and(int held) { return __syncthreads_count(!held) == 0; }
static inline void __syncwarp(unsigned mask = ~0u) { standin_meet(STANDIN_WARP_SYNC, mask, 0); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline unsigned __ballot_sync(unsigned mask, int held) {
    return unsigned(standin_meet(STANDIN_WARP_BALLOT, mask, held != 0));
}
static inline int __any_sync(unsigned mask, int held) { return __ballot_sync(mask, held) != 0; }
static inline int __all_sync(unsigned mask, int held) { return __ballot_sync(mask, !held) == 0; }

// `lane` counts from the start of the segment of `width` lanes; beyond the segment a lane gets its own value.
template <class T>
static inline T standin_shuffle(unsigned mask, T value, int lane, bool inside) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    const unsigned own = standin_self.linear % 32;
    bits = standin_meet(STANDIN_WARP_SHUFFLE, mask, bits, inside ? unsigned(lane) : own);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
#define STANDIN_SHUFFLE(name, argument, source, condition)                                    \
    template <class T>                                                                        \
    static inline T name(unsigned mask, T value, argument, int width = 32) {                  \
        const int own = int(standin_self.linear % 32), first = own & ~(width - 1);            \
        const int source_lane = source;                                                       \
        return standin_shuffle(mask, value, source_lane, condition);                          \
    }
STANDIN_SHUFFLE(__shfl_sync, int lane, first + (lane & (width - 1)), true)
STANDIN_SHUFFLE(__shfl_up_sync, unsigned delta, own - int(delta), source_lane >= first)
STANDIN_SHUFFLE(__shfl_down_sync, unsigned delta, own + int(delta), source_lane < first + width)
STANDIN_SHUFFLE(__shfl_xor_sync, int lanes, own ^ lanes, source_lane < first + width)

// One thread runs at a time, so that these are plain operations. The type of the second argument follows the first.
template <class T>
struct standin_same {
    using type = T;
};
template <class T>
using standin_same_t = typename standin_same<T>::type;
#define STANDIN_ATOMIC(name, result)                                           \
    template <class T>                                                         \
    static inline T name(T *at, standin_same_t<T> value) {                     \
        const T old = *at;                                                     \
        *at = result;                                                          \
        return old;                                                            \
    }
STANDIN_ATOMIC(atomicAdd, old + value)
STANDIN_ATOMIC(atomicSub, old - value)
STANDIN_ATOMIC(atomicMin, value < old ? value : old)
STANDIN_ATOMIC(atomicMax, value > old ? value : old)
STANDIN_ATOMIC(atomicAnd, old &value)
STANDIN_ATOMIC(atomicOr, old | value)
STANDIN_ATOMIC(atomicXor, old ^ value)
STANDIN_ATOMIC(atomicExch, value)
template <class T>
static inline T atomicCAS(T *at, standin_same_t<T> compare, standin_same_t<T> value) {
    const T old = *at;
    if (old == compare) *at = value;
    return old;
}

// ---- Arithmetic --------------------------------------------------------------------------------------------------

// As in C; the overloads for float are C++'s.
extern "C" int printf(const char *, ...);
#define STANDIN_FUNCTION(name)                         \
    extern "C" double name(double) noexcept;           \
    extern "C" float name##f(float) noexcept;          \
    static inline float name(float x) { return __builtin_##name##f(x); }
#define STANDIN_FUNCTION2(name)                                   \
    extern "C" double name(double, double) noexcept;              \
    extern "C" float name##f(float, float) noexcept;              \
    static inline float name(float x, float y) { return __builtin_##name##f(x, y); }
STANDIN_FUNCTION(fabs) STANDIN_FUNCTION(sqrt) STANDIN_FUNCTION(cbrt) STANDIN_FUNCTION(exp) STANDIN_FUNCTION(exp2)
STANDIN_FUNCTION(expm1) STANDIN_FUNCTION(log) STANDIN_FUNCTION(log2) STANDIN_FUNCTION(log10) STANDIN_FUNCTION(log1p)
STANDIN_FUNCTION(sin) STANDIN_FUNCTION(cos) STANDIN_FUNCTION(tan) STANDIN_FUNCTION(tanh) STANDIN_FUNCTION(erf)
STANDIN_FUNCTION(floor) STANDIN_FUNCTION(ceil) STANDIN_FUNCTION(trunc) STANDIN_FUNCTION(round) STANDIN_FUNCTION(rint)
STANDIN_FUNCTION(nearbyint)
STANDIN_FUNCTION2(fmin) STANDIN_FUNCTION2(fmax) STANDIN_FUNCTION2(fmod) STANDIN_FUNCTION2(pow) STANDIN_FUNCTION2(atan2)
STANDIN_FUNCTION2(copysign) STANDIN_FUNCTION2(hypot)
extern "C" double ldexp(double, int) noexcept;
extern "C" float ldexpf(float, int) noexcept;
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
static inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float ldexp(float x, int power) { return __builtin_ldexpf(x, power); }
static inline float rsqrtf(float x) { return float(1.0 / __builtin_sqrt(double(x))); }
static inline float rsqrt(float x) { return rsqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
#define STANDIN_TEST(name)                                               \
    static inline bool name(float x) { return __builtin_##name(x); }     \
    static inline bool name(double x) { return __builtin_##name(x); }
STANDIN_TEST(isnan) STANDIN_TEST(isinf) STANDIN_TEST(isfinite) STANDIN_TEST(signbit)

#define STANDIN_MIN_MAX(result, one, two)                              \
    static inline result min(one left, two right) {                    \
        const result a = left, b = right;                              \
        return a < b ? a : b;                                          \
    }                                                                  \
    static inline result max(one left, two right) {                    \
        const result a = left, b = right;                              \
        return a > b ? a : b;                                          \
    }
STANDIN_MIN_MAX(int, int, int)
STANDIN_MIN_MAX(unsigned, unsigned, unsigned)
STANDIN_MIN_MAX(unsigned, int, unsigned)
STANDIN_MIN_MAX(unsigned, unsigned, int)
STANDIN_MIN_MAX(long, long, long)
STANDIN_MIN_MAX(unsigned long, unsigned long, unsigned long)
STANDIN_MIN_MAX(long long, long long, long long)
STANDIN_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
static inline float min(float a, float b) { return __builtin_fminf(a, b); }
static inline float max(float a, float b) { return __builtin_fmaxf(a, b); }
static inline double min(double a, double b) { return __builtin_fmin(a, b); }
static inline double max(double a, double b) { return __builtin_fmax(a, b); }
extern "C" int abs(int) noexcept;
static inline long long abs(long long x) { return x < 0 ? -x : x; }
static inline float abs(float x) { return __builtin_fabsf(x); }
static inline double abs(double x) { return __builtin_fabs(x); }

#define STANDIN_ROUNDED(letter, type, root)                                               \
    static inline type __##letter##add_rn(type a, type b) { return a + b; }               \
    static inline type __##letter##sub_rn(type a, type b) { return a - b; }               \
    static inline type __##letter##mul_rn(type a, type b) { return a * b; }               \
    static inline type __##letter##div_rn(type a, type b) { return a / b; }               \
    static inline type __##letter##rcp_rn(type a) { return type(1) / a; }                 \
    static inline type __##letter##sqrt_rn(type a) { return root(a); }
STANDIN_ROUNDED(f, float, __builtin_sqrtf)
STANDIN_ROUNDED(d, double, __builtin_sqrt)
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline float __frsqrt_rn(float a) { return rsqrtf(a); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __expf(float x) { return __builtin_expf(x); }
static inline float __logf(float x) { return __builtin_logf(x); }
static inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

#define STANDIN_BITS(name, from, to)               \
    static inline to name(from x) {                \
        to bits;                                   \
        __builtin_memcpy(&bits, &x, sizeof(to));   \
        return bits;                               \
    }
STANDIN_BITS(__float_as_uint, float, unsigned)
STANDIN_BITS(__float_as_int, float, int)
STANDIN_BITS(__uint_as_float, unsigned, float)
STANDIN_BITS(__int_as_float, int, float)
STANDIN_BITS(__double_as_longlong, double, long long)
STANDIN_BITS(__longlong_as_double, long long, double)

// Conversions to integers saturate. NaN becomes 0, or only the top bit where either side has 64 bits (PTX ISA, cvt).
template <class Int>
static inline Int standin_to_integer(double x, Int lowest, Int highest, Int nan) {
    if (x != x) return nan;
    if (x <= double(lowest)) return lowest;
    return x >= double(highest) ? highest : Int(x);
}
constexpr long long STANDIN_LOWEST = -0x7fffffffffffffff - 1;
#define STANDIN_CONVERT(suffix, rounded)                                                                            \
    static inline int __float2int_##suffix(float x) {                                                              \
        return standin_to_integer<int>(rounded(x), -0x7fffffff - 1, 0x7fffffff, 0);                                \
    }                                                                                                              \
    static inline unsigned __float2uint_##suffix(float x) {                                                        \
        return standin_to_integer<unsigned>(rounded(x), 0, 0xffffffff, 0);                                         \
    }                                                                                                              \
    static inline int __double2int_##suffix(double x) {                                                            \
        return standin_to_integer<int>(rounded(x), -0x7fffffff - 1, 0x7fffffff, -0x7fffffff - 1);                  \
    }                                                                                                              \
    static inline long long __double2ll_##suffix(double x) {                                                       \
        return standin_to_integer<long long>(rounded(x), STANDIN_LOWEST, 0x7fffffffffffffff, STANDIN_LOWEST);      \
    }
STANDIN_CONVERT(rn, __builtin_nearbyint)
STANDIN_CONVERT(rz, __builtin_trunc)
STANDIN_CONVERT(rd, __builtin_floor)
STANDIN_CONVERT(ru, __builtin_ceil)
static inline float __double2float_rn(double x) { return float(x); }
static inline float __int2float_rn(int x) { return float(x); }
static inline float __uint2float_rn(unsigned x) { return float(x); }
static inline float __ll2float_rn(long long x) { return float(x); }
static inline float __ull2float_rn(unsigned long long x) { return float(x); }
static inline double __ll2double_rn(long long x) { return double(x); }
static inline double __ull2double_rn(unsigned long long x) { return double(x); }

static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __ffsll(long long x) { return __builtin_ffsll(x); }
static inline int __mulhi(int a, int b) { return int(((long long)a * b) >> 32); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(((unsigned long long)a * b) >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
static inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
template <class T>
static inline T __ldg(const T *at) {
    return *at;
}

// ---- What nvrtc.cpp appends uses ---------------------------------------------------------------------------------

// Hands out the next thread of the block.
static inline bool standin_next() {
    standin_state &self = standin_self;
    if (self.started == self.count) return false;
    const unsigned linear = self.reversed ? self.count - 1 - self.started : self.started;
    self.started++;
    self.linear = linear;
    self.thread = {linear % self.block_dim.x, linear / self.block_dim.x % self.block_dim.y,
                   linear / (self.block_dim.x * self.block_dim.y)};
    return true;
}

template <class T>
struct standin_value {
    using type = T;
};
template <class T>
struct standin_value<const T> {
    using type = T;
};
template <unsigned...>
struct standin_numbers {};

template <auto kernel>
struct standin_entry;
template <class... P, void (*kernel)(P...)>
struct standin_entry<kernel> {
    static constexpr unsigned sizes[] = {sizeof(P)..., 0};
    template <unsigned... I>
    static void run_with(void **arguments, standin_numbers<I...>) {
        while (standin_next()) kernel(*static_cast<typename standin_value<P>::type *>(arguments[I])...);
    }
    static void run(void **arguments) { run_with(arguments, standin_numbers<__integer_pack(sizeof...(P))...>()); }
    static constexpr standin_kernel describe(const char *name, unsigned bounds) {
        return {name, run, sizes, sizeof...(P), bounds};
    }
};

// What `extern __shared__ T name[]` becomes a pointer to.
struct standin_dynamic_pointer {
    template <class T>
    operator T *() const {
        return reinterpret_cast<T *>(standin_dynamic);
    }
};

extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __start_standin_shared_zone[];
extern "C" __attribute__((weak, visibility("hidden"))) unsigned char __stop_standin_shared_zone[];

// The compiler checks alignment, the bounds of arrays, shifts and divisors (-fsanitize in nvrtc.cpp), and calls these
// where they do not hold. What they are given first starts with the place.
struct standin_place {
    const char *file;
    unsigned line, column;
};
#define STANDIN_HANDLER(name, what, value, ...)                                                   \
    extern "C" __attribute__((visibility("hidden"), used)) void __ubsan_handle_##name##_abort(    \
        standin_place *place, __VA_ARGS__) {                                                      \
        standin_self.fail(place->file, place->line, what, value);                                 \
    }
STANDIN_HANDLER(type_mismatch_v1, "misaligned address", at, unsigned long long at)
STANDIN_HANDLER(out_of_bounds, "index out of bounds", index, unsigned long long index)
STANDIN_HANDLER(shift_out_of_bounds, "shift by too much", by, unsigned long long, unsigned long long by)
STANDIN_HANDLER(divrem_overflow, "division by zero", by, unsigned long long, unsigned long long by)
