"""Model cards, made from a template, the checkpoint's configuration and its measured results.

Every number in a card comes from the checkpoint's configuration or from a results file; the templates
(`assets/cards/`) contain none. The training scripts write a card into each checkpoint folder.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.categories import AVE_CATEGORIES
from ..core.configuration_audio_visual_encoder import AudioVisualEncoderConfig
from ..core.configuration_audioclip import AudioCLIPConfig
from ..core.configuration_ave_clip import AVEClipConfig
from ..core.events import DEFAULT_DECODER
from ..core.label_space import LabelSpace
from ..core.tasks import LOCALIZATION_TASK, ZERO_SHOT_TASK
from ..files import atomic_file
from .card_drawings import draw_audioclip, draw_localizer, towers_of

# Files of a checkpoint's folder; transformers names the others.
CARD_FILE = "README.md"
RESULTS_FILE = "results.json"
WEIGHTS_PATTERN = "model*.safetensors"
PROCESSOR_PATTERN = "*processor_config.json"

TEMPLATES = Path(__file__).parents[1] / "assets" / "cards"
MEASURES = {
    "segment_accuracy": "segment accuracy",
    "background_recall": "background recall",
    "background_precision": "background precision",
    "segment_precision": "segment precision",
    "segment_recall": "segment recall",
    "segment_f1": "segment F1",
    "event_precision": "event precision",
    "event_recall": "event recall",
    "event_f1": "event F1 (tIoU 0.5)",
    "event_map": "event mAP (tIoU 0.5 to 0.9)",
    "event_map_wide": "event mAP (tIoU 0.1 to 0.9)",
    "video_accuracy": "video accuracy",
    # Of several events at once only.
    "event_map_at_0.5": "event mAP (tIoU 0.5)",
    "event_f1_macro": "event F1 (tIoU 0.5), mean of the classes",
    "segment_map": "segment mAP",
    "segment_f1_macro": "segment F1, mean of the classes",
    "collar_f1": "event F1 (collar of 0.2 s)",
}
DECODER_COLUMNS = ("segment_accuracy", "background_recall", "event_f1")
MULTI_LABEL_DECODER_COLUMNS = ("segment_f1", "event_f1", "event_f1_macro")
# Hub's metric ids; each is shown if it was measured.
INDEXED = {"segment_accuracy": "accuracy", "background_recall": "recall", "event_f1": "f1", "segment_map": "mAP"}
RETRIEVAL = re.compile(r"(audio_to_image|image_to_audio)_(class_)?r(\d+)")
NUM_WEAKEST = 3

# Arguments of a script that describe where and how it ran, and do not affect the result.
_PATHS = re.compile(r".*_dir|.*_every|config|output|model|cpu|num_workers|resume|overwrite|save_steps|push_to_hub")
_LOGS = re.compile(r"private|report_to|project|run_name|max_clips|max_steps")


def write_localizer_card(
    folder: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    model_name: str,
    dataset_name: str,
    dataset_id: str | None = None,
    command: str | None = None,
) -> Path:
    """Writes the `README.md` of a localizer's checkpoint folder.

    Args:
        folder (`str` or `os.PathLike`): Folder with `config.json`, the weights and, unless the localizer was trained
            on features of other encoders, `processor_config.json`.
        results (`Mapping[str, Any]`): Content of the `results.json` that `train_localizer.py` or
            `evaluate_localizer.py` writes; empty if nothing was measured.
        model_name (`str`): Title of the card, and the model that its examples load: a Hub id or folder.
        dataset_name (`str`): Readable name of the training data; empty if it is not known.
        dataset_id (`str`, *optional*): Id of the training data on the Hub. Default: derived from the name.
        command (`str`, *optional*): The command that made the checkpoint. Default: the command in `results`.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: if the folder does not contain a localizer.
    """
    text = build_localizer_card(
        folder, results, model_name=model_name, dataset_name=dataset_name, dataset_id=dataset_id, commands=[command]
    )
    return _write(Path(folder) / CARD_FILE, text)


def write_encoder_card(
    folder: str | os.PathLike, results: Mapping[str, Any], *, model_name: str, dataset_name: str = ""
) -> Path:
    """Writes the `README.md` of a composite encoder, which names its towers.

    Args:
        folder (`str` or `os.PathLike`): With `config.json`.
        results (`Mapping[str, Any]`): Content of the `results.json` that `finetune_audioclip.py` writes; empty if the
            encoder was not fine-tuned: the towers have cards of their own.
        model_name (`str`): Title of the card, and what its example loads.
        dataset_name (`str`): Readable name of the data of stage 1.
    """
    config = AudioVisualEncoderConfig.from_pretrained(folder)
    text = render_card(
        "encoder.md",
        model_name=_escape(model_name),
        source=model_name,
        towers=_tower_lines(config),
        window=f"{config.audio_window_seconds:g}",
        sampling_rate=config.sampling_rate,
        task=ZERO_SHOT_TASK,
        dataset_name=_escape(dataset_name),
        history=_history(results),
        settings=_settings(results),
        retrieval=_retrieval(results),
        commands=_commands((), results),
        environment=describe_environment(results),
    )
    return _write(Path(folder) / CARD_FILE, text)


def write_audioclip_card(
    folder: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    model_name: str,
    dataset_name: str,
    dataset_id: str | None = None,
    command: str | None = None,
) -> Path:
    """Writes the `README.md` of an AudioCLIP checkpoint folder from stage 1.

    Args:
        folder (`str` or `os.PathLike`): Folder with `config.json` and the weights.
        results (`Mapping[str, Any]`): Content of the `results.json` that `finetune_audioclip.py` writes.
        model_name (`str`), dataset_name (`str`), dataset_id (`str`, *optional*), command (`str`, *optional*):
            As for [`write_localizer_card`].

    Returns:
        `Path`: The card.

    Raises:
        ValueError: if the folder does not contain an AudioCLIP model.
    """
    config = AudioCLIPConfig.from_pretrained(folder)
    text = build_audioclip_card(
        config,
        results,
        model_name=model_name,
        dataset_name=dataset_name,
        dataset_id=dataset_id,
        commands=[command],
    )
    return _write(Path(folder) / CARD_FILE, text)


def build_localizer_card(
    folder: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    model_name: str,
    dataset_name: str,
    dataset_id: str | None = None,
    commands: Iterable[str | None] = (),
    source: str | None = None,
    evaluation: str | None = None,
    seeds: Mapping[str, Any] | None = None,
    controls: Mapping[str, Any] | None = None,
) -> str:
    """Returns the text of a localizer's card.

    Args:
        folder, results, model_name, dataset_name, dataset_id: As for [`write_localizer_card`].
        commands (`Iterable[str | None]`): The commands that made and evaluated the model. Default: the command in
            `results`.
        source (`str`, *optional*): The model that the examples load. Default: `model_name`.
        evaluation (`str`, *optional*): Description of the evaluation data. Default: the name of the split.
        seeds (`Mapping[str, Any]`, *optional*): Results over several seeds: the number of runs (`count`), and the
            `mean` and the standard deviation (`deviation`) of each measure in `metrics`.
        controls (`Mapping[str, Any]`, *optional*): Results of the same network by name: `"stage3"`, and `"no_audio"`
            and `"no_video"` with one modality blanked.

    Returns:
        `str`: Markdown with metadata.
    """
    config = AVEClipConfig.from_pretrained(folder)
    splits = measures_by_split(results)
    facts = localizer_facts(config, *_time_grid(folder))
    kinds = facts["data"], "video-classification"
    metadata = card_metadata(
        model_name, dataset_name, dataset_id, *kinds, _index(splits, config), is_composite=bool(facts["towers"])
    )
    return render_card(
        "localizer.md",
        card_data=metadata,
        model_name=_escape(model_name),
        dataset_name=_escape(dataset_name),
        source=source or model_name,
        tables=[_table(split, decoders, evaluation) for split, decoders in splits.items()],
        main_split=next(iter(splits), None),
        weakest=_weakest(splits, config),
        seeds=_seed_table(seeds),
        controls=_controls(controls),
        history=_history(results),
        settings=_settings(results),
        commands=_commands(commands, results),
        environment=describe_environment(results),
        num_parameters=count_parameters(config),
        num_bytes=sum(path.stat().st_size for path in Path(folder).glob(WEIGHTS_PATTERN)),
        **facts,
    )


def build_audioclip_card(
    config: AudioCLIPConfig,
    results: Mapping[str, Any],
    *,
    model_name: str,
    dataset_name: str,
    dataset_id: str | None = None,
    commands: Iterable[str | None] = (),
    source: str | None = None,
) -> str:
    """Returns the text of the card of a fine-tuned AudioCLIP, or of the converted one (results with `"published"`).

    Args:
        config (`AudioCLIPConfig`): Configuration of the checkpoint.
        results (`Mapping[str, Any]`): Results as `finetune_audioclip.py` writes them. For the converted model:
            `"published"`, a list of `dataset`, `setting` and `accuracy`, and `"parity"`, the largest difference from
            the original per output.
        model_name, dataset_name, dataset_id, commands, source: As for [`build_localizer_card`].

    Returns:
        `str`: Markdown with metadata.
    """
    is_converted = not results.get("history")
    data = "other" if is_converted else _kind_of_data(results.get("categories") or (), dataset_name)
    return render_card(
        "audioclip.md",
        card_data=card_metadata(model_name, dataset_name, dataset_id, data, "feature-extraction", []),
        model_name=_escape(model_name),
        dataset_name=_escape(dataset_name),
        source=source or model_name,
        is_converted=is_converted,
        data=data,
        num_categories=len(results.get("categories") or AVE_CATEGORIES),
        num_parameters=count_parameters(config),
        towers=config.towers,
        image_size=config.vision_config.image_size,
        sampling_rate=config.audio_config.sampling_rate,
        projection_dim=config.projection_dim,
        drawing=draw_audioclip(config),
        retrieval=_retrieval(results),
        published=results.get("published"),
        parity=[{"name": name, "value": f"{value:.2g}"} for name, value in results.get("parity", {}).items()],
        history=_history(results),
        settings=_settings(results),
        commands=_commands(commands, results),
        environment=describe_environment(results),
    )


def count_parameters(config: AVEClipConfig | AudioCLIPConfig) -> int:
    """Counts the parameters of a configuration's model, without buffers such as the statistics of batch norm."""
    import torch

    from ..core.modeling_audioclip import AudioCLIPModel
    from ..core.modeling_ave_clip import AVEClipForLocalization

    with torch.device("meta"):  # allocates no memory
        model = AudioCLIPModel(config) if isinstance(config, AudioCLIPConfig) else AVEClipForLocalization(config)
    return sum(parameter.numel() for parameter in model.parameters())


def render_card(template: str, folder: str | os.PathLike = TEMPLATES, **values: Any) -> str:
    """Fills a template.

    Args:
        template (`str`): File name of the template.
        folder (`str` or `os.PathLike`): Folder of the template and of the templates that it includes.
        values: The template's variables; a missing one is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML; the callers escape the names of classes and data sets
    )
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def card_metadata(
    model_name: str,
    dataset_name: str,
    dataset_id: str | None,
    data: str,
    task: str,
    results: Sequence[Mapping],
    is_composite: bool = False,
) -> str:
    """Returns the YAML header of a card: the metadata that the Hub searches, and the results as a model index.

    A model that contains a composite encoder has no licence of its own here: it depends on the encoder's towers.
    """
    from huggingface_hub import EvalResult, ModelCardData

    dataset = dataset_id or re.sub(r"[^a-z0-9]+", "-", dataset_name.lower()).strip("-")
    evaluations = [
        EvalResult(
            task_type=task,
            task_name="Audio-visual event localization",
            dataset_type=dataset or "unknown",
            dataset_name=dataset_name or "unknown",
            **result,
        )
        for result in results
    ]
    metadata = ModelCardData(
        language=None if task == "video-classification" else "en",
        license="other" if is_composite else {"synthetic": "apache-2.0", "other": "mit"}.get(data, "other"),
        library_name="ave-clip",
        pipeline_tag=task,
        tags=[LOCALIZATION_TASK, "ave-clip", *([] if is_composite else ["audioclip"]), "video", "audio"]
        + (["synthetic"] if data == "synthetic" else []),
        datasets=[dataset] if dataset else None,
        metrics=["accuracy", "recall", "f1"] if task == "video-classification" else ["accuracy"],
        model_name=model_name if evaluations else None,
        eval_results=evaluations or None,
    )
    return metadata.to_yaml()


def _index(splits: Mapping[str, Mapping[str, Any]], config: AVEClipConfig) -> list[dict[str, Any]]:
    """Returns the main measures of each split except validation, on which the model was chosen."""
    chosen = {split: main_metrics(decoders) for split, decoders in splits.items()}
    if len(chosen) > 1:
        chosen.pop("validation", None)
    return [
        {
            "dataset_split": split,
            "metric_type": kind,
            "metric_name": MEASURES[name],
            "metric_value": round(metrics[name], 4),
        }
        for split, metrics in chosen.items()
        for name, kind in INDEXED.items()
        if isinstance(metrics.get(name), float)
    ]


def measures_by_split(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the measures by split and decoder, test split first, from the results of either script."""
    if "decoders" in results:
        return {results["split"]: results["decoders"]}
    return {split: results[split] for split in ("test", "validation") if results.get(split)}


def main_metrics(decoders: Mapping[str, Any]) -> Mapping[str, Any]:
    return decoders[DEFAULT_DECODER if DEFAULT_DECODER in decoders else next(iter(decoders))]


def _measures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns names and titles of the measures that are fractions, the known ones first."""
    found = {name: title for name, title in MEASURES.items() if isinstance(metrics.get(name), float)}
    others = [name for name, value in metrics.items() if isinstance(value, float) and name not in found]
    return found | {name: name.replace("_", " ") for name in others}


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _table(split: str, decoders: Mapping[str, Any], evaluation: str | None) -> dict[str, Any]:
    metrics = main_metrics(decoders)
    intervals = metrics.get("intervals", {})
    rows = [
        {
            "name": title,
            "value": _percent(metrics[name]),
            "interval": " to ".join(map(_percent, intervals[name])) if name in intervals else "",
        }
        for name, title in _measures(metrics).items()
    ]
    references = {name: _percent(value) for name, value in metrics.get("baselines", {}).items()}
    wanted = MULTI_LABEL_DECODER_COLUMNS if "segment_map" in metrics else DECODER_COLUMNS
    columns = [name for name in wanted if name in metrics]
    return {
        "title": evaluation or f"the {split} split",
        "decoder": next(name for name, value in decoders.items() if value is metrics),
        "num_videos": metrics["num_videos"],
        "num_segments": metrics["num_segments"],
        "rows": rows,
        "references": references,
        "columns": [MEASURES[name] for name in columns],
        "decoders": [
            {"name": decoder, "values": [_percent(measured[name]) for name in columns]}
            for decoder, measured in decoders.items()
        ],
    }


def _weakest(splits: Mapping[str, Mapping[str, Any]], config: AVEClipConfig) -> str | None:
    if not splits:
        return None
    metrics = main_metrics(next(iter(splits.values())))
    if "classes" in metrics:  # several events at once; without events of a class, its F1 says nothing
        accuracies = [row["event_f1"] if row["num_events"] else None for row in metrics["classes"]]
    else:
        accuracies = metrics.get("class_accuracy") or []
    known = [(value, index) for index, value in enumerate(accuracies) if value is not None]
    return ", ".join(
        f"{_escape(config.id2label[index])} {_percent(value)}" for value, index in sorted(known)[:NUM_WEAKEST]
    )


def _seed_table(seeds: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if seeds is None:
        return None
    metrics = seeds["metrics"]
    titles = _measures({name: values["mean"] for name, values in metrics.items()})
    rows = [
        {
            "name": title,
            "mean": _percent(metrics[name]["mean"]),
            "deviation": _percent(metrics[name]["deviation"]),
        }
        for name, title in titles.items()
    ]
    return {"count": seeds["count"], "rows": rows}


def _controls(results: Mapping[str, Any] | None) -> list[dict[str, str]]:
    names = {"stage3": "video and audio", "no_audio": "audio blanked", "no_video": "video blanked"}
    results = results or {}
    found = {name: results[name] for name in names if name in results and results[name].get("validation")}
    if len(found) < 2:
        return []
    metrics = {name: main_metrics(result["validation"]) for name, result in found.items()}
    points = metrics["stage3"].get("baselines", {})
    rows = {names[name]: measured["segment_accuracy"] for name, measured in metrics.items()}
    rows["(background everywhere)"] = points.get("all_background")
    rows["(the right class, never background)"] = points.get("never_background")
    return [{"name": name, "value": _percent(value)} for name, value in rows.items() if value is not None]


def _retrieval(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the retrieval measures in `"validation"` if the results contain it, else those of the best epoch."""
    history = results.get("history") or []
    chosen = results.get("validation") or (max(history, key=lambda epoch: epoch.get("score", 0)) if history else {})
    rows = []
    for name, value in chosen.items():
        if match := RETRIEVAL.fullmatch(name):
            direction, same_class, rank = match.groups()
            title = f"{direction.replace('_', ' ')} R@{rank}{', any of the same class' if same_class else ''}"
            rows.append({"name": title, "value": _percent(value)})
    return rows


def _history(results: Mapping[str, Any]) -> dict[str, Any] | None:
    history = [record for record in results.get("history") or [] if record.get("loss") is not None]
    return {"num_epochs": len(history), "loss": f"{history[-1]['loss']:.4g}"} if history else None


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the script's arguments that affect the result."""
    arguments = results.get("arguments") or {}
    return [
        (f"`{name}`", f"`{_escape(json.dumps(value) if isinstance(value, (dict, list)) else str(value))}`")
        for name, value in arguments.items()
        if value not in (None, [], {}, "") and not _PATHS.fullmatch(name) and not _LOGS.fullmatch(name)
    ]


def _commands(commands: Iterable[str | None], results: Mapping[str, Any]) -> list[str]:
    given = [command for command in commands if command]
    own = results.get("command")
    return given or ([f"python {own}"] if own else ["# not recorded"])


def describe_environment(results: Mapping[str, Any]) -> str:
    parts = [f"{name} {version}" for name, version in (results.get("versions") or {}).items()]
    machine = results.get("machine") or {}
    parts += [f"{name}: {value}" for name, value in machine.items()]
    return ", ".join(_escape(part) for part in parts) + "." if parts else ""


def _time_grid(folder: str | os.PathLike) -> tuple[int | None, float]:
    """Returns frames and seconds per segment from the saved processor; `None` frames if there is no processor."""
    from ..core.video_processing_ave_clip import AVEClipVideoProcessor

    if not any(Path(folder).glob(PROCESSOR_PATTERN)):
        return None, 1.0
    processor = AVEClipVideoProcessor.from_pretrained(folder)
    return processor.num_frames_per_segment, processor.segment_seconds


def localizer_facts(config: AVEClipConfig, num_frames: int | None, segment_seconds: float) -> dict[str, Any]:
    towers = config.encoder_config
    space = LabelSpace.of(config)
    categories = space.event_names
    labels = "any number of classes" if space.is_multi_label else "one class"
    return {
        "data": _kind_of_data(categories),
        "categories": [_escape(name) for name in categories],
        "num_categories": len(categories),
        # AudioCLIP's towers have one size of images; those of a composite have it in their own image processors.
        "image_size": None if config.is_composite else towers.vision_config.image_size,
        "towers": _tower_lines(towers) if config.is_composite and config.use_encoders else [],
        "sampling_rate": towers.sampling_rate if config.is_composite else towers.audio_config.sampling_rate,
        "feature_sizes": (config.resolved_image_feature_size, config.resolved_audio_feature_size),
        "num_frames": num_frames,
        "segment_seconds": f"{segment_seconds:g}",
        "min_event_segments": config.min_event_segments,
        "event_loss_weight": config.event_loss_weight,
        "category_loss_weight": config.category_loss_weight,
        "label_smoothing": config.label_smoothing,
        "contrastive_loss_weight": config.contrastive_loss_weight,
        "supervision": "video-level classes only" if config.supervision == "weak" else f"{labels} per segment",
        "is_multi_label": space.is_multi_label,
        "drawing": draw_localizer(config, num_frames),
    }


def _tower_lines(config: AudioVisualEncoderConfig) -> list[str]:
    return [
        f"- {what}: {_escape(source or 'not recorded')}" + (f" at `{commit}`" if commit else "") + f" (`{kind}`)"
        for what, (source, commit, kind) in towers_of(config).items()
    ]


def _kind_of_data(categories: Iterable[str], dataset_name: str = "") -> str:
    from ..data.synthetic.clips import SYNTHETIC_CATEGORIES

    names = set(categories)
    if names == set(AVE_CATEGORIES) or (not names and re.match(r"AVE\b|AVE_", dataset_name)):
        return "ave"
    if (names and names <= set(SYNTHETIC_CATEGORIES)) or (not names and "synthetic" in dataset_name.lower()):
        return "synthetic"
    return "other"


def _escape(text: str) -> str:
    """Returns a name as plain text for Markdown: on one line, with markup and table separators escaped."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text) if re.search(r"[`*{}\[\]<>|#\\]", text) else text


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path
