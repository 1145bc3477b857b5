"""docs/families.md says what the program's tables say."""

import importlib.machinery
import importlib.util
import pathlib

from program import reshard

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def script():
    loader = importlib.machinery.SourceFileLoader("families_table", str(ROOT / "scripts" / "families-table"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("families_table", loader))
    loader.exec_module(module)
    return module


def test_the_document_has_the_table_of_the_program():
    generator = script()
    text = (ROOT / "docs" / "families.md").read_text()
    rows = generator.table(reshard("families", "--json").json())
    assert generator.within(text, rows) == text, "run scripts/families-table --write build/release/reshard"


def test_every_family_goes_to_huggingface_and_megatron():
    for family in reshard("families", "--json").json():
        assert {"hf", "nemo", "megatron"} <= set(family["kinds"]), family["name"]
