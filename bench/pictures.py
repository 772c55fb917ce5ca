"""Pictures and tables of the documents, drawn again from stored numbers.

    python -m bench pictures [--run RUN] [--claims FOLDER]

Without a run: both comparisons, from ``docs/results/*.json`` into ``fixtures/pictures/*.svg`` and
the tables of ``docs/results.md``, and the claims of ``docs/claims.md``. With one, that of
``mvczigal train tiny``, the picture of a run. With the folder of ``mvczigal reproduce claims``, its
numbers are taken over first, and the strips are drawn from its run folders.
"""

import argparse
import io
import json
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import is_color_like, to_hex
from PIL import Image, ImageDraw, ImageFont

from bench.zigzag import table as zigzag_table
from mvczigal_ref.evaluation.digits import gain_text
from mvczigal_ref.files import atomic_write
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.pictures.drawing import CURVES, GRID, INK
from mvczigal_ref.pictures.palette import LIGHT
from mvczigal_ref.report.gains import draw_gains
from mvczigal_ref.report.gallery import Choice, choose, image_gains, with_errors
from mvczigal_ref.report.run_content import RunContent, read_run, score_tables
from mvczigal_ref.reproduce import COMPARISONS, figure, read_summary
from mvczigal_ref.reproduce.claims import SEEDS
from mvczigal_ref.reproduce.claims_figures import curves_figure, front_figure
from mvczigal_ref.reproduce.claims_record import read_claims, record_text
from mvczigal_ref.reproduce.claims_strip import claims_strip, iterations_strip
from mvczigal_ref.reproduce.claims_text import arm_table, claim_table, claims_markdown
from mvczigal_ref.reproduce.tables import table
from mvczigal_ref.training.prompts import read_prompts

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "fixtures" / "pictures"
ITERATIONS = (20, 40, 60)  # checkpoints of the claims' runs
SCALE, LINE, MARGIN = 2, 24, 12  # screen pixels per pixel, of a line of text, around everything
FONT = {size: ImageFont.load_default(size) for size in (13, 15)}


def comparisons() -> None:
    """Draw both pictures and write both tables again."""
    page = ROOT / "docs" / "results.md"
    text = page.read_text("utf-8")
    for name in COMPARISONS:
        summary = read_summary(ROOT / "docs" / "results" / f"{name}.json")
        atomic_write(PICTURES / f"{name}.svg", figure(summary))
        before, section, after = text.partition(f"`mvczigal reproduce --sets {name}`")
        head, bar, rest = after.partition("\n| method |")
        _, gap, rest = rest.partition("\n\n")
        text = before + section + head + "\n" + table(summary) + gap[1:] + rest
        assert bar, f"docs/results.md has no table of {name}"
    atomic_write(page, text)


def claims(folder: Path | None) -> None:
    """Draw the claims' pictures and write what `docs/claims.md` has between its marks again."""
    stored = ROOT / "docs" / "results" / "claims.json"
    if folder is not None:
        record = record_text(read_claims(folder / "claims.json"))
        alone, constrained = (folder / f"{arm}-{SEEDS[0]}" for arm in ("tiny_per_view", "tiny"))
        prompts = read_prompts("world.held_out")
        strip = claims_strip(alone, constrained, prompts)
        over = iterations_strip(alone, constrained, prompts, ITERATIONS)
        # Written once all is there: a folder without the runs spoils nothing.
        atomic_write(stored, record)
        save_png(PICTURES / "claims_strip.png", strip)
        save_png(PICTURES / "claims_iterations.png", over)
    tables = {"claims": claim_table(), "arms": arm_table()}
    if stored.is_file():
        record = read_claims(stored)
        atomic_write(PICTURES / "claims_front.svg", front_figure(record))
        atomic_write(PICTURES / "claims_curves.svg", curves_figure(record))
        tables["found"] = claims_markdown(record)
    swept = ROOT / "docs" / "results" / "zigzag.json"
    if swept.is_file():
        tables["zigzag"] = zigzag_table(json.loads(swept.read_text("utf-8")))
    page = ROOT / "docs" / "claims.md"
    text = page.read_text("utf-8")
    for name, content in tables.items():
        before, begin, rest = text.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert end, f"docs/claims.md has no place for {name}"
        text = f"{before}{begin}\n{content}\n{end}{after}"
    atomic_write(page, text)


def dots(run: RunContent, chosen: list[Choice], width: int) -> Image.Image:
    """Draw the gains of all pairs on white."""
    pairs = {
        name: getattr(run.after, field) - getattr(run.before, field)
        for name, field in score_tables(run.config).items()
    }
    marked = {one.reason: one.place for one in chosen if one.reason in ("best", "median", "worst")}
    drawing = draw_gains(run.gains(), pairs, unit="dB", marked=marked, width=width / 100)
    parts = {INK: "soft", GRID: "line"} | {c: f"curve-{i}" for i, c in enumerate(CURVES)}
    for artist in drawing.findobj():
        for part in ("color", "edgecolor", "facecolor", "markerfacecolor", "markeredgecolor"):
            value = getattr(artist, f"get_{part}", lambda: "none")()
            if is_color_like(value) and to_hex(value) in parts:
                getattr(artist, f"set_{part}")(LIGHT[parts[to_hex(value)]])
    drawing.patch.set_alpha(1.0)
    buffer = io.BytesIO()
    FigureCanvasAgg(drawing)
    drawing.savefig(buffer, format="png", dpi=100, facecolor="white")
    return Image.open(buffer).convert("RGB")


def readme_picture(folder: Path) -> Image.Image:
    """Lay out a gallery of a run: best, median, worst and one of each shape, before and after."""
    run = read_run(folder)
    chosen = choose(image_gains(run), run.prompts)
    field = list(score_tables(run.config).values())[-1]
    before, after = run.before, run.after
    blocks = []
    for choice in chosen:
        sides = []
        for scores in (before, after):
            rows = with_errors(scores, choice.place, run.prompts[choice.place], run.config)
            sides.append(contact_sheet(rows, scale=SCALE, gap=SCALE, paper=(112, 112, 112)))
        values = [float(getattr(scores, field)[0, choice.place]) for scores in (before, after)]
        blocks.append((choice, sides, values))
    side = blocks[0][1][0]
    width = 2 * side.width + 3 * MARGIN
    top = dots(run, chosen, width - 2 * MARGIN)
    block = 2 * LINE + side.height + MARGIN
    sheet = Image.new("RGB", (width, 2 * MARGIN + LINE + top.height + len(blocks) * block), "white")
    pen = ImageDraw.Draw(sheet)
    gain = gain_text(run.gains()["joint view"])
    title = (
        f"Tiny world, {len(run.prompts)} held-out prompts: joint score {gain.before} to "
        f"{gain.after} dB, gain {gain.gain} ± {gain.error} dB"
    )
    pen.text((MARGIN, MARGIN), title, LIGHT["ink"], FONT[15])
    sheet.paste(top, (MARGIN, MARGIN + LINE))
    y = MARGIN + LINE + top.height
    for choice, sides, (old, new) in blocks:
        label = f"{run.prompts[choice.place]} ({choice.reason})"
        pen.text((MARGIN, y), label, LIGHT["ink"], FONT[15])
        for column, (image, words) in enumerate(
            zip(sides, (f"before: {old:.2f} dB", f"after: {new:.2f} dB ({new - old:+.2f})"),
                strict=True)
        ):  # fmt: skip
            x = MARGIN + column * (image.width + MARGIN)
            colour = LIGHT["soft"] if column == 0 else LIGHT["curve-0" if new > old else "curve-1"]
            pen.text((x, y + LINE - 4), words, colour, FONT[13])
            sheet.paste(image, (x, y + 2 * LINE - 4))
        y += block
    return sheet


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of `mvczigal train tiny`")
    parser.add_argument("--claims", type=Path, help="folder of `mvczigal reproduce claims`")
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    if asked.run is None:
        comparisons()
        claims(asked.claims)
    else:
        save_png(PICTURES / "tiny.png", readme_picture(asked.run))


if __name__ == "__main__":
    main()
