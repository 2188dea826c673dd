// The fused CPU operators of roadkit, compiled once by `native.py` with the machine's own C compiler.
//
//   rk_rotate_*   z[i] = R[row[i]] h[i]                      mixed rows, several group sizes
//   rk_linear_*   y[i] = R[row[i]] (W x[i] + bias)           W packed in panels of PANEL outputs
//   rk_attend     one new token per work item against paged keys and values
//   rk_decode_layer    one new token of each request through a whole Llama-like layer, made of the ones above
//
// Vectors are GCC/Clang vector extensions, so the same source serves AVX-512, AVX2 and Arm.
// Every row is computed in the same order of operations whatever else is in the batch.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define PANEL 32
#define TILE 12          // rows of x that share one pass over a panel: 24 accumulators + 2 weights fit 32 registers
#define PREFETCH 4096    // floats ahead: a panel streams from memory at batch sizes below ~16

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint16_t half_vec __attribute__((vector_size(32), aligned(2)));
typedef uint32_t word_vec __attribute__((vector_size(64), aligned(4)));

typedef int16_t short_vec __attribute__((vector_size(32), aligned(2)));
typedef int8_t byte_vec __attribute__((vector_size(16), aligned(1)));

typedef struct { uint16_t bits; } bf16;
typedef int8_t i8;
typedef _Float16 f16;

static inline float widen_f32(float x) { return x; }
static inline float narrow_f32(float x) { return x; }
static inline float widen_f16(f16 x) { return (float)x; }
static inline f16 narrow_f16(float x) { return (f16)x; }
static inline float widen_bf16(bf16 x) {
    uint32_t word = (uint32_t)x.bits << 16;
    float out;
    memcpy(&out, &word, 4);
    return out;
}
static inline bf16 narrow_bf16(float x) {  // round to nearest even; NaN stays NaN
    uint32_t word;
    memcpy(&word, &x, 4);
    if ((word & 0x7fffffff) > 0x7f800000) return (bf16){(uint16_t)((word >> 16) | 0x40)};
    return (bf16){(uint16_t)((word + 0x7fff + ((word >> 16) & 1)) >> 16)};
}

// Are `n` elements worth a second thread? Below, waking it costs more than it saves.
static inline int worth(int num_threads, ptrdiff_t n) { return num_threads > 1 && n >= 32768; }

// ---- rotation -------------------------------------------------------------------------------------------------

// z = a*h + b*swap(h) over `n` outputs that hold whole groups of g; z may be h.
static void rotate_span(const float *h, float *z, const float *restrict a, const float *restrict b, ptrdiff_t n,
                        ptrdiff_t g) {
    const ptrdiff_t half = g / 2;
    ptrdiff_t i = 0;
    if (half < LANES && (half & (half - 1)) == 0) {  // pairs lie inside one vector: exchange lanes i and i ^ half
        ivec exchange;
        for (int lane = 0; lane < LANES; lane++) exchange[lane] = lane ^ (int)half;
        for (; i + LANES <= n; i += LANES) {
            const vec x = *(const vec *)(h + i);
            *(vec *)(z + i) = *(const vec *)(a + i) * x + *(const vec *)(b + i) * __builtin_shuffle(x, exchange);
        }
    }
    for (; i < n; i += g) {
        ptrdiff_t j = 0;
        for (; j + LANES <= half; j += LANES) {
            const float *lo = h + i + j, *hi = lo + half;
            const vec x = *(const vec *)lo, y = *(const vec *)hi;
            *(vec *)(z + i + j) = *(const vec *)(a + i + j) * x + *(const vec *)(b + i + j) * y;
            *(vec *)(z + i + j + half) = *(const vec *)(a + i + j + half) * y + *(const vec *)(b + i + j + half) * x;
        }
        for (; j < half; j++) {
            const float x = h[i + j], y = h[i + j + half];
            z[i + j] = a[i + j] * x + b[i + j] * y;
            z[i + j + half] = a[i + j + half] * y + b[i + j + half] * x;
        }
    }
}

// z += b*swap(h); z and h do not overlap.
static void add_swapped(const float *restrict h, float *restrict z, const float *restrict b, ptrdiff_t n, ptrdiff_t g) {
    const ptrdiff_t half = g / 2;
    for (ptrdiff_t i = 0; i < n; i += g)
        for (ptrdiff_t j = 0; j < half; j++) {
            z[i + j] += b[i + j] * h[i + j + half];
            z[i + j + half] += b[i + j + half] * h[i + j];
        }
}

// One row's rotations as the bank holds them: a[slot], then one plane of b per group size.
typedef struct {
    const float *a, *b;
    ptrdiff_t a_stride, b_stride, plane_stride;  // floats between slots of a, slots of b, planes of b
    const int64_t *group_sizes;
    ptrdiff_t num_sizes, unit, num_slots;        // unit: the least common multiple of the group sizes
} Rotations;

// 0, or 1 + the index of the first row that names no slot.
static ptrdiff_t bad_row(const Rotations *r, const int64_t *rows, ptrdiff_t num_rows) {
    for (ptrdiff_t i = 0; i < num_rows; i++)
        if (rows[i] < 0 || rows[i] >= r->num_slots) return i + 1;
    return 0;
}

#define CHUNK 2048  // outputs handled at a time: the scratch of the 16-bit types and of several group sizes

// Rotate h[0, n) of one row in place or into z, float32.
static void rotate_row(const float *h, float *z, const Rotations *r, int64_t slot, ptrdiff_t offset, ptrdiff_t n,
                       float *scratch) {
    const float *a = r->a + slot * r->a_stride + offset, *b = r->b + slot * r->b_stride + offset;
    if (r->num_sizes == 1) {
        rotate_span(h, z, a, b, n, r->group_sizes[0]);
        return;
    }
    memcpy(scratch, h, n * sizeof(float));
    for (ptrdiff_t i = 0; i < n; i++) z[i] = a[i] * scratch[i];
    for (ptrdiff_t k = 0; k < r->num_sizes; k++)
        add_swapped(scratch, z, b + k * r->plane_stride, n, r->group_sizes[k]);
}

#define DEFINE_ROTATE(T)                                                                                              \
    static void rotate_range_##T(const T *h, T *z, const int64_t *rows, ptrdiff_t first, ptrdiff_t last, ptrdiff_t d, \
                                 ptrdiff_t h_stride, const Rotations *r) {                                            \
        const ptrdiff_t whole = r->unit >= CHUNK ? r->unit : CHUNK / r->unit * r->unit, chunk = whole < d ? whole : d; \
        float wide[sizeof(T) == 4 ? 1 : chunk], scratch[r->num_sizes == 1 ? 1 : chunk];                               \
        for (ptrdiff_t i = first; i < last; i++) {                                                                    \
            for (ptrdiff_t c = 0; c < d; c += chunk) {                                                                \
                const ptrdiff_t n = d - c < chunk ? d - c : chunk;                                                    \
                const T *source = h + i * h_stride + c;                                                               \
                T *target = z + i * d + c;                                                                            \
                if (sizeof(T) == 4) {                                                                                 \
                    rotate_row((const float *)source, (float *)target, r, rows[i], c, n, scratch);                    \
                } else {                                                                                              \
                    for (ptrdiff_t j = 0; j < n; j++) wide[j] = widen_##T(source[j]);                                 \
                    rotate_row(wide, wide, r, rows[i], c, n, scratch);                                                \
                    for (ptrdiff_t j = 0; j < n; j++) target[j] = narrow_##T(wide[j]);                                \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    ptrdiff_t rk_rotate_##T(const T *h, T *z, const int64_t *rows, ptrdiff_t num_rows, ptrdiff_t d,                   \
                            ptrdiff_t h_stride, const Rotations *r, int num_threads) {                                \
        const ptrdiff_t bad = bad_row(r, rows, num_rows);                                                             \
        if (bad) return bad;                                                                                          \
        if (!worth(num_threads, num_rows * d)) { /* even a team of one costs a microsecond to gather */               \
            rotate_range_##T(h, z, rows, 0, num_rows, d, h_stride, r);                                                \
            return 0;                                                                                                 \
        }                                                                                                             \
        _Pragma("omp parallel for schedule(static) num_threads(num_threads)")                                         \
        for (int part = 0; part < num_threads; part++)                                                                \
            rotate_range_##T(h, z, rows, num_rows * part / num_threads, num_rows * (part + 1) / num_threads, d,       \
                             h_stride, r);                                                                            \
        return 0;                                                                                                     \
    }

typedef float f32;
DEFINE_ROTATE(f32)
DEFINE_ROTATE(bf16)
DEFINE_ROTATE(f16)

// ---- RMS normalisation ------------------------------------------------------------------------------------------

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

// ---- packed linear --------------------------------------------------------------------------------------------

static inline void load_f32(const float *p, vec *w0, vec *w1) {
    __builtin_prefetch(p + PREFETCH, 0, 2);
    __builtin_prefetch(p + PREFETCH + LANES, 0, 2);
    *w0 = *(const vec *)p;
    *w1 = *(const vec *)(p + LANES);
}
static inline vec widen_lanes(const uint16_t *p) {
    const word_vec words = __builtin_convertvector(*(const half_vec *)p, word_vec) << 16;
    return (vec)words;
}
static inline void load_bf16(const bf16 *p, vec *w0, vec *w1) {
    __builtin_prefetch(p + PREFETCH, 0, 2);
    *w0 = widen_lanes(&p->bits);
    *w1 = widen_lanes(&p->bits + LANES);
}

static inline vec widen_bytes(const i8 *p) {  // doubling the width at each step, or GCC goes through scalars
    const short_vec shorts = __builtin_convertvector(*(const byte_vec *)p, short_vec);
    return __builtin_convertvector(__builtin_convertvector(shorts, ivec), vec);
}
static inline void load_i8(const i8 *p, vec *w0, vec *w1) {
    __builtin_prefetch(p + PREFETCH, 0, 2);
    *w0 = widen_bytes(p);
    *w1 = widen_bytes(p + LANES);
}

// y[0, m) [.., PANEL] = x[0, m) [.., K] · panel [K, PANEL], times `scale` (int8 only); `columns` < PANEL only in the last panel
#define DEFINE_TILE(T, m)                                                                                             \
    static void tile_##T##_##m(const float *restrict x, const T *restrict panel, const float *restrict scale,         \
                               const float *restrict bias, float *restrict y, ptrdiff_t K, ptrdiff_t y_stride,        \
                               ptrdiff_t columns) {                                                                   \
        vec lo[m], hi[m];                                                                                             \
        for (int i = 0; i < m; i++) lo[i] = hi[i] = (vec){0};                                                         \
        for (ptrdiff_t k = 0; k < K; k++) {                                                                           \
            vec w0, w1;                                                                                               \
            load_##T(panel + k * PANEL, &w0, &w1);                                                                    \
            _Pragma("GCC unroll 16") for (int i = 0; i < m; i++) {                                                    \
                const float v = x[i * K + k];                                                                         \
                lo[i] += w0 * v;                                                                                      \
                hi[i] += w1 * v;                                                                                      \
            }                                                                                                         \
        }                                                                                                             \
        for (int i = 0; i < m; i++) {                                                                                 \
            float *out = y + i * y_stride, last[PANEL];                                                               \
            if (scale) lo[i] *= *(const vec *)scale, hi[i] *= *(const vec *)(scale + LANES);                          \
            if (columns == PANEL) {                                                                                   \
                *(vec *)out = bias ? lo[i] + *(const vec *)bias : lo[i];                                              \
                *(vec *)(out + LANES) = bias ? hi[i] + *(const vec *)(bias + LANES) : hi[i];                          \
            } else {                                                                                                  \
                *(vec *)last = lo[i];                                                                                 \
                *(vec *)(last + LANES) = hi[i];                                                                       \
                for (ptrdiff_t c = 0; c < columns; c++) out[c] = bias ? last[c] + bias[c] : last[c];                  \
            }                                                                                                         \
        }                                                                                                             \
    }
#define EVERY_TILE(DO, T) \
    DO(T, 1) DO(T, 2) DO(T, 3) DO(T, 4) DO(T, 5) DO(T, 6) DO(T, 7) DO(T, 8) DO(T, 9) DO(T, 10) DO(T, 11) DO(T, 12)
#define TILE_NAME(T, m) tile_##T##_##m,

// x [M, K] float32 contiguous; packed [ceil(N / PANEL), K, PANEL]; scale NULL, or one a panel column; y [M, N] float32
// contiguous; r == NULL: no rotation.
#define DEFINE_LINEAR(T)                                                                                              \
    EVERY_TILE(DEFINE_TILE, T)                                                                                        \
    typedef void (*tile_##T)(const float *, const T *, const float *, const float *, float *, ptrdiff_t, ptrdiff_t,   \
                             ptrdiff_t);                                                                              \
    static const tile_##T tiles_##T[TILE] = {EVERY_TILE(TILE_NAME, T)};                                               \
    ptrdiff_t rk_linear_##T(const float *x, const T *packed, const float *scale, const float *bias, float *y,         \
                            ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const int64_t *rows, const Rotations *r,           \
                            int num_threads) {                                                                        \
        const ptrdiff_t bad = r ? bad_row(r, rows, M) : 0;                                                            \
        if (bad) return bad;                                                                                          \
        const ptrdiff_t num_panels = (N + PANEL - 1) / PANEL, num_tiles = (M + TILE - 1) / TILE;                      \
        const ptrdiff_t chunk = !r ? 1 : r->unit >= CHUNK ? r->unit : CHUNK / r->unit * r->unit;                      \
        const ptrdiff_t per_row = r ? (N + chunk - 1) / chunk : 0;                                                    \
        _Pragma("omp parallel num_threads(num_threads) if (num_threads > 1)") {                                       \
            _Pragma("omp for schedule(static)") for (ptrdiff_t p = 0; p < num_panels; p++) {                          \
                const ptrdiff_t n = p * PANEL, columns = N - n < PANEL ? N - n : PANEL;                               \
                for (ptrdiff_t t = 0; t < num_tiles; t++) {                                                           \
                    const ptrdiff_t m = M * t / num_tiles, count = M * (t + 1) / num_tiles - m;                       \
                    tiles_##T[count - 1](x + m * K, packed + p * K * PANEL, scale ? scale + n : NULL,                 \
                                         bias ? bias + n : NULL, y + m * N + n, K, N, columns);                       \
                }                                                                                                     \
            }                                                                                                         \
            if (r) {                                                                                                  \
                float scratch[r->num_sizes == 1 ? 1 : chunk];                                                         \
                _Pragma("omp for schedule(static)") for (ptrdiff_t i = 0; i < M * per_row; i++) {                     \
                    const ptrdiff_t row = i / per_row, first = i % per_row * chunk;                                   \
                    const ptrdiff_t n = N - first < chunk ? N - first : chunk;                                        \
                    float *z = y + row * N + first;                                                                   \
                    rotate_row(z, z, r, rows[row], first, n, scratch);                                                \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
        return 0;                                                                                                     \
    }
DEFINE_LINEAR(f32)
DEFINE_LINEAR(bf16)
DEFINE_LINEAR(i8)

// ---- rotary embedding, gating, paged attention -----------------------------------------------------------------

static inline vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

static inline vec exp_lanes(vec x) {  // relative error below 2e-7 for x <= 0; underflows to 0
    const ivec low = x < -87.0f;
    x = choose(low, (vec){0} - 87.0f, x);
    const vec scaled = x * 1.44269504088896341f;
    const ivec whole = __builtin_convertvector(scaled - 0.5f, ivec);  // x <= 0: truncation rounds to nearest
    const vec n = __builtin_convertvector(whole, vec);
    const vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const ivec bits = (whole + 127) << 23;
    return choose(low, (vec){0}, p * (vec)bits);
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

// Store one token's key and value. Keys are kept transposed, [head_dim, PAGE], so that scores need no horizontal sums.
#define PAGE 16
void rk_store(const float *k, const float *v, float *keys, float *values, const int64_t *slots, ptrdiff_t num_tokens,
              ptrdiff_t num_heads, ptrdiff_t head_dim, ptrdiff_t token_stride, ptrdiff_t head_stride) {
    for (ptrdiff_t i = 0; i < num_tokens; i++) {
        const int64_t page = slots[i] / PAGE, at = slots[i] % PAGE;
        for (ptrdiff_t h = 0; h < num_heads; h++) {
            const float *source_k = k + i * token_stride + h * head_stride;
            const float *source_v = v + i * token_stride + h * head_stride;
            float *target = keys + (page * num_heads + h) * head_dim * PAGE + at;
            for (ptrdiff_t j = 0; j < head_dim; j++) target[j * PAGE] = source_k[j];
            memcpy(values + ((page * num_heads + h) * PAGE + at) * head_dim, source_v, head_dim * sizeof(float));
        }
    }
}

// out[i, h] = softmax(scale · q[i, h] K^T, softcap) V over the cached positions [first[i], last[i]] of token i.
// q [tokens, heads, head_dim] with strides; out contiguous; page_table row of token i at tables + i * table_stride.
void rk_attend(const float *q, float *out, const float *keys, const float *values, const int64_t *tables,
               ptrdiff_t table_stride, const int64_t *first, const int64_t *last, ptrdiff_t num_tokens,
               ptrdiff_t num_heads, ptrdiff_t num_kv_heads, ptrdiff_t head_dim, ptrdiff_t token_stride,
               ptrdiff_t head_stride, float scale, float softcap, float *scratch, ptrdiff_t scratch_stride,
               int num_threads) {
    const ptrdiff_t shared = num_heads / num_kv_heads;  // query heads that read the same keys
    _Pragma("omp parallel for schedule(dynamic, 1) num_threads(num_threads)")
    for (ptrdiff_t item = 0; item < num_tokens * num_heads; item++) {
        const ptrdiff_t i = item / num_heads, h = item % num_heads, kv = h / shared;
        const float *query = q + i * token_stride + h * head_stride;
        float *scores = scratch + item * scratch_stride, *target = out + (i * num_heads + h) * head_dim;
        const int64_t *table = tables + i * table_stride;
        const ptrdiff_t begin = first[i] / PAGE, end = last[i] / PAGE + 1;
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
                    if (position < first[i] || position > last[i]) score[lane] = -INFINITY;
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
            const ptrdiff_t count = last[i] - p * PAGE + 1 < PAGE ? last[i] - p * PAGE + 1 : PAGE;
            for (ptrdiff_t lane = 0; lane < count; lane++)
                for (ptrdiff_t j = 0; j < head_dim; j++) target[j] += weight[lane] * value[lane * head_dim + j];
        }
        const float inverse = 1.0f / total;
        for (ptrdiff_t j = 0; j < head_dim; j++) target[j] *= inverse;
    }
}

// ---- a decoder layer --------------------------------------------------------------------------------------------

enum { STORED_F32, STORED_BF16, STORED_I8 };

typedef struct {  // a packed linear layer, as PackedLinear holds it
    const void *packed;
    const float *scale, *bias;
    ptrdiff_t num_outputs, num_inputs, stored;
    const Rotations *rotations;  // NULL where the bank has none for this layer
} Linear;

typedef struct {  // a Llama-like layer
    Linear q, k, v, o, gate, up, down;
    const float *attention_norm, *mlp_norm;
    float attention_eps, mlp_eps, scale;
    float *keys, *values;  // its pages
    ptrdiff_t num_heads, num_kv_heads, head_dim;
} DecoderLayer;

typedef struct {  // one new token of each request
    ptrdiff_t count;
    const int64_t *rows;  // slots of the bank; NULL: base requests only
    const int64_t *slots, *tables, *last;
    ptrdiff_t table_stride, longest;  // longest: room for one head's scores
    int num_threads;
} DecodeStep;

static void apply(const Linear *l, const float *x, float *y, const DecodeStep *s) {
    const Rotations *r = s->rows ? l->rotations : NULL;
    const ptrdiff_t M = s->count, N = l->num_outputs, K = l->num_inputs;
#define LINEAR(T) rk_linear_##T(x, l->packed, l->scale, l->bias, y, M, N, K, s->rows, r, s->num_threads)
    switch (l->stored) {
        case STORED_F32: LINEAR(f32); break;
        case STORED_BF16: LINEAR(bf16); break;
        case STORED_I8: LINEAR(i8); break;
    }
#undef LINEAR
}

// Floats of `work` that rk_decode_layer writes.
ptrdiff_t rk_decode_work(const DecoderLayer *l, const DecodeStep *s) {
    return s->count * (2 * l->q.num_inputs + 2 * l->q.num_outputs + 2 * l->k.num_outputs + 2 * l->gate.num_outputs +
                       l->num_heads * s->longest);
}

// y = h + down(silu(gate(n)) * up(n)) with n = norm(h) and h = x + o(attention(q(m), k(m), v(m))) with m = norm(x);
// x and y [count, d], `first` the first position each token attends to, cosine and sine [count, head_dim].
// The same operators in the same order as apart, so the result has the same bits.
void rk_decode_layer(const DecoderLayer *l, const DecodeStep *s, const float *x, float *y, const int64_t *first,
                     const float *cosine, const float *sine, float *work) {
    const ptrdiff_t M = s->count, d = l->q.num_inputs, D = l->q.num_outputs, E = l->k.num_outputs;
    const ptrdiff_t I = l->gate.num_outputs, head_dim = l->head_dim;
    float *normed = work, *h = normed + M * d, *q = h + M * d, *attended = q + M * D, *k = attended + M * D;
    float *v = k + M * E, *gate = v + M * E, *up = gate + M * I, *scores = up + M * I;
    rk_rms_norm(x, l->attention_norm, normed, M, d, l->attention_eps, s->num_threads);
    apply(&l->q, normed, q, s);
    apply(&l->k, normed, k, s);
    apply(&l->v, normed, v, s);
    rk_rope(q, cosine, sine, M, l->num_heads, head_dim, s->num_threads);
    rk_rope(k, cosine, sine, M, l->num_kv_heads, head_dim, s->num_threads);
    rk_store(k, v, l->keys, l->values, s->slots, M, l->num_kv_heads, head_dim, E, head_dim);
    rk_attend(q, attended, l->keys, l->values, s->tables, s->table_stride, first, s->last, M, l->num_heads,
              l->num_kv_heads, head_dim, D, head_dim, l->scale, 0, scores, s->longest, s->num_threads);
    apply(&l->o, attended, h, s);
    for (ptrdiff_t i = 0; i < M * d; i++) h[i] += x[i];
    rk_rms_norm(h, l->mlp_norm, normed, M, d, l->mlp_eps, s->num_threads);
    apply(&l->gate, normed, gate, s);
    apply(&l->up, normed, up, s);
    rk_silu_multiply(gate, up, gate, M * I, s->num_threads);
    apply(&l->down, gate, y, s);
    for (ptrdiff_t i = 0; i < M * d; i++) y[i] += h[i];
}
