"""Helpers of all modules: objects from configs, one-line errors, atomic writes, and the helpers of the public ldm.util."""

import errno
import functools
import importlib
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ldm.public_names import absent_names

if TYPE_CHECKING:
    from torch import Tensor, nn

__getattr__ = absent_names(__name__)

# Keys of public configs that only concern their own training and speed; accepted and ignored.
TRAINING_ONLY = frozenset("""
    log_every_t first_stage_key cond_stage_key cond_stage_trainable image_size channels monitor scheduler_config use_ema loss_type
    num_timesteps_cond learn_logvar logvar_init l_simple_weight original_elbo_weight clip_denoised use_positional_encodings load_only_unet
    embedding_reg_weight unfreeze_model model_lr use_checkpoint legacy use_fp16 spatial_transformer_attn_type lossconfig image_key
    colorize_nlabels resolution dropout device""".split())

# Keys that select an architecture or an objective: only the value of Stable Diffusion v1 (and of SDXL's U-Net) is built here.
ONLY_VALUE: dict[str, Any] = {
    "parameterization": "eps", "beta_schedule": "linear", "conditioning_key": "crossattn", "scale_by_std": False,
    "use_spatial_transformer": True, "dims": 2, "resblock_updown": False, "use_scale_shift_norm": False,
    "double_z": True, "attn_resolutions": [], "attn_type": "vanilla", "tanh_out": False, "ckpt_path": None,
    "ignore_keys": [], "cond_stage_forward": None, "concat_mode": True, "version": "openai/clip-vit-large-patch14",
    "per_image_tokens": False, "progressive_words": False,
}

REASON = "APL_REASON"  # environment variable of a worker of `start_workers`: the pipe for its reason to end
PATIENCE = 3.0         # seconds for another process of the run to print the reason first
ENDED = "a process of this run has ended ({}); the same command resumes from the last saved state"
LOST = ("closed by peer", "reset by peer", "Broken pipe", "failed to recv", "failed to connect")  # gloo's and the store's words
FULL = ("out of memory", "allocate memory", "not enough memory")  # torch's words, of GPUs and CPUs


class UserError(ValueError):
    """A user's mistake. The message is one sentence: what was given, what was expected, what to do."""


def instantiate_from_config(config: Mapping[str, Any] | str, **extra: Any) -> Any:
    """Instantiate {target: "package.module.Class", params: {...}} with further keyword arguments `extra`; UserError if it cannot be.

    "__is_first_stage__" and "__is_unconditional__", which public configs have in place of a text encoder, give None.
    """
    if config in ("__is_first_stage__", "__is_unconditional__"):
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        given = f"the keys {sorted(config)}" if isinstance(config, Mapping) else repr(config)
        raise UserError(f"a config has {given} but no 'target'; add 'target: package.module.Class'")
    try:
        cls = get_obj_from_str(config["target"])
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the config's target '{config['target']}' cannot be imported ({error}); correct it") from error
    try:
        return cls(**(config.get("params") or {}), **extra)
    except TypeError as error:
        if "__init__()" not in str(error):
            raise
        raise UserError(f"the config's target '{config['target']}' does not take its params ({error}); correct them") from error


def get_obj_from_str(string: str, reload: bool = False) -> Any:
    """Object named by "package.module.Class"; `reload` reloads the module first."""
    import torch

    module_name, _, name = string.rpartition(".")
    with torch.device("cpu"):  # also where a model is built on the meta device, on which torch 2.6 cannot import torch._dynamo
        module = importlib.import_module(module_name)
    return getattr(importlib.reload(module) if reload else module, name)


def exists(x: Any) -> bool:
    return x is not None


def default(val: Any, d: Any) -> Any:
    """`val`, or `d` if `val` is None; if `d` is a function, its result."""
    return val if exists(val) else d() if inspect.isfunction(d) else d


def isimage(x: Any) -> bool:
    """Whether x is a batch of images, a tensor (B, 1 or 3, H, W)."""
    return _channels_of(x) in (1, 3)


def ismap(x: Any) -> bool:
    """Whether x is a batch of feature maps, a tensor (B, C, H, W) with C > 3."""
    return _channels_of(x) > 3


def _channels_of(x: Any) -> int:
    import torch

    return x.shape[1] if isinstance(x, torch.Tensor) and x.ndim == 4 else 0


def mean_flat(tensor: "Tensor") -> "Tensor":
    """Mean over all dimensions except the first: (B, ...) -> (B,)."""
    return tensor.mean(dim=list(range(1, tensor.ndim)))


def count_params(model: "nn.Module", verbose: bool = False) -> int:
    """Number of parameters; `verbose` prints it in millions."""
    count = sum(parameter.numel() for parameter in model.parameters())
    if verbose:
        print(f"{type(model).__name__} has {count / 1e6:.2f} M params.")
    return count


def log_txt_as_img(wh: tuple[int, int], xc: Sequence[str], size: int = 10) -> "Tensor":
    """Render texts `xc` as images (B, 3, H, W) in [-1, 1], black on white; `wh` is (W, H), `size` the font size in pixels."""
    import torch
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.transforms.functional import pil_to_tensor

    images, columns = [], max(1, 40 * wh[0] // 256)
    for text in xc:
        image = Image.new("RGB", (wh[0], wh[1]), "white")
        lines = [text[start:start + columns] for start in range(0, len(text), columns)]
        ImageDraw.Draw(image).text((0, 0), "\n".join(lines), fill="black", font=ImageFont.load_default(size))
        images.append(pil_to_tensor(image) / 127.5 - 1.0)
    return torch.stack(images)


def refuse_other_architectures(owner: str, params: Mapping[str, Any]) -> None:
    """Ignore training-only keys of a public config; UserError if another selects an architecture that this stack does not build."""
    for key, value in params.items():
        if key in ONLY_VALUE:
            value = list(value or []) if isinstance(ONLY_VALUE[key], list) else value
            if value != ONLY_VALUE[key]:
                raise UserError(f"{owner} is asked for {key}={value!r} but only supports {ONLY_VALUE[key]!r}, the value of "
                                "Stable Diffusion v1; use configs/stable-diffusion/v1-inference.yaml")
        elif key not in TRAINING_ONLY:
            raise UserError(f"{owner} has no parameter '{key}'; use a config of Stable Diffusion v1 or SDXL, such as "
                            "configs/stable-diffusion/v1-inference.yaml or sdxl-base.yaml")


def first_line(error: Exception) -> str:
    """First line of an error's message, or its class name if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def warn(sentence: str) -> None:
    """Print a one-line warning to stderr, from local rank 0 only."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"warning: {sentence}", file=sys.stderr)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` fills a temporary file next to `path`, which is then renamed to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # some writers choose the format by the suffix
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the path that the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 atomically; lone surrogates, as in file names that are not UTF-8, are escaped, such as \\udce9."""
    write_atomically(path, lambda target: target.write_bytes(text.encode("utf-8", errors="backslashreplace")))


def exit_with_sentence(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a script's main: UserError, OSError and a lack of memory become one line on stderr and status 2, Ctrl-C status 130.

    A run prints one line: a worker of `start_workers` sends it to the command that started it; one of torchrun or SLURM whose LOCAL_RANK
    is not 0 waits PATIENCE first.
    """
    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # for letters that the terminal cannot show
        try:
            return main(*args, **kwargs)
        except (UserError, OSError) as error:
            _exit(2, f"error: {' '.join(_sentence(error).split())}")
        except KeyboardInterrupt:
            _exit(130, "stopped by the user")
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or any(words in str(error) for words in FULL):
                _exit(2, "error: out of memory; give a smaller --batch_size, where the command has one, or a device with more memory "
                         "(train.py --dry_run prints how much a training needs)")
            if not any(words in str(error) for words in LOST):
                raise
            time.sleep(PATIENCE)  # the lost process, or the command that started it, may know the reason
            _exit(2, f"error: {ENDED.format('the connection to another process was lost')}")
    return wrapped


def _sentence(error: UserError | OSError) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return (f"the path '{str(error.filename)[:60]}...' is too long for this file system, where a name has at most 255 bytes; give a "
                "shorter one")
    return str(error)


def _exit(status: int, sentence: str) -> NoReturn:
    if REASON in os.environ:
        os.write(int(os.environ[REASON]), f"{status} {sentence}\n".encode(errors="replace")[:4096])  # a pipe takes so many bytes atomically
    else:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(PATIENCE)
        print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(status) from None
