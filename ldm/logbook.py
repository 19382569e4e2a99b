"""Output of a training run: log.csv, other loggers, images, the state from which it can be resumed, and its cost.

log.csv contains no times, and the state contains the length of log.csv, so a resumed run writes the same bytes.
Lightning's CSVLogger deletes the file of an earlier part, so log.csv is written here and the other loggers are Lightning's.
"""

import json
import os
import pickle
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image

from ldm.run_folder import changes_of, write_json
from ldm.util import UserError, write_atomically

SECONDS_BETWEEN_STATES = 20.0
SHARE_OF_TIME = 0.05  # largest share of the time that writing states may take
CONTENT = {"images": "the training images had other bytes or another order",
           "texts": "names, attributes, captions or templates had other words"}  # of arguments that are hashes


class Trained(Protocol):
    """The trained object of a run: a prefix, a context map or weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Logbook:
    """Files under `out_dir`: log.csv, tensorboard/, pictures/, state.pt, cost.json.

    `log_to` lists where metrics and images go, see `args.train_args.LOGGERS`; state.pt does not depend on it.
    `arguments` are everything that determines the trained tensors, including "iterations". With `resume`, a run continues from state.pt if
    it exists; UserError if that is damaged, or belongs to a run with other arguments; only "iterations" may be larger.
    """

    _log: BinaryIO          # from `open` on
    _loggers: dict[str, Any]
    _sent: dict[str, int]   # last step that each continued run already has

    def __init__(self, out_dir: str | Path, arguments: Mapping[str, Any], *, resume: bool = True,
                 log_to: Collection[str] = ("tensorboard", "csv")):
        self.out_dir, self.arguments, self.log_to = Path(out_dir), dict(arguments), log_to
        self.state = _read_state(self.out_dir / "state.pt") if resume and (self.out_dir / "state.pt").exists() else None
        self.first_step = self.state["step"] if self.state else 0
        self.steps_ahead = self.state["steps_ahead"] if self.state else None  # as at the start of the run
        if self.state:
            _refuse_others(self.out_dir, self.state, self.arguments)
        self._saved_at = self._began = time.monotonic()
        self._pause = SECONDS_BETWEEN_STATES
        spent = self.out_dir / "spent.json"  # cost before the first state, or since the last
        noted = json.loads(spent.read_text(encoding="utf-8")) if resume and spent.exists() else {"seconds": 0.0, "peak_memory_bytes": 0}
        self._spent = max(noted, self.state["cost"] if self.state else noted, key=lambda cost: cost["seconds"])

    @property
    def label(self) -> str:
        """Label of the progress bar."""
        return f"training, resumed at step {self.first_step}" if self.first_step else "training"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Start the loggers unless the run is finished, open log.csv, and remove its rows that are newer than the state.

        On leaving, the loggers' runs end, as failed ones after an error. Raises UserError if a logger cannot start its run, for example
        without a login.
        """
        self.out_dir.mkdir(parents=True, exist_ok=True)
        unfinished = self.first_step < self.arguments["iterations"]
        noted = self.out_dir / "runs.json"
        runs = json.loads(noted.read_text(encoding="utf-8")) if self.state and noted.exists() else {}
        with ExitStack() as opened:
            self._log = opened.enter_context(os.fdopen(os.open(self.out_dir / "log.csv", os.O_RDWR | os.O_CREAT, 0o666), "r+b"))
            self._sent = dict.fromkeys(runs, _last_step(self._log))
            self._loggers = {name: self._start(name, runs, opened) for name in self.log_to if name != "csv" and unfinished}
            if runs:
                write_json(noted, runs)
            self._log.truncate(self.state["log_bytes"] if self.state else 0)
            self._log.seek(0, os.SEEK_END)
            yield

    def _start(self, name: str, runs: dict[str, str], opened: ExitStack) -> Any:
        """Lightning's logger, with the run whose id is in `runs` if the training is resumed, else with a new one, whose id is added.

        The run ends with `opened`.
        """
        if name == "tensorboard":
            from lightning_fabric.loggers import TensorBoardLogger

            logger = TensorBoardLogger(self.out_dir, "tensorboard", version="", purge_step=self.first_step + 1)
            opened.push(partial(_end, logger))
            return logger
        from pytorch_lightning import loggers  # imports torchmetrics, which takes seconds

        folder = self.out_dir.absolute()
        try:
            if name == "wandb":
                logger = loggers.WandbLogger(folder.name, folder, runs.get(name), project=os.environ.get("WANDB_PROJECT", "apl"))
                run = logger.experiment.id
                opened.push(partial(_end_wandb, logger))
            else:
                server = os.environ.get("MLFLOW_TRACKING_URI")
                logger = loggers.MLFlowLogger(os.environ.get("MLFLOW_EXPERIMENT_NAME", "apl"), folder.name,
                                              server or f"sqlite:///{folder}/mlflow.db", run_id=runs.get(name),
                                              artifact_location=None if server else (folder / "mlflow").as_uri())
                run = logger.run_id
                logger.experiment.update_run(run, "RUNNING")  # a resumed one has ended before
                opened.push(partial(_end, logger))
            if name not in runs:  # MLflow refuses other values, such as more iterations
                logger.log_hyperparams(self.arguments)
            runs[name] = run
        except Exception as error:  # of each package's own kind
            raise UserError(f"--log_to {name} cannot start a run ({error}); correct its settings, or leave it out") from error
        return logger

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of log.csv, and the same numbers to the other loggers."""
        if "csv" in self.log_to:
            if self._log.tell() == 0:
                self._log.write((",".join(["step", *values]) + "\n").encode())
            self._log.write((",".join([str(step), *(f"{value:.6g}" for value in values.values())]) + "\n").encode())
            self._log.flush()
        for name, logger in self._loggers.items():
            if step > self._sent.get(name, 0):
                logger.log_metrics(dict(values), step)

    def image(self, step: int, image: Image.Image) -> None:
        """Write an image to pictures/step-000500.png and to the loggers."""
        path, title = self.out_dir / "pictures" / f"step-{step:06d}.png", "with and without the prefix"
        write_atomically(path, image.save)
        for name, logger in self._loggers.items():
            if name == "tensorboard":
                logger.experiment.add_image(title, np.asarray(image), step, dataformats="HWC")
            elif name == "wandb":
                logger.log_image(title, [image], step)
            else:
                logger.experiment.log_artifact(logger.run_id, path, "pictures")

    def state_is_due(self) -> bool:
        """Whether enough time has passed since the last state."""
        return time.monotonic() - self._saved_at > self._pause

    def save_state(self, step: int, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Write state.pt atomically."""
        began = time.monotonic()
        state = {"step": step, "trained": trained.state_dict(), "optimizer": optimizer.state_dict(), "log_bytes": self._log.tell(),
                 "steps_ahead": self.steps_ahead, "arguments": json.dumps(self.arguments), "cost": self.cost()}
        write_atomically(self.out_dir / "state.pt", lambda path: torch.save(state, path))
        self._saved_at = time.monotonic()
        self._pause = max(SECONDS_BETWEEN_STATES, (self._saved_at - began) / SHARE_OF_TIME)

    def restore(self, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Load the tensors of the state from which the run is resumed, if there is one, and free them.

        Raises:
            UserError: the state holds other tensors, as after a change of this program.
        """
        if self.state is None:
            return
        there, wanted = ({key: tuple(value.shape) for key, value in tensors.items()}
                         for tensors in (self.state["trained"], trained.state_dict()))
        if there != wanted:
            got, expected = (", ".join(f"{key} {shape}" for key, shape in sorted(own.items() - other.items())[:3]) or "fewer tensors"
                             for own, other in ((there, wanted), (wanted, there)))
            raise UserError(f"the training state {self.out_dir / 'state.pt'} holds {got} where this training has {expected}: an older "
                            "version or another configuration wrote it; use another --out_dir, or --no-resume to start it anew")
        trained.load_state_dict(self.state["trained"])
        optimizer.load_state_dict(self.state["optimizer"])
        self.state |= {"trained": None, "optimizer": None}

    def note_cost(self) -> None:
        """Write the cost of the run so far to spent.json, for work that is kept before there is a state."""
        write_json(self.out_dir / "spent.json", self.cost())

    def cost(self) -> dict[str, float]:
        """Seconds of the run, without the time between its parts, and peak memory in bytes: of the GPU if used, else of the process."""
        return {"seconds": self._spent["seconds"] + time.monotonic() - self._began,
                "peak_memory_bytes": max(self._spent["peak_memory_bytes"], peak_memory())}

    def write_cost(self, result: Path) -> None:
        """Write cost.json: the cost of the run and its result file. Starting a finished run again changes nothing."""
        if not self.state or self.first_step < self.arguments["iterations"] or not (self.out_dir / "cost.json").exists():
            write_json(self.out_dir / "cost.json", self.cost() | {"result": str(result), "result_bytes": result.stat().st_size})


def _end(logger: Any, error: type[BaseException] | None, *_: object) -> None:
    logger.finalize("failed" if error else "success")


def _end_wandb(logger: Any, error: type[BaseException] | None, *_: object) -> None:
    logger.experiment.finish(exit_code=int(error is not None))  # Lightning leaves the run open for more


def peak_memory() -> int:
    """Peak memory of this process in bytes: on the GPU if it uses one, else main memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _last_step(log: BinaryIO) -> int:
    """Step of the last whole row of log.csv, 0 without any."""
    return max((int(step) for row in log.read().split(b"\n")[:-1] if (step := row.partition(b",")[0]).isdigit()), default=0)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: state[key] for key in ("step", "trained", "optimizer", "log_bytes", "steps_ahead", "arguments", "cost")}
    except (RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(f"the training state {path} is damaged or of an older version; start anew with --no-resume") from error


def _refuse_others(out_dir: Path, state: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changes = changes_of(there := json.loads(state["arguments"]), asked)
    if not there.get("lr_decay") and not there.get("attack_rounds"):  # which depend on the last step
        changes.pop("iterations", None)
    if changes:
        reasons = ", ".join(CONTENT.get(key, change) for key, change in changes.items())
        raise UserError(f"the run in {out_dir} was started with other arguments or inputs ({reasons}); use another --out_dir, or "
                        "--no-resume to start it anew")
    if state["step"] > asked["iterations"]:
        raise UserError(f"the run in {out_dir} has made {state['step']} steps where --iterations {asked['iterations']} asks "
                        "for fewer; use its saved prefix, or --no-resume to start it anew")
