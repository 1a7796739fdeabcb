/* AdamW over flat parameters, in one pass. */
#pragma once
#include "arithmetic.h"

enum { SUMS = 8 };

/* Return the Euclidean norm, summed in double precision. */
static double norm_of(count size, const float *gradient) {
    double sums[SUMS] = {0};
    count i = 0;
    for (; i + SUMS <= size; i += SUMS)
        for (int lane = 0; lane < SUMS; lane++) {
            double g = gradient[i + lane];
            sums[lane] += g * g;
        }
    double rest = 0;
    for (; i < size; i++) rest += (double)gradient[i] * gradient[i];
    double left = (sums[0] + sums[1]) + (sums[2] + sums[3]), right = (sums[4] + sums[5]) + (sums[6] + sums[7]);
    return __builtin_sqrt(left + right + rest);
}

/* One step: first and second are the moments; `scale` multiplies the gradient (clipping), `keep` the parameters (weight
 * decay); rate and epsilon hold the bias corrections. */
static void adamw(count size, float *values, const float *gradient, float *first, float *second, float scale,
                  float keep, float beta1, float beta2, float rate, float epsilon) {
    for (count i = 0; i < size; i++) {
        float g = gradient[i] * scale;
        float m = fma1(1.0f - beta1, g - first[i], first[i]);
        float v = fma1((1.0f - beta2) * g, g, beta2 * second[i]);
        first[i] = m;
        second[i] = v;
        values[i] = fma1(-rate, m / (__builtin_sqrtf(v) + epsilon), keep * values[i]);
    }
}
