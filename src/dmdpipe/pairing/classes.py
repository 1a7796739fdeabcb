"""Which class a class-conditional network is asked for, noise by noise: teacher and student for the same one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Classes:
    """How classes are chosen.

    Attributes:
        count: number of classes that the network knows.
        label: the one that is asked for; none: a drawn one for each noise.
        drawn_from: so many of them are drawn from; none: all.
    """

    count: int
    label: int | None = None
    drawn_from: int | None = None

    def of_noises(self, n: int, seed: int, purpose: str) -> NDArray[np.int64]:
        """Return the class of each noise [n].

        Like a row of the noise bank, the class of noise i depends on seed, purpose and i alone, besides what these
        classes are: not on n, on batches or on the device. Which classes are drawn from depends on the seed alone.
        """
        if self.label is not None:
            return np.full(n, self.label, np.int64)
        known = np.arange(self.count)
        if self.drawn_from is not None:
            of_all = np.random.Generator(np.random.Philox(key=derive_seed(seed, "measure", "classes")))
            known = of_all.permutation(self.count)[: self.drawn_from]
        stream = derive_seed(seed, "measure", "class", purpose)
        keys = (np.array([stream, i], np.uint64) for i in range(n))
        drawn = [np.random.Generator(np.random.Philox(key=key)).integers(len(known)) for key in keys]
        return known[np.array(drawn, np.int64)]

    def __str__(self) -> str:
        """Say what is asked for, in a few words."""
        if self.label is not None:
            return f"class {self.label} of {self.count}"
        return f"a class for each noise, drawn from {self.drawn_from or self.count} of {self.count}"
