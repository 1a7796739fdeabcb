"""Distillation: the distribution-matching gradient, its score models, its starts, and the loop."""
