"""Small sets of images made in every format, for the tests of `senn.data.images`."""

import gzip
import io
import struct
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from senn.errors import SennError
from senn_reproduce.image_sets import SOURCES, load_images

COUNTS = {"train": 6, "test": 4}
RANDOM = np.random.default_rng(0)


def smaller(name, **changes):
    source = SOURCES[name]
    return replace(source, expected=replace(source.expected, counts=COUNTS, **changes))


MNIST, CIFAR = smaller("mnist"), smaller("cifar-10")
WNIDS = ("n01443537", "n01629819")
TINY = smaller("tiny-imagenet", classes=WNIDS)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(
        struct.pack(">I", size) for size in array.shape
    )
    return header + array.tobytes()


def encoded(pixels, form="PNG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(
        file, form, **options
    )
    return file.getvalue()


def random_images(count, shape):
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8), RANDOM.integers(0, 2, count)


def mnist(folder):
    """MNIST's files, of a few images; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        pixels, labels = random_images(COUNTS[part], (28, 28))
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx(labels.astype(np.uint8)))
        )
        made[part] = (pixels[..., None], labels)
    return made


def parquet(path, images, labels):
    struct_of = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [image if image is None else {"bytes": image, "path": None} for image in images]
    table = pa.table({"img": pa.array(cells, struct_of), "label": pa.array(labels, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


def cifar(folder):
    made = {part: random_images(count, (32, 32, 3)) for part, count in COUNTS.items()}
    for part, (pixels, labels) in made.items():
        parquet(folder / f"{part}-00000-of-00001.parquet", map(encoded, pixels), labels)
    return made


def cifar_binary(folder):
    made = {part: random_images(count, (32, 32, 3)) for part, count in COUNTS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    batches = {"test_batch": made["test"]}
    for at, rows in enumerate(([0], [1], [2], [3], [4, 5]), start=1):
        batches[f"data_batch_{at}"] = tuple(array[rows] for array in made["train"])
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, (pixels, labels) in batches.items():
            planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
            content = np.column_stack([labels.astype(np.uint8), planes]).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made


def tiny(folder, more=()):
    """A zip with a class that isn't wanted, and further entries."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = encoded(Image.new("L", (64, 64), 7))
    entries = {
        "words.txt": "n01443537\tgoldfish, Carassius auratus\nn01629819\tsalamander\nn9\tnothing\n"
    }
    for wnid, value in (*zip(WNIDS, (10, 20), strict=True), ("n02056570", 30)):
        for at in range(3):
            pixels = np.full((64, 64, 3), value + at, np.uint8)
            entries[f"train/{wnid}/images/{wnid}_{at}.JPEG"] = encoded(pixels)
        entries[f"train/{wnid}/{wnid}_boxes.txt"] = ""
    lines = [
        f"val_{at}.JPEG\t{wnid}\t0\t0\t9\t9"
        for at, wnid in enumerate((*WNIDS, "n02056570", *WNIDS))
    ]
    entries["val/val_annotations.txt"] = "\n".join(lines)
    entries |= {f"val/images/val_{at}.JPEG": grey for at in range(5)}
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
        for name, content in more:
            archive.writestr(name, content)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty cache, and no data but a test's own."""
    monkeypatch.setenv("SENN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SENN_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def agree(found, made):
    for part, (pixels, labels) in made.items():
        images = getattr(found, part)
        assert (images.pixels.dtype, images.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images.pixels, pixels)
        np.testing.assert_array_equal(images.labels, labels)


def refused(match, source, folder):
    with pytest.raises(SennError, match=match) as caught:
        load_images(source, folder)
    assert "\n" not in str(caught.value)
