"""The vocabulary: typed, frozen specs of every step, their canonical JSON and their digests.

Specs hold values, never computation that could change a result: whatever a spec decides stands in its JSON. That is
why the code digest of a step (``dmdpipe.artifacts.code``) leaves this package out.
"""
