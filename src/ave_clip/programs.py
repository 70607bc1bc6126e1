"""Start and end of every command and script: signals, one-line errors, log lines and worker processes.

```python
if __name__ == "__main__":
    with program():
        main()
```

Exit codes: 0, or the program's own; 1 for an error, with one line on stderr; 2 for wrong usage; 128 + the number of
the signal that ended the program (130 for Ctrl-C, 143 for SIGTERM).
"""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from .core.text import printable

TRACEBACK_VARIABLE = "AVE_CLIP_TRACEBACK"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Raised by mistakes in the code, so they keep their traceback. All other errors come from data, files, options or the
# machine.
MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError, ArithmeticError)
WORKER_SECONDS = 10.0  # that a worker has for its cleanup before it is killed
# Environment variables of processes that `accelerate launch` or torchrun started.
LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class Interrupted(SystemExit):
    """Raised when a signal stops the program. Like `KeyboardInterrupt`, it runs every `finally` block.

    Attributes:
        signal ([`signal.Signals`]): The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (int(self.signal),)


@contextmanager
def program(name: str | None = None) -> Iterator[None]:
    """Runs a program: SIGTERM and SIGHUP stop it in the same way as Ctrl-C, and errors are one line on stderr.

    If the environment variable `AVE_CLIP_TRACEBACK` is set, errors show their traceback.

    Args:
        name (`str`, *optional*): Prefix of messages; by default the file name of the script.
    """
    name = name or Path(sys.argv[0]).name
    _stop_on_signals()
    if any(variable in os.environ for variable in LAUNCHER_VARIABLES):
        parent = os.getppid()
        if _is_first_process(parent):
            _complain(f"{name}: stopped, because its launcher has ended.")
            sys.exit(128 + signal.SIGTERM)
        _end_with_parent(parent)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # here a full disk is reported as an error; at exit Python would only print a warning
    except Interrupted as stop:
        _finish_quietly()
        _complain(f"{name}: stopped by {stop.signal.name}.")
        sys.exit(stop.code)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        _finish_quietly()
        sys.stdout = None  # Python would flush it at exit and fail again
        sys.exit(1)
    except Exception as error:
        if _received is not None:  # an error that follows from the signal, which the workers received as well
            _finish_quietly()
            _complain(f"{name}: stopped by {_received.name}.")
            sys.exit(128 + _received)
        if isinstance(error, MISTAKES) or os.environ.get(TRACEBACK_VARIABLE):
            raise
        _complain(f"{name}: {describe_error(error)}")
        sys.exit(1)


def exit_code(num_failed: int) -> int:
    """Returns the exit code of a complete run in which some items failed: 1 in the first process, 0 in all others.

    Launchers print a traceback for every process that does not exit with 0.
    """
    return int(num_failed > 0 and int(os.environ.get("RANK", 0)) == 0)


def describe_error(error: BaseException) -> str:
    """Returns an error's message, safe to print; for errors of `datasets`, which say nothing, that of their cause."""
    while error.__cause__ is not None and type(error).__module__.startswith("datasets."):
        error = error.__cause__
    return one_message(str(error).strip() or type(error).__name__)


def one_message(text: str) -> str:
    """Returns a message on one line, safe to print."""
    return printable(re.sub(r"\s*\n\s*", " ", text))


class PrintableFormatter(logging.Formatter):
    """Escapes control characters of log lines, such as those in file names, and indents line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text."""
        return printable(super().format(record), keep="\n\t").replace("\n", "\n    ")


def start_logging(level: int = logging.INFO, form: str = "%(asctime)s %(message)s") -> None:
    """Shows log lines of this level and above on stderr, unless logging is already configured."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(form, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])


@contextmanager
def process_pool(
    num_processes: int,
    context: BaseContext | None = None,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[ProcessPoolExecutor]:
    """Provides a pool of processes that ends with the block.

    If the block fails, waiting tasks are not started and the workers stop. They also end when this process is killed.

    Args:
        num_processes (`int`): Number of processes.
        context (`multiprocessing.context.BaseContext`, *optional*): Start method of the processes.
        initializer (`Callable`, *optional*): Called at the start of each process.
        initargs (`tuple`): Arguments of `initializer`.
    """
    context = context or multiprocessing.get_context()
    before = set(multiprocessing.active_children())
    pool = _Pool(num_processes, context, _start_worker, (initializer, initargs))
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        workers = set(multiprocessing.active_children()) - before
        for worker in workers:
            worker.terminate()
        # `shutdown` waits for the workers, so a thread kills those that do not stop.
        killer = threading.Timer(WORKER_SECONDS, _kill_all, [workers])
        killer.daemon = True
        killer.start()
        pool.shutdown(cancel_futures=True)
        killer.cancel()
        raise


class _Pool(ProcessPoolExecutor):
    """A pool whose workers stop their task at SIGTERM and start no other.

    The workers themselves end only when the pool tells them to: a worker that exits on its own breaks the pool, and
    its thread fails with an error of its own.
    """

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Submits a task to a worker."""
        return super().submit(_run_task, function, *args, **kwargs)


def _run_task(function: Callable, *args: Any, **kwargs: Any) -> Any:
    global _is_idle
    try:
        _is_idle = False
        if _received is not None:
            raise Interrupted(_received)
        return function(*args, **kwargs)
    finally:
        _is_idle = True


def _kill_all(processes: "set[multiprocessing.process.BaseProcess]") -> None:
    for process in processes:
        process.kill()


def end_processes(processes: "set[multiprocessing.process.BaseProcess]") -> None:
    """Stops processes with SIGTERM, and kills those that do not end within `WORKER_SECONDS`."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + WORKER_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


_received: signal.Signals | None = None  # the last signal
_owner: int | None = None  # the process that the handlers were set up for
_is_idle = False  # whether this worker has no task


def _stop_on_signals() -> None:
    global _owner, _received
    if threading.current_thread() is not threading.main_thread():
        return  # Python allows handlers in the main thread only
    _owner, _received = os.getpid(), None
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # such as SIGHUP under nohup
            signal.signal(number, _on_signal)
    sys.unraisablehook = _raise_again


def _on_signal(number: int, frame: Any) -> None:
    global _received
    if os.getpid() != _owner:  # a forked process without handlers of its own must not run the cleanup of its parent
        os._exit(128 + number)
    _received = signal.Signals(number)
    if not _is_idle:
        raise Interrupted(number)


def _raise_again(unraisable: Any) -> None:
    """Sends a signal again if its exception was raised in a finalizer or callback, where Python ignores exceptions."""
    if isinstance(unraisable.exc_value, Interrupted):
        number = unraisable.exc_value.signal
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(unraisable)


def _finish_quietly() -> None:
    """Ends the remaining workers without interruption by further signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each worker that ends
    end_processes(set(multiprocessing.active_children()))


def _complain(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        # Not a log message: why a program ended is said at every log level.
        print(message, file=sys.stderr, flush=True)


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    """Sets up the signals of a worker and calls the initializer.

    SIGTERM stops the worker's task. A terminal sends Ctrl-C to all processes; only the parent reacts and then stops
    the workers.
    """
    global _is_idle
    _is_idle = True
    _stop_on_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent(os.getppid())
    if initializer is not None:
        initializer(*initargs)


def _is_first_process(parent: int) -> bool:
    """Whether a launched process has the system's first process as its parent, because the launcher was killed.

    That happens while libraries are imported. In a container the first process may be the launcher, a Python program.
    """
    if parent != 1:
        return False
    try:
        return b"python" not in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return not Path("/proc").exists()


def _end_with_parent(parent: int) -> None:
    """Stops this process when its parent has ended, such as by `kill -9`, which the parent cannot handle."""
    started_by = multiprocessing.parent_process()

    def is_gone() -> bool:
        # The sentinel is a pipe that closes when the parent ends. It alone is late, since workers that were forked
        # later have its other end open, too; the parent's id is not. On Windows only the sentinel works.
        if started_by is not None and connection.wait([started_by.sentinel], timeout=0.5):
            return True
        if started_by is None:
            time.sleep(0.5)
        return os.getppid() != parent

    def watch() -> None:
        while not is_gone():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + WORKER_SECONDS
        while not _is_idle and time.monotonic() < deadline:
            time.sleep(0.05)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="ave-clip-parent", daemon=True).start()
