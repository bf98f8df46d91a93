"""Run experiments: ``python -m smdp_jax COMMAND ...``.

Commands:
  new MINE.py                     write a config of twenty lines that runs, to be changed
  run CONFIG.py                   simulate, train, sample, evaluate and report; the same command
                                  goes on where it was stopped
  report RUN_DIR                  draw the figures and write the report again
  sample RUN_DIR END_STATES.npz   sample the past of given end states with a trained run
  list [FOLDER]                   show the experiments in a folder (default: configs)

Add --help for the options of a command; run CONFIG.py --help lists every field of the config.
CONFIG.py is a program, and so is its copy in RUN_DIR: run, report and sample execute it.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from smdp_jax.experiment import (
    ConfigFile,
    ExperimentError,
    RunFiles,
    build_report,
    configs_in,
    load,
    load_config_file,
    run_experiment,
    sample_end_states,
    write_config,
)
from smdp_jax.experiment.pretrained import pretrained
from smdp_jax.experiment.processes import LOST, join, only_process_in, supervised, watched
from smdp_jax.experiment.report import check_matplotlib

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_PROG = "python -m smdp_jax"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        _out(__doc__ or "")
        return 0 if given else MISUSED
    if given[0] not in COMMANDS:
        return _fail(f"unknown command {given[0]!r}; there are {', '.join(COMMANDS)}", MISUSED)
    try:
        if given[0] == "run":
            _run(given[1:])
        else:
            tyro.cli(COMMANDS[given[0]], args=given[1:], prog=f"{_PROG} {given[0]}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        return _fail(f"{LOST} ({str(error).splitlines()[0]})", FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)
    except (ExperimentError, ValueError, TypeError, FloatingPointError, OSError) as error:
        # The library's own checks raise ValueError and TypeError, training that diverges
        # FloatingPointError, a full disk or a folder that may not be written OSError.
        if os.environ.get("SMDP_TRACEBACK"):
            raise
        hint = "" if isinstance(error, ExperimentError) else "\n(SMDP_TRACEBACK=1 shows where)"
        return _fail(f"{error}{hint}", FAILED)
    return 0


def _run(given: list[str]) -> None:
    if not given or given[0].startswith("-"):
        usage = f"usage: {_PROG} run CONFIG.py [--preset NAME] [--FIELD VALUE ...]"
        if given and given[0] in ("-h", "--help"):
            _out(f"{usage}\nrun CONFIG.py --help lists every field of the config.\n")
            return
        raise ExperimentError(f"{usage}; list shows the experiments")
    check_matplotlib()
    _join(given)
    path = Path(given[0])
    file = load_config_file(path)
    options = _run_options(file, given[1:])
    names = ("preset", "runs_dir", "checkpoint_seconds")
    how: dict[str, Any] = {name: getattr(options, name) for name in names}
    how["shown"] = path.name if path.is_absolute() else path.as_posix()
    how["initial"] = pretrained(file.name).score if options.from_pretrained else None
    run_experiment(file, options.config, progress=sys.stderr.isatty(), **how)


def _join(given: list[str]) -> None:
    """Find the other processes, if there are any, before a config uses JAX."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    asked, _ = parser.parse_known_args(given)
    if asked.distributed:
        watched()
        join(asked.coordinator, asked.processes, asked.process)
    elif (asked.coordinator, asked.processes, asked.process) != (None, None, None):
        raise ExperimentError("--coordinator, --processes and --process need --distributed")


def _run_options(file: ConfigFile, given: list[str]) -> Any:
    """Parse what follows ``run CONFIG.py``; the asked-for preset gives the fields' defaults."""
    names = list(file.presets)
    words = " ".join(given).replace("--preset=", "--preset ").split()
    asked = [name for word, name in itertools.pairwise(words) if word == "--preset"]
    preset = asked[-1] if asked and asked[-1] in names else names[0]
    config = file.presets[preset]

    def option(kind: Any, text: str, default: Any) -> tuple[Any, Any]:
        return Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default)

    fields = {
        "preset": option(Literal[tuple(names)], "Where the fields start from.", preset),
        "runs_dir": option(Path, "Results go to RUNS_DIR/NAME/PRESET.", Path("runs")),
        "checkpoint_seconds": option(float, "Least time between checkpoints of training.", 10.0),
        "from_pretrained": option(bool, "Train on from the weights of the package.", False),
        "distributed": option(bool, "One of several processes, of srun, mpirun or by hand.", False),
        "coordinator": option(str | None, "By hand: HOST:PORT of process 0.", None),
        "processes": option(int | None, "By hand: how many there are.", None),
        "process": option(int | None, "By hand: which one this is, from 0.", None),
    }
    listed = [(name, *rest) for name, rest in fields.items()]
    own = Annotated[type(config), tyro.conf.arg(name="")]
    listed.append(("config", own, dataclasses.field(default=config)))
    options, prog = dataclasses.make_dataclass("Options", listed), f"{_PROG} run {file.path}"
    return tyro.cli(options, args=given, prog=prog, description=f"{file.summary}.")


def _report(run_dir: tyro.conf.Positional[Path]) -> None:
    """Draw the figures and write the report of a finished run again; nothing is computed.

    Executes config.py of the run directory: only for runs whose code you trust.
    """
    files = RunFiles(run_dir)
    run = load(run_dir)
    for file in (files.samples, files.metrics):
        if not file.exists():
            raise ExperimentError(f"{run_dir} is not finished: it has no {file.name}")
    with only_process_in(run_dir):
        _out(f"{build_report(files, run, files.read_samples()[0])}\n")


def _sample(
    run_dir: tyro.conf.Positional[Path],
    end_states: tyro.conf.Positional[Path],
    *,
    output: Path,
    num_samples: int = 100,
    seed: int = 0,
) -> None:
    """Sample the past of given end states with a trained run.

    Executes config.py of the run directory: only for runs whose code you trust.
    """
    run = load(run_dir)
    past = sample_end_states(run, end_states, output, num_samples=num_samples, seed=seed)
    bad = int((~past.info.finite).sum())
    _out(f"{output}" + (f" ({bad} samples are not finite)\n" if bad else "\n"))


def _list(folder: tyro.conf.Positional[Path] = Path("configs")) -> None:
    """Show the experiments in a folder."""
    for path in configs_in(folder):
        file = load_config_file(path)
        _out(f"{path}\n    {file.summary}\n    presets: {', '.join(file.presets)}\n")


def _new(
    path: tyro.conf.Positional[Path], *, field: tuple[int, ...] = (), periodic: bool = False
) -> None:
    """Write a config of twenty lines that runs, to be changed.

    --field has the points along each axis of a grid, 64 or 32 32; without it the state is a number.
    --periodic: the ends of the grid meet.
    """
    _out(f"{write_config(path, field, periodic=periodic)}\n")


COMMANDS: dict[str, Callable[..., None]] = {
    "new": _new,
    "run": _run,
    "report": _report,
    "sample": _sample,
    "list": _list,
}


def _out(text: str) -> None:
    sys.stdout.write(text)


def _fail(message: str, status: int) -> int:
    who = f"process {jax.process_index()}: " if jax.distributed.is_initialized() else ""
    sys.stderr.write(f"error: {who}{message}\n")
    return status


def _entry(given: list[str]) -> None:
    """Leave at once where a process of several failed: JAX would wait for the others for long."""
    apart = given[:1] == ["run"] and "--distributed" in given
    status = supervised(given) if apart else None
    status = main(given) if status is None else status
    if status and jax.distributed.is_initialized():
        sys.stderr.flush()
        time.sleep(jax.process_index() == 0)  # it takes the others with it: they may speak first
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _entry(sys.argv[1:])
