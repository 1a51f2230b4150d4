// Layer norm and RMS norm of rows, forward and backward.
//
// Layer norm: (x - mean) / sqrt(variance + eps) · weight + bias. RMS norm has no bias and takes no mean away: its mean
// is 0. A row's statistics, [rows, 2]: the mean, and what the distance from it is multiplied with.
//
// Launch: a block a row, 32 to 1024 threads, which are whole warps. Rows are read again from the first cache rather
// than held in registers, so that any width will do.

// s = x + add + add_bias, of which the last two may be left out; y and narrow = the norm of s. `sum` takes s, and may
// be x or add: every number is read for the last time by the thread that then writes it.
template <class T>
static __device__ void norm_forward(const f32* x, const f32* add, const f32* add_bias, f32* sum, const f32* weight,
                                    const f32* bias, f32* y, T* narrow, f32* stats, int width, f32 eps) {
    const i64 row = (i64)blockIdx.x * width;
    const auto added = [&](int column, auto n) {
        auto s = load(x + row + column, n);
        if (add) {
            const auto more = load(add + row + column, n), b = load_or_zeros(add_bias, column, n);
            for (int i = 0; i < n.count; i++) s.at[i] += more.at[i] + b.at[i];
        }
        return s;
    };

    f32 mean = 0.0f;
    if (bias) {
        f32 total = 0.0f;
        each_column(width, [&](int column, auto n) {
            const auto s = added(column, n);
            for (int i = 0; i < n.count; i++) total += s.at[i];
        });
        mean = block_sum(total) / width;
    }
    f32 squares = 0.0f;
    each_column(width, [&](int column, auto n) {
        const auto s = added(column, n);
        for (int i = 0; i < n.count; i++) squares += (s.at[i] - mean) * (s.at[i] - mean);
    });
    const f32 factor = 1.0f / sqrtf(block_sum(squares) / width + eps);
    if (stats && threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = factor;
    }

    each_column(width, [&](int column, auto n) {
        auto s = added(column, n);
        store(sum, row + column, s);
        const auto w = load(weight + column, n), b = load_or_zeros(bias, column, n);
        for (int i = 0; i < n.count; i++) s.at[i] = (s.at[i] - mean) * factor * w.at[i] + b.at[i];
        store(y, row + column, s);
        store(narrow, row + column, s);
    });
}

#define NORM_FORWARD(T)                                                                                                \
    KERNEL norm_forward_##T(const f32* x, const f32* add, const f32* add_bias, f32* sum, const f32* weight,            \
                            const f32* bias, f32* y, T* narrow, f32* stats, int rows, int width, f32 eps) {            \
        if (blockIdx.x < rows) norm_forward(x, add, add_bias, sum, weight, bias, y, narrow, stats, width, eps);        \
    }
EACH_FORMAT(NORM_FORWARD)

// dx and narrow = carry + the gradient of x, from that of the norm; carry, what comes to x by another way, may be left
// out and may be dx. `centred`: 1 for layer norm, 0 for RMS norm.
template <class T>
static __device__ void norm_backward(const f32* x, const f32* stats, const f32* weight, const f32* dy,
                                     const f32* carry, f32* dx, T* narrow, int centred, int width) {
    const i64 row = (i64)blockIdx.x * width;
    const f32 mean = stats[2 * blockIdx.x], factor = stats[2 * blockIdx.x + 1];
    f32 sum = 0.0f, dot = 0.0f;
    each_column(width, [&](int column, auto n) {
        const auto s = load(x + row + column, n), d = load(dy + row + column, n), w = load(weight + column, n);
        for (int i = 0; i < n.count; i++) {
            sum += d.at[i] * w.at[i];
            dot += d.at[i] * w.at[i] * (s.at[i] - mean);
        }
    });
    const f32 shift = centred ? block_sum(sum) / width : 0.0f;
    const f32 slope = factor * factor * block_sum(dot) / width;
    each_column(width, [&](int column, auto n) {
        const auto s = load(x + row + column, n), d = load(dy + row + column, n), w = load(weight + column, n);
        auto result = load_or_zeros(carry, row + column, n);
        for (int i = 0; i < n.count; i++) {
            result.at[i] += factor * (d.at[i] * w.at[i] - shift - (s.at[i] - mean) * slope);
        }
        store(dx, row + column, result);
        store(narrow, row + column, result);
    });
}

#define NORM_BACKWARD(T)                                                                                               \
    KERNEL norm_backward_##T(const f32* x, const f32* stats, const f32* weight, const f32* dy, const f32* carry,       \
                             f32* dx, T* narrow, int centred, int rows, int width) {                                   \
        if (blockIdx.x < rows) norm_backward(x, stats, weight, dy, carry, dx, narrow, centred, width);                 \
    }
EACH_FORMAT(NORM_BACKWARD)

// What each 64 rows add to the gradients of weight and bias: parts [chunks of rows, 2, width], for `sum_parts`.
// Launch: a block of 32 × 8 threads for each 32 columns (grid.x) of each chunk (grid.y).
KERNEL norm_gradients_partial(const f32* x, const f32* stats, const f32* dy, f32* parts, int rows, int width) {
    const int column = blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * 64;
    f32 d_weight = 0.0f, d_bias = 0.0f;
    for (int row = first + threadIdx.y; row < min(first + 64, rows); row += 8) {
        if (column < width) {
            const i64 at = (i64)row * width + column;
            d_weight += dy[at] * ((x[at] - stats[2 * row]) * stats[2 * row + 1]);
            d_bias += dy[at];
        }
    }
    __shared__ f32 sums[2][8][32];
    sums[0][threadIdx.y][threadIdx.x] = d_weight;
    sums[1][threadIdx.y][threadIdx.x] = d_bias;
    __syncthreads();
    if (threadIdx.y < 2 && column < width) {
        f32 sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += sums[threadIdx.y][i][threadIdx.x];
        parts[((i64)blockIdx.y * 2 + threadIdx.y) * width + column] = sum;
    }
}
