/* A step of a denoiser's training: the denoising loss's gradient, and AdamW. */
#pragma once
#include "denoiser.h"
#include "optimiser.h"

/* An MLP denoiser, where its gradients go if it learns, what it is told of the noise levels, and memory to work with. */
typedef struct {
    const Shape *shape;
    const Layer *layers, *gradients;
    const Conditions *given;
    float *memory;
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

/* Take AdamW's step along the gradient that is there; return its norm before it is clipped. */
static double step_by(const Flat *flat, const Sizes *sizes) {
    double norm = norm_of(flat->size, flat->gradient);
    /* What is not a number is clipped, too, and shows in all parameters. */
    float scale = flat->clip > 0 && !(norm <= flat->clip) ? (float)(flat->clip / (norm + 1e-6)) : 1.0f;
    adamw(flat->size, flat->values, flat->gradient, flat->first, flat->second, scale, sizes->keep, sizes->beta1,
          sizes->beta2, sizes->rate, sizes->epsilon);
    return norm;
}

/* Take a step on samples x [rows × d], and return their loss. */
static float learn(const Network *network, const Conditions *given, const float *weight, const Flat *flat,
                   const Sizes *sizes, count rows, const float *noisy, const float *x) {
    float loss = denoising_loss(network->shape, network->layers, network->gradients, given, rows, noisy, x, weight,
                                network->memory);
    step_by(flat, sizes);
    return loss;
}
