import sys
from pathlib import Path

# The writers of checkpoints and the runner of the program are those of the command-line tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))
