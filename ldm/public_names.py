"""Names of the public latent diffusion code that this repository does not provide, with their replacements.

Public scripts import them from `ldm`, and public configs name them as `target:`. AbsentModules refuses missing modules, and the
`__getattr__` of a module refuses its missing names; both raise an error with the sentence in ABSENT.
"""

from collections.abc import Callable, Sequence
from typing import NoReturn

ABSENT: dict[str, tuple[str, ...]] = {
    "it trains from the images and captions that ldm.data.identities and ldm.data.captions read; run train.py": (
        "ldm.data.base", "ldm.data.coco", "ldm.data.imagenet", "ldm.data.laion", "ldm.data.lsun", "ldm.data.personalized",
        "ldm.data.personalized_style", "ldm.data.util"),
    "it trains prefixes at a constant learning rate, with a frozen model; run train.py, or use torch.optim.lr_scheduler": (
        "ldm.lr_scheduler",),
    "it trains no autoencoder of full size, and AutoencoderKL ignores its lossconfig; give torch.nn.Identity as the target": (
        "ldm.modules.losses",),
    "it keeps no averaged weights apart, and model.ema_scope() uses the model's own; use torch.optim.swa_utils.AveragedModel": (
        "ldm.modules.ema",),
    "it builds Stable Diffusion v1 and SDXL, whose autoencoder is ldm.models.autoencoder.AutoencoderKL; use a config of theirs": (
        "ldm.models.autoencoder.VQModel", "ldm.models.autoencoder.VQModelInterface", "ldm.models.autoencoder.IdentityFirstStage"),
    "it builds Stable Diffusion v1 and SDXL, whose text encoders are ldm.modules.encoders.modules.FrozenCLIPEmbedder and "
    "ldm.modules.encoders.sdxl.FrozenOpenCLIPEmbedder2; use a config of theirs": (
        *(f"ldm.modules.encoders.modules.{name}" for name in (
            "AbstractEncoder", "BERTEmbedder", "BERTTokenizer", "ClassEmbedder", "FrozenOpenCLIPEmbedder", "SpatialRescaler",
            "TransformerEmbedder")), "ldm.modules.encoders.modules_bak", "ldm.modules.x_transformer"),
    "it retrieves no images; for CLIP embeddings of texts and images use open_clip.create_model_and_transforms": (
        "ldm.modules.encoders.modules.FrozenCLIPTextEmbedder", "ldm.modules.encoders.modules.FrozenClipImageEmbedder"),
    "use concurrent.futures.ProcessPoolExecutor, or torch.utils.data.DataLoader with num_workers": ("ldm.util.parallel_data_prefetch",),
    "it builds Stable Diffusion v1 and SDXL; use ldm.models.diffusion.ddpm.LatentDiffusion with a config of theirs": (
        *(f"ldm.models.diffusion.ddpm.{name}" for name in (
            "DDPM", "Layout2ImgDiffusion", "LatentDepth2ImageDiffusion", "LatentFinetuneDiffusion", "LatentInpaintDiffusion",
            "LatentUpscaleDiffusion", "LatentUpscaleFinetuneDiffusion")),
        "ldm.models.diffusion.classifier", "ldm.modules.diffusionmodules.upscaling", "ldm.modules.image_degradation",
        "ldm.modules.midas"),
    "use ldm.modules.diffusionmodules.openaimodel.UNetModel, the U-Net of Stable Diffusion v1 and SDXL": (
        "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModel", "ldm.modules.diffusionmodules.openaimodel.SuperResModel",
        "ldm.modules.diffusionmodules.original_openaimodel"),
    "the samplers of ldm.models.diffusion hold their schedule: call make_schedule, and read ddim_timesteps, ddim_alphas, ddim_sigmas": (
        *(f"ldm.modules.diffusionmodules.util.{name}" for name in (
            "betas_for_alpha_bar", "extract_into_tensor", "make_beta_schedule", "make_ddim_sampling_parameters",
            "make_ddim_timesteps", "noise_like")), "ldm.models.diffusion.sampling_util"),
    "use the layers of torch.nn and torch.utils.checkpoint.checkpoint": (
        *(f"ldm.modules.diffusionmodules.util.{name}" for name in ("avg_pool_nd", "checkpoint", "conv_nd", "linear")),),
    "use ldm.modules.embedding_manager.EmbeddingManager, which leaves the order of the vectors alone": ("ldm.modules.embedding_shuffler",),
    "it measures identity with ldm.evaluation.faces, and trains without an identity loss": ("ldm.thirdp",),
}
INSTEAD = {name: sentence for sentence, names in ABSENT.items() for name in names}


def refuse(name: str) -> NoReturn:
    """Raise a ModuleNotFoundError that says what to use instead of `name`."""
    # Without the argument `name`: otherwise `from package import module` replaces the sentence.
    raise ModuleNotFoundError(f"{name} is not part of this repository: {INSTEAD[name]}")


def absent_names(module: str) -> Callable[[str], NoReturn]:
    """`__getattr__` for a module from which public scripts import names that it does not provide."""
    def __getattr__(name: str) -> NoReturn:
        if f"{module}.{name}" in INSTEAD:
            refuse(f"{module}.{name}")  # `from module import name` would discard the message of an AttributeError
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    return __getattr__


class AbsentModules:
    """Finder at the end of `sys.meta_path`, called for modules that no other finder has."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name in INSTEAD:
            refuse(name)
