/* The MLP denoiser of dmdpipe.networks.mlp inside its EDM preconditioning, forward and backward, on one core.
 *
 *   D(x, σ) = c_skip·x + c_out·F(c_in·x, features)
 *   F: h₀ = W_in·x + b_in;  h_{l+1} = h_l + silu(W_l·h_l + b_l + e),  e = silu(W_e·features + b_e);  W_out·h_L + b_out
 *
 * Rows go through the whole network in blocks that stay in the cache. What a row becomes does not depend on its block;
 * gradients at weights are sums over rows, in order. */
#include "products.h"

enum { ROWS = 48 };

typedef struct {
    count dim, width, depth, embedding;
} Shape;

/* A layer's weight [out × in] and bias [out]; layers stand in the order of the module's parameters. */
typedef struct {
    float *weight, *bias;
} Layer;

enum { EMBEDDING = 0, INPUT = 1, FIRST = 2 };

/* Tables of coefficients and noise features [·, E]: row i of a batch takes entry rows[i], or i·stride without `rows`.
 * Without c_skip nothing is skipped. */
typedef struct {
    const float *c_in, *c_out, *c_skip, *features;
    const int64_t *rows;
    count stride;
} Conditions;

/* What the rows of one block become on their way, [ROWS × …] each; columns are padded to `stride`. */
typedef struct {
    float *x;                  /* c_in·x */
    float *features;           /* gathered from their table */
    float *embedding, *e_slope; /* e, and silu's slope there; of one row if all rows have one noise level */
    float *h;                  /* h₀ … h_L, one after the other */
    float *slopes;             /* of silu in each residual block */
    float *answer;             /* F */
} Block;

EACH count output_of(const Shape *s) { return FIRST + s->depth; }

EACH count inner_of(const Shape *s, count layer) {
    return layer == EMBEDDING ? s->embedding : layer == INPUT ? s->dim : s->width;
}

EACH count outer_of(const Shape *s, count layer) { return layer == output_of(s) ? s->dim : s->width; }

EACH count entry_of(const Conditions *given, count i) { return given->rows ? given->rows[i] : i * given->stride; }

EACH int one_level(const Conditions *given) { return !given->rows && given->stride == 0; }

/* The number of floats of a block, and its parts in a piece of memory. */
static count block_size(const Shape *s) {
    return ROWS * (2 * stride(s->dim) + stride(s->embedding) + (2 * s->depth + 3) * stride(s->width));
}

static Block block_at(const Shape *s, float *memory) {
    count dim = ROWS * stride(s->dim), width = ROWS * stride(s->width);
    Block b = {.x = memory};
    b.features = b.x + dim;
    b.embedding = b.features + ROWS * stride(s->embedding);
    b.e_slope = b.embedding + width;
    b.h = b.e_slope + width;
    b.slopes = b.h + (s->depth + 1) * width;
    b.answer = b.slopes + s->depth * width;
    return b;
}

/* Where a layer's panels of weights begin, to go forward [in × out] or backward [out × in]; of all: layer = output + 1. */
static count forward_at(const Shape *s, count layer) {
    count at = 0;
    for (count l = 0; l < layer; l++) at += inner_of(s, l) * padded(outer_of(s, l));
    return at;
}

static count backward_at(const Shape *s, count layer) {
    count at = 0;
    for (count l = FIRST; l < layer; l++) at += outer_of(s, l) * padded(inner_of(s, l));
    return at;
}

/* Where the sums of a layer's gradients begin: weight [out × in], then bias, with padded columns. */
static count sums_at(const Shape *s, count layer) {
    count at = 0;
    for (count l = 0; l < layer; l++) at += outer_of(s, l) * stride(inner_of(s, l)) + stride(outer_of(s, l));
    return at;
}

static void pack_forward(const Shape *s, const Layer *layers, float *to) {
    for (count l = 0; l <= output_of(s); l++)
        pack_transposed(inner_of(s, l), outer_of(s, l), layers[l].weight, to + forward_at(s, l));
}

static void pack_backward(const Shape *s, const Layer *layers, float *to) {
    for (count l = FIRST; l <= output_of(s); l++)
        pack(outer_of(s, l), inner_of(s, l), layers[l].weight, inner_of(s, l), to + backward_at(s, l));
}

/* to [rows × outer] = bias + from·Wᵀ, or, with `to` begun already, to += from·Wᵀ. */
static void apply(const Shape *s, const Layer *layers, const float *panels, count layer, count rows, const float *from,
                  float *to, int begun) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer), row = stride(outer);
    if (!begun)
        for (count i = 0; i < rows; i++) {
            memcpy(to + i * row, layers[layer].bias, (size_t)outer * sizeof *to);
            memset(to + i * row + outer, 0, (size_t)(row - outer) * sizeof *to);
        }
    product(rows, padded(outer) / PANEL, inner, from, stride(inner), 1, panels + forward_at(s, layer), inner * PANEL,
            PANEL, to, row, 1);
}

/* Send a block's rows x [rows × d] through the network; first is their number in the batch. With `keep` all stays that
 * the way back needs; without it h is overwritten layer by layer. */
EACH void forward(const Shape *s, const Layer *layers, const float *panels, const Conditions *given, count first,
                  count rows, const float *x, Block b, const int keep) {
    count dim = stride(s->dim), width = stride(s->width), features = stride(s->embedding);
    for (count i = 0; i < rows; i++) {
        float scale = given->c_in[entry_of(given, first + i)];
        SIDE_BY_SIDE for (count j = 0; j < s->dim; j++) b.x[i * dim + j] = scale * x[i * s->dim + j];
        for (count j = s->dim; j < dim; j++) b.x[i * dim + j] = 0.0f;
    }
    count levels = one_level(given) ? 1 : rows, e_row = one_level(given) ? 0 : width;
    for (count i = 0; i < levels; i++) {
        const float *from = given->features + entry_of(given, first + i) * s->embedding;
        memcpy(b.features + i * features, from, (size_t)s->embedding * sizeof *from);
        memset(b.features + i * features + s->embedding, 0, (size_t)(features - s->embedding) * sizeof *from);
    }
    apply(s, layers, panels, EMBEDDING, levels, b.features, b.embedding, 0);
    SIDE_BY_SIDE for (count i = 0; i < levels * width; i++) {
        float a = b.embedding[i], gate = sigmoid(a), value = a * gate;
        b.embedding[i] = value;
        b.e_slope[i] = fma1(value, 1.0f - gate, gate);
    }
    float *h = b.h;
    apply(s, layers, panels, INPUT, rows, b.x, h, 0);
    for (count l = 0; l < s->depth; l++) {
        float *slopes = b.slopes + (keep ? l * ROWS * width : 0), *after = keep ? h + ROWS * width : h;
        const float *bias = layers[FIRST + l].bias;
        for (count i = 0; i < rows; i++) {
            const float *e = b.embedding + i * e_row;
            SIDE_BY_SIDE for (count j = 0; j < s->width; j++) slopes[i * width + j] = bias[j] + e[j];
            for (count j = s->width; j < width; j++) slopes[i * width + j] = 0.0f;
        }
        apply(s, layers, panels, FIRST + l, rows, h, slopes, 1);
        SIDE_BY_SIDE for (count i = 0; i < rows * width; i++) {
            float a = slopes[i], gate = sigmoid(a), value = a * gate;
            after[i] = h[i] + value;
            if (keep) slopes[i] = fma1(value, 1.0f - gate, gate);
        }
        h = after;
    }
    apply(s, layers, panels, output_of(s), rows, h, b.answer, 0);
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

/* Add to a layer's sums what a block's rows say: `to` [rows × outer] is the gradient at its output, `from` its input. */
static void add_gradients(const Shape *s, count layer, count rows, const float *to, const float *from, float *sums) {
    count inner = stride(inner_of(s, layer)), outer = outer_of(s, layer), row = stride(outer);
    float *weight = sums + sums_at(s, layer), *bias = weight + outer * inner;
    product(outer, padded(inner_of(s, layer)) / PANEL, rows, to, 1, row, from, PANEL, inner, weight, inner, 1);
    for (count i = 0; i < rows; i++)
        SIDE_BY_SIDE for (count j = 0; j < row; j++) bias[j] += to[i * row + j];
}

/* The way back of a block: `to` [rows × d] is the loss's gradient at F, columns padded, overwritten, as are the slopes.
 * to_h and to_e [ROWS × width] are memory. */
static void backward(const Shape *s, const float *panels, const Conditions *given, count rows, Block b, const float *to,
                     float *to_h, float *to_e, float *sums) {
    count width = stride(s->width), dim = stride(s->dim), last = output_of(s), size = ROWS * width;
    add_gradients(s, last, rows, to, b.h + s->depth * size, sums);
    product(rows, padded(s->width) / PANEL, s->dim, to, dim, 1, panels + backward_at(s, last), s->dim * PANEL, PANEL, to_h, width, 0);
    if (!one_level(given)) memset(to_e, 0, (size_t)(rows * width) * sizeof *to_e);
    for (count l = s->depth - 1; l >= 0; l--) {
        float *to_a = b.slopes + l * size;
        SIDE_BY_SIDE for (count i = 0; i < rows * width; i++) to_a[i] *= to_h[i];
        if (!one_level(given))
            SIDE_BY_SIDE for (count i = 0; i < rows * width; i++) to_e[i] += to_a[i];
        add_gradients(s, FIRST + l, rows, to_a, b.h + l * size, sums);
        product(rows, padded(s->width) / PANEL, s->width, to_a, width, 1, panels + backward_at(s, FIRST + l), s->width * PANEL,
                PANEL, to_h, width, 1);
    }
    add_gradients(s, INPUT, rows, to_h, b.x, sums);
    if (one_level(given)) return;
    SIDE_BY_SIDE for (count i = 0; i < rows * width; i++) to_e[i] *= b.e_slope[i];
    add_gradients(s, EMBEDDING, rows, to_e, b.features, sums);
}

/* Set or add to the gradients. With one noise level, e is added in every row of every residual block: its gradient is
 * the sum of theirs at the biases. b is any block. */
static void finish(const Shape *s, const Conditions *given, Block b, float *to_e, float *sums, const Layer *gradients,
                   int add) {
    if (one_level(given)) {
        count width = stride(s->width);
        memset(to_e, 0, (size_t)width * sizeof *to_e);
        for (count l = s->depth - 1; l >= 0; l--) {
            const float *bias = sums + sums_at(s, FIRST + l) + s->width * width;
            for (count j = 0; j < width; j++) to_e[j] += bias[j];
        }
        for (count j = 0; j < width; j++) to_e[j] *= b.e_slope[j];
        add_gradients(s, EMBEDDING, 1, to_e, b.features, sums);
    }
    for (count l = 0; l <= output_of(s); l++) {
        count inner = inner_of(s, l), outer = outer_of(s, l);
        const float *from = sums + sums_at(s, l);
        for (count i = 0; i <= outer; i++, from += stride(inner)) {
            float *to = i < outer ? gradients[l].weight + i * inner : gradients[l].bias;
            count size = i < outer ? inner : outer;
            SIDE_BY_SIDE for (count j = 0; j < size; j++) to[j] = add ? to[j] + from[j] : from[j];
        }
    }
}

/* Whether every row of a batch names an entry of tables with so many. */
count mlp_rows_fit(const int64_t *row, count rows, count entries) {
    count inside = 0;
    for (count i = 0; i < rows; i++) inside += row[i] >= 0 && row[i] < entries;
    return inside == rows;
}

/* How many floats of memory the functions below want: of what `mlp_denoise_and_keep` keeps, and to work with. */
count mlp_kept_size(const Shape *s, count rows) { return (rows + ROWS - 1) / ROWS * block_size(s); }

count mlp_memory_size(const Shape *s) {
    count last = output_of(s) + 1;
    return forward_at(s, last) + backward_at(s, last) + sums_at(s, last) + block_size(s)
         + ROWS * (stride(s->dim) + 2 * stride(s->width));
}

typedef struct {
    float *forward, *backward, *sums, *block, *to_answer, *to_h, *to_e;
} Memory;

static Memory memory_at(const Shape *s, float *memory) {
    count last = output_of(s) + 1;
    Memory m = {.forward = memory};
    m.backward = m.forward + forward_at(s, last);
    m.sums = m.backward + backward_at(s, last);
    m.block = m.sums + sums_at(s, last);
    m.to_answer = m.block + block_size(s);
    m.to_h = m.to_answer + ROWS * stride(s->dim);
    m.to_e = m.to_h + ROWS * stride(s->width);
    return m;
}

/* answer [rows × d] = D(x). */
void mlp_denoise(const Shape *s, const Layer *layers, const Conditions *given, count rows, const float *x, float *answer,
                 float *memory) {
    Memory m = memory_at(s, memory);
    Block b = block_at(s, m.block);
    pack_forward(s, layers, m.forward);
    for (count first = 0; first < rows; first += ROWS) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim;
        forward(s, layers, m.forward, given, first, here, own, b, 0);
        combine(s, given, first, here, own, b.answer, answer + first * s->dim);
    }
}

/* The same, and what the way back needs goes to `kept`. */
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
    finish(s, given, b, m.to_e, m.sums, gradients, add != 0);
}

/* Set the gradients of the denoising loss, mean of weight·(D(x) − target)², and return the loss. weight: a table like
 * the conditions', or none for 1. */
float mlp_denoising_loss(const Shape *s, const Layer *layers, const Layer *gradients, const Conditions *given, count rows,
                         const float *x, const float *target, const float *weight, float *memory) {
    Memory m = memory_at(s, memory);
    Block b = block_at(s, m.block);
    pack_forward(s, layers, m.forward);
    pack_backward(s, layers, m.backward);
    memset(m.sums, 0, (size_t)sums_at(s, output_of(s) + 1) * sizeof *m.sums);
    const float per_entry = 2.0f / (float)(rows * s->dim);
    float losses[EIGHT] = {0};
    count dim = stride(s->dim);
    for (count first = 0; first < rows; first += ROWS) {
        count here = smaller(ROWS, rows - first);
        const float *own = x + first * s->dim, *wanted = target + first * s->dim;
        forward(s, layers, m.forward, given, first, here, own, b, 1);
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
        backward(s, m.backward, given, here, b, m.to_answer, m.to_h, m.to_e, m.sums);
    }
    finish(s, given, b, m.to_e, m.sums, gradients, 0);
    return 0.5f * sum_of_eight(losses);
}
