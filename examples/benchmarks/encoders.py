"""Measures the speed of the encoders after `optimize_for_inference`, and the change of their embeddings.

The reference works as the original AudioCLIP does: the plain towers in float32, with the filters of the spectrogram
computed in each call. Each row is one dtype at one batch size, `ratio` times as fast as the reference;
`max_difference` and `min_cosine` compare the embeddings. Weights are random, with batch norm statistics measured on
the inputs, unless `--model` names a folder: a converted AudioCLIP, or the pseudo-random weights of the committed
results, which `make_weights.py` makes.

    python examples/benchmarks/encoders.py --output encoders.json
    python examples/benchmarks/encoders.py --model path/to/audioclip --backends compile onnxruntime openvino
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import REFERENCE, finish, interleaved, parse, parser_for
from torch import nn

from ave_clip import AudioCLIPConfig, AudioCLIPModel
from ave_clip.checkpoints.onnx_export import export_onnx
from ave_clip.checkpoints.onnx_model import AVEClipOnnxForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.programs import program
from ave_clip.training.checkpoints import build_localizer

SAMPLING_RATE = 44100
NUM_LABELS = 29
COMPILE, *EXPORTED = BACKENDS = ("compile", "onnxruntime", "openvino")
VARIANTS = {"float32": {}, "bfloat16": {"dtype": "bfloat16"}}
# The target for `ratio` by row; shown in the table whether reached or not.
AT_LEAST = {
    "audio float32 batch 10": 1.9,
    "audio bfloat16 batch 10": 3.4,
    "audio float32 batch 40": 2.4,
    "audio bfloat16 batch 40": 4.2,
    "image float32 batch 10": 1.5,
    "image bfloat16 batch 10": 3.0,
    "image float32 batch 40": 1.5,
    "image bfloat16 batch 40": 3.0,
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--model", help="Folder of a converted AudioCLIP. Default: random weights.")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[10, 40])
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=[], help="Further backends to measure (takes minutes)."
    )
    return parse(parser, argv)


def waveforms(number: int) -> torch.Tensor:
    """Returns `(number, samples)`: one second each of a rising tone with noise, in the range of int16."""
    time = torch.arange(SAMPLING_RATE) / SAMPLING_RATE
    start = torch.linspace(100, 4000, number).unsqueeze(-1)
    tone = torch.sin(2 * torch.pi * (start * time + 1500 * time**2))
    noise = torch.randn(number, SAMPLING_RATE, generator=torch.Generator().manual_seed(0))
    return (8000 * tone + 300 * noise).round()


def pictures(number: int, side: int) -> torch.Tensor:
    """Returns smooth random images, normalized: `(number, 3, side, side)`."""
    coarse = torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")


def build_model(args: argparse.Namespace) -> AudioCLIPModel:
    """Returns the model in evaluation mode, in float32."""
    if args.model:
        return AudioCLIPModel.from_pretrained(args.model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    model = AudioCLIPModel(AudioCLIPConfig(towers=("vision", "audio"))).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # running statistics become those of the next batch
        elif hasattr(module, "bn3"):
            nn.init.constant_(module.bn3.weight, 0.2)  # small, as after training: otherwise rounding errors would grow
    with torch.no_grad():
        model.audio_model(waveforms(10))
        model.vision_model(pictures(10, model.config.vision_config.image_size))
    return model.eval()


def measure(
    name: str, reference: Callable, variants: dict[str, Callable], inputs: torch.Tensor, rounds: int
) -> list[dict]:
    """Returns one row per variant of one tower on one batch."""
    expected = reference(inputs)
    calls = {REFERENCE: reference, **variants}
    times = interleaved({label: lambda call=call: call(inputs) for label, call in calls.items()}, rounds)
    rows = []
    for variant, call in variants.items():
        embeds = call(inputs)
        cosine = nn.functional.cosine_similarity(embeds, expected).min().item()
        row = f"{name} {variant} batch {len(inputs)}"
        rows.append(
            {
                "row": row,
                **times[variant],
                "reference_milliseconds": times[REFERENCE]["milliseconds"],
                "at_least": AT_LEAST.get(row),
                "max_difference": float(f"{(embeds - expected).abs().max().item():.2e}"),
                "min_cosine": round(cosine, 6),
            }
        )
    return rows


def optimized_copies(model: AudioCLIPModel, with_compile: bool) -> dict[str, tuple[Callable, Callable]]:
    """Returns audio and image tower of each variant; the plain model is not changed."""
    variants = dict(VARIANTS)
    if with_compile:
        variants |= {f"{name} compile": {**options, "compile": True} for name, options in VARIANTS.items()}
    copies = {name: copy.deepcopy(model).optimize_for_inference(**options) for name, options in variants.items()}
    return {
        name: (
            lambda sound, m=fast: m.audio_model(sound).audio_embeds,
            lambda images, m=fast: m.vision_model(images).image_embeds,
        )
        for name, fast in copies.items()
    }


def exported_towers(
    model: AudioCLIPModel, backends: Sequence[str], folder: Path
) -> dict[str, tuple[Callable, Callable]]:
    """Returns audio and image tower as ONNX graphs in each of the backends."""
    if not backends:
        return {}
    names = labels_with_background(map(str, range(NUM_LABELS - 1)))
    localizer = build_localizer(model, names, {"visual_feature_type": "pooled"})
    export_onnx(localizer.eval(), folder / "onnx")
    found = {name: AVEClipOnnxForLocalization.from_pretrained(folder / "onnx", backend=name) for name in backends}
    return {
        f"float32 {name}": (
            lambda sound, m=exported: m.run_graph("audio", sound)[0],
            lambda images, m=exported: m.run_graph("vision", images)[0],
        )
        for name, exported in found.items()
    }


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    model, rows = build_model(args), []
    image_size = model.config.vision_config.image_size

    def plain_audio(sound: torch.Tensor) -> torch.Tensor:
        model.audio_model.fbsp.train().eval()  # drops the cached filters
        return model.audio_model(sound).audio_embeds

    def plain_vision(images: torch.Tensor) -> torch.Tensor:
        return model.vision_model(images).image_embeds

    with tempfile.TemporaryDirectory() as folder:
        towers = optimized_copies(model, COMPILE in args.backends)
        towers |= exported_towers(model, [name for name in EXPORTED if name in args.backends], Path(folder))
        audio, vision = ({name: pair[side] for name, pair in towers.items()} for side in (0, 1))
        for batch in args.batch_sizes:
            rows += measure("audio", plain_audio, audio, waveforms(batch), args.rounds)
            rows += measure("image", plain_vision, vision, pictures(batch, image_size), args.rounds)
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
