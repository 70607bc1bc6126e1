"""Names of the tasks, under which `transformers.pipeline` finds this package's pipelines."""

LOCALIZATION_TASK = "audio-visual-event-localization"
ZERO_SHOT_TASK = "zero-shot-audio-visual-event-localization"

__all__ = ["LOCALIZATION_TASK", "ZERO_SHOT_TASK"]
