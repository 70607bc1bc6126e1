"""The table and the figure of `run_comparison.py`: measures with paired differences, as Markdown and as a picture."""

import os
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from maintenance.ablation_tables import SHOWN_MEASURES, Counts, judge, measure

from ave_clip.training.bootstrap import bootstrap_draws, percentile_interval
from ave_clip.training.metrics import pooled_measures

ACCURACY, EVENT_F1 = "segment_accuracy", "event_f1"
COLUMNS = {
    ACCURACY: "accuracy",
    "background_recall": "background recall",
    "background_precision": "background precision",
    EVENT_F1: "event F1",
}
WIDTH = 119  # of a line of Markdown
VERDICTS = {"holds": "above", "reversed": "below", "not told apart": "not told apart"}


# ── from counts to numbers ──


def measure_networks(
    titles: Mapping[str, str], counts: Mapping[str, Counts], reasons: Mapping[str, str], reference: str
) -> dict[str, Any]:
    """Measures all networks and compares them with the reference.

    Args:
        titles (`Mapping[str, str]`): Titles of all networks, by name, in the order of the table.
        counts (`Mapping[str, Counts]`): Counts by group of clips, of the networks that were trained.
        reasons (`Mapping[str, str]`): Why the others were not.
        reference (`str`): Name of the network to compare with.

    Returns:
        `dict[str, Any]`: `reference` and `rows`.
    """
    rows = []
    for name, title in titles.items():
        row: dict[str, Any] = {"name": name, "title": title}
        if name in counts:
            row["measured"] = measure(counts[name])
            if name != reference and reference in counts:
                row["difference"] = differences(counts[name], counts[reference])
        else:
            row["reason"] = reasons[name]
        rows.append(row)
    return {"reference": reference, "rows": rows}


def differences(counts: Counts, reference: Counts) -> dict[str, dict[str, Any]]:
    """Compares two networks that were tested on the same groups, in the same order.

    Args:
        counts (`Counts`), reference (`Counts`): Their counts.

    Returns:
        `dict[str, dict]`: by measure, `per_seed`, `mean` over the seeds and `interval` (95 %) of the difference: the
        bootstrap draws groups, the same ones for both networks.
    """
    draws = bootstrap_draws(len(counts.rows))
    measured = [pooled_measures(one.values.sum(axis=1)) for one in (counts, reference)]
    drawn = [pooled_measures(draws @ one.values) for one in (counts, reference)]  # (num_seeds, num_resamples) each
    found = {}
    for name in SHOWN_MEASURES:
        per_seed = measured[0][name] - measured[1][name]
        interval = list(percentile_interval((drawn[0][name] - drawn[1][name]).mean(axis=0)))
        found[name] = {"mean": float(per_seed.mean()), "interval": interval, "per_seed": per_seed.tolist()}
    return found


# ── the table ──


def render(content: Mapping[str, Any], figure: str) -> str:
    """Formats the results as Markdown.

    Args:
        content (`Mapping[str, Any]`): Content of `comparison.json`.
        figure (`str`): Path of the figure, relative to the Markdown file.
    """
    lines = ["# AVE-CLIP and networks of previous work, on the same features", "", *_introduction(content), ""]
    lines += [
        *_measures(content),
        "",
        f"![Differences to the reference, and speed]({figure})",
        "",
        *_costs(content),
        "",
    ]
    reasons = [f"- {row['title']}: {row['reason']}." for row in content["rows"] if "reason" in row]
    lines += ["Not run:", "", *reasons, ""] if reasons else []
    return "\n".join([*lines, *_environment(content)]) + "\n"


def _introduction(content: Mapping[str, Any]) -> Iterator[str]:
    clips, points = content["test_clips"], content["test_clips"].get("baselines", {})
    seeds = f"{content['seeds']} seed{'' if content['seeds'] == 1 else 's'}"
    folds = f" in each of {content['folds']} folds, over which every clip is tested once," if content["folds"] else ""
    what = "groups of clips that belong together" if content["has_groups"] else "clips"
    shortest = content["min_event_segments"]
    decoding = "none" if shortest == 1 else f"events of at least {shortest} segments, for all networks"
    yield "Made by `examples/run_comparison.py` from `comparison.json`, which it wrote."
    yield ""
    yield from textwrap.wrap(
        f"Data: {content['data']}. Supervision: {content['supervision']}. Each network is trained with {seeds}{folds} "
        "with the same settings (below) and its own loss. The epoch is chosen on validation clips. *±* is the "
        "standard deviation over the seeds; brackets are 95 % bootstrap intervals over the "
        f"{content['num_groups']} tested {what}. Differences are to the first row, in points, on the same clips. A "
        "network is *above* or *below* it only where the interval excludes zero and all seeds agree. "
        f"Post-processing: {decoding}.",
        WIDTH,
    )
    if points:
        yield ""
        yield from textwrap.wrap(
            f"On these {clips['num_videos']} clips, background everywhere scores "
            f"{100 * points['all_background']:.1f} %, the right class everywhere without any background "
            f"{100 * points['never_background']:.1f} %.",
            WIDTH,
        )


def _measures(content: Mapping[str, Any]) -> Iterator[str]:
    yield _line(["network", *COLUMNS.values(), "accuracy to the first row", "event F1 to the first row", ""])
    yield _line(["---"] * (len(COLUMNS) + 4))
    for row in content["rows"]:
        if "measured" not in row:
            continue
        found, cells = row["measured"], [row["title"]]
        for name in COLUMNS:
            deviation = found["deviation"][name]
            cells.append(_percent(found["mean"][name]) + ("" if deviation is None else f" ± {100 * deviation:.1f}"))
        cells[1] += f" {_interval(found['interval'], '')}"
        compared = row.get("difference")
        cells += [_difference(compared[name]) for name in (ACCURACY, EVENT_F1)] if compared else ["", ""]
        cells.append(VERDICTS[judge(compared[ACCURACY])] if compared else "")
        yield _line(cells)


def _costs(content: Mapping[str, Any]) -> Iterator[str]:
    size = content["settings"]["batch_size"]
    yield from textwrap.wrap(
        f"A training step with {size} clips, the networks in turns on one batch. Memory is that of the weights, their "
        "gradients, Adam's averages and all tensors kept for the backward pass. Speeds depend on the machine and on "
        "what else it does; ratios do so much less.",
        WIDTH,
    )
    yield ""
    yield _line(["network", "parameters", "training clips/s", "times as fast as the first row", "memory, MB"])
    yield _line(["---"] * 5)
    for row in content["rows"]:
        costs = row["costs"]
        if costs is None:
            continue
        cells = [f"{costs['parameters'] / 1e6:.2f} M", f"{costs['training_clips_per_second']:.0f}"]
        yield _line([row["title"], *cells, f"{costs['speed_ratio']:.2f}", f"{costs['training_megabytes']:.0f}"])


def _environment(content: Mapping[str, Any]) -> Iterator[str]:
    yield "## Command, settings, environment"
    yield from ["", "```bash", f"python {content['command']}", "```", ""]
    yield from [f"What all networks share (from `{content['settings_file']}`):", "", "```yaml"]
    yield from yaml.safe_dump(content["settings"]).splitlines()
    facts = {**content["versions"], **content["machine"]}
    yield from ["```", "", ", ".join(f"{name} {value}" for name, value in facts.items()) + "."]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(interval: list[float | None], sign: str = "+") -> str:
    low, high = interval
    return "" if low is None or high is None else f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _difference(compared: Mapping[str, Any]) -> str:
    mean = compared["mean"]
    return "-" if mean is None else f"{100 * mean:+.1f} {_interval(compared['interval'])}"


# ── the figure ──


def draw(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Draws the differences with their intervals, and accuracy against training speed, as PNG.

    Args:
        content (`Mapping[str, Any]`): Content of `comparison.json`.
        path (`str` or `os.PathLike`): The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in content["rows"] if "measured" in row]
    figure = Figure(figsize=(10, 1.4 + 0.36 * max(6, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_differences(left, rows)
    _draw_speed(right, rows)
    figure.savefig(path, format="png", dpi=110)


def _draw_differences(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    reference = next((row["title"] for row in rows if "difference" not in row), "the reference")
    rows = [row for row in rows if "difference" in row]
    names = [row["title"] for row in rows]
    for offset, (measure_name, color) in enumerate([(ACCURACY, "#1f5fa8"), (EVENT_F1, "#c2571a")]):
        for place, row in enumerate(rows):
            compared = row["difference"][measure_name]
            if None not in (compared["mean"], *compared["interval"]):
                y = place + 0.24 * offset - 0.12
                axes.plot([100 * end for end in compared["interval"]], [y, y], color=color, linewidth=2)
                axes.plot([100 * compared["mean"]], [y], "o", color=color, markersize=5)
        axes.plot([], [], "o-", color=color, label=COLUMNS[measure_name])
    axes.axvline(0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(f"difference to {reference}, points")
    axes.legend(loc="best", fontsize="small", frameon=False)
    axes.grid(axis="x", color="0.9")


def _draw_speed(axes: Any, rows: list[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    points = [
        (row["title"], row["costs"]["training_clips_per_second"], 100 * row["measured"]["mean"][ACCURACY])
        for row in rows
        if row["costs"] is not None
    ]
    accuracies = [accuracy for *_, accuracy in points]
    near = 0.08 * (max(accuracies) - min(accuracies))
    for title, speed, accuracy in points:
        axes.plot([speed], [accuracy], "o", color="#1f5fa8")
        # Labels are above their points, except where another point is.
        is_above = not any(0 < other - accuracy < near for other in accuracies)
        side = {"xytext": (0, 6), "va": "bottom"} if is_above else {"xytext": (0, -6), "va": "top"}
        axes.annotate(title, (speed, accuracy), textcoords="offset points", ha="center", fontsize="small", **side)
    axes.set_xscale("log")
    # Plain numbers at 1, 2 and 5 times the powers of ten: labels at every line of the grid would overlap.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.35, y=0.12)
    axes.set_xlabel("training clips per second")
    axes.set_ylabel("accuracy, %")
    axes.grid(color="0.9")
