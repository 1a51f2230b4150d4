// AdamW with decoupled weight decay, in the order of operations of the processor's, with the same bits: no product and
// sum are fused.
//
// `scalars` on the device: keep, weight, beta2, weight2, correction2, eps and step, the locals of `AdamW::step`. Each
// gradient is first multiplied with *factor, if there is one; `narrow` takes the new parameter. Any grid.

template <class T>
static __device__ void adamw(f32* parameter, const f32* gradient, f32* mean, f32* square, const f32* scalars,
                             const f32* factor, T* narrow, i64 n) {
    const f32 keep = scalars[0], weight = scalars[1], beta2 = scalars[2], weight2 = scalars[3];
    const f32 correction2 = scalars[4], eps = scalars[5], step = scalars[6];
    const f32 by = factor ? *factor : 1.0f;
    each_of(n, [&](i64 at, auto count) {
        auto p = load(parameter + at, count), m = load(mean + at, count), v = load(square + at, count);
        const auto given = load(gradient + at, count);
        for (int i = 0; i < count.count; i++) {
            const f32 g = __fmul_rn(given.at[i], by);
            m.at[i] = __fadd_rn(m.at[i], __fmul_rn(weight, __fsub_rn(g, m.at[i])));
            v.at[i] = __fadd_rn(__fmul_rn(v.at[i], beta2), __fmul_rn(__fmul_rn(weight2, g), g));
            const f32 denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(v.at[i]), correction2), eps);
            p.at[i] = __fadd_rn(__fmul_rn(p.at[i], keep), __fdiv_rn(__fmul_rn(step, m.at[i]), denominator));
        }
        store(parameter, at, p);
        store(mean, at, m);
        store(square, at, v);
        store(narrow, at, p);
    });
}

#define ADAMW(T)                                                                                                       \
    KERNEL adamw_##T(f32* parameter, const f32* gradient, f32* mean, f32* square, const f32* scalars,                  \
                     const f32* factor, T* narrow, i64 n) {                                                            \
        adamw(parameter, gradient, mean, square, scalars, factor, narrow, n);                                          \
    }
EACH_FORMAT(ADAMW)
