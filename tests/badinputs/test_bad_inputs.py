"""Bad inputs are refused with the right code and message and publish nothing; odd but valid ones convert."""
import resource

import pytest

import tiny_model
from black_box import EXITS, CRASH, UNPRINTABLE, assert_refused, assert_unpublished, convert, run
from cases import BASES
from catalogue import BAD_INPUTS, DOCUMENT, VALID_INPUTS, document, identifier

# A bad input is refused from its headers: no case may take the time or the memory that its numbers suggest.
BOUNDS = {"timeout": 10, "limits": [(resource.RLIMIT_AS, 1 << 30)]}
SMALL = {"timeout": 10, "limits": [(resource.RLIMIT_DATA, 64 << 20)]}  # all that --max_memory=64MiB may take


def source_of(case, folder):
    return folder / ("in.nemo" if case.base == "packed" else "in")


def made(case, folder):
    """(folder with the case in it, options of its conversion, what the generator returns)"""
    write_base, arguments = BASES[case.base]
    write_base(folder)
    return case.make(folder), (*arguments, *case.arguments)


@pytest.mark.parametrize("case", BAD_INPUTS, ids=identifier)
def test_bad_input_is_refused(case, tmp_path):
    source, target = source_of(case, tmp_path), tmp_path / "out"
    _, arguments = made(case, source)
    result = run("convert", source, target, *arguments, **BOUNDS)
    assert_refused(result, (case.code,), *case.says)
    assert_unpublished(target)


@pytest.mark.parametrize("case", BAD_INPUTS, ids=identifier)
def test_inspect_survives_bad_input(case, tmp_path):
    source = source_of(case, tmp_path)
    made(case, source)
    result = run("inspect", source, "--max_memory=64MiB", **SMALL)
    assert result.code in EXITS and "no more memory" not in result.err, result
    assert not CRASH.search(result.err), result
    assert not UNPRINTABLE.search(result.out), result
    if result.code:
        assert result.err.startswith("reshard: error: "), result


@pytest.mark.parametrize("case", VALID_INPUTS, ids=identifier)
def test_odd_input_is_accepted(case, tmp_path):
    source, target = source_of(case, tmp_path), tmp_path / "out"
    returned, arguments = made(case, source)
    settings, named = returned or (tiny_model.CONFIG, tiny_model.tensors())
    convert(source, target, *arguments)
    if case.base != "hf":
        assert tiny_model.read_hf(target) == named
        return
    wanted = {key: (tiny_model.ZARR_DTYPES[dtype], values.shape, values.tobytes())
              for key, (dtype, values, _) in tiny_model.nemo_arrays(settings, named).items()}
    assert tiny_model.read_nemo(target) == wanted


def test_names_of_cases_are_unique():
    names = [identifier(case) for case in BAD_INPUTS + VALID_INPUTS]
    assert len(names) == len(set(names))


def test_document_lists_every_case():
    assert DOCUMENT.read_text() == document(), "run tests/badinputs/catalogue.py"
