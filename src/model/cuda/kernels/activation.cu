// The activations between an MLP's products, forward and backward: GELU in its tanh form, and SwiGLU.
//
// GELU: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), which is x · logistic(2 √(2/π) · (x + 0.044715 x³)).
// SwiGLU: silu(gate) · up, of rows gate | up, where silu(x) is x · logistic(x).
//
// Launch: a block a row, 32 to 1024 threads.

// 2 √(2/π), and its product with GELU's cubic coefficient.
#define GELU_LINEAR 1.5957691216057308f
#define GELU_CUBIC 0.07135481282717024f

// 1 / (1 + e⁻ˣ) and its derivative, both exact on both sides of 0.
static __device__ __forceinline__ void logistic(f32 x, f32& value, f32& slope) {
    const f32 e = expf(-fabsf(x));
    const f32 larger = 1.0f / (1.0f + e), smaller = e * larger;
    value = x < 0.0f ? smaller : larger;
    slope = larger * smaller;
}

static __device__ __forceinline__ f32 gelu(f32 x, f32& slope) {
    const f32 square = x * x;
    f32 value, change;
    logistic(x * (square * GELU_CUBIC + GELU_LINEAR), value, change);
    // Far out, where nothing changes any more, the cube may be infinite.
    slope = change == 0.0f ? value : x * change * (square * (3.0f * GELU_CUBIC) + GELU_LINEAR) + value;
    return x * value;
}

static __device__ __forceinline__ f32 silu(f32 x, f32& slope) {
    f32 value, change;
    logistic(x, value, change);
    slope = x * change + value;
    return x * value;
}

// u += bias, if there is one; y and narrow [rows, inner] = gelu(u).
template <class T>
static __device__ void gelu_forward(f32* u, const f32* bias, f32* y, T* narrow, int rows, int inner) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * inner;
    each_column(inner, [&](int column, auto n) {
        auto x = load(u + row + column, n);
        const auto b = load_or_zeros(bias, column, n);
        for (int i = 0; i < n.count; i++) x.at[i] += b.at[i];
        store(bias ? u : nullptr, row + column, x);
        f32 slope;
        for (int i = 0; i < n.count; i++) x.at[i] = gelu(x.at[i], slope);
        store(y, row + column, x);
        store(narrow, row + column, x);
    });
}

#define GELU_FORWARD(T)                                                                                                \
    KERNEL gelu_forward_##T(f32* u, const f32* bias, f32* y, T* narrow, int rows, int inner) {                         \
        gelu_forward(u, bias, y, narrow, rows, inner);                                                                 \
    }
EACH_FORMAT(GELU_FORWARD)

// du and narrow [rows, inner] = the gradient of u, from that of gelu(u); du may be u.
template <class T>
static __device__ void gelu_backward(const f32* u, const f32* dy, f32* du, T* narrow, int rows, int inner) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * inner;
    each_column(inner, [&](int column, auto n) {
        auto x = load(u + row + column, n);
        const auto d = load(dy + row + column, n);
        for (int i = 0; i < n.count; i++) {
            f32 slope;
            gelu(x.at[i], slope);
            x.at[i] = d.at[i] * slope;
        }
        store(du, row + column, x);
        store(narrow, row + column, x);
    });
}

#define GELU_BACKWARD(T)                                                                                               \
    KERNEL gelu_backward_##T(const f32* u, const f32* dy, f32* du, T* narrow, int rows, int inner) {                   \
        gelu_backward(u, dy, du, narrow, rows, inner);                                                                 \
    }
EACH_FORMAT(GELU_BACKWARD)

// u [rows, 2 inner] += bias, if there is one; y and narrow [rows, inner] = silu(gate) · up.
template <class T>
static __device__ void swiglu_forward(f32* u, const f32* bias, f32* y, T* narrow, int rows, int inner) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * inner;
    each_column(inner, [&](int column, auto n) {
        auto gate = load(u + 2 * row + column, n), up = load(u + 2 * row + inner + column, n);
        const auto b = load_or_zeros(bias, column, n), c = load_or_zeros(bias, inner + column, n);
        for (int i = 0; i < n.count; i++) gate.at[i] += b.at[i], up.at[i] += c.at[i];
        store(bias ? u : nullptr, 2 * row + column, gate);
        store(bias ? u : nullptr, 2 * row + inner + column, up);
        f32 slope;
        for (int i = 0; i < n.count; i++) up.at[i] *= silu(gate.at[i], slope);
        store(y, row + column, up);
        store(narrow, row + column, up);
    });
}

#define SWIGLU_FORWARD(T)                                                                                              \
    KERNEL swiglu_forward_##T(f32* u, const f32* bias, f32* y, T* narrow, int rows, int inner) {                       \
        swiglu_forward(u, bias, y, narrow, rows, inner);                                                               \
    }
EACH_FORMAT(SWIGLU_FORWARD)

// du and narrow [rows, 2 inner] = the gradient of u, from that of silu(gate) · up; du may be u.
template <class T>
static __device__ void swiglu_backward(const f32* u, const f32* dy, f32* du, T* narrow, int rows, int inner) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * inner;
    each_column(inner, [&](int column, auto n) {
        auto gate = load(u + 2 * row + column, n), up = load(u + 2 * row + inner + column, n);
        const auto d = load(dy + row + column, n);
        for (int i = 0; i < n.count; i++) {
            f32 slope;
            const f32 value = silu(gate.at[i], slope);
            gate.at[i] = d.at[i] * up.at[i] * slope;
            up.at[i] = d.at[i] * value;
        }
        store(du, 2 * row + column, gate);
        store(du, 2 * row + inner + column, up);
        store(narrow, 2 * row + column, gate);
        store(narrow, 2 * row + inner + column, up);
    });
}

#define SWIGLU_BACKWARD(T)                                                                                             \
    KERNEL swiglu_backward_##T(const f32* u, const f32* dy, f32* du, T* narrow, int rows, int inner) {                 \
        swiglu_backward(u, dy, du, narrow, rows, inner);                                                               \
    }
EACH_FORMAT(SWIGLU_BACKWARD)
