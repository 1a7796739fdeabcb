"""Copying: how nearly a student repeats its teacher's noise-to-sample pairing, and its nulls and floors."""
