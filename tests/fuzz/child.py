"""Feeds hostile bytes to a target in a process of its own, with bounds on memory and on each input's time.

Started as ``python child.py SECONDS``. Stdin holds inputs, each a line ``TARGET LENGTH`` and so many bytes;
stdout gets a line of JSON for each: how it ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
import warnings

MEMORY_BYTES = 3 << 30
"""Address space that one input may add to what the process has when all is imported."""


def main() -> None:
    """Answers inputs until there is none."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever libraries print is not an answer.
    os.dup2(2, 1)
    from targets import TARGETS
    from trtfleet.errors import InternalError, TrtfleetError

    warnings.simplefilter("error")
    with open("/proc/self/statm") as statm:
        now_bytes = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    deadline_s = float(sys.argv[1])
    # The default action ends the process, whatever native code it is in.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        name, length = line.split()
        data = sys.stdin.buffer.read(int(length))
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        try:
            TARGETS[name.decode()](data)
            answer = {"ended": "accepted", "fact": ""}
        except InternalError as error:
            answer = {"ended": "defect", "fact": str(error)}
        except TrtfleetError as error:
            is_clear = error.fact.strip() and "\n" not in error.fact
            fact = f"{type(error).__name__}: {error.fact}"
            answer = {"ended": "refused" if is_clear else "defect", "fact": fact}
        except BaseException:
            answer = {"ended": "defect", "fact": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
