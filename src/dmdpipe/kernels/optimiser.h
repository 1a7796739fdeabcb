/* AdamW over flat parameters, in one pass, and their running average. */
#pragma once
#include "arithmetic.h"

enum { SUMS = 8 };

typedef double sums_of_squares __attribute__((vector_size(8 * SUMS)));
typedef float some_entries __attribute__((vector_size(4 * SUMS), aligned(4)));

/* A sum of squares in double precision, of the first `size` entries so far. */
typedef struct {
    sums_of_squares sums;
    count size;
} Squares;

/* Go on to the last whole eight among the first `end` entries of a gradient. */
static void square_up_to(Squares *squares, const float *gradient, count end) {
    sums_of_squares sums = squares->sums;
    for (; squares->size + SUMS <= end; squares->size += SUMS) {
        sums_of_squares g = __builtin_convertvector(*(const some_entries *)(gradient + squares->size), sums_of_squares);
        sums += g * g;
    }
    squares->sums = sums;
}

/* Return the Euclidean norm of a gradient of which some squares are summed. */
static double norm_of(Squares squares, count size, const float *gradient) {
    square_up_to(&squares, gradient, size);
    const sums_of_squares s = squares.sums;
    double rest = 0;
    for (count i = squares.size; i < size; i++) rest += (double)gradient[i] * gradient[i];
    double left = (s[0] + s[1]) + (s[2] + s[3]), right = (s[4] + s[5]) + (s[6] + s[7]);
    return __builtin_sqrt(left + right + rest);
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
