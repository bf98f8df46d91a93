"""Training state on disk: orbax checkpoints, metrics as JSON lines, and whose run it is."""

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from smdp_jax.files import check_alike, is_first, lock, write_atomically


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: cut in the middle, orbax's threads deadlock."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
        if held:
            signal.raise_signal(signal.SIGINT)


def _locked(folder: Path) -> int:
    """Hold a folder: two trainings there would undo each other."""
    try:
        return lock(folder)
    except BlockingIOError:
        said = f"another process trains in {folder}: wait for it, or use another directory"
        raise ValueError(said) from None


def _change(name: str, before: Any, now: Any) -> str:
    digests = [re.fullmatch(r"(computes )?[0-9a-f]{16,}", str(v)) for v in (before, now)]
    return f"{name} is another one" if all(digests) else f"{name} was {before!r}, now {now!r}"


class RunDirectory:
    """Checkpoints and metrics of one training run; of several processes, the first one writes."""

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self._writes = is_first()
        self._lock = _locked(self.path) if self._writes else -1
        try:
            self._check_identity(identity)
            check_alike(identity, "train the same")
        except BaseException:
            if self._lock >= 0:
                os.close(self._lock)
            raise
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        with interrupts_deferred():
            self._manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)

    def _check_identity(self, identity: dict[str, Any]) -> None:
        file = self.path / "training.json"
        identity = json.loads(json.dumps(identity))
        if not file.exists():
            if self._writes:
                write_atomically(file, json.dumps(identity, indent=2))
            return
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); remove {self.path}") from error
        names = [*identity, *sorted(found.keys() - identity.keys())]
        pairs = {n: (found.get(n), identity.get(n)) for n in names}
        changes = ", ".join(_change(n, *pair) for n, pair in pairs.items() if pair[0] != pair[1])
        if changes:
            said = f"{self.path} holds another training run: {changes}"
            raise ValueError(f"{said}; use another directory or remove this one")

    @property
    def metrics_file(self) -> Path:
        """JSON lines, one per epoch."""
        return self.path / "metrics.jsonl"

    def save(self, step: int, state: Any) -> None:
        """Write a checkpoint, whole or not at all; Ctrl-C waits until it is there."""
        with interrupts_deferred():
            if step not in self._manager.all_steps():
                self._manager.save(step, args=ocp.args.StandardSave(state))
                self._manager.wait_until_finished()

    @property
    def last(self) -> int | None:
        """Number of updates at the newest checkpoint."""
        return max(self._written(), default=None)

    def _written(self) -> list[int]:
        """Checkpoints with something in them, the newest first; empty folders are removed."""
        for step in self._manager.all_steps():
            folder = self.path / "checkpoints" / str(step)
            if self._writes and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        with interrupts_deferred():
            self._manager.reload()
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Read the newest whole checkpoint."""
        steps = self._written()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        failures = []
        for step in steps:
            try:
                with interrupts_deferred():
                    state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # orbax raises many kinds for damaged files
                failures.append(f"step {step}: {type(error).__name__}: {str(error)[:200]}")
                continue
            for bad in steps[: steps.index(step)]:
                self._manager.delete(bad)
            return step, state
        if failures:
            said = f"no checkpoint in {self.path / 'checkpoints'} can be read"
            why = "; ".join(failures)
            raise ValueError(f"{said} ({why}); remove the folder to train from the start")
        return None

    def read_metrics(self, until: int) -> list[dict[str, Any]]:
        """Read the metrics up to a step, and drop the later or damaged lines from disk."""
        records: list[dict[str, Any]] = []
        if self.metrics_file.exists():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                for line in self.metrics_file.read_text("utf-8", errors="replace").splitlines():
                    record = json.loads(line)
                    if record["step"] > until:
                        break
                    records.append(record)
        if self._writes:
            write_atomically(self.metrics_file, "".join(json.dumps(r) + "\n" for r in records))
        return records

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self._writes:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        """Release the checkpoint manager, and the folder."""
        with interrupts_deferred():
            self._manager.close()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1
