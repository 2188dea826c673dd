// One adapter's rotation z[i] = a*h[i] + b*swap(h[i]) over n rows, forward and backward; built by `build.py`, bound by `native.py`.
//
//   lower    theta, alpha -> a, b and c = swap(b)                                the twin of `rotation.lower`
//   pass_*   out = a*g + b*swap(g),  s = sum_i g[i]*x[i],  t = sum_i g[i]*swap(x[i])      one pass over memory
//   chain    s, t -> the gradients of theta and alpha
//
// rk_forward_* is lower and a pass with g = h and no sums. rk_backward_* is lower, a pass with the incoming gradient g,
// with c for b and with x the input or the output of the forward pass, and chain. Rows are summed in blocks that do not
// depend on the number of threads, so the result does not either, and long sums lose less to rounding.
#include "vectors.h"

#define CHUNK 1024  // outputs handled at a time by the 16-bit types: their three float buffers stay in cache
#define AT(p) (*(vec *)(p))
#define IN(p) (*(const vec *)(p))

// ---- parameters -----------------------------------------------------------------------------------------------

enum { A_LO, B_LO, A_HI, B_HI };  // the entries of a block, alpha times (cos, -sin, cos, sin) of theta

// Where the parameters of each entry of pair j of the group that starts at output i lie. variant: 1, 2 or 4.
static inline void places(int variant, ptrdiff_t i, ptrdiff_t j, ptrdiff_t group, ptrdiff_t at[4]) {
    const ptrdiff_t half = group / 2;
    if (variant == 1) {
        at[A_LO] = at[B_LO] = at[A_HI] = at[B_HI] = i / 2 + j;
    } else if (variant == 2) {
        at[A_LO] = at[B_LO] = i + j;
        at[A_HI] = at[B_HI] = i + j + half;
    } else {
        at[A_LO] = 2 * i + j;
        at[A_HI] = 2 * i + j + half;
        at[B_LO] = 2 * i + j + group;
        at[B_HI] = 2 * i + j + half + group;
    }
}

// cos and sin of every entry's angle; entries that share a parameter share the work
static inline void angles(const float *theta, const ptrdiff_t at[4], float cosine[4], float sine[4]) {
    for (int k = 0; k < 4; k++) {
        const int known = k && at[k] == at[k - 1];
        cosine[k] = known ? cosine[k - 1] : cosf(theta[at[k]]);
        sine[k] = known ? sine[k - 1] : sinf(theta[at[k]]);
    }
}

// lowered [3, d] = a, b, swap(b). Returns whether h can be recomputed from z: in every block the singular values have
// a ratio of at most `limit` and the smaller is at least `scale` (within a factor of sqrt 2).
static int lower(const float *theta, const float *alpha, float *lowered, ptrdiff_t d, ptrdiff_t group, int variant,
                 float limit, float scale) {
    float *a = lowered, *b = a + d, *c = b + d, cosine[4], sine[4];
    int invertible = 1;
    for (ptrdiff_t i = 0; i < d; i += group)
        for (ptrdiff_t lo = i, hi = i + group / 2; lo < i + group / 2; lo++, hi++) {
            ptrdiff_t at[4];
            places(variant, i, lo - i, group, at);
            angles(theta, at, cosine, sine);
            a[lo] = alpha[at[A_LO]] * cosine[A_LO];
            a[hi] = alpha[at[A_HI]] * cosine[A_HI];
            b[lo] = c[hi] = -alpha[at[B_LO]] * sine[B_LO];
            b[hi] = c[lo] = alpha[at[B_HI]] * sine[B_HI];
            const float determinant = fabsf(a[lo] * a[hi] - b[lo] * b[hi]);
            const float frobenius = a[lo] * a[lo] + a[hi] * a[hi] + b[lo] * b[lo] + b[hi] * b[hi];
            invertible &= frobenius <= (limit + 1 / limit) * determinant;
            invertible &= 2 * determinant * determinant > scale * scale * frobenius;  // not 0 >= 0
        }
    return invertible;
}

// sums [2, d] = s, t. from_output: they were taken with z in place of h.
static void chain(const float *theta, const float *alpha, const float *lowered, const float *sums, float *d_theta,
                  float *d_alpha, ptrdiff_t d, ptrdiff_t group, int variant, int from_output) {
    const float *a = lowered, *b = a + d, *s = sums, *t = s + d;
    memset(d_theta, 0, d / 2 * variant * sizeof(float));
    memset(d_alpha, 0, d / 2 * variant * sizeof(float));
    for (ptrdiff_t i = 0; i < d; i += group)
        for (ptrdiff_t lo = i, hi = i + group / 2; lo < i + group / 2; lo++, hi++) {
            float entry[4] = {[A_LO] = s[lo], [B_LO] = t[lo], [A_HI] = s[hi], [B_HI] = t[hi]};
            if (from_output) {  // h = (swap(a)*z - b*swap(z)) / determinant
                const float determinant = a[lo] * a[hi] - b[lo] * b[hi];
                entry[A_LO] = (a[hi] * s[lo] - b[lo] * t[lo]) / determinant;
                entry[A_HI] = (a[lo] * s[hi] - b[hi] * t[hi]) / determinant;
                entry[B_LO] = (a[lo] * t[lo] - b[hi] * s[lo]) / determinant;
                entry[B_HI] = (a[hi] * t[hi] - b[lo] * s[hi]) / determinant;
            }
            ptrdiff_t at[4];
            float cosine[4], sine[4];
            places(variant, i, lo - i, group, at);
            angles(theta, at, cosine, sine);
            const float value[4] = {cosine[A_LO], -sine[B_LO], cosine[A_HI], sine[B_HI]};
            const float slope[4] = {-sine[A_LO], -cosine[B_LO], -sine[A_HI], cosine[B_HI]};
            for (int k = 0; k < 4; k++) {
                d_theta[at[k]] += entry[k] * alpha[at[k]] * slope[k];
                d_alpha[at[k]] += entry[k] * value[k];
            }
        }
}

// ---- rows -----------------------------------------------------------------------------------------------------

// n outputs of one row that hold whole groups; s == NULL: no sums (and no x), out == NULL: only the sums.
static inline void pass_span(const float *g, const float *x, float *out, const float *a, const float *b, float *s,
                             float *t, ptrdiff_t n, ptrdiff_t group) {
    const ptrdiff_t half = group / 2;
    ptrdiff_t i = 0;
    if (half < LANES && (half & (half - 1)) == 0) {  // pairs lie inside one vector: exchange lanes i and i ^ half
        ivec exchange;
        for (int lane = 0; lane < LANES; lane++) exchange[lane] = lane ^ (int)half;
        for (; i + LANES <= n; i += LANES) {
            const vec gi = IN(g + i);
            if (s) {
                const vec xi = IN(x + i);
                AT(s + i) += gi * xi;
                AT(t + i) += gi * __builtin_shuffle(xi, exchange);
            }
            if (out) AT(out + i) = IN(a + i) * gi + IN(b + i) * __builtin_shuffle(gi, exchange);
        }
    }
    for (; i < n; i += group) {
        ptrdiff_t lo = i, hi = i + half;
        for (; lo + LANES <= i + half; lo += LANES, hi += LANES) {
            const vec g_lo = IN(g + lo), g_hi = IN(g + hi);
            if (s) {
                const vec x_lo = IN(x + lo), x_hi = IN(x + hi);
                AT(s + lo) += g_lo * x_lo;
                AT(s + hi) += g_hi * x_hi;
                AT(t + lo) += g_lo * x_hi;
                AT(t + hi) += g_hi * x_lo;
            }
            if (out) {
                AT(out + lo) = IN(a + lo) * g_lo + IN(b + lo) * g_hi;
                AT(out + hi) = IN(a + hi) * g_hi + IN(b + hi) * g_lo;
            }
        }
        for (; lo < i + half; lo++, hi++) {
            const float g_lo = g[lo], g_hi = g[hi];
            if (s) {
                s[lo] += g_lo * x[lo];
                s[hi] += g_hi * x[hi];
                t[lo] += g_lo * x[hi];
                t[hi] += g_hi * x[lo];
            }
            if (out) {
                out[lo] = a[lo] * g_lo + b[lo] * g_hi;
                out[hi] = a[hi] * g_hi + b[hi] * g_lo;
            }
        }
    }
}

// g, x, out [n, d] contiguous; a, b [d]; sums [num_blocks, 2, d], of which the first block returns s and t, or NULL.
// theta, alpha and their gradients [variant * d / 2]; limit and scale as `lower` has them, whose result is returned;
// -1: there is no memory for the vectors. z may be h; with needs_h it is left alone unless it could be recomputed.
// d_theta == NULL: only dh.
#define DEFINE(T)                                                                                                     \
    static void pass_##T(const T *g, const T *x, T *out, const float *a, const float *b, float *sums, ptrdiff_t n,    \
                         ptrdiff_t d, ptrdiff_t group, ptrdiff_t num_blocks, int num_threads) {                       \
        const ptrdiff_t chunk = group >= CHUNK ? group : CHUNK / group * group;                                       \
        _Pragma("omp parallel num_threads(num_threads) if (num_threads > 1)") {                                       \
            float wide[sizeof(T) == 4 ? 1 : 3 * chunk];                                                               \
            float *wide_g = wide, *wide_x = wide + chunk, *wide_out = out ? wide + 2 * chunk : NULL;                  \
            _Pragma("omp for schedule(static)") for (ptrdiff_t block = 0; block < num_blocks; block++) {              \
                float *s = sums ? sums + block * 2 * d : NULL, *t = sums ? s + d : NULL;                              \
                if (sums) memset(s, 0, 2 * d * sizeof(float));                                                        \
                for (ptrdiff_t row = n * block / num_blocks; row < n * (block + 1) / num_blocks; row++) {             \
                    const T *g_row = g + row * d, *x_row = sums ? x + row * d : NULL;                                 \
                    T *out_row = out ? out + row * d : NULL;                                                          \
                    if (sizeof(T) == 4) {                                                                             \
                        pass_span((const float *)g_row, (const float *)x_row, (float *)out_row, a, b, s, t, d, group);\
                        continue;                                                                                     \
                    }                                                                                                 \
                    for (ptrdiff_t j = 0; j < d; j += chunk) {                                                        \
                        const ptrdiff_t m = d - j < chunk ? d - j : chunk;                                            \
                        for (ptrdiff_t k = 0; k < m; k++) wide_g[k] = widen_##T(g_row[j + k]);                        \
                        if (sums)                                                                                     \
                            for (ptrdiff_t k = 0; k < m; k++) wide_x[k] = widen_##T(x_row[j + k]);                    \
                        pass_span(wide_g, wide_x, wide_out, a + j, b + j, sums ? s + j : NULL, sums ? t + j : NULL,   \
                                  m, group);                                                                          \
                        if (out)                                                                                      \
                            for (ptrdiff_t k = 0; k < m; k++) out_row[j + k] = narrow_##T(wide_out[k]);               \
                    }                                                                                                 \
                }                                                                                                     \
            }                                                                                                         \
            if (sums)                                                                                                 \
                for (ptrdiff_t block = 1; block < num_blocks; block++) /* static: each thread keeps its columns */    \
                    _Pragma("omp for simd schedule(static) nowait") for (ptrdiff_t j = 0; j < 2 * d; j++)             \
                        sums[j] += sums[block * 2 * d + j];                                                           \
        }                                                                                                             \
    }                                                                                                                 \
                                                                                                                      \
    int rk_forward_##T(const T *h, T *z, const float *theta, const float *alpha, ptrdiff_t n, ptrdiff_t d,            \
                       ptrdiff_t group, int variant, int needs_h, float limit, float scale, int num_threads) {        \
        float *lowered = malloc(3 * d * sizeof(float));                                                               \
        if (!lowered) return -1;                                                                                      \
        const int invertible = lower(theta, alpha, lowered, d, group, variant, limit, scale);                         \
        if (z != h || invertible || !needs_h)                                                                         \
            pass_##T(h, NULL, z, lowered, lowered + d, NULL, n, d, group, n, num_threads);                            \
        free(lowered);                                                                                                \
        return invertible;                                                                                            \
    }                                                                                                                 \
                                                                                                                      \
    int rk_backward_##T(const T *g, const T *x, T *dh, const float *theta, const float *alpha, float *d_theta,        \
                        float *d_alpha, ptrdiff_t n, ptrdiff_t d, ptrdiff_t group, int variant, int from_output,      \
                        ptrdiff_t num_blocks, int num_threads) {                                                      \
        float *lowered = malloc((3 + 2 * num_blocks) * d * sizeof(float)), *sums = lowered + 3 * d;                   \
        if (!lowered) return -1;                                                                                      \
        lower(theta, alpha, lowered, d, group, variant, 0, 0);                                                        \
        if (d_theta) {                                                                                                \
            pass_##T(g, x, dh, lowered, lowered + 2 * d, sums, n, d, group, num_blocks, num_threads);                 \
            chain(theta, alpha, lowered, sums, d_theta, d_alpha, d, group, variant, from_output);                     \
        } else {                                                                                                      \
            pass_##T(g, NULL, dh, lowered, lowered + 2 * d, NULL, n, d, group, n, num_threads);                       \
        }                                                                                                             \
        free(lowered);                                                                                                \
        return 0;                                                                                                     \
    }
DEFINE(f32)
DEFINE(bf16)
DEFINE(f16)
