/* Steps of a teacher's training (dmdpipe.diffusion.training). */
#include "learning.h"

/* Take so many steps, each on the next `batch` rows of noisy and clean samples [steps·batch × d], which have conditions and
 * a weight each. After each one the average of the parameters moves by its share [steps]; losses: [steps]. */
void teacher_steps(const Network *network, const float *weight, const Flat *flat, const Sizes *sizes,
                   const float *shares, count steps, count batch, const float *noisy,
                   const float *clean, float *average, float *losses) {
    const Shape *s = network->shape;
    Conditions given = *network->given;
    pack_all(s, network->layers, FORWARD | BACKWARD, network->panels);
    given.stride = batch > 1;
    for (count step = 0; step < steps; step++) {
        losses[step] = learn(network, &given, weight, flat, sizes + step, batch, noisy, clean);
        average_with(flat->size, flat->all.values, shares[step], average);
        noisy += batch * s->dim, clean += batch * s->dim, weight += batch;
        given.c_in += batch, given.c_out += batch, given.features += batch * s->embedding;
        if (given.c_skip) given.c_skip += batch;
    }
}
