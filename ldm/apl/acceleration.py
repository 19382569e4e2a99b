"""Optional accelerations of the same step: compiled blocks, and one CUDA graph for the whole step."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.apl.fast_step import Batch
from ldm.apl.trainer import Step
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import ResBlock
from ldm.util import first_line, warn

SHAPES = 64          # compiled versions per block: a U-Net has up to 13 sizes of it, with and without gradient
WARM_UP = 3          # steps before recording, in which libraries choose their algorithms
SMALL_BATCH = 4      # samples; from 8 on the device takes longer per step than Python


def accelerate(model: LatentDiffusion, *, checkpointing: bool, compile: bool, cuda_graphs: bool, batch_size: int,
               world_size: int) -> Callable[[Step, torch.optim.Optimizer], Step] | None:
    """Prepare the model according to the flags; return RecordedStep if steps are to be recorded, else None.

    Args:
        batch_size: samples per step on this device.
    """
    model.model.diffusion_model.checkpointing = checkpointing
    if compile:
        compile_blocks(model)
    possible = cuda_graphs and graphs_are_possible(model.device, batch_size=batch_size, world_size=world_size)
    return RecordedStep if possible else None


def compile_blocks(model: LatentDiffusion) -> None:
    """Compile residual and transformer blocks one by one, for fixed shapes: minutes, where the whole U-Net would take an hour.

    Without a working compiler, leave the model unchanged and warn in one line.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(2, device=model.device))
    except Exception as error:  # the compiler's tool chain may raise anything
        return warn(f"--compile has no effect, for torch.compile fails here ({first_line(error)})")
    torch._dynamo.config.suppress_errors = True  # blocks that cannot be compiled run eagerly
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for module in model.model.modules():
        if isinstance(module, ResBlock | BasicTransformerBlock):
            module.compile(dynamic=False)


def graphs_are_possible(device: torch.device, *, batch_size: int, world_size: int) -> bool:
    """Whether a step of `batch_size` samples on this device can and should be one CUDA graph; warns in one line if not."""
    if device.type != "cuda":
        reason = "a CUDA graph needs a GPU"
    elif world_size > 1:
        reason = "several devices exchange their gradients outside of it"
    elif batch_size > SMALL_BATCH:
        reason = f"it is for batches of up to {SMALL_BATCH} samples"
    else:
        return True
    warn(f"--cuda_graphs has no effect: {reason}")
    return False


def cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the work of `run` on the device, after a few calls for warm-up; return a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result.clone()

    return replay


class RecordedStep:
    """An optimizer step that is recorded on the first batch and replayed on every batch; all batches have the same shapes.

    If the step cannot be recorded, it runs as it is, and one line of warning says so.

    Args:
        step: must not synchronize host and device.
        optimizer: Adam with capturable=True and a learning rate in a tensor.
        record: returns the replay of a function.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, record: Callable = cuda_graph):
        self.step, self.optimizer, self.record = step, optimizer, record
        self._batch: Batch | None = None

    def __call__(self, batch: Batch) -> Tensor:
        if self._batch is None:
            self._batch = Batch(*(tensor.clone() for tensor in vars(batch).values()))
            self._replay = self._recorded(self._batch)
        for place, tensor in zip(vars(self._batch).values(), vars(batch).values(), strict=True):
            place.copy_(tensor)
        return self._replay()

    def _recorded(self, batch: Batch) -> Callable[[], Tensor]:
        """The replay of a step on `batch`, or the step itself; restores prefix and optimizer after the warm-up of the recording."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        vectors = [parameter.detach().clone() for parameter in parameters]
        states = [copy.deepcopy(self.optimizer.state.get(parameter, {})) for parameter in parameters]

        def step() -> Tensor:
            return self.step(batch)

        try:
            replay = self.record(step)
        except RuntimeError as error:
            replay = step
            warn(f"--cuda_graphs has no effect, for the step cannot be recorded ({first_line(error)})")
        with torch.no_grad():
            for parameter, before, state in zip(parameters, vectors, states, strict=True):
                parameter.copy_(before)
                for name, value in self.optimizer.state[parameter].items():
                    value.copy_(state[name]) if state else value.zero_()
        return replay
