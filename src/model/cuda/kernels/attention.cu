// Causal attention of packed rows behind a shared prefix, forward and backward, and for a cache's next tokens.
//
// Matrices: q, out and their gradients [queries, heads · dim]; kv and its gradient [tokens, 2 · kv_heads · dim], where
// key head h begins at column key_first + h · step and its value at value_first + h · step. `cache` is like kv, with
// earlier tokens.
//
// A segment is a row, the prefix or a branch. Its keys have places from 0 on: those of the prefix, of its past (a
// branch's trunk), then its own; a query sees the places below its `seen`. A score is scale · q·k + slope · place (ALiBi;
// no slopes: 0), which is what BLOOM adds up to a constant of each row.
//
//   queries   [queries, 2]   row of q and out; seen, 0 of a row that pads the batch. Those of a segment stand together,
//                            those that see less first.
//   segments  [segments, 8]  first query, number of queries; first row and number of the prefix's keys, of the past's
//                            and of its own. A first row below 0 means row -1 - first of the cache.
//   tiles     [tiles, 2]     segment (-1: none), first query: each segment's queries in runs of TILE
//   key_tiles [tiles, 6]     first row of kv, number of keys (-1: no tile), place of the first; first and end of the
//                            queries that may see them; first row of the gradient they get, below 0 row -1 - first of
//                            `parts`
//   stats     [queries, heads, 2]  of each query row: the largest score, and 1 over the sum of the exponentials
//   delta     [queries, heads]     of each query row: out · gradient of out
//
// Nothing is added up across blocks: a block has all queries of its keys, or, for the prefix's keys, which all segments
// see, those of a chunk, whose sums lie in `parts` until `sum_parts` adds them in order.
//
// Sizes: D (64, 128 or 256) is the largest head, TILE (32, 16, 8) the rows of a block. Each of 4 warps holds some rows,
// each lane one of 32 others (keys of queries, or queries of keys); row · other is a lane's own, and what rows add up
// is spread over the lanes by columns. Launch: 128 threads; dynamic shared memory in bytes, for D = 64, 128, 256:
//   forward 29,696  44,032  75,776 · backward_queries 37,888  52,224  83,968 · backward_keys 41,984  54,272  84,992
//   decode, decode_parts (256 threads) 8,448  16,640  33,024

template <int D_> struct Tile {
    enum {
        D = D_,
        WARPS = 4,
        THREADS = 32 * WARPS,
        // Rows of a warp: what they add up fits in registers.
        ROWS = 512 / D,
        ALL_ROWS = WARPS * ROWS,
        // Between the lanes' rows: their fours then lie in different banks.
        STRIDE = D + 4,
        // Columns of a lane.
        COLUMNS = D / 32,
    };
};

// Where heads stand in rows of q and kv, and what is done with scores.
struct Heads {
    int heads, kv_heads, dim, key_first, value_first, step;
    f32 scale;
    const f32* slopes;

    __device__ __forceinline__ int group() const { return heads / kv_heads; }
    __device__ __forceinline__ i64 q_width() const { return (i64)heads * dim; }
    __device__ __forceinline__ i64 kv_width() const { return (i64)2 * kv_heads * dim; }
    __device__ __forceinline__ f32 slope(int head) const { return slopes ? slopes[head] : 0.0f; }
};

// The keys of a segment.
struct Keys {
    const f32 *kv, *cache;
    i64 width;
    int first[3], prefix, past;

    __device__ __forceinline__ Keys(const f32* kv, const f32* cache, const int* segment, Heads shape)
        : kv(kv), cache(cache), width(shape.kv_width()), first{segment[2], segment[4], segment[6]},
          prefix(segment[3]), past(segment[5]) {}

    // The row of kv or cache with the key at a place.
    __device__ __forceinline__ const f32* row(int place) const {
        int part = 0;
        if (place >= prefix) {
            place -= prefix;
            part = 1;
            if (place >= past) place -= past, part = 2;
        }
        const int from = part == 0 ? first[0] : part == 1 ? first[1] : first[2];
        return from >= 0 ? kv + (from + place) * width : cache + (-1 - from + place) * width;
    }
};

// Puts `count` rows of `dim` numbers, which row(i) points at, into shared memory, zeros behind them in each row and
// below them up to `rows`.
template <int D, class F>
static __device__ __forceinline__ void load_rows(f32* shared, int stride, int rows, int count, int dim, F row) {
    if (dim % 4 == 0) {
        for (int i = threadIdx.x; i < rows * (D / 4); i += blockDim.x) {
            const int r = i / (D / 4), column = i % (D / 4) * 4;
            const bool there = r < count && column < dim;
            const float4 four = there ? load4(row(r) + column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            store4(shared + r * stride + column, four);
        }
    } else {
        for (int i = threadIdx.x; i < rows * D; i += blockDim.x) {
            const int r = i / D, column = i % D;
            shared[r * stride + column] = r < count && column < dim ? row(r)[column] : 0.0f;
        }
    }
}

// dots[r] = row r of this warp · this lane's own row.
template <int D>
static __device__ __forceinline__ void dots(const f32* rows, const f32* own, f32 (&dots)[Tile<D>::ROWS]) {
    for (int r = 0; r < Tile<D>::ROWS; r++) dots[r] = 0.0f;
#pragma unroll 4
    for (int column = 0; column < D; column += 4) {
        const float4 a = load4(own + column);
#pragma unroll
        for (int r = 0; r < Tile<D>::ROWS; r++) {
            const float4 b = load4(rows + r * D + column);
            dots[r] += a.x * b.x;
            dots[r] += a.y * b.y;
            dots[r] += a.z * b.z;
            dots[r] += a.w * b.w;
        }
    }
}

// sums[r][c] += over the first `count` others: weight of other and row r of this warp · the other's column c of this
// lane. The weights of a row lie side by side, 32 of them, and are 0 beyond `count`.
template <int D>
static __device__ __forceinline__ void mix(const f32* weights, const f32* others, int count,
                                           f32 (&sums)[Tile<D>::ROWS][Tile<D>::COLUMNS]) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < count; i += 4) {
        float4 by[Tile<D>::ROWS];
#pragma unroll
        for (int r = 0; r < Tile<D>::ROWS; r++) by[r] = load4(weights + r * 32 + i);
#pragma unroll
        for (int c = 0; c < Tile<D>::COLUMNS; c++) {
            const f32* column = others + i * Tile<D>::STRIDE + c * 32 + lane;
            const f32 a = column[0], b = column[Tile<D>::STRIDE];
            const f32 e = column[2 * Tile<D>::STRIDE], f = column[3 * Tile<D>::STRIDE];
#pragma unroll
            for (int r = 0; r < Tile<D>::ROWS; r++) {
                sums[r][c] += by[r].x * a;
                sums[r][c] += by[r].y * b;
                sums[r][c] += by[r].z * e;
                sums[r][c] += by[r].w * f;
            }
        }
    }
}

// Launch: grid (tiles, heads).
template <int D>
static __device__ void attention_forward(const f32* q, Keys keys, const int* queries, const int* segment, int first,
                                         f32* out, f32* stats, Heads shape, Mask mask) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(shared);
    f32* const q_tile = shared;
    f32* const key_tile = q_tile + T::ALL_ROWS * D;
    f32* const value_tile = key_tile + 32 * T::STRIDE;
    f32* const p_tile = value_tile + 32 * T::STRIDE;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, kv_head = head / shape.group();
    const int count = min((int)T::ALL_ROWS, segment[0] + segment[1] - first);
    const bool busy = warp * T::ROWS < count;
    f32* const p = p_tile + warp * T::ROWS * 32;
    const f32 slope = shape.slope(head);

    load_rows<D>(q_tile, D, T::ALL_ROWS, count, shape.dim,
                 [&](int r) { return q + queries[2 * (first + r)] * shape.q_width() + head * shape.dim; });
    f32 max[T::ROWS], sum[T::ROWS], mixed[T::ROWS][T::COLUMNS];
    int row[T::ROWS], seen[T::ROWS];
    MaskRow drop[T::ROWS];
    for (int r = 0; r < T::ROWS; r++) {
        const int i = warp * T::ROWS + r;
        row[r] = i < count ? queries[2 * (first + i)] : 0;
        seen[r] = i < count ? queries[2 * (first + i) + 1] : 0;
        drop[r] = mask_row(mask, (u64)row[r] * shape.heads + head);
        max[r] = -INFINITE, sum[r] = 0.0f;
        for (int c = 0; c < T::COLUMNS; c++) mixed[r][c] = 0.0f;
    }

    const int seen_by_last = queries[2 * (first + count - 1) + 1];
    for (int place = 0; place < seen_by_last; place += 32) {
        const int others = min(32, seen_by_last - place);
        __syncthreads();
        load_rows<D>(key_tile, T::STRIDE, 32, others, shape.dim,
                     [&](int i) { return keys.row(place + i) + shape.key_first + kv_head * shape.step; });
        load_rows<D>(value_tile, T::STRIDE, 32, others, shape.dim,
                     [&](int i) { return keys.row(place + i) + shape.value_first + kv_head * shape.step; });
        __syncthreads();
        if (!busy) continue;

        f32 scores[T::ROWS];
        dots<D>(q_tile + warp * T::ROWS * D, key_tile + lane * T::STRIDE, scores);
        for (int r = 0; r < T::ROWS; r++) {
            const bool visible = place + lane < seen[r];
            const f32 score = visible ? scores[r] * shape.scale + slope * (place + lane) : -INFINITE;
            const f32 larger = fmaxf(max[r], warp_max(score));
            // What was summed under an earlier maximum is scaled down.
            const f32 factor = larger == max[r] ? 1.0f : expf(max[r] - larger);
            const f32 e = expf(score - origin(larger));
            max[r] = larger;
            sum[r] = sum[r] * factor + warp_sum(e);
            for (int c = 0; c < T::COLUMNS; c++) mixed[r][c] *= factor;
            p[r * 32 + lane] = e * drop[r].factor(place + lane);
        }
        __syncwarp();
        mix<D>(p, value_tile, others, mixed);
    }

    for (int r = 0; r < T::ROWS; r++) {
        if (warp * T::ROWS + r >= count) continue;
        const f32 factor = seen[r] == 0 ? 0.0f : 1.0f / sum[r];
        f32* const to = out + row[r] * shape.q_width() + head * shape.dim;
        for (int c = 0; c < T::COLUMNS; c++) {
            if (lane + c * 32 < shape.dim) to[lane + c * 32] = mixed[r][c] * factor;
        }
        if (stats && lane == 0) {
            stats[2 * ((i64)row[r] * shape.heads + head)] = max[r];
            stats[2 * ((i64)row[r] * shape.heads + head) + 1] = factor;
        }
    }
}

// d_q and delta. Launch: grid (tiles, heads).
template <int D>
static __device__ void attention_backward_queries(const f32* q, Keys keys, const int* queries, const int* segment,
                                                  int first, const f32* out, const f32* stats, const f32* d_out,
                                                  f32* d_q, f32* delta, Heads shape, Mask mask) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(shared);
    f32* const q_tile = shared;
    f32* const d_out_tile = q_tile + T::ALL_ROWS * D;
    f32* const key_tile = d_out_tile + T::ALL_ROWS * D;
    f32* const value_tile = key_tile + 32 * T::STRIDE;
    f32* const d_score_tile = value_tile + 32 * T::STRIDE;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head = blockIdx.y, kv_head = head / shape.group();
    const int count = min((int)T::ALL_ROWS, segment[0] + segment[1] - first);
    const bool busy = warp * T::ROWS < count;
    f32* const d_score = d_score_tile + warp * T::ROWS * 32;
    const f32 slope = shape.slope(head);

    const auto at = [&](int r) { return queries[2 * (first + r)] * shape.q_width() + head * shape.dim; };
    load_rows<D>(q_tile, D, T::ALL_ROWS, count, shape.dim, [&](int r) { return q + at(r); });
    load_rows<D>(d_out_tile, D, T::ALL_ROWS, count, shape.dim, [&](int r) { return d_out + at(r); });
    __syncthreads();
    f32 max[T::ROWS], factor[T::ROWS], dot[T::ROWS], sums[T::ROWS][T::COLUMNS];
    int row[T::ROWS], seen[T::ROWS];
    MaskRow drop[T::ROWS];
    for (int r = 0; r < T::ROWS; r++) {
        const int i = warp * T::ROWS + r;
        const bool there = i < count;
        row[r] = there ? queries[2 * (first + i)] : 0;
        seen[r] = there ? queries[2 * (first + i) + 1] : 0;
        const i64 place = (i64)row[r] * shape.heads + head;
        drop[r] = mask_row(mask, place);
        max[r] = stats[2 * place], factor[r] = stats[2 * place + 1];
        f32 own = 0.0f;
        for (int column = lane; column < shape.dim && there; column += 32) {
            own += out[at(i) + column] * d_out_tile[i * D + column];
        }
        dot[r] = warp_sum(own);
        if (there && lane == 0) delta[place] = dot[r];
        for (int c = 0; c < T::COLUMNS; c++) sums[r][c] = 0.0f;
    }

    const int seen_by_last = queries[2 * (first + count - 1) + 1];
    for (int place = 0; place < seen_by_last; place += 32) {
        const int others = min(32, seen_by_last - place);
        __syncthreads();
        load_rows<D>(key_tile, T::STRIDE, 32, others, shape.dim,
                     [&](int i) { return keys.row(place + i) + shape.key_first + kv_head * shape.step; });
        load_rows<D>(value_tile, T::STRIDE, 32, others, shape.dim,
                     [&](int i) { return keys.row(place + i) + shape.value_first + kv_head * shape.step; });
        __syncthreads();
        if (!busy) continue;

        f32 scores[T::ROWS], d_p[T::ROWS];
        dots<D>(q_tile + warp * T::ROWS * D, key_tile + lane * T::STRIDE, scores);
        dots<D>(d_out_tile + warp * T::ROWS * D, value_tile + lane * T::STRIDE, d_p);
        for (int r = 0; r < T::ROWS; r++) {
            const f32 score = scores[r] * shape.scale + slope * (place + lane);
            const f32 p = place + lane < seen[r] ? expf(score - max[r]) * factor[r] : 0.0f;
            d_score[r * 32 + lane] = p * (d_p[r] * drop[r].factor(place + lane) - dot[r]) * shape.scale;
        }
        __syncwarp();
        mix<D>(d_score, key_tile, others, sums);
    }

    for (int r = 0; r < T::ROWS; r++) {
        const int i = warp * T::ROWS + r;
        for (int c = 0; c < T::COLUMNS && i < count; c++) {
            if (lane + c * 32 < shape.dim) d_q[at(i) + lane + c * 32] = sums[r][c];
        }
    }
}

// The gradients of some keys and their values. Launch: grid (key tiles, kv_heads).
template <int D>
static __device__ void attention_backward_keys(const f32* q, const f32* kv, const int* queries, const int* tile,
                                               const f32* stats, const f32* delta, const f32* d_out, f32* d_kv,
                                               f32* parts, Heads shape, Mask mask) {
    typedef Tile<D> T;
    DYNAMIC_SHARED(shared);
    f32* const key_tile = shared;
    f32* const value_tile = key_tile + T::ALL_ROWS * D;
    f32* const q_tile = value_tile + T::ALL_ROWS * D;
    f32* const d_out_tile = q_tile + 32 * T::STRIDE;
    f32* const p_tile = d_out_tile + 32 * T::STRIDE;
    f32* const d_score_tile = p_tile + T::ALL_ROWS * 32;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.y;
    const int count = tile[1], place = tile[2] + warp * T::ROWS, end = tile[4];
    const bool busy = warp * T::ROWS < count;
    f32* const p = p_tile + warp * T::ROWS * 32;
    f32* const d_score = d_score_tile + warp * T::ROWS * 32;

    const i64 width = shape.kv_width();
    const int key_column = shape.key_first + kv_head * shape.step, value_column = shape.value_first + kv_head * shape.step;
    load_rows<D>(key_tile, D, T::ALL_ROWS, count, shape.dim, [&](int r) { return kv + (tile[0] + r) * width + key_column; });
    load_rows<D>(value_tile, D, T::ALL_ROWS, count, shape.dim,
                 [&](int r) { return kv + (tile[0] + r) * width + value_column; });
    f32 d_keys[T::ROWS][T::COLUMNS], d_values[T::ROWS][T::COLUMNS];
    for (int r = 0; r < T::ROWS; r++) {
        for (int c = 0; c < T::COLUMNS; c++) d_keys[r][c] = d_values[r][c] = 0.0f;
    }

    for (int member = 0; member < shape.group(); member++) {
        const int head = kv_head * shape.group() + member;
        const f32 slope = shape.slope(head);
        for (int first = tile[3]; first < end; first += 32) {
            const int others = min(32, end - first);
            const auto at = [&](int i) { return queries[2 * (first + i)] * shape.q_width() + head * shape.dim; };
            __syncthreads();
            load_rows<D>(q_tile, T::STRIDE, 32, others, shape.dim, [&](int i) { return q + at(i); });
            load_rows<D>(d_out_tile, T::STRIDE, 32, others, shape.dim, [&](int i) { return d_out + at(i); });
            __syncthreads();
            if (!busy) continue;

            const bool there = lane < others;
            const int row = there ? queries[2 * (first + lane)] : 0;
            const int seen = there ? queries[2 * (first + lane) + 1] : 0;
            const i64 of_query = (i64)row * shape.heads + head;
            const f32 max = stats[2 * of_query], factor = stats[2 * of_query + 1], dot = delta[of_query];
            const MaskRow drop = mask_row(mask, of_query);

            f32 scores[T::ROWS], d_p[T::ROWS];
            dots<D>(key_tile + warp * T::ROWS * D, q_tile + lane * T::STRIDE, scores);
            dots<D>(value_tile + warp * T::ROWS * D, d_out_tile + lane * T::STRIDE, d_p);
            for (int r = 0; r < T::ROWS; r++) {
                const f32 score = scores[r] * shape.scale + slope * (place + r);
                const f32 probability = place + r < seen ? expf(score - max) * factor : 0.0f;
                const f32 kept = drop.factor(place + r);
                p[r * 32 + lane] = probability * kept;
                d_score[r * 32 + lane] = probability * (d_p[r] * kept - dot) * shape.scale;
            }
            __syncwarp();
            mix<D>(p, d_out_tile, others, d_values);
            mix<D>(d_score, q_tile, others, d_keys);
        }
    }

    for (int r = 0; r < T::ROWS; r++) {
        const int i = warp * T::ROWS + r;
        if (i >= count) continue;
        f32* const to = tile[5] >= 0 ? d_kv + (tile[5] + i) * width : parts + (-1 - tile[5] + i) * width;
        for (int c = 0; c < T::COLUMNS; c++) {
            if (lane + c * 32 >= shape.dim) continue;
            to[key_column + lane + c * 32] = d_keys[r][c];
            to[value_column + lane + c * 32] = d_values[r][c];
        }
    }
}

// Four numbers from `column` on of a head of `dim`, zeros beyond its end.
static __device__ __forceinline__ float4 load_part(const f32* head, int column, int dim) {
    if (dim % 4 == 0) return column < dim ? load4(head + column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    f32 x[4];
    for (int i = 0; i < 4; i++) x[i] = column + i < dim ? head[column + i] : 0.0f;
    return make_float4(x[0], x[1], x[2], x[3]);
}

// One query of each segment, or few, and many keys, those at the places begin..end: eight lanes share a key, 32 keys go
// by at a time, each of which has a softmax of its own until the end. Without a part the result goes to out; a part is
// what this block's keys say: the sums [D], the largest score and the sum of the exponentials.
// Launch: 256 threads for each query and head.
template <int D>
static __device__ void attention_decode(const f32* q, Keys keys, int row, int begin, int end, f32* out, f32* part,
                                        Heads shape) {
    enum { FOURS = D / 32, GROUPS = 32, AHEAD = 128 / D > 0 ? 128 / D : 1 };
    DYNAMIC_SHARED(shared);
    f32* const maxima = shared;
    f32* const totals = maxima + GROUPS;
    f32* const parts = totals + GROUPS;

    const int group = threadIdx.x / 8, lane = threadIdx.x % 8, head = blockIdx.y, kv_head = head / shape.group();
    const int key_column = shape.key_first + kv_head * shape.step, value_column = shape.value_first + kv_head * shape.step;
    const f32 slope = shape.slope(head);
    const i64 at = row * shape.q_width() + head * shape.dim;
    float4 asked[FOURS], mixed[FOURS];
    for (int c = 0; c < FOURS; c++) {
        asked[c] = load_part(q + at, (lane + 8 * c) * 4, shape.dim);
        mixed[c] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    f32 max = -INFINITE, sum = 0.0f;
    for (int first = begin; first < end; first += GROUPS * AHEAD) {
        float4 key[AHEAD][FOURS], value[AHEAD][FOURS];
        f32 score[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int place = first + a * GROUPS + group;
            // What lies beyond is loaded from the last place and given no weight.
            const f32* const kv = keys.row(min(place, end - 1));
            for (int c = 0; c < FOURS; c++) {
                key[a][c] = load_part(kv + key_column, (lane + 8 * c) * 4, shape.dim);
                value[a][c] = load_part(kv + value_column, (lane + 8 * c) * 4, shape.dim);
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const int place = first + a * GROUPS + group;
            f32 dot = 0.0f;
            for (int c = 0; c < FOURS; c++) {
                dot += asked[c].x * key[a][c].x + asked[c].y * key[a][c].y + asked[c].z * key[a][c].z +
                       asked[c].w * key[a][c].w;
            }
            for (int distance = 4; distance > 0; distance /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, distance);
            score[a] = place < end ? dot * shape.scale + slope * place : -INFINITE;
        }
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const f32 larger = fmaxf(max, score[a]);
            const f32 factor = larger == max ? 1.0f : expf(max - larger), e = expf(score[a] - origin(larger));
            max = larger;
            sum = sum * factor + e;
            for (int c = 0; c < FOURS; c++) {
                mixed[c].x = mixed[c].x * factor + e * value[a][c].x;
                mixed[c].y = mixed[c].y * factor + e * value[a][c].y;
                mixed[c].z = mixed[c].z * factor + e * value[a][c].z;
                mixed[c].w = mixed[c].w * factor + e * value[a][c].w;
            }
        }
    }
    if (lane == 0) maxima[group] = max, totals[group] = sum;
    for (int c = 0; c < FOURS; c++) store4(parts + group * D + (lane + 8 * c) * 4, mixed[c]);
    __syncthreads();

    f32 largest = -INFINITE;
    for (int g = 0; g < GROUPS; g++) largest = fmaxf(largest, maxima[g]);
    for (int column = threadIdx.x; column < shape.dim; column += blockDim.x) {
        f32 total = 0.0f, x = 0.0f;
        for (int g = 0; g < GROUPS; g++) {
            const f32 factor = expf(maxima[g] - origin(largest));
            total += factor * totals[g];
            x += factor * parts[g * D + column];
        }
        if (part) {
            part[column] = x, part[D] = largest, part[D + 1] = total;
        } else {
            out[at + column] = end == 0 ? 0.0f : x / total;
        }
    }
}

// From the parts [queries, heads, splits, D + 2] of each query to its output. Launch: grid (queries, heads).
KERNEL attention_decode_join(const f32* parts, const int* queries, f32* out, int heads, int dim, int D, int splits) {
    const int head = blockIdx.y;
    parts += ((i64)blockIdx.x * heads + head) * splits * (D + 2);
    f32 largest = -INFINITE;
    for (int split = 0; split < splits; split++) largest = fmaxf(largest, parts[split * (D + 2) + D]);
    for (int column = threadIdx.x; column < dim; column += blockDim.x) {
        f32 total = 0.0f, x = 0.0f;
        for (int split = 0; split < splits; split++) {
            const f32* const part = parts + split * (D + 2);
            const f32 factor = expf(part[D] - origin(largest));
            total += factor * part[D + 1];
            x += factor * part[column];
        }
        const i64 at = ((i64)queries[2 * blockIdx.x] * heads + head) * dim;
        out[at + column] = queries[2 * blockIdx.x + 1] == 0 ? 0.0f : x / total;
    }
}

#define SHAPE                                                                                                          \
    int heads, int kv_heads, int dim, int key_first, int value_first, int step, f32 scale, const f32 *slopes
#define HEADS Heads{heads, kv_heads, dim, key_first, value_first, step, scale, slopes}
#define DROPOUT_ARGUMENTS const u64 *key, u32 threshold, f32 keep_scale
#define MASK Mask{key, threshold, keep_scale}

#define ATTENTION(D)                                                                                                   \
    KERNEL attention_forward_##D(const f32* q, const f32* kv, const f32* cache, const int* queries,                    \
                                 const int* segments, const int* tiles, f32* out, f32* stats, SHAPE,                   \
                                 DROPOUT_ARGUMENTS) {                                                                  \
        if (tiles[2 * blockIdx.x] < 0) return;                                                                         \
        const int *const segment = segments + 8 * tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1];            \
        attention_forward<D>(q, Keys(kv, cache, segment, HEADS), queries, segment, first, out, stats, HEADS, MASK);    \
    }                                                                                                                  \
    KERNEL attention_backward_queries_##D(const f32* q, const f32* kv, const int* queries, const int* segments,        \
                                          const int* tiles, const f32* out, const f32* stats, const f32* d_out,        \
                                          f32* d_q, f32* delta, SHAPE, DROPOUT_ARGUMENTS) {                            \
        if (tiles[2 * blockIdx.x] < 0) return;                                                                         \
        const int *const segment = segments + 8 * tiles[2 * blockIdx.x], first = tiles[2 * blockIdx.x + 1];            \
        attention_backward_queries<D>(q, Keys(kv, nullptr, segment, HEADS), queries, segment, first, out, stats,       \
                                      d_out, d_q, delta, HEADS, MASK);                                                 \
    }                                                                                                                  \
    KERNEL attention_backward_keys_##D(const f32* q, const f32* kv, const int* queries, const int* key_tiles,          \
                                       const f32* stats, const f32* delta, const f32* d_out, f32* d_kv, f32* parts,    \
                                       SHAPE, DROPOUT_ARGUMENTS) {                                                     \
        const int* const tile = key_tiles + 6 * blockIdx.x;                                                            \
        if (tile[1] < 0) return;                                                                                       \
        attention_backward_keys<D>(q, kv, queries, tile, stats, delta, d_out, d_kv, parts, HEADS, MASK);               \
    }                                                                                                                  \
    KERNEL attention_decode_##D(const f32* q, const f32* kv, const f32* cache, const int* queries,                     \
                                const int* segments, const int* query_segments, f32* out, SHAPE) {                     \
        const int* const segment = segments + 8 * query_segments[blockIdx.x];                                          \
        attention_decode<D>(q, Keys(kv, cache, segment, HEADS), queries[2 * blockIdx.x], 0,                            \
                            queries[2 * blockIdx.x + 1], out, nullptr, HEADS);                                         \
    }                                                                                                                  \
    KERNEL attention_decode_parts_##D(const f32* q, const f32* kv, const f32* cache, const int* queries,               \
                                      const int* segments, const int* query_segments, f32* parts, int splits, SHAPE) { \
        const int query = blockIdx.x / splits, split = blockIdx.x % splits;                                            \
        const int *const segment = segments + 8 * query_segments[query], seen = queries[2 * query + 1];                \
        const int length = (seen + splits - 1) / splits;                                                               \
        attention_decode<D>(q, Keys(kv, cache, segment, HEADS), queries[2 * query], min(split * length, seen),         \
                            min((split + 1) * length, seen), nullptr,                                                  \
                            parts + (((i64)query * heads + blockIdx.y) * splits + split) * (D + 2), HEADS);            \
    }
// A program for heads of one size can leave out the others, which take the compiler a second each.
#if !defined(ATTENTION_D) || ATTENTION_D == 64
ATTENTION(64)
#endif
#if !defined(ATTENTION_D) || ATTENTION_D == 128
ATTENTION(128)
#endif
#if !defined(ATTENTION_D) || ATTENTION_D == 256
ATTENTION(256)
#endif
