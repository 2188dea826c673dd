// y[i] = R[row[i]] (W x[i] + bias): a packed linear layer, rotation included.
#include "inference.h"

#define PANEL 32       // outputs side by side in a panel
#define TILE 12        // rows of x that share one pass over a panel: 24 accumulators + 2 weights fit 32 registers
#define PREFETCH 4096  // floats ahead: a panel streams from memory at batch sizes below ~16

typedef uint16_t half_vec __attribute__((vector_size(32), aligned(2)));
typedef uint32_t word_vec __attribute__((vector_size(64), aligned(4)));
typedef int16_t short_vec __attribute__((vector_size(32), aligned(2)));
typedef int8_t byte_vec __attribute__((vector_size(16), aligned(1)));

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
#define EVERY_TILE(DO, T)                                                                                             \
    DO(T, 1) DO(T, 2) DO(T, 3) DO(T, 4) DO(T, 5) DO(T, 6) DO(T, 7) DO(T, 8) DO(T, 9) DO(T, 10) DO(T, 11) DO(T, 12)
#define TILE_NAME(T, m) tile_##T##_##m,

// x [M, num_inputs] and y [M, num_outputs] float32, contiguous; r == NULL: no rotation.
#define DEFINE_LINEAR(T)                                                                                              \
    EVERY_TILE(DEFINE_TILE, T)                                                                                        \
    typedef void (*tile_##T)(const float *, const T *, const float *, const float *, float *, ptrdiff_t, ptrdiff_t,   \
                             ptrdiff_t);                                                                              \
    static const tile_##T tiles_##T[TILE] = {EVERY_TILE(TILE_NAME, T)};                                               \
    static void linear_##T(const Linear *l, const float *x, float *y, ptrdiff_t M, const int64_t *rows,               \
                           const Rotations *r, int num_threads) {                                                     \
        const ptrdiff_t N = l->num_outputs, K = l->num_inputs;                                                        \
        const T *packed = l->packed;                                                                                  \
        const float *scale = l->scale, *bias = l->bias;                                                               \
        const ptrdiff_t num_panels = (N + PANEL - 1) / PANEL, num_tiles = (M + TILE - 1) / TILE;                      \
        const ptrdiff_t chunk = r ? chunk_of(r) : 1, per_row = r ? (N + chunk - 1) / chunk : 0;                       \
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
                    rk_rotate_row(z, z, r, rows[row], first, n, scratch);                                             \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }
DEFINE_LINEAR(f32)
DEFINE_LINEAR(bf16)
DEFINE_LINEAR(i8)

// rows == NULL, or a layer without rotations: W x + bias. Returns what bad_row does.
ptrdiff_t rk_linear(const Linear *l, const float *x, float *y, ptrdiff_t num_rows, const int64_t *rows,
                    int num_threads) {
    const Rotations *r = rows ? l->rotations : NULL;
    const ptrdiff_t bad = r ? bad_row(r, rows, num_rows) : 0;
    if (bad) return bad;
    switch (l->stored) {
        case STORED_F32: linear_f32(l, x, y, num_rows, rows, r, num_threads); break;
        case STORED_BF16: linear_bf16(l, x, y, num_rows, rows, r, num_threads); break;
        case STORED_I8: linear_i8(l, x, y, num_rows, rows, r, num_threads); break;
    }
    return 0;
}
