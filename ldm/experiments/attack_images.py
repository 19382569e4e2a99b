"""Generates the images of an attack's checkpoints, for each variant of the model (paper section 4.4)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ldm.edited_weights import edited, is_edited_weights
from ldm.experiments.pipeline import Pipeline, Shot
from ldm.experiments.variants import Variant
from ldm.images import ImageWriter
from ldm.loading import read_edited_weights, shapes_of
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.modules.embedding_manager import EmbeddingManager

TOKEN_TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def generate_from_checkpoint(pipeline: Pipeline, checkpoint: Path | None, shots: Sequence[tuple[Variant, Sequence[Shot]]], *, token: str,
                             ckpt_path: Path) -> None:
    """Generate the missing images. Images of all checkpoints and variants start from the same noise.

    Args:
        pipeline: generates the images.
        checkpoint: see `checkpoint_weights`; None is the model before the attack.
        shots: variants of the model, each with its images.
        token: the attack's token in the prompts.
        ckpt_path: checkpoint of the base model.
    """
    weights = checkpoint_weights(pipeline.model, checkpoint, token, ckpt_path) if checkpoint else {}
    with edited(pipeline.model, weights), ImageWriter() as writer:
        for variant, own in shots:
            for _ in pipeline.generate(variant, own, writer):
                pass


def checkpoint_weights(model: LatentDiffusion, checkpoint: Path, token: str, ckpt_path: Path) -> Mapping[str, Tensor]:
    """Tensors that an attack's checkpoint changes: its edited weights, or the token table with the token's learned row."""
    if is_edited_weights(checkpoint):
        return read_edited_weights(checkpoint, shapes_of(model), ckpt_path)
    manager = EmbeddingManager(model.cond_stage_model, [token], num_vectors_per_token=1)
    manager.load(checkpoint)
    table = model.get_parameter(TOKEN_TABLE).clone()
    table[manager.string_to_token_dict[token]] = manager.string_to_param_dict[token].detach()[0].to(table)
    return {TOKEN_TABLE: table}
