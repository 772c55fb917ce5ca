"""Put a run's policy on the hub, with a card; or write the folder alone."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from mvczigal_ref.cli.exporting import Export, export_run
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import require_run

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Push", "push_run"]

_SHEET = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class Push:
    """Put what a run has trained on the hub, with its gain, a sheet and how to load it.

    What goes there is what `export` writes, and a card. Log in before, with `hf auth login`.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, finished or not."""
    repo: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """Repository on the hub; made if absent, else its files of the same names are replaced."""
    private: bool = False
    """Make a new repository one that only you see; a public one is refused."""
    license: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: the base model's, if known)")
    ] = None
    """Licence of the weights, by its name on the hub."""
    dry_run: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: upload)")
    ] = None
    """Write the folder there, which does not exist yet, and upload nothing."""


def push_run(command: Push) -> None:
    """Write a folder with a card, upload it, and print its place.

    Args:
        command: Run, repository and what to do.

    Raises:
        CheckpointError: If the folder is no run, or its checkpoint is damaged.
        ConfigError: If the repository's name is none, the target exists, or nobody is logged in;
            nothing is loaded then.
    """
    _refuse(command)
    if command.dry_run is not None:
        from mvczigal_ref.models.policy_files import whole_folder

        with whole_folder(command.dry_run) as aside:
            _write(command, aside)
        print(command.dry_run)
        return
    from huggingface_hub import HfApi

    api = HfApi()
    if command.private:
        _refuse_public(api, command.repo)
    with tempfile.TemporaryDirectory() as place:
        folder = _write(command, Path(place) / "policy")
        address = api.create_repo(command.repo, private=command.private, exist_ok=True)
        api.upload_folder(repo_id=command.repo, folder_path=folder)
    print(address)


def _refuse(command: Push) -> None:
    """Refuse what needs no model to be seen."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(command.repo)
        valid = command.repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        msg = f"the repository must be named `user/name`; got {command.repo!r}."
        raise ConfigError(msg)
    if command.dry_run is not None and os.path.lexists(command.dry_run):
        msg = f"`--dry-run` must not exist yet; got {str(command.dry_run)!r}."
        raise ConfigError(msg)
    require_run(command.run)
    if command.dry_run is None and get_token() is None:
        msg = "nobody is logged in to the hub. Run `hf auth login`, or pass `--dry-run FOLDER`."
        raise ConfigError(msg)


def _refuse_public(api: "HfApi", repo: str) -> None:
    """Refuse a repository that is there and that everyone sees, which the hub would leave so."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = api.repo_info(repo).private
    except RepositoryNotFoundError:
        return  # it is made, private
    if not private:
        msg = (
            f"`--private` is for a new repository or a private one; {repo!r} is there and public. "
            "Make it private at the hub, choose another name, or leave `--private` out."
        )
        raise ConfigError(msg)


def _write(command: Push, folder: Path) -> Path:
    """Write the weights, the sheet and the card."""
    from mvczigal_ref.config.scorer_names import reward_unit
    from mvczigal_ref.models.model_card import CardFacts
    from mvczigal_ref.pictures import save_png
    from mvczigal_ref.report.card import card_results, card_sheet
    from mvczigal_ref.report.run_content import read_run

    run = read_run(command.run)
    sheet = card_sheet(run)
    facts = CardFacts(
        results=card_results(run.gains(), unit=reward_unit(run.config.reward)),
        sheet=None if sheet is None else _SHEET,
        repo=command.repo,
        license=command.license,
    )
    export_run(Export(run=command.run, out=folder), facts=facts)
    if sheet is not None:
        save_png(folder / _SHEET, sheet)
    return folder
