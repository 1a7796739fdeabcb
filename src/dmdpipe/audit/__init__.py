"""Checking results: verify, explain, diff, reproduce, export, bundle, accept."""
