"""Diffusion: noise levels, teacher training, exact teachers, and the probability-flow sampler."""
