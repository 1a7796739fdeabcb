/* What is asked of the distances between every two points of two sets, without keeping any: double precision.
 *
 * ‖x − y‖² = ‖x‖² + ‖y‖² − 2·x·y; the inner products are made some rows × 8 at a time in registers, each a chain of fused
 * multiply-adds along the coordinates, and used there. Where rounding makes less than 0 of a square its size is taken. */
#include "arithmetic.h"

enum { BLOCK = 64, COLUMNS = 8 };

#if defined(__AVX512F__)
enum { LANES = 8, ROWS = 8 };
#else
enum { LANES = 4, ROWS = 4 };
#endif
/* A tile has two vectors a row: one pack of points by AVX2, two by AVX-512. */
enum { PACKS = 2 * LANES / COLUMNS };

typedef double lanes __attribute__((vector_size(8 * LANES), aligned(8)));
typedef int64_t whole_lanes __attribute__((vector_size(8 * LANES), aligned(8)));

EACH lanes load(const double *from) { return *(const lanes *)from; }

EACH lanes fused(lanes a, lanes b, lanes c) {
#if defined(__clang__)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__)
    return __builtin_ia32_vfmaddpd512_mask(a, b, c, -1, 4);
#elif defined(__FMA__)
    return __builtin_ia32_vfmaddpd256(a, b, c);
#else
    for (int lane = 0; lane < LANES; lane++) c[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
    return c;
#endif
}

EACH double squared_norm(count dim, const double *x) {
    double sum = 0;
    for (count k = 0; k < dim; k++) sum = __builtin_fma(x[k], x[k], sum);
    return sum;
}

/* How many doubles `distances_pack` writes for so many points. */
count distances_packed_size(count points, count dim) { return (points + COLUMNS - 1) / COLUMNS * COLUMNS * (dim + 1); }

/* Pack points y [points × dim] eight by eight: their squared norms, then their coordinates, [1 + dim × 8]. Places without
 * a point hold zeros. */
void distances_pack(count points, count dim, const double *y, double *to) {
    for (count first = 0; first < points; first += COLUMNS, to += (dim + 1) * COLUMNS)
        for (count j = 0; j < COLUMNS; j++) {
            int there = first + j < points;
            const double *own = y + (first + j) * dim;
            to[j] = there ? squared_norm(dim, own) : 0.0;
            for (count k = 0; k < dim; k++) to[(k + 1) * COLUMNS + j] = there ? own[k] : 0.0;
        }
}

/* Squared distances of up to ROWS rows x (norms beside them) from packs of eight points: to [PACKS × BLOCK × 8]. The second
 * vector of points lies `next` after the first. */
EACH void tile(const int rows, count dim, const double *x, const double *norms, const double *pack, count next, double *to) {
    const count to_next = PACKS > 1 ? BLOCK * COLUMNS : LANES;
    lanes sums[ROWS][2] = {0};
    const double *y = pack + COLUMNS;
    for (count k = 0; k < dim; k++, y += COLUMNS) {
        lanes left = load(y), right = load(y + next);
        for (int r = 0; r < rows; r++) {
            lanes same = (lanes){0} + x[r * dim + k];
            sums[r][0] = fused(same, left, sums[r][0]);
            sums[r][1] = fused(same, right, sums[r][1]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) {
            lanes squares = fused((lanes){0} - 2.0, sums[r][v], load(pack + v * next) + norms[r]);
            for (int lane = 0; lane < LANES; lane++) to[r * COLUMNS + v * to_next + lane] = __builtin_fabs(squares[lane]);
        }
}

EACH void tile_of(count rows, count dim, const double *x, const double *norms, const double *pack, count next, double *to) {
    switch (rows) {
#define CASE(few) case few: tile(few, dim, x, norms, pack, next, to); break
    CASE(1); CASE(2); CASE(3); CASE(4);
#if defined(__AVX512F__)
    CASE(5); CASE(6); CASE(7); CASE(8);
#endif
#undef CASE
    }
}

/* What is done with the squared distances between a pack of points, `here` of them, and some rows, the first of them row
 * `first` of x. */
typedef void (*Use)(count first, count rows, count here, const double (*squares)[COLUMNS], void *state);

/* Some of a pack's squared distances, from place v on; those of places without a point are `elsewhere`. */
EACH lanes of_points(const double *squares, count v, count here, double elsewhere) {
    lanes found = load(squares + v);
    for (int lane = 0; here < COLUMNS && lane < LANES; lane++)
        if (v + lane >= here) found[lane] = elsewhere;
    return found;
}

/* Use every squared distance between x [n × dim] and the m points in `packed`. Rows are taken in blocks, so that each pack
 * is used many times before the next one takes its place in the cache. `use` is told how many of a whole pack there are
 * by a constant wherever it can be. */
EACH void use_all(count n, count m, count dim, const double *x, const double *packed, const Use use, void *state) {
    for (count block = 0; block < n; block += BLOCK) {
        count rows = smaller(BLOCK, n - block);
        double norms[BLOCK], squares[PACKS][BLOCK][COLUMNS];
        for (count r = 0; r < rows; r++) norms[r] = squared_norm(dim, x + (block + r) * dim);
        const count size = (dim + 1) * COLUMNS;
        const double *pack = packed;
        for (count j = 0; j < m; j += PACKS * COLUMNS, pack += PACKS * size) {
            count next = PACKS == 1 ? LANES : m - j > COLUMNS ? size : 0;
            for (count r = 0; r < rows; r += ROWS)
                tile_of(smaller(ROWS, rows - r), dim, x + (block + r) * dim, norms + r, pack, next, squares[0][r]);
            for (count p = 0; p < PACKS && j + p * COLUMNS < m; p++)
                if (m - j - p * COLUMNS >= COLUMNS)
                    use(block, rows, COLUMNS, squares[p], state);
                else
                    use(block, rows, m - j - p * COLUMNS, squares[p], state);
        }
    }
}

/* The roots, each rounded as IEEE 754 says, by the CPU's instruction or by multiply-adds. */
EACH lanes roots(lanes squares, int by_instruction) {
    lanes found;
#if defined(__AVX512F__)
    /* The instruction for eight roots takes as long as some twenty multiply-adds. Here two of Newton's steps on √x and
     * 1/(2√x) go from 14 good bits to 53, and one on the exact remainder x − √x² rounds (P. Markstein, IBM J. Res. Dev. 34,
     * 1990). Zeros, and what might leave the range on the way, are left to the instruction. */
    enum { NOT_AT_LEAST = 25, NOT_AT_MOST = 22 };
    const lanes half = (lanes){0} + 0.5;
    if (!by_instruction && !(__builtin_ia32_cmppd512_mask(squares, (lanes){0} + 0x1p-900, NOT_AT_LEAST, -1, 4) |
          __builtin_ia32_cmppd512_mask(squares, (lanes){0} + 0x1p+900, NOT_AT_MOST, -1, 4))) {
        lanes inverse = __builtin_ia32_rsqrt14pd512_mask(squares, (lanes){0}, -1);
        lanes root = squares * inverse, half_inverse = half * inverse;
        for (int step = 0; step < 2; step++) {
            lanes off = fused(-half_inverse, root, half);
            root = fused(root, off, root);
            half_inverse = fused(half_inverse, off, half_inverse);
        }
        return fused(half_inverse, fused(-root, root, squares), root);
    }
#endif
    for (int lane = 0; lane < LANES; lane++) found[lane] = __builtin_sqrt(squares[lane]);
    return found;
}

/* One vector of so many has its roots made by the instruction: the divider works while multiply-adds make the others. */
enum { BY_INSTRUCTION = 4 };

EACH void add_roots(count first, count rows, count here, const double (*squares)[COLUMNS], void *state) {
    (void)first;
    double *sums = state;
    for (count v = 0; v < COLUMNS; v += LANES) {
        /* Apart from memory, since each sum waits for the one before. */
        lanes sum = load(sums + v);
        for (count r = 0; r < rows; r++)
            sum += roots(of_points(squares[r], v, here, 0.0), r % BY_INSTRUCTION == BY_INSTRUCTION - 1);
        *(lanes *)(sums + v) = sum;
    }
}

/* Return Σ ‖x_i − y_j‖ over all i < n and j < m; x is [n × dim], `packed` all of y. */
double distances_sum(count n, count m, count dim, const double *x, const double *packed) {
    double total = 0;
    /* Block by block, so that no sum grows so long that it loses digits. */
    for (count first = 0; first < n; first += BLOCK) {
        double sums[COLUMNS] = {0};
        use_all(smaller(BLOCK, n - first), m, dim, x + first * dim, packed, add_roots, sums);
        for (count c = 0; c < COLUMNS; c++) total += sums[c];
    }
    return total;
}

typedef struct {
    const double *near, *far;
    int64_t *nearer, *not_farther;
} Counts;

EACH void count_rows(count first, count rows, count here, const double (*squares)[COLUMNS], void *state) {
    const Counts *counts = state;
    for (count r = 0; r < rows; r++) {
        int64_t *nearer = counts->nearer + COLUMNS * (first + r), *not_farther = counts->not_farther + COLUMNS * (first + r);
        const lanes near = (lanes){0} + counts->near[first + r], far = (lanes){0} + counts->far[first + r];
        for (count v = 0; v < COLUMNS; v += LANES) {
            lanes some = of_points(squares[r], v, here, __builtin_nan(""));
            /* A comparison gives −1 where it holds, and never does with what is no number. */
            *(whole_lanes *)(nearer + v) -= (whole_lanes)(some < near);
            *(whole_lanes *)(not_farther + v) -= (whole_lanes)(some <= far);
        }
    }
}

/* For every i count how many y_j of each place in a pack are nearer than near[i], and how many not farther than far[i]
 * (squared distances), into nearer and not_farther [n × 8], zero at first. */
void distances_count(count n, count m, count dim, const double *x, const double *packed, const double *near,
                     const double *far, int64_t *nearer, int64_t *not_farther) {
    Counts counts = {near, far, nearer, not_farther};
    use_all(n, m, dim, x, packed, count_rows, &counts);
}

EACH lanes chosen(whole_lanes where, lanes there, lanes elsewhere) {
    return (lanes)((where & (whole_lanes)there) | (~where & (whole_lanes)elsewhere));
}

EACH void keep_nearest(count first, count rows, count here, const double (*squares)[COLUMNS], void *state) {
    for (count r = 0; r < rows; r++)
        for (count v = 0; v < COLUMNS; v += LANES) {
            double *to = (double *)state + 2 * COLUMNS * (first + r) + v;
            lanes some = of_points(squares[r], v, here, __builtin_nan(""));
            lanes nearest = load(to), second = load(to + COLUMNS);
            whole_lanes is_nearer = (whole_lanes)(some < nearest);
            lanes farther = chosen(is_nearer, nearest, some);
            *(lanes *)to = chosen(is_nearer, some, nearest);
            *(lanes *)(to + COLUMNS) = chosen((whole_lanes)(farther < second), farther, second);
        }
}

/* For every i the smallest and the second smallest squared distance to the y_j of each place in a pack, so that these are
 * the smallest of nearest [n × 2 × 8], infinite at first. */
void distances_nearest(count n, count m, count dim, const double *x, const double *packed, double *nearest) {
    use_all(n, m, dim, x, packed, keep_nearest, nearest);
}
