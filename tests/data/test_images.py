"""Sets of images: small ones made here in every format, their cache and download; real ones where SENN_DATA is."""

import functools
import hashlib
import http.server
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_cases import (
    CIFAR,
    MNIST,
    TINY,
    agree,
    cifar,
    cifar_binary,
    folder,
    mnist,
    refused,
    surroundings,
    tiny,
)

from senn.data.images import Images, read_parquet
from senn.data.images.image_arrays import duplicate_notes
from senn.errors import SennError
from senn_reproduce.image_sets import SOURCES, load_images
from senn_reproduce.image_sets.download import Download

__all__ = ["folder", "surroundings"]  # fixtures


@pytest.mark.parametrize(
    ("source", "make", "form"),
    [(MNIST, mnist, "IDX"), (CIFAR, cifar, "parquet"), (CIFAR, cifar_binary, "binary")],
)
@pytest.mark.parametrize("inside", [True, False])
def test_reads_what_was_written(folder, source, make, form, inside):
    made = make(folder / source.expected.name if inside else folder)
    found = load_images(source, folder)
    agree(found, made)
    assert (found.form, found.classes) == (form, source.expected.classes)


def test_tiny_imagenet_is_read_from_a_zip_of_more_classes(folder):
    tiny(folder)
    found = load_images(TINY, folder)
    assert found.classes == ("goldfish", "salamander")
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.train.pixels[:, 3, 4].tolist() == [[v] * 3 for v in (10, 11, 12, 20, 21, 22)]
    assert found.test.labels.tolist() == [0, 1, 0, 1]
    assert (found.test.pixels == 7).all()


def test_the_folder_may_be_named_by_the_environment(folder, monkeypatch):
    made = mnist(folder / "mnist")
    monkeypatch.setenv("SENN_DATA", str(folder))
    agree(load_images(MNIST), made)


def test_holding_out(folder):
    mnist(folder)
    found = load_images(MNIST, folder)
    held = found.hold_out(2, seed=1)
    assert (len(held.train), len(held.validation), len(held.test)) == (4, 2, 4)
    both = np.concatenate([held.train.pixels, held.validation.pixels])
    assert sorted(map(bytes, both)) == sorted(map(bytes, found.train.pixels))
    np.testing.assert_array_equal(
        held.validation.pixels, found.hold_out(2, seed=1).validation.pixels
    )
    for wrong in (0, 6):
        with pytest.raises(SennError, match=f"{wrong} images can't be held out of 6"):
            found.hold_out(wrong, seed=1)
    with pytest.raises(SennError, match="held out already"):
        held.hold_out(1, seed=1)


# The cache


def entries(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npy"))


def test_a_set_is_decoded_once_and_memory_mapped(folder, tmp_path):
    mnist(folder)
    load_images(MNIST, folder)
    times = [path.stat().st_mtime_ns for path in entries(tmp_path)]
    found = load_images(MNIST, folder)
    assert isinstance(found.train.pixels, np.memmap)
    assert not found.train.pixels.flags.writeable
    assert [path.stat().st_mtime_ns for path in entries(tmp_path)] == times
    assert not list((tmp_path / "cache").rglob(".new-*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
    ],
)
@pytest.mark.parametrize("name", ["train-pixels.npy", "test-labels.npy", "set.json"])
def test_a_damaged_cache_is_made_anew(folder, tmp_path, damage, name):
    made = mnist(folder)
    load_images(MNIST, folder)
    (path,) = (tmp_path / "cache").rglob(name)
    whole = path.read_bytes()
    damage(path)
    agree(load_images(MNIST, folder), made)
    assert path.read_bytes() == whole


def test_a_stale_cache_is_made_anew(folder, tmp_path):
    mnist(folder)
    load_images(MNIST, folder)
    made = mnist(folder)
    agree(load_images(MNIST, folder), made)
    assert len(entries(tmp_path)) == 4


def test_what_a_killed_run_left_in_the_cache_is_removed(folder, tmp_path):
    mnist(folder)
    load_images(MNIST, folder)
    entry = entries(tmp_path)[0].parent
    (entry / "set.json").unlink()
    for name, age in ((".new-old", 9999), (".new-young", 9)):
        (entry / name).touch()
        os.utime(entry / name, (time.time() - age,) * 2)
    load_images(MNIST, folder)
    assert [path.name for path in entry.glob(".new-*")] == [".new-young"]


def test_a_pickle_in_the_cache_is_not_run(folder, tmp_path):
    made = mnist(folder)
    load_images(MNIST, folder)
    (path,) = (tmp_path / "cache").rglob("train-labels.npy")
    (index,) = (tmp_path / "cache").rglob("set.json")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    np.save(path, np.array([print, 1], object), allow_pickle=True)
    index.write_text(
        index.read_text().replace(before, hashlib.sha256(path.read_bytes()).hexdigest())
    )
    agree(load_images(MNIST, folder), made)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="caches lie elsewhere here")
def test_without_senn_cache_the_cache_is_the_users_own(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("SENN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    mnist(folder)
    found = load_images(MNIST, folder)
    assert Path(found.train.pixels.filename).is_relative_to(tmp_path / "home" / "senn")


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    mnist(folder)
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(SennError, match=r"cache .*can't be written.*SENN_CACHE"):
        load_images(MNIST, folder)


# Downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine; its folder, its address and the paths asked of it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    public, asked = tmp_path / "public", []
    public.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=public)
    ) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield public, f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def published(source, public, address):
    files = sorted(public.iterdir())
    sums = [f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in files]
    return replace(
        source,
        downloads=tuple(
            Download(f"{address}/{p.name}", s) for p, s in zip(files, sums, strict=True)
        ),
    )


@pytest.mark.parametrize(("source", "make"), [(MNIST, mnist), (CIFAR, cifar_binary)])
def test_downloads(server, source, make):
    public, address, asked = server
    made = make(public)
    source = published(source, public, address)
    agree(load_images(source), made)
    assert len(asked) == len(source.downloads)
    agree(load_images(source), made)
    assert len(asked) == len(source.downloads)


def test_a_download_that_is_not_the_published_file(server, tmp_path):
    public, address, _ = server
    mnist(public)
    source = published(MNIST, public, address)
    mnist(public)
    refused("checksum differs; give --data-dir or the environment variable SENN_DATA", source, None)
    assert not list((tmp_path / "cache").rglob("*-ubyte.gz"))


def test_downloads_that_fail(server):
    public, address, _ = server
    mnist(public)
    source = published(MNIST, public, address)
    (public / "t10k-images-idx3-ubyte.gz").unlink()
    refused(
        r"mnist can't be downloaded from \S+ \(status 404\); give --data-dir or the .* SENN_DATA",
        source,
        None,
    )
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and doesn't listen
        source = published(MNIST, public, f"http://127.0.0.1:{closed.getsockname()[1]}")
        refused(
            r"mnist can't be downloaded from \S+ \(ConnectionError\); give --data-dir or the .* SENN_DATA",
            source,
            None,
        )


def test_every_download_is_a_form_of_its_set(tmp_path):
    for name, source in SOURCES.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in source.downloads:
            (folder / file.url.rpartition("/")[2]).touch()
        with pytest.raises(SennError) as caught:
            load_images(source, folder)
        assert "lacks" not in str(caught.value)


# Real files

DATA = os.environ.get("SENN_DATA", "")


def real(name):
    there = bool(DATA) and Path(DATA, name).is_dir()
    return pytest.mark.skipif(not there, reason=f"SENN_DATA names no folder with {name}")


@real("mnist")
def test_real_mnist():
    found = load_images("mnist", DATA)
    assert np.bincount(found.train.labels).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert np.bincount(found.test.labels).tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]
    assert found.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert found.train.pixels.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert found.train.pixels.std(dtype=np.float32) / 255 == pytest.approx(0.3081, abs=1e-4)


@real("cifar-10")
def test_real_cifar():
    paths = sorted(Path(DATA, "cifar-10").glob("test*.parquet"))
    if not paths:
        pytest.skip("SENN_DATA holds CIFAR-10 in another form than parquet")
    found = read_parquet(paths, (32, 32, 3))
    assert np.bincount(found.labels).tolist() == [1000] * 10
    np.testing.assert_allclose(
        found.pixels.mean((0, 1, 2)) / 255, [0.494, 0.485, 0.450], atol=0.005
    )


@real("tiny-imagenet")
def test_real_tiny_imagenet():
    source = SOURCES["tiny-imagenet"]
    few = replace(
        source.expected, classes=source.expected.classes[:4], counts={"train": 2000, "test": 200}
    )
    found = load_images(replace(source, expected=few), DATA)
    assert found.classes == ("goldfish", "European fire salamander", "bullfrog", "tailed frog")
    red, green, blue = found.train.pixels[:500].mean((0, 1, 2))  # goldfish are
    assert red > green > blue


def test_images_that_stand_twice_are_told():
    pixels = np.arange(6 * 4 * 4 * 3, dtype=np.uint16).astype(np.uint8).reshape(6, 4, 4, 3)
    train = Images(pixels[[0, 1, 2, 3, 0, 1]], np.array([0, 0, 1, 1, 1, 0]))
    told = "1 image to train on can be found, pixel by pixel, in more than one class"
    assert duplicate_notes(train, Images(pixels[4:5], np.array([0]))) == [told]
    assert duplicate_notes(train, Images(pixels[3:5], np.array([0, 1]))) == [
        told,
        "50% of the test images also stand among the training images",
    ]
    first = Images(pixels[:3], np.arange(3))
    assert duplicate_notes(first, Images(pixels[3:5], np.arange(2))) == []
