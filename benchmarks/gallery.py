"""The pictures of docs/gallery.md, from finished runs, wherever they lie.

python benchmarks/gallery.py runs/affine/small runs/heat/small
"""

import io
import sys
from pathlib import Path

from harness import say
from PIL import Image
from readme_table import replace
from talk import montage

from smdp_jax.experiment import load_config_file
from smdp_jax.files import write_atomically

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "_static" / "gallery"
PAGE = ROOT / "docs" / "gallery.md"
MARKS = ("<!-- pictures: benchmarks/gallery.py -->", "<!-- end of pictures -->")
WIDTH = 1400


def small(picture: Image.Image) -> bytes:
    """A picture of at most this width, in few colours."""
    size = min(WIDTH, picture.width), round(min(1, WIDTH / picture.width) * picture.height)
    png = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).quantize(128).save(png, "png", optimize=True)
    return png.getvalue()


def section(name: str) -> list[str]:
    """An experiment's name, what it is, its picture, and the command that makes it."""
    file = load_config_file(ROOT / "configs" / f"{name}.py")
    command = f"`python -m smdp_jax run configs/{name}.py`"
    return [
        f"### {name}",
        "",
        f"{file.summary}{'' if file.summary.endswith('?') else '.'} {command}",
        "",
        f"![Figures of {name}, and how many of its targets are met](_static/gallery/{name}.png)",
        "",
    ]


def main(runs: list[str]) -> None:
    """Write the pictures of these runs, and the page of all there are."""
    for run in map(Path, runs):
        file = PICTURES / f"{run.resolve().parent.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, small(montage(run)))
        say(f"{file}: {file.stat().st_size:,} bytes")
    there = sorted(file.stem for file in PICTURES.glob("*.png"))
    replace(PAGE, ["", *(line for name in there for line in section(name))], MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
