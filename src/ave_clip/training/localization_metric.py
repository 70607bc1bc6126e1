"""The measures of `metrics` as an `evaluate.Metric`, for code that collects predictions batch by batch.

    metric = LocalizationMetric(num_labels=29)
    for batch in loader:
        metric.add_batch(predictions=..., references=...)
    metric.compute()["segment_accuracy"]

Nothing is downloaded: the class is used as it is, not by `evaluate.load`.
"""

from typing import Any

import datasets
import evaluate

from .metrics import localization_metrics

_INPUTS = """
Args:
    predictions (`list[list[int]]`): Predicted class ids of every video's segments, background last.
    references (`list[list[int]]`): True class ids, of the same lengths; -100 leaves a segment out.
"""


class LocalizationMetric(evaluate.Metric):
    """Segment, event and video measures of audio-visual event localization over all videos that were added.

    Predictions and references are lists of class ids, one list per video, of any lengths. `compute` returns what
    [`localization_metrics`] returns without probabilities, so not the measures of scored events.

    Args:
        num_labels (`int`): Number of classes, background included.
        background (`int`, *optional*): Class id of background; the last class when not given.
        tiou (`float`): Smallest intersection over union at which two events match.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        resampling_seed (`int`): Seed of the bootstrap.
        options: Arguments of `evaluate.Metric`, such as `process_id` and `num_process` (its own way to collect over
            processes; with Accelerate gather first and add on one process), `experiment_id` and `cache_dir`.
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
