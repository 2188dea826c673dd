// The small operations of Llama-like blocks: RMS norm, rotary embedding, gating.
#include "inference.h"

// y[i] = weight * x[i] / sqrt(mean(x[i]^2) + eps), float32
void rk_rms_norm(const float *x, const float *weight, float *y, ptrdiff_t num_rows, ptrdiff_t d, float eps,
                 int num_threads) {
    _Pragma("omp parallel for schedule(static) num_threads(num_threads) if (worth(num_threads, num_rows * d))")
    for (ptrdiff_t i = 0; i < num_rows; i++) {
        const float *restrict in = x + i * d;
        float *restrict out = y + i * d;
        vec sums = {0};
        ptrdiff_t j = 0;
        for (; j + LANES <= d; j += LANES) sums += *(const vec *)(in + j) * *(const vec *)(in + j);
        float total = 0;
        for (int lane = 0; lane < LANES; lane++) total += sums[lane];
        for (; j < d; j++) total += in[j] * in[j];
        const float scale = 1.0f / sqrtf(total / d + eps);
        for (j = 0; j < d; j++) out[j] = weight[j] * (in[j] * scale);
    }
}

// x [tokens, heads, head_dim] turned in place by cos and sin [tokens, head_dim], transformers' halves
void rk_rope(float *x, const float *cosine, const float *sine, ptrdiff_t num_tokens, ptrdiff_t num_heads,
             ptrdiff_t head_dim, int num_threads) {
    const ptrdiff_t half = head_dim / 2, width = num_heads * head_dim;
    _Pragma("omp parallel for schedule(static) num_threads(num_threads) if (worth(num_threads, num_tokens * width))")
    for (ptrdiff_t i = 0; i < num_tokens; i++) {
        const float *restrict c = cosine + i * head_dim, *restrict s = sine + i * head_dim;
        for (ptrdiff_t h = 0; h < num_heads; h++) {
            float *restrict head = x + i * width + h * head_dim;
            for (ptrdiff_t j = 0; j < half; j++) {
                const float low = head[j], high = head[j + half];
                head[j] = low * c[j] - high * s[j];
                head[j + half] = high * c[j + half] + low * s[j + half];
            }
        }
    }
}

static inline vec silu_lanes(vec x) {
    const ivec negative = x < 0.0f;
    const vec e = exp_lanes(choose(negative, x, -x));
    return x * choose(negative, e, (vec){0} + 1.0f) / (e + 1.0f);
}

// out = silu(gate) * up, each of n elements; out may be gate
void rk_silu_multiply(const float *gate, const float *up, float *out, ptrdiff_t n, int num_threads) {
    const ptrdiff_t whole = n / LANES;
    _Pragma("omp parallel for schedule(static) num_threads(num_threads) if (worth(num_threads, n))")
    for (ptrdiff_t i = 0; i < whole; i++)
        *(vec *)(out + i * LANES) = silu_lanes(*(const vec *)(gate + i * LANES)) * *(const vec *)(up + i * LANES);
    vec last = {0};
    for (ptrdiff_t i = whole * LANES; i < n; i++) last[i - whole * LANES] = gate[i];
    last = silu_lanes(last);
    for (ptrdiff_t i = whole * LANES; i < n; i++) out[i] = last[i - whole * LANES] * up[i];
}
