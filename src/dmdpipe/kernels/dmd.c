/* What Distribution Matching Distillation does between two forward passes of the student: the gradient at its samples, and
 * the fake score's steps (dmdpipe.distill.loop). */
#include "learning.h"
#include "noise.h"

/* Where noise comes from: a stream, and the entries first … first + choices − 1 of a table of noise levels σ. */
typedef struct {
    uint64_t key;
    uint64_t *position;
    int64_t first, choices;
    const float *sigma;
} Noising;

/* Draw noise levels row [rows] and noise ε: noisy [rows × d] = x + σ·ε. */
static void noise_samples(const Noising *n, count rows, count dim, const float *x, int64_t *row, float *noisy) {
    draw_integers(n->key, n->position, rows, n->first, (uint32_t)n->choices, row);
    draw_normal(n->key, n->position, rows * dim, noisy);
    for (count i = 0; i < rows; i++) {
        float sigma = n->sigma[row[i]];
        SIDE_BY_SIDE for (count j = i * dim; j < (i + 1) * dim; j++) noisy[j] = fma1(sigma, noisy[j], x[j]);
    }
}

static void denoise_at(const Network *network, const int64_t *row, count rows, const float *noisy, float *answer) {
    Conditions given = *network->given;
    given.rows = row;
    denoise(network->shape, network->layers, &given, rows, noisy, answer, network->memory);
}

/* A number that is none becomes 0, an infinite one the largest finite one. */
EACH float finite(float x) {
    const float largest = 0x1.fffffep+127f;
    x = x != x ? 0.0f : x;
    x = x > largest ? largest : x;
    return x < -largest ? -largest : x;
}

/* √(sum/entries), as dmdpipe.diffusion.determinism has it. */
EACH float root_of_mean(double sum, count entries) {
    float inverse = 1.0f / __builtin_sqrtf((float)sum / (float)entries);
    return 1.0f / inverse;
}

/* to [rows × d] = scale · dm_gradient of dmdpipe.distill.dmd at samples x; return the unscaled one's root mean square. row
 * [rows], noisy, real, fake [rows × d]: memory. */
float dmd_gradient(const Network *teacher, const Network *fake_score, const Noising *noising, count rows, const float *x,
                   count normalise, float offset, float least, float scale, int64_t *row, float *noisy, float *real,
                   float *fake, float *to) {
    const count dim = teacher->shape->dim;
    noise_samples(noising, rows, dim, x, row, noisy);
    denoise_at(teacher, row, rows, noisy, real);
    denoise_at(fake_score, row, rows, noisy, fake);
    double squares = 0;
    for (count i = 0; i < rows; i++, x += dim, real += dim, fake += dim, to += dim) {
        double distance = 0;
        for (count j = 0; j < dim; j++) distance += __builtin_fabsf(x[j] - real[j]);
        float mean = (float)distance / (float)dim + offset;
        mean = mean < least ? least : mean;
        for (count j = 0; j < dim; j++) {
            float difference = fake[j] - real[j], own = finite(normalise ? difference / mean : difference);
            squares += own * own;
            to[j] = scale * own;
        }
    }
    return root_of_mean(squares, rows * dim);
}

/* Take so many steps of the fake score, each on the next `batch` rows of x: noise them, and learn. Return the last one's
 * loss. row [batch], noisy [batch × d]: memory. */
float dmd_fake_steps(const Network *network, const Layer *gradients, const float *weight, const Noising *noising,
                     const Flat *flat, const Sizes *sizes, count steps, count batch, const float *x, int64_t *row,
                     float *noisy) {
    const count dim = network->shape->dim;
    float loss = 0.0f;
    Conditions given = *network->given;
    given.rows = row;
    for (count step = 0; step < steps; step++, x += batch * dim) {
        noise_samples(noising, batch, dim, x, row, noisy);
        loss = learn(network, gradients, &given, weight, flat, sizes + step, batch, noisy, x);
    }
    return loss;
}
