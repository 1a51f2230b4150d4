// Rows of tables: the embeddings of a packed batch, rows picked out, put in other places and added up by place.
//
// Launch: a block a row, 32 to 1024 threads. An id or place of -1 marks a row that pads the batch.

// y[row] = prompt[row] for the first `virtual_tokens` rows, table[ids[row - virtual_tokens]] behind them; with a table
// of positions, the row of this row's position is added.
template <class T>
static __device__ void embed(const f32* prompt, int virtual_tokens, const T* table, const u32* ids,
                             const T* positions_table, const u32* positions, f32* y, int width) {
    const int row = blockIdx.x;
    const i64 at = (i64)row * width;
    const bool is_prompt = row < virtual_tokens;
    const u32 id = is_prompt ? 0 : ids[row - virtual_tokens];
    each_column(width, [&](int column, auto n) {
        auto x = load_or_zeros((const f32*)nullptr, 0, n);
        if (id != NOWHERE) {
            x = is_prompt ? load(prompt + at + column, n) : load(table + (i64)id * width + column, n);
            if (positions_table) {
                const auto place = load(positions_table + (i64)positions[row] * width + column, n);
                for (int i = 0; i < n.count; i++) x.at[i] += place.at[i];
            }
        }
        store(y, at + column, x);
    });
}

#define EMBED(T)                                                                                                       \
    KERNEL embed_##T(const f32* prompt, int virtual_tokens, const T* table, const u32* ids, const T* positions_table,  \
                     const u32* positions, f32* y, int rows, int width) {                                              \
        if (blockIdx.x < rows)                                                                                         \
            embed(prompt, virtual_tokens, table, ids, positions_table, positions, y, width);                           \
    }
EACH_FORMAT(EMBED)

// y[row] = table[rows_of[row]], zeros where that is -1.
template <class T>
static __device__ void gather(const T* table, const u32* rows_of, f32* y, int rows, int width) {
    if (blockIdx.x >= rows) return;
    const u32 from = rows_of[blockIdx.x];
    each_column(width, [&](int column, auto n) {
        const T* row = from == NOWHERE ? nullptr : table;
        store(y, (i64)blockIdx.x * width + column, load_or_zeros(row, (i64)from * width + column, n));
    });
}

#define GATHER(T)                                                                                                      \
    KERNEL gather_##T(const T* table, const u32* rows_of, f32* y, int rows, int width) {                               \
        gather(table, rows_of, y, rows, width);                                                                        \
    }
EACH_FORMAT(GATHER)

// y[row] += table[rows_of[row]], but not where that is -1.
template <class T>
static __device__ void gather_add(const T* table, const u32* rows_of, f32* y, int rows, int width) {
    if (blockIdx.x >= rows || rows_of[blockIdx.x] == NOWHERE) return;
    const i64 from = (i64)rows_of[blockIdx.x] * width, to = (i64)blockIdx.x * width;
    each_column(width, [&](int column, auto n) {
        auto x = load(y + to + column, n);
        const auto more = load(table + from + column, n);
        for (int i = 0; i < n.count; i++) x.at[i] += more.at[i];
        store(y, to + column, x);
    });
}

#define GATHER_ADD(T)                                                                                                  \
    KERNEL gather_add_##T(const T* table, const u32* rows_of, f32* y, int rows, int width) {                           \
        gather_add(table, rows_of, y, rows, width);                                                                    \
    }
EACH_FORMAT(GATHER_ADD)

// y[rows_of[row]] = x[row], but not where that is -1; no row of y may be named twice.
KERNEL scatter_rows(const f32* x, const u32* rows_of, f32* y, int rows, int width) {
    if (blockIdx.x >= rows || rows_of[blockIdx.x] == NOWHERE) return;
    const i64 from = (i64)blockIdx.x * width, to = (i64)rows_of[blockIdx.x] * width;
    each_column(width, [&](int column, auto n) { store(y, to + column, load(x + from + column, n)); });
}

// y[targets[group]] += the rows of x that order[starts[group]..starts[group + 1]] names, one after the other: the
// gradient of rows that were looked up, some of them several times. A block a group.
KERNEL add_grouped_rows(const f32* x, const u32* order, const u32* starts, const u32* targets, f32* y, int groups,
                        int width) {
    if (blockIdx.x >= groups || targets[blockIdx.x] == NOWHERE) return;
    const u32 start = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    const i64 to = (i64)targets[blockIdx.x] * width;
    each_column(width, [&](int column, auto n) {
        auto sum = load(y + to + column, n);
#pragma unroll 4
        for (u32 k = start; k < end; k++) {
            const auto part = load(x + (i64)order[k] * width + column, n);
            for (int i = 0; i < n.count; i++) sum.at[i] += part.at[i];
        }
        store(y, to + column, sum);
    });
}
