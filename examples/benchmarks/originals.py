"""Code of others for comparisons on one device, from folders of the user: the original AudioCLIP and PSP's network.

Neither is part of this repository. Get them with

    git clone https://github.com/AndreyGuzhov/AudioCLIP
    git clone https://github.com/jasongief/PSP_CVPR_2021

and pass `--original_audioclip AudioCLIP` and `--original_psp PSP_CVPR_2021/fully_model.py`. AudioCLIP needs the
packages that its requirements.txt names, and assets/bpe_simple_vocab_16e6.txt.gz of its releases.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

# Sizes of PSP's own features (VGG-19 and VGGish), and its threshold for full supervision.
PSP_LOCATIONS, PSP_IMAGE_SIZE, PSP_AUDIO_SIZE = 49, 512, 128
PSP_SEGMENTS, PSP_CLASSES, PSP_THRESHOLD = 10, 29, 0.099


def original_audioclip(folder: Path, device: str) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Returns the original audio and image encoders, with random weights.

    Raises:
        FileNotFoundError: if the folder is not a copy of AudioCLIP's repository.
    """
    if not (folder / "model" / "audioclip.py").is_file():
        raise FileNotFoundError(f"{folder} has no model/audioclip.py: pass the folder of AudioCLIP's repository.")
    sys.path.insert(0, str(folder.resolve()))  # its modules import each other as `model.…`
    try:
        network = importlib.import_module("model.audioclip").AudioCLIP(pretrained=False).eval().to(device)
    finally:
        sys.path.pop(0)
    # Its audio has a channel.
    return {"audio": lambda waveform: network.encode_audio(waveform.unsqueeze(1)), "image": network.encode_image}


def psp_batch(batch_size: int, device: str) -> dict[str, torch.Tensor]:
    """Returns random features and labels with the shapes of PSP's."""
    generator = torch.Generator().manual_seed(0)
    clips = (batch_size, PSP_SEGMENTS)
    batch = {
        "image_features": torch.randn(*clips, PSP_LOCATIONS, PSP_IMAGE_SIZE, generator=generator),
        "audio_features": torch.randn(*clips, PSP_AUDIO_SIZE, generator=generator),
        "labels": torch.randint(PSP_CLASSES, clips, generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def original_psp_step(file: Path, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Returns a function that runs one training step of the authors' network: cross-entropy, and Adam as they use it.

    Their second loss, a few operations on `(batch, segments)`, is left out.

    Raises:
        FileNotFoundError: if the file does not exist or is not a Python file.
    """
    spec = importlib.util.spec_from_file_location("original_psp", file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{file} is not a Python file: pass fully_model.py of PSP's repository.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device, image = batch["audio_features"].device, batch["image_features"].unflatten(2, (7, 7))
    with calls_to_cuda_ignored(device):
        network = module.psp_net(PSP_AUDIO_SIZE, PSP_IMAGE_SIZE, PSP_AUDIO_SIZE, PSP_CLASSES).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        with calls_to_cuda_ignored(device):
            _, logits, _ = network(batch["audio_features"], image, PSP_THRESHOLD)
        nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@contextlib.contextmanager
def calls_to_cuda_ignored(device: torch.device) -> Iterator[None]:
    """On the CPU, leaves tensors and networks there: the authors' code moves them to a GPU itself."""
    kept = torch.Tensor.cuda, nn.Module.cuda
    if device.type == "cpu":
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self
    try:
        yield
    finally:
        torch.Tensor.cuda, nn.Module.cuda = kept
