"""The pseudo-random weights of the speed tables are the same for everybody, and those of the parity tests."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ave_clip.checkpoints.convert import original_name
from tests.helpers.models import tiny_audioclip_config

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("AVE_CLIP_SHARED", ROOT.parent / "shared")) / "fixtures" / "audioclip"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def make_weights():
    return load(ROOT / "examples" / "benchmarks" / "make_weights.py")


def test_weights_are_a_function_of_name_shape_and_seed(make_weights):
    values = make_weights.fill("visual.layer1.0.conv1.weight", (3, 4, 1, 1))
    assert values.dtype == np.float32 and values.shape == (3, 4, 1, 1)
    # Rounded, as numpy's cosine and square root may differ in the last bit between processors.
    digest = hashlib.sha256(np.round(values.astype(np.float64) * 1e4).astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "a9ff8e1eccdb94d9"
    assert not np.array_equal(values, make_weights.fill("visual.layer1.0.conv1.weight", (3, 4, 1, 1), seed=1))
    assert not np.array_equal(values, make_weights.fill("visual.layer1.0.conv2.weight", (3, 4, 1, 1)))
    with pytest.raises(KeyError, match="No rule for 'x'"):
        make_weights.fill("x", (2,))


def test_every_tensor_of_a_model_is_filled_as_the_original_stores_it(make_weights):
    model = make_weights.build_model(tiny_audioclip_config())
    state = model.state_dict()
    name = "text_model.text_model.encoder.layers.0.self_attn.k_proj.weight"
    size = len(state[name])
    stored = make_weights.fill("transformer.resblocks.0.attn.in_proj_weight", (3 * size, size))
    assert np.array_equal(state[name].numpy(), stored[size : 2 * size])
    projection = state["text_model.text_projection.weight"]
    assert np.array_equal(projection.numpy(), make_weights.fill("text_projection", projection.shape[::-1]).T)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert not model.training


def test_the_weights_are_those_of_the_parity_tests(make_weights):
    if not FIXTURES.is_dir():
        pytest.skip(f"AVE_CLIP_SHARED holds no fixtures: no {FIXTURES}")
    filler = load(FIXTURES / "filler.py")
    spec = json.loads((FIXTURES / "state_dict_spec.json").read_text())
    seen = set()
    for name, entry in spec.items():  # one of each kind: the large ones would take long
        kind = "".join(character for character in name if not character.isdigit())
        if kind not in seen and np.prod(entry["shape"]) < 300_000:
            seen.add(kind)
            expected = filler.fill(name, entry["shape"], make_weights.SEED)
            found = make_weights.fill(name, entry["shape"])
            assert found.dtype == expected.dtype and np.array_equal(found, expected), name
    assert len(seen) > 50
    assert {original_name(name)[0] for name in make_weights.build_model(tiny_audioclip_config()).state_dict()} - set(
        spec
    ) == set()
