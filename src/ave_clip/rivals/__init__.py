"""Networks of previous work, to compare AVE-CLIP with: from features to an [`AVEClipLocalizationOutput`].

They are written from the papers' equations and, where the authors' code is public, give its logits with its weights.
The module of each names its sources, and what they leave open.
`examples/run_comparison.py` trains them. They are not part of a saved localizer.
"""

from .avel import AVEL, AVELAttention
from .avin import AVIN
from .base import Rival, RivalConfig
from .baselines import AudioOnly, ConcatenatedBiLSTM, VideoOnly
from .cmbs import CMBS
from .cmran import CMRAN
from .dam import DAM
from .psp import PSP
from .rfjc import RFJC

# All rivals by name, in the order of tables.
RIVALS: dict[str, type[Rival]] = {
    "audio-only": AudioOnly,
    "video-only": VideoOnly,
    "bilstm": ConcatenatedBiLSTM,
    "avel-att": AVELAttention,
    "avel": AVEL,
    "dam": DAM,
    "psp": PSP,
    "rfjc": RFJC,
    "avin": AVIN,
    "cmran": CMRAN,
    "cmbs": CMBS,
}


def build_rival(name: str, config: RivalConfig) -> Rival:
    """Builds an untrained rival.

    Args:
        name (`str`): A name of `RIVALS`.
        config (`RivalConfig`): Its sizes, classes and supervision.

    Raises:
        ValueError: If there is no rival of that name, or it is not defined for that supervision.
    """
    if name not in RIVALS:
        raise ValueError(f"There is no rival {name!r}: choose one of {', '.join(RIVALS)}.")
    return RIVALS[name](config)


__all__ = ["RIVALS", "Rival", "RivalConfig", "build_rival"]
