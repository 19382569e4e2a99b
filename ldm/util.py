"""What every part needs: a config becomes an object, a user's mistake becomes one sentence, a file appears whole."""

import functools
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Keys of public configs that only concern their own training and speed; accepted and ignored.
TRAINING_ONLY = frozenset({
    # LatentDiffusion
    "log_every_t", "first_stage_key", "cond_stage_key", "cond_stage_trainable", "image_size", "channels", "monitor",
    "scheduler_config", "use_ema", "loss_type", "num_timesteps_cond", "learn_logvar", "logvar_init", "l_simple_weight",
    "original_elbo_weight", "clip_denoised", "use_positional_encodings", "load_only_unet",
    "embedding_reg_weight", "unfreeze_model", "model_lr", "personalization_config",
    # UNetModel
    "use_checkpoint", "legacy", "use_fp16", "spatial_transformer_attn_type",
    # AutoencoderKL
    "lossconfig", "image_key", "colorize_nlabels", "resolution", "dropout",
    # FrozenCLIPEmbedder
    "device",
})

# Keys that select an architecture or an objective: only the value of Stable Diffusion v1 (and of SDXL's U-Net) is built here.
ONLY_VALUE: dict[str, Any] = {
    "parameterization": "eps", "beta_schedule": "linear", "conditioning_key": "crossattn", "scale_by_std": False,
    "use_spatial_transformer": True, "dims": 2, "resblock_updown": False, "use_scale_shift_norm": False,
    "double_z": True, "attn_resolutions": [], "attn_type": "vanilla", "tanh_out": False, "ckpt_path": None,
    "ignore_keys": [], "cond_stage_forward": None, "concat_mode": True, "version": "openai/clip-vit-large-patch14",
}

PATIENCE = 3.0  # seconds in which the first process of a run has said what is wrong, if it has met with the same mistake


class UserError(ValueError):
    """A mistake of the user; the message is one sentence: what was given, what was expected, what to do."""


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Object described by {target: "package.module.Class", params: {...}}; `extra` are further keyword arguments."""
    if "target" not in config:
        raise UserError(f"a config has the keys {sorted(config)} but no 'target'; add 'target: package.module.Class'")
    module_name, _, class_name = config["target"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the config's target '{config['target']}' cannot be imported ({error}); correct it") from error
    try:
        return cls(**(config.get("params") or {}), **extra)
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise UserError(f"the config's target '{config['target']}' does not take its params ({error}); correct them") from error


def refuse_other_architectures(owner: str, params: Mapping[str, Any]) -> None:
    """Pass over the training-only keys of a public config; raise UserError for what this stack would not build."""
    for key, value in params.items():
        if key in ONLY_VALUE:
            value = list(value or []) if isinstance(ONLY_VALUE[key], list) else value
            if value != ONLY_VALUE[key]:
                raise UserError(f"{owner} is asked for {key}={value!r} but only builds {ONLY_VALUE[key]!r}, as Stable "
                                "Diffusion v1 has it; use configs/stable-diffusion/v1-inference.yaml")
        elif key not in TRAINING_ONLY:
            raise UserError(f"{owner} has no parameter '{key}'; use a config of Stable Diffusion v1 or SDXL, such as "
                            "configs/stable-diffusion/v1-inference.yaml or sdxl-base.yaml")


def first_line(error: Exception) -> str:
    """What an error says first, for a sentence about it; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def warn(sentence: str) -> None:
    """One line of warning on stderr, from the first process of a machine alone."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {sentence}", file=sys.stderr)


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it: at `path` there is the whole new file or the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last because some writers (np.save, PIL) choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # what the user knows of
        raise
    finally:
        temporary.unlink(missing_ok=True)


def exit_with_sentence(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a script's main: UserError and OSError become one line on stderr and status 2, Ctrl-C status 130.

    A process with LOCAL_RANK 1 or more ends with the first one, and speaks only if that has not ended.
    """
    def say(sentence: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(PATIENCE)
        print(sentence, file=sys.stderr)

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except (UserError, OSError) as error:
            say(f"error: {' '.join(str(error).split())}")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            say("stopped by the user")
            raise SystemExit(130) from None
    return wrapped
