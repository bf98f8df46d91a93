"""What is in a folder, to be compared with what was there before."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below it, by their paths within it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
