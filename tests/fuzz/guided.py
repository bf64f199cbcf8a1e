"""Coverage-guided fuzzing of one target: ``python guided.py TARGET FOLDER [options of libFuzzer]``.

FOLDER keeps the inputs that reached something new, and those that broke something. Needs atheris.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["trtfleet"]):
    from targets import TARGETS
    from trtfleet.errors import InternalError, TrtfleetError

from seeds import seeds_of


def main() -> None:
    """Runs until an input breaks something or the time is over."""
    name, folder, *options = sys.argv[1:]
    corpus = Path(folder) / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds_of(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    for kept in (Path(__file__).parent / "corpus" / name).glob("*"):
        (corpus / kept.name).write_bytes(kept.read_bytes())
    warnings.simplefilter("error")

    def once(data: bytes) -> None:
        try:
            TARGETS[name](data)
        except InternalError:
            raise
        except TrtfleetError:
            pass

    limits = ["-timeout=30", "-rss_limit_mb=4096", "-max_len=65536", f"-artifact_prefix={folder}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
