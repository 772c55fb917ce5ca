"""What every whole run needs: prompts in a file, and undisturbed runs to compare with."""

import pytest

from tests.integration.runs import run, small_config, write_prompts


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    """Path of a file with the training prompts."""
    return write_prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="session")
def undisturbed(prompts, tmp_path_factory):
    """Give the folder of a run that nothing disturbed, trained once for each configuration."""
    done = {}

    def folder(**sections):
        config = small_config(prompts, **sections)
        if config not in done:
            done[config] = tmp_path_factory.mktemp("undisturbed")
            run(config, done[config])
        return done[config]

    return folder
