// What the kernels of inference share. `native.py` mirrors the structures and binds the functions.
//
//   rotations.c      rk_rotate_*       z[i] = R[row[i]] h[i]                mixed rows, several group sizes
//   linear.c         rk_linear         y[i] = R[row[i]] (W x[i] + bias)     W packed in panels of PANEL outputs
//   elementwise.c    rk_rms_norm, rk_rope, rk_silu_multiply
//   attention.c      rk_store, rk_attend                                    keys and values in pages
//   decoder_layer.c  rk_decode_layer   a whole Llama-like layer, made of the ones above
//
// Every row is computed in the same order of operations whatever else is in the batch.
#pragma once
#include "vectors.h"

#define CHUNK 2048  // outputs handled at a time: the scratch of the 16-bit types and of several group sizes
#define PAGE 16     // positions in a page of the cache: the scores of one page are one vector

typedef struct {  // one layer's rotations as the bank holds them: a[slot], then one plane of b per group size
    const float *a, *b;
    ptrdiff_t a_stride, b_stride, plane_stride;  // floats between slots of a, slots of b, planes of b
    const int64_t *group_sizes;
    ptrdiff_t num_sizes, unit, num_slots;        // unit: the least common multiple of the group sizes
} Rotations;

enum { STORED_F32, STORED_BF16, STORED_I8 };

typedef struct {  // a packed linear layer, as PackedLinear holds it
    const void *packed;          // [ceil(num_outputs / PANEL), num_inputs, PANEL]
    const float *scale, *bias;   // scale: one for each output of a panel, int8 only; both may be NULL
    ptrdiff_t num_outputs, num_inputs, stored;
    const Rotations *rotations;  // NULL if the bank has none for this layer
} Linear;

typedef struct {  // a Llama-like layer
    const Linear *q, *k, *v, *o, *gate, *up, *down;
    const float *attention_norm, *mlp_norm;
    float attention_eps, mlp_eps, scale;
    float *keys, *values;  // its pages
    ptrdiff_t num_heads, num_kv_heads, head_dim;
    ptrdiff_t window;      // positions that a token attends to, itself included; 0: all
} DecoderLayer;

typedef struct {  // one new token of each of `count` requests
    ptrdiff_t count;
    const int64_t *rows;    // [count] slots of the bank; NULL: base requests only
    const int64_t *places;  // [count] page * PAGE + offset: where the token's key and value go
    const int64_t *tables;  // [count, table_stride] each request's pages
    const int64_t *last;    // [count] position of the token, the last that it attends to
    ptrdiff_t table_stride, longest;  // longest: room for one head's scores
    int num_threads;
} DecodeStep;

// 0, or 1 + the index of the first row that names no slot.
static inline ptrdiff_t bad_row(const Rotations *r, const int64_t *rows, ptrdiff_t num_rows) {
    for (ptrdiff_t i = 0; i < num_rows; i++)
        if (rows[i] < 0 || rows[i] >= r->num_slots) return i + 1;
    return 0;
}

// Outputs handled at a time: whole groups of every size, CHUNK of them or a little fewer.
static inline ptrdiff_t chunk_of(const Rotations *r) {
    if (r->unit >= CHUNK) return r->unit;
    return CHUNK / r->unit * r->unit;
}

void rk_rotate_row(const float *h, float *z, const Rotations *r, int64_t slot, ptrdiff_t offset, ptrdiff_t n,
                   float *scratch);
ptrdiff_t rk_linear(const Linear *l, const float *x, float *y, ptrdiff_t num_rows, const int64_t *rows,
                    int num_threads);
void rk_rms_norm(const float *x, const float *weight, float *y, ptrdiff_t num_rows, ptrdiff_t d, float eps,
                 int num_threads);
void rk_rope(float *x, const float *cosine, const float *sine, ptrdiff_t num_tokens, ptrdiff_t num_heads,
             ptrdiff_t head_dim, int num_threads);
void rk_silu_multiply(const float *gate, const float *up, float *out, ptrdiff_t n, int num_threads);
void rk_store(const float *k, const float *v, float *keys, float *values, const int64_t *places, ptrdiff_t num_tokens,
              ptrdiff_t num_heads, ptrdiff_t head_dim, ptrdiff_t token_stride, ptrdiff_t head_stride);
void rk_attend(const DecodeStep *s, const float *q, float *out, const float *keys, const float *values,
               ptrdiff_t num_heads, ptrdiff_t num_kv_heads, ptrdiff_t head_dim, ptrdiff_t token_stride,
               ptrdiff_t head_stride, float scale, float softcap, ptrdiff_t window, float *scratch);
