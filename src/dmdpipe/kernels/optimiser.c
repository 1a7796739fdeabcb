/* What Python asks of optimiser.h. */
#include "optimiser.h"

double optimiser_norm(count size, const float *gradient) { return norm_of(size, gradient); }

void optimiser_adamw(count size, float *values, float *gradient, float *first, float *second, float scale,
                     float keep, float beta1, float beta2, float rate, float epsilon) {
    adamw(size, (Parameters){values, gradient, first, second}, (Sizes){beta1, beta2, rate, epsilon, keep}, scale);
}
