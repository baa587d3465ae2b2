"""Embeddings from pre-trained transformers: get them, look at them, check them with a number.

Data flows one way: inputs go through an encoder and become vectors; `project` draws a map of them,
`plot` shows it, `explore` opens it, and `evaluate` gives the number to put beside it.

>>> import embedkit as ek
>>> data = ek.load_data("bundled/reviews", split="test")
>>> encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
>>> encoder.encode(data["text"][:3]).shape
(3, 384)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedkit import evaluate, pooling
    from embedkit.data import load_data
    from embedkit.encoders import ImageEncoder, TextEncoder, WordEncoder
    from embedkit.explorer import Explorer, explore
    from embedkit.openai_encoder import OpenAIEncoder
    from embedkit.plotting import plot
    from embedkit.projection import project
    from embedkit.server import serve
    from embedkit.words import WordVectors

__version__ = "0.1.0"

# Where each name lives. Imported on first use: torch and its kin take seconds.
_HOMES = {
    "Explorer": "explorer",
    "ImageEncoder": "encoders",
    "OpenAIEncoder": "openai_encoder",
    "TextEncoder": "encoders",
    "WordEncoder": "encoders",
    "WordVectors": "words",
    "evaluate": "evaluate",
    "explore": "explorer",
    "load_data": "data",
    "plot": "plotting",
    "pooling": "pooling",
    "project": "projection",
    "serve": "server",
}

__all__ = [
    "Explorer",
    "ImageEncoder",
    "OpenAIEncoder",
    "TextEncoder",
    "WordEncoder",
    "WordVectors",
    "evaluate",
    "explore",
    "load_data",
    "plot",
    "pooling",
    "project",
    "serve",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'embedkit' has no attribute {name!r}")
    module = import_module(f"embedkit.{_HOMES[name]}")
    value = module if _HOMES[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, for tab completion."""
    return sorted([*globals(), *__all__])
