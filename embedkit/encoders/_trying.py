"""Trying a new model: its vectors have to be finite and to depend on their input alone."""

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedkit.encoders._forward import body_of
from embedkit.encoders._inputs import warn
from embedkit.loading import models
from embedkit.words import Vectors

if TYPE_CHECKING:
    from embedkit.encoders._base import Encoder

# The cosine to float32 that `dtype="auto"` has to keep.
_SAME_DIRECTION = 0.9995
# Two vectors of one input may differ by so much of their largest value, since the order of a sum
# depends on the shape of the batch; by more, and the model itself makes the difference.
_ROUNDING = {torch.float32: 1e-5}
_ROUNDING_OF_HALVES = 0.05


def try_model(encoder: "Encoder", *, choose_dtype: bool) -> dict[str, Any]:
    """Embed an example alone, once more, and beside a longer one; see what that changes.

    Parameters
    ----------
    encoder : Encoder
        One whose pooling is chosen.
    choose_dtype : bool
        Whether to take bfloat16 where it is quicker and keeps the vectors' direction.

    Returns
    -------
    dict
        Facts: ``dim``, whether only inputs of equal lengths may share a batch, and the type.

    Raises
    ------
    ValueError
        If vectors hold NaN or infinity, or differ from call to call.
    """
    kind, model = type(encoder).__name__, encoder.model
    (exact,) = encoder.embed_example([0])
    if not np.isfinite(exact).all():
        raise ValueError(
            f"{kind}: the vectors of {encoder.name} hold NaN or infinity in {model.dtype}; try "
            "dtype='float32', or choose another model"
        )
    rounding = _ROUNDING.get(model.dtype, _ROUNDING_OF_HALVES)
    if difference(exact, encoder.embed_example([0])[0]) > 20 * rounding:
        raise ValueError(
            f"{kind}: {type(encoder.body).__name__} gives the same input another vector at each "
            "call (some models mask a part at random), so none of them stands for the input; "
            "choose another model"
        )
    disturbed = encoder.pads and difference(exact, encoder.embed_example([0, 1])[0]) > rounding
    facts = {"dim": exact.shape[1], "equal_lengths": disturbed}
    return facts | _chosen_dtype(encoder, exact) if choose_dtype else facts


def _chosen_dtype(encoder: "Encoder", exact: Vectors) -> dict[str, str]:
    """Give the encoder a bfloat16 model if that is quicker here and the direction stays."""
    chosen, why = "float32", f"bfloat16 is no quicker on this {encoder.device.type}"
    if models.bfloat16_pays(encoder.device):
        full, body = encoder.model, encoder.body
        encoder.model = copy.deepcopy(full).to(torch.bfloat16)  # type: ignore[arg-type]
        encoder.body = body_of(encoder.model, encoder.tower)
        pair = torch.from_numpy(exact), torch.from_numpy(encoder.embed_example([0])[0])
        cosine = float(torch.cosine_similarity(*pair, dim=1).min())
        if cosine >= _SAME_DIRECTION:
            chosen, why = "bfloat16", "quicker here, and the vectors keep their direction"
        else:
            encoder.model, encoder.body = full, body
            why = f"bfloat16 would turn this model's vectors (cosine {cosine:.4f} to float32)"
    warn(f"dtype='auto' took {chosen}: {why}")
    return {"dtype": chosen}  # unpickled on any machine, the encoder gives the same vectors


def difference(one: Vectors, other: Vectors) -> float:
    """Say by how much two vectors of one input differ, as a share of their largest value."""
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any():
        return 0.0
    return float(np.abs(one - other)[both].max() / max(np.abs(one[both]).max(), 1e-12))
