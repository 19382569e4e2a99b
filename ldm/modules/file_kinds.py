"""Determines the content of a file of tensors from its keys, for the message about a file given in another's place."""

from collections.abc import Mapping

from torch import Tensor

PREFIX = "a prefix (textual inversion embedding)"
CONTEXT_MAP = "a context map (train.py --train_method apl-map)"
OF_CONTEXT_MAP = ({"map", "bias"}, {"map_up", "map_down", "bias"})  # names of its tensors, full or of low rank
V1, SDXL = "a Stable Diffusion v1 checkpoint", "an SDXL checkpoint"
PARTS_OF_FOLDER = ("the U-Net from a diffusers folder", "the autoencoder from a diffusers folder", "a text encoder alone")
# The beginning of a key that only these files have, and what they are. The first that fits is named.
KINDS = (
    ("conditioner.embedders.0.model.", "an SDXL refiner"),
    ("conditioner.embedders.", SDXL),
    ("cond_stage_model.model.transformer.", "a Stable Diffusion 2 checkpoint"),
    (("model.diffusion_model.joint_blocks.", "joint_blocks."), "a Stable Diffusion 3 checkpoint"),
    (("model.diffusion_model.double_blocks.", "double_blocks."), "a Flux checkpoint"),
    ("control_model.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("string_to_param", PREFIX),
    ("down_blocks.", PARTS_OF_FOLDER[0]),
    ("decoder.mid_block.", PARTS_OF_FOLDER[1]),
    ("decoder.mid.block_1.", "an autoencoder alone"),
    ("text_model.encoder.layers.", PARTS_OF_FOLDER[2]),
    ("transformer.resblocks.", "a CLIP model in open_clip's form"),
    ("cond_stage_model.transformer.", V1),
    ("model.diffusion_model.", "some weights of a U-Net (edited weights?)"),
)
LORA = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.", ".lora_linear_layer.", ".hada_w1", ".lokr_w1", ".oft_")


def describe(content: Mapping[str, object]) -> str | None:
    """Probable content of a file with these entries, such as "a LoRA"; None if unknown."""
    if set(content) in OF_CONTEXT_MAP:
        return CONTEXT_MAP
    if 0 < len(content) <= 2 and all(isinstance(value, Tensor) and value.dim() <= 2 and value.is_floating_point()
                                     for value in content.values()):
        return PREFIX
    if any(mark in key for key in content for mark in LORA):
        return "a LoRA"
    return next((name for mark, name in KINDS if any(key.startswith(mark) for key in content)), None)
