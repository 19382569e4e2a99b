"""Convert a prefix for another program: python -m ldm.export IN OUT --format universal|safetensors|a1111|comfyui|diffusers|invokeai|sdxl
Or a model to a folder of diffusers: python -m ldm.export --model PRESET OUT --format diffusers-pipeline

    python -m ldm.export embeddings/apl-mini.pt alz.safetensors --format diffusers
    python -m ldm.export alz.safetensors embeddings/apl-back.pt --format universal     # convert back, with equal vectors
    python -m ldm.export embeddings/apl-mini.pt runs/apl-hub --format hub     # write a folder for the Hugging Face Hub

Writes OUT and prints, for each program that reads it, where to put the file and how to use it in a prompt.
"""

from args.common import options_of
from args.export_args import PIPELINE, parse_export_args
from ldm.util import exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_export_args(argv)
    # Imported here so that --help and errors in flags do not wait for torch.
    if args.format == PIPELINE:
        from ldm.export.pipeline import write_pipeline
        from ldm.loading import ModelFiles

        write_pipeline(options_of(ModelFiles, args), args.target)
        print(f"written: {args.target}\ndiffusers: pipe = DiffusionPipeline.from_pretrained({args.target.as_posix()!r})")
        return
    from ldm.export.formats import export_prefix, instructions

    if args.format == "hub":
        from ldm.export.hub import export_for_hub

        told = export_for_hub(args.source, args.target, token=args.token)
        print("\n".join([f"written: {args.target}", *told, f"upload: hf upload OWNER/NAME {args.target}"]))
        return
    export_prefix(args.source, args.target, format=args.format, token=args.token, part=args.part)
    print("\n".join([f"written: {args.target}", *instructions(args.target, format=args.format, token=args.token, part=args.part)]))


if __name__ == "__main__":
    main()
