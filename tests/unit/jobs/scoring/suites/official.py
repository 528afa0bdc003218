"""Runs the public scorer on a gold file and a submission: a script for an environment of its own.

Usage: PYTHON official.py lexical|syntactic|prosodic GOLD SUBMISSION NAME FOLDER, where PYTHON has
zerospeech-benchmarks 0.9.4. Writes its tables below FOLDER as that package's own tasks do.
"""

import importlib.util
import sys
import types
from pathlib import Path


def without_startup(name: str) -> None:
    """Makes a package importable without its ``__init__``, which asks a server for its version."""
    spec = importlib.util.find_spec(name)
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package


def main() -> None:
    task, gold, submission, name, folder = sys.argv[1:]
    without_startup("zerospeech")
    files = (Path(submission), Path(gold))
    if task == "lexical":
        from zerospeech.tasks.lm.lexical import LexicalTask

        found = dict(
            zip(
                ("pair", "frequency", "length"), LexicalTask().run_lexical_eval(*files), strict=True
            )
        )
    elif task == "syntactic":
        from zerospeech.tasks.lm.syntactic import SyntacticTask

        both = SyntacticTask().run_syntactic_comparison(*reversed(files))
        found = dict(zip(("pair", "type"), both, strict=True))
    else:
        from zerospeech.tasks.lm.prosody import ProsodicTask

        both = ProsodicTask().run_prosodic_comparison(*reversed(files))
        found = dict(zip(("pair", "type"), both, strict=True))
    for by, frame in found.items():
        path = Path(folder) / name.format(by)
        frame.to_csv(path, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
