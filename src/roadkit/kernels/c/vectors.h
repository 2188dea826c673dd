// Vectors and numbers that every kernel uses.
//
// Vectors are GCC/Clang vector extensions, so the same source serves AVX-512, AVX2 and Arm.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));

typedef float f32;
typedef struct { uint16_t bits; } bf16;
typedef _Float16 f16;
typedef int8_t i8;

static inline float widen_f32(f32 x) { return x; }
static inline f32 narrow_f32(float x) { return x; }
static inline float widen_f16(f16 x) { return (float)x; }
static inline f16 narrow_f16(float x) { return (f16)x; }
static inline float widen_bf16(bf16 x) {
    const uint32_t word = (uint32_t)x.bits << 16;
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

// Are `n` elements worth a second thread? Below, waking it costs more than it saves.
static inline int worth(int num_threads, ptrdiff_t n) { return num_threads > 1 && n >= 32768; }
