// Sums over many rows or over all numbers, each in two stages: parts whose number depends on the sizes alone, then
// those one after the other in f64.

// The sum of each column over each 64 rows: parts [chunks of rows, width], for `sum_parts`.
// Launch: a block of 32 × 8 threads for each 32 columns (grid.x) of each chunk (grid.y).
KERNEL column_sums_partial(const f32* x, f32* parts, int rows, int width) {
    const int column = blockIdx.x * 32 + threadIdx.x, first = blockIdx.y * 64;
    f32 sum = 0.0f;
    for (int row = first + threadIdx.y; row < min(first + 64, rows); row += 8) {
        if (column < width) sum += x[(i64)row * width + column];
    }
    __shared__ f32 sums[8][32];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
        parts[(i64)blockIdx.y * width + column] = sum;
    }
}

// y[i] = keep · y[i] + the sum of parts[chunk · stride + i] over the chunks; y is not read where keep is 0.
// Launch: n threads in all.
KERNEL sum_parts(const f32* parts, int chunks, i64 stride, f32* y, int n, f32 keep) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    f64 sum = keep == 0.0f ? 0.0 : (f64)keep * y[i];
#pragma unroll 4
    for (int chunk = 0; chunk < chunks; chunk++) sum += parts[chunk * stride + i];
    y[i] = (f32)sum;
}

// Each block's sum of squares: parts [gridDim.x]. Any grid, of whole warps.
KERNEL square_sum_partial(const f32* x, i64 n, f64* parts) {
    f64 sum = 0.0;
    each_of(n, [&](i64 at, auto count) {
        const auto numbers = load(x + at, count);
        for (int i = 0; i < count.count; i++) sum += (f64)numbers.at[i] * numbers.at[i];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// norm = the root of the sum of the parts, and the factor that brings a gradient of this norm down to the largest that
// is allowed, as torch's `clip_grad_norm_` does it: 1 where none is (max_norm <= 0). One block.
KERNEL clip_scale(const f64* parts, int count, f64 max_norm, f64* norm, f32* factor) {
    f64 sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += parts[i];
    sum = sqrt(block_sum(sum));
    if (threadIdx.x == 0) {
        *norm = sum;
        const f64 allowed = max_norm / (sum + 1e-6);
        // Written so that a norm that is no number gives 1: as the processor does it.
        *factor = max_norm > 0.0 && allowed < 1.0 ? (f32)allowed : 1.0f;
    }
}

// losses[slot, or 0] += scale · the sum of nll, which has a number a row. One block.
KERNEL sum_loss(const f64* nll, int rows, const f32* scale, const u32* slot, f64* losses) {
    f64 sum = 0.0;
    for (int i = threadIdx.x; i < rows; i += blockDim.x) sum += nll[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) losses[slot ? *slot : 0] += *scale * sum;
}
