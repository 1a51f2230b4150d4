// Rotary positions: the two halves of a head turned against each other.
//
// A token's turns are the cosines and the sines of its position times each frequency: [tokens, 2, half], made once for
// all layers.

// Launch: a block a token.
KERNEL rotary_turns(const u32* positions, const f32* frequencies, f32* turns, int rows, int half) {
    if (blockIdx.x >= rows) return;
    f32* row = turns + (i64)blockIdx.x * 2 * half;
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const f32 angle = (f32)positions[blockIdx.x] * frequencies[i];
        row[i] = cosf(angle);
        row[half + i] = sinf(angle);
    }
}

// Turns `heads` heads of every row of x [rows, width] in place: the first begins at column `first`, each other one
// `step` behind the one before it. Row i is turned as token turn_of[i] (i without turn_of), and left alone where that
// is -1. `sign` is 1, or -1 for the gradient, which is turned back. Launch: a block a row.
KERNEL rotary(f32* x, const f32* turns, const u32* turn_of, int rows, int width, int first, int step, int heads,
              int half, f32 sign) {
    if (blockIdx.x >= rows) return;
    const u32 token = turn_of ? turn_of[blockIdx.x] : blockIdx.x;
    if (token == NOWHERE) return;
    const f32* turn = turns + (i64)token * 2 * half;
    f32* row = x + (i64)blockIdx.x * width + first;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        f32* a = row + i / half * step + i % half;
        f32* b = a + half;
        const f32 cosine = turn[i % half], sine = sign * turn[half + i % half], x = *a, y = *b;
        *a = x * cosine - y * sine;
        *b = y * cosine + x * sine;
    }
}
