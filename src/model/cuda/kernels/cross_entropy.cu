// Cross entropy of rows of logits [rows, vocabulary], and the gradient of the logits.
//
// Three launches: parts of the vocabulary (`partial`), what they say together about each row's target (`judge`), and,
// where a gradient is asked for, the logits' own (`gradient`), which may take their place. A head that makes its
// logits in pieces of the vocabulary calls the first and the last for each piece.
//
// A target of -1 is a row that pads the batch: its loss and its gradient are 0.

// What some tokens say about a row.
struct alignas(16) Part {
    // The largest logit, and the first token that has it; NaN is above nothing.
    f32 max;
    u32 likeliest;
    // Of the exponentials of the logits' distances from the maximum.
    f64 sum;
};

// The larger of two numbers with their tokens; of equals the first token, and NaN never.
static __device__ __forceinline__ void take_larger(f32& max, u32& token, f32 other_max, u32 other_token) {
    if (other_max > max || (other_max == max && other_token < token)) max = other_max, token = other_token;
}

// Logits of the tokens first..first + vocabulary, [rows, vocabulary]: their parts, at parts[row, part_first + blockIdx.x]
// of `parts_a_row`, and target_logits[row] where the target is among them.
// Launch: grid (parts of the tokens, rows), whole warps. Equal parts of a multiple of four tokens.
KERNEL cross_entropy_partial(const f32* logits, const u32* targets, Part* parts, f32* target_logits, int vocabulary,
                             int first, int part_first, int parts_a_row) {
    const int row = blockIdx.y;
    logits += (i64)row * vocabulary;
    f32 max = -INFINITE;
    u32 likeliest = NOWHERE;
    const u32 target = targets[row] - first;
    each_logit(logits, vocabulary, [&](int token, auto numbers, auto n) {
        for (int i = 0; i < n.count; i++) {
            if (numbers.at[i] > max) max = numbers.at[i], likeliest = token + i;
            if (token + i == target && targets[row] != NOWHERE) target_logits[row] = numbers.at[i];
        }
    });
    for (int distance = 16; distance > 0; distance /= 2) {
        const f32 other = __shfl_xor_sync(0xffffffffu, max, distance);
        take_larger(max, likeliest, other, __shfl_xor_sync(0xffffffffu, likeliest, distance));
    }
    __shared__ f32 maxima[32];
    __shared__ u32 tokens[32];
    if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = max, tokens[threadIdx.x / 32] = likeliest;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; warp++) take_larger(max, likeliest, maxima[warp], tokens[warp]);

    f32 exponentials = 0.0f;
    each_logit(logits, vocabulary, [&](int, auto numbers, auto n) {
        for (int i = 0; i < n.count; i++) exponentials += expf(numbers.at[i] - origin(max));
    });
    const f64 sum = block_sum((f64)exponentials);
    if (threadIdx.x == 0) {
        parts[(i64)row * parts_a_row + part_first + blockIdx.x] =
            Part{max, likeliest == NOWHERE ? likeliest : likeliest + first, sum};
    }
}

// From the parts of each row: nll, -log p(target) in nats; the likeliest token; stats [rows, 2], the largest logit and
// 1 over the sum of the exponentials. Launch: a warp a row, whole warps.
KERNEL cross_entropy_judge(const Part* parts, const f32* target_logits, const u32* targets, f64* nll, u32* likeliest,
                           f32* stats, int rows, int parts_a_row) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    parts += (i64)row * parts_a_row;
    f32 max = -INFINITE;
    u32 token = NOWHERE;
    for (int i = lane; i < parts_a_row; i += 32) take_larger(max, token, parts[i].max, parts[i].likeliest);
    for (int distance = 16; distance > 0; distance /= 2) {
        const f32 other = __shfl_xor_sync(0xffffffffu, max, distance);
        take_larger(max, token, other, __shfl_xor_sync(0xffffffffu, token, distance));
    }
    f64 sum = 0.0;
    for (int i = lane; i < parts_a_row; i += 32) sum += parts[i].sum * exp((f64)parts[i].max - (f64)origin(max));
    sum = warp_sum(sum);
    if (lane != 0) return;
    nll[row] = targets[row] == NOWHERE ? 0.0 : (f64)max + log(sum) - (f64)target_logits[row];
    likeliest[row] = token == NOWHERE ? 0 : token;
    stats[2 * row] = max;
    stats[2 * row + 1] = (f32)(1.0 / sum);
}

// gradient and narrow = scale · (softmax - 1 at the target), `scale` being one number on the device; gradient may be
// the logits. Launch: grid (parts of the tokens, rows).
template <class T>
static __device__ void cross_entropy_gradient(const f32* logits, const f32* stats, const u32* targets, const f32* scale,
                                              f32* gradient, T* narrow, int vocabulary, int first) {
    const int row = blockIdx.y;
    const i64 start = (i64)row * vocabulary;
    const f32 max = stats[2 * row], factor = *scale * stats[2 * row + 1];
    const bool padding = targets[row] == NOWHERE;
    const u32 target = targets[row] - first;
    each_logit(logits + start, vocabulary, [&](int token, auto numbers, auto n) {
        for (int i = 0; i < n.count; i++) {
            const f32 p = expf(numbers.at[i] - max) * factor;
            numbers.at[i] = padding ? 0.0f : token + i == target ? p - *scale : p;
        }
        store(gradient, start + token, numbers);
        store(narrow, start + token, numbers);
    });
}

#define CROSS_ENTROPY_GRADIENT(T)                                                                                      \
    KERNEL cross_entropy_gradient_##T(const f32* logits, const f32* stats, const u32* targets, const f32* scale,       \
                                      f32* gradient, T* narrow, int vocabulary, int first) {                           \
        cross_entropy_gradient(logits, stats, targets, scale, gradient, narrow, vocabulary, first);                    \
    }
EACH_FORMAT(CROSS_ENTROPY_GRADIENT)
