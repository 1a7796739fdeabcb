"""What a training spends its time on, in C: the MLP denoiser and its gradient, random numbers, the optimiser.

Each module stands beside the C file of its name. Beside each of these functions there is plain PyTorch or NumPy that
computes the same, for other devices and precisions, and for the tests.
"""
