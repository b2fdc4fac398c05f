"""What a training must know of a dataset: its classes, its splits, and the settings of its task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_CLASSES = 100_000
MAX_KEYPOINTS = 1000
SEARCH_DEPTH = 3
"""Folders below the dataset in which its data file or `train` is searched: archives often wrap all in one or two."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the images of a split are."""

    folders: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    """Images that text files list, absolute; not all of them need exist."""


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """The content of a data file, checked."""

    names: dict[int, str]
    splits: dict[str, Split]
    """`train` and the split for validation."""
    channels: int
    name: str = "data"
    """Name of the data file without its suffix, by which Ultralytics recognises a few well-known datasets."""
    settings: dict[str, Any]
    """Ultralytics' settings of the task: of key points, masks or depths. Those of key points also say what the rows of
    a label file contain, of which a detector uses only the boxes."""

    def write(self, folder: Path) -> Path:
        """Write the data file that Ultralytics reads, with absolute paths.

        Args:
            folder: only for this process; the files are overwritten.

        Returns:
            Path of the data file.
        """
        folder.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"names": self.names, "channels": self.channels, **self.settings}
        for name, split in self.splits.items():
            content[name] = [str(path) for path in split.folders]
            if split.images:
                listing = folder / f"{name}.txt"
                listing.write_text("".join(f"{path}\n" for path in split.images), encoding="utf-8")
                content[name].append(str(listing))
        content.setdefault("val", content["train"])  # Ultralytics demands the key, also if another split validates
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")
        return path
