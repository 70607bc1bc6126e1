"""Stage 3 in bfloat16: autocast reaches the localizer, and training works."""

import pytest
import torch

from ave_clip.training.arguments import build_accelerator
from ave_clip.training.dropout import use_keyed_dropout

from ..helpers.models import tiny_localizer


@pytest.fixture
def fresh_state():
    """Accelerate keeps the precision of the first accelerator of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(precision: str) -> tuple[list[float], set[torch.dtype]]:
    """Losses of some training steps, and the dtypes that the first linear layer gave."""
    accelerator = build_accelerator(True, precision)
    localizer, seen = tiny_localizer(use_encoders=False).train(), set()
    size = localizer.config
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image_features": torch.randn(4, 10, size.resolved_image_feature_size, generator=generator),
        "audio_features": torch.randn(4, 10, size.resolved_audio_feature_size, generator=generator),
        "labels": torch.randint(4, (4, 10), generator=generator),
    }
    linear = next(module for module in localizer.modules() if isinstance(module, torch.nn.Linear))
    for module in localizer.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    assert linear.weight.dtype == torch.float32
    dropout = use_keyed_dropout(localizer)
    optimizer = torch.optim.AdamW(localizer.parameters(), lr=0.01)
    localizer, optimizer = accelerator.prepare(localizer, optimizer)
    found = []
    for step in range(8):
        dropout.set(0, step, torch.arange(4))
        loss = localizer(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found, seen


def test_bfloat16_training_computes_in_bfloat16_and_learns(fresh_state):
    from accelerate.state import AcceleratorState

    exact, exact_types = losses("no")
    AcceleratorState._reset_state(reset_partial_state=True)
    half, half_types = losses("bf16")
    assert exact_types == {torch.float32} and torch.bfloat16 in half_types
    assert half != exact and half == pytest.approx(exact, rel=0.05)
    assert half[-1] < 0.8 * half[0]
