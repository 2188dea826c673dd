// z[i] = R[row[i]] h[i]: every row of a batch rotated by its own adapter. The twin of `rows.rotate_rows_loop`.
#include "inference.h"

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

// Rotate h[0, n), the outputs from `offset` on of one row, in place or into z. scratch [n] if there are several sizes.
void rk_rotate_row(const float *h, float *z, const Rotations *r, int64_t slot, ptrdiff_t offset, ptrdiff_t n,
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

// h [num_rows, d] with h_stride between rows, z [num_rows, d] contiguous, which may be h. Returns what bad_row does.
#define DEFINE_ROTATE(T)                                                                                              \
    static void rotate_range_##T(const T *h, T *z, const int64_t *rows, ptrdiff_t first, ptrdiff_t last, ptrdiff_t d, \
                                 ptrdiff_t h_stride, const Rotations *r) {                                            \
        const ptrdiff_t chunk = chunk_of(r) < d ? chunk_of(r) : d;                                                    \
        float wide[sizeof(T) == 4 ? 1 : chunk], scratch[r->num_sizes == 1 ? 1 : chunk];                               \
        for (ptrdiff_t i = first; i < last; i++) {                                                                    \
            for (ptrdiff_t c = 0; c < d; c += chunk) {                                                                \
                const ptrdiff_t n = d - c < chunk ? d - c : chunk;                                                    \
                const T *source = h + i * h_stride + c;                                                               \
                T *target = z + i * d + c;                                                                            \
                if (sizeof(T) == 4) {                                                                                 \
                    rk_rotate_row((const float *)source, (float *)target, r, rows[i], c, n, scratch);                 \
                } else {                                                                                              \
                    for (ptrdiff_t j = 0; j < n; j++) wide[j] = widen_##T(source[j]);                                 \
                    rk_rotate_row(wide, wide, r, rows[i], c, n, scratch);                                             \
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

DEFINE_ROTATE(f32)
DEFINE_ROTATE(bf16)
DEFINE_ROTATE(f16)
