/* The linear assignment problem, exactly: one column for each row at the least sum of costs, in double precision.
 *
 * Shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987), in the form of D. F. Crouse, "On implementing 2D
 * rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems 52, 2016: rows join the
 * assignment one by one, each along the cheapest path of exchanges that ends at a free column, found as Dijkstra would,
 * among costs that the duals u (of rows) and v (of columns) keep from being negative. Of equally near columns a free one
 * is taken, and of these the first. */
#include "arithmetic.h"

enum { LANES = 8 };

typedef double lanes __attribute__((vector_size(8 * LANES), aligned(8)));
typedef int64_t marks __attribute__((vector_size(8 * LANES), aligned(8)));

EACH lanes load(const double *from) { return *(const lanes *)from; }

EACH void store(double *to, lanes values) { *(lanes *)to = values; }

/* Where the mark is set the first, else the second. */
EACH marks either(marks mark, marks first, marks second) { return (mark & first) | (~mark & second); }

EACH lanes chosen(marks mark, lanes first, lanes second) { return (lanes)either(mark, (marks)first, (marks)second); }

/* What is known of the columns on the way to a free one. A column that has been reached has an infinite key, which no path
 * can shorten, since its w is −∞. */
typedef struct {
    double *key;      /* the distance so far */
    double *w;        /* the dual v */
    int64_t *through; /* the row before it on its path */
    int64_t *is_free; /* −1 without a row, else 0 */
} Columns;

EACH double least_of(lanes values) {
    double least = values[0];
    for (int lane = 1; lane < LANES; lane++) least = values[lane] < least ? values[lane] : least;
    return least;
}

/* Shorten paths that are shorter through a row at this distance; return the nearest column that has not been reached. */
static count nearest_column(count columns, count row, double distance, const double *costs, Columns all) {
    const lanes from = (lanes){0} + distance, infinite = (lanes){0} + __builtin_inf();
    const marks here = (marks){0} + row;
    lanes least = infinite, least_free = infinite;
    for (count j = 0; j < columns; j += LANES) {
        lanes by_row = (from + load(costs + j)) - load(all.w + j), key = load(all.key + j);
        marks shorter = by_row < key, *through = (marks *)(all.through + j);
        key = chosen(shorter, by_row, key);
        store(all.key + j, key);
        *through = either(shorter, here, *through);
        least = chosen(key < least, key, least);
        lanes free = chosen(*(const marks *)(all.is_free + j), key, infinite);
        least_free = chosen(free < least_free, free, least_free);
    }
    const double nearest = least_of(least);
    const marks any = (marks){0} - (least_of(least_free) > nearest);
    for (count j = 0;; j += LANES) {
        marks fit = (load(all.key + j) == (lanes){0} + nearest) & (any | *(const marks *)(all.is_free + j));
        for (int lane = 0; lane < LANES; lane++)
            if (fit[lane]) return j + lane;
    }
}

/* The number of doubles that the function below wants to work with. */
count assignment_memory_size(count columns) { return 8 * columns; }

/* Set column_of [n], given costs [n × columns]: finite in the first n columns, infinite in those that make `columns` a
 * multiple of eight. The duals of columns, v [columns], may be any at the start; the nearer to those at the end, the
 * shorter the paths. */
void assignment_solve(count n, count columns, const double *costs, double *v, int64_t *column_of, double *memory) {
    Columns all = {memory, memory + columns, (int64_t *)(memory + 2 * columns), (int64_t *)(memory + 3 * columns)};
    double *u = memory + 4 * columns, *reached_at = u + columns;
    int64_t *row_of = (int64_t *)(reached_at + columns), *reached = row_of + columns;
    memset(u, 0, (size_t)columns * sizeof *u);
    for (count j = 0; j < columns; j++) all.is_free[j] = -1;
    for (count joining = 0; joining < n; joining++) {
        for (count j = 0; j < columns; j++) all.key[j] = __builtin_inf();
        memcpy(all.w, v, (size_t)columns * sizeof *v);
        count row = joining, column, many = 0;
        double distance = 0;
        for (;;) {
            column = nearest_column(columns, row, distance - u[row], costs + row * columns, all);
            distance = reached_at[many] = all.key[column];
            reached[many++] = column;
            all.key[column] = __builtin_inf();
            all.w[column] = -__builtin_inf();
            if (all.is_free[column]) break;
            row = row_of[column];
        }
        u[joining] += distance;
        for (count k = 0; k < many; k++) {
            count j = reached[k];
            if (!all.is_free[j]) u[row_of[j]] += distance - reached_at[k];
            v[j] -= distance - reached_at[k];
        }
        all.is_free[column] = 0;
        /* Exchange along the path, from its end. */
        for (int done = 0; !done;) {
            row = row_of[column] = all.through[column];
            done = row == joining;
            count next = column_of[row];
            column_of[row] = column;
            column = next;
        }
    }
}
