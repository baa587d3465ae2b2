"""Pooling: hidden states and a mask in, one vector per input out.

A transformer gives one vector per token, ``(batch, tokens, dim)``. What the vector has to represent
decides how these become the vectors one keeps: a whole text, a whole image, or one word.

Every function here takes ``(hidden, mask)``, so any function of that form can be passed to an
encoder as ``pooling=``.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Pooling = Callable[[Tensor, Tensor], Tensor]
Subwords = Literal["first", "mean", "last"]


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the first real token: ``[CLS]`` in the BERT family, the class token in a ViT.

    Use it when the model was trained to gather the input there, as a fine-tuned classifier is.
    A model that was not trained this way has no reason to.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    mask : Tensor, shape (batch, tokens)
        1 where a token is real, 0 where it is padding.

    Returns
    -------
    Tensor, shape (batch, dim)

    References
    ----------
    Devlin et al. (2019), "BERT", section 3: the final state of ``[CLS]`` stands for the sequence.

    Examples
    --------
    >>> hidden = torch.tensor([[[9.0], [1.0], [2.0]]])
    >>> cls(hidden, torch.tensor([[0, 1, 1]]))  # the first token is padding
    tensor([[1.]])
    """
    first = mask.bool().int().argmax(dim=1)
    return _at(hidden, first)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average every real token, special tokens included.

    The default for sentence encoders, and the safe choice for a model that was not fine-tuned.
    Padding is left out: with it, a vector would change with its neighbours in the batch.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    mask : Tensor, shape (batch, tokens)
        1 where a token is real, 0 where it is padding.

    Returns
    -------
    Tensor, shape (batch, dim)

    References
    ----------
    Reimers and Gurevych (2019), "Sentence-BERT", section 3.

    Examples
    --------
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> mean(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[2.]])
    """
    real = mask.bool().unsqueeze(-1)
    # `where` instead of a product: 0 * inf is not 0.
    total = torch.where(real, hidden, 0).sum(dim=1)
    return total / real.sum(dim=1).clamp(min=1)


def max(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the largest value each dimension reaches on any real token.

    Use it when a single strong token should be enough to mark the whole input.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    mask : Tensor, shape (batch, tokens)
        1 where a token is real, 0 where it is padding.

    Returns
    -------
    Tensor, shape (batch, dim)

    Examples
    --------
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> max(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    return hidden.masked_fill(~mask.bool().unsqueeze(-1), float("-inf")).amax(dim=1)


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Take the last real token.

    Use it on causal models, such as GPT: there, a token sees only what stands before it, so
    only the last one has seen the whole text.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    mask : Tensor, shape (batch, tokens)
        1 where a token is real, 0 where it is padding.

    Returns
    -------
    Tensor, shape (batch, dim)

    Examples
    --------
    >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    >>> last(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[3.]])
    """
    tokens = hidden.shape[1]
    from_the_end = mask.bool().int().flip(dims=[1]).argmax(dim=1)
    return _at(hidden, tokens - 1 - from_the_end)


def patch_mean(hidden: Tensor, mask: Tensor, *, special: int = 1, behind: int = 0) -> Tensor:
    """Average the image's patches and leave its special tokens out.

    A ViT's dimension 1 holds the class token beside the patches, and some models hold more there
    (DeiT's distillation token, registers). `mean` averages them too; this does not.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    mask : Tensor, shape (batch, tokens)
        1 where a token is real, 0 where it is padding.
    special : int, default=1
        How many tokens stand before the first patch. `ImageEncoder` finds this out itself.
    behind : int, default=0
        How many stand behind the last one, as in YOLOS.

    Returns
    -------
    Tensor, shape (batch, dim)

    Examples
    --------
    >>> hidden = torch.tensor([[[100.0], [1.0], [3.0]]])
    >>> patch_mean(hidden, torch.tensor([[1, 1, 1]]))
    tensor([[2.]])
    """
    patches = slice(special, hidden.shape[1] - behind)
    return mean(hidden[:, patches], mask[:, patches])


def words(hidden: Tensor, word_ids: Tensor, *, subwords: Subwords = "first") -> Tensor:
    """Turn sub-word tokens into one vector per word.

    Parameters
    ----------
    hidden : Tensor, shape (batch, tokens, dim)
        Hidden states.
    word_ids : Tensor of int, shape (batch, tokens)
        The word each token belongs to, counted over the whole batch; -1 for special tokens and
        padding.
    subwords : {"first", "mean", "last"}, default="first"
        Which of a word's tokens give its vector. BERT's authors took the first.

    Returns
    -------
    Tensor, shape (words, dim)
        One row per word id that occurs, in ascending order of the ids.

    Raises
    ------
    ValueError
        If `subwords` is none of the three.

    References
    ----------
    Devlin et al. (2019), "BERT", section 5.3: the first sub-token stands for the word.

    Examples
    --------
    >>> hidden = torch.tensor([[[0.0], [1.0], [3.0], [5.0], [0.0]]])
    >>> words(hidden, torch.tensor([[-1, 0, 0, 1, -1]]), subwords="mean")
    tensor([[2.],
            [5.]])
    """
    if subwords not in ("first", "mean", "last"):
        raise ValueError(f"subwords={subwords!r}: unknown; choose from first, mean, last")
    ids = word_ids.flatten()
    tokens = hidden.flatten(0, 1)[ids >= 0]
    _, row, count = ids[ids >= 0].unique(return_inverse=True, return_counts=True)
    if subwords == "mean":
        total = tokens.new_zeros(len(count), tokens.shape[1]).index_add_(0, row, tokens)
        return total / count.unsqueeze(1)
    position = torch.arange(len(row), device=row.device)
    chosen = position.new_zeros(len(count)).scatter_reduce_(
        0, row, position, reduce="amin" if subwords == "first" else "amax", include_self=False
    )
    return tokens[chosen]


def _at(hidden: Tensor, position: Tensor) -> Tensor:
    """Pick one token per row: (batch, tokens, dim) -> (batch, dim)."""
    return hidden[torch.arange(len(hidden), device=hidden.device), position]
