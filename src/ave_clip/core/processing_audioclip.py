"""Processor of AudioCLIP: converts images, waveforms and label texts to the inputs of [`AudioCLIPModel`]."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, BatchFeature, ProcessorMixin
from transformers.audio_utils import AudioInput
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack

from .builtin_checkpoints import LoadsBuiltinNames


class AudioCLIPProcessor(LoadsBuiltinNames, ProcessorMixin):
    r"""
    Wraps CLIP's image processor, AudioCLIP's feature extractor and CLIP's tokenizer.

    The numbers of images, clips and texts may differ. Texts are padded to the longest one. The model refuses texts of
    more than 77 tokens; `text_kwargs={"truncation": True, "max_length": 77}` truncates them.

    Args:
        image_processor ([`~transformers.CLIPImageProcessor`]): Converts images to `pixel_values`.
        feature_extractor ([`AudioCLIPFeatureExtractor`]): Converts waveforms in [-1, 1] to `input_values`.
        tokenizer ([`~transformers.CLIPTokenizer`], *optional*): Converts texts to `input_ids` and `attention_mask`. A
            checkpoint without a text tower has none; then the processor has no such attribute and refuses texts.

    Examples:

    ```python
    >>> inputs = processor(
    ...     images=frames,
    ...     text=[["dog", "bark"], ["church bell"]],
    ...     audio=waveforms,
    ...     sampling_rate=44100,
    ...     return_tensors="pt",
    ... )
    >>> outputs = model(**inputs)
    ```"""

    text_kwargs = {"padding": True}

    def __init__(self, image_processor=None, feature_extractor=None, tokenizer=None, **kwargs):
        if tokenizer is not None:
            super().__init__(image_processor, feature_extractor, tokenizer, **kwargs)
            return
        # ProcessorMixin calls this method to find the parts to check, save and print; this one omits the tokenizer.
        self.get_attributes = functools.partial(list, ("image_processor", "feature_extractor"))
        super().__init__(image_processor, feature_extractor, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        audio: AudioInput | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Prepares images, texts and waveforms, or any of them.

        Args:
            images (`ImageInput`, *optional*):
                One image or a list of them.
            text (`str`, `list[str]` or `list[list[str]]`, *optional*):
                One text or a list. An item that is a list of labels is joined by `", "`, as in AudioCLIP's training.
            audio (`AudioInput`, *optional*):
                One waveform in [-1, 1] of shape `(num_samples,)` or `(channels, num_samples)`, or a list of them. Pass
                `sampling_rate` with it.
            kwargs:
                Options of the three parts, preferably as `images_kwargs`, `text_kwargs` and `audio_kwargs`.

        Returns:
            [`BatchFeature`] with `pixel_values`, `input_ids` and `attention_mask`, `input_values`, for what was given.

        Raises:
            ValueError: If nothing is given, the list of texts is empty, a text is neither a string nor a list of
                strings, or there is no tokenizer for it.
        """
        if text is not None:
            if not hasattr(self, "tokenizer"):
                raise ValueError(
                    "This processor has no tokenizer, because the checkpoint was converted without its text tower. "
                    "Pass images and audio only, or convert it again with `ave-clip convert`, without --no-text."
                )
            text = _join_texts(text)
        return super().__call__(images=images, text=text, audio=audio, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the processor as it is saved; `"tokenizer": None` means that there is no tokenizer to load."""
        return super().to_dict() if hasattr(self, "tokenizer") else {**super().to_dict(), "tokenizer": None}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if (processor_dict or {}).get("tokenizer", "to be loaded") is not None:
            return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)
        parts = (AutoImageProcessor, AutoFeatureExtractor)
        return [*(part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts), None]


def _join_texts(text: str | Sequence[str] | Sequence[Sequence[str]]) -> str | list[str]:
    if isinstance(text, str):
        return text
    if not isinstance(text, Iterable):
        raise ValueError(f"Expected a text or a list of texts, got {text!r}.")
    texts = [_join_labels(item) for item in text]
    if not texts:
        raise ValueError("Got an empty list of texts, expected at least one. Leave `text` out if there are none.")
    return texts


def _join_labels(item: str | Sequence[str]) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Sequence) and item and all(isinstance(label, str) for label in item):
        return ", ".join(item)
    raise ValueError(f"Each text must be a string or a list of strings (joined by ', '), got {item!r}.")


__all__ = ["AudioCLIPProcessor"]
