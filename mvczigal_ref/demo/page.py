"""Page in a browser, by Gradio: the controls, and the pictures of what was played."""

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from mvczigal_ref.config.scorer_names import reward_unit
from mvczigal_ref.demo.play import LONGEST_PROMPT, MOST_STEPS, Played, Playground, Request
from mvczigal_ref.errors import ConfigError, NonFiniteError
from mvczigal_ref.evaluation.digits import decimals_of_size
from mvczigal_ref.pictures import contact_sheet, save_turntable, view_scale
from mvczigal_ref.pictures.ring import camera_ring

__all__ = ["build_page"]

_TITLE = "Text to all views of an object"


def build_page(playground: Playground, prompt: str) -> Any:  # noqa: ANN401 - of Gradio
    """Build the page of a policy.

    Args:
        playground: Policy to be sampled.
        prompt: Prompt that the page opens with.

    Returns:
        Gradio's ``Blocks``; its ``launch`` serves it.
    """
    import gradio as gr

    folder = tempfile.TemporaryDirectory(prefix="mvczigal-play-")
    first, unit = playground.first_request(prompt), reward_unit(playground.config.reward)
    against = "before training" if playground.base is not None else "plain sampling"
    now = "trained" if playground.base is not None else "as asked for"

    def show(
        prompt: str, seed: float, steps: float, guidance: float, zigzag: bool
    ) -> tuple[Any, ...]:
        try:
            request = Request(
                prompt=prompt or "", seed=_whole("seed", seed), steps=_whole("steps", steps),
                guidance=guidance, zigzag=zigzag,
            )  # fmt: skip
            played = playground.play(request)
            for old in Path(folder.name).iterdir():  # which Gradio has copied for its browser
                old.unlink()
        except (ConfigError, NonFiniteError) as error:
            return str(error), None, None, None, None
        turn = Path(folder.name) / f"{hash(request) % 2**64:x}.webp"
        return "", _slider(played), _ring(played), _turn(played, turn), _rows(played)

    with gr.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        page.folder = folder  # which is removed with the page
        gr.Markdown(f"# {_TITLE}\n\nPictures left and right of the line: {against}, {now}.")
        with gr.Row():
            text = gr.Textbox(first.prompt, label="prompt", max_length=LONGEST_PROMPT, scale=4)
            button = gr.Button("sample", variant="primary")
        with gr.Row():
            seed = gr.Number(first.seed, label="seed", precision=0)
            steps = gr.Slider(1, MOST_STEPS, first.steps, step=1, label="steps")
            guidance = gr.Slider(0, 15, first.guidance, step=0.1, label="guidance")
            zigzag = gr.Checkbox(
                first.zigzag, label="zigzag in the first step", visible=playground.zigzags
            )
        shown: dict[str, Any] = {"interactive": False, "buttons": ["download", "fullscreen"]}
        message = gr.Textbox(label="message", interactive=False)
        slider = gr.ImageSlider(label=f"{against} | {now}", **shown)
        with gr.Row():
            ring = gr.Image(label="cameras, from above", **shown)
            turn = gr.Image(label="turntable", type="filepath", **shown)
        scores = gr.Dataframe(
            headers=["score" + (f" [{unit}]" if unit else ""), against, now],
            label="scores", interactive=False, visible=playground.scored,
        )  # fmt: skip
        inputs, outputs = (
            [text, seed, steps, guidance, zigzag],
            [message, slider, ring, turn, scores],
        )
        gr.on(
            [page.load, button.click, text.submit], show, inputs, outputs, api_name="sample"
        )  # one at a time, as Gradio's queue does unless told otherwise
    return page


def _whole(name: str, value: float | None) -> int:
    if value is None or value != int(value):
        raise ConfigError(f"`{name}` must be a whole number; got {value}.")
    return int(value)


def _slider(played: Played) -> tuple[Image.Image, Image.Image]:
    """Lay out both samples; the same twice where nothing is compared."""
    scale = view_scale(played.after)
    pair = (played.after if played.before is None else played.before, played.after)
    before, after = (contact_sheet(images, scale=scale, gap=scale) for images in pair)
    return before, after


def _ring(played: Played) -> Image.Image:
    return camera_ring(played.after[0], played.azimuths, scale=view_scale(played.after))


def _turn(played: Played, path: Path) -> str:
    """Write the animation; equal requests have equal ones."""
    save_turntable(path, played.after[0].cpu(), played.azimuths, scale=2 * view_scale(played.after))
    return str(path)


def _rows(played: Played) -> list[list[str]]:
    """Write the scores as cells."""
    numbers = [value for _, before, after in played.scores for value in (before, after)]
    decimals = decimals_of_size(*(value for value in numbers if value is not None))
    return [
        [name, "" if before is None else f"{before:.{decimals}f}", f"{after:.{decimals}f}"]
        for name, before, after in played.scores
    ]
