"""Rebuilds the miniature from nothing: python -m ldm.mini [--stages text,unet] [--device cuda]

The stages run in order. Each resumes where it stopped when the same command is run again, and writes its part of data/mini/.
On several devices or cores: torchrun --nproc_per_node 2 -m ldm.mini --stages unet --threads 1 (the training stages only).
All stages together begin with random weights; some of them (--stages) go on from the shipped ones.
"""

import argparse
import os
from copy import deepcopy
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save
from torch import distributed

from ldm.evaluation.tables import console_table
from ldm.loading import file_hash, load_frozen_model, read_state_dict
from ldm.mini.autoencoder_stage import train_autoencoder, train_decoder
from ldm.mini.card import miniature_figures, write_card
from ldm.mini.clip_stage import build_mini_clip, train_mini_clip
from ldm.mini.data_stage import write_caption_images, write_identity_images, write_photos, write_prompts
from ldm.mini.face_pack import build_face_pack
from ldm.mini.stage import rank_and_world
from ldm.mini.text_stage import train_text_encoder
from ldm.mini.unet_stage import latents_of_renders, train_unet
from ldm.mini.variant_stage import VARIANTS, train_variant
from ldm.mini.xl_stage import build_mini_xl, train_mini_xl
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import exit_with_sentence, instantiate_from_config, write_atomically

CONFIG, DATA = Path("configs/stable-diffusion/mini-inference.yaml"), Path("data/mini")
STAGES = ("autoencoder", "text", "unet", "decoder", "clip", "faces", "data", "mini-sd-b", "mini-sepia", "text-xl", "mini-xl", "card")
SCALE = 4.0   # guidance of the miniature


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ldm.mini", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", metavar="A,B", default=",".join(STAGES), help=f"stages to run, of {', '.join(STAGES)}")
    parser.add_argument("--start", metavar="FILE", type=Path, help="weights to start from (default: see above)")
    parser.add_argument("--work_dir", metavar="DIR", type=Path, default=Path("build/mini"), help="states, logs and drawn pictures")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--threads", metavar="N", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--autoencoder_steps", metavar="N", type=int, default=2_000, help="steps; the first half on crops")
    parser.add_argument("--text_steps", metavar="N", type=int, default=2_000, help="steps of 96 captions")
    parser.add_argument("--unet_steps", metavar="N", type=int, default=24_000, help="steps of 32 latents")
    parser.add_argument("--decoder_steps", metavar="N", type=int, default=3_000, help="steps of 12 pictures")
    parser.add_argument("--variant_steps", metavar="N", type=int, default=1_600, help="steps of 32 latents, of each variant")
    parser.add_argument("--xl_steps", metavar="N", type=int, default=3_200, help="steps of 32 latents, of mini-xl")
    parser.add_argument("--clip_steps", metavar="N", type=int, default=1_500, help="steps of 128 pairs")
    args = parser.parse_args(argv)
    args.stages = args.stages.split(",")
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"--stages names {', '.join(sorted(unknown))}; the stages are {', '.join(STAGES)}")
    return args


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    work_dir, checkpoint = args.work_dir, DATA / "mini-sd.safetensors"
    work_dir.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
        args.device += f":{os.environ['LOCAL_RANK']}" * (args.device == "cuda")
    model: LatentDiffusion = instantiate_from_config(OmegaConf.load(CONFIG).model).to(args.device)
    start = args.start or (checkpoint if checkpoint.exists() and args.stages != list(STAGES) else None)
    if start is not None:
        model.load_state_dict(read_state_dict(start))
    for stage in args.stages:
        if stage == "autoencoder":
            model.first_stage_model = train_autoencoder(model.first_stage_model, work_dir, steps=args.autoencoder_steps,
                                                        crop_steps=args.autoencoder_steps // 2)
        elif stage == "text":
            model.cond_stage_model = train_text_encoder(model.cond_stage_model, work_dir, steps=args.text_steps)
        elif stage == "unet":
            latents = latents_of_renders(model.first_stage_model, work_dir)
            print(f"latents times scale_factor have a standard deviation of {latents.float().std() * model.scale_factor:.3f}")
            model.model = train_unet(model, latents, work_dir, steps=args.unet_steps)
        elif stage == "decoder":
            latents = latents_of_renders(model.first_stage_model, work_dir)
            model.first_stage_model = train_decoder(model.first_stage_model, latents, work_dir, steps=args.decoder_steps)
        elif stage == "clip":
            clip, clip_file = build_mini_clip().to(args.device), DATA / "mini-clip.safetensors"
            if start is not None and clip_file.exists():
                clip.load_state_dict(load_file(clip_file))
            save_half(train_mini_clip(clip, work_dir, steps=args.clip_steps).state_dict(), clip_file)
        elif stage == "faces":
            build_face_pack(work_dir, DATA, device=args.device)
        elif stage in VARIANTS:
            changed = train_variant(stage, deepcopy(model), work_dir, steps=args.variant_steps)
            save_half(changed, DATA / f"{stage}.safetensors", base_model=file_hash(checkpoint))
        elif stage == "text-xl":
            second = build_mini_xl().conditioner.embedders[1].to(args.device)
            second = train_text_encoder(second, work_dir, steps=args.text_steps, name=stage)
            save_half(second.state_dict(), work_dir / "text-xl.safetensors")
        elif stage == "mini-xl":
            save_half(train_mini_xl(model, work_dir, steps=args.xl_steps).state_dict(), DATA / "mini-xl.safetensors")
        elif stage == "card":
            rows = miniature_figures(DATA, CONFIG, work_dir / "figures", scale=SCALE, device=args.device)
            write_card(DATA, CONFIG, work_dir, rows, scale=SCALE)
            print(console_table(rows))
        else:
            write_prompts(DATA)
            write_caption_images(DATA / "s_reg")
            write_photos(DATA / "photos")
            write_identity_images(load_frozen_model(CONFIG, checkpoint, args.device), DATA / "s_id", scale=SCALE)
        if stage in ("autoencoder", "text", "unet", "decoder") and rank_and_world()[0] == 0:
            save_half(model.state_dict(), checkpoint)


def save_half(state: dict[str, torch.Tensor], path: Path, **metadata: str) -> None:
    """Writes weights in half precision; `metadata` in the file's header, where the order of several entries would be left to chance."""
    half = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}
    write_atomically(path, lambda target: target.write_bytes(save(half, metadata=metadata or None)))


if __name__ == "__main__":
    main()
