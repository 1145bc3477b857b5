"""Runs the program under test: $RESHARD, else build/release/reshard of this checkout."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("RESHARD", ROOT / "build" / "release" / "reshard")).resolve()


@dataclasses.dataclass
class Result:
    command: list
    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)

    def __str__(self):
        return f"{' '.join(self.command)}\nexit {self.code}\n{self.out}{self.err}"


def reshard(*args, code=0):
    """Runs a command and demands its exit code; a tuple allows several, None allows any."""
    command = [str(BINARY), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    result = Result(command, done.returncode, done.stdout, done.stderr)
    allowed = code if isinstance(code, tuple) else (code,)
    assert code is None or result.code in allowed, f"expected exit {code}\n{result}"
    return result


def convert(source, target, *options, to=None, code=0):
    direction = [f"--to={to}"] if to else []
    return reshard("convert", source, target, *direction, "--quiet", *options, code=code)


def files(folder):
    """Relative path -> path of every published file; the receipt and the staging folder are not part of a checkpoint."""
    folder = pathlib.Path(folder)
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p for name, p in found.items() if not name.startswith(".reshard")}


def hashes(folder):
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files(folder).items()}


def assert_nothing_published(folder):
    assert not pathlib.Path(folder).exists() or not files(folder), sorted(files(folder))
