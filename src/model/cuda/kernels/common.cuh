// What all kernels share: the formats of numbers, sums over the threads of a block, moves of four numbers at once and
// the random bits of dropout.
//
// This file stands before all others of the folder, and none of them includes anything: NVRTC compiles them as one
// text without a header of CUDA's at hand, nvcc and the tests with `-include`. The tests compile them for the
// processor, where `tests/cuda/emulation.hpp` comes first and defines EMULATION.
//
// What holds for all kernels:
// - Matrices are row-major with a token in each row, and begin where sixteen bytes do. All sums are in f32 or f64.
// - No sum's order depends on anything but the sizes: there is no atomic operation, and a launch of the same grid
//   gives the same bits.
// - Whatever changes from one training step to the next is read from the device's memory, so that a CUDA graph can be
//   replayed. A row that only pads a shape is marked where rows are named (-1), and becomes zeros.
// - `T` is the format that products take; where a result is both, `y` is f32 and `narrow` is T, and either may be null.

typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;
struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

#define KERNEL extern "C" __global__ void
// The same kernel for each format of T.
#define EACH_FORMAT(define) define(f32) define(bf16) define(f16)
#define NARROW_FORMATS(define) define(bf16) define(f16)

#ifndef EMULATION
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) f32 name[]
// What is pointed at begins at a multiple of its size: a GPU faults where it does not, the emulation says so.
#define ALIGNED(pointer) (pointer)

static __device__ __forceinline__ f32 f32_of_f16(unsigned short bits) {
    f32 x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

static __device__ __forceinline__ unsigned short f16_of_f32(f32 x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
#endif

#define INFINITE __int_as_float(0x7f800000)
// A row or an id that is none.
#define NOWHERE 0xffffffffu

static __device__ __forceinline__ f32 widened(f32 x) { return x; }
static __device__ __forceinline__ f32 widened(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
static __device__ __forceinline__ f32 widened(f16 x) { return f32_of_f16(x.bits); }

// To the nearest, of two to the even one.
template <class T> static __device__ __forceinline__ T narrowed(f32 x);
template <> __device__ __forceinline__ f32 narrowed<f32>(f32 x) { return x; }
template <> __device__ __forceinline__ bf16 narrowed<bf16>(f32 x) {
    const u32 bits = __float_as_uint(x);
    const u32 rounded = bits + 0x7fff + ((bits >> 16) & 1);
    // A NaN whose lowest bits alone are set must not become infinite.
    return bf16{(unsigned short)(x != x ? (bits >> 16) | 0x40 : rounded >> 16)};
}
template <> __device__ __forceinline__ f16 narrowed<f16>(f32 x) { return f16{f16_of_f32(x)}; }

// Four numbers side by side, of which the first stands at a multiple of four.
struct alignas(8) bf16x4 {
    bf16 x, y, z, w;
};
struct alignas(8) f16x4 {
    f16 x, y, z, w;
};
template <class T> struct Four;
template <> struct Four<f32> { typedef float4 type; };
template <> struct Four<bf16> { typedef bf16x4 type; };
template <> struct Four<f16> { typedef f16x4 type; };

template <class T> static __device__ __forceinline__ float4 load4(const T* from) {
    const typename Four<T>::type four = *ALIGNED((const typename Four<T>::type*)from);
    return make_float4(widened(four.x), widened(four.y), widened(four.z), widened(four.w));
}

template <class T> static __device__ __forceinline__ void store4(T* to, float4 four) {
    *ALIGNED((typename Four<T>::type*)to) = typename Four<T>::type{narrowed<T>(four.x), narrowed<T>(four.y),
                                                                   narrowed<T>(four.z), narrowed<T>(four.w)};
}

// How many numbers side by side are worked on at a time, as a type: so that loops over them are known to be short.
template <int N> struct Columns {
    enum { count = N };
};

// f(column, numbers at a time) for the columns of a row that are this thread's: four at a time where rows begin at
// multiples of four numbers, else one by one.
template <class F> static __device__ __forceinline__ void each_column(int width, F f) {
    if (width % 4 == 0) {
        for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) f(column, Columns<4>());
    } else {
        for (int column = threadIdx.x; column < width; column += blockDim.x) f(column, Columns<1>());
    }
}

// One or four numbers in registers.
template <int N> struct Numbers {
    f32 at[N];
};

template <int N, class T> static __device__ __forceinline__ Numbers<N> load(const T* from, Columns<N>) {
    Numbers<N> numbers;
    if constexpr (N == 4) {
        const float4 four = load4(from);
        numbers.at[0] = four.x, numbers.at[1] = four.y, numbers.at[2] = four.z, numbers.at[3] = four.w;
    } else {
        numbers.at[0] = widened(*from);
    }
    return numbers;
}

// The same, or zeros where there is nothing to load.
template <int N, class T> static __device__ __forceinline__ Numbers<N> load_or_zeros(const T* from, i64 at, Columns<N> n) {
    if (from) return load(from + at, n);
    Numbers<N> zeros;
    for (int i = 0; i < N; i++) zeros.at[i] = 0.0f;
    return zeros;
}

// Does nothing where there is nowhere to put them.
template <int N, class T> static __device__ __forceinline__ void store(T* to, i64 at, Numbers<N> numbers) {
    if (!to) return;
    if constexpr (N == 4) {
        store4(to + at, make_float4(numbers.at[0], numbers.at[1], numbers.at[2], numbers.at[3]));
    } else {
        to[at] = narrowed<T>(numbers.at[0]);
    }
}

// f(index, numbers of them as a type) over n numbers of all threads of the grid: fours, then what is left.
template <class F> static __device__ __forceinline__ void each_of(i64 n, F f) {
    const i64 thread = (i64)blockIdx.x * blockDim.x + threadIdx.x, threads = (i64)gridDim.x * blockDim.x;
    for (i64 four = thread; four < n / 4; four += threads) f(four * 4, Columns<4>());
    for (i64 i = n / 4 * 4 + thread; i < n; i += threads) f(i, Columns<1>());
}

// f(token, logits, n) for the tokens of this block's part of a row, in rising order for every thread.
template <class F> static __device__ __forceinline__ void each_logit(const f32* logits, int vocabulary, F f) {
    const int length = (vocabulary + gridDim.x - 1) / gridDim.x;
    const int part = (length + 3) / 4 * 4;
    const int first = min((int)blockIdx.x * part, vocabulary), end = min(first + part, vocabulary);
    if (vocabulary % 4 == 0) {
        for (int token = first + threadIdx.x * 4; token < end; token += blockDim.x * 4) {
            f(token, load(logits + token, Columns<4>()), Columns<4>());
        }
    } else {
        for (int token = first + threadIdx.x; token < end; token += blockDim.x) {
            f(token, load(logits + token, Columns<1>()), Columns<1>());
        }
    }
}

// What distances are taken from: no number has one from negative infinity.
static __device__ __forceinline__ f32 origin(f32 max) { return max == -INFINITE ? 0.0f : max; }

// The same sum in every lane of a warp.
template <class S> static __device__ __forceinline__ S warp_sum(S x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

static __device__ __forceinline__ f32 warp_max(f32 x) {
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}

// The same sum in every thread of a block of whole warps.
template <class S> static __device__ __forceinline__ S block_sum(S x) {
    __shared__ S of_warps[32];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : S(0));
}

// `Key::then`, `Key::bits` and `Mask` of the processor's dropout.
static __device__ __forceinline__ u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static __device__ __forceinline__ u32 mix_short(u32 x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// What numbers are multiplied with where some of them are dropped.
struct Mask {
    // The site's key; null: nothing is dropped.
    const u64* key;
    // Bits below this are dropped, the others scaled up.
    u32 threshold;
    f32 scale;
};

// A mask's row.
struct MaskRow {
    u64 key;
    u32 threshold;
    f32 scale;

    __device__ __forceinline__ f32 factor(u32 column) const {
        if (threshold == 0) return scale;
        const u32 bits = mix_short(mix_short(column ^ (u32)key) ^ (u32)(key >> 32));
        return bits >= threshold ? scale : 0.0f;
    }
};

static __device__ __forceinline__ MaskRow mask_row(Mask mask, u64 row) {
    if (!mask.key) return MaskRow{0, 0, 1.0f};
    return MaskRow{mix(*ALIGNED(mask.key) ^ mix(row)), mask.threshold, mask.scale};
}
