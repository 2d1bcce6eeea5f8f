"""What the converters of caption datasets share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from elip.data.download import Download, Row


def caption_rows(
    download: Download, file: str, path: Path, captions: Iterable[str], image_id: str, split: str
) -> Iterator[Row]:
    """Yield the row of one image; skip empty captions, and images without captions."""
    kept = []
    for caption in captions:
        if caption.strip():
            kept.append(caption)
        else:
            download.skip("empty caption", image_id)
    if kept:
        values = {"caption": kept, "image_id": image_id, "split": split}
        yield Row(file, {"image": path}, values)
    else:
        download.skip("image without a caption", image_id)
