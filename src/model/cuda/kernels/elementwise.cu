// What is done to each number by itself: sums of matrices and biases, dropout, other formats.
//
// Those with rows and a width: a block a row, 32 to 1024 threads. Those with n: any grid.

// y = residual + mask · (x + bias): what a half of a layer adds to the residual stream. Without a bias, a residual or
// a key these are left out; y may be x or the residual.
KERNEL add_half(const f32* x, const f32* bias, const f32* residual, const u64* key, u32 threshold, f32 keep_scale,
                f32* y, int rows, int width) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * width;
    const MaskRow mask = mask_row(Mask{key, threshold, keep_scale}, blockIdx.x);
    each_column(width, [&](int column, auto n) {
        auto sum = load(x + row + column, n);
        const auto b = load_or_zeros(bias, column, n), r = load_or_zeros(residual, row + column, n);
        for (int i = 0; i < n.count; i++) sum.at[i] = r.at[i] + mask.factor(column + i) * (sum.at[i] + b.at[i]);
        store(y, row + column, sum);
    });
}

// y = residual + bias, either of which may be left out: what a product is then added to.
KERNEL fill_start(const f32* residual, const f32* bias, f32* y, int rows, int width) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * width;
    each_column(width, [&](int column, auto n) {
        auto sum = load_or_zeros(residual, row + column, n);
        const auto b = load_or_zeros(bias, column, n);
        for (int i = 0; i < n.count; i++) sum.at[i] += b.at[i];
        store(y, row + column, sum);
    });
}

// y and narrow = mask · x, with the bits of `Mask::apply`; y may be x.
template <class T>
static __device__ void dropout(const f32* x, const u64* key, u32 threshold, f32 keep_scale, f32* y, T* narrow,
                               int rows, int width) {
    if (blockIdx.x >= rows) return;
    const i64 row = (i64)blockIdx.x * width;
    const MaskRow mask = mask_row(Mask{key, threshold, keep_scale}, blockIdx.x);
    each_column(width, [&](int column, auto n) {
        auto kept = load(x + row + column, n);
        for (int i = 0; i < n.count; i++) kept.at[i] *= mask.factor(column + i);
        store(y, row + column, kept);
        store(narrow, row + column, kept);
    });
}

#define DROPOUT(T)                                                                                                     \
    KERNEL dropout_##T(const f32* x, const u64* key, u32 threshold, f32 keep_scale, f32* y, T* narrow, int rows,       \
                       int width) {                                                                                    \
        dropout(x, key, threshold, keep_scale, y, narrow, rows, width);                                                \
    }
EACH_FORMAT(DROPOUT)

// y += x
KERNEL add(const f32* x, f32* y, i64 n) {
    each_of(n, [&](i64 at, auto count) {
        auto sum = load(y + at, count);
        const auto more = load(x + at, count);
        for (int i = 0; i < count.count; i++) sum.at[i] += more.at[i];
        store(y, at, sum);
    });
}

// y *= factor, which is one number on the device.
KERNEL scale(f32* y, const f32* factor, i64 n) {
    each_of(n, [&](i64 at, auto count) {
        auto scaled = load(y + at, count);
        for (int i = 0; i < count.count; i++) scaled.at[i] *= *factor;
        store(y, at, scaled);
    });
}

#define CAST(T)                                                                                                        \
    KERNEL cast_##T(const f32* x, T* y, i64 n) {                                                                       \
        each_of(n, [&](i64 at, auto count) { store(y, at, load(x + at, count)); });                                    \
    }                                                                                                                  \
    KERNEL widen_##T(const T* x, f32* y, i64 n) {                                                                      \
        each_of(n, [&](i64 at, auto count) { store(y, at, load(x + at, count)); });                                    \
    }
NARROW_FORMATS(CAST)
