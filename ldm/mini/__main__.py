"""Rebuilds the miniature from nothing: python -m ldm.mini [--stages text,unet] [--device cuda]

The stages run in order. Each resumes where it stopped when the same command is run again. What a stage has trained lies in --work_dir
as <stage>.safetensors, from which later stages take it; the last stages write data/mini/.
On several devices or cores: torchrun --nproc_per_node 2 -m ldm.mini --stages unet --threads 1 (the training stages only).
"""

import argparse
import os
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save
from torch import distributed

from ldm.evaluation.tables import console_table
from ldm.loading import file_hash, load_frozen_model
from ldm.mini.autoencoder_stage import train_autoencoder
from ldm.mini.card import miniature_metrics, write_card
from ldm.mini.clip_stage import build_mini_clip, train_mini_clip
from ldm.mini.contrastive_stage import train_second_text_encoder
from ldm.mini.data_stage import write_caption_images, write_identity_images, write_photos, write_prompts
from ldm.mini.decoder_stage import train_decoder
from ldm.mini.face_pack import build_face_pack
from ldm.mini.face_recogniser import train_recogniser
from ldm.mini.stage import rank_and_world
from ldm.mini.text_stage import train_text_encoder
from ldm.mini.unet_stage import latents_of_renders, train_unet
from ldm.mini.variant_stage import VARIANTS, train_variant
from ldm.mini.xl_stage import build_mini_xl, train_mini_xl
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import exit_with_sentence, instantiate_from_config, write_atomically

CONFIG, DATA = Path("configs/stable-diffusion/mini-next.yaml"), Path("data/mini-next")  # data/mini holds the first edition until then
STAGES = ("faces", "autoencoder", "text", "unet", "decoder", "mini-sd", "clip", "data", "mini-sd-b", "mini-sepia", "text-xl", "mini-xl",
          "card")
SCALE = 4.0   # guidance of the miniature


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ldm.mini", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", metavar="A,B", default=",".join(STAGES), help=f"stages to run, of {', '.join(STAGES)}")
    parser.add_argument("--work_dir", metavar="DIR", type=Path, default=Path("build/mini"), help="states, logs and trained parts")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="where to train: cpu or cuda")
    parser.add_argument("--threads", metavar="N", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--autoencoder_steps", metavar="N", type=int, default=6_500, help="steps of 16 crops, then of 6 images, twice")
    parser.add_argument("--decoder_steps", metavar="N", type=int, default=1_500, help="steps of 6 images")
    parser.add_argument("--text_steps", metavar="N", type=int, default=6_000, help="steps of 96 captions")
    parser.add_argument("--text_xl_steps", metavar="N", type=int, default=3_000, help="steps of 128 captions")
    parser.add_argument("--unet_steps", metavar="N", type=int, default=14_000, help="steps of 32 latents for each process")
    parser.add_argument("--variant_steps", metavar="N", type=int, default=1_600, help="steps of 32 latents, of each variant")
    parser.add_argument("--xl_steps", metavar="N", type=int, default=6_000, help="steps of 32 latents, of mini-xl")
    parser.add_argument("--clip_steps", metavar="N", type=int, default=3_500, help="steps of 128 pairs")
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
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")
        args.device += f":{os.environ['LOCAL_RANK']}" * (args.device == "cuda")
    for stage in args.stages:
        run_stage(stage, args)


def run_stage(stage: str, args: argparse.Namespace) -> None:
    """Runs one stage; a training stage writes work_dir/<stage>.safetensors, the others write data/mini."""
    work_dir, device, checkpoint = args.work_dir, args.device, DATA / "mini-sd.safetensors"
    model = trained_so_far(work_dir).to(device) if stage not in ("clip", "faces", "card", "text-xl") else None
    if stage == "autoencoder":
        first, further = (int(share * args.autoencoder_steps) for share in (0.74, 0.26))
        train_autoencoder(model.first_stage_model, work_dir, steps=first, crop_steps=int(0.84 * first))
        trained = train_autoencoder(model.first_stage_model, work_dir, steps=further, crop_steps=int(0.62 * further), lr=1e-3, decay=0.75,
                                    ema=0.997, name="autoencoder-further")
    elif stage == "decoder":
        trained = train_decoder(model.first_stage_model, train_recogniser(work_dir, device), work_dir, steps=args.decoder_steps)
    elif stage == "text":
        trained = train_text_encoder(model.cond_stage_model, work_dir, steps=args.text_steps)
    elif stage == "text-xl":
        trained = train_second_text_encoder(build_mini_xl().conditioner.embedders[1].to(device), work_dir, steps=args.text_xl_steps)
    elif stage == "unet":
        latents = latents_of_renders(model.first_stage_model, work_dir)
        print(f"latents times scale_factor have a standard deviation of {latents.float().std() * model.scale_factor:.3f}")
        trained = train_unet(model, latents, work_dir, steps=args.unet_steps, lr=4e-3, decay=0.7)
    elif stage in VARIANTS:
        changed = train_variant(stage, model, work_dir, steps=args.variant_steps)
        return save_half(changed, DATA / f"{stage}.safetensors", base_model=file_hash(checkpoint))
    elif stage == "mini-xl":
        return save_half(train_mini_xl(model, work_dir, steps=args.xl_steps).state_dict(), DATA / "mini-xl.safetensors")
    elif stage == "mini-sd":
        return save_half(model.state_dict(), checkpoint)
    elif stage == "clip":
        clip = train_mini_clip(build_mini_clip().to(device), work_dir, steps=args.clip_steps)
        return save_half(clip.state_dict(), DATA / "mini-clip.safetensors")
    elif stage == "faces":
        return build_face_pack(work_dir, DATA, device=device)
    elif stage == "card":
        rows = miniature_metrics(DATA, CONFIG, work_dir / "metrics", Path("embeddings/apl-mini.pt"), scale=SCALE, device=device)
        write_card(DATA, CONFIG, work_dir, rows, scale=SCALE)
        return print(console_table(rows))
    else:
        write_prompts(DATA)
        write_caption_images(DATA / "s_reg")
        write_photos(DATA / "photos")
        return write_identity_images(load_frozen_model(CONFIG, checkpoint, device), DATA / "s_id", scale=SCALE)
    if rank_and_world()[0] == 0:
        save_half(trained.state_dict(), work_dir / f"{stage}.safetensors")


def trained_so_far(work_dir: Path) -> LatentDiffusion:
    """mini-sd with the parts that stages have left in `work_dir`; the first weights of the others are random."""
    model: LatentDiffusion = instantiate_from_config(OmegaConf.load(CONFIG).model)
    for part, stages in {"first_stage_model": ("autoencoder", "decoder"), "cond_stage_model": ("text",), "model": ("unet",)}.items():
        for stage in stages:
            if (path := work_dir / f"{stage}.safetensors").exists():
                getattr(model, part).load_state_dict(load_file(path))
    return model


def save_half(state: dict[str, torch.Tensor], path: Path, **metadata: str) -> None:
    """Writes weights in half precision; `metadata` in the file's header, where the order of several entries would be left to chance."""
    half = {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}
    write_atomically(path, lambda target: target.write_bytes(save(half, metadata=metadata or None)))


if __name__ == "__main__":
    main()
