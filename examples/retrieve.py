"""Search images and audio by text, image or audio in AudioCLIP's joint embedding space.

Reads a converted AudioCLIP (`ave-clip convert`) and any number of media files: images, audio files, videos (whose
frames and audio track count as one picture and one sound). Prints the sounds and pictures with the highest cosine
similarity to the query, best first.

    python examples/retrieve.py --model audioclip --query "church bell" media/*
    python examples/retrieve.py --model audioclip --query media/bell.wav media/*.jpg     # a sound finds pictures
    python examples/retrieve.py --model audioclip --query media/cat.jpg media/*.wav      # a picture finds sounds
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from ave_clip import AudioCLIPModel, AudioCLIPProcessor
from ave_clip.core.text import printable
from ave_clip.core.video_io import read_video
from ave_clip.programs import program

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MODALITIES = ("picture", "sound")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+", help="Images, audio files and videos to search.")
    parser.add_argument(
        "--model", required=True, help="Folder or Hub id of a converted AudioCLIP with its text tower."
    )
    parser.add_argument("--query", required=True, help="A text, or the path of an image, audio file or video.")
    parser.add_argument("--top_k", type=int, default=5, help="Number of results per kind.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


@torch.no_grad()
def embed_file(path: str, model: AudioCLIPModel, processor: AudioCLIPProcessor) -> dict[str, torch.Tensor]:
    """Return the unit embeddings `(D,)` of a file: of its image, its audio, or both.

    Raises:
        ValueError: if the file cannot be read as image, audio or video.
    """
    pictures, waveform = read_media(path, processor.feature_extractor.sampling_rate)
    embeds = {}
    if pictures:
        inputs = processor(images=pictures, return_tensors="pt").to(model.device)
        embeds["picture"] = normalize(model.get_image_features(**inputs).pooler_output.mean(dim=0), dim=-1)
    if waveform is not None:
        rate = processor.feature_extractor.sampling_rate
        inputs = processor(audio=waveform, sampling_rate=rate, return_tensors="pt").to(model.device)
        embeds["sound"] = normalize(model.get_audio_features(**inputs).pooler_output[0], dim=-1)
    return embeds


def read_media(path: str, sampling_rate: int) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return the images of a file (one per second of a video) and its audio, if it has them."""
    if Path(path).suffix.lower() in PICTURE_SUFFIXES:
        with Image.open(path) as image:
            return [np.array(image.convert("RGB"))], None
    clip = read_video(path, sampling_rate=sampling_rate, num_frames_per_segment=1)
    pictures = [frame for frames in clip.frames for frame in frames]
    return pictures, clip.waveforms.reshape(-1) if clip.has_audio else None


@torch.no_grad()
def embed_query(query: str, model: AudioCLIPModel, processor: AudioCLIPProcessor) -> dict[str, torch.Tensor]:
    """Return the unit embeddings of a text or of a file."""
    if Path(query).is_file():
        return embed_file(query, model, processor)
    inputs = processor(text=[query], return_tensors="pt").to(model.device)
    return {"text": normalize(model.get_text_features(**inputs).pooler_output[0], dim=-1)}


def rank(query: torch.Tensor, names: list[str], embeds: list[torch.Tensor], top_k: int) -> list[tuple[str, float]]:
    """Return names and cosine similarities of the nearest embeddings, best first."""
    if not embeds:
        return []
    cosines = torch.stack(embeds) @ query
    best = cosines.topk(min(top_k, len(names)))
    return [(names[index], round(float(value), 4)) for value, index in zip(best.values, best.indices)]


def main(argv: Sequence[str] | None = None) -> dict[str, list[tuple[str, float]]]:
    args = parse_args(argv)
    model = AudioCLIPModel.from_pretrained(args.model).to(args.device).eval()
    processor = AudioCLIPProcessor.from_pretrained(args.model)
    files = {path: embed_file(path, model, processor) for path in args.media}
    results = {}
    for kind, query in embed_query(args.query, model, processor).items():
        for modality in MODALITIES:
            if modality == kind:  # the joint space is for searching across modalities
                continue
            names = [path for path, embeds in files.items() if modality in embeds]
            ranked = rank(query, names, [files[path][modality] for path in names], args.top_k)
            results[f"{kind} -> {modality}"] = ranked
            print(f"{kind} -> {modality}")
            for path, cosine in ranked:
                print(f"  {cosine:7.4f}  {printable(path)}")
    return results


if __name__ == "__main__":
    with program():
        main()
