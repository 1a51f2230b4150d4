// The next token of each sequence from its logits [rows, vocabulary], and what a greedy token changes: all that
// generation needs between two passes, without asking the host.

// A logit and its token.
struct alignas(8) Best {
    f32 logit;
    u32 token;
};

// Whether `a` is to be taken before `b`: the largest, of equals the first; the first NaN if there is one.
static __device__ __forceinline__ bool goes_before(Best a, Best b) {
    const bool a_is_nan = a.logit != a.logit, b_is_nan = b.logit != b.logit;
    if (a_is_nan != b_is_nan) return a_is_nan;
    if (a_is_nan || a.logit == b.logit) return a.token < b.token;
    return a.logit > b.logit;
}

static __device__ __forceinline__ Best best_of_warp(Best best) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const f32 logit = __shfl_xor_sync(0xffffffffu, best.logit, distance);
        const Best other = Best{logit, __shfl_xor_sync(0xffffffffu, best.token, distance)};
        if (goes_before(other, best)) best = other;
    }
    return best;
}

// The best token of each part of each row: parts [rows, gridDim.x]. Launch: grid (parts, rows), whole warps.
KERNEL argmax_partial(const f32* logits, Best* parts, int vocabulary) {
    Best best = Best{-INFINITE, NOWHERE};
    each_logit(logits + (i64)blockIdx.y * vocabulary, vocabulary, [&](int token, auto numbers, auto n) {
        for (int i = 0; i < n.count; i++) {
            const Best next = Best{numbers.at[i], (u32)(token + i)};
            if (goes_before(next, best)) best = next;
        }
    });
    best = best_of_warp(best);
    __shared__ Best of_warps[32];
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = best_of_warp(threadIdx.x < blockDim.x / 32 ? of_warps[threadIdx.x] : Best{-INFINITE, NOWHERE});
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// The best token of each row. Launch: a warp a row, whole warps.
KERNEL argmax_finish(const Best* parts, u32* tokens, int rows, int parts_a_row) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    Best best = Best{-INFINITE, NOWHERE};
    for (int i = threadIdx.x % 32; i < parts_a_row; i += 32) {
        if (goes_before(parts[row * parts_a_row + i], best)) best = parts[row * parts_a_row + i];
    }
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) tokens[row] = best.token;
}

// Rules tokens out in every row. Launch: a block a row.
KERNEL forbid(f32* logits, const u32* ids, int count, int rows, int vocabulary) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        if (blockIdx.x < rows && ids[i] < vocabulary) logits[(i64)blockIdx.x * vocabulary + ids[i]] = -INFINITE;
    }
}

// seen[row_of[i] (i without row_of), ids[i]] = 1; seen is [rows, vocabulary]. Launch: count threads in all.
KERNEL mark_ids(u8* seen, const u32* ids, const u32* row_of, int count, int vocabulary) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && ids[i] < vocabulary) seen[(i64)(row_of ? row_of[i] : i) * vocabulary + ids[i]] = 1;
}

// Makes tokens that were seen less likely (below 1: likelier), as `sampling::penalise`. Any grid.
KERNEL penalise(f32* logits, const u8* seen, f32 penalty, int rows, int vocabulary) {
    const i64 threads = (i64)gridDim.x * blockDim.x;
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < (i64)rows * vocabulary; i += threads) {
        if (seen[i]) logits[i] = logits[i] < 0.0f ? logits[i] * penalty : logits[i] / penalty;
    }
}

// What the next tokens change where each row of a batch feeds one token a pass. For each row that is not over
// (ids[row] = -1): its next token goes into history [rows, capacity] at *step and becomes what it feeds; it sees one
// key more (`queries`, `segments` of attention, whose own keys are in the cache), stands one position further and puts
// its key one row of the cache further. It is over, and feeds -1, sees nothing and puts its key nowhere, once *left*
// is 0 or the token is one of the ends. Then *step is one more. One block.
KERNEL advance(const u32* next, u32* ids, u32* left, int* queries, int* segments, u32* positions, u32* cache_rows,
               u32* history, u32* step, const u32* ends, int ends_count, int rows, int capacity) {
    for (int row = threadIdx.x; row < rows; row += blockDim.x) {
        if (ids[row] == NOWHERE) continue;
        const u32 id = next[row];
        if (*step < capacity) history[(i64)row * capacity + *step] = id;
        bool over = --left[row] == 0;
        for (int i = 0; i < ends_count; i++) over |= id == ends[i];
        ids[row] = over ? NOWHERE : id;
        queries[2 * row + 1] = over ? 0 : queries[2 * row + 1] + 1;
        segments[8 * row + 7] += 1;
        positions[row] += 1;
        cache_rows[row] = over ? NOWHERE : cache_rows[row] + 1;
    }
    __syncthreads();
    if (threadIdx.x == 0) *step += 1;
}
