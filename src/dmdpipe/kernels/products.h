/* Matrix products of row-major blocks that stay in the cache, 6 × 16 entries at a time in registers.
 *
 * Each entry is one chain of fused multiply-adds along the inner dimension, in order: it does not depend on how the
 * outer dimensions are cut. Columns are padded to whole panels of 16 (`padded`); the padding holds zeros. */
#pragma once
#include "arithmetic.h"

enum { LANES = 8, PANEL = 16, TILE = 6 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

EACH count padded(count columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

/* The distance of rows in memory. Rows a large power of two apart would compete for a few places in the cache. */
EACH count stride(count columns) {
    count own = padded(columns);
    return own >= 128 && own % 64 == 0 ? own + PANEL : own;
}

EACH lanes load(const float *from) { return *(const lanes *)from; }

EACH void store(float *to, lanes values) { *(lanes *)to = values; }

EACH lanes fma8(lanes a, lanes b, lanes c) {
#if defined(__clang__)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__FMA__)
    return __builtin_ia32_vfmaddps256(a, b, c);
#else
    for (int lane = 0; lane < LANES; lane++) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
}

/* c[r][0…15] = (start ? c : 0) + Σ_k a[r·a_row + k·a_step] · b[k·b_step + 0…15] for r < rows ≤ TILE. */
EACH void tile(const int rows, count inner, const float *a, count a_row, count a_step, const float *b, count b_step,
               float *c, count c_row, int start) {
    lanes sums[TILE][2];
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = start ? load(c + r * c_row + half * LANES) : (lanes){0};
    for (count k = 0; k < inner; k++, a += a_step, b += b_step) {
        lanes left = load(b), right = load(b + LANES);
        for (int r = 0; r < rows; r++) {
            float entry = a[r * a_row];
            lanes same = {entry, entry, entry, entry, entry, entry, entry, entry};
            sums[r][0] = fma8(same, left, sums[r][0]);
            sums[r][1] = fma8(same, right, sums[r][1]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) store(c + r * c_row + half * LANES, sums[r][half]);
}

/* c [rows × 16·panels] = (start ? c : 0) + a·b; b's panels lie b_panel apart. Strides as in `tile`. */
static void product(count rows, count panels, count inner, const float *a, count a_row, count a_step, const float *b,
                    count b_panel, count b_step, float *c, count c_row, int start) {
    for (count p = 0; p < panels; p++, b += b_panel, c += PANEL)
        for (count r = 0; r < rows; r += TILE) {
            const float *from = a + r * a_row;
            float *to = c + r * c_row;
            switch (rows - r) {
            case 1: tile(1, inner, from, a_row, a_step, b, b_step, to, c_row, start); break;
            case 2: tile(2, inner, from, a_row, a_step, b, b_step, to, c_row, start); break;
            case 3: tile(3, inner, from, a_row, a_step, b, b_step, to, c_row, start); break;
            case 4: tile(4, inner, from, a_row, a_step, b, b_step, to, c_row, start); break;
            case 5: tile(5, inner, from, a_row, a_step, b, b_step, to, c_row, start); break;
            default: tile(TILE, inner, from, a_row, a_step, b, b_step, to, c_row, start);
            }
        }
}

#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* to[k·PANEL + j] = from[j·step + k] for j, k < 8. */
EACH void transpose_eight(const float *from, count step, float *to) {
    lanes r[LANES], s[LANES];
    for (int j = 0; j < LANES; j++) r[j] = load(from + j * step);
    for (int j = 0; j < LANES; j += 2) {
        s[j] = SHUFFLED(r[j], r[j + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[j + 1] = SHUFFLED(r[j], r[j + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int j = 0; j < LANES; j += 4)
        for (int i = j; i < j + 2; i++) {
            r[i] = SHUFFLED(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + 2] = SHUFFLED(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        store(to + i * PANEL, SHUFFLED(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(to + (i + 4) * PANEL, SHUFFLED(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/* Pack a matrix [inner × columns], row-major with `row` entries a row, into panels [inner × 16]. */
static void pack(count inner, count columns, const float *from, count row, float *to) {
    for (count first = 0; first < columns; first += PANEL, to += inner * PANEL) {
        count here = columns - first < PANEL ? columns - first : PANEL;
        if (here < PANEL) memset(to, 0, (size_t)(inner * PANEL) * sizeof *to);
        for (count k = 0; k < inner; k++) memcpy(to + k * PANEL, from + k * row + first, (size_t)here * sizeof *to);
    }
}

/* The same for a matrix whose transpose [columns × inner] is given. */
static void pack_transposed(count inner, count columns, const float *from, float *to) {
    for (count first = 0; first < columns; first += PANEL, from += PANEL * inner, to += inner * PANEL) {
        count here = columns - first < PANEL ? columns - first : PANEL, whole = here < PANEL ? 0 : inner / LANES * LANES;
        if (here < PANEL) memset(to, 0, (size_t)(inner * PANEL) * sizeof *to);
        for (count k = 0; k < whole; k += LANES)
            for (count j = 0; j < PANEL; j += LANES) transpose_eight(from + j * inner + k, inner, to + k * PANEL + j);
        for (count k = whole; k < inner; k++)
            for (count j = 0; j < here; j++) to[k * PANEL + j] = from[j * inner + k];
    }
}
