"""The space that images and audio share in an encoder, as stage 1 trains it: scale, bias and loss."""

import math
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..core.encoders import shared_space_of
from ..core.modeling_audioclip import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE
from ..core.similarity import SharedSpace
from .losses import audio_image_contrastive_loss, audio_image_sigmoid_loss


def space_of(model: PreTrainedModel) -> SharedSpace:
    """Returns the space in which a model compares images with audio.

    Raises:
        ValueError: if it has none.
    """
    return shared_space_of(model.config, "The model")


def scales_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """Returns the factor of a model's similarities (1 / temperature), and their bias if it has one, with gradients."""
    space = space_of(model)
    return [scale for scale in (space.scale_of(model), space.bias_of(model)) if scale is not None]


def loss_of(model: PreTrainedModel) -> Callable[..., torch.Tensor]:
    """Returns the loss that a model was trained with, a function of embeddings, `scales_of` and ids."""
    return audio_image_contrastive_loss if space_of(model).bias is None else audio_image_sigmoid_loss


@torch.no_grad()
def limit_scale(model: PreTrainedModel) -> None:
    """Clamps the parameter, not the factor computed from it, whose gradient would stay zero beyond the bound."""
    space = space_of(model)
    # PE-AV's scale has no upper bound; a negative one would prefer what is not similar.
    bounds = (math.log(MIN_LOGIT_SCALE), math.log(MAX_LOGIT_SCALE)) if space.bias is None else (0.0, math.inf)
    model.get_parameter(space.scale).clamp_(*bounds)
