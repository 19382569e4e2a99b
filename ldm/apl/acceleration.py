"""What makes the same step faster on a GPU, each part optional: compiled blocks, and the whole step as one CUDA graph."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.apl.look_ahead import Batch
from ldm.apl.trainer import Step
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.attention import BasicTransformerBlock
from ldm.modules.diffusionmodules.openaimodel import ResBlock
from ldm.util import first_line, warn

SHAPES = 64          # compiled versions of one block: a U-Net has up to 13 sizes of it, with and without gradient
WARM_UP = 3          # steps before a recording, in which libraries choose their algorithms
SMALL_BATCH = 4      # samples; from 8 on the device is busy for longer than Python needs to give it the next work


def accelerate(model: LatentDiffusion, *, checkpointing: bool, compile: bool, cuda_graphs: bool, batch_size: int,
               world_size: int) -> Callable[[Step, torch.optim.Optimizer], Step] | None:
    """Sets the model up as the flags ask; RecordedStep where steps are to be recorded, else None.

    Args:
        batch_size: samples of a step on this device.
    """
    model.model.diffusion_model.checkpointing = checkpointing
    if compile:
        compile_blocks(model)
    possible = cuda_graphs and graphs_are_possible(model.device, batch_size=batch_size, world_size=world_size)
    return RecordedStep if possible else None


def compile_blocks(model: LatentDiffusion) -> None:
    """Compiles residual and transformer blocks one by one, for fixed shapes: minutes where the whole U-Net would take an hour.

    Without a working compiler it leaves the model as it is, with one line of warning.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(2, device=model.device))
    except Exception as error:  # whatever the compiler's tool chain raises
        return warn(f"--compile has no effect, for torch.compile fails here ({first_line(error)})")
    torch._dynamo.config.suppress_errors = True  # a block that cannot be compiled runs as it is
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for module in model.model.modules():
        if isinstance(module, ResBlock | BasicTransformerBlock):
            module.compile(dynamic=False)


def graphs_are_possible(device: torch.device, *, batch_size: int, world_size: int) -> bool:
    """Whether a step of `batch_size` samples on this device can be, and is worth being, one CUDA graph; one line of warning if not."""
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
    """A function that replays what `run` does on the device, without Python in between; `run` is called a few times first."""
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
    """An optimizer step, recorded on its first batch and replayed on all of them, which must have the same shapes.

    Where it cannot be recorded, it is made as it is, with one line of warning.

    Args:
        step: whose host never waits for the device.
        optimizer: Adam with capturable=True and a learning rate in a tensor.
        record: makes the replay of a function.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, record: Callable = cuda_graph):
        self.step, self.optimizer, self.record = step, optimizer, record
        self._batch: Batch | None = None

    def __call__(self, batch: Batch) -> Tensor:
        if self._batch is None:
            self._batch = Batch(*(tensor.clone() for tensor in vars(batch).values()))
            self._replay = self._recorded()
        for place, tensor in zip(vars(self._batch).values(), vars(batch).values(), strict=True):
            place.copy_(tensor)
        return self._replay()

    def _recorded(self) -> Callable[[], Tensor]:
        """The replay, or else the step itself; prefix and optimizer as they were before the steps that the recording makes."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        vectors = [parameter.detach().clone() for parameter in parameters]
        states = [copy.deepcopy(self.optimizer.state.get(parameter, {})) for parameter in parameters]

        def step() -> Tensor:
            return self.step(self._batch)

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
