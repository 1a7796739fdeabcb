/* The discriminator of dmdpipe.distill.adversarial: the first residual blocks of an MLP, and a head on their hidden state.
 *
 *   head: twice silu(norm(W·h + b)), then w·h + b, the logit
 *   norm(a)_j = gain_j·(a_j − mean)/√(variance + 10⁻⁵) + shift_j, over the units of a row (layer normalisation)
 *
 * Of a row with sign s it wants s·logit to be small: the loss is softplus(s·logit), its gradient s·sigmoid(s·logit). The
 * linear layers of the head are the last ones of the `Shape`: two hidden ones, and F, of one coordinate. */
#include "mlp.h"

enum { NORMS = 2 };

typedef struct {
    float *gain, *shift;
} Norm;

/* The number of floats of memory. */
static count norm_size(const Shape *s) { return ROWS * (stride(s->width) + 1); }

count discriminator_memory_size(const Shape *s) {
    count last = output_of(s) + 1, width = stride(s->width);
    return panels_size(s) + s->width * padded(s->dim) + sums_at(s, last) + 2 * NORMS * width + block_size(s)
         + NORMS * norm_size(s) + ROWS * (stride(s->answer) + stride(s->dim) + 2 * width);
}

EACH float row_sum(count size, const float *a) {
    float sums[EIGHT] = {0};
    for (count j = 0; j < size; j += EIGHT)
        for (int lane = 0; lane < EIGHT; lane++) sums[lane] += a[j + lane];
    return sum_of_eight(sums);
}

EACH float row_product(count size, const float *a, const float *b) {
    float sums[EIGHT] = {0};
    for (count j = 0; j < size; j += EIGHT)
        for (int lane = 0; lane < EIGHT; lane++) sums[lane] = fma1(a[j + lane], b[j + lane], sums[lane]);
    return sum_of_eight(sums);
}

/* after = silu(norm(a)), and silu's slopes; a [rows × width] becomes (a − mean)·inverse, with inverse [rows] that of the
 * spread. Columns are padded with zeros, before and after. */
static void norm_and_silu(const Shape *s, const Norm *norm, count rows, float *a, float *inverse, float *after,
                          float *slopes) {
    count width = stride(s->width);
    for (count i = 0; i < rows; i++, a += width, after += width, slopes += width) {
        float mean = row_sum(padded(s->width), a) / (float)s->width;
        SIDE_BY_SIDE for (count j = 0; j < s->width; j++) a[j] -= mean;
        float variance = row_product(padded(s->width), a, a) / (float)s->width;
        float scale = inverse[i] = 1.0f / __builtin_sqrtf(variance + 1e-5f);
        memset(after + s->width, 0, (size_t)(width - s->width) * sizeof *after);
        memset(slopes + s->width, 0, (size_t)(width - s->width) * sizeof *slopes);
        SIDE_BY_SIDE for (count j = 0; j < s->width; j++) {
            float unit = a[j] * scale, y = fma1(norm->gain[j], unit, norm->shift[j]);
            float gate = sigmoid(y), value = y * gate;
            a[j] = unit;
            after[j] = value;
            slopes[j] = fma1(value, 1.0f - gate, gate);
        }
    }
}

/* The way back: `to`, the gradient at what came out, becomes that at what went in. Sums [2 × width] are of the gradients at
 * gain and shift, or none. */
static void back_through_norm(const Shape *s, const Norm *norm, count rows, const float *units, const float *inverse,
                              const float *slopes, float *to, float *sums) {
    count width = stride(s->width);
    for (count i = 0; i < rows; i++, units += width, slopes += width, to += width) {
        SIDE_BY_SIDE for (count j = 0; j < width; j++) to[j] *= slopes[j];
        if (sums)
            SIDE_BY_SIDE for (count j = 0; j < width; j++) {
                sums[j] = fma1(to[j], units[j], sums[j]);
                sums[width + j] += to[j];
            }
        SIDE_BY_SIDE for (count j = 0; j < s->width; j++) to[j] *= norm->gain[j];
        float mean = row_sum(padded(s->width), to) / (float)s->width;
        float along = row_product(padded(s->width), to, units) / (float)s->width;
        SIDE_BY_SIDE for (count j = 0; j < s->width; j++)
            to[j] = inverse[i] * ((to[j] - mean) - along * units[j]);
    }
}

/* Set the logits [rows] of noisy samples x [rows × d], and, where there is room for it, the gradient at x of the sum over rows
 * of scale·loss. With gradients (a weight and bias for each layer, a gain and shift for each norm) add that at the head and,
 * from layer `from` = 0 on, at the body; else `from` is the head's first layer. Rows have noise levels of their own. */
void discriminator_logits(const Shape *s, const Layer *layers, const Norm *norms, const Layer *gradients,
                          const Norm *norm_gradients, count from, const Conditions *given, count rows, const float *x,
                          const float *signs, float scale, float *logits, float *to_x, float *memory) {
    count last = output_of(s), width = stride(s->width), dim = stride(s->dim), answer = stride(s->answer);
    count blocks = s->depth - NORMS, size = ROWS * width;
    float *panels = memory, *input_panels = panels + panels_size(s);
    float *layer_sums = input_panels + s->width * padded(s->dim), *norm_sums = layer_sums + sums_at(s, last + 1);
    float *own = norm_sums + 2 * NORMS * width, *units = own + block_size(s);
    float *to_answer = units + NORMS * norm_size(s), *to_input = to_answer + ROWS * answer;
    float *to_h = to_input + ROWS * dim, *to_e = to_h + size;
    const Sums sums = {0, gradients ? layer_sums : 0};
    Block b = block_at(s, own);
    pack_all(s, layers, FORWARD | BACKWARD, panels);
    if (to_x) pack(s->width, s->dim, layers[INPUT].weight, input_panels, 0);
    memset(layer_sums, 0, (size_t)(own - layer_sums) * sizeof *own);
    memset(to_answer, 0, (size_t)(ROWS * answer) * sizeof *to_answer);
    for (count first = 0; first < rows; first += ROWS) {
        count here = smaller(ROWS, rows - first);
        forward_body(s, panels, given, blocks, first, here, x + first * s->dim, b, 1);
        for (count k = 0; k < NORMS; k++) {
            count layer = FIRST + blocks + k;
            float *a = units + k * norm_size(s), *before = b.h + (blocks + k) * size;
            apply(s, panels, layer, here, before, 0, 0, a);
            norm_and_silu(s, norms + k, here, a, a + size, before + size, b.slopes + (blocks + k) * size);
        }
        apply(s, panels, last, here, b.h + s->depth * size, 0, 0, b.answer);
        for (count i = 0; i < here; i++) {
            float sign = signs[first + i], logit = logits[first + i] = b.answer[i * answer];
            to_answer[i * answer] = scale * sign * sigmoid(sign * logit);
        }
        if (gradients) add_gradients(s, last, here, to_answer, b.h + s->depth * size, sums, 1);
        apply_transposed(s, panels, last, here, to_answer, to_h, 0);
        for (count k = NORMS - 1; k >= 0; k--) {
            count layer = FIRST + blocks + k;
            float *a = units + k * norm_size(s);
            back_through_norm(s, norms + k, here, a, a + size, b.slopes + (blocks + k) * size, to_h,
                              gradients ? norm_sums + 2 * k * width : 0);
            if (gradients) add_gradients(s, layer, here, to_h, b.h + (blocks + k) * size, sums, 1);
            /* to_e is free until the body. */
            apply_transposed(s, panels, layer, here, to_h, to_e, 0);
            memcpy(to_h, to_e, (size_t)(here * width) * sizeof *to_h);
        }
        if (to_x || from == 0) backward_body(s, panels, given, blocks, here, b, to_h, to_e, sums, 1);
        if (!to_x) continue;
        product(here, padded(s->dim) / PANEL, s->width, to_h, width, 1, input_panels, s->width * PANEL, PANEL, to_input, dim,
                (Start){0});
        for (count i = 0; i < here; i++) {
            float c_in = given->c_in[entry_of(given, first + i)];
            for (count j = 0; j < s->dim; j++) to_x[(first + i) * s->dim + j] = c_in * to_input[i * dim + j];
        }
    }
    if (!gradients) return;
    for (count l = from; l <= last; l++) finish(s, l, sums, gradients, 1);
    for (count k = 0; k < NORMS; k++)
        for (count j = 0; j < s->width; j++) {
            norm_gradients[k].gain[j] += norm_sums[2 * k * width + j];
            norm_gradients[k].shift[j] += norm_sums[(2 * k + 1) * width + j];
        }
}
