// CUDA's words for a C++ compiler: a block's threads take turns on one thread of the processor, each until it waits for
// others. So kernels run, slowly, where there is no GPU.
//
// What a GPU need not do, so that mistakes show: blocks, warps and lanes run in rising or in falling order, which must not
// matter, each warp as far as it gets before the next one begins; dynamic shared memory is NaN before a block begins; a
// shuffle that not all lanes take part in ends the program, and so does writing beyond the shared memory that was asked
// for.

#define EMULATION

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define DYNAMIC_SHARED(name) float* const name = emulation::shared()
#define ALIGNED(pointer) emulation::aligned(pointer)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

static dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace emulation {

enum Wait { Runs, AtBlock, AtWarp, Done };

struct Thread {
    ucontext_t context;
    jmp_buf place;
    bool begun;
    dim3 index;
    Wait wait;
    int shuffles;
    std::vector<char> stack;
};

static const size_t STACK = 64 * 1024, GUARD = 64;
static std::vector<Thread> threads;
static Thread* current;
static jmp_buf scheduler_place;
static std::function<void()> kernel;
static std::vector<char> shared_memory;
static unsigned long long shuffled[2][1024];

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulation: %s\n", what);
    exit(3);
}

template <class T> static T* aligned(T* pointer) {
    if ((size_t)pointer % sizeof(T) != 0) fail("something is read or written at no multiple of its size");
    return pointer;
}

static float* shared() {
    const size_t at = (size_t)shared_memory.data();
    return (float*)((at + GUARD + 255) / 256 * 256);
}

// A context is entered once and then left and entered by jumps, which unlike swapcontext ask nothing of the system.
static void wait(Wait for_whom) {
    current->wait = for_whom;
    if (_setjmp(current->place) == 0) _longjmp(scheduler_place, 1);
}

static void go_on() {
    if (_setjmp(scheduler_place) != 0) return;
    if (current->begun) _longjmp(current->place, 1);
    current->begun = true;
    setcontext(&current->context);
}

static void thread_main() {
    kernel();
    current->wait = Done;
    _longjmp(scheduler_place, 1);
}

// Runs a warp as far ahead of the others as it gets.
static void run_warp(size_t first, size_t end, bool falling) {
    const auto is_at = [&](Wait wait) {
        return std::all_of(&threads[first], &threads[first] + (end - first), [=](Thread& t) { return t.wait == wait; });
    };
    do {
        for (size_t i = first; i < end; i++) {
            current = &threads[falling ? end - 1 - (i - first) : i];
            if (current->wait == AtWarp) current->wait = Runs;
            if (current->wait != Runs) continue;
            threadIdx = current->index;
            go_on();
        }
    } while (is_at(AtWarp));
}

// Lets a block go on that has arrived where it waits, but for threads that are done: false if all of it is.
static bool release() {
    bool released = false;
    for (Thread& t : threads) {
        if (t.wait == AtWarp) fail("some lanes wait for others that never come");
        if (t.wait == AtBlock) t.wait = Runs, released = true;
    }
    return released;
}

static void run_block(size_t shared_bytes, bool falling) {
    memset(shared_memory.data(), 0xff, shared_memory.size());
    for (size_t i = 0; i < threads.size(); i++) {
        Thread& t = threads[i];
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data();
        t.context.uc_stack.ss_size = t.stack.size();
        t.context.uc_link = nullptr;
        t.index = dim3{unsigned(i % blockDim.x), unsigned(i / blockDim.x % blockDim.y), unsigned(i / blockDim.x / blockDim.y)};
        t.wait = Runs;
        t.begun = false;
        t.shuffles = 0;
        makecontext(&t.context, thread_main, 0);
    }
    do {
        const size_t warps = (threads.size() + 31) / 32;
        for (size_t i = 0; i < warps; i++) {
            const size_t warp = falling ? warps - 1 - i : i;
            run_warp(warp * 32, std::min(warp * 32 + 32, threads.size()), falling);
        }
    } while (release());
    const char* const end = (char*)shared() + shared_bytes;
    if (std::any_of(end, end + GUARD, [](char c) { return c != (char)0xff; })) fail("wrote beyond shared memory");
}

static void launch(dim3 grid, dim3 block, size_t shared_bytes, bool falling, std::function<void()> body) {
    gridDim = grid;
    blockDim = block;
    kernel = body;
    threads.resize(block.x * block.y * block.z);
    if (threads.size() > 1024) fail("a block of more than 1024 threads");
    for (Thread& t : threads) t.stack.resize(STACK);
    shared_memory.resize(shared_bytes + 2 * GUARD + 256);
    const size_t blocks = (size_t)grid.x * grid.y * grid.z;
    for (size_t i = 0; i < blocks; i++) {
        const size_t at = falling ? blocks - 1 - i : i;
        blockIdx = dim3{unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        run_block(shared_bytes, falling);
    }
}

template <class T> static T shuffle(T x, int distance) {
    static_assert(sizeof(T) <= 8, "a shuffle moves eight bytes at most");
    const size_t self = current - threads.data();
    auto& slots = shuffled[current->shuffles++ % 2];
    memcpy(&slots[self], &x, sizeof(T));
    wait(AtWarp);
    memcpy(&x, &slots[self ^ distance], sizeof(T));
    return x;
}

} // namespace emulation

static void __syncthreads() { emulation::wait(emulation::AtBlock); }
static void __syncwarp() { emulation::wait(emulation::AtWarp); }
template <class T> static T __shfl_xor_sync(unsigned, T x, int distance) { return emulation::shuffle(x, distance); }

template <class To, class From> static To same_bits(From x) {
    To y;
    memcpy(&y, &x, sizeof(To));
    return y;
}
static float __int_as_float(int x) { return same_bits<float>(x); }
static float __uint_as_float(unsigned x) { return same_bits<float>(x); }
static unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static float __fsqrt_rn(float x) { return sqrtf(x); }
static float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
static int min(int a, int b) { return a < b ? a : b; }

// By arithmetic: not every compiler has a type for these.
static float f32_of_f16(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf(fraction, -24);
    return sign * ldexpf(1024 + fraction, exponent - 25);
}

static unsigned short f16_of_f32(float x) {
    const unsigned short sign = same_bits<unsigned>(x) >> 31 << 15;
    if (x != x) return 0x7fff;
    x = fabsf(x);
    if (x >= 65520.0f) return sign | 0x7c00;
    if (x < ldexpf(1, -14)) return sign | (unsigned short)nearbyintf(ldexpf(x, 24));
    int exponent;
    const float fraction = nearbyintf(ldexpf(frexpf(x, &exponent), 11));
    // A fraction that was rounded up to the next power of two carries over into the exponent.
    return sign | (unsigned short)((exponent + 13) * 1024 + (int)fraction);
}
