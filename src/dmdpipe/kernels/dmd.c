/* Rounds of Distribution Matching Distillation (dmdpipe.distill.loop): a generator step, and the fake score's steps up to the
 * next one. */
#include "learning.h"
#include "noise.h"

/* Where noise comes from: a stream, and the entries first … first + choices − 1 of a table of noise levels σ. */
typedef struct {
    uint64_t key;
    uint64_t *position;
    int64_t first, choices;
    const float *sigma;
} Noising;

/* A stream of the student's noise, and the level σ_max at which it answers. */
typedef struct {
    uint64_t key;
    uint64_t *position;
    float level;
} Latent;

/* What dm_gradient of dmdpipe.distill.dmd divides by, and what multiplies its answer. */
typedef struct {
    float normalise, offset, least, scale;
} Matching;

/* What a round works in: rows [batch], and floats [batch × d], of the samples of all its batches, and what the way back
 * through the student needs. */
typedef struct {
    int64_t *row;
    float *noisy, *real, *fake, *gradient, *samples, *latent, *kept;
} Room;

/* A training: what its rounds read and change. The fake score's loss has a weight at each noise level; without an average, or
 * weights, these are 0. */
typedef struct {
    const Network *student, *teacher, *fake;
    const Latent *latent;
    const Noising *at_generator, *at_fake;
    const Matching *matching;
    const float *weight;
    const Flat *of_student, *of_fake;
    float *average;
    const Room *room;
    count batch;
    float share;
} Training;

/* Draw noise levels row [rows] and noise ε: noisy [rows × d] = x + σ·ε. */
static void noise_samples(const Noising *n, count rows, count dim, const float *x, int64_t *row, float *noisy) {
    draw_integers(n->key, n->position, rows, n->first, (uint32_t)n->choices, row);
    draw_normal(n->key, n->position, rows * dim, noisy);
    for (count i = 0; i < rows; i++) {
        float sigma = n->sigma[row[i]];
        SIDE_BY_SIDE for (count j = i * dim; j < (i + 1) * dim; j++) noisy[j] = fma1(sigma, noisy[j], x[j]);
    }
}

/* Draw what the student is asked for the next batches: σ_max·z, [batches·batch × d]. */
static void draw_latent(const Latent *latent, count batches, count size, float *to) {
    for (count k = 0; k < batches; k++, to += size) {
        draw_normal(latent->key, latent->position, size, to);
        for (count i = 0; i < size; i++) to[i] *= latent->level;
    }
}

static void denoise_at(const Network *network, const int64_t *row, count rows, const float *noisy, float *answer) {
    Conditions given = *network->given;
    given.rows = row;
    denoise(network->shape, network->panels, &given, rows, noisy, answer, network->memory);
}

/* A number that is none becomes 0, an infinite one the largest finite one. */
EACH float finite(float x) {
    const float largest = 0x1.fffffep+127f;
    x = x != x ? 0.0f : x;
    x = x > largest ? largest : x;
    return x < -largest ? -largest : x;
}

/* √(sum/entries), as dmdpipe.diffusion.determinism has it. */
EACH float root_of_mean(double sum, count entries) {
    float inverse = 1.0f / __builtin_sqrtf((float)sum / (float)entries);
    return 1.0f / inverse;
}

/* to [rows × d] = scale·g, with g the gradient of dmdpipe.distill.dmd; return the root mean square of g. */
static float match(const Matching *m, count rows, count dim, const float *x, const float *real, const float *fake,
                   float *to) {
    double squares = 0;
    for (count first = 0; first < rows; first += EIGHT) {
        /* Sums of several rows at once don't wait for each other. */
        double distance[EIGHT] = {0};
        count here = smaller(EIGHT, rows - first);
        for (count j = 0; j < dim; j++)
            for (count i = 0; i < here; i++)
                distance[i] += __builtin_fabsf(x[(first + i) * dim + j] - real[(first + i) * dim + j]);
        for (count i = 0; i < here; i++) {
            float mean = (float)distance[i] / (float)dim + m->offset;
            mean = mean < m->least ? m->least : mean;
            for (count j = (first + i) * dim; j < (first + i + 1) * dim; j++) {
                float difference = fake[j] - real[j], own = finite(m->normalise != 0 ? difference / mean : difference);
                squares += own * own;
                to[j] = m->scale * own;
            }
        }
    }
    return root_of_mean(squares, rows * dim);
}

/* Pack the weights of the networks, before the first round: from then on its steps do, for those that learn. */
void dmd_begin(const Training *t) {
    pack_all(t->student->shape, t->student->layers, FORWARD | BACKWARD, t->student->panels);
    pack_all(t->teacher->shape, t->teacher->layers, FORWARD, t->teacher->panels);
    pack_all(t->fake->shape, t->fake->layers, FORWARD | BACKWARD, t->fake->panels);
}

/* Take a generator step on a batch; then the fake score's steps, the first on that batch if it is `shared`, each of the others
 * on one of its own. log: the root mean square of the gradient, the norm of the student's, and the fake score's last
 * loss, which is no number if it takes no step. */
static void go_round(const Training *t, const Sizes *generator_sizes, const Sizes *fake_sizes, count fake_steps, count shared,
                     double *log) {
    const Network *student = t->student, *fake = t->fake;
    const Room *room = t->room;
    const count batch = t->batch, dim = student->shape->dim, size = batch * dim, others = fake_steps - shared;
    float *x = room->samples;
    draw_latent(t->latent, 1, size, room->latent);
    denoise_and_keep(student->shape, student->panels, student->given, batch, room->latent, x, room->kept);
    noise_samples(t->at_generator, batch, dim, x, room->row, room->noisy);
    denoise_at(t->teacher, room->row, batch, room->noisy, room->real);
    denoise_at(fake, room->row, batch, room->noisy, room->fake);
    log[0] = match(t->matching, batch, dim, x, room->real, room->fake, room->gradient);
    pull_back(student->shape, student->panels, student->given, batch, room->gradient, room->kept, student->gradients,
              student->memory);
    log[1] = step_by(student, t->of_student, generator_sizes, 1);

    draw_latent(t->latent, others, size, room->latent);
    denoise(student->shape, student->panels, student->given, others * batch, room->latent, x + size,
            student->memory);
    Conditions given = *fake->given;
    given.rows = room->row;
    log[2] = __builtin_nan("");
    if (!shared) x += size;
    for (count step = 0; step < fake_steps; step++, x += size) {
        noise_samples(t->at_fake, batch, dim, x, room->row, room->noisy);
        log[2] = learn(fake, &given, t->weight, t->of_fake, fake_sizes + step, batch, room->noisy, x);
    }
}

/* Go so many rounds, with fake_steps [rounds] steps of the fake score each; sizes and log stand one after the other. After each
 * generator step its average, if there is one, moves by a share of the way towards the student's parameters. */
void dmd_rounds(const Training *t, count rounds, count shared, const Sizes *generator_sizes, const Sizes *fake_sizes,
                const int64_t *fake_steps, double *log) {
    for (count i = 0; i < rounds; i++, log += 3) {
        go_round(t, generator_sizes + i, fake_sizes, fake_steps[i], shared, log);
        fake_sizes += fake_steps[i];
        if (t->average) average_with(t->of_student->size, t->of_student->all.values, t->share, t->average);
    }
}

/* How many floats the way back through a student needs. */
count dmd_kept_size(const Shape *s, count rows) { return kept_size(s, rows); }
