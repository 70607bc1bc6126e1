"""Fresh Python processes that need no time to import torch.

They are forked from a server that has imported torch and other large libraries, but neither transformers nor this
package. Start a real interpreter where its command line, signals, memory or import times are tested.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

PRELOADED = ["torch", "torchvision", "torch.distributed.fsdp", "scipy.optimize", "av"]
NOT_PRELOADED = {"ave_clip", "transformers", "huggingface_hub"}


def run_fresh(
    code: str, *arguments: object, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Same as `subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, ...)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        options = (dict(os.environ if environment is None else environment), str(cwd or Path.cwd()), outputs)
        process = context.Process(target=_execute, args=(code, words, *options))
        process.start()
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
            process.join()
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in outputs))


def _execute(
    code: str, arguments: Sequence[str], environment: Mapping[str, str], cwd: str, outputs: Sequence[Path]
) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    assert not NOT_PRELOADED & sys.modules.keys()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
