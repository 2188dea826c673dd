// A whole Llama-like decoder layer in one call, for steps in which every request computes one token.
#include "inference.h"

static void apply(const Linear *l, const float *x, float *y, const DecodeStep *s) {
    rk_linear(l, x, y, s->count, s->rows, s->num_threads);
}

// Floats of `work` that rk_decode_layer writes.
ptrdiff_t rk_decode_work(const DecoderLayer *l, const DecodeStep *s) {
    return s->count * (2 * l->q->num_inputs + 2 * l->q->num_outputs + 2 * l->k->num_outputs + 2 * l->gate->num_outputs +
                       l->num_heads * s->longest);
}

// y = h + down(silu(gate(n)) * up(n)) with n = norm(h) and h = x + o(attention(q(m), k(m), v(m))) with m = norm(x);
// x and y [count, d], cosine and sine [count, head_dim], work as long as rk_decode_work says.
// The same operators in the same order as apart, so the result has the same bits.
void rk_decode_layer(const DecoderLayer *l, const DecodeStep *s, const float *x, float *y, const float *cosine,
                     const float *sine, float *work) {
    const ptrdiff_t M = s->count, d = l->q->num_inputs, D = l->q->num_outputs, E = l->k->num_outputs;
    const ptrdiff_t I = l->gate->num_outputs, head_dim = l->head_dim;
    float *normed = work, *h = normed + M * d, *q = h + M * d, *attended = q + M * D, *k = attended + M * D;
    float *v = k + M * E, *gate = v + M * E, *up = gate + M * I, *scores = up + M * I;
    rk_rms_norm(x, l->attention_norm, normed, M, d, l->attention_eps, s->num_threads);
    apply(l->q, normed, q, s);
    apply(l->k, normed, k, s);
    apply(l->v, normed, v, s);
    rk_rope(q, cosine, sine, M, l->num_heads, head_dim, s->num_threads);
    rk_rope(k, cosine, sine, M, l->num_kv_heads, head_dim, s->num_threads);
    rk_store(k, v, l->keys, l->values, s->places, M, l->num_kv_heads, head_dim, E, head_dim);
    rk_attend(s, q, attended, l->keys, l->values, l->num_heads, l->num_kv_heads, head_dim, D, head_dim, l->scale, 0,
              l->window, scores);
    apply(l->o, attended, h, s);
    for (ptrdiff_t i = 0; i < M * d; i++) h[i] += x[i];
    rk_rms_norm(h, l->mlp_norm, normed, M, d, l->mlp_eps, s->num_threads);
    apply(l->gate, normed, gate, s);
    apply(l->up, normed, up, s);
    rk_silu_multiply(gate, up, gate, M * I, s->num_threads);
    apply(l->down, gate, y, s);
    for (ptrdiff_t i = 0; i < M * d; i++) y[i] += h[i];
}
