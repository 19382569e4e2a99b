"""Where and how a command runs: devices, precision and repeatable arithmetic."""

import os
from typing import TYPE_CHECKING

import torch

from ldm.apl.workers import end_with_starter, start_workers
from ldm.cpu_bf16 import use_fast_bf16
from ldm.device import DTYPES, devices_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(devices: str, batch_size: int | None = None, *, num_nodes: int = 1) -> "Fabric":
    """Launch Fabric on the flag --devices; with several devices, start this command once per device, unless torchrun or SLURM has done so.

    Args:
        batch_size: of a step that the devices share; None if each device takes batches of its own.
        num_nodes: number of machines, each with these devices.

    Raises:
        UserError: a GPU does not exist, the devices cannot share the batch, or torchrun or SLURM started another number of processes.
    """
    from lightning_fabric import Fabric  # here, because its import takes seconds

    end_with_starter()
    accelerator, chosen, count = devices_of(devices)
    if batch_size is not None and batch_size % (count * num_nodes):
        raise UserError(f"--batch_size {batch_size} cannot be shared evenly by the {count * num_nodes} devices of --devices "
                        f"{devices} and --num_nodes {num_nodes}; give a multiple of {count * num_nodes}")
    if not _are_started(count, num_nodes):
        raise UserError(f"--devices {devices} with --num_nodes {num_nodes} means {count} processes on each of {num_nodes} machines, and "
                        f"others were started; use torchrun --nnodes {num_nodes} --nproc_per_node {count}, or srun --nodes {num_nodes} "
                        f"--ntasks-per-node {count}")
    # A resumed run must end with the same bytes, so no result may depend on the order in which threads finish.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    several = count * num_nodes > 1
    fabric = Fabric(accelerator=accelerator, devices=chosen, num_nodes=num_nodes, strategy="ddp" if several else "auto")
    if several:
        start_workers(fabric.strategy.cluster_environment, count)
    fabric.launch()
    return fabric


def set_precision(model: LatentDiffusion, precision: str) -> None:
    """Cast the U-Net to bfloat16 for "bf16"; text encoder, autoencoder, prefix and loss stay in float32.

    The weights are stored channels last: convolutions are faster, and transformers read pixels without a copy.
    """
    model.model.to(DTYPES[precision], memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "bf16" and model.device.type == "cpu":
        use_fast_bf16(model.model)


def _are_started(count: int, num_nodes: int) -> bool:
    """Whether torchrun or SLURM started `count` processes per node; without them, whether this command can start them."""
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            try:
                environment().validate_settings(count, num_nodes)
                return environment().world_size() == count * num_nodes
            except (RuntimeError, ValueError):  # SLURM's variables contradict these numbers, or each other
                return False
    return num_nodes == 1 or "NODE_RANK" in os.environ
