"""Optional accelerations of the same step: compiled blocks, and one CUDA graph for the whole step."""

import copy
from collections.abc import Callable
from functools import partial

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
    """Prepare the model for steps of `batch_size` samples on this device; return RecordedStep if they are to be recorded, else None."""
    model.model.diffusion_model.checkpointing = checkpointing
    if compile:
        compile_blocks(model)
    return RecordedStep if cuda_graphs and graphs_are_possible(model.device, batch_size=batch_size, world_size=world_size) else None


def compile_blocks(model: LatentDiffusion) -> None:
    """Compile the residual and transformer blocks for fixed shapes, in minutes; warn if there is no working compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=False)(torch.zeros(2, device=model.device))
    except Exception as error:  # the compiler's tool chain may raise anything
        return warn(f"--compile has no effect, because torch.compile fails here ({first_line(error)})")
    torch._dynamo.config.suppress_errors = True  # blocks that cannot be compiled run eagerly
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for module in model.model.modules():
        if isinstance(module, ResBlock | BasicTransformerBlock):
            module.compile(dynamic=False)


def graphs_are_possible(device: torch.device, *, batch_size: int, world_size: int) -> bool:
    """Whether a step of `batch_size` samples on this device can and should be one CUDA graph; warns if not."""
    obstacles = {"a CUDA graph needs a GPU": device.type != "cuda",
                 "several devices exchange their gradients outside of it": world_size > 1,
                 f"it is for batches of up to {SMALL_BATCH} samples": batch_size > SMALL_BATCH}
    for reason, is_met in obstacles.items():
        if is_met:
            warn(f"--cuda_graphs has no effect: {reason}")
            return False
    return True


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

    A step that cannot be recorded runs without it, after a warning.

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
            self._replay = self._recorded(partial(self.step, self._batch))
        for place, tensor in zip(vars(self._batch).values(), vars(batch).values(), strict=True):
            place.copy_(tensor)
        return self._replay()

    def _recorded(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The replay of a step, or the step itself; restores prefix and optimizer after the warm-up of the recording."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        before = [(parameter.detach().clone(), copy.deepcopy(self.optimizer.state.get(parameter, {}))) for parameter in parameters]
        try:
            replay = self.record(step)
        except RuntimeError as error:
            replay = step
            warn(f"--cuda_graphs has no effect, because the step cannot be recorded ({first_line(error)})")
        with torch.no_grad():
            for parameter, (vectors, state) in zip(parameters, before, strict=True):
                parameter.copy_(vectors)
                for name, value in self.optimizer.state[parameter].items():
                    value.copy_(state[name]) if state else value.zero_()
        return replay
