/* Matrix products of row-major blocks that stay in the cache, a tile of entries at a time in registers.
 *
 * Each entry is one chain of fused multiply-adds along the inner dimension, in order: it does not depend on how the
 * outer dimensions are cut, nor on how many lanes the CPU has. Columns are padded to whole panels of 16 (`padded`); the
 * padding holds zeros. */
#pragma once
#include "arithmetic.h"

enum { PANEL = 16 };

/* A tile has `TILE` rows and two vectors a row: one panel of 16 columns by AVX2, two panels by AVX-512. */
#if defined(__AVX512F__)
enum { LANES = 16, TILE = 8 };
#else
enum { LANES = 8, TILE = 6 };
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

EACH count padded(count columns) { return (columns + PANEL - 1) / PANEL * PANEL; }

/* The distance of rows in memory. Rows a large power of two apart would compete for a few places in the cache. */
EACH count stride(count columns) {
    count own = padded(columns);
    return own >= 128 && own % 64 == 0 ? own + PANEL : own;
}

EACH lanes load(const float *from) { return *(const lanes *)from; }

EACH void store(float *to, lanes values) { *(lanes *)to = values; }

EACH lanes same_in_all(float value) {
    lanes same;
    for (int lane = 0; lane < LANES; lane++) same[lane] = value;
    return same;
}

EACH lanes fused(lanes a, lanes b, lanes c) {
#if defined(__clang__)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__)
    return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4);
#elif defined(__FMA__)
    return __builtin_ia32_vfmaddps256(a, b, c);
#else
    for (int lane = 0; lane < LANES; lane++) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
}

/* c[r][j] = (start ? c : 0) + Σ_k a[r·a_row + k·a_step] · b[k·b_step + j] for r < rows ≤ TILE and the columns j of one or
 * two vectors; the second lies b_next after the first in b. */
EACH void tile(const int rows, const int vectors, count inner, const float *a, count a_row, count a_step, const float *b,
               count b_next, count b_step, float *c, count c_row, int start) {
    lanes sums[TILE][2];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = start ? load(c + r * c_row + v * LANES) : (lanes){0};
    for (count k = 0; k < inner; k++, a += a_step, b += b_step) {
        lanes left = load(b), right = vectors > 1 ? load(b + b_next) : left;
        for (int r = 0; r < rows; r++) {
            lanes entry = same_in_all(a[r * a_row]);
            sums[r][0] = fused(entry, left, sums[r][0]);
            if (vectors > 1) sums[r][1] = fused(entry, right, sums[r][1]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(c + r * c_row + v * LANES, sums[r][v]);
}

/* The same for any number of rows. */
EACH void strip(count rows, const int vectors, count inner, const float *a, count a_row, count a_step, const float *b,
                count b_next, count b_step, float *c, count c_row, int start) {
    for (count r = 0; r < rows; r += TILE, a += TILE * a_row, c += TILE * c_row)
        switch (smaller(TILE, rows - r)) {
#define CASE(few) case few: tile(few, vectors, inner, a, a_row, a_step, b, b_next, b_step, c, c_row, start); break
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
#if defined(__AVX512F__)
        CASE(7); CASE(8);
#endif
#undef CASE
        }
}

/* c [rows × 16·panels] = (start ? c : 0) + a·b; b's panels lie b_panel apart. Strides as in `tile`. */
static void product(count rows, count panels, count inner, const float *a, count a_row, count a_step, const float *b,
                    count b_panel, count b_step, float *c, count c_row, int start) {
    const count together = 2 * LANES / PANEL, b_next = LANES == PANEL ? b_panel : LANES;
    for (; panels >= together; panels -= together, b += together * b_panel, c += together * PANEL)
        strip(rows, 2, inner, a, a_row, a_step, b, b_next, b_step, c, c_row, start);
    if (panels) strip(rows, 1, inner, a, a_row, a_step, b, b_next, b_step, c, c_row, start);
}

/* A row's entries, with zeros up to `all`, both multiples of 16 often: calls of memcpy would take longer than they copy. */
EACH void copy_row(count used, count all, const float *from, float *to) {
    count j = 0;
    for (; j + PANEL <= used; j += PANEL)
        for (count lane = 0; lane < PANEL; lane += LANES) store(to + j + lane, load(from + j + lane));
    for (; j < used; j++) to[j] = from[j];
    for (; j < all; j++) to[j] = 0.0f;
}

enum { EIGHT = 8 };

typedef float eight __attribute__((vector_size(4 * EIGHT), aligned(4)));

#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* to[k·PANEL + j] = from[j·step + k] for j, k < 8. */
EACH void transpose_eight(const float *from, count step, float *to) {
    eight r[EIGHT], s[EIGHT];
    for (int j = 0; j < EIGHT; j++) r[j] = *(const eight *)(from + j * step);
    for (int j = 0; j < EIGHT; j += 2) {
        s[j] = SHUFFLED(r[j], r[j + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        s[j + 1] = SHUFFLED(r[j], r[j + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int j = 0; j < EIGHT; j += 4)
        for (int i = j; i < j + 2; i++) {
            r[i] = SHUFFLED(s[i], s[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + 2] = SHUFFLED(s[i], s[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        *(eight *)(to + i * PANEL) = SHUFFLED(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(eight *)(to + (i + 4) * PANEL) = SHUFFLED(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Pack a matrix [inner × columns], row-major with `row` entries a row, into panels [inner × 16]. */
static void pack(count inner, count columns, const float *from, count row, float *to) {
    for (count first = 0; first < columns; first += PANEL, to += inner * PANEL) {
        count here = columns - first < PANEL ? columns - first : PANEL;
        for (count k = 0; k < inner; k++) copy_row(here, PANEL, from + k * row + first, to + k * PANEL);
    }
}

/* The same for a matrix whose transpose [columns × inner] is given. */
static void pack_transposed(count inner, count columns, const float *from, float *to) {
    for (count first = 0; first < columns; first += PANEL, from += PANEL * inner, to += inner * PANEL) {
        count here = columns - first < PANEL ? columns - first : PANEL, whole = here < PANEL ? 0 : inner / EIGHT * EIGHT;
        if (here < PANEL) memset(to, 0, (size_t)(inner * PANEL) * sizeof *to);
        for (count k = 0; k < whole; k += EIGHT)
            for (count j = 0; j < PANEL; j += EIGHT) transpose_eight(from + j * inner + k, inner, to + k * PANEL + j);
        for (count k = whole; k < inner; k++)
            for (count j = 0; j < here; j++) to[k * PANEL + j] = from[j * inner + k];
    }
}
