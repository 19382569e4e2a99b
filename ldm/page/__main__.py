"""Serve a web page that compares images without and with prefixes (the paper's Figures 1 and 3, for your own prompts).

    pip install -e .[page]
    python -m ldm.page --preset mini                                             # then open http://127.0.0.1:7860
    python -m ldm.page --preset mini --embedding embeddings/apl-350.pt embeddings/apl-700.pt --models mini mini-sd-b

The model is loaded once, for all users; their requests wait in a queue.
"""

import importlib.util
import os
import tempfile

from args.page_args import parse_page_args
from ldm.util import UserError, exit_with_sentence


@exit_with_sentence
def main(argv: list[str] | None = None) -> None:
    args = parse_page_args(argv)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs the package gradio, which is not installed; run: pip install 'gradio>=6'")
    # Imported here so that --help and errors in flags do not wait for torch.
    from ldm.device import pick_device
    from ldm.evaluation.faces import FaceAnalyzer
    from ldm.evaluation.id_acc import load_gallery
    from ldm.loading import ModelFiles
    from ldm.page.studio import Limits, Studio

    device = pick_device(args.devices)
    analyzer = FaceAnalyzer(args.face_pack, args.det_size, args.det_thresh, device=str(device))
    studio = Studio([ModelFiles(**files) for files in args.models], args.embedding, analyzer, load_gallery(args.gallery), device,
                    args.precision, Limits(args.max_images, args.max_length, args.max_steps))
    with tempfile.TemporaryDirectory(prefix="apl-page-") as folder:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}  # read on import
        from ldm.page.layout import build_page, serve

        serve(build_page(studio, ddim_steps=args.ddim_steps, scale=args.scale, seed=args.seed), args.host, args.port)


if __name__ == "__main__":
    main()
