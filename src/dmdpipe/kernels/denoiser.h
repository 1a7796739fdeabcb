/* The MLP denoiser of dmdpipe.networks.mlp inside its EDM preconditioning, D(x, σ) = c_skip·x + c_out·F(c_in·x, features). */
#pragma once
#include "mlp.h"

EACH void forward(const Shape *s, const float *panels, const Conditions *given, count first, count rows, const float *x,
                  Block b, const int keep) {
    const float *h = forward_body(s, panels, given, s->depth, first, rows, x, b, keep);
    apply(s, panels, output_of(s), rows, h, 0, 0, b.answer);
}

/* The way back of a block: `to` [rows × d] is the loss's gradient at F, columns padded. to_h and to_e [ROWS × width] are
 * memory. */
static void backward(const Shape *s, const float *panels, const Conditions *given, count rows, Block b, const float *to,
                     float *to_h, float *to_e, Sums sums, int begun) {
    add_gradients(s, output_of(s), rows, to, b.h + s->depth * ROWS * stride(s->width), sums, begun);
    apply_transposed(s, panels, output_of(s), rows, to, to_h, 0);
    backward_body(s, panels, given, s->depth, rows, b, to_h, to_e, sums, begun);
}

/* D of a block's rows, given F: to [rows × d]. */
static void combine(const Shape *s, const Conditions *given, count first, count rows, const float *x, const float *answer,
                    float *to) {
    for (count i = 0; i < rows; i++) {
        count entry = entry_of(given, first + i);
        float out = given->c_out[entry], skip = given->c_skip ? given->c_skip[entry] : 0.0f;
        const float *own = answer + i * stride(s->dim);
        for (count j = 0; j < s->dim; j++) {
            float scaled = out * own[j];
            to[i * s->dim + j] = given->c_skip ? fma1(skip, x[i * s->dim + j], scaled) : scaled;
        }
    }
}

/* How many floats the functions below want to work with, beside the panels of all weights. */
static count working_size(const Shape *s) {
    return sums_at(s, output_of(s) + 1) + block_size(s) + ROWS * (stride(s->dim) + 2 * stride(s->width));
}

/* Its parts. */
typedef struct {
    float *sums, *block, *to_answer, *to_h, *to_e;
} Memory;

static Memory memory_at(const Shape *s, float *memory) {
    Memory m = {.sums = memory};
    m.block = m.sums + sums_at(s, output_of(s) + 1);
    m.to_answer = m.block + block_size(s);
    m.to_h = m.to_answer + ROWS * stride(s->dim);
    m.to_e = m.to_h + ROWS * stride(s->width);
    return m;
}

/* answer [rows × d] = D(x). */
static void denoise(const Shape *s, const float *panels, const Conditions *given, count rows,
                    const float *x, float *answer, float *memory) {
    Block b = block_at(s, memory_at(s, memory).block);
    for (count first = 0; first < rows; first += ROWS) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim;
        forward(s, panels, given, first, here, own, b, 0);
        combine(s, given, first, here, own, b.answer, answer + first * s->dim);
    }
}

/* How many floats `denoise_and_keep` keeps. */
static count kept_size(const Shape *s, count rows) { return (rows + ROWS - 1) / ROWS * block_size(s); }

/* answer [rows × d] = D(x), and what the way back needs goes to `kept`. */
static void denoise_and_keep(const Shape *s, const float *panels, const Conditions *given, count rows,
                             const float *x, float *answer, float *kept) {
    for (count first = 0; first < rows; first += ROWS, kept += block_size(s)) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim;
        Block b = block_at(s, kept);
        forward(s, panels, given, first, here, own, b, 1);
        combine(s, given, first, here, own, b.answer, answer + first * s->dim);
    }
}

/* Turn the gradient at D of a block into that at F, with padded columns. */
static void through_preconditioning(const Shape *s, const Conditions *given, count first, count rows, const float *to_d,
                                    float *to) {
    count dim = stride(s->dim);
    for (count i = 0; i < rows; i++) {
        float out = given->c_out[entry_of(given, first + i)];
        for (count j = 0; j < s->dim; j++) to[i * dim + j] = out * to_d[i * s->dim + j];
        for (count j = s->dim; j < dim; j++) to[i * dim + j] = 0.0f;
    }
}

/* Where the sums are that the functions below find, for `finish`; in place where there are gradients to be set. */
static Sums sums_in(const Shape *s, const Layer *gradients, float *memory) {
    return (Sums){gradients, memory_at(s, memory).sums};
}

/* Sum the gradients at the layers, given the loss's gradient at D [rows × d]. `kept` is overwritten. */
static void pull_back(const Shape *s, const float *panels, const Conditions *given, count rows, const float *to_d,
                      float *kept, const Layer *gradients, float *memory) {
    Memory m = memory_at(s, memory);
    const Sums sums = sums_in(s, gradients, memory);
    Block b = block_at(s, kept);
    for (count first = 0; first < rows; first += ROWS, kept += block_size(s)) {
        count here = smaller(ROWS, rows - first);
        b = block_at(s, kept);
        through_preconditioning(s, given, first, here, to_d + first * s->dim, m.to_answer);
        backward(s, panels, given, here, b, m.to_answer, m.to_h, m.to_e, sums, first > 0);
    }
    if (one_level(given)) add_one_level(s, b, m.to_e, sums);
}

/* Sum the gradients of the denoising loss, mean of weight·(D(x) − target)², and return the loss. weight: a table like
 * the conditions', or none for 1. */
static float denoising_loss(const Shape *s, const float *panels, const Conditions *given, count rows,
                            const float *x, const float *target, const float *weight, const Layer *gradients,
                            float *memory) {
    Memory m = memory_at(s, memory);
    const Sums sums = sums_in(s, gradients, memory);
    Block b = block_at(s, m.block);
    const float per_entry = 2.0f / (float)(rows * s->dim);
    float losses[EIGHT] = {0};
    count dim = stride(s->dim);
    for (count first = 0; first < rows; first += ROWS) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim, *wanted = target + first * s->dim;
        forward(s, panels, given, first, here, own, b, 1);
        for (count i = 0; i < here; i++) {
            count entry = entry_of(given, first + i);
            float out = given->c_out[entry], skip = given->c_skip ? given->c_skip[entry] : 0.0f;
            float factor = weight ? per_entry * weight[entry] : per_entry;
            float *answer = b.answer + i * dim, *to = m.to_answer + i * dim;
            memset(to, 0, (size_t)dim * sizeof *to);
            for (count j = 0; j < s->dim; j++) {
                float scaled = out * answer[j];
                float denoised = given->c_skip ? fma1(skip, own[i * s->dim + j], scaled) : scaled;
                float error = denoised - wanted[i * s->dim + j];
                answer[j] = error;
                to[j] = factor * error;
            }
            for (count j = s->dim; j < dim; j++) answer[j] = 0.0f;
            for (count j = 0; j < dim; j += EIGHT)
                for (int lane = 0; lane < EIGHT; lane++)
                    losses[lane] = fma1(answer[j + lane], to[j + lane], losses[lane]);
            for (count j = 0; j < s->dim; j++) to[j] *= out;
        }
        backward(s, panels, given, here, b, m.to_answer, m.to_h, m.to_e, sums, first > 0);
    }
    if (one_level(given)) add_one_level(s, b, m.to_e, sums);
    return 0.5f * sum_of_eight(losses);
}
