"""The measures of `metrics` as an `evaluate.Metric`, for code that adds predictions batch by batch.

    metric = LocalizationMetric(num_labels=29)
    for batch in loader:
        metric.add_batch(predictions=..., references=...)
    metric.compute()["segment_accuracy"]

Nothing is downloaded: use the class directly, not through `evaluate.load`.
"""

from typing import Any

import datasets
import evaluate

from .metrics import localization_metrics

_INPUTS = """
Args:
    predictions (`list[list[int]]`): Predicted class ids of each video's segments, background last.
    references (`list[list[int]]`): True class ids, of the same lengths; segments with -100 are ignored.
"""


class LocalizationMetric(evaluate.Metric):
    """Segment, event and video measures of audio-visual event localization over all added videos.

    Predictions and references are lists of class ids, one list per video, of any lengths. `compute` returns the
    result of [`localization_metrics`] without probabilities, that is, without the measures that rank events by score.

    Args:
        num_labels (`int`): Number of classes, background included.
        background (`int`, *optional*): Class id of background. Default: the last class.
        tiou (`float`): Smallest intersection over union at which two events match.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        resampling_seed (`int`): Seed of the bootstrap.
        options: Arguments of `evaluate.Metric`, such as `experiment_id`, `cache_dir`, or `process_id` with
            `num_process` for its own distributed evaluation (with Accelerate, gather first and add on one process).
    """

    def __init__(
        self,
        num_labels: int,
        *,
        background: int | None = None,
        tiou: float = 0.5,
        num_resamples: int = 1000,
        resampling_seed: int = 0,
        **options: Any,
    ):
        self.settings = {
            "num_labels": num_labels,
            "background": background,
            "tiou": tiou,
            "num_resamples": num_resamples,
            "seed": resampling_seed,
        }
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        video = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": video, "references": video}),
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, Any]:
        return localization_metrics(predictions, references, **self.settings)
