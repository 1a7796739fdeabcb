/* What Python asks of an MLP denoiser. */
#include "denoiser.h"

/* Whether every row of a batch names an entry of tables with so many. */
count mlp_rows_fit(const int64_t *row, count rows, count entries) {
    count inside = 0;
    for (count i = 0; i < rows; i++) inside += row[i] >= 0 && row[i] < entries;
    return inside == rows;
}

/* How many floats of memory the functions below want: of what `mlp_denoise_and_keep` keeps, of packed weights, and, beside
 * those, to work with. */
count mlp_kept_size(const Shape *s, count rows) { return kept_size(s, rows); }

count mlp_panels_size(const Shape *s) { return panels_size(s); }

count mlp_memory_size(const Shape *s) { return working_size(s) + 2 * ROWS * s->dim; }

void mlp_denoise(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x, float *answer,
                 float *panels, float *memory) {
    pack_all(s, layers, FORWARD, panels);
    denoise(s, panels, given, rows, x, answer, memory);
}

void mlp_denoise_and_keep(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x,
                          float *answer, float *kept, float *panels) {
    pack_all(s, layers, FORWARD, panels);
    denoise_and_keep(s, panels, given, rows, x, answer, kept);
}

static void finish_all(const Shape *s, Sums sums, const Layer *gradients, int add) {
    for (count l = 0; l <= output_of(s); l++) finish(s, l, sums, gradients, add);
}

/* Set, or add to, the gradients, given the loss's gradient at D [rows × d]. */
void mlp_pull_back(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                   const float *to_d, float *kept, count add, float *panels, float *memory) {
    const Layer *in_place = add ? 0 : gradients;
    pack_all(s, layers, BACKWARD, panels);
    pull_back(s, panels, given, rows, to_d, kept, in_place, memory);
    finish_all(s, sums_in(s, in_place, memory), gradients, add != 0);
}

/* Set the gradients of the denoising loss, and return it. */
float mlp_denoising_loss(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                         const float *x, const float *target, const float *weight, float *panels, float *memory) {
    pack_all(s, layers, FORWARD | BACKWARD, panels);
    float loss = denoising_loss(s, panels, given, rows, x, target, weight, gradients, memory);
    finish_all(s, sums_in(s, gradients, memory), gradients, 0);
    return loss;
}

/* start + share·(end − start), from the nearer end, as PyTorch's lerp. */
EACH float between(float start, float end, float share) {
    float way = end - start;
    return share < 0.5f ? fma1(share, way, start) : fma1(-way, 1.0f - share, end);
}

/* One entry of tables, for all rows. */
static Conditions level_of(const Conditions *levels, const Shape *s, count k) {
    const float *skip = levels->c_skip ? levels->c_skip + k : 0;
    return (Conditions){levels->c_in + k, levels->c_out + k, skip, levels->features + k * s->embedding, 0, 0};
}

/* An interval of Heun's method: what Euler's step keeps of x, and how much of the way that is left over at its end is taken. */
typedef struct {
    float keep, back;
} Interval;

/* Send x [rows × d] along the probability flow, as probability_flow of dmdpipe.diffusion.sampler; `levels` has an entry for the
 * beginning of each interval, and the last one ends at σ = 0. */
void mlp_flow(const Shape *s, const Layer *layers, const Conditions *levels, const Interval *intervals, count steps,
              count rows, float *x, float *panels, float *memory) {
    Block b = block_at(s, memory_at(s, memory).block);
    float *denoised = memory + working_size(s), *euler = denoised + ROWS * s->dim;
    pack_all(s, layers, FORWARD, panels);
    for (count first = 0; first < rows; first += ROWS, x += ROWS * s->dim) {
        const count here = smaller(ROWS, rows - first), size = here * s->dim;
        for (count k = 0; k < steps; k++) {
            Conditions given = level_of(levels, s, k);
            forward(s, panels, &given, 0, here, x, b, 0);
            combine(s, &given, 0, here, x, b.answer, denoised);
            const Interval own = intervals[k];
            SIDE_BY_SIDE for (count i = 0; i < size; i++) euler[i] = between(denoised[i], x[i], own.keep);
            if (k + 1 == steps) {
                memcpy(x, euler, (size_t)size * sizeof *x);
                break;
            }
            given = level_of(levels, s, k + 1);
            forward(s, panels, &given, 0, here, euler, b, 0);
            combine(s, &given, 0, here, euler, b.answer, denoised);
            SIDE_BY_SIDE for (count i = 0; i < size; i++)
                x[i] = fma1(own.back, euler[i] - denoised[i], between(x[i], euler[i], 0.5f));
        }
    }
}
