"""The gate, apart from what is measured for it: an edit of the measures need not judge anything anew."""

from __future__ import annotations

GATE = 2.0  # a student has converged if both distances are at most this multiple of their floors
