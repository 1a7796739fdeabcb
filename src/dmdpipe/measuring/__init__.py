"""Measuring copying in models and samples that no study has made."""
