"""Converts the released AudioCLIP checkpoints to a folder that `from_pretrained` reads.

The release has four files: `AudioCLIP-Full-Training.pt` and `AudioCLIP-Partial-Training.pt` (three towers), `CLIP.pt`
(image and text) and `ESRNXFBSP.pt` (audio alone, with AudioSet's 527 classes instead of embeddings).
"""

import contextlib
import hashlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ..core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig
from ..core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ..core.modeling_audioclip import AudioCLIPModel
from ..core.modeling_esresnext import AudioCLIPAudioModel, blackman_harris_window
from ..core.processing_audioclip import AudioCLIPProcessor
from ..files import new_folder
from .clip_bpe import find_bpe_file, read_clip_tokenizer

logger = logging.get_logger(__name__)

RELEASES = {
    "2441d35b353352c8b1bbfb8f7c687f46314c3d2909e940eaf763b8c17f632c44": "AudioCLIP-Full-Training.pt",
    "1921885b6c3b5de0619f2ef4a9700ecbade758a398b34eb064230c30baef0c75": "AudioCLIP-Partial-Training.pt",
    "124e6d59d54c0837c456c953b3147adf438a21570d5c5b01ad83f6ad3e78d15e": "CLIP.pt",
    "acfcc6b0a0f07025cc660ed6dcf9b5a05fbd7c8ebf65edaa0a81d88a92ff6834": "ESRNXFBSP.pt",
}

# Original name -> name here. The first line whose prefix matches is applied; text blocks also use the second table.
KEY_TABLE = (
    ("visual.", "vision_model."),
    ("audio.window", "audio_model.fbsp.window"),
    ("audio.", "audio_model."),
    ("token_embedding.", "text_model.text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.text_model.embeddings.position_embedding.weight"),
    ("transformer.resblocks.", "text_model.text_model.encoder.layers."),
    ("ln_final.", "text_model.text_model.final_layer_norm."),
    ("text_projection", "text_model.text_projection.weight"),  # stored (in, out): transposed
    ("logit_scale", "logit_scale"),
)
TEXT_BLOCK_TABLE = (
    (".attn.in_proj_weight", ".self_attn.{q,k,v}_proj.weight"),  # stored as one: split in three
    (".attn.in_proj_bias", ".self_attn.{q,k,v}_proj.bias"),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
UNUSED_KEYS = ("audio.fbsp.bias",)  # an empty parameter of the original
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TENSORS_PER_READ = 100
PROBE_TEXT = "a photo of a cat, church bell 123!"


class ConversionError(ValueError):
    """The checkpoint, the vocabulary or the target folder cannot be used; the message says what to do."""


@dataclass
class ConversionReport:
    """What a conversion read and wrote.

    Args:
        checkpoint (`str`): The file that was read.
        output_dir (`str`): The folder that was written.
        kind (`str`): `"audioclip"` (three towers), `"clip"` (image and text) or `"esresnext"` (audio).
        sha256 (`str`): Digest of the file.
        release (`str`, *optional*): Name of the released file with that digest.
        num_tensors (`int`): Number of tensors written.
        missing_keys (`list[str]`): Original names that are missing from the file and were filled in.
        unexpected_keys (`list[str]`): Keys of the file that AudioCLIP does not use; the original ignores them too.
        dropped_keys (`list[str]`): Keys left out on purpose: the text tower with `text=False`, empty parameters.
        tokenizer_source (`str`, *optional*): Where the vocabulary came from.
        dtype (`str`): Dtype of the weights written.
    """

    checkpoint: str
    output_dir: str
    kind: str
    sha256: str
    release: str | None
    dtype: str
    num_tensors: int = 0
    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    dropped_keys: list[str] = field(default_factory=list)
    tokenizer_source: str | None = None

    def summary(self) -> str:
        """Returns a few lines for a terminal."""
        release = self.release or "not one of the released files"
        lines = [
            f"{self.checkpoint}: {release} ({self.kind}, sha256 {self.sha256})",
            f"{self.num_tensors} tensors written to {self.output_dir} as {self.dtype}, read back and compared",
        ]
        if self.tokenizer_source:
            lines.append(f"tokenizer from {self.tokenizer_source}")
        for title, keys in (("filled in", self.missing_keys), ("ignored", self.unexpected_keys)):
            if keys:
                lines.append(f"{title}: {_shorten(keys)}")
        return "\n".join(lines)


def convert_audioclip(
    checkpoint: str | os.PathLike,
    out_dir: str | os.PathLike,
    bpe: str | os.PathLike | None = None,
    dtype: str | torch.dtype | None = None,
    text: bool = True,
) -> ConversionReport:
    """Converts a released AudioCLIP file to a folder with config, weights, processor and tokenizer.

    No code in the file is run. The result is read back and compared before `out_dir` is created. Load it with
    `AudioCLIPModel.from_pretrained`; if the file was ESResNeXt's, with `AudioCLIPAudioModel.from_pretrained`.

    Args:
        checkpoint (`str` or `os.PathLike`): The `.pt` file.
        out_dir (`str` or `os.PathLike`): Folder to write; must not exist yet, or be empty.
        bpe (`str` or `os.PathLike`, *optional*): CLIP's `bpe_simple_vocab_16e6.txt.gz`. By default it is looked for
            beside the checkpoint, then in the packages open_clip and clip.
        dtype (`str` or `torch.dtype`, *optional*): float32, float16 or bfloat16; the spectrogram's parameters stay
            float32. Default: float32.
        text (`bool`, *optional*): Whether to keep the text tower and write a tokenizer.

    Returns:
        [`ConversionReport`]

    Raises:
        ConversionError: if the file is damaged, contains code, is not AudioCLIP's or weights are missing, if `out_dir`
            is not empty, or if a weight is too large for `dtype`. Nothing is written then.
        VocabularyError: if no usable vocabulary is found; nothing is written then either.
    """
    checkpoint, out_dir = Path(checkpoint), Path(out_dir)
    _check_output(out_dir)
    dtype = _parse_dtype(dtype)
    # float32 weights are written as they are: memory-mapped, they are never copied. For another dtype they are cast:
    # not mapped, each original tensor can be freed right after its cast.
    original = _read_checkpoint(checkpoint, mapped=dtype == torch.float32)
    kind = recognise_checkpoint(original)
    sha256 = _file_sha256(checkpoint)
    report = ConversionReport(
        str(checkpoint), str(out_dir), kind, sha256, RELEASES.get(sha256), str(dtype).removeprefix("torch.")
    )
    config, model_class = _architecture(kind, original, text)
    towers, bpe_file = getattr(config, "towers", None), None
    if towers and "text" in towers:
        bpe_file, report.tokenizer_source = find_bpe_file(bpe, checkpoint.parent)
    with new_folder(out_dir) as folder:
        tensors = _convert_tensors(original, config, model_class, dtype, report)
        checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        config.architectures, config.dtype = [model_class.__name__], dtype
        config.save_pretrained(folder)
        try:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise ConversionError(f"The weights cannot be written to {out_dir}: {error}.") from error
        (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)
        del tensors, original  # frees their memory before more is read
        _write_processor(folder, towers, bpe_file)
        _verify(folder, model_class, checksums)
    return report


def original_name(name: str) -> tuple[str, int | None]:
    """Returns the original's name of one of our parameters.

    Args:
        name (`str`): Name in [`AudioCLIPModel`].

    Returns:
        `tuple[str, int | None]`: the name, and for queries, keys and values which third of the tensor it is.
    """
    part = None
    for old, new in KEY_TABLE:
        if name.startswith(new):
            name = old + name.removeprefix(new)
            break
    if name.startswith("transformer.resblocks."):
        for index, letter in enumerate("qkv"):
            if f".{letter}_proj." in name:
                part, name = index, name.replace(f".{letter}_proj.", ".{q,k,v}_proj.")
        for old, new in TEXT_BLOCK_TABLE:
            name = name.replace(new, old)
    return name, part


def recognise_checkpoint(original: dict[str, torch.Tensor]) -> str:
    """Recognises a checkpoint's kind by its keys.

    Args:
        original (`dict[str, torch.Tensor]`): State dict.

    Returns:
        `str`: `"audioclip"`, `"clip"` or `"esresnext"`.

    Raises:
        ConversionError: if it is none of them.
    """
    has_image, has_audio = "visual.conv1.weight" in original, "audio.conv1.weight" in original
    if has_image and has_audio:
        return "audioclip"
    if has_image and "token_embedding.weight" in original:
        return "clip"
    if "fbsp.fc" in original and "att5.conv_depth.weight" in original:
        return "esresnext"
    raise ConversionError(
        f"This is not a checkpoint of AudioCLIP: its keys are {_shorten(sorted(original))}. Expected the keys of "
        "AudioCLIP-Full-Training.pt, AudioCLIP-Partial-Training.pt, CLIP.pt or ESRNXFBSP.pt."
    )


def _check_output(out_dir: Path) -> None:
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    if out_dir.exists():
        raise ConversionError(f"{out_dir} exists already. Choose another folder, or remove it first.")


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}.")
    return found


def _read_checkpoint(path: Path, mapped: bool) -> dict[str, torch.Tensor]:
    """Reads the file's state dict without running code in it; memory-mapped if wanted and possible for its format."""
    if not path.is_file():
        raise ConversionError(f"There is no file {path}.")
    try:
        zipped = zipfile.is_zipfile(path)  # before torch 1.6 files were plain pickles, which cannot be mapped
        if zipped:
            _check_members(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except ConversionError:
        raise
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} was refused: it contains something other than tensors, which could run code when loaded, or it "
            f"is not a PyTorch file ({_first_line(error)})."
        ) from error
    except Exception as error:  # damaged pickles can raise any exception
        raise ConversionError(
            f"{path} cannot be read: it is truncated or not a PyTorch state dict ({_first_line(error)}). Download it "
            "again and compare its size with the release."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        found = _shorten([str(key) for key in content]) if isinstance(content, dict) else type(content).__name__
        raise ConversionError(
            f"{path} is not a flat state dict of tensors, but contains {found}. Save the state dict alone."
        )
    for key, value in content.items():
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise ConversionError(
                f"{path}: {key} of shape {_shorten(list(map(str, value.shape)))} declares more numbers than the file "
                "contains for it. Get the file from a source you trust."
            )
    return {str(key): value for key, value in content.items()}


def _check_members(path: Path) -> None:
    """Refuses a zip archive that decompresses to much more than its size: PyTorch compresses code only."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if declared > size + 2**20:
        raise ConversionError(
            f"{path} would decompress from {size / 1e6:,.1f} to {declared / 1e6:,.0f} MB, but PyTorch's files are not "
            "compressed. Get the file from a source you trust."
        )


def _architecture(
    kind: str, original: dict[str, torch.Tensor], text: bool
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    if kind == "esresnext":
        classes = original.get("fc.weight")
        return AudioCLIPAudioConfig(projection_dim=1024 if classes is None else len(classes)), AudioCLIPAudioModel
    towers = [name for name in ("text", "vision", "audio") if name != "text" or text]
    if kind == "clip":
        towers.remove("audio")
    return AudioCLIPConfig(towers=towers), AudioCLIPModel


def _expected_tensors(config: PreTrainedConfig, model_class: type[PreTrainedModel]) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return model_class(config).state_dict()


def _convert_tensors(
    original: dict[str, torch.Tensor],
    config: PreTrainedConfig,
    model_class: type[PreTrainedModel],
    dtype: torch.dtype,
    report: ConversionReport,
) -> dict[str, torch.Tensor]:
    """Takes every tensor of the model from the original. Tensors that may be missing get their default value.

    Raises:
        ConversionError: if any other tensor is missing, or has a wrong shape or dtype.
    """
    prefix = "audio_model." if model_class is AudioCLIPAudioModel else ""
    strip = "audio." if prefix else ""
    tensors, missing, wrong, used = {}, [], [], set()
    for name, expected in _expected_tensors(config, model_class).items():
        source, part = original_name(prefix + name)
        source = source.removeprefix(strip)
        used.add(source)
        value = original.get(source)
        if value is None:
            value = _default_value(name, expected)
            (report.missing_keys if value is not None else missing).append(source)
        else:
            value = _part_of(value, source, part)
            wrong += _complaints(source, value, expected)
        tensors[name] = value
    if missing or wrong:
        complaints = [f"{len(wrong)} tensors do not fit: {_shorten(wrong)}"] if wrong else []
        complaints += [f"{len(missing)} tensors are missing: {_shorten(sorted(set(missing)))}"] if missing else []
        raise ConversionError(f"These are not the weights of the released {report.kind}. {'; '.join(complaints)}.")
    _sort_out_rest(set(original) - used, report)
    report.num_tensors = len(tensors)
    original.clear()  # so that each tensor is freed as soon as its cast copy is made; the largest come last
    return {name: _cast(name, tensors.pop(name), dtype) for name in sorted(tensors, key=lambda n: tensors[n].numel())}


def _part_of(value: torch.Tensor, source: str, part: int | None) -> torch.Tensor:
    if part is not None and value.shape[:1].numel() % 3 == 0:
        value = value.chunk(3)[part]
    return value.t() if source == "text_projection" and value.dim() == 2 else value


def _complaints(source: str, value: torch.Tensor, expected: torch.Tensor) -> list[str]:
    if value.shape != expected.shape:
        return [f"{source} has shape {tuple(value.shape)}, expected {tuple(expected.shape)}"]
    if value.is_floating_point() != expected.is_floating_point():
        return [f"{source} is {value.dtype}, expected {expected.dtype}"]
    if value.is_floating_point() and not all(extreme.isfinite() for extreme in value.aminmax()):  # NaN spreads
        return [f"{source} contains NaN or infinite values"]
    return []


def _default_value(name: str, expected: torch.Tensor) -> torch.Tensor | None:
    """Returns the value of a tensor that may be missing from an older file, or `None` for weights."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if name.endswith("fbsp.window"):
        return torch.tensor(blackman_harris_window(len(expected)), dtype=torch.float32)
    return None


def _sort_out_rest(rest: set[str], report: ConversionReport) -> None:
    """Reports the keys that were not used: those left out on purpose, and unknown ones."""
    prefix, known = "audio." if report.kind == "esresnext" else "", set(UNUSED_KEYS)
    if not {prefix + key for key in rest} <= known:
        known |= {original_name(name)[0] for name in _expected_tensors(AudioCLIPConfig(), AudioCLIPModel)}
    for key in sorted(rest):
        (report.dropped_keys if prefix + key in known else report.unexpected_keys).append(key)
    if report.unexpected_keys:
        logger.warning(f"Keys that AudioCLIP does not know are ignored: {_shorten(report.unexpected_keys)}.")


def _cast(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Casts a tensor to `dtype`, or to float32 if it belongs to the spectrogram. Integer tensors are not cast.

    Raises:
        ConversionError: if a finite value would become infinite.
    """
    if not tensor.is_floating_point():
        return tensor.contiguous()
    cast = tensor.to(torch.float32 if "fbsp." in name else dtype)
    if cast.dtype != tensor.dtype and not all(extreme.isfinite() for extreme in cast.aminmax()):
        raise ConversionError(
            f"{name} contains values up to {tensor.abs().max():g}, which are too large for {cast.dtype}: they would "
            "become infinite. Use bfloat16 or float32."
        )
    return cast.contiguous()


def _write_processor(folder: Path, towers: tuple[str, ...] | None, bpe_file: Path | None) -> None:
    """Writes the processor of these towers, or the feature extractor alone if `towers` is `None`."""
    feature_extractor = AudioCLIPFeatureExtractor()
    if towers is None:
        feature_extractor.save_pretrained(folder)
        return
    tokenizer = None if bpe_file is None else read_clip_tokenizer(bpe_file)
    AudioCLIPProcessor(CLIPImageProcessor(), feature_extractor, tokenizer).save_pretrained(folder)
    if tokenizer is None:
        return
    ids, expected = (each(PROBE_TEXT)["input_ids"] for each in (CLIPTokenizer.from_pretrained(folder), tokenizer))
    if ids != expected:
        raise ConversionError(f"The written tokenizer gives {ids} for {PROBE_TEXT!r}, the one in memory {expected}.")


def _verify(folder: Path, model_class: type[PreTrainedModel], checksums: dict[str, int]) -> None:
    """Loads the folder as a user would, and compares the checksum of every tensor with the expected one."""
    with _quiet_progress_bars():
        # Skips `AlignedPreTrainedModel.from_pretrained`, which would copy the weights: here they stay unread in the
        # file.
        load = PreTrainedModel.from_pretrained.__func__
        _, loading = load(model_class, folder, output_loading_info=True)
    problems = [f"{kind}: {_shorten(sorted(map(str, keys)))}" for kind, keys in loading.items() if keys]
    names = sorted(checksums)
    for start in range(0, len(names), TENSORS_PER_READ):
        with safe_open(folder / "model.safetensors", framework="pt") as file:  # reopened, so that pages are freed
            for name in names[start : start + TENSORS_PER_READ]:
                problems += [] if _checksum(file.get_tensor(name)) == checksums[name] else [f"{name} differs"]
    if problems:
        raise ConversionError(f"The written checkpoint differs from the weights that were read: {_shorten(problems)}.")


@contextlib.contextmanager
def _quiet_progress_bars() -> Iterator[None]:
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _shorten(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
