"""Checkpoint folders on the Hugging Face Hub: only what a checkpoint consists of, never the states of a training."""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

# Files beside each other in the folder; what lies in folders of its own (states, trackers) is no part of a checkpoint.
CHECKPOINT_FILES = (
    "README.md",
    "results.json",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model*.safetensors.index.json",
    "*processor_config.json",
    "chat_template.jinja",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


class PushError(OSError):
    """The Hub could not be reached, or refused what was sent. The folder is as it was."""


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what scripts that write a checkpoint take: `--push_to_hub` and `--private`."""
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument("--push_to_hub", metavar="REPO_ID", help="Upload the finished checkpoint to this repository.")
    group.add_argument("--private", action="store_true", help="Make a repository that does not exist yet private.")


def checkpoint_files(folder: str | os.PathLike) -> list[str]:
    """Names of the files in a folder that belong to its checkpoint, in order.

    Raises:
        ValueError: if the folder holds no `config.json` with weights, so that nothing could load it.
    """
    path = Path(folder)
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file()) if path.is_dir() else []
    patterns = (*CHECKPOINT_FILES, "*.py") if _holds_code(path) else CHECKPOINT_FILES
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if "config.json" not in chosen or not any(name.endswith(".safetensors") for name in chosen):
        raise ValueError(
            f"{path} is no checkpoint: it needs a config.json and model.safetensors, and holds "
            f"{', '.join(names) or 'no file'}. Give the folder that `save_pretrained` or a training script wrote."
        )
    return chosen


def create_repository(repo_id: str, *, private: bool = False) -> str:
    """Make a model repository unless it exists; before a long training, a check that its result can be pushed.

    Args:
        repo_id (`str`): `owner/name`, or `name` for the logged-in user.
        private (`bool`): For a repository that does not exist yet.

    Returns:
        `str`: The full `owner/name`.

    Raises:
        PushError: without a network, a login, or the right to write there.
        ValueError: if `repo_id` is no valid name.
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
    """Upload a checkpoint folder in one commit: [`CHECKPOINT_FILES`], the code that its
    configuration names, and nothing else.

    Args:
        folder (`str` or `os.PathLike`): Written by `save_pretrained`, a training script or `ave-clip export`.
        repo_id (`str`): `owner/name`; the repository is made where there is none.
        private (`bool`): For a repository that does not exist yet.
        revision (`str`, *optional*): Branch to push to, made where there is none; `main` by default.
        commit_message (`str`): First line of the commit.

    Returns:
        `str`: URL of the commit.

    Raises:
        PushError: without a network, a login, or the right to write there.
        ValueError: if the folder is no checkpoint, or `repo_id` no valid name.
    """
    from huggingface_hub import HfApi

    names, api = checkpoint_files(folder), HfApi()
    repo_id = create_repository(repo_id, private=private)
    with _errors_told(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=names,
            revision=revision,
            commit_message=commit_message,
        )
    return str(commit.commit_url)


def _holds_code(folder: Path) -> bool:
    """Whether the configuration names classes of files beside it, as an export's does."""
    config = folder / "config.json"
    return config.is_file() and "auto_map" in json.loads(config.read_text(encoding="utf-8"))


@contextmanager
def _errors_told(repo_id: str) -> Iterator[None]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, httpx.HTTPError, RuntimeError) as error:  # RuntimeError: an upload by LFS failed
        raise PushError(
            f"Cannot push to {repo_id}: {error} Log in with `hf auth login` (a token with write access), and check "
            "the owner's name. What was to be pushed still lies in its folder."
        ) from error
