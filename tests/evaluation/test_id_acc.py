"""ID-ACC and its neighbours on cases whose answer is plain (paper section 4.1, Table 1)."""

import numpy as np
import pytest

from ldm.evaluation.id_acc import bootstrap_interval, id_acc, identity_scores, image_scores, load_gallery
from ldm.util import UserError

ADA, BEN, CLEO = (np.eye(512, dtype=np.float32)[i] for i in range(3))
GALLERY = {"Ada": ADA, "Ben": BEN, "Cleo": CLEO}


def leaning(towards: np.ndarray, cosine: float) -> np.ndarray:
    """A unit embedding whose cosine with `towards` is given, and 0 with everybody else in the gallery."""
    return cosine * towards + np.sqrt(1 - cosine**2) * np.eye(512, dtype=np.float32)[9]


def scores(*seen: tuple[str, np.ndarray | None]) -> list[dict]:
    names, found = zip(*seen, strict=True)
    faces = np.stack([np.full(512, np.nan, np.float32) if face is None else face for face in found])
    return image_scores(faces, names, [f"{i}.png" for i in range(len(names))], GALLERY)


def test_mean_and_max_are_taken_per_person_then_over_people():
    rows = scores(("Ada", leaning(ADA, 0.2)), ("Ada", leaning(ADA, 0.6)), ("Ben", leaning(BEN, 0.8)))
    numbers = id_acc(rows, threshold=0.5)
    assert numbers["id_acc_mean"] == pytest.approx((0.4 + 0.8) / 2)  # not (0.2 + 0.6 + 0.8) / 3
    assert numbers["id_acc_max"] == pytest.approx((0.6 + 0.8) / 2)
    assert numbers["tar"] == pytest.approx(2 / 3)
    assert (numbers["n_identities"], numbers["n_images"], numbers["n_without_face"]) == (2, 3, 0)


def test_an_image_without_a_face_lowers_the_detection_rate_and_nothing_else():
    seen = [("Ada", leaning(ADA, 0.4)), ("Ben", leaning(BEN, 0.8))]
    full, with_blank = (id_acc(scores(*more), threshold=0.5) for more in (seen, [*seen, ("Ada", None), ("Ben", None)]))
    assert (full["detection_rate"], with_blank["detection_rate"]) == (1.0, 0.5)
    assert all(full[key] == with_blank[key] for key in ("id_acc_mean", "id_acc_max", "rank1", "tar", "n_identities"))


def test_a_person_without_any_face_is_reported_and_left_out_of_the_mean():
    numbers = id_acc(scores(("Ada", leaning(ADA, 0.4)), ("Ben", None)), threshold=0.5)
    assert numbers["id_acc_mean"] == pytest.approx(0.4)
    assert (numbers["n_identities"], numbers["n_without_face"]) == (2, 1)


def test_no_face_at_all_gives_no_number_instead_of_a_good_one():
    numbers = id_acc(scores(("Ada", None), ("Ben", None)), threshold=0.5)
    assert numbers["detection_rate"] == 0.0 and numbers["n_without_face"] == 2
    unknown = ("id_acc_mean", "id_acc_max", "id_acc_low", "id_acc_high", "rank1", "tar")
    assert all(numbers[key] is None for key in unknown)


def test_rank_1_asks_the_whole_gallery():
    rows = scores(("Ada", leaning(ADA, 0.9)), ("Ada", leaning(CLEO, 0.9)))  # nobody asked for Cleo
    assert [row["nearest"] for row in rows] == ["Ada", "Cleo"]
    assert id_acc(rows, threshold=0.5)["rank1"] == 0.5


def test_a_copy_of_the_reference_scores_one_and_noise_scores_near_zero():
    noise = np.random.default_rng(0).standard_normal((50, 512)).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    copy = id_acc(scores(("Ada", ADA), ("Ben", BEN)), threshold=0.5)
    other = id_acc(scores(*(("Ada", vector) for vector in noise)), threshold=0.5)
    assert copy["id_acc_mean"] == pytest.approx(1.0) and copy["rank1"] == copy["tar"] == 1.0
    assert abs(other["id_acc_mean"]) < 0.05 and other["tar"] == 0.0


def test_the_gallery_is_keyed_by_name_never_by_order():
    swapped = dict(reversed(GALLERY.items()))
    seen = np.stack([leaning(BEN, 0.7), leaning(ADA, 0.3)]), ["Ben", "Ada"], ["0.png", "0.png"]
    assert image_scores(*seen, GALLERY) == image_scores(*seen, swapped)


def test_each_person_has_one_row_with_both_counts():
    assert identity_scores(scores(("Ben", None), ("Ada", ADA), ("Ben", BEN))) == [
        {"name": "Ben", "mean": 1.0, "max": 1.0, "n_faces": 1, "n_images": 2},
        {"name": "Ada", "mean": 1.0, "max": 1.0, "n_faces": 1, "n_images": 1}]


def test_bootstrap_interval_is_seeded_and_has_the_width_of_the_standard_error():
    values = [0.0, 1.0] * 50  # mean 0.5, standard error 0.05
    low, high = bootstrap_interval(values, seed=3)
    assert (low, high) == bootstrap_interval(values, seed=3)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_bootstrap_interval_of_equal_values_is_that_value():
    assert bootstrap_interval([0.25] * 7, seed=0) == (0.25, 0.25)


def test_gallery_vectors_are_scaled_to_unit_length(tmp_path):
    np.savez(tmp_path / "gallery.npz", **{"Ada": 3 * ADA, "Zoë / Ann": BEN})
    gallery = load_gallery(tmp_path / "gallery.npz", names=["Zoë / Ann"])
    assert np.array_equal(gallery["Ada"], ADA) and np.array_equal(gallery["Zoë / Ann"], BEN)
    assert gallery["Ada"].dtype == np.float32


@pytest.mark.parametrize(("content", "says"), [
    ({"Ben": BEN}, "'Ada'"), ({"Ada": np.zeros(512)}, "length 0"), ({"Ada": np.eye(2)}, r"\(2, 2\)"),
    ({"Ada": ADA, "Ben": np.ones(4)}, r"\[4, 512\]"), ({"Ada": np.array([object()])}, "not a gallery"),
    ({"Ada": np.full(512, np.nan)}, "nan")])
def test_a_gallery_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, says):
    np.savez(tmp_path / "gallery.npz", **content)
    with pytest.raises(UserError, match=says):
        load_gallery(tmp_path / "gallery.npz", names=["Ada"])


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no zip", b"PK\x05\x06" + bytes(18), b"plain text"])
def test_a_gallery_that_is_missing_or_no_npz_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "gallery.npz").write_bytes(content)
    with pytest.raises(UserError, match="gallery"):
        load_gallery(tmp_path / "gallery.npz")
