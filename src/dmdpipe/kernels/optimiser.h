/* AdamW over flat parameters, in one pass, and their running average. */
#pragma once
#include "arithmetic.h"

enum { SUMS = 8 };

typedef double sums_of_squares __attribute__((vector_size(8 * SUMS)));
typedef float some_entries __attribute__((vector_size(4 * SUMS), aligned(4)));

/* Return a gradient's Euclidean norm, summed in double precision. */
static double norm_of(count size, const float *gradient) {
    sums_of_squares s = {0};
    count i = 0;
    for (; i + SUMS <= size; i += SUMS) {
        sums_of_squares g = __builtin_convertvector(*(const some_entries *)(gradient + i), sums_of_squares);
        s += g * g;
    }
    double rest = 0;
    for (; i < size; i++) rest += (double)gradient[i] * gradient[i];
    double left = (s[0] + s[1]) + (s[2] + s[3]), right = (s[4] + s[5]) + (s[6] + s[7]);
    return __builtin_sqrt(left + right + rest);
}

/* Whether a gradient's norm is at most `bound` by far, in less time: these sums don't wait for each other. In single precision they
 * err by a factor of 2 at most, up to 7·10⁸ entries, unless squares vanish or overflow: then this says no. */
static int surely_within(double bound, count size, const float *gradient) {
    enum { MANY = 64 };
    float sums[MANY] = {0};
    count i = 0;
    for (; i + MANY <= size; i += MANY)
        for (int lane = 0; lane < MANY; lane++) sums[lane] = fma1(gradient[i + lane], gradient[i + lane], sums[lane]);
    double all = 0;
    for (; i < size; i++) all += (double)gradient[i] * gradient[i];
    for (int lane = 0; lane < MANY; lane++) all += sums[lane];
    return bound > 1e-15 && all < 1e30 && all <= 0.5 * bound * bound;
}

/* Parameters, their gradient, which is only read, and both moments: vectors that don't overlap. */
typedef struct {
    float *values, *gradient, *first, *second;
} Parameters;

/* The same from an entry on. */
EACH Parameters parameters_from(Parameters p, count i) {
    return (Parameters){p.values + i, p.gradient + i, p.first + i, p.second + i};
}

/* The numbers of one step of AdamW: β₁ and β₂, the learning rate and ε, both with bias corrections, and what multiplies
 * parameters (weight decay). */
typedef struct {
    float beta1, beta2, rate, epsilon, keep;
} Sizes;

/* One step; `scale` multiplies the gradient (clipping). */
EACH void adamw(count size, Parameters p, Sizes by, float scale) {
    SIDE_BY_SIDE for (count i = 0; i < size; i++) {
        float g = p.gradient[i] * scale;
        float m = fma1(1.0f - by.beta1, g - p.first[i], p.first[i]);
        float v = fma1((1.0f - by.beta2) * g, g, by.beta2 * p.second[i]);
        p.first[i] = m;
        p.second[i] = v;
        p.values[i] = fma1(-by.rate, m / (__builtin_sqrtf(v) + by.epsilon), by.keep * p.values[i]);
    }
}

/* average += share·(values − average), from the nearer end, as PyTorch's lerp. */
static void average_with(count size, const float *values, float share, float *average) {
    const float rest = 1.0f - share;
    for (count i = 0; i < size; i++) {
        float way = values[i] - average[i];
        average[i] = share < 0.5f ? fma1(share, way, average[i]) : fma1(-way, rest, values[i]);
    }
}
