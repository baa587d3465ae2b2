"""Inputs in, vectors out: one file a use case, and beside them what they share.

`Encoder` is the base of all of them and says what a new use case has to provide; it is imported
when it is first asked for, because that imports torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit.encoders._base import Encoder
    from embedkit.encoders._tensors import TensorEncoder
    from embedkit.encoders._tokens import TokenEncoder

__all__ = ["Encoder", "TensorEncoder", "TokenEncoder"]
_MODULES = {"Encoder": "_base", "TensorEncoder": "_tensors", "TokenEncoder": "_tokens"}


def __getattr__(name: str) -> Any:
    """Import a base class when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module 'embedkit.encoders' has no attribute {name!r}")
    return getattr(import_module(f"embedkit.encoders.{_MODULES[name]}"), name)
