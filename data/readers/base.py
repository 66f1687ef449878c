"""What a reader gives: one split of a data set as a list of labelled images, in a stable order."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from data.errors import DataError


class UnreadableImage(DataError):
    """An image file that is missing, damaged, or not an image; the message names it."""


class Source(Protocol):
    """One split of a data set. Instances can be pickled and read from several threads at once."""

    classes: list[str]  # names, in label order
    labels: np.ndarray  # int64 (n,)
    names: list[str]  # one per image, unique, e.g. "n01440764/n01440764_10026.JPEG"; sorted by class, then by name

    def __len__(self) -> int: ...

    def encoded(self, i: int) -> bytes | None:
        """The original file's bytes, None where images do not come as files; raises UnreadableImage."""

    def image(self, i: int) -> Image.Image:
        """Image `i` as 8-bit RGB; raises UnreadableImage if it cannot be decoded."""


class EncodedSource:
    """A source of image files; subclasses read the bytes of image `i`."""

    def __init__(self, classes: list[str], labels: np.ndarray, names: list[str]):
        self.classes = classes
        self.labels = labels
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> bytes:
        """The bytes of the file of image `i`; raises OSError if it cannot be read."""
        raise NotImplementedError

    def encoded(self, i: int) -> bytes:
        try:
            return self.read(i)
        except OSError as error:
            raise UnreadableImage(f"The image {self.names[i]} cannot be read ({error.strerror}).") from error

    def image(self, i: int) -> Image.Image:
        return decode(self.encoded(i), self.names[i])


class FileSource(EncodedSource):
    """Image files below `folder`, given as (label, path from there); they are named by class and file name."""

    def __init__(self, folder: Path, classes: list[str], files: Iterable[tuple[int, str]]):
        samples = sorted((label, f"{classes[label]}/{path.rsplit('/', 1)[-1]}", path) for label, path in files)
        super().__init__(
            classes, np.array([sample[0] for sample in samples], np.int64), [name for _, name, _ in samples]
        )
        self.folder = folder
        self.paths = [path for _, _, path in samples]

    def read(self, i: int) -> bytes:
        return (self.folder / self.paths[i]).read_bytes()


class ArraySource:
    """A source of decoded pixels, uint8 (n, height, width, 3)."""

    def __init__(self, classes: list[str], labels: np.ndarray, names: list[str], pixels: np.ndarray):
        self.classes = classes
        self.labels = labels
        self.names = names
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> None:
        return None

    def image(self, i: int) -> Image.Image:
        return Image.fromarray(self.pixels[i])


class Subset:
    """The images `indices` of `source`, in that order; with `classes`, only these and their labels among them."""

    def __init__(self, source: Source, indices: np.ndarray, classes: list[str] | None = None):
        self.source, self.indices = source, indices
        self.classes = source.classes
        self.labels = source.labels[indices]
        self.names = [source.names[i] for i in indices]
        if classes is not None:
            position = {name: i for i, name in enumerate(classes)}
            self.classes = classes
            self.labels = np.array([position[source.classes[label]] for label in self.labels], np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> bytes | None:
        return self.source.encoded(self.indices[i])

    def image(self, i: int) -> Image.Image:
        return self.source.image(self.indices[i])


class Together:
    """All images of `sources`, which have the same classes, sorted anew; `prefixes` keep their names apart."""

    def __init__(self, sources: Sequence[Source], prefixes: Sequence[str]):
        samples = sorted(
            (int(label), f"{prefix}/{name}", part, i)
            for part, (source, prefix) in enumerate(zip(sources, prefixes, strict=True))
            for i, (label, name) in enumerate(zip(source.labels, source.names, strict=True))
        )
        self.sources, self.classes = sources, sources[0].classes
        self.labels = np.array([sample[0] for sample in samples], np.int64)
        self.names = [sample[1] for sample in samples]
        self.places = [sample[2:] for sample in samples]

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, i: int) -> bytes | None:
        part, position = self.places[i]
        return self.sources[part].encoded(position)

    def image(self, i: int) -> Image.Image:
        part, position = self.places[i]
        return self.sources[part].image(position)


def decode(data: bytes, name: str) -> Image.Image:
    """`data`, an image file of any format that Pillow knows, as 8-bit RGB.

    As timm and torchvision do, EXIF orientation is ignored and transparency dropped. Unlike them, 16-bit grey is scaled
    to 8 bits, where Pillow's own conversion saturates nearly every pixel. Raises UnreadableImage.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plug-ins raise almost anything on damaged files
        reason = str(error) if not isinstance(error, Image.UnidentifiedImageError) else "not an image"
        raise UnreadableImage(f"The image {name} cannot be read ({reason or type(error).__name__}).") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image of any mode; see `decode` for 16 bits."""
    if image.mode.startswith("I"):  # I;16 and its like, or 16 bits kept in 32
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    return image.convert("RGB")
