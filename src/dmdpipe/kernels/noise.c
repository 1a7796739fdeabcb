/* What Python asks of the random streams of noise.h. */
#include "noise.h"

/* The generator itself, at one counter of four words: what published test vectors are about. */
void noise_philox(const uint32_t *counter, uint64_t key, uint32_t *to) {
    words c[1][WORDS];
    for (int w = 0; w < WORDS; w++) c[0][w] = (words){0} + counter[w];
    philox(1, c, key);
    for (int w = 0; w < WORDS; w++) to[w] = c[0][w][0];
}

void noise_normal(uint64_t key, uint64_t *position, count size, float *to) { draw_normal(key, position, size, to); }

void noise_integers(uint64_t key, uint64_t *position, count size, int64_t first, uint32_t choices, int64_t *to) {
    draw_integers(key, position, size, first, choices, to);
}
