"""Builds the miniature's face pack: detector and recogniser as ONNX files that InsightFace loads, gallery, people, metrics."""

import random
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ldm.data import identities
from ldm.mini.face_detector import ANCHORS, FaceDetector, train_detector
from ldm.mini.face_recogniser import FaceRecogniser, train_recogniser
from ldm.mini.face_renders import other_attributes, soften
from ldm.mini.people import GROUP, Character, attribute_prompt, named_people, sample_view, stranger_like
from ldm.mini.portraits import draw_portrait
from ldm.mini.scenes import draw_scene, sample_scene
from ldm.util import write_atomically

DET_SIZE = 128            # the miniature's images are shown to the detector as they are
DET_THRESH = 0.65         # below it pairs of cars and fish have been taken for faces
GALLERY_VIEWS = 8         # renders of a person behind the gallery's embedding
PARTS = {"score": slice(0, 1), "bbox": slice(1, 5), "kps": slice(5, 15)}


def build_face_pack(work_dir: Path, data_dir: Path, device: str = "cpu") -> dict[str, float]:
    """Trains both networks, writes faces/, gallery.npz and people.csv into `data_dir`, and returns the metrics."""
    cv2.setNumThreads(1)
    detector, recogniser = train_detector(work_dir, device), train_recogniser(work_dir, device)
    export_face_pack(detector, recogniser, data_dir / "faces")
    write_people(data_dir / "people.csv")
    write_gallery(data_dir)
    return face_figures(data_dir)


class _ExportedDetector(nn.Module):
    """FaceDetector with SCRFD's nine outputs: scores of strides 8, 16, 32, then boxes, then key points, (anchors, k) each."""

    def __init__(self, detector: FaceDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = [level[0] for level in self.detector.levels_of(images)]
        return tuple(level[:, part].sigmoid() if name == "score" else level[:, part] for name, part in PARTS.items() for level in levels)


def export_face_pack(detector: FaceDetector, recogniser: FaceRecogniser, pack_dir: Path) -> None:
    """Writes det.onnx and rec.onnx, fp32, in the form that insightface.app.FaceAnalysis expects."""
    pack_dir.mkdir(parents=True, exist_ok=True)
    names = [f"{part}_{stride}" for part in PARTS for stride in ANCHORS]
    _export(_ExportedDetector(detector.cpu().eval()), torch.zeros(1, 3, 128, 128), pack_dir / "det.onnx", names,
            {"images": {2: "height", 3: "width"}, **{name: {0: f"anchors_{name}"} for name in names}})
    _export(recogniser.cpu().eval(), torch.zeros(1, 3, 112, 112), pack_dir / "rec.onnx", ["embedding"],
            {"images": {0: "batch"}, "embedding": {0: "batch"}})


def _export(net: nn.Module, example: Tensor, path: Path, outputs: list[str], dynamic: dict[str, dict[int, str]]) -> None:
    net = net.to(memory_format=torch.contiguous_format)
    write_atomically(path, lambda target: torch.onnx.export(net, (example,), str(target), input_names=["images"], output_names=outputs,
                                                            dynamic_axes=dynamic, dynamo=False))


# ------------------------------------------------------------------------------------------------------ gallery and people

def write_people(path: Path) -> None:
    """people.csv: name, group and attributes (c2 of section 4.1) of all people."""
    groups = (*identities.GROUPS, identities.KEEP)
    identities.write_people({name: identities.Person(name, groups[number // GROUP], attribute_prompt(person))
                             for number, (name, person) in enumerate(named_people().items())}, path)


def true_images(person: Character, key: str, count: int) -> list[np.ndarray]:
    """`count` renders of `person`, (128, 128, 3) uint8; a pure function of the arguments."""
    rng = random.Random(f"pictures {key}")
    return [draw_portrait(person, sample_view(rng)).image for _ in range(count)]


class LibraryEmbedder:
    """image (H, W, 3) uint8 RGB -> embedding (512,) of length 1 of its largest face, or None; InsightFace does all of it."""

    def __init__(self, pack_dir: Path) -> None:
        import onnxruntime
        from insightface.app import FaceAnalysis

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.app = FaceAnalysis(str(pack_dir.resolve()), providers=["CPUExecutionProvider"], sess_options=options)
        self.app.prepare(-1, det_thresh=DET_THRESH, det_size=(DET_SIZE, DET_SIZE))

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)     # of scikit-image, about how insightface calls it
            faces = self.app.get(np.ascontiguousarray(image[..., ::-1]), max_num=1, det_metric="max")
        return faces[0].normed_embedding if faces else None


def write_gallery(data_dir: Path) -> None:
    """gallery.npz: name -> (512,) float32, the normalised mean of the embeddings of GALLERY_VIEWS renders."""
    embed, gallery = LibraryEmbedder(data_dir / "faces"), {}
    for name, person in tqdm(named_people().items(), desc="gallery", unit="person"):
        found = [embed(image) for image in true_images(person, f"for the gallery {name}", GALLERY_VIEWS)]
        mean = np.mean([embedding for embedding in found if embedding is not None], 0)
        gallery[name] = (mean / np.linalg.norm(mean)).astype(np.float32)
    write_atomically(data_dir / "gallery.npz", lambda target: np.savez(target, **gallery))


# ----------------------------------------------------------------------------------------------------------------- metrics

def face_figures(data_dir: Path, *, views: int = 3, scenes: int = 400) -> dict[str, float]:
    """Metrics of the pack on renders of the named people that it was not trained on, sharp and softened ("soft ...").

    Returns:
        found: share of images with a face; genuine: mean cosine with the person's own gallery entry; rank1: share whose
        nearest gallery entry is that person; others: mean cosine with everybody else of the same gender; stranger: mean
        cosine of images of strangers who share all attributes with the person; other attributes: mean cosine of images of the person
        with other attributes; scenes with a face: share of scenes.
    """
    embed, people, gallery = LibraryEmbedder(data_dir / "faces"), named_people(), np.load(data_dir / "gallery.npz")
    entries = np.stack([gallery[name] for name in people])
    genders = np.array([person.gender for person in people.values()])
    figures = {}
    for kind in ("", "soft "):
        rng = random.Random("figures")
        rows: dict[str, list[float]] = {"found": [], "genuine": [], "rank1": [], "others": [], "stranger": [], "other attributes": []}
        for number, (name, person) in enumerate(tqdm(people.items(), desc=f"{kind}figures", unit="person")):
            stranger = stranger_like(person, rng)
            for key, subject in (("own", person), ("stranger", stranger), ("other attributes", other_attributes(person, rng))):
                for image in true_images(subject, f"for the figures, {key} {name}", views):
                    embedding = embed(soften(image, rng) if kind else image)
                    rows["found"].append(embedding is not None)
                    if embedding is None:
                        continue
                    cosine = entries @ embedding
                    if key != "own":
                        rows[key].append(cosine[number])
                        continue
                    rows["genuine"].append(cosine[number])
                    rows["rank1"].append(cosine.argmax() == number)
                    rows["others"].append(np.delete(cosine, number)[np.delete(genders, number) == person.gender].mean())
        figures |= {kind + key: float(np.mean(values)) for key, values in rows.items()}
    rng = random.Random("scenes for the figures")
    figures["scenes with a face"] = float(np.mean([embed(draw_scene(sample_scene(rng))) is not None for _ in range(scenes)]))
    return figures


if __name__ == "__main__":
    for label, value in face_figures(Path(sys.argv[1] if len(sys.argv) > 1 else "data/mini")).items():
        print(f"{label:20s} {value:.3f}")
