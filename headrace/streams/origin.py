"""Where rows of a file of an archive stood in the topic that they were archived from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Partition of the topic, and the offset of each row there, (n,).

    Files that were archived without offsets say only that a row's lies in [first, offset]; else `first` is None.
    """

    partition: str
    offsets: NDArray[np.int64]
    first: int | None = None

    def take(self, index: NDArray[np.int64] | slice) -> "Origin":
        """The rows of an index (m,) or slice."""
        return Origin(self.partition, self.offsets[index], self.first)
