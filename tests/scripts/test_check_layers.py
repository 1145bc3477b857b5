"""scripts/check-layers finds every kind of include that goes against the architecture, and nothing else."""

import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "check-layers"


def check(root, **files):
    """Checks a tree that holds these files (path -> text) and the headers that they may include."""
    headers = ["src/base/error.h", "src/tensor/box.h", "src/archive/layout.h", "src/archive/zip.h", "src/formats/x/x.h",
               "src/models/model.h", "src/models/kinds/hf.h", "src/plan/plan.h", "src/plan/map.h", "src/execute/execute.h",
               "include/reshard/reshard.h", "tests/fault/folder.h"]
    for path, text in {**dict.fromkeys(headers, ""), **files}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    done = subprocess.run([SCRIPT, root], capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("path, include", [
    ("src/base/a.cc", '"tensor/box.h"'),
    ("src/tensor/a.cc", '"archive/layout.h"'),
    ("src/archive/a.cc", '"tensor/box.h"'),
    ("src/formats/x/a.cc", '"models/model.h"'),
    ("src/models/a.cc", '"formats/x/x.h"'),
    ("src/models/a.cc", '"models/kinds/hf.h"'),
    ("src/models/families/a.cc", '"models/kinds/hf.h"'),
    ("src/models/kinds/a.cc", '"plan/map.h"'),
    ("src/plan/plan.h", '"plan/map.h"'),
    ("src/execute/a.cc", '"plan/map.h"'),
    ("src/execute/a.cc", '"archive/zip.h"'),
    ("src/cli/a.cc", '"plan/plan.h"'),
    ("src/execute/a.cc", "<reshard/reshard.h>"),
])
def test_reports_an_include_against_the_direction(tmp_path, path, include):
    code, out = check(tmp_path, **{path: f"#include <vector>\n#include {include}\n"})
    assert code == 1
    assert out.startswith(f"{path}:2: includes {include[1:-1]}, but ") and out.count("\n") == 1


@pytest.mark.parametrize("path, include", [
    ("src/tensor/a.cc", "base/error.h"),
    ("src/formats/x/a_test.cc", "archive/zip.h"),
    ("src/models/families/a.cc", "models/model.h"),
    ("src/models/kinds/a.cc", "formats/x/x.h"),
    ("src/plan/a.cc", "models/kinds/hf.h"),
    ("src/execute/a.cc", "plan/plan.h"),
    ("src/execute/a_test.cc", "tests/fault/folder.h"),
    ("src/models/a_test.cc", "models/kinds/hf.h"),
    ("src/execute/testutil.h", "gtest/gtest.h"),
    ("src/api/a.cc", "execute/execute.h"),
    ("src/cli/a.cc", "reshard/reshard.h"),
])
def test_accepts_an_include_in_the_direction(tmp_path, path, include):
    code, out = check(tmp_path, **{path: f'#include "{include}"\n'})
    assert code == 0, out


def test_reports_paths_that_do_not_count_from_a_root(tmp_path):
    code, out = check(tmp_path, **{"src/tensor/a.cc": '#include "../base/error.h"\n', "src/tensor/b.cc": '#include "box.h"\n',
                                   "src/tensor/c.cc": '#include "tests/fault/folder.h"\n'})
    assert code == 1 and out.count("which is no path below src/ or include/") == 3


def test_reports_a_folder_that_no_rule_names(tmp_path):
    code, out = check(tmp_path, **{"src/extras/a.cc": '#include "base/error.h"\n'})
    assert code == 1 and "is in no layer" in out
