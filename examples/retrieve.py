"""Search images and audio by text, image or audio in the embedding spaces of an encoder.

Reads an encoder that takes texts and any number of media files: images, audio files, videos (whose frames and audio
track count as one picture and one sound). Prints the sounds and pictures that are most similar to the query, best
first: by their cosine, or by the product for encoders that compare by it, such as PE-AV.
Pictures and sounds are compared with each other by encoders that have one space for both: AudioCLIP (`ave-clip
convert`) and PE-AV. Two models that were joined, such as SigLIP and CLAP, are searched by text.

    python examples/retrieve.py --model audioclip --query "church bell" media/*
    python examples/retrieve.py --model my-encoder --query "church bell" media/*
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

from ave_clip import AudioCLIPModel, AudioCLIPProcessor, AVEClipForLocalization
from ave_clip.core.encoders import encoder_for, shared_space_of
from ave_clip.core.events import HEARD, SEEN
from ave_clip.core.label_encoder import embed_texts
from ave_clip.core.text import printable
from ave_clip.core.video_io import read_video
from ave_clip.programs import program
from ave_clip.training.checkpoints import load_encoder, load_saved_processor

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SENSES = {"picture": SEEN, "sound": HEARD}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", nargs="+", help="Images, audio files and videos to search.")
    parser.add_argument("--model", required=True, help="Folder or Hub id of an encoder of images, audio and texts.")
    parser.add_argument("--query", required=True, help="A text, or the path of an image, audio file or video.")
    parser.add_argument("--top_k", type=int, default=5, help="Number of results per kind.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Embedder:
    """Embeds images, audio and texts with an AudioCLIP or a composite encoder.

    Args:
        source (`str`): Folder or Hub id.
        device (`str`): Where the model runs.

    Raises:
        ValueError: if it is a localizer.
    """

    def __init__(self, source: str, device: str):
        model = load_encoder(source)
        if isinstance(model, AVEClipForLocalization):
            raise ValueError(f"{source} is a localizer, whose encoder takes no texts. Pass the encoder itself.")
        self.source, self.model, self.device = source, model.to(device).eval(), device
        self.encoder, self.is_audioclip = encoder_for(model), isinstance(model, AudioCLIPModel)
        self.processor = (
            AudioCLIPProcessor.from_pretrained(source) if self.is_audioclip else load_saved_processor(source)
        )

    @torch.no_grad()
    def pictures(self, pictures: list[np.ndarray]) -> torch.Tensor:
        """Return the mean embedding `(D,)` of images `(height, width, 3)`."""
        if self.is_audioclip:
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        else:
            video_processor = self.processor.video_processor
            frames = [torch.from_numpy(video_processor.frame_transform()(picture)) for picture in pictures]
            pixels = video_processor.normalize_pixels(torch.stack(frames).permute(0, 3, 1, 2))
        return self.encoder.image(pixels.to(self.device)).pooled.mean(dim=0)

    @torch.no_grad()
    def sound(self, waveform: np.ndarray) -> torch.Tensor:
        """Return the embedding `(D,)` of a waveform: of the whole by AudioCLIP, else the mean over its windows."""
        if self.is_audioclip:
            rate = self.processor.feature_extractor.sampling_rate
            windows = self.processor(audio=waveform, sampling_rate=rate, return_tensors="pt")["input_values"]
        else:
            size = self.processor.window_samples
            parts = [waveform[start : start + size] for start in range(0, len(waveform), size)]
            windows = torch.from_numpy(self.processor.prepare_windows(parts))
        return self.encoder.audio(windows.to(self.device)).pooled.mean(dim=0)

    def text(self, text: str, sense: str) -> torch.Tensor:
        """Return the embedding `(D,)` of a text for the comparison with what is `"seen"` or `"heard"`.

        Raises:
            ValueError: if that tower takes no texts.
        """
        tower = self.encoder.tower(sense)
        if not tower.takes_texts:
            raise ValueError(
                f"The query {text!r} is a text, but the tower of {self.source} for what is {sense} is a classifier."
            )
        sentence = tower.templates[sense].replace("{}", text)
        return embed_texts([sentence], sense, tower, self.processor)[0].to(self.device)

    def file(self, path: str) -> dict[str, torch.Tensor]:
        """Return the embeddings of a file: of its image, its audio, or both.

        Raises:
            ValueError: if the file cannot be read as image, audio or video.
        """
        pictures, waveform = read_media(path, self.processor.feature_extractor.sampling_rate)
        embeds = {"picture": self.pictures(pictures)} if pictures else {}
        return embeds if waveform is None else {**embeds, "sound": self.sound(waveform)}

    def queries(self, query: str) -> dict[tuple[str, str], tuple[torch.Tensor, bool]]:
        """Return for each direction `(kind of query, kind of result)` the query, and whether its cosine counts.

        Raises:
            ValueError: if the encoder cannot compare the query with anything.
        """
        if not Path(query).is_file():
            return {
                ("text", kind): (self.text(query, sense), self.encoder.tower(sense).similarity(sense).is_cosine)
                for kind, sense in SENSES.items()
            }
        is_cosine = shared_space_of(self.model.config, self.source).is_cosine
        others = {"picture": "sound", "sound": "picture"}  # the shared space is for searching across modalities
        return {(kind, others[kind]): (embeds, is_cosine) for kind, embeds in self.file(query).items()}


def read_media(path: str, sampling_rate: int) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Return the images of a file (one per second of a video) and its audio, if it has them."""
    if Path(path).suffix.lower() in PICTURE_SUFFIXES:
        with Image.open(path) as image:
            return [np.array(image.convert("RGB"))], None
    clip = read_video(path, sampling_rate=sampling_rate, num_frames_per_segment=1)
    pictures = [frame for frames in clip.frames for frame in frames]
    return pictures, clip.waveforms.reshape(-1) if clip.has_audio else None


def rank(
    query: torch.Tensor, names: list[str], embeds: list[torch.Tensor], top_k: int, is_cosine: bool
) -> list[tuple[str, float]]:
    """Return names and similarities of the nearest embeddings, best first."""
    if not embeds:
        return []
    items = torch.stack(embeds)
    if is_cosine:
        items, query = normalize(items, dim=-1), normalize(query, dim=-1)
    similarities = items @ query
    best = similarities.topk(min(top_k, len(names)))
    return [(names[index], round(float(value), 4)) for value, index in zip(best.values, best.indices)]


def main(argv: Sequence[str] | None = None) -> dict[str, list[tuple[str, float]]]:
    args = parse_args(argv)
    embedder = Embedder(args.model, args.device)
    queries = embedder.queries(args.query)
    files = {path: embedder.file(path) for path in args.media}
    results = {}
    for (kind, modality), (query, is_cosine) in queries.items():
        names = [path for path, embeds in files.items() if modality in embeds]
        ranked = rank(query, names, [files[path][modality] for path in names], args.top_k, is_cosine)
        results[f"{kind} -> {modality}"] = ranked
        print(f"{kind} -> {modality}")
        for path, similarity in ranked:
            print(f"  {similarity:7.4f}  {printable(path)}")
    return results


if __name__ == "__main__":
    with program():
        main()
