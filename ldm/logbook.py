"""What a training run writes while it runs: log.csv, TensorBoard, pictures, the state to go on from, and in the end its cost.

log.csv holds no clock, and the state holds its length: a run that was killed and goes on writes the same bytes.
"""

import json
import os
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ldm.run_folder import write_json
from ldm.util import UserError, write_atomically

SECONDS_BETWEEN_STATES = 20.0
SHARE_OF_TIME = 0.05  # that writing states may take, where they are large
CONTENT = {"images": "the training images had other bytes or another order",
           "texts": "names, attributes, captions or templates had other words"}  # of arguments that are hashes


class Trained(Protocol):
    """What a run trains: a prefix, or some weights."""

    def state_dict(self) -> dict[str, Any]: ...


class Logbook:
    """Files under `out_dir`: log.csv, tensorboard/, pictures/, state.pt, cost.json.

    Args:
        arguments: what the trained tensors depend on, "iterations" among it.
        resume: go on from state.pt if there is one; False starts anew.

    Raises:
        UserError: state.pt is damaged, or of a run with other arguments; only more iterations may be asked for.
    """

    def __init__(self, out_dir: str | Path, arguments: Mapping[str, Any], *, resume: bool = True):
        self.out_dir, self.arguments = Path(out_dir), dict(arguments)
        self.state = _read_state(self.out_dir / "state.pt") if resume else None
        self.first_step = self.state["step"] if self.state else 0
        self.steps_ahead = self.state["steps_ahead"] if self.state else None  # as the run was started, whatever memory is free now
        if self.state:
            _refuse_others(self.out_dir, self.state, self.arguments)
        self._saved_at = self._began = time.monotonic()
        self._pause = SECONDS_BETWEEN_STATES
        spent = self.out_dir / "spent.json"  # before there is a state, or since
        noted = json.loads(spent.read_text(encoding="utf-8")) if resume and spent.exists() else {"seconds": 0.0, "peak_memory_bytes": 0}
        self._spent = max(noted, self.state["cost"] if self.state else noted, key=lambda cost: cost["seconds"])
        self._log = self._tensorboard = None

    @property
    def label(self) -> str:
        """Of the progress bar."""
        return f"training, gone on from step {self.first_step}" if self.first_step else "training"

    def open(self) -> None:
        """Prepares the files for writing: what was logged after the state is cut off."""
        from torch.utils.tensorboard import SummaryWriter

        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._log = os.fdopen(os.open(self.out_dir / "log.csv", os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._log.truncate(self.state["log_bytes"] if self.state else 0)
        self._log.seek(0, os.SEEK_END)
        self._tensorboard = SummaryWriter(self.out_dir / "tensorboard", purge_step=self.first_step + 1)

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """One line of log.csv, and the same numbers in TensorBoard."""
        if self._log.tell() == 0:
            self._log.write((",".join(["step", *values]) + "\n").encode())
        self._log.write((",".join([str(step), *(f"{value:.6g}" for value in values.values())]) + "\n").encode())
        self._log.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        """pictures/step-000500.png, and the same in TensorBoard."""
        write_atomically(self.out_dir / "pictures" / f"step-{step:06d}.png", picture.save)
        self._tensorboard.add_image("with and without the prefix", np.asarray(picture), step, dataformats="HWC")

    def state_is_due(self) -> bool:
        """Whether so much time has passed since the last state that a kill would hurt."""
        return time.monotonic() - self._saved_at > self._pause

    def save_state(self, step: int, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """state.pt, as a whole or not at all."""
        began = time.monotonic()
        state = {"step": step, "trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "log_bytes": self._log.tell(),
                 "steps_ahead": self.steps_ahead, "arguments": json.dumps(self.arguments), "cost": self.cost()}
        write_atomically(self.out_dir / "state.pt", lambda path: torch.save(state, path))
        self._saved_at = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_STATES, (self._saved_at - began) / SHARE_OF_TIME)

    def let_go(self) -> None:
        """The tensors of the state that the run has gone on from, which may be large."""
        self.state |= {"trained": None, "optimizer": None}

    def note_cost(self) -> None:
        """spent.json: what the run has cost so far, for work that is kept before there is a state."""
        write_json(self.out_dir / "spent.json", self.cost())

    def cost(self) -> dict[str, float]:
        """Seconds since the run was started, without pauses between its parts, and the most memory that this process took, in bytes.

        Memory is the GPU's where there is one, else the process's.
        """
        return {"seconds": self._spent["seconds"] + time.monotonic() - self._began,
                "peak_memory_bytes": max(self._spent["peak_memory_bytes"], peak_memory())}

    def write_cost(self, result: Path) -> None:
        """cost.json: what the run has cost, and the file that came out of it; a finished run that is started again adds nothing."""
        if not self.state or self.first_step < self.arguments["iterations"] or not (self.out_dir / "cost.json").exists():
            write_json(self.out_dir / "cost.json", self.cost() | {"result": str(result), "result_bytes": result.stat().st_size})

    def close(self) -> None:
        self._log.close()
        self._tensorboard.close()


def peak_memory() -> int:
    """The most bytes that this process has taken at once: on the GPU where it used one, else of the computer's memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows counts in another way
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _read_state(path: Path) -> dict | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("step", "trained", "optimizer", "log_bytes", "steps_ahead", "arguments", "cost")}
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"the training state {path} is damaged or of an older version; start anew with --no-resume") from error


def _refuse_others(out_dir: Path, state: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    there, asked = json.loads(state["arguments"]), json.loads(json.dumps(asked))
    may_grow = () if there.get("lr_decay") else ("iterations",)  # a learning rate that falls has its end in view from the start
    different = [key for key in dict.fromkeys([*there, *asked]) if there.get(key) != asked.get(key) and key not in may_grow]
    if different:
        changes = ", ".join(CONTENT.get(key) or f"{key} {there.get(key)!r} instead of {asked.get(key)!r}" for key in different)
        raise UserError(f"the run in {out_dir} was started with other arguments or inputs ({changes}); use another --out_dir, or "
                        "--no-resume to start it anew")
    if state["step"] > asked["iterations"]:
        raise UserError(f"the run in {out_dir} has made {state['step']} steps where --iterations {asked['iterations']} asks "
                        "for fewer; use its saved prefix, or --no-resume to start it anew")
