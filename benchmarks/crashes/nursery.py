"""What engines need and can be forked with: imported once, by the process that engines are forked from.

Nothing here may start threads that a child would miss: declarations are left out, for Polars' pool starts with them.
"""

from numba.core.registry import cpu_target

import headrace.features.warm
import headrace.pipelines.on_bytewax  # noqa: F401

cpu_target.typing_context.refresh()  # what numba's first call would do, a third of a second
cpu_target.target_context.refresh()
