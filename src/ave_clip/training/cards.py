"""Model cards: what a checkpoint is, is for and reaches, from a template and the results that were measured.

Every number of a card comes from the checkpoint's own configuration or from a results file; the templates
(`assets/cards/`) hold none. The training scripts write a card beside each checkpoint. For the cards of this project,

    python -m ave_clip.training.cards model_cards

writes `model_cards/*.md` anew from `model_cards/results/*.json`.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..categories import AVE_CATEGORIES
from ..configuration_audioclip import AudioCLIPConfig
from ..configuration_ave_clip import AVEClipConfig
from ..files import atomic_file
from ..registration import DEFAULT_CHECKPOINT
from .metrics import summarize_runs

TEMPLATES = Path(__file__).parents[1] / "assets" / "cards"
MAIN_DECODER = "merge"
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
}
DECODER_COLUMNS = ("segment_accuracy", "background_recall", "event_f1")
INDEXED = {"segment_accuracy": "accuracy", "background_recall": "recall", "event_f1": "f1"}  # Hub's metric ids
RETRIEVAL = re.compile(r"(audio_to_image|image_to_audio)_(class_)?r(\d+)")
NUM_WEAKEST = 3
FRESH_SEED = 20261122  # of the clips that measure ave-clip-tiny

# Arguments of a script that say where it ran, not how.
_PLACES = re.compile(r".*_dir|.*_every|config|output|model|cpu|num_workers|resume|overwrite|save_steps|push_to_hub")
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
    """Write the `README.md` of a localizer's checkpoint folder.

    Args:
        folder (`str` or `os.PathLike`): With `config.json` and the weights, and with `processor_config.json` unless
            the localizer was trained on features of other encoders.
        results (`Mapping[str, Any]`): Content of the `results.json` that `train_localizer.py` or
            `evaluate_localizer.py` writes; empty where nothing was measured.
        model_name (`str`): Title of the card, and what its examples load; a Hub id or folder.
        dataset_name (`str`): The training data, as people call it; empty where that is not known.
        dataset_id (`str`, *optional*): Its id on the Hub; made from the name when not given.
        command (`str`, *optional*): The command that made the checkpoint; that of `results` when not given.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: if the folder holds no localizer.
    """
    text = build_localizer_card(
        folder, results, model_name=model_name, dataset_name=dataset_name, dataset_id=dataset_id, commands=[command]
    )
    return _write(Path(folder) / "README.md", text)


def write_audioclip_card(
    folder: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    model_name: str,
    dataset_name: str,
    dataset_id: str | None = None,
    command: str | None = None,
) -> Path:
    """Write the `README.md` of an AudioCLIP's checkpoint folder, as stage 1 makes it.

    Args:
        folder (`str` or `os.PathLike`): With `config.json` and the weights.
        results (`Mapping[str, Any]`): Content of the `results.json` that `finetune_audioclip.py` writes.
        model_name (`str`), dataset_name (`str`), dataset_id (`str`, *optional*), command (`str`, *optional*):
            As for [`write_localizer_card`].

    Returns:
        `Path`: The card.

    Raises:
        ValueError: if the folder holds no AudioCLIP.
    """
    config = AudioCLIPConfig.from_pretrained(folder)
    text = build_audioclip_card(
        config,
        results,
        model_name=model_name,
        dataset_name=dataset_name,
        dataset_id=dataset_id,
        commands=[command],
        num_values=_weights(folder)["num_values"],
    )
    return _write(Path(folder) / "README.md", text)


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
    """Text of a localizer's card.

    Args:
        folder, results, model_name, dataset_name, dataset_id: As for [`write_localizer_card`].
        commands (`Iterable[str | None]`): What made the model and measured it; the results' own command without any.
        source (`str`, *optional*): What the examples load; `model_name` when not given.
        evaluation (`str`, *optional*): What the results were measured on, where there is more to say than the split.
        seeds (`Mapping[str, Any]`, *optional*): Result of [`summarize_seeds`].
        controls (`Mapping[str, Any]`, *optional*): Results of the same network by name: `"stage3"`, and `"no_audio"`
            and `"no_video"` with a modality blanked.

    Returns:
        `str`: Markdown with metadata.
    """
    config = AVEClipConfig.from_pretrained(folder)
    splits = _splits(results)
    facts = _localizer_facts(config, *_time_grid(folder))
    metadata = _metadata(
        model_name, dataset_name, dataset_id, facts["data"], "video-classification", _index(splits, config)
    )
    return _render(
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
        environment=_environment(results),
        **_weights(folder),
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
    num_values: int,
    source: str | None = None,
) -> str:
    """Text of an AudioCLIP's card: one that was trained further, or (results with `"published"`) the converted one.

    Args:
        config (`AudioCLIPConfig`): Of the checkpoint.
        results (`Mapping[str, Any]`): As `finetune_audioclip.py` writes it; or `"published"`, a list of `dataset`,
            `setting` and `accuracy`, and `"parity"`, the largest difference from the original by output.
        model_name, dataset_name, dataset_id, commands, source: As for [`build_localizer_card`].
        num_values (`int`): Numbers in the weights.

    Returns:
        `str`: Markdown with metadata.
    """
    is_converted = not results.get("history")
    data = "other" if is_converted else _kind_of_data(results.get("categories") or (), dataset_name)
    return _render(
        "audioclip.md",
        card_data=_metadata(model_name, dataset_name, dataset_id, data, "feature-extraction", []),
        model_name=_escape(model_name),
        dataset_name=_escape(dataset_name),
        source=source or model_name,
        is_converted=is_converted,
        data=data,
        num_categories=len(results.get("categories") or AVE_CATEGORIES),
        num_values=num_values,
        towers=config.towers,
        image_size=config.vision_config.image_size,
        sampling_rate=config.audio_config.sampling_rate,
        projection_dim=config.projection_dim,
        drawing=_draw_audioclip(config),
        retrieval=_retrieval(results),
        published=results.get("published"),
        parity=[{"name": name, "value": f"{value:.2g}"} for name, value in results.get("parity", {}).items()],
        history=_history(results),
        settings=_settings(results),
        commands=_commands(commands, results),
        environment=_environment(results),
    )


def build_recipe_card(recipe: Mapping[str, Any], num_values: int) -> str:
    """Text of the card that says how the paper's model is made; every accuracy in it is the paper's.

    Args:
        recipe (`Mapping[str, Any]`): Content of `model_cards/results/ave-clip.json`.
        num_values (`int`): Numbers in the weights.

    Returns:
        `str`: Markdown with metadata, without results in it.
    """
    config = AVEClipConfig()
    facts = _localizer_facts(config, recipe["num_frames_per_segment"], recipe["segment_seconds"])
    return _render(
        "recipe.md",
        card_data=_metadata("ave-clip", "AVE", None, "ave", "video-classification", []),
        model_name="ave-clip",
        num_values=num_values,
        splits=recipe["splits"],
        references=recipe["reference_points"],
        stages=recipe["stages"],
        tables=recipe["paper"],
        commands=recipe["commands"],
        environment=_environment(recipe),
        **facts,
    )


def summarize_seeds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample deviation of every measure over runs that differ in their seed.

    Args:
        results (`Sequence[Mapping[str, Any]]`): Contents of `evaluate_localizer.py`'s file, at least two.

    Returns:
        `dict[str, Any]`: `"count"` and `"metrics"`, each measure's `mean` and `deviation`.
    """
    runs = [_main_metrics(next(iter(_splits(result).values()))) for result in results]
    return {"count": len(runs), "metrics": summarize_runs(runs)}


def project_cards(folder: str | os.PathLike) -> dict[str, str]:
    """The files that [`main`] writes: name in `model_cards/` to text.

    Args:
        folder (`str` or `os.PathLike`): `model_cards/`, with its `results/`.
    """
    results = Path(folder) / "results"
    summary = summarize_seeds([_read(path) for path in sorted(results.glob("ave-clip-tiny-fresh-seed*.json"))])
    converted, recipe = _read(results / "audioclip.json"), _read(results / "ave-clip.json")
    return {
        "results/ave-clip-tiny-summary.json": json.dumps(summary, indent=2) + "\n",
        "ave-clip-tiny.md": _tiny_card(results, summary),
        "audioclip.md": build_audioclip_card(
            AudioCLIPConfig(),
            converted,
            model_name="audioclip",
            dataset_name="AudioSet",
            commands=converted["commands"],
            num_values=converted["num_values"],
        ),
        "ave-clip.md": build_recipe_card(recipe, recipe["num_values"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write the cards of this project anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="model_cards", help="Holds results/*.json.")
    folder = Path(parser.parse_args(argv).folder)
    for name, text in project_cards(folder).items():
        _write(folder / name, text)


def _tiny_card(results: Path, summary: Mapping[str, Any]) -> str:
    made, measured = _read(results / "ave-clip-tiny.json"), _read(results / "ave-clip-tiny-fresh-seed0.json")
    num_videos = _main_metrics(measured["decoders"])["num_videos"]
    render = (
        'python -c "from ave_clip.data import generate_synthetic_ave as g; '
        f"g('fresh-clips', num_videos={num_videos}, seed={FRESH_SEED}, splits=(0, 0, 1))\""
    )
    return build_localizer_card(
        DEFAULT_CHECKPOINT,
        {**measured, "arguments": made["arguments"]},
        model_name="ave-clip-tiny",
        dataset_name="Synthetic AVE",
        commands=[_python(made["command"]), render, _python(measured["command"])],
        source=f"src/ave_clip/assets/{Path(DEFAULT_CHECKPOINT).name}",
        evaluation=f"clips of seed {FRESH_SEED}, which was used nowhere else, from the mp4 files to the events",
        seeds=summary,
        controls=made["results"],
    )


def _python(command: str) -> str:
    return f"python {command}"


def _render(template: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; names of classes and data sets are escaped where they come in
    )
    text = environment.get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _metadata(
    model_name: str, dataset_name: str, dataset_id: str | None, data: str, task: str, results: Sequence[Mapping]
) -> str:
    """YAML of the card: what the Hub searches by, and the results as a model index."""
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
        license={"synthetic": "apache-2.0", "other": "mit"}.get(data, "other"),
        library_name="ave-clip",
        pipeline_tag=task,
        tags=["audio-visual-event-localization", "ave-clip", "audioclip", "video", "audio"]
        + (["synthetic"] if data == "synthetic" else []),
        datasets=[dataset] if dataset else None,
        metrics=["accuracy", "recall", "f1"] if task == "video-classification" else ["accuracy"],
        model_name=model_name if evaluations else None,
        eval_results=evaluations or None,
    )
    return metadata.to_yaml()


def _index(splits: Mapping[str, Mapping[str, Any]], config: AVEClipConfig) -> list[dict[str, Any]]:
    """The main measures of each split but validation, which chose the model."""
    chosen = {split: _main_metrics(decoders) for split, decoders in splits.items()}
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


def _splits(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Measures by split and decoder, test first, of either script's results."""
    if "decoders" in results:
        return {results["split"]: results["decoders"]}
    return {split: results[split] for split in ("test", "validation") if results.get(split)}


def _main_metrics(decoders: Mapping[str, Any]) -> Mapping[str, Any]:
    return decoders[MAIN_DECODER if MAIN_DECODER in decoders else next(iter(decoders))]


def _measures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Names of the measures that are plain shares, the known ones first."""
    found = {name: title for name, title in MEASURES.items() if isinstance(metrics.get(name), float)}
    others = [name for name, value in metrics.items() if isinstance(value, float) and name not in found]
    return found | {name: name.replace("_", " ") for name in others}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _table(split: str, decoders: Mapping[str, Any], evaluation: str | None) -> dict[str, Any]:
    metrics = _main_metrics(decoders)
    intervals = metrics.get("intervals", {})
    rows = [
        {
            "name": title,
            "value": _percent(metrics[name]),
            "interval": " to ".join(map(_percent, intervals[name])) if name in intervals else "",
        }
        for name, title in _measures(metrics).items()
    ]
    references = {name: _percent(value) for name, value in metrics.get("reference_points", {}).items()}
    columns = [name for name in DECODER_COLUMNS if name in metrics]
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
    accuracies = _main_metrics(next(iter(splits.values()))).get("class_accuracy") or []
    known = [(value, index) for index, value in enumerate(accuracies) if value is not None]
    return ", ".join(
        f"{_escape(config.id2label[index])} {_percent(value)}" for value, index in sorted(known)[:NUM_WEAKEST]
    )


def _seed_table(seeds: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if seeds is None:
        return None
    rows = [
        {"name": title, "mean": _percent(values["mean"]), "deviation": _percent(values["deviation"])}
        for name, title in _measures({name: values["mean"] for name, values in seeds["metrics"].items()}).items()
        for values in [seeds["metrics"][name]]
    ]
    return {"count": seeds["count"], "rows": rows}


def _controls(results: Mapping[str, Any] | None) -> list[dict[str, str]]:
    names = {"stage3": "sight and sound", "no_audio": "sound blanked", "no_video": "sight blanked"}
    found = {name: results[name] for name in names if name in (results or {}) and results[name].get("validation")}
    if len(found) < 2:
        return []
    metrics = {name: _main_metrics(result["validation"]) for name, result in found.items()}
    points = metrics["stage3"].get("reference_points", {})
    rows = {names[name]: measured["segment_accuracy"] for name, measured in metrics.items()}
    rows["(background everywhere)"] = points.get("all_background")
    rows["(the right class, never background)"] = points.get("never_background")
    return [{"name": name, "value": _percent(value)} for name, value in rows.items() if value is not None]


def _retrieval(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Retrieval measures of the best epoch, or of `"validation"` where the results hold it."""
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
    """The script's arguments that shape the result."""
    arguments = results.get("arguments") or {}
    return [
        (f"`{name}`", f"`{_escape(json.dumps(value) if isinstance(value, (dict, list)) else str(value))}`")
        for name, value in arguments.items()
        if value not in (None, [], {}, "") and not _PLACES.fullmatch(name) and not _LOGS.fullmatch(name)
    ]


def _commands(commands: Iterable[str | None], results: Mapping[str, Any]) -> list[str]:
    given = [command for command in commands if command]
    own = results.get("command")
    return given or ([_python(own)] if own else ["# not recorded"])


def _environment(results: Mapping[str, Any]) -> str:
    parts = [f"{name} {version}" for name, version in (results.get("versions") or {}).items()]
    machine = results.get("machine") or {}
    parts += [f"{name}: {value}" for name, value in machine.items()]
    return ", ".join(_escape(part) for part in parts) + "." if parts else ""


def _time_grid(folder: str | os.PathLike) -> tuple[int | None, float]:
    """Frames and seconds of a segment, as the processor was saved; no frames where there is no processor."""
    from ..video_processing_ave_clip import AVEClipVideoProcessor

    if not any(Path(folder).glob("*processor_config.json")):
        return None, 1.0
    processor = AVEClipVideoProcessor.from_pretrained(folder)
    return processor.num_frames_per_segment, processor.segment_seconds


def _weights(folder: str | os.PathLike) -> dict[str, Any]:
    from huggingface_hub import get_local_safetensors_metadata

    counts = get_local_safetensors_metadata(folder).parameter_count
    num_bytes = sum(path.stat().st_size for path in Path(folder).glob("model*.safetensors"))
    return {"num_values": sum(count for kind, count in counts.items() if "F" in kind), "num_bytes": num_bytes}


def _localizer_facts(config: AVEClipConfig, num_frames: int | None, segment_seconds: float) -> dict[str, Any]:
    towers = config.audioclip_config
    categories = [config.id2label[index] for index in range(config.num_labels - 1)]
    return {
        "data": _kind_of_data(categories),
        "categories": [_escape(name) for name in categories],
        "num_categories": len(categories),
        "image_size": towers.vision_config.image_size,
        "sampling_rate": towers.audio_config.sampling_rate,
        "feature_sizes": (config.resolved_image_feature_size, config.resolved_audio_feature_size),
        "num_frames": num_frames,
        "segment_seconds": f"{segment_seconds:g}",
        "min_event_segments": config.min_event_segments,
        "event_loss_weight": config.event_loss_weight,
        "category_loss_weight": config.category_loss_weight,
        "supervision": "video-level classes only" if config.supervision == "weak" else "a class for every segment",
        "drawing": _draw_localizer(config, num_frames),
    }


def _kind_of_data(categories: Iterable[str], dataset_name: str = "") -> str:
    from ..data.synthetic import SYNTHETIC_CATEGORIES

    names = set(categories)
    if names == set(AVE_CATEGORIES) or (not names and re.match(r"AVE\b|AVE_", dataset_name)):
        return "ave"
    if (names and names <= set(SYNTHETIC_CATEGORIES)) or (not names and "synthetic" in dataset_name.lower()):
        return "synthetic"
    return "other"


def _draw_localizer(config: AVEClipConfig, num_frames: int | None) -> str:
    windows = ", ".join(map(str, config.window_sizes))
    lines = _draw_towers(config, num_frames) if num_frames else _draw_features(config)
    domains = {"both": "temporal and feature", "temporal": "temporal", "feature": "feature"}[config.attention_domains]
    steps = [
        "AGVA: the sound weighs the locations",
        f"a BiLSTM for sight, one for sound: {config.hidden_size} features each",
        f"MWTF: {domains} attention over windows of {windows} segments",
        "EGTA: is there an event? weighs the segments" if config.use_event_attention else None,
        f"refiner: windows of {', '.join(map(str, config.refiner_window_sizes))}" if config.use_refiner else None,
        f"{config.num_labels} classes a segment, background last",
        f"merge of runs shorter than {config.min_event_segments}: events with start, end and score",
    ]
    for step in filter(None, steps):
        lines += ["                    v", f"  {step}"]
    return "\n".join(lines)


def _draw_towers(config: AVEClipConfig, num_frames: int) -> list[str]:
    vision, audio = config.audioclip_config.vision_config, config.audioclip_config.audio_config
    places = 1 if config.visual_feature_type == "pooled" else vision.grid_size**2
    left = [
        f"{num_frames} pictures a segment, {vision.image_size} x {vision.image_size}",
        "  | CLIP ResNet, mean over the pictures",
        f"{places} location{'s' * (places > 1)} x {config.resolved_image_feature_size} features",
    ]
    right = [
        f"sound of the segment, {audio.sampling_rate} Hz",
        "  | spectrogram (fbsp), ESResNeXt",
        f"1 vector of {config.resolved_audio_feature_size} features",
    ]
    return [f"{seen:<45}{heard}" for seen, heard in zip(left, right)]


def _draw_features(config: AVEClipConfig) -> list[str]:
    image, audio = config.resolved_image_feature_size, config.resolved_audio_feature_size
    return [f"{f'locations x {image} features of the pictures':<45}1 vector of {audio} features of the sound"]


def _draw_audioclip(config: AudioCLIPConfig) -> str:
    inputs = {
        "vision": ("picture", "CLIP ResNet, attention pool"),
        "audio": ("sound", "fbsp spectrogram, ESResNeXt, attention"),
        "text": ("text", "CLIP transformer"),
    }
    rows = [f"{kind:<8}-> {steps:<38} -> {config.projection_dim} numbers" for kind, steps in inputs.values()]
    rows = [row for row, tower in zip(rows, inputs) if tower in config.towers]
    corners = ["─┐", *["─┤"] * (len(rows) - 2), "─┴─> cosine x learned scale"][-len(rows) :]
    return "\n".join(row + corner for row, corner in zip(rows, corners))


def _escape(text: str) -> str:
    """A name as plain text in Markdown: no markup, no table cell, one line."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text) if re.search(r"[`*{}\[\]<>|#\\]", text) else text


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, text: str) -> Path:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
