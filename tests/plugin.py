"""Packages with entry points that are as good as installed, while a test lasts."""

from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"


def install(patch, folder: Path, entries: dict[str, dict[str, str]], **modules: str) -> None:
    """Write modules and the metadata of a package into a folder, and put it on the path."""
    info = folder / "pretend-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pretend\nVersion: 1.0\n", "utf-8")
    groups = [
        f"[mvczigal_ref.{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in entries.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), "utf-8")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    patch.syspath_prepend(folder)
