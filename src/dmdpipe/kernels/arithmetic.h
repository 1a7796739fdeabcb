/* Single-precision arithmetic whose bytes depend on no compiler and no CPU.
 *
 * Every operation is one that IEEE 754 rounds exactly (+, −, ×, ÷, √, fused multiply-add), in an order that is written
 * down here. What a compiler may choose elsewhere, whether a·b + c is rounded once or twice, is said with `fma`; the
 * files are compiled without contraction. Not-a-numbers pass through. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* Of the C library only what compilers know themselves is used, so that none of its headers is needed. */
#define memcpy __builtin_memcpy
#define memset __builtin_memset

#define EACH static inline __attribute__((always_inline))

/* Before a loop whose turns touch different entries: it may be cut into lanes, which changes no result. */
#if defined(__clang__)
#define SIDE_BY_SIDE _Pragma("clang loop vectorize(assume_safety)")
#else
#define SIDE_BY_SIDE _Pragma("GCC ivdep")
#endif

/* Before a loop of few turns, as many as the compiler can count: what it works on stays in registers. */
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

/* The entries of two vectors, one after the other, that have these numbers. */
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

typedef int64_t count;

EACH count smaller(count a, count b) { return a < b ? a : b; }

EACH float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

EACH uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

EACH float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Return e^x to 2 units in the last place, for x clamped to [−87, 88]: Cody and Waite's reduction, then Cephes' expf. */
EACH float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    /* 1.5·2²³ added and taken off rounds to the nearest whole number, which stands in the sum's low bits. */
    float shifted = fma1(x, 1.44269504f, 12582912.0f);
    float whole = shifted - 12582912.0f;
    float r = fma1(whole, -0.693359375f, x);
    r = fma1(whole, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fma1(p, r, 1.3981999507e-3f);
    p = fma1(p, r, 8.3334519073e-3f);
    p = fma1(p, r, 4.1665795894e-2f);
    p = fma1(p, r, 1.6666665459e-1f);
    p = fma1(p, r, 5.0000001201e-1f);
    p = fma1(p, r * r, r) + 1.0f;
    return p * of_bits((bits_of(shifted) + 127u) << 23);
}

EACH float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* Return Σ x_i, in eight interleaved sums that are added up in pairs. */
EACH float sum_of_eight(const float *s) {
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
