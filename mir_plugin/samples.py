"""Image-text pairs in a stable, recorded order."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mir_plugin.errors import MirError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One image and one text; the pair need not belong together.

    Attributes:
        sample_id: unique within a sample set, and stable between runs; names the sample in errors.
        image: a file path, encoded bytes (PNG, JPEG, ...) or a PIL image.
        text: what the assistant is made to say (teacher-forced).
    """

    sample_id: str
    image: Path | bytes | Image
    text: str

    def open_image(self) -> Image:
        """Decode the image; the mode stays as stored (adapters convert to RGB themselves).

        Raises:
            MirError: if the file is missing or its bytes are no readable image; names the sample.
        """
        import PIL.Image

        if isinstance(self.image, PIL.Image.Image):
            return self.image
        source = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
        try:
            image = PIL.Image.open(source)
            image.load()
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise MirError(
                f"sample {self.sample_id}: the image cannot be read ({error}). Replace or remove it, then run again."
            ) from error
        return image
