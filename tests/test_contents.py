"""Hashes that a run is known by: of bytes, not of paths; kept between runs while files stay as they are."""

import io
import json
import os
import tarfile

import pytest

import ldm.contents
from ldm.contents import digest, file_hash, hashes_of
from ldm.image_files import ImageSource


@pytest.fixture
def sources(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]) * 10)
    return [ImageSource(tmp_path / f"{number}.png") for number in range(3)]


def test_bytes_count_and_paths_do_not(tmp_path, sources, monkeypatch):
    before = hashes_of(sources)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert hashes_of([ImageSource(tmp_path / "link" / f"{number}.png") for number in range(3)]) == before
    os.rename("0.png", "moved.png")
    assert hashes_of([ImageSource(type(tmp_path)("moved.png"))]) == before[:1] and len(set(before)) == 3


def test_other_bytes_of_the_same_size_and_time_are_noticed(sources):
    path = sources[0].path
    before, changed = file_hash(path), path.stat().st_mtime_ns
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(changed, changed))
    assert file_hash(path) != before


def test_a_shard_is_read_once_and_its_members_are_told_apart(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name in ("1.png", "2.png"):
            shard.addfile(tarfile.TarInfo(name), io.BytesIO())
    first, second = hashes_of([ImageSource(tmp_path / "0.tar", name) for name in ("1.png", "2.png")])
    assert first != second and first.partition(":")[0] == second.partition(":")[0] == file_hash(tmp_path / "0.tar")


def test_many_hashes_are_kept_and_only_changed_files_are_read_again(tmp_path, sources, monkeypatch):
    monkeypatch.setattr(ldm.contents, "MANY", 2)
    cache, read, real = tmp_path / "run" / "hashes.json", [], ldm.contents._hash.__wrapped__
    monkeypatch.setattr(ldm.contents, "_hash", lambda path, *state: read.append(path) or real(path, *state))
    before = hashes_of(sources, cache)
    assert hashes_of(sources, cache) == before and len(read) == 3
    sources[1].path.write_bytes(b"other")
    after = hashes_of(sources, cache)
    assert len(read) == 4 and [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    cache.write_text(json.dumps([1]))
    assert hashes_of(sources, cache) == after


def test_a_file_that_cannot_be_read_has_a_hash_of_its_own_and_is_left_to_its_reader(tmp_path, sources):
    sources[0].path.unlink()
    assert hashes_of(sources)[0] == "unreadable" and digest(hashes_of(sources)) != digest(hashes_of(sources[1:]))
