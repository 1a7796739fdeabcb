/* The residual MLP of dmdpipe.networks.mlp, forward and backward, on one core.
 *
 *   h₀ = W_in·c_in·x + b_in;  h_{l+1} = h_l + silu(W_l·h_l + b_l + e),  e = silu(W_e·features + b_e);  F = W_out·h_L + b_out
 *
 * Rows go through all layers in blocks that stay in the cache. What a row becomes does not depend on its block; gradients
 * at weights are sums over rows, in order. */
#pragma once
#include "products.h"

/* So many that a block stays in the second cache, and few enough passes over the sums of gradients, as measured. */
#if defined(__AVX512F__)
enum { ROWS = 96 };
#else
enum { ROWS = 132 };
#endif

/* Coordinates of x, units of a hidden layer, hidden layers after the first, noise features, and coordinates of F. */
typedef struct {
    count dim, width, depth, embedding, answer;
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

EACH count outer_of(const Shape *s, count layer) { return layer == output_of(s) ? s->answer : s->width; }

EACH count parameters_of(const Shape *s, count layer) { return (inner_of(s, layer) + 1) * outer_of(s, layer); }

EACH count entry_of(const Conditions *given, count i) { return given->rows ? given->rows[i] : i * given->stride; }

EACH int one_level(const Conditions *given) { return !given->rows && given->stride == 0; }

/* A pass over the entries i of rows of which the first `used` of `row` columns count; rows without a gap are passed as one. */
#define EACH_ENTRY(i, rows, used, row) \
    for (count at_ = 0, run_ = (used) == (row) ? (rows) * (row) : (used); at_ < (rows) * (row); at_ += run_ > (row) ? run_ : (row)) \
        SIDE_BY_SIDE for (count i = at_; i < at_ + run_; i++)

/* The number of floats of a block, and its parts in a piece of memory. */
static count block_size(const Shape *s) {
    return ROWS * (stride(s->dim) + stride(s->answer) + stride(s->embedding) + (2 * s->depth + 3) * stride(s->width));
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

/* Where what is packed of a layer begins: its bias and weight to go forward, [1 + in × out]; and, behind those of all layers, its
 * weight to go backward, [out × in]. Columns are padded. */
static count forward_at(const Shape *s, count layer) {
    count at = 0;
    for (count l = 0; l < layer; l++) at += (inner_of(s, l) + 1) * padded(outer_of(s, l));
    return at;
}

/* Biases stand before the panels of a layer's weight. */
EACH const float *bias_of(const Shape *s, const float *panels, count layer) { return panels + forward_at(s, layer); }

EACH const float *weight_of(const Shape *s, const float *panels, count layer) {
    return bias_of(s, panels, layer) + padded(outer_of(s, layer));
}

static count backward_at(const Shape *s, count layer) {
    count at = forward_at(s, output_of(s) + 1);
    for (count l = FIRST; l < layer; l++) at += outer_of(s, l) * padded(inner_of(s, l));
    return at;
}

/* Where the sums of a layer's gradients begin: weight [out × in], then bias, with padded columns. */
static count sums_at(const Shape *s, count layer) {
    count at = 0;
    for (count l = 0; l < layer; l++) at += outer_of(s, l) * stride(inner_of(s, l)) + stride(outer_of(s, l));
    return at;
}

/* Where the sums of gradients go: those of a layer whose rows are whole panels, as products write them, to its `gradients`, if
 * there are any; all others to `memory`. Without memory nothing is summed. */
typedef struct {
    const Layer *gradients;
    float *memory;
} Sums;

/* Those of one layer, with rows of the weight so far `apart`. */
typedef struct {
    float *weight, *bias;
    count apart;
} LayerSums;

static LayerSums sums_of(const Shape *s, count layer, Sums sums) {
    count inner = inner_of(s, layer), apart = stride(inner);
    float *own = sums.memory + sums_at(s, layer);
    if (!sums.gradients || inner % PANEL) return (LayerSums){own, own + outer_of(s, layer) * apart, apart};
    return (LayerSums){sums.gradients[layer].weight, sums.gradients[layer].bias, inner};
}

static count panels_size(const Shape *s) { return backward_at(s, output_of(s) + 1); }

enum { FORWARD = 1, BACKWARD = 2 };

/* Where a layer is packed, or 0 for a way that it does not go: its bias, and its weight to go forward and backward. */
typedef struct {
    float *bias, *forward, *backward;
} Packed;

static Packed packed_at(const Shape *s, count layer, int ways, float *panels) {
    float *bias = ways & FORWARD ? panels + forward_at(s, layer) : 0;
    return (Packed){bias, bias ? bias + padded(outer_of(s, layer)) : 0,
                    ways & BACKWARD && layer >= FIRST ? panels + backward_at(s, layer) : 0};
}

/* Pack all layers to go forward or backward, or both. */
static void pack_all(const Shape *s, const Layer *layers, int ways, float *panels) {
    for (count l = 0; l <= output_of(s); l++) {
        count outer = outer_of(s, l);
        const Packed to = packed_at(s, l, ways, panels);
        if (to.bias) copy_row(outer, padded(outer), layers[l].bias, to.bias);
        pack(outer, inner_of(s, l), layers[l].weight, to.backward, to.forward);
    }
}

/* to [rows × outer] = bias + added + from·Wᵀ; rows of what is added, if anything is, lie so far apart. */
static void apply(const Shape *s, const float *panels, count layer, count rows, const float *from, const float *added,
                  count apart, float *to) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer);
    const float *bias = bias_of(s, panels, layer);
    product(rows, padded(outer) / PANEL, inner, from, stride(inner), 1, weight_of(s, panels, layer), inner * PANEL, PANEL,
            to, stride(outer), added ? (Start){added, apart, bias} : (Start){bias, 0, 0});
}

/* Send a block's rows x [rows × d] through so many residual blocks, and return h after them; first is their number in the
 * batch. With `keep` all stays that the way back needs; without it h is overwritten layer by layer. */
EACH float *forward_body(const Shape *s, const float *panels, const Conditions *given, count blocks, count first,
                         count rows, const float *x, Block b, const int keep) {
    count dim = stride(s->dim), width = stride(s->width), columns = padded(s->width), features = stride(s->embedding);
    for (count i = 0; i < rows; i++) {
        float scale = given->c_in[entry_of(given, first + i)];
        SIDE_BY_SIDE for (count j = 0; j < s->dim; j++) b.x[i * dim + j] = scale * x[i * s->dim + j];
        for (count j = s->dim; j < dim; j++) b.x[i * dim + j] = 0.0f;
    }
    count levels = one_level(given) ? 1 : rows, e_row = one_level(given) ? 0 : width;
    for (count i = 0; i < levels; i++) {
        const float *from = given->features + entry_of(given, first + i) * s->embedding;
        copy_row(s->embedding, features, from, b.features + i * features);
    }
    apply(s, panels, EMBEDDING, levels, b.features, 0, 0, b.embedding);
    EACH_ENTRY(i, levels, columns, width) {
        float a = b.embedding[i], gate = sigmoid(a), value = a * gate;
        b.embedding[i] = value;
        b.e_slope[i] = fma1(value, 1.0f - gate, gate);
    }
    float *h = b.h;
    apply(s, panels, INPUT, rows, b.x, 0, 0, h);
    for (count l = 0; l < blocks; l++) {
        float *slopes = b.slopes + (keep ? l * ROWS * width : 0), *after = keep ? h + ROWS * width : h;
        apply(s, panels, FIRST + l, rows, h, b.embedding, e_row, slopes);
        EACH_ENTRY(i, rows, columns, width) {
            float a = slopes[i], gate = sigmoid(a), value = a * gate;
            after[i] = h[i] + value;
            if (keep) slopes[i] = fma1(value, 1.0f - gate, gate);
        }
        h = after;
    }
    return h;
}

/* Add to a layer's sums, which are `begun` or else 0, what a block's rows say: `to` [rows × outer] is the gradient at its
 * output, `from` its input. */
static void add_gradients(const Shape *s, count layer, count rows, const float *to, const float *from, Sums sums,
                          int begun) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer), row = stride(outer);
    const LayerSums own = sums_of(s, layer, sums);
    product(outer, padded(inner) / PANEL, rows, to, 1, row, from, PANEL, stride(inner), own.weight, own.apart,
            (Start){begun ? own.weight : 0, own.apart, 0});
    if (!begun) memset(own.bias, 0, (size_t)outer * sizeof *own.bias);
    add_rows(rows, outer, to, row, own.bias);
}

/* to_from [rows × inner] = (begun ? to_from : 0) + to·W: the gradient at a layer's input, given that at its output. */
static void apply_transposed(const Shape *s, const float *panels, count layer, count rows, const float *to, float *to_from,
                             int begun) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer);
    product(rows, padded(inner) / PANEL, outer, to, stride(outer), 1, panels + backward_at(s, layer), outer * PANEL, PANEL,
            to_from, stride(inner), (Start){begun ? to_from : 0, stride(inner), 0});
}

/* The way back through residual blocks: to_h [rows × width] is the gradient at h after them and becomes that at h₀; slopes
 * are overwritten. to_e [ROWS × width] is memory. Without memory for sums there are no gradients at weights. With one noise
 * level, e is added in every row of every residual block, and its gradient is left to `add_one_level`. */
static void backward_body(const Shape *s, const float *panels, const Conditions *given, count blocks, count rows, Block b,
                          float *to_h, float *to_e, Sums sums, int begun) {
    count width = stride(s->width), columns = padded(s->width), size = ROWS * width;
    if (!one_level(given)) memset(to_e, 0, (size_t)(rows * width) * sizeof *to_e);
    for (count l = blocks - 1; l >= 0; l--) {
        float *to_a = b.slopes + l * size;
        EACH_ENTRY(i, rows, columns, width) to_a[i] *= to_h[i];
        if (!one_level(given)) EACH_ENTRY(i, rows, columns, width) to_e[i] += to_a[i];
        if (sums.memory) add_gradients(s, FIRST + l, rows, to_a, b.h + l * size, sums, begun);
        apply_transposed(s, panels, FIRST + l, rows, to_a, to_h, 1);
    }
    if (!sums.memory) return;
    add_gradients(s, INPUT, rows, to_h, b.x, sums, begun);
    if (one_level(given)) return;
    EACH_ENTRY(i, rows, columns, width) to_e[i] *= b.e_slope[i];
    add_gradients(s, EMBEDDING, rows, to_e, b.features, sums, begun);
}

/* Set the embedding's sums where all rows have one noise level: the gradient at e is the sum of those at the biases of all
 * residual blocks. b is any block, to_e [width] memory. */
static void add_one_level(const Shape *s, Block b, float *to_e, Sums sums) {
    memset(to_e, 0, (size_t)s->width * sizeof *to_e);
    for (count l = s->depth - 1; l >= 0; l--) {
        const float *bias = sums_of(s, FIRST + l, sums).bias;
        for (count j = 0; j < s->width; j++) to_e[j] += bias[j];
    }
    for (count j = 0; j < s->width; j++) to_e[j] *= b.e_slope[j];
    add_gradients(s, EMBEDDING, 1, to_e, b.features, sums, 0);
}

/* Set, or add to, a layer's gradients, where they are not what was summed. */
static void finish(const Shape *s, count layer, Sums sums, const Layer *gradients, int add) {
    count inner = inner_of(s, layer), outer = outer_of(s, layer);
    const LayerSums own = sums_of(s, layer, sums);
    if (own.weight == gradients[layer].weight) return;
    const float *row = own.weight;
    for (count i = 0; i <= outer; i++, row += own.apart) {
        float *to = i < outer ? gradients[layer].weight + i * inner : gradients[layer].bias;
        count size = i < outer ? inner : outer;
        SIDE_BY_SIDE for (count j = 0; j < size; j++) to[j] = add ? to[j] + row[j] : row[j];
    }
}
