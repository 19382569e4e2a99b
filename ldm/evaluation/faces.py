"""Face detection and recognition with the InsightFace library and a local model pack (paper section 4.1, ID-ACC)."""

import contextlib
import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from ldm.containers import ONNX, kind_of
from ldm.finite import FETCH_AGAIN, check_finite
from ldm.util import UserError

if TYPE_CHECKING:
    from insightface.app import FaceAnalysis

THREADS = 2   # of ONNX Runtime, whose default uses every core and busy-waits
EXPECTED = ("put the .onnx files of an InsightFace pack (a detector with key points and an ArcFace recognizer, as in buffalo_l.zip) "
            "directly into that folder, or give another --face_pack")


@dataclass(frozen=True)
class Face:
    """The largest face of an image."""

    embedding: np.ndarray    # (512,) float32, length 1
    box: np.ndarray          # (4,) pixels: left, top, right, bottom
    landmarks: np.ndarray    # (5, 2) pixels: left eye, right eye, nose, left and right mouth corner, as seen by the viewer
    n_faces: int             # in the image, see FaceAnalyzer.count


class FaceAnalyzer:
    """Detects the largest face of an image and computes its embedding.

    Raises UserError if `pack_dir` does not exist, is empty, or its models cannot be used; nothing is downloaded.

    Args:
        pack_dir: folder with the .onnx files of an InsightFace pack: the miniature's, `buffalo_l` or `antelopev2`.
        det_sizes: detector input sizes in pixels, tried in order until a face is found: detectors miss close-ups that fill a large
            input.
        det_thresh: minimum detector score of a face.
        device: "cpu", "cuda" or "cuda:N".
    """

    def __init__(self, pack_dir: str | Path, det_sizes: int | Sequence[int] = (640, 256, 128), det_thresh: float = 0.5,
                 device: str = "cpu") -> None:
        self._files = sorted(Path(pack_dir).glob("*.onnx"))
        if not self._files:
            given = "holds no .onnx file" if Path(pack_dir).is_dir() else "does not exist"
            raise UserError(f"the face pack {pack_dir} {given}; {EXPECTED}")
        for path in self._files:
            if (kind := kind_of(path)) not in (ONNX, None):
                raise UserError(f"{path} of the face pack is {kind} instead of an ONNX model; {EXPECTED}")
        self._app = _load(Path(pack_dir), device)
        self._app.prepare(-1 if device == "cpu" else 0, det_thresh=det_thresh, det_size=(640, 640))
        self.det_thresh = det_thresh
        self.det_sizes = (det_sizes,) if isinstance(det_sizes, int) else tuple(det_sizes)

    def analyze(self, image: np.ndarray) -> Face | None:
        """The largest face of `image`, (H, W, 3) uint8 RGB, or None if the detector finds none at any size."""
        from insightface.app.common import Face as Found

        bgr = np.ascontiguousarray(image[..., ::-1])
        boxes, landmarks = self._detect(bgr)
        if not len(boxes):
            return None
        largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
        found = Found(bbox=boxes[largest, :4], kps=landmarks[largest], det_score=boxes[largest, 4])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)     # of scikit-image, about how insightface calls it
            self._app.models["recognition"].get(bgr, found)
        return Face(found.normed_embedding.astype(np.float32), found.bbox, found.kps, _count(boxes))

    def count(self, image: np.ndarray) -> int:
        """Number of faces in `image`, (H, W, 3) uint8 RGB, at the first detector size that finds any.

        A box whose center lies in a larger box is counted as the same face, because small detectors also fire on parts of a face.
        """
        return _count(self._detect(np.ascontiguousarray(image[..., ::-1]))[0])

    def fingerprint(self) -> str:
        """Text that identifies the settings of the analysis: shortened SHA-256 of the models, detector sizes and threshold."""
        models = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in self._files)
        return f"{hashlib.sha256(models).hexdigest()[:16]} at {', '.join(map(str, self.det_sizes))} from {self.det_thresh:g}"

    def _detect(self, bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes with scores (N, 5) and landmarks (N, 5, 2); N = 0 if no size finds a face."""
        for size in self.det_sizes:
            if min(bgr.shape[:2]) * size > max(bgr.shape[:2]):  # else the shorter side would shrink to nothing
                boxes, landmarks = self._app.det_model.detect(bgr, input_size=(size, size))
                if len(boxes):
                    return boxes, landmarks
        return np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32)


def aligned_crop(image: np.ndarray, landmarks: np.ndarray, size: int = 224, margin: float = 0.25) -> np.ndarray:
    """Aligned face crop (size, size, 3) of an image (H, W, 3) for attribute features; dtype as `image`.

    `margin` is added on each side of ArcFace's crop, relative to its width; 0.25 includes hair and chin.
    """
    from insightface.utils.face_align import estimate_norm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        matrix = estimate_norm(landmarks.astype(np.float32))           # to 112 pixels, (2, 3)
    matrix[:, 2] += 112 * margin
    return cv2.warpAffine(image, matrix * (size / (112 * (1 + 2 * margin))), (size, size))


def _count(boxes: np.ndarray) -> int:
    """Number of different faces among the boxes with scores (N, 5)."""
    corners = boxes[:, :4].reshape(-1, 2, 2)  # (N, corner, axis)
    corners = corners[np.argsort(-np.prod(corners[:, 1] - corners[:, 0], axis=1))]  # the largest first
    centers = corners.mean(axis=1)
    inside = ((centers[:, None] > corners[:, 0]) & (centers[:, None] < corners[:, 1])).all(axis=2)  # (center, box)
    return int((~np.tril(inside, -1).any(axis=1)).sum())


def _load(pack_dir: Path, device: str) -> "FaceAnalysis":
    """insightface.app.FaceAnalysis for a local folder, with its output suppressed."""
    import onnx
    import onnxruntime

    kind, _, number = device.partition(":")
    wanted = {} if kind == "cpu" else {"CUDAExecutionProvider": {"device_id": number or "0"}}
    wanted["CPUExecutionProvider"] = {}
    options, available = onnxruntime.SessionOptions(), onnxruntime.get_available_providers()
    options.intra_op_num_threads = THREADS
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from insightface.app import FaceAnalysis

        try:
            app = FaceAnalysis(str(pack_dir.resolve()), allowed_modules=["detection", "recognition"], sess_options=options,
                               providers=[(name, set_to) for name, set_to in wanted.items() if name in available])
        except Exception as error:      # ONNX Runtime's exceptions share no other base class
            raise UserError(f"the face pack {pack_dir} cannot be loaded ({str(error) or 'it has no face detector'}); {EXPECTED}") from error
    if "recognition" not in app.models:
        raise UserError(f"the face pack {pack_dir} has no face recognizer; {EXPECTED}")
    for model in app.models.values():
        weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(model.model_file).graph.initializer}
        check_finite({name: torch.tensor(array) for name, array in weights.items() if array.dtype.kind == "f"}, model.model_file,
                     FETCH_AGAIN)
    return app
