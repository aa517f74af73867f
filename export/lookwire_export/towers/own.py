"""A model's own modules, for what is not written out."""

import copy
from typing import Any

from torch import nn


def own(module: Any) -> Any:
    """Returns a copy of a module that may be changed: its parameters are new, but share the original's memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shared)
