"""Data: one module per family, each with ``draw(spec, rng) -> RawData``, and their common scale."""
