// Keys and values in pages: storing them, and the attention of one new token of each request.
#include "inference.h"

// Store one token's key and value. Keys are kept transposed, [head_dim, PAGE], so that scores need no horizontal sums.
void rk_store(const float *k, const float *v, float *keys, float *values, const int64_t *places, ptrdiff_t num_tokens,
              ptrdiff_t num_heads, ptrdiff_t head_dim, ptrdiff_t token_stride, ptrdiff_t head_stride) {
    for (ptrdiff_t i = 0; i < num_tokens; i++) {
        const int64_t page = places[i] / PAGE, at = places[i] % PAGE;
        for (ptrdiff_t h = 0; h < num_heads; h++) {
            const float *source_k = k + i * token_stride + h * head_stride;
            const float *source_v = v + i * token_stride + h * head_stride;
            float *target = keys + (page * num_heads + h) * head_dim * PAGE + at;
            for (ptrdiff_t j = 0; j < head_dim; j++) target[j * PAGE] = source_k[j];
            memcpy(values + ((page * num_heads + h) * PAGE + at) * head_dim, source_v, head_dim * sizeof(float));
        }
    }
}

// out[i, h] = softmax(scale * q[i, h] K^T, softcap) V over the cached positions (last[i] - window, last[i]] of token i, or
// all up to last[i] if window is 0.
// q [tokens, heads, head_dim] with strides; out contiguous; scratch [tokens * heads, s->longest].
void rk_attend(const DecodeStep *s, const float *q, float *out, const float *keys, const float *values,
               ptrdiff_t num_heads, ptrdiff_t num_kv_heads, ptrdiff_t head_dim, ptrdiff_t token_stride,
               ptrdiff_t head_stride, float scale, float softcap, ptrdiff_t window, float *scratch) {
    const ptrdiff_t shared = num_heads / num_kv_heads;  // query heads that read the same keys
    _Pragma("omp parallel for schedule(dynamic, 1) num_threads(s->num_threads)")
    for (ptrdiff_t item = 0; item < s->count * num_heads; item++) {
        const ptrdiff_t i = item / num_heads, h = item % num_heads, kv = h / shared;
        const float *query = q + i * token_stride + h * head_stride;
        float *scores = scratch + item * s->longest, *target = out + (i * num_heads + h) * head_dim;
        const int64_t *table = s->tables + i * s->table_stride;
        const int64_t last = s->last[i], first = window && last >= window ? last + 1 - window : 0;
        const ptrdiff_t begin = first / PAGE, end = last / PAGE + 1;
        vec best = (vec){0} - INFINITY;
        for (ptrdiff_t p = begin; p < end; p++) {
            const float *key = keys + (table[p] * num_kv_heads + kv) * head_dim * PAGE;
            vec even = {0}, odd = {0};
            for (ptrdiff_t j = 0; j + 1 < head_dim; j += 2) {
                even += *(const vec *)(key + j * PAGE) * query[j];
                odd += *(const vec *)(key + (j + 1) * PAGE) * query[j + 1];
            }
            if (head_dim & 1) even += *(const vec *)(key + (head_dim - 1) * PAGE) * query[head_dim - 1];
            vec score = (even + odd) * scale;
            if (softcap > 0)
                for (int lane = 0; lane < LANES; lane++) score[lane] = softcap * tanhf(score[lane] / softcap);
            if (p == begin || p == end - 1)
                for (int lane = 0; lane < LANES; lane++) {
                    const ptrdiff_t position = p * PAGE + lane;
                    if (position < first || position > last) score[lane] = -INFINITY;
                }
            *(vec *)(scores + (p - begin) * PAGE) = score;
            best = choose(score > best, score, best);
        }
        float top = best[0];
        for (int lane = 1; lane < LANES; lane++) top = best[lane] > top ? best[lane] : top;
        vec sums = {0};
        for (ptrdiff_t p = 0; p < end - begin; p++) {
            const vec weight = exp_lanes(*(vec *)(scores + p * PAGE) - top);
            *(vec *)(scores + p * PAGE) = weight;
            sums += weight;
        }
        float total = 0;
        for (int lane = 0; lane < LANES; lane++) total += sums[lane];
        for (ptrdiff_t j = 0; j < head_dim; j++) target[j] = 0;
        for (ptrdiff_t p = begin; p < end; p++) {
            const float *value = values + (table[p] * num_kv_heads + kv) * PAGE * head_dim;
            const float *weight = scores + (p - begin) * PAGE;
            const ptrdiff_t count = last - p * PAGE + 1 < PAGE ? last - p * PAGE + 1 : PAGE;
            for (ptrdiff_t lane = 0; lane < count; lane++)
                for (ptrdiff_t j = 0; j < head_dim; j++) target[j] += weight[lane] * value[lane * head_dim + j];
        }
        const float inverse = 1.0f / total;
        for (ptrdiff_t j = 0; j < head_dim; j++) target[j] *= inverse;
    }
}
