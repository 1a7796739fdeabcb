/* Matrix products of row-major blocks that stay in the cache, a tile of entries at a time in registers.
 *
 * Each entry is one chain of fused multiply-adds along the inner dimension, in order: it does not depend on how the
 * outer dimensions are cut, nor on how many lanes the CPU has. Columns are padded to whole panels of 16 (`padded`); the
 * padding holds zeros. */
#pragma once
#include "arithmetic.h"

enum { PANEL = 16 };

/* A tile has at most `TILE` rows of `VECTORS` vectors, or `NARROW` rows of fewer: as many sums as there are registers for, and
 * enough of them to keep the multipliers busy while each sum waits for its last term. Tiles below each other use the same
 * `DEPTH` rows of the right factor, which then are in the first cache. Matrices of `FAR` entries and more have
 * left the second cache, as measured, when they are used again, and are fetched ahead. By AVX2 none are: it gains nothing. */
#if defined(__AVX512F__)
enum { LANES = 16, VECTORS = 4, TILE = 6, NARROW = 8, DEPTH = 128, FAR = 1 << 15 };
#else
enum { LANES = 8, VECTORS = 2, TILE = 6, NARROW = 8, DEPTH = 256, FAR = 1 << 30 };
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

/* What sums begin with: rows so far apart, 0 where all begin with the same one, and one that is added to each,
 * which may be missing. Without `rows` sums begin with 0. */
typedef struct {
    const float *rows;
    count apart;
    const float *added;
} Start;

EACH Start start_from(Start start, count row, count column) {
    return (Start){start.rows ? start.rows + row * start.apart + column : 0, start.apart,
                   start.added ? start.added + column : 0};
}

/* What is needed soon: each turn along the inner dimension fetches a line of it, so far apart, if there is any. A burst of lines
 * would keep the tile's own loads waiting. */
typedef struct {
    const float *from;
    count apart;
} Ahead;

/* An instruction reaches this many rows from one pointer: it, once and twice the distance of rows further. */
enum { REACHED = 3 };

#define EACH_REACHED UNROLLED for (int r = 0; r < rows; r += REACHED)

/* Hide where a pointer comes from: in a loop, compilers then step it by one addition, instead of computing it anew from others. */
#define STEPS_ALONE(pointer) __asm__("" : "+r"(pointer))

/* sums[r][v] += Σ_k a[r·a_row + k·a_step] · b[k·b_step + v·b_next + …]. */
EACH void add_terms(const int rows, const int vectors, count inner, const float *a, count a_row, count a_step, const float *b,
                    count b_next, count b_step, lanes sums[NARROW][VECTORS], Ahead ahead, const int fetches) {
    const float *reached[(NARROW + REACHED - 1) / REACHED];
    EACH_REACHED reached[r / REACHED] = a + r * a_row;
    for (count k = 0; k < inner; k++, b += b_step) {
        EACH_REACHED STEPS_ALONE(reached[r / REACHED]);
        lanes own[VECTORS];
        UNROLLED for (int v = 0; v < vectors; v++) own[v] = load(b + v * b_next);
        if (fetches) {
            __builtin_prefetch(ahead.from, 0, 2);
            ahead.from += ahead.apart;
        }
        UNROLLED for (int r = 0; r < rows; r++) {
            lanes entry = same_in_all(reached[r / REACHED][r % REACHED * a_row]);
            UNROLLED for (int v = 0; v < vectors; v++) sums[r][v] = fused(entry, own[v], sums[r][v]);
        }
        EACH_REACHED reached[r / REACHED] += a_step;
    }
}

/* c[r][j] = start[r][j] + Σ_k a[r·a_row + k·a_step] · b[k·b_step + j] for the columns j of some vectors; those of b lie
 * b_next apart. */
EACH void tile(const int rows, const int vectors, count inner, const float *a, count a_row, count a_step, const float *b,
               count b_next, count b_step, float *c, count c_row, Start start, Ahead ahead) {
    lanes sums[NARROW][VECTORS];
#define EACH_SUM UNROLLED for (int r = 0; r < rows; r++) UNROLLED for (int v = 0; v < vectors; v++) sums[r][v]
    if (!start.rows) EACH_SUM = (lanes){0};
    else if (!start.added) EACH_SUM = load(start.rows + r * start.apart + v * LANES);
    else EACH_SUM = load(start.rows + r * start.apart + v * LANES) + load(start.added + v * LANES);
#undef EACH_SUM
    const int full = rows == TILE && vectors == VECTORS;
    if (full && ahead.from) add_terms(rows, vectors, inner, a, a_row, a_step, b, b_next, b_step, sums, ahead, 1);
    else add_terms(rows, vectors, inner, a, a_row, a_step, b, b_next, b_step, sums, ahead, 0);
    UNROLLED for (int r = 0; r < rows; r++)
        UNROLLED for (int v = 0; v < vectors; v++) store(c + r * c_row + v * LANES, sums[r][v]);
}

/* The same for any number of rows. If what comes next is `far`, tiles fetch it ahead: `soon`, the right factor of the next strip, or,
 * without that, the sums that the next tiles begin with; each tile one column of vectors, in turn. */
EACH void strip(count rows, const int vectors, count inner, const float *a, count a_row, count a_step, const float *b,
                count b_next, count b_step, float *c, count c_row, Start start, int far, const float *soon) {
    count turn = 0;
#define TILES_OF(some) \
    for (; rows >= some; rows -= some, a += some * a_row, c += some * c_row, start = start_from(start, some, 0)) { \
        const float *from = soon ? soon + turn * b_next : c + some * c_row + turn * LANES; \
        const Ahead ahead = {far ? from : 0, soon ? b_step : c_row}; \
        tile(some, vectors, inner, a, a_row, a_step, b, b_next, b_step, c, c_row, start, ahead); \
        turn = (turn + 1) % vectors; \
    }
    if (vectors < VECTORS) TILES_OF(NARROW);
    TILES_OF(TILE);
    TILES_OF(4);
    TILES_OF(2);
    TILES_OF(1);
#undef TILES_OF
}

/* The same for any number of panels. What is large is either the sums, which then are what is fetched ahead, or the right factor. */
EACH void strips(count rows, count panels, count inner, const float *a, count a_row, count a_step, const float *b,
                 count b_panel, count b_step, float *c, count c_row, Start start, const int sums_are_large) {
    const int far = (sums_are_large ? rows : inner) * panels * PANEL >= FAR;
    const count b_next = LANES == PANEL ? b_panel : LANES;
#define STRIPS_OF(vectors) \
    for (const count each = (vectors) * LANES / PANEL; each && panels >= each; \
         panels -= each, b += each * b_panel, c += each * PANEL, start = start_from(start, 0, each * PANEL)) \
        for (count k = 0; k < inner; k += DEPTH) \
            strip(rows, vectors, smaller(DEPTH, inner - k), a + k * a_step, a_row, a_step, b + k * b_step, b_next, b_step, \
                  c, c_row, k ? (Start){c, c_row, 0} : start, far, \
                  sums_are_large ? 0 : k + DEPTH < inner ? b + (k + DEPTH) * b_step : b + each * b_panel)
    STRIPS_OF(VECTORS);
    STRIPS_OF(VECTORS / 2);
    STRIPS_OF(VECTORS / 4);
#undef STRIPS_OF
}

/* c [rows × 16·panels] = start + a·b; c itself may be the start. Entries of a lie a_row and a_step apart, one of which is 1;
 * b's panels lie b_panel and its rows b_step apart. */
static void product(count rows, count panels, count inner, const float *a, count a_row, count a_step, const float *b,
                    count b_panel, count b_step, float *c, count c_row, Start start) {
    /* Where compilers know the 1, they find shorter ways from one entry to the next. A left factor that is read by columns makes a
     * weight's gradient: of the three matrices that one is the largest. */
    if (a_row == 1) strips(rows, panels, inner, a, 1, a_step, b, b_panel, b_step, c, c_row, start, 1);
    else strips(rows, panels, inner, a, a_row, 1, b, b_panel, b_step, c, c_row, start, 0);
}

/* to[j] += Σ_i from[i·row + j], row by row, for `columns` columns; so many at a time that sums in registers don't wait. */
EACH void add_rows(count rows, count columns, const float *from, count row, float *to) {
    enum { AT_ONCE = 64 / LANES };
    count j = 0;
    for (; j + AT_ONCE * LANES <= columns; j += AT_ONCE * LANES) {
        lanes sums[AT_ONCE];
        UNROLLED for (int v = 0; v < AT_ONCE; v++) sums[v] = load(to + j + v * LANES);
        for (count i = 0; i < rows; i++)
            UNROLLED for (int v = 0; v < AT_ONCE; v++) sums[v] += load(from + i * row + j + v * LANES);
        UNROLLED for (int v = 0; v < AT_ONCE; v++) store(to + j + v * LANES, sums[v]);
    }
    for (count i = 0; i < rows; i++)
        SIDE_BY_SIDE for (count k = j; k < columns; k++) to[k] += from[i * row + k];
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

/* Pack a block of a matrix [outer × inner], row-major, of at most PANEL rows and columns: into its own panels [outer × 16], and
 * into those [inner × 16] of its transpose. Either may be missing; the rest of a panel's row becomes 0. */
EACH void pack_block(const count rows, const count columns, count inner, const float *from, float *own, float *transposed) {
    if (own)
        for (count i = 0; i < rows; i++) copy_row(columns, PANEL, from + i * inner, own + i * PANEL);
    if (!transposed) return;
    if (rows == PANEL && columns == PANEL)
        for (count i = 0; i < PANEL; i += EIGHT)
            for (count j = 0; j < PANEL; j += EIGHT) transpose_eight(from + i * inner + j, inner, transposed + j * PANEL + i);
    else
        for (count j = 0; j < columns; j++)
            for (count i = 0; i < PANEL; i++) transposed[j * PANEL + i] = i < rows ? from[i * inner + j] : 0.0f;
}

/* The blocks of a matrix, in loops that count i, j, rows and columns: rows i … i + rows − 1, columns j … j + columns − 1. */
#define EACH_BLOCK(outer, inner) \
    for (count i = 0, rows; (rows = smaller(PANEL, (outer) - i)) > 0; i += rows) \
        for (count j = 0, columns; (columns = smaller(PANEL, (inner) - j)) > 0; j += columns)

/* Where in panels [length × 16], if there are any, a block begins: in which of their rows, and in which column of the matrix. */
EACH float *block_in(float *panels, count length, count row, count column) {
    return panels ? panels + column * length + row * PANEL : 0;
}

/* Pack a matrix [outer × inner], row-major, into its own panels or those of its transpose, or both. */
static void pack(count outer, count inner, const float *from, float *own, float *transposed) {
    EACH_BLOCK(outer, inner)
        pack_block(rows, columns, inner, from + i * inner + j, block_in(own, outer, i, j), block_in(transposed, inner, j, i));
}
