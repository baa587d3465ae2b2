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

if TYPE_CHECKING:  # for editors, which do not run what is below
    from embedkit import evaluate as evaluate
    from embedkit import pooling as pooling
    from embedkit.encoders.api import OpenAIEncoder as OpenAIEncoder
    from embedkit.encoders.diagnose import Diagnosis as Diagnosis
    from embedkit.encoders.diagnose import diagnose as diagnose
    from embedkit.encoders.image import ImageEncoder as ImageEncoder
    from embedkit.encoders.text import TextEncoder as TextEncoder
    from embedkit.encoders.word import WordEncoder as WordEncoder
    from embedkit.loading.data import load_data as load_data
    from embedkit.maps.explorer import Explorer as Explorer
    from embedkit.maps.explorer import explore as explore
    from embedkit.maps.page import save_map as save_map
    from embedkit.maps.plotting import plot as plot
    from embedkit.maps.projection import project as project
    from embedkit.server import serve as serve
    from embedkit.words import WordVectors as WordVectors

__version__ = "0.1.0"

# Where each public name lives. Imported on first use, because torch and its like take seconds.
_HOMES = {
    "Diagnosis": "encoders.diagnose",
    "Explorer": "maps.explorer",
    "ImageEncoder": "encoders.image",
    "OpenAIEncoder": "encoders.api",
    "TextEncoder": "encoders.text",
    "WordEncoder": "encoders.word",
    "WordVectors": "words",
    "diagnose": "encoders.diagnose",
    "evaluate": "evaluate",
    "explore": "maps.explorer",
    "load_data": "loading.data",
    "plot": "maps.plotting",
    "pooling": "pooling",
    "project": "maps.projection",
    "save_map": "maps.page",
    "serve": "server",
}

__all__ = [*_HOMES]


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
