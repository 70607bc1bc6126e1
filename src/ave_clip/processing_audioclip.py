"""Processor of AudioCLIP: images, waveforms and label texts to the inputs of [`AudioCLIPModel`]."""

from collections.abc import Sequence

from transformers import BatchFeature, ProcessorMixin
from transformers.audio_utils import AudioInput
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, Unpack


class AudioCLIPProcessor(ProcessorMixin):
    r"""
    Wraps CLIP's image processor, AudioCLIP's feature extractor and CLIP's tokenizer.

    The number of images, clips and texts may differ. Texts are padded to the longest one. The model refuses a text of
    more than 77 tokens; `text_kwargs={"truncation": True, "max_length": 77}` cuts it here.

    Args:
        image_processor ([`~transformers.CLIPImageProcessor`]): Images to `pixel_values`.
        feature_extractor ([`AudioCLIPFeatureExtractor`]): Waveforms in [-1, 1] to `input_values`.
        tokenizer ([`~transformers.CLIPTokenizer`]): Texts to `input_ids` and `attention_mask`.

    Example:

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
        super().__init__(image_processor, feature_extractor, tokenizer, **kwargs)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        audio: AudioInput | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        """
        Prepare any of images, texts and waveforms.

        Args:
            images (`ImageInput`, *optional*):
                One image or a list of them.
            text (`str`, `list[str]` or `list[list[str]]`, *optional*):
                One text or a list. An item that is a list of labels is joined by `", "`, as in AudioCLIP's training.
            audio (`AudioInput`, *optional*):
                One waveform in [-1, 1] of shape `(num_samples,)` or `(channels, num_samples)`, or a list of them. Pass
                `sampling_rate` with it.
            kwargs:
                Options of the parts, best as `images_kwargs`, `text_kwargs` and `audio_kwargs`.

        Returns:
            [`BatchFeature`] with `pixel_values`, `input_ids` and `attention_mask`, `input_values`, as far as given.

        Raises:
            ValueError: if nothing is given, or a text is neither a string nor a list of strings.
        """
        if text is not None and not isinstance(text, str):
            text = [_join_labels(item) for item in text]
        return super().__call__(images=images, text=text, audio=audio, **kwargs)


def _join_labels(item: str | Sequence[str]) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Sequence) and item and all(isinstance(label, str) for label in item):
        return ", ".join(item)
    raise ValueError(f"Each text must be a string or a list of strings (joined by ', '), got {item!r}.")


__all__ = ["AudioCLIPProcessor"]
