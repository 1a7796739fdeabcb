/* What Python asks of an MLP denoiser. */
#include "denoiser.h"

/* Whether every row of a batch names an entry of tables with so many. */
count mlp_rows_fit(const int64_t *row, count rows, count entries) {
    count inside = 0;
    for (count i = 0; i < rows; i++) inside += row[i] >= 0 && row[i] < entries;
    return inside == rows;
}

/* How many floats of memory the functions below want: of what `mlp_denoise_and_keep` keeps, and to work with. */
count mlp_kept_size(const Shape *s, count rows) { return kept_size(s, rows); }

count mlp_memory_size(const Shape *s) { return working_size(s); }

void mlp_denoise(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x, float *answer,
                 float *memory) {
    denoise(s, layers, given, rows, x, answer, memory);
}

void mlp_denoise_and_keep(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x,
                          float *answer, float *kept, float *memory) {
    denoise_and_keep(s, layers, given, rows, x, answer, kept, memory);
}

void mlp_pull_back(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                   const float *to_d, float *kept, count add, float *memory) {
    pull_back(s, layers, gradients, given, rows, to_d, kept, add, memory);
}

float mlp_denoising_loss(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                         const float *x, const float *target, const float *weight, float *memory) {
    return denoising_loss(s, layers, gradients, given, rows, x, target, weight, memory);
}
