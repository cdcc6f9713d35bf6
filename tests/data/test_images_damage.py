"""Damaged, wrong and hostile image files: each is refused in one sentence that names it."""

import contextlib
import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_cases import (
    CIFAR,
    MNIST,
    TINY,
    cifar,
    cifar_binary,
    encoded,
    folder,
    idx,
    mnist,
    parquet,
    random_images,
    refused,
    surroundings,
    tiny,
)
from PIL import Image

from senn.data.images import decode, read_idx, read_labeled_idx, read_parquet
from senn.errors import SennError
from senn_reproduce.image_sets import load_images

__all__ = ["folder", "surroundings"]  # fixtures

# What is wrong with files


def test_other_counts_than_the_set_has_are_refused(folder):
    mnist(folder / "mnist")
    cifar(folder / "cifar-10")
    tiny(folder / "tiny-imagenet")
    refused("holds 6 train images, but mnist has 60,000", "mnist", folder)
    refused("holds 6 train images, but cifar-10 has 50,000", "cifar-10", folder)
    refused("holds 9 train images, but tiny-imagenet has 25,000", "tiny-imagenet", folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: content[:-20], "is cut short"),
        (lambda content: content[:30], "is cut short"),
        (lambda content: b"", "begins with nothing"),
        (lambda content: content[:40] + bytes(9) + content[49:], "can't be read as gzipped IDX"),
        (
            lambda content: gzip.compress(gzip.decompress(content)[:-1]),
            "declares 4,704 bytes, but 4,703 follow",
        ),
        (
            lambda content: gzip.compress(gzip.decompress(content) + b"x"),
            "declares 4,704 bytes, but more follow",
        ),
        (lambda content: gzip.compress(gzip.decompress(content)[:9]), "is cut short"),
        (
            lambda content: gzip.compress(b"\0\0\x08\x01" + bytes(9)),
            "begins with 00000801, not 00000803",
        ),
        (lambda content: encoded(np.zeros((2, 2), np.uint8)), "begins with 89504e47"),
        (lambda content: gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "over the limit"),
        (
            lambda content: gzip.compress(idx(np.zeros((6, 27, 28), np.uint8))),
            "holds images of 27 x 28 x 1, but mnist",
        ),
        (
            lambda content: gzip.compress(idx(np.zeros((5, 28, 28), np.uint8))),
            "holds 5 images, but .* holds 6 labels",
        ),
    ],
)
def test_damaged_idx_files(folder, change, match):
    mnist(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    refused(match, MNIST, folder)


def test_a_label_that_is_no_class(folder):
    mnist(folder)
    labels = np.array([0, 1, 2, 10, 3, 99], np.uint8)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    refused("row 4: label 10 is none of the 10 classes", MNIST, folder)


def test_idx_without_gzip(tmp_path):
    pixels, labels = random_images(3, (4, 5))
    (tmp_path / "x").write_bytes(idx(pixels))
    (tmp_path / "y").write_bytes(idx(labels.astype(np.uint8)))
    found = read_labeled_idx(tmp_path / "x", tmp_path / "y")
    np.testing.assert_array_equal(found.pixels, pixels[..., None])
    with pytest.raises(SennError, match="No such file"):
        read_idx(tmp_path / "z", 1)


def test_a_folder_that_is_not_there_or_lacks_files(folder):
    refused(r"data folder .*--data-dir or SENN_DATA, can't be read: No such file", MNIST, folder)
    mnist(folder)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    refused(r"lacks t10k-labels-idx1-ubyte\* for mnist", MNIST, folder)
    refused(
        r"lacks train\*.parquet and test\*.parquet or cifar-10-binary\*.tar.gz for cifar-10",
        CIFAR,
        folder,
    )
    refused("can't be read: Not a directory", MNIST, folder / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(SennError, match="there are no images 'emnist', but 'mnist'"):
        load_images("emnist")


def test_two_files_for_one_role(folder):
    mnist(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(b"")
    refused("2 files that could be the train images", MNIST, folder)


@contextlib.contextmanager
def unprivileged():
    """Without the rights of root, if we have them."""
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("root can't step down here")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are of another kind here")
def test_files_without_permission(folder):
    mnist(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.chmod(0)
    with unprivileged(), pytest.raises(SennError, match="can't be read: Permission denied"):
        read_idx(path, 3)
    folder.chmod(0)
    with unprivileged():
        refused("data folder .* can't be read: Permission denied", MNIST, folder)
    folder.chmod(0o700)


# Encoded images


def bomb(width, height):
    """A PNG that claims a size, of a few bytes."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "none of JPEG, PNG"),
        (b"%PDF-1.7" + bytes(99), "none of JPEG, PNG"),
        (encoded(np.zeros((9, 9, 3), np.uint8))[:-30], "can't be decoded"),
        (encoded(np.zeros((99, 99, 3), np.uint8), "JPEG")[:-99], "truncated"),
        (bomb(5000, 4000), "5,000 x 4,000 pixels, over the limit of 16,777,216"),
        (bomb(10_000, 10_000), "over the limit"),
        (bomb(60_000, 60_000), "can't be decoded.*bomb"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "mode F, whose values have no range"),
    ],
)
def test_images_that_are_refused(content, match):
    with pytest.raises(SennError, match=f"^picture .*{match}") as caught:
        decode(content, "picture")
    assert "\n" not in str(caught.value)


def test_modes():
    assert decode(encoded(Image.new("L", (3, 2), 9)), "x").tolist() == [[[9] * 3] * 3] * 2
    assert decode(encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0))), "x").tolist() == [[[255] * 3]]
    assert decode(encoded(Image.new("P", (1, 1))), "x").tolist() == [[[0] * 3]]
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter
    assert decode(encoded(Image.new("RGB", (8, 16)), "JPEG", exif=exif), "x").shape == (8, 16, 3)


PIXELS = np.zeros((6, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (
            [*map(encoded, PIXELS[:3]), b"no image", *map(encoded, PIXELS[:2])],
            [0] * 6,
            "row 4 of .*train.* none of JPEG",
        ),
        (
            [*map(encoded, PIXELS[:4]), None, encoded(PIXELS[0])],
            [0] * 6,
            "row 5 of .* has no image",
        ),
        (
            [*map(encoded, PIXELS[:5]), encoded(PIXELS[0, :9])],
            [0] * 6,
            "row 6 of .* 9 x 32 x 3 where 32 x 32 x 3",
        ),
        (map(encoded, PIXELS), [0, 1, None, 0, 1, 2], "rows without a label"),
        (map(encoded, PIXELS), [0, 1, 2, -1, 1, 2], "row 4: label -1"),
        (map(encoded, PIXELS[:5]), [0] * 5, "holds 5 train images"),
    ],
)
def test_damaged_rows_of_parquet(folder, images, labels, match):
    cifar(folder)
    parquet(folder / "train-00000-of-00001.parquet", images, labels)
    refused(match, CIFAR, folder)


def test_sums_of_parquet_pages_are_checked(folder):
    cifar(folder)
    path = folder / "train-00000-of-00001.parquet"
    table = pa.table({"img": [encoded(image) for image in PIXELS], "label": np.arange(1, 7)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    whole, labels = path.read_bytes(), np.arange(1, 7).tobytes()
    assert whole.count(labels) == 1
    path.write_bytes(whole.replace(labels, labels[::-1]))
    refused("can't be read as parquet: .*checksum", CIFAR, folder)


def test_other_parquet_files(folder):
    cifar(folder)
    path = folder / "train-00000-of-00001.parquet"
    for table, match in (
        ({"image": [b"x"], "label": [0]}, "no column 'img', but 'image', 'label'"),
        ({"img": ["x"], "label": [0]}, "column 'img' .* holds string, not encoded images"),
        ({"img": [b"x"], "label": ["cat"]}, "column 'label' .* holds string, not whole numbers"),
    ):
        pq.write_table(pa.table(table), path)
        refused(match, CIFAR, folder)
    path.write_bytes(path.read_bytes()[:50])
    refused("can't be read as parquet", CIFAR, folder)


def test_parquet_with_plain_bytes_in_two_files(tmp_path):
    for at in range(2):
        pq.write_table(
            pa.table({"png": [encoded(PIXELS[0] + at)], "y": [at]}), tmp_path / f"{at}.parquet"
        )
    found = read_parquet(
        [tmp_path / "0.parquet", tmp_path / "1.parquet"], (32, 32, 3), image="png", label="y"
    )
    assert found.labels.tolist() == [0, 1]
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1]


# Archives


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "tiny-imagenet-200/../../x",
        "..",
        "tiny-imagenet-200\\..\\x",
        "C:/x",
        "tiny-imagenet-200/words.txt",
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_names_in_a_zip(folder, name):
    tiny(folder, more=[(name, b"")])
    refused("leads out of it|two entries named", TINY, folder)


def test_a_zip_bomb(folder):
    tiny(folder, more=[("tiny-imagenet-200/train/n01443537/images/n01443537_9.JPEG", b"")])
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny-imagenet-200/words.txt", bytes(2**24 + 1))
    refused("words.txt.* has 16,777,217 bytes, over the limit", TINY, folder)


def test_damaged_zips(folder):
    tiny(folder)
    path = folder / "tiny-imagenet-200.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    refused("can't be read as a zip", TINY, folder)
    path.write_bytes(whole.replace(b"salamander", b"salamandre", 1))
    refused("can't be read as a zip: Bad CRC", TINY, folder)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/x", b"")
    refused("has no entry tiny-imagenet-200/words.txt", TINY, folder)


def test_damaged_tars(folder):
    cifar_binary(folder)
    path = folder / "cifar-10-binary.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("is cut short", CIFAR, folder)
    path.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # the sum at its end
    refused("can't be read as a gzipped tar: CRC check failed", CIFAR, folder)
    for name, match in (
        ("../data_batch_1.bin", "leads out"),
        ("x/data_batch_1.bin", "isn't a batch"),
        ("x", "no entry"),
    ):
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = 7
            archive.addfile(member, io.BytesIO(bytes(7)))
        refused(match, CIFAR, folder)
