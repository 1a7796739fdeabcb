"""Networks: the trainable maps, one file each, and the EDM preconditioning that turns any of them into a denoiser."""
