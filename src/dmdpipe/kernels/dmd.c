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

/* Pack the weights of a round's networks, before the first round: from then on its steps do, for those that learn. */
void dmd_begin(const Network *student, const Network *teacher, const Network *fake) {
    pack_all(student->shape, student->layers, FORWARD | BACKWARD, student->panels);
    pack_all(teacher->shape, teacher->layers, FORWARD, teacher->panels);
    pack_all(fake->shape, fake->layers, FORWARD | BACKWARD, fake->panels);
}

/* Take a generator step on a batch; then the fake score's steps, the first on that batch if it is `shared`, each of the others
 * on one of its own. log: the root mean square of the gradient, the norm of the student's, and the fake score's last
 * loss, which is no number if it takes no step. */
static void go_round(const Network *student, const Network *teacher, const Network *fake, const Latent *latent,
                     const Noising *at_generator, const Noising *at_fake, const Matching *matching, const float *weight,
                     const Flat *of_student, const Sizes *generator_sizes, const Flat *of_fake, const Sizes *fake_sizes,
                     count fake_steps, count shared, count batch, const Room *room, double *log) {
    const count dim = student->shape->dim, size = batch * dim, others = fake_steps - shared;
    float *x = room->samples;
    draw_latent(latent, 1, size, room->latent);
    denoise_and_keep(student->shape, student->panels, student->given, batch, room->latent, x, room->kept);
    noise_samples(at_generator, batch, dim, x, room->row, room->noisy);
    denoise_at(teacher, room->row, batch, room->noisy, room->real);
    denoise_at(fake, room->row, batch, room->noisy, room->fake);
    log[0] = match(matching, batch, dim, x, room->real, room->fake, room->gradient);
    pull_back(student->shape, student->panels, student->given, batch, room->gradient, room->kept, student->gradients,
              student->memory);
    log[1] = step_by(student, of_student, generator_sizes, 1);

    draw_latent(latent, others, size, room->latent);
    denoise(student->shape, student->panels, student->given, others * batch, room->latent, x + size,
            student->memory);
    Conditions given = *fake->given;
    given.rows = room->row;
    log[2] = __builtin_nan("");
    if (!shared) x += size;
    for (count step = 0; step < fake_steps; step++, x += size) {
        noise_samples(at_fake, batch, dim, x, room->row, room->noisy);
        log[2] = learn(fake, &given, weight, of_fake, fake_sizes + step, batch, room->noisy, x);
    }
}

/* Go so many rounds, with fake_steps [rounds] steps of the fake score each; sizes and log stand one after the other. After each
 * generator step its average, if there is one, moves by a share of the way towards the student's parameters. */
void dmd_rounds(const Network *student, const Network *teacher, const Network *fake, const Latent *latent,
                const Noising *at_generator, const Noising *at_fake, const Matching *matching, const float *weight,
                const Flat *of_student, const Flat *of_fake, float share, float *average, count batch, const Room *room,
                count rounds, count shared, const Sizes *generator_sizes, const Sizes *fake_sizes,
                const int64_t *fake_steps, double *log) {
    for (count i = 0; i < rounds; i++, log += 3) {
        go_round(student, teacher, fake, latent, at_generator, at_fake, matching, weight, of_student, generator_sizes + i,
                 of_fake, fake_sizes, fake_steps[i], shared, batch, room, log);
        fake_sizes += fake_steps[i];
        if (average) average_with(of_student->size, of_student->all.values, share, average);
    }
}

/* How many floats the way back through a student needs. */
count dmd_kept_size(const Shape *s, count rows) { return kept_size(s, rows); }
