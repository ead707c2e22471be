"""Image-text pairs in a stable, recorded order."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mir_plugin.errors import MirError
from mir_plugin.files.open_files import REMEDY, is_too_many_open_files

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


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
        """The image as it is meant to be seen: upright, 8-bit RGB, the first frame.

        Raises:
            MirError: if the file is missing, its bytes are no readable image, or it is extreme; names the sample.
        """
        return self._seen(reduced=False)

    def check_image(self) -> None:
        """Read the image to its end, at an eighth of its size where the format allows; raises as ``open_image``."""
        self._seen(reduced=True)

    def _seen(self, *, reduced: bool) -> Image:
        from mir_plugin.samples.images import as_seen, decoded, require_moderate

        try:
            if not isinstance(self.image, (bytes, Path)):
                require_moderate(self.image)
                return as_seen(self.image)
            source = io.BytesIO(self.image) if isinstance(self.image, bytes) else self.image
            return as_seen(decoded(source, reduced=reduced))
        # Damaged bytes lead Pillow's readers to exceptions of any kind: struct.error, zlib.error, IndexError, ...
        except Exception as error:
            if is_too_many_open_files(error):
                raise MirError(f"sample {self.sample_id}: its image cannot be opened ({error}). {REMEDY}") from error
            raise MirError(
                f"sample {self.sample_id}: the image cannot be read ({error}). Replace or remove it, then run again."
            ) from error


@dataclass(frozen=True)
class SampleSet:
    """The samples of a measurement, and how they came to be chosen.

    Attributes:
        samples: in the order in which they are measured.
        description: plain JSON values, stored with every result: ``source`` and what identifies it; after a choice
            also ``n_available``, ``n_samples``, ``seed`` and ``choice`` (indices; None for all).
    """

    samples: tuple[Sample, ...]
    description: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples:
            raise MirError("the sample set is empty; at least one image-text pair is needed.")
        twice = [sample_id for sample_id, count in Counter(s.sample_id for s in self.samples).items() if count > 1]
        if twice:
            raise MirError(f"sample id {twice[0]!r} occurs more than once; ids must be unique within a sample set.")
        for sample in self.samples:
            _require_prose(sample)

    def __len__(self) -> int:
        return len(self.samples)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all images (stored bytes, or pixels where there are none) and texts, in order."""
        return self._digests[0]

    @functools.cached_property
    def groups(self) -> tuple[int, ...]:
        """The group of each sample, numbered as they appear: samples that share an image or a text are in one.

        Where that makes a single group of all, as with one image for all texts, those that share the rarer of the two.
        """
        _, images, texts = self._digests
        together: Sequence[Hashable] = _connected(images, texts)
        if len(set(together)) == 1 < len(self):
            together = max((images, texts), key=lambda digests: len(set(digests)))
        numbers: dict[Hashable, int] = {}
        return tuple(numbers.setdefault(one, len(numbers)) for one in together)

    @functools.cached_property
    def _digests(self) -> tuple[str, tuple[bytes, ...], tuple[bytes, ...]]:
        """Of the whole set, of each image and of each text, in one pass over the files."""
        whole, images, texts = hashlib.sha256(), [], []
        for sample in self.samples:
            image = hashlib.sha256()
            for part in _image_parts(sample):
                for digest in (whole, image):
                    digest.update(len(part).to_bytes(8, "little"))
                    digest.update(part)
            text = sample.text.encode()
            whole.update(len(text).to_bytes(8, "little"))
            whole.update(text)
            images.append(image.digest())
            texts.append(hashlib.sha256(text).digest())
        return whole.hexdigest(), tuple(images), tuple(texts)

    def choose(self, n_samples: int | None, seed: int = 0) -> SampleSet:
        """A seeded choice of n samples, which keep their order; None takes all. The choice is written down.

        Raises:
            MirError: if n is less than one or more than there are.
        """
        choice = None if n_samples is None else seeded_choice(len(self), n_samples, seed)
        return SampleSet(
            samples=self.samples if choice is None else tuple(self.samples[index] for index in choice),
            description={
                **self.description,
                "n_available": len(self),
                "n_samples": len(self) if choice is None else len(choice),
                "seed": None if choice is None else seed,
                "choice": None if choice is None else list(choice),
            },
        )

    def first(self, n_samples: int) -> SampleSet:
        """The first n in an order drawn once and for all, which keep their order; larger n contain smaller ones.

        Raises:
            MirError: if n is less than one or more than there are.
        """
        if n_samples == len(self):
            return self
        _require_available(n_samples, len(self))
        drawn = sorted(random.Random(0).sample(range(len(self)), len(self))[:n_samples])
        first = tuple(self.samples[index] for index in drawn)
        return SampleSet(first, {**self.description, "n_samples": n_samples, "first_of": len(self)})

    def checked(self) -> SampleSet:
        """The same set, after every image was read once, so that a broken one is an error now and not in mid-run.

        Raises:
            MirError: for an image that cannot be read, or samples that are all the same.
        """
        for sample in self.samples:
            sample.check_image()
        _require_variety(self.samples)
        return self

    def in_memory(self) -> SampleSet:
        """The same samples with the bytes of their image files, for a process that cannot read these files."""
        read = (
            dataclasses.replace(sample, image=_image_parts(sample)[0]) if isinstance(sample.image, Path) else sample
            for sample in self.samples
        )
        return dataclasses.replace(self, samples=tuple(read))

    def with_description(self, **facts: Any) -> SampleSet:
        """The same samples with more said about them."""
        return dataclasses.replace(self, description={**self.description, **facts})


def seeded_choice(n_available: int, n_samples: int, seed: int) -> tuple[int, ...]:
    """n different indices below ``n_available``, ascending; the same for the same three numbers everywhere.

    >>> seeded_choice(5000, 3, seed=0)
    (331, 3155, 3445)
    """
    if seed < 0:  # Python's generator takes -1 for 1
        raise MirError(f"seed must be 0 or greater, got {seed}.")
    _require_available(n_samples, n_available)
    return tuple(sorted(random.Random(seed).sample(range(n_available), n_samples)))


def _require_available(n_samples: int, n_available: int) -> None:
    if not 1 <= n_samples <= n_available:
        raise MirError(f"requested {n_samples} samples, but there are {n_available}. Choose 1 to {n_available}.")


def spread_evenly(items: Sequence[T], n: int) -> tuple[T, ...]:
    """n of the items at equal distances, the first included.

    >>> spread_evenly("abcdef", 3)
    ('a', 'c', 'e')
    """
    if not 1 <= n <= len(items):
        raise MirError(f"requested {n} items, but there are {len(items)}. Choose 1 to {len(items)}.")
    return tuple(items[index * len(items) // n] for index in range(n))


def _require_prose(sample: Sample) -> None:
    """Raise MirError for a text that is empty or binary."""
    surrogates = _SURROGATE.search(sample.text)
    controls = _CONTROL.findall(sample.text)
    # Scraped prose has a stray one; zeros, or more than one in a hundred, mark binary data.
    if surrogates or "\0" in controls or 100 * len(controls) > len(sample.text):
        shown = surrogates[0] if surrogates else controls[0]
        raise MirError(
            f"sample {sample.sample_id}: the text contains characters such as {shown!r}, so it is binary data or "
            "not UTF-8. Replace or remove it."
        )
    if not any(character.isprintable() and not character.isspace() for character in sample.text):
        raise MirError(f"sample {sample.sample_id} has an empty text. Replace or remove it.")


def _connected(images: Sequence[bytes], texts: Sequence[bytes]) -> tuple[int, ...]:
    """Samples joined by a common image or text, over any number of steps; each by the first sample of its group.

    >>> _connected([b"a", b"b", b"a", b"c"], [b"1", b"2", b"3", b"2"])
    (0, 1, 0, 1)
    """
    parent = list(range(len(images)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    for digests in (images, texts):
        first: dict[bytes, int] = {}
        for index, digest in enumerate(digests):
            one, other = root(first.setdefault(digest, index)), root(index)
            parent[max(one, other)] = min(one, other)
    return tuple(map(root, range(len(images))))


def _require_variety(samples: Sequence[Sample]) -> None:
    first = samples[0]
    if len(samples) > 1 and all(one.text == first.text and _image_parts(one) == _image_parts(first) for one in samples):
        raise MirError(
            f"all {len(samples)} samples are identical ({first.sample_id} to {samples[-1].sample_id}); provide "
            "distinct samples."
        )


def _image_parts(sample: Sample) -> tuple[bytes, ...]:
    if isinstance(sample.image, bytes):
        return (sample.image,)
    if isinstance(sample.image, Path):
        try:
            return (sample.image.read_bytes(),)
        except OSError as error:
            raise MirError(f"sample {sample.sample_id}: cannot read {sample.image} ({error.strerror}).") from error
    return (f"{sample.image.mode} {sample.image.size}".encode(), sample.image.tobytes())
