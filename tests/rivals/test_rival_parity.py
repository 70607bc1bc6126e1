"""With the authors' weights the rivals give the authors' scores and losses.

`parity.json` was written by `make_rival_parity.py`, which runs their code; see there.
"""

import json
from pathlib import Path

import pytest
import torch

from ave_clip.core.categories import labels_with_background
from ave_clip.rivals import RivalConfig, build_rival
from tests.helpers.rivals import EVENT_CLASSES, NUM_CLASSES, parity_features, parity_labels, pseudo_weight

REFERENCE = json.loads(Path(__file__).with_name("parity.json").read_text(encoding="utf-8"))
FEATURES = parity_features()


@pytest.mark.parametrize("case", REFERENCE)
def test_a_rival_with_the_weights_of_its_authors_gives_their_scores_and_loss(case):
    name, _, supervision = case.rpartition("-")
    names = labels_with_background(map(str, range(NUM_CLASSES - 1)))
    rival = build_rival(name, RivalConfig(supervision=supervision, id2label=names)).double().eval()
    for parameter_name, parameter in rival.named_parameters():
        parameter.data.copy_(pseudo_weight(parameter_name, tuple(parameter.shape)))
    real = torch.ones(2, 10, dtype=torch.bool)
    with torch.no_grad():
        scores = rival.score(FEATURES[0].flatten(2, 3), FEATURES[1], real)
        if supervision == "full":
            loss = rival.full_loss(scores, parity_labels())
        else:
            loss = rival.weak_loss(scores, torch.tensor(EVENT_CLASSES), real)
    expected = dict(REFERENCE[case])
    assert loss.item() == pytest.approx(expected.pop("loss")[0], rel=1e-6)  # computed in float32
    for part, values in expected.items():
        found = getattr(scores, part)
        found = found[:, [0, 4, 9]] if part == "logits" else found
        wanted = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found.flatten(), wanted, rtol=0, atol=1e-8)
