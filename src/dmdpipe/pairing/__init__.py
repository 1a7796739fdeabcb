"""Paired samples: the noise that teacher and student share, and their maps over it."""
