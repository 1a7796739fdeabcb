/* Random numbers by counter: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011), and normal ones by Box and Muller's transform.
 *
 * A stream has a key and is read in groups of 16 counters, 64 words: word w of counter 16·group + lane is number 16·w + lane
 * of the group. So the stream's state is the number of its next group. */
#pragma once
#include "arithmetic.h"

enum { COUNTERS = 16, WORDS = 4, GROUP = COUNTERS * WORDS };

typedef uint32_t words __attribute__((vector_size(4 * COUNTERS)));
typedef uint64_t pairs __attribute__((vector_size(4 * COUNTERS)));

/* The high and the low halves of a·factor, lane by lane: products of 64 bits of the even lanes, then of the odd ones. */
EACH void multiply(words a, uint32_t factor, words *high, words *low) {
    const pairs low_half = (pairs){0} + 0xFFFFFFFFu;
    pairs both = (pairs)a, even = (both & low_half) * factor, odd = (both >> 32) * factor;
    *high = (words)((even >> 32) | (odd & ~low_half));
    *low = (words)((even & low_half) | (odd << 32));
}

EACH void philox(words c[WORDS], uint64_t key) {
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        words high0, low0, high1, low1;
        multiply(c[0], 0xD2511F53u, &high0, &low0);
        multiply(c[2], 0xCD9E8D57u, &high1, &low1);
        c[0] = high1 ^ c[1] ^ key0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ key1;
        c[3] = low0;
    }
}

EACH void words_of(uint64_t key, uint64_t group, words to[WORDS]) {
    for (int lane = 0; lane < COUNTERS; lane++) {
        uint64_t counter = group * COUNTERS + (uint64_t)lane;
        to[0][lane] = (uint32_t)counter;
        to[1][lane] = (uint32_t)(counter >> 32);
    }
    to[2] = to[3] = (words){0};
    philox(to, key);
}

/* Return ln x to 2 units in the last place, for x from 2⁻²⁵ to 1: Cephes' logf. */
EACH float logarithm(float x) {
    /* x = m·2^e with m from √½ to √2. */
    uint32_t shifted = bits_of(x) - 0x3F3504F3u;
    float e = (float)((int32_t)shifted >> 23), m = of_bits((shifted & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
    float z = m * m, p = 7.0376836292e-2f;
    p = fma1(p, m, -1.1514610310e-1f);
    p = fma1(p, m, 1.1676998740e-1f);
    p = fma1(p, m, -1.2420140846e-1f);
    p = fma1(p, m, 1.4249322787e-1f);
    p = fma1(p, m, -1.6668057665e-1f);
    p = fma1(p, m, 2.0000714765e-1f);
    p = fma1(p, m, -2.4999993993e-1f);
    p = fma1(p, m, 3.3333331174e-1f);
    p = p * m * z;
    p = fma1(e, -2.12194440e-4f, p);
    p = fma1(z, -0.5f, p);
    return fma1(e, 0.693359375f, m + p);
}

/* sin and cos of 2π·turns, 0 ≤ turns ≤ 1: the nearest quarter turn is taken off exactly; then Cephes' polynomials. */
EACH void sine_and_cosine(float turns, float *sine, float *cosine) {
    float quarters = turns * 4.0f, nearest = (quarters + 12582912.0f) - 12582912.0f;
    float x = (quarters - nearest) * 1.57079632679f, z = x * x;
    float s = fma1(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fma1(s, z, -1.6666654611e-1f);
    s = fma1(s * z, x, x);
    float c = fma1(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fma1(c, z, 4.166664568298827e-2f);
    c = fma1(c * z, z, fma1(-0.5f, z, 1.0f));
    int32_t quarter = (int32_t)nearest;
    float along = quarter & 1 ? c : s, across = quarter & 1 ? s : c;
    *sine = of_bits(bits_of(along) ^ ((uint32_t)(quarter & 2) << 30));
    *cosine = of_bits(bits_of(across) ^ ((uint32_t)((quarter + 1) & 2) << 30));
}

EACH void normals_of(uint64_t key, uint64_t group, float *to) {
    words drawn[WORDS];
    uint32_t word[WORDS][COUNTERS];
    words_of(key, group, drawn);
    memcpy(word, drawn, sizeof word);
    for (int w = 0; w < WORDS; w += 2)
        SIDE_BY_SIDE for (int lane = 0; lane < COUNTERS; lane++) {
            /* 24 bits each: all that a float holds; the first never 0, whose logarithm is infinite. */
            float u = ((float)(int32_t)(word[w][lane] >> 8) + 0.5f) * 0x1p-24f;
            float radius = __builtin_sqrtf(-2.0f * logarithm(u)), sine, cosine;
            sine_and_cosine((float)(int32_t)(word[w + 1][lane] >> 8) * 0x1p-24f, &sine, &cosine);
            to[w * COUNTERS + lane] = radius * cosine;
            to[(w + 1) * COUNTERS + lane] = radius * sine;
        }
}

/* Draw standard normal numbers to[0 … size), from `position` on, which becomes the stream's next group. */
static void draw_normal(uint64_t key, uint64_t *position, count size, float *to) {
    uint64_t group = *position;
    count done = 0;
    for (; size - done >= GROUP; done += GROUP) normals_of(key, group++, to + done);
    if (done < size) {
        float last[GROUP];
        normals_of(key, group++, last);
        memcpy(to + done, last, (size_t)(size - done) * sizeof *to);
    }
    *position = group;
}

/* Draw whole numbers, each of first … first + choices − 1 with probability 1/choices to within 2⁻³². */
static void draw_integers(uint64_t key, uint64_t *position, count size, int64_t first, uint32_t choices, int64_t *to) {
    uint64_t group = *position;
    for (count done = 0; done < size; done += GROUP) {
        words drawn[WORDS];
        words_of(key, group++, drawn);
        for (count i = done; i < done + GROUP && i < size; i++) {
            uint64_t word = drawn[(i - done) / COUNTERS][(i - done) % COUNTERS];
            to[i] = first + (int64_t)(word * choices >> 32);
        }
    }
    *position = group;
}
