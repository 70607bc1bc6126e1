"""How commands and scripts end: by errors, by signals, with their workers."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ave_clip.programs import Interrupted, describe_error, exit_code, one_message

LIGHT = "import sys; sys.argv[0] = 'ave-clip'\n"  # such a process imports no torch at the start
POOL = f"""
{LIGHT}
import os, time
from ave_clip.programs import process_pool, program

def work(number):
    try:
        os.write(1, f"begun {{number}} {{os.getpid()}}\\n".encode())  # one write each: lines of two workers never mix
        time.sleep(60)
    finally:
        os.write(1, f"ended {{number}}\\n".encode())

with program("maker"), process_pool(2) as pool:
    list(pool.map(work, range(20)))
"""


def run(code, **environment):
    code = f"{LIGHT}from ave_clip.programs import program\nwith program('maker'):\n    {code}"
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(process_ids):
    deadline = time.monotonic() + 60
    while any(map(is_running, process_ids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_expected_error_is_one_safe_line():
    assert run(r"raise ValueError('Got a\n   clip \x1b[31m\u202e.')") == (
        1,
        "",
        "maker: Got a clip \\x1b[31m\\u202e.\n",
    )
    assert run("raise OSError(28, 'No space left', 'x')")[2] == "maker: [Errno 28] No space left: 'x'\n"
    assert run("raise MemoryError")[2] == "maker: MemoryError\n"


def test_a_mistake_in_the_code_and_whoever_asks_gets_the_traceback():
    assert "Traceback" in run("{}['missing']")[2]
    assert "Traceback" in run("raise ValueError('x')", AVE_CLIP_TRACEBACK="1")[2]


def test_exit_codes_of_the_program_itself_stay():
    assert run("raise SystemExit(3)") == (3, "", "")
    assert run("print('fine')") == (0, "fine\n", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_said():
    code = f"{LIGHT}from ave_clip.programs import program\nwith program('maker'):\n    print('x')"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (1, 120)  # Python says it once more while it ends
    assert done.stderr.startswith("maker: [Errno 28] No space left on device\n")


def test_a_signal_that_comes_in_a_finalizer_is_not_lost():
    code = f"""
{LIGHT}
import os, signal, time
from ave_clip.programs import program
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
with program("maker"):
    Late()
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "maker: stopped by SIGTERM.\n")


def test_libraries_that_hide_the_cause_are_asked_for_it():
    hidden = type("DatasetGenerationError", (Exception,), {"__module__": "datasets.exceptions"})("it failed")
    hidden.__cause__ = ValueError("the reason")
    assert describe_error(hidden) == "the reason"
    assert one_message("two\n  lines") == "two lines"
    assert Interrupted(signal.SIGTERM).code == 143


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_workers_end_with_their_program_and_begin_nothing_new(name):
    number = signal.Signals[name]
    process = subprocess.Popen(
        [sys.executable, "-c", POOL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    begun = [process.stdout.readline().split() for _ in range(2)]
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    wait_for_the_end_of([int(words[2]) for words in begun])
    assert process.returncode == (-number if name == "SIGKILL" else 128 + number)
    assert said == ("" if name == "SIGKILL" else f"maker: stopped by {name}.\n")
    assert sorted(out.split()) == sorted(["ended", begun[0][1], "ended", begun[1][1]])


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
@pytest.mark.parametrize(("rank", "num_failed", "code"), [(None, 2, 1), ("0", 2, 1), ("1", 2, 0), (None, 0, 0)])
def test_only_the_first_process_exits_with_1_for_failed_items(monkeypatch, rank, num_failed, code):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert exit_code(num_failed) == code


def test_a_process_whose_launcher_was_killed_before_the_program_began_ends(tmp_path):
    """torchrun is killed while its workers still import torch: nothing told them later that they were alone."""
    worker = f"""
{LIGHT}
import os, time
launcher = int(sys.argv[1])
while os.getppid() == launcher:
    time.sleep(0.01)
if os.getppid() != 1 or b"python" in open("/proc/1/cmdline", "rb").read():
    sys.exit("another parent")
from ave_clip.programs import program
with program("maker"):
    print("begun", file=sys.stderr)
"""
    launcher = "import os, subprocess, sys; subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid())])"
    (tmp_path / "worker.py").write_text(worker)
    command = [sys.executable, "-c", launcher, str(tmp_path / "worker.py")]
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "x"}
    said = subprocess.run(command, capture_output=True, text=True, env=environment).stderr  # until the worker ends
    if said == "another parent\n":
        pytest.skip("orphans do not get the first process as their parent here, or it is Python")
    assert said == "maker: stopped, because its launcher has ended.\n"
