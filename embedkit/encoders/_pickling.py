"""Pickling: an encoder that was made from a name travels as that name, not as its weights."""

import os
from typing import Any

from transformers import PreTrainedModel

from embedkit.encoders._machine import Memory, work_alone_after_fork
from embedkit.loading import models


class Pickled:
    """Keeps the constructor's arguments, so that an encoder is pickled as its settings.

    It is a base of its own because a class that has both `__new__` and `__init__` would show the
    signature of the former.
    """

    def __new__(cls, model: Any, **settings: Any) -> Any:
        encoder = super().__new__(cls)
        named = isinstance(model, str | os.PathLike)
        encoder._given = models.absolute(model) if named else model
        encoder._settings = settings
        return encoder

    _given: Any
    _settings: dict[str, Any]

    name: str
    commit: str | None
    facts: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle settings where there is a name to load from, and everything where there is not."""
        if isinstance(self._given, PreTrainedModel):
            own = {"_process", "_memory"}  # of this process alone
            state = {name: value for name, value in self.__dict__.items() if name not in own}
            return _restore, (type(self), state)
        settings = {name: value for name, value in self._settings.items() if name != "token"}
        if self.commit is not None:  # a branch may move on; the copy reads what this one read
            settings["revision"] = self.commit
        # What lies in a folder goes along to be hashed: new files, new fingerprint.
        files = models.fingerprint(
            self.name, revision=settings.get("revision"), cache_dir=settings.get("cache_dir")
        )
        return _rebuild, (type(self), self.name, settings, self.facts, files)


def _rebuild(kind: Any, name: str, settings: dict[str, Any], facts: dict[str, Any], _: Any) -> Any:
    encoder = kind.__new__(kind, name, **settings)
    encoder.facts = dict(facts)
    encoder.__init__(name, **settings)
    return encoder


def _restore(kind: Any, state: dict[str, Any]) -> Any:
    work_alone_after_fork()
    encoder: Any = object.__new__(kind)
    encoder.__dict__.update(state, _process=os.getpid(), _memory=Memory())
    return encoder
