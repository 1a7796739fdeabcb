/* Random numbers by counter: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011), and normal ones by Box and Muller's transform.
 *
 * A stream has a key and is read in groups of 16 counters, 64 words: word w of counter 16·group + lane is number 16·w + lane
 * of the group. So the stream's state is the number of its next group. */
#pragma once
#include "arithmetic.h"

enum { COUNTERS = 16, WORDS = 4, GROUP = COUNTERS * WORDS };

/* Groups that are drawn at once: the rounds of one don't wait for those of another. */
enum { TOGETHER = 4 };

typedef uint32_t words __attribute__((vector_size(4 * COUNTERS)));
typedef uint64_t pairs __attribute__((vector_size(4 * COUNTERS)));

/* The high and the low halves of a·factor, lane by lane: products of 64 bits of the even lanes, then of the odd ones. */
EACH void multiply(words a, uint32_t factor, words *high, words *low) {
    const pairs low_half = (pairs){0} + 0xFFFFFFFFu;
    pairs both = (pairs)a, even = (both & low_half) * factor, odd = (both >> 32) * factor;
    /* By shifts, compilers would find a slower multiplication. */
    *high = SHUFFLED((words)even, (words)odd, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    *low = SHUFFLED((words)even, (words)odd, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
}

/* The generator, at the counters of so many groups. */
EACH void philox(const int groups, words all[][WORDS], uint64_t key) {
    uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u)
        UNROLLED for (int g = 0; g < groups; g++) {
            words high0, low0, high1, low1, *c = all[g];
            multiply(c[0], 0xD2511F53u, &high0, &low0);
            multiply(c[2], 0xCD9E8D57u, &high1, &low1);
            c[0] = high1 ^ c[1] ^ key0;
            c[1] = low1;
            c[2] = high0 ^ c[3] ^ key1;
            c[3] = low0;
        }
}

/* The words of so many groups, from `group` on. */
EACH void words_of(const int groups, uint64_t key, uint64_t group, words to[][WORDS]) {
    UNROLLED for (int g = 0; g < groups; g++) {
        for (int lane = 0; lane < COUNTERS; lane++) {
            uint64_t counter = (group + (uint64_t)g) * COUNTERS + (uint64_t)lane;
            to[g][0][lane] = (uint32_t)counter;
            to[g][1][lane] = (uint32_t)(counter >> 32);
        }
        to[g][2] = to[g][3] = (words){0};
    }
    philox(groups, to, key);
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

/* The normal numbers of so many groups, at most TOGETHER. */
EACH void normals_of(const int groups, uint64_t key, uint64_t group, float *to) {
    words drawn[TOGETHER][WORDS];
    uint32_t word[TOGETHER * WORDS][COUNTERS];
    words_of(groups, key, group, drawn);
    memcpy(word, drawn, (size_t)groups * sizeof *drawn);
    UNROLLED for (int w = 0; w < groups * WORDS; w += 2)
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
    for (; size - done >= TOGETHER * GROUP; done += TOGETHER * GROUP, group += TOGETHER)
        normals_of(TOGETHER, key, group, to + done);
    for (; size - done >= GROUP; done += GROUP) normals_of(1, key, group++, to + done);
    if (done < size) {
        float last[GROUP];
        normals_of(1, key, group++, last);
        memcpy(to + done, last, (size_t)(size - done) * sizeof *to);
    }
    *position = group;
}

/* Draw whole numbers, each of first … first + choices − 1 with probability 1/choices to within 2⁻³². */
static void draw_integers(uint64_t key, uint64_t *position, count size, int64_t first, uint32_t choices, int64_t *to) {
    uint64_t group = *position;
    for (count done = 0; done < size; done += GROUP) {
        words drawn[1][WORDS];
        words_of(1, key, group++, drawn);
        for (count i = done; i < done + GROUP && i < size; i++) {
            uint64_t word = drawn[0][(i - done) / COUNTERS][(i - done) % COUNTERS];
            to[i] = first + (int64_t)(word * choices >> 32);
        }
    }
    *position = group;
}
