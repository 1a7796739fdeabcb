/* What Python asks of an MLP denoiser. */
#include "denoiser.h"

/* Whether every row of a batch names an entry of tables with so many. */
count mlp_rows_fit(const int64_t *row, count rows, count entries) {
    count inside = 0;
    for (count i = 0; i < rows; i++) inside += row[i] >= 0 && row[i] < entries;
    return inside == rows;
}

/* How many floats of memory the functions below want: of what `mlp_denoise_and_keep` keeps, and to work with. */
count mlp_kept_size(const Shape *s, count rows) { return (rows + ROWS - 1) / ROWS * block_size(s); }

count mlp_memory_size(const Shape *s) { return working_size(s); }

void mlp_denoise(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x, float *answer,
                 float *memory) {
    denoise(s, layers, given, rows, x, answer, memory);
}

/* answer [rows × d] = D(x), and what the way back needs goes to `kept`. */
void mlp_denoise_and_keep(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x,
                          float *answer, float *kept, float *memory) {
    Memory m = memory_at(s, memory);
    pack_forward(s, layers, m.forward);
    for (count first = 0; first < rows; first += ROWS, kept += block_size(s)) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim;
        Block b = block_at(s, kept);
        forward(s, layers, m.forward, given, first, here, own, b, 1);
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

/* Set, or add to, the gradients at the layers, given the loss's gradient at D [rows × d]. `kept` is overwritten. */
void mlp_pull_back(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                   const float *to_d, float *kept, count add, float *memory) {
    Memory m = memory_at(s, memory);
    pack_backward(s, layers, m.backward);
    memset(m.sums, 0, (size_t)sums_at(s, output_of(s) + 1) * sizeof *m.sums);
    Block b = block_at(s, kept);
    for (count first = 0; first < rows; first += ROWS, kept += block_size(s)) {
        count here = smaller(ROWS, rows - first);
        b = block_at(s, kept);
        through_preconditioning(s, given, first, here, to_d + first * s->dim, m.to_answer);
        backward(s, m.backward, given, here, b, m.to_answer, m.to_h, m.to_e, m.sums);
    }
    finish(s, given, b, m.to_e, m.sums, gradients, 0, add != 0);
}

float mlp_denoising_loss(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                         const float *x, const float *target, const float *weight, float *memory) {
    return denoising_loss(s, layers, gradients, given, rows, x, target, weight, memory);
}
