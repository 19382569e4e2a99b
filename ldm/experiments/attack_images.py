"""The pictures of an attack's checkpoint, without and with the prefix (paper section 4.4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ldm.edited_weights import edited, is_edited_weights
from ldm.experiments.identity import Drawing, Prefix, draw_jobs
from ldm.loading import read_edited_weights, shapes_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager
from ldm.pictures import ImageWriter

TOKEN_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def draw_checkpoint(model: LatentDiffusion, checkpoint: Path | None, shots: Sequence[tuple[Prefix, Sequence[Path]]], *, drawing: Drawing,
                    prompt: str, token: str, ckpt_path: Path, batch_size: int) -> None:
    """Every picture that is not there yet; all checkpoints and prefixes are drawn from the same noise.

    Args:
        checkpoint: see `checkpoint_weights`; None draws the model before the attack.
        shots: prefix, and the files of its samples.
        prompt: of every picture, with `token` in it.
    """
    weights = checkpoint_weights(model, checkpoint, token, ckpt_path) if checkpoint else {}
    with edited(model, weights), ImageWriter() as writer, tqdm(disable=True) as bar:
        for prefix, files in shots:
            paths = {(prompt, sample): path for sample, path in enumerate(files)}
            if not all(path.exists() for path in files):
                for _ in draw_jobs(model, list(paths), paths, prefix, drawing=drawing, batch_size=batch_size, writer=writer, bar=bar):
                    pass


def checkpoint_weights(model: LatentDiffusion, checkpoint: Path, token: str, ckpt_path: Path) -> Mapping[str, Tensor]:
    """What an attack's checkpoint changes in the model: its edited weights, or the token's row in the table of embeddings."""
    if is_edited_weights(checkpoint):
        return read_edited_weights(checkpoint, shapes_of(model), ckpt_path)
    manager = EmbeddingManager(model.cond_stage_model, [token], num_vectors_per_token=1)
    manager.load(checkpoint)
    table = model.get_parameter(TOKEN_TABLE).clone()
    table[manager.string_to_token_dict[token]] = manager.string_to_param_dict[token].detach()[0].to(table)
    return {TOKEN_TABLE: table}
