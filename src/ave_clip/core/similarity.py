"""How embeddings are compared: images and audio with texts, and with each other in a space that they share.

Shapes: N images or windows, D width, L texts.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .modeling_audioclip import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE


@dataclass(frozen=True)
class Similarity:
    """How two embeddings are compared: `scale * product + bias`.

    Args:
        scale (`float`): Factor of the product.
        bias (`float`, *optional*): Of models trained with a sigmoid; `None` for those trained with a softmax.
        is_cosine (`bool`): Whether the embeddings are first brought to length 1.
    """

    scale: float
    bias: float | None = None
    is_cosine: bool = True

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Compares `(N, D)` with `(L, D)`: `(N, L)`, without the bias."""
        if self.is_cosine:
            first, second = nn.functional.normalize(first, dim=-1), nn.functional.normalize(second, dim=-1)
        return self.scale * first @ second.T

    def of_pairs(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Compares `(N, D)` with `(N, D)` row by row: `(N,)`, without the bias."""
        if self.is_cosine:
            first, second = nn.functional.normalize(first, dim=-1), nn.functional.normalize(second, dim=-1)
        return self.scale * (first * second).sum(dim=-1)


@dataclass(frozen=True)
class SharedSpace:
    """One space of images and audio in a model: the modules that embed into it, and how embeddings are compared there.

    Without a bias, the model was trained with a softmax, as CLIP was: embeddings are compared by their cosine, and the
    parameter is the logarithm of the scale. With a bias, it was trained with a sigmoid, as PE-AV was: embeddings are
    compared by their product, and the parameter is the scale itself.

    Args:
        image (`tuple[str, ...]`), audio (`tuple[str, ...]`): Names of the modules that embed images and audio.
        heads (`tuple[str, ...]`): Names of the last modules of both.
        scale (`str`): Name of the parameter of the scale.
        bias (`str`, *optional*): Name of the parameter of the bias.
        fixed (`tuple[str, ...]`): Names of the modules among these that the model itself runs without gradients.
    """

    image: tuple[str, ...]
    audio: tuple[str, ...]
    heads: tuple[str, ...]
    scale: str
    bias: str | None = None
    fixed: tuple[str, ...] = ()

    @property
    def is_cosine(self) -> bool:
        """Whether embeddings are brought to length 1 before they are compared."""
        return self.bias is None

    def inside(self, name: str) -> "SharedSpace":
        """The same space in a model that contains this one as the module `name`."""
        parts = ("image", "audio", "heads", "fixed")
        moved = {part: tuple(f"{name}.{module}" for module in getattr(self, part)) for part in parts}
        bias = None if self.bias is None else f"{name}.{self.bias}"
        return replace(self, **moved, scale=f"{name}.{self.scale}", bias=bias)

    def scale_of(self, model: nn.Module) -> torch.Tensor:
        """The scale of a model: a scalar, with gradient."""
        parameter = model.get_parameter(self.scale).squeeze()
        return parameter.exp() if self.bias is None else parameter

    def bias_of(self, model: nn.Module) -> torch.Tensor | None:
        """The bias of a model: a scalar, with gradient."""
        return None if self.bias is None else model.get_parameter(self.bias).squeeze()

    def similarity(self, model: nn.Module) -> Similarity:
        """How this model compares images with audio."""
        scale, bias = self.scale_of(model).float(), self.bias_of(model)
        if bias is None:
            return Similarity(scale.clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).item())
        return Similarity(scale.item(), bias.float().item(), is_cosine=False)


__all__ = ["SharedSpace", "Similarity"]
