"""ImageWriter: in order, whole, beside the main thread, and never silent about a file that could not be written."""

import errno
import time

import numpy as np
import pytest

import ldm.images
from ldm.images import WAITING, ImageWriter, write_image

IMAGES = list(np.random.default_rng(0).integers(0, 256, (WAITING + 20, 8, 6, 3), np.uint8))


def test_all_images_are_written_in_order_with_the_bytes_of_write_image(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: written.append(path) or write_image(path, image))
    with ImageWriter() as writer:
        for number, image in enumerate(IMAGES):
            writer.write(tmp_path / f"{number}.png", image)
    assert [path.stem for path in written] == [str(number) for number in range(len(IMAGES))]
    write_image(tmp_path / "own.png", IMAGES[7])
    assert (tmp_path / "7.png").read_bytes() == (tmp_path / "own.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == len(IMAGES) + 1


def test_no_more_than_a_few_images_wait(monkeypatch):
    given, written, most = 0, [], 0
    monkeypatch.setattr(ldm.images, "write_image", lambda path, image: time.sleep(1e-3) or written.append(path))
    with ImageWriter() as writer:
        for image in IMAGES:
            given += 1
            writer.write("any.png", image)
            most = max(most, given - len(written))
    assert most <= WAITING + 1 and len(written) == len(IMAGES)


@pytest.mark.parametrize("count", [3, WAITING + 20])
def test_a_full_disk_is_the_main_threads_error_and_the_other_images_are_whole(tmp_path, monkeypatch, count):
    def full(path, image):
        if path.stem == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_image(path, image)

    monkeypatch.setattr(ldm.images, "write_image", full)
    with pytest.raises(OSError, match="No space left"), ImageWriter() as writer:
        for number, image in enumerate(IMAGES[:count]):
            writer.write(tmp_path / f"{number}.png", image)
    assert (tmp_path / "0.png").exists() and not (tmp_path / "1.png").exists()


def test_an_interrupt_leaves_every_image_that_was_given_and_stays_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), ImageWriter() as writer:
        for number, image in enumerate(IMAGES[:9]):
            writer.write(tmp_path / f"{number}.png", image)
        raise KeyboardInterrupt
    assert len(list(tmp_path.glob("?.png"))) == 9
