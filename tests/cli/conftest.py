import launching
import pytest

import tiny_model


@pytest.fixture
def source(tmp_path):
    """A tiny Llama as a HuggingFace folder, BF16."""
    return tiny_model.write_hf(tmp_path / "in")


@pytest.fixture
def nemo(tmp_path):
    """The same as a NeMo folder."""
    return tiny_model.write_nemo(tmp_path / "nemo")


@pytest.fixture
def site(tmp_path):
    """A user with a small Llama behind /models/in and a stand-in for sbatch."""
    site = launching.Site(tmp_path)
    launching.write_llama(site.data / "in")
    site.stand_in_for_sbatch()
    return site
