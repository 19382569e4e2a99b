"""The pictures of an attack's checkpoints, without and with the prefix (paper section 4.4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.apl.launch import set_precision
from ldm.edited_weights import edited, is_edited_weights
from ldm.loading import ModelFiles, read_edited_weights, shapes_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager, manager_for
from ldm.paper.attack_runs import NONE, Run
from ldm.paper.identity import Drawing, Prefix, draw_jobs
from ldm.pictures import ImageWriter

TOKEN_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


class Studio:
    """Draws the pictures of runs; its model is loaded only while it draws, for trainings need the memory.

    Args:
        prefix: the file behind every label but "none".
        prompt: of every picture, with `token` in it.
    """

    def __init__(self, files: ModelFiles, device: torch.device, prefix: Path, drawing: Drawing, *, prompt: str, token: str,
                 batch_size: int) -> None:
        self.files, self.device, self.prefix, self.drawing = files, device, prefix, drawing
        self.prompt, self.token, self.batch_size = prompt, token, batch_size

    def draw(self, runs: Sequence[Run], label: str) -> None:
        """Every picture of the runs that is not there yet; all runs, checkpoints and prefixes are drawn from the same noise."""
        shots = [(run, iteration) for run in runs for iteration in run.undrawn()]
        if not shots:
            return
        model = self.files.load(self.device)
        set_precision(model, self.drawing.precision)
        manager = manager_for(model.cond_stage_model)
        manager.load(self.prefix)
        prefixes = {NONE: Prefix(), self.prefix.stem: Prefix(manager=manager.requires_grad_(False))}
        missing = [path for run, iteration in shots for one in run.prefixes for path in run.paths(one, iteration) if not path.exists()]
        with ImageWriter() as writer, tqdm(total=len(missing), desc=label, unit="image") as bar:
            for run, iteration in shots:
                weights = {}
                if run.flags is not None:
                    weights = checkpoint_weights(model, run.checkpoint(iteration), self.token, self.files.ckpt_path)
                with edited(model, weights):
                    for one in run.prefixes:
                        paths = {(self.prompt, sample): path for sample, path in enumerate(run.paths(one, iteration))}
                        if not all(path.exists() for path in paths.values()):
                            for _ in draw_jobs(model, list(paths), paths, prefixes[one], drawing=self.drawing,
                                               batch_size=self.batch_size, writer=writer, bar=bar):
                                pass
        if self.device.type == "cuda":
            del model, manager, prefixes
            torch.cuda.empty_cache()


def checkpoint_weights(model: LatentDiffusion, checkpoint: Path, token: str, ckpt_path: Path) -> Mapping[str, Tensor]:
    """What an attack's checkpoint changes in the model: its edited weights, or the token's row in the table of embeddings."""
    if is_edited_weights(checkpoint):
        return read_edited_weights(checkpoint, shapes_of(model), ckpt_path)
    manager = EmbeddingManager(model.cond_stage_model, [token], num_vectors_per_token=1)
    manager.load(checkpoint)
    table = model.get_parameter(TOKEN_TABLE).clone()
    table[manager.string_to_token_dict[token]] = manager.string_to_param_dict[token].detach()[0].to(table)
    return {TOKEN_TABLE: table}
