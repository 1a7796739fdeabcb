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
    Parameters all;
    count size;
    double clip;
} Flat;

/* Take AdamW's step on some rows and columns of a weight [outer × inner], and pack them. */
EACH void step_block(const count rows, const count columns, count inner, Parameters p, const Sizes *sizes, float scale, float *own,
                     float *transposed) {
    for (count i = 0; i < rows; i++) adamw(columns, parameters_from(p, i * inner), *sizes, scale);
    pack_block(rows, columns, inner, p.values, own, transposed);
}

/* Take AdamW's step on a layer and pack it, block by block: while the optimiser waits for memory and roots, a block before is
 * packed. */
static void step_layer(const Shape *s, count layer, Parameters p, const Sizes *sizes, float scale, Packed to) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer);
    EACH_BLOCK(outer, inner) {
        Parameters own = parameters_from(p, i * inner + j);
        float *way_back = block_in(to.backward, outer, i, j), *way_forward = block_in(to.forward, inner, j, i);
        /* Where compilers know the numbers, there are no loops. */
        if (rows == PANEL && columns == PANEL) step_block(PANEL, PANEL, inner, own, sizes, scale, way_back, way_forward);
        else step_block(rows, columns, inner, own, sizes, scale, way_back, way_forward);
    }
    Parameters bias = parameters_from(p, outer * inner);
    adamw(outer, bias, *sizes, scale);
    copy_row(outer, padded(outer), bias.values, to.bias);
}

/* Take AdamW's step along the gradient that the way back has left, and pack the weights. Return its norm before it is
 * clipped if that is wanted; else what is returned may be 0. */
static double step_by(const Network *network, const Flat *flat, const Sizes *sizes, int wants_norm) {
    const Shape *s = network->shape;
    const Sums sums = sums_in(s, network->gradients, network->memory);
    for (count l = 0; l <= output_of(s); l++) finish(s, l, sums, network->gradients, 0);
    double norm = 0;
    if (wants_norm || (flat->clip > 0 && !surely_within(flat->clip, flat->size, flat->all.gradient)))
        norm = norm_of(flat->size, flat->all.gradient);
    /* What is not a number is clipped, too, and shows in all parameters. */
    float scale = flat->clip > 0 && !(norm <= flat->clip) ? (float)(flat->clip / (norm + 1e-6)) : 1.0f;
    for (count l = 0, at = 0; l <= output_of(s); at += parameters_of(s, l++)) {
        const Packed to = packed_at(s, l, FORWARD | BACKWARD, network->panels);
        step_layer(s, l, parameters_from(flat->all, at), sizes, scale, to);
    }
    return norm;
}

/* Take a step on samples x [rows × d], and return their loss. */
static float learn(const Network *network, const Conditions *given, const float *weight, const Flat *flat,
                   const Sizes *sizes, count rows, const float *noisy, const float *x) {
    float loss = denoising_loss(network->shape, network->panels, given, rows, noisy, x, weight, network->gradients,
                                network->memory);
    step_by(network, flat, sizes, 0);
    return loss;
}
