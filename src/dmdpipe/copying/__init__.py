"""Copying: how nearly a student repeats its teacher's noise-to-sample pairing, and how far to trust the reading."""
