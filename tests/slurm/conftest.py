"""A real Slurm of four nodes on this machine for the whole run, and a user of it for each test."""

import pathlib
import tempfile

import launching
import pytest
from slurm_site import Slurm, SlurmSite, go_on, missing

@pytest.fixture(scope="session")
def cluster():
    why = missing()
    if why:
        pytest.skip(f"no Slurm: {why}")
    cluster = Slurm(pathlib.Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")))
    yield cluster
    cluster.settle()
    cluster.down()


@pytest.fixture
def site(tmp_path, cluster):
    site = SlurmSite(tmp_path, cluster)
    yield site
    for pid in site.processes():
        go_on(pid)
    cluster.settle()


@pytest.fixture
def llama(site):
    """A site with a small model and the usual configuration."""
    launching.write_llama(site.data / "in")
    site.write_config()
    return site


# Half a gigabyte: enough that a conversion can be caught at work.
LARGE = launching.tiny_model.config(hidden_size=2048, intermediate_size=5632, num_attention_heads=16,
                                    num_key_value_heads=4, num_hidden_layers=6, vocab_size=4001)


@pytest.fixture(scope="session")
def large_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return launching.write_llama(folder / "in", LARGE, shards=5)


@pytest.fixture
def large(site, large_model):
    (site.data / "in").symlink_to(large_model)
    site.write_config()
    return site
