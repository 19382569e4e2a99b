"""Controls and server of the page. The only file that imports Gradio, an optional package."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from ldm.page.results import STYLE, curve_as_html, error_as_html, images_as_html, write_zip
from ldm.page.studio import MAX_SCALE, MAX_SEED, STRENGTHS, Studio
from ldm.util import UserError

INTRO = """# Anonymization prompts
Each prompt is generated **without and with a learned prefix, from the same noise**. *ID-ACC* is the cosine of the generated face and the
reference face of the person whom the prompt names; lower is better anonymization. *Nearest* are the most similar people of the gallery."""
ABOUT_STRENGTH = ("Strength 0 is without a prefix, 1 with the prefix of the file. The text encoder's output is interpolated between them, "
                  "(1 - s) · without + s · with, and extrapolated above 1.")
FILES_KEPT = 3600  # seconds that a zip file can be downloaded
# Gradio's sliders announce the end of a movement by the pointer only; here also that of a movement by keys.
SLIDER_KEYS = """<script>
document.addEventListener("keyup", event => {
  if (event.target.closest("#strength") && /^(Arrow|Page|Home|End|Enter)/.test(event.key))
    event.target.dispatchEvent(new Event("pointerup", {bubbles: true}));
});
</script>"""


def build_page(studio: Studio, *, ddim_steps: int, scale: float, seed: int) -> gr.Blocks:
    """The page, with initial values of its settings."""
    def compare(*values: Any) -> Iterator[tuple[str, Any]]:
        try:
            request = studio.check(*values)
            specs, portraits = studio.comparison(request), []
            for spec in specs:
                portraits.append(studio.portrait(request, spec))
                yield images_as_html(portraits, len(specs)), gr.skip()
            path = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder())) / "apl-images.zip"
            write_zip(path, portraits, studio.about(request))
            yield gr.skip(), gr.DownloadButton(value=str(path), interactive=True)
        except UserError as error:
            yield error_as_html(error), gr.DownloadButton(interactive=False)

    def curve(*values: Any) -> Iterator[str]:
        try:
            request = studio.check(*values)
            specs, portraits = studio.curve(request), []
            for spec in specs:
                portraits.append(studio.portrait(request, spec))
                yield images_as_html(portraits, len(specs), nearest=False)
            yield curve_as_html(portraits) + images_as_html(portraits, len(specs), nearest=False)
        except UserError as error:
            yield error_as_html(error)

    def add(prompts: str, name: str) -> tuple[str, None]:
        return f"{prompts.rstrip()}\nA close-up portrait of {name}".lstrip(), None

    people, limits = list(studio.gallery), studio.limits
    with gr.Blocks(title="Anonymization prompts", analytics_enabled=False, delete_cache=(FILES_KEPT, FILES_KEPT)) as page:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompts = gr.Textbox(add("", people[0])[0], label="Prompts, one per line", lines=3, max_lines=10,
                                     max_length=limits.images * limits.length, elem_id="prompts")
                person = gr.Dropdown(people, value=None, label="Add a portrait of a person of the gallery")
                model = gr.Dropdown(list(studio.models), label="Model", visible=len(studio.models) > 1)
                prefixes = gr.CheckboxGroup(list(studio.embedding), value=list(studio.embedding)[:1], label="Prefixes")
                strength = gr.Slider(0, STRENGTHS[-1], 1, step=0.05, label="Strength s", elem_id="strength")
                gr.Markdown(ABOUT_STRENGTH)
                with gr.Accordion("Settings", open=False):
                    settings = [gr.Number(seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED),
                                gr.Slider(1, limits.steps, ddim_steps, step=1, label="DDIM steps"),
                                gr.Slider(0, MAX_SCALE, scale, step=0.5, label="Guidance scale")]
                start = gr.Button("Generate", variant="primary", elem_id="generate")
                plot = gr.Button("Plot ID-ACC over strength", elem_id="plot")
            with gr.Column(scale=3, min_width=320):
                results = gr.HTML("Images and their metrics appear here.", min_height=120, elem_id="results")
                download = gr.DownloadButton("Download images and settings (zip)", interactive=False, elem_id="download")
                strip = gr.HTML(elem_id="strip")
        values = [model, prompts, prefixes, strength, *settings]
        queue: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # one model serves all users
        person.input(add, [prompts, person], [prompts, person], queue=False)
        gr.on([start.click, strength.release], compare, values, [results, download], trigger_mode="always_last", **queue)
        plot.click(curve, values, strip, **queue)
    return page


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, without resources from other addresses.

    Raises:
        UserError: the server cannot listen on this address.
    """
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.queue(max_size=32).launch(server_name=host, server_port=port, share=False, ssr_mode=False, quiet=True, footer_links=[],
                                       prevent_thread_lock=True, theme=theme, css=STYLE, head=SLIDER_KEYS, max_file_size=1)
    except OSError:
        raise UserError(f"port {port} of {host} is not free, or not of this machine; give another --port or --host") from None
    except ValueError as error:  # Gradio has asked its own page, and a proxy has answered
        raise UserError(f"the page cannot be reached at {host} ({error}); name this address in the variable NO_PROXY") from error
    print(f"open http://{host}:{port} (Ctrl-C ends the page)", flush=True)
    page.block_thread()
