"""The API by noun: one page for each, written from what the package exports.

A public name of ``smdp_jax`` belongs to the noun whose modules define it, so a new name has its
place without being listed; one that has none stops the build.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import smdp_jax

NOUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "process": (
        "Process: what is simulated, and how it is solved",
        ("sde", "solve", "simulate"),
    ),
    "trajectory": ("Trajectory: paths of it", ("trajectories",)),
    "score": (
        "Score: what is learned from them",
        ("training", "objectives", "scores"),
    ),
    "posterior": (
        "Posterior: what led to an end state, or to what was seen of it",
        ("posterior", "observations", "likelihood", "evaluate", "baselines"),
    ),
    "run": ("Run: an experiment on disk", ("experiment", "pretrained")),
}
ROOMS = {
    "models": "Networks",
    "physics": "Systems",
    "datasets": "Data on disk",
    "training": "Training of your own",
    "evaluate": "Evaluation",
    "evaluate.plots": "Pictures",
    "baselines": "What else one would try",
    "experiment": "Experiments",
}


def noun_of(name: str) -> str | None:
    """The noun of a public name; None for the rooms that ``smdp_jax`` exports whole."""
    thing = getattr(smdp_jax, name)
    if inspect.ismodule(thing):
        return None
    room = thing.__module__.removeprefix("smdp_jax.")
    for noun, (_, homes) in NOUNS.items():
        if any(f"{room}.".startswith(f"{home}.") for home in homes):
            return noun
    raise LookupError(f"smdp_jax.{name} must have a noun in {__file__}, got {thing.__module__}")


def pages() -> dict[str, str]:
    """All pages (reStructuredText) by file name."""
    names = {noun: [] for noun in NOUNS}
    for name in _public(smdp_jax):
        noun = noun_of(name)
        if noun is not None:
            names[noun].append(f"smdp_jax.{name}")
    found = {noun: _page(NOUNS[noun][0], listed) for noun, listed in names.items()}
    for room, title in ROOMS.items():
        module = importlib.import_module(f"smdp_jax.{room}")
        own = _public(module)
        own = [n for n in own if not inspect.ismodule(getattr(module, n)) and n not in shown(names)]
        if own:
            found[room.replace(".", "_")] = _page(
                f"{title}: smdp_jax.{room}", [f"smdp_jax.{room}.{n}" for n in own]
            )
    entries = "\n   ".join(found)
    found["index"] = f"{_title('API')}\n\n.. toctree::\n   :maxdepth: 2\n\n   {entries}\n"
    return found


def shown(names: dict[str, list[str]]) -> set[str]:
    """What has its place under a noun is not listed again with its room."""
    return {name.rpartition(".")[2] for listed in names.values() for name in listed}


def _public(module: Any) -> list[str]:
    """What a room exports: its list, or its names that are of the package."""
    own = [n for n, o in vars(module).items() if not n.startswith("_") and _is_ours(o)]
    return getattr(module, "__all__", own)


def _is_ours(thing: Any) -> bool:
    return getattr(thing, "__module__", "").startswith("smdp_jax")


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}"


def _page(title: str, names: list[str]) -> str:
    listed = "\n   ".join(names)
    summary = f".. autosummary::\n   :toctree: generated\n   :nosignatures:\n\n   {listed}\n"
    return f"{_title(title)}\n\n{summary}"


def _write(app: Sphinx, _: Any) -> None:
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        file = folder / f"{name}.rst"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages before Sphinx lists what there is, which autosummary reads."""
    app.connect("config-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
