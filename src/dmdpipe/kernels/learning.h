/* A step of a denoiser's training: the denoising loss's gradient, and AdamW. */
#pragma once
#include "denoiser.h"
#include "optimiser.h"

/* An MLP denoiser, where its gradients go if it learns, what it is told of the noise levels, its packed weights, and memory to
 * work with. */
typedef struct {
    const Shape *shape;
    const Layer *layers, *gradients;
    const Conditions *given;
    float *panels, *memory;
} Network;

/* The parameters of all layers, their gradients and AdamW's moments, as one vector each. clip: bound on the gradient's
 * norm; 0: none. */
typedef struct {
    float *values, *gradient, *first, *second;
    count size;
    double clip;
} Flat;

/* The numbers of one step of AdamW: β₁ and β₂, the learning rate and ε, both with bias corrections, and what multiplies
 * parameters. */
typedef struct {
    float beta1, beta2, rate, epsilon, keep;
} Sizes;

/* Take AdamW's step along the gradient that the way back has left, layer by layer, so that what one pass has touched is still
 * in the cache for the next; return its norm before it is clipped. */
static double step_by(const Network *network, const Flat *flat, const Sizes *sizes) {
    const Shape *s = network->shape;
    const Sums sums = sums_in(s, network->gradients, network->memory);
    Squares squares = {0};
    for (count l = 0, end = 0; l <= output_of(s); l++) {
        finish(s, l, sums, network->gradients, 0);
        square_up_to(&squares, flat->gradient, end += parameters_of(s, l));
    }
    double norm = norm_of(squares, flat->size, flat->gradient);
    /* What is not a number is clipped, too, and shows in all parameters. */
    float scale = flat->clip > 0 && !(norm <= flat->clip) ? (float)(flat->clip / (norm + 1e-6)) : 1.0f;
    for (count l = 0, at = 0; l <= output_of(s); at += parameters_of(s, l++)) {
        adamw(parameters_of(s, l), flat->values + at, flat->gradient + at, flat->first + at, flat->second + at, scale,
              sizes->keep, sizes->beta1, sizes->beta2, sizes->rate, sizes->epsilon);
        pack_layer(s, network->layers, l, FORWARD | BACKWARD, network->panels);
    }
    return norm;
}

/* Take a step on samples x [rows × d], and return their loss. */
static float learn(const Network *network, const Conditions *given, const float *weight, const Flat *flat,
                   const Sizes *sizes, count rows, const float *noisy, const float *x) {
    float loss = denoising_loss(network->shape, network->panels, given, rows, noisy, x, weight, network->gradients,
                                network->memory);
    step_by(network, flat, sizes);
    return loss;
}
