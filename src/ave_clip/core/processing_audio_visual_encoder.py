"""Processor of composite encoders: frames and audio as each tower needs them, and label texts for each tower."""

import functools
from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from .builtin_checkpoints import resolve_checkpoint
from .encoders import encoder_class
from .events import HEARD, SEEN
from .processing_ave_clip import AVEClipProcessor
from .video_processing_ave_clip import AVEClipVideoProcessor

PICTURE_OPTIONS = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"),
)
# One frame per second is enough for events of seconds, and large encoders are slow.
DEFAULT_FRAMES_PER_SEGMENT = 1
TOKENIZERS = {SEEN: "vision_text_tokenizer", HEARD: "audio_text_tokenizer"}


class AudioVisualEncoderProcessor(AVEClipProcessor):
    r"""
    Cuts videos into segments and prepares them for [`AudioVisualEncoderModel`]: frames with the size and normalization
    of the image tower, audio with the sampling rate, window and feature extractor of the audio tower.

    The audio window of each segment moves by one segment (1 s) and may be longer than it: CLAP and AST, which were
    trained on 10 s, get 3 s by default. CLAP is called with `truncation="rand_trunc"` (its default treats a random
    item of every batch as longer than the others); it repeats each window until 10 s are full.

    Args:
        feature_extractor (`SequenceFeatureExtractor`):
            Prepares the audio.
        video_processor ([`AVEClipVideoProcessor`]):
            Prepares the frames; contains `num_frames_per_segment` and `segment_seconds`.
        vision_text_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the image tower; `None` for a classifier.
        audio_text_tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the audio tower; `None` for a classifier, and where one model does both.
        kwargs: `audio_window_seconds`, `audio_options` and others of [`AVEClipProcessor`].
    """

    def __init__(
        self,
        feature_extractor=None,
        video_processor=None,
        vision_text_tokenizer=None,
        audio_text_tokenizer=None,
        id2label=None,
        min_event_segments=3,
        audio_window_seconds=None,
        audio_options=None,
        **kwargs,
    ):
        tokenizers = {TOKENIZERS[SEEN]: vision_text_tokenizer, TOKENIZERS[HEARD]: audio_text_tokenizer}
        given = {name: tokenizer for name, tokenizer in tokenizers.items() if tokenizer is not None}
        # ProcessorMixin calls this method to find the parts to check, save and print: without absent tokenizers.
        self.get_attributes = functools.partial(list, ("feature_extractor", "video_processor", *given))
        super().__init__(
            feature_extractor,
            video_processor,
            id2label,
            min_event_segments,
            audio_window_seconds,
            audio_options,
            **given,
            **kwargs,
        )

    @classmethod
    def from_towers(cls, vision_id: str, audio_id: str | None = None, **kwargs: Any) -> "AudioVisualEncoderProcessor":
        """Joins the processors of two models of the Hub, or wraps those of one that encodes both images and audio.

        Args:
            vision_id (`str`): Folder, Hub id or built-in name of the image tower.
            audio_id (`str`, *optional*): The same for the audio tower; by default one model does both.
            kwargs: `vision_revision`, `audio_revision`, `num_frames_per_segment` (1 by default), `segment_seconds`,
                and `audio_window_seconds`: length of the audio that is encoded for each segment.

        Raises:
            ValueError: If a model has no image or audio processor.
        """
        return load_processor(vision_id, audio_id, **kwargs)

    def tokenize(self, texts: Sequence[str], sense: str, **options: Any) -> BatchFeature:
        """Converts texts to the tokens of the tower for what is `"seen"` or `"heard"`."""
        return self.tokenizer_of(sense)(list(texts), return_tensors="pt", **options)

    def tokenizer_of(self, sense: str) -> PreTrainedTokenizerBase:
        """The tokenizer for what is `"seen"` or `"heard"`.

        Raises:
            ValueError: If there is none.
        """
        for name in (TOKENIZERS[sense], TOKENIZERS[SEEN]):
            if getattr(self, name, None) is not None:
                return getattr(self, name)
        raise ValueError(f"This processor has no tokenizer for what is {sense}: that tower is a classifier.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the processor as it is saved; `None` for a tokenizer means that there is none to load."""
        absent = {name: None for name in TOKENIZERS.values() if getattr(self, name, None) is None}
        return {**super().to_dict(), **absent}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        processor_dict = processor_dict or {}
        parts = (AutoFeatureExtractor, AutoVideoProcessor)
        args = [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts]
        for name in TOKENIZERS.values():
            is_absent = processor_dict.get(name, "to be loaded") is None
            load = functools.partial(cls._load_tokenizer_from_pretrained, name, pretrained_model_name_or_path)
            args.append(None if is_absent else load(**kwargs))
        return args


def load_processor(
    vision_id: str,
    audio_id: str | None = None,
    vision_revision: str | None = None,
    audio_revision: str | None = None,
    audio_window_seconds: float | None = None,
    num_frames_per_segment: int = DEFAULT_FRAMES_PER_SEGMENT,
    segment_seconds: float = 1.0,
) -> AudioVisualEncoderProcessor:
    """Loads the processors of two towers as one. See [`AudioVisualEncoderProcessor.from_towers`]."""
    sources = {SEEN: (vision_id, vision_revision), HEARD: (audio_id or vision_id, audio_revision)}
    if audio_id is None:
        sources[HEARD] = sources[SEEN]
    tokenizers, kinds = {}, {}
    for sense, (source, revision) in sources.items():
        folder = resolve_checkpoint(source)
        config = AutoConfig.from_pretrained(folder, revision=revision)
        kinds[sense] = (encoder_class(config), config)
        tokenizers[sense] = None
        if kinds[sense][0].takes_texts and not (sense == HEARD and audio_id is None):
            tokenizers[sense] = AutoTokenizer.from_pretrained(folder, revision=revision)
    picture_source, sound_source = sources[SEEN], sources[HEARD]
    kind, audio_config = kinds[HEARD]
    extractor = AutoFeatureExtractor.from_pretrained(resolve_checkpoint(sound_source[0]), revision=sound_source[1])
    images = picture_options(*picture_source, kinds[SEEN][1])
    grid = {"num_frames_per_segment": num_frames_per_segment, "segment_seconds": segment_seconds}
    window = audio_window_seconds or kind.window_seconds
    return AudioVisualEncoderProcessor(
        extractor,
        AVEClipVideoProcessor(**images, **grid),
        vision_text_tokenizer=tokenizers[SEEN],
        audio_text_tokenizer=tokenizers[HEARD],
        audio_window_seconds=window,
        audio_options=kind.extractor_options(audio_config),
    )


def picture_options(source: str, revision: str | None, config: PreTrainedConfig) -> dict[str, Any]:
    """Options of [`AVEClipVideoProcessor`] that prepare frames as the tower's own image processor does."""
    folder, errors = resolve_checkpoint(source), []
    for auto_class in (AutoImageProcessor, AutoVideoProcessor):
        try:
            images = auto_class.from_pretrained(folder, revision=revision)
            break
        except (OSError, ValueError, TypeError) as error:  # the other kind of model
            errors.append(str(error))
    else:
        raise ValueError(f"{source} has neither an image nor a video processor: {errors[0]}")
    return options_of(images, config)


def options_of(images: Any, config: PreTrainedConfig) -> dict[str, Any]:
    """Options of [`AVEClipVideoProcessor`] from an image or video processor in memory."""
    if hasattr(images, "data_config"):  # of timm: size, mean and standard deviation only
        _, height, width = images.data_config["input_size"]
        values = {"image_mean": images.data_config["mean"], "image_std": images.data_config["std"]}
        return {**values, "size": {"height": height, "width": width}, "do_center_crop": False}
    options = {name: getattr(images, name) for name in PICTURE_OPTIONS if getattr(images, name, None) is not None}
    if "size" in options:
        options["size"] = dict(options["size"])
    if config.model_type == "siglip2":  # patches of any number of rows and columns: the square that holds most
        side = images.patch_size * int(images.max_num_patches**0.5)
        options["size"] = {"height": side, "width": side}
    return {"do_center_crop": False, **options}


__all__ = ["AudioVisualEncoderProcessor"]
