"""The protocols that must survive anything: each run from beginning to end, without Ray, against any storage.

What an actor does is done in this process by the very object that a Ray actor wraps; everything that touches
storage is the product's own. A run that was interrupted is resumed by the same call.
"""

from __future__ import annotations

from trtfleet.tests.faults.other_protocols import Calibrate, Publish, Sweep
from trtfleet.tests.faults.protocol import Protocol, miscounted, write_assets
from trtfleet.tests.faults.scoring_protocols import Overwrite, Score, check_success, check_view, contents

__all__ = [
    "PROTOCOLS",
    "Overwrite",
    "Protocol",
    "Publish",
    "Score",
    "check_success",
    "check_view",
    "contents",
    "miscounted",
    "write_assets",
]

PROTOCOLS: dict[str, type[Protocol]] = {
    kind.name: kind for kind in (Score, Overwrite, Publish, Calibrate, Sweep)
}
