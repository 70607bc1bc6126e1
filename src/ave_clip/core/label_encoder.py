"""Embeddings of label texts by the text towers of an encoder, for the zero-shot pipeline and open vocabularies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from .builtin_checkpoints import resolve_checkpoint
from .encoders import Encoder, encoder_for
from .events import BOTH, HEARD, SEEN
from .modeling_audio_visual_encoder import AudioVisualEncoderModel
from .modeling_audioclip import AudioCLIPModel
from .processing_audio_visual_encoder import AudioVisualEncoderProcessor
from .processing_audioclip import AudioCLIPProcessor


def embed_texts(texts: Sequence[str], sense: str, tower: Encoder, processor: Any) -> torch.Tensor:
    """Embeds texts for the comparison with what is `"seen"`, `"heard"` or, by a joint encoder, `"both"`.

    Args:
        texts (`Sequence[str]`): The texts.
        sense (`str`): `"seen"`, `"heard"` or `"both"`.
        tower ([`Encoder`]): The encoder of that sense.
        processor (`ProcessorMixin`): With its tokenizer.

    Returns:
        `torch.Tensor` of shape `(L, D)`: float32, on the CPU.
    """
    if hasattr(processor, "tokenizer_of"):  # a composite's
        # One model that embeds both has one tokenizer.
        tokens = processor.tokenize(texts, SEEN if sense == BOTH else sense, **tower.text_options)
    else:
        tokens = processor.tokenizer(list(texts), return_tensors="pt", **tower.text_options)
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        return tower.text(tokens.to(tower.model.device), sense).float().cpu()


class LabelEncoder:
    """Embeds labels for localizers with an open vocabulary, see [`OpenVocabularyMixin.set_labels`].

    The embedding of a label is that of the sentence with it that the encoder was trained with. Encoders with a text
    tower for what is seen and another one for what is heard give both side by side, each of length 1.

    Args:
        model (`PreTrainedModel`): An encoder of images and audio, such as AudioCLIP, PE-AV or a composite.
        processor (`ProcessorMixin`): Its processor, with tokenizers.

    Raises:
        ValueError: If the encoder takes no texts: it is a localizer, or all its towers are classifiers.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        _refuse_localizer(model.config)
        encoder = encoder_for(model)
        towers = {sense: encoder.tower(sense) for sense in (SEEN, HEARD)}
        self.towers = {sense: tower for sense, tower in towers.items() if tower.takes_texts}
        if not self.towers:
            raise _no_text(f"All towers of this {model.config.model_type!r} are classifiers")
        if encoder.has_one_text_space:
            self.towers = {SEEN: self.towers[SEEN]}
        self.processor = processor

    @classmethod
    def from_pretrained(cls, source: str, model: Any = None) -> "LabelEncoder":
        """Loads the encoder of a folder or Hub id, and its processor.

        Args:
            source (`str`): The folder or Hub id.
            model (`PreTrainedModel`, *optional*): The encoder, if it has been loaded already.

        Raises:
            ValueError: If it takes no texts.
            OSError: If it has no tokenizer, or does not exist.
        """
        source = resolve_checkpoint(source)
        config = AutoConfig.from_pretrained(source)
        _refuse_localizer(config)
        if config.model_type == AudioCLIPModel.config_class.model_type:
            kinds: tuple[Any, Any] = (AudioCLIPModel, AudioCLIPProcessor)
        else:
            kinds = (AudioVisualEncoderModel, AudioVisualEncoderProcessor)
        # Another model that encodes images and audio is a composite of one tower.
        load = "from_pretrained" if config.model_type == kinds[0].config_class.model_type else "from_towers"
        model = getattr(kinds[0], load)(source) if model is None else model
        return cls(model, getattr(kinds[1], load)(source))

    def __call__(self, labels: Sequence[str]) -> torch.Tensor:
        """Returns the embeddings `(L, E)` of labels."""
        parts = []
        for sense, tower in self.towers.items():
            texts = [tower.templates[sense].replace("{}", label) for label in labels]
            parts.append(nn.functional.normalize(embed_texts(texts, sense, tower, self.processor), dim=-1))
        return torch.cat(parts, dim=-1)


def _refuse_localizer(config: Any) -> None:
    if hasattr(config, "encoder_config"):
        raise _no_text("A localizer contains its encoder without what only texts need")


def _no_text(reason: str) -> ValueError:
    return ValueError(
        f"{reason}, so it has no text tower, which an open vocabulary needs. Use an AudioCLIP, PE-AV, or a composite "
        "such as SigLIP and CLAP."
    )


__all__ = ["LabelEncoder", "embed_texts"]
