"""Uploads checkpoint folders to the Hugging Face Hub: the files of the checkpoint only, never training states."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from transformers.utils import CONFIG_NAME

from .cards import CARD_FILE, PROCESSOR_PATTERN, RESULTS_FILE, WEIGHTS_PATTERN

# Files directly in the folder; its subfolders (training states, trackers) are not part of a checkpoint.
CHECKPOINT_FILES = (
    CARD_FILE,
    RESULTS_FILE,
    CONFIG_NAME,
    "generation_config.json",
    WEIGHTS_PATTERN,
    f"{WEIGHTS_PATTERN}.index.json",
    PROCESSOR_PATTERN,
    "chat_template.jinja",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


class PushError(OSError):
    """The Hub could not be reached or refused the upload. The local folder is unchanged."""


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the Hub options of scripts that write a checkpoint: `--push_to_hub` and `--private`."""
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument("--push_to_hub", metavar="REPO_ID", help="Upload the finished checkpoint to this repository.")
    group.add_argument("--private", action="store_true", help="Make a repository that does not exist yet private.")


def checkpoint_files(folder: str | os.PathLike) -> list[str]:
    """Returns the sorted names of the files in a folder that belong to its checkpoint.

    Raises:
        ValueError: if the folder does not contain both `config.json` and weights.
    """
    path = Path(folder)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file()) if path.is_dir() else []
    config = path / CONFIG_NAME
    # The configuration of an export refers to classes in the folder's Python files.
    has_code = config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))
    patterns = (*CHECKPOINT_FILES, "*.py") if has_code else CHECKPOINT_FILES
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if CONFIG_NAME not in chosen or not any(name.endswith(".safetensors") for name in chosen):
        raise ValueError(
            f"{path} is not a checkpoint: it needs a {CONFIG_NAME} and model.safetensors, but contains "
            f"{', '.join(names) or 'no file'}. Pass the folder that `save_pretrained` or a training script wrote."
        )
    return chosen


def create_repository(repo_id: str, *, private: bool = False) -> str:
    """Creates a model repository unless it exists. Called before a long training, it checks the rights to push.

    Args:
        repo_id (`str`): `owner/name`, or `name` for the logged-in user.
        private (`bool`): Whether a new repository is private.

    Returns:
        `str`: The full `owner/name`.

    Raises:
        PushError: without a network, a login, or the right to write there.
        ValueError: if `repo_id` is not a valid name.
    """
    from huggingface_hub import HfApi

    with _errors_told(repo_id):
        return HfApi().create_repo(repo_id, private=private, exist_ok=True).repo_id


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload checkpoint with ave-clip",
) -> str:
    """Uploads a checkpoint folder in one commit: [`CHECKPOINT_FILES`], the code that its
    configuration names, and nothing else.

    Args:
        folder (`str` or `os.PathLike`): Written by `save_pretrained`, a training script or `ave-clip export`.
        repo_id (`str`): `owner/name`; the repository is created if it does not exist.
        private (`bool`): Whether a new repository is private.
        revision (`str`, *optional*): Branch to push to, created if it does not exist. Default: `main`.
        commit_message (`str`): First line of the commit.

    Returns:
        `str`: URL of the commit.

    Raises:
        PushError: without a network, a login, or the right to write there.
        ValueError: if the folder is not a checkpoint, or `repo_id` is not a valid name.
    """
    from huggingface_hub import HfApi

    names, api = checkpoint_files(folder), HfApi()
    repo_id = create_repository(repo_id, private=private)
    with _errors_told(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            allow_patterns=names,
            revision=revision,
            commit_message=commit_message,
        )
    return str(commit.commit_url)


@contextmanager
def _errors_told(repo_id: str) -> Iterator[None]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, httpx.HTTPError, RuntimeError) as error:  # RuntimeError: an upload by LFS failed
        raise PushError(
            f"Cannot push to {repo_id}: {error} Log in with `hf auth login` (a token with write access), and check "
            "the owner's name. The local folder is unchanged."
        ) from error
