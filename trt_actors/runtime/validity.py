"""Whether a plan can be used on this machine, before anything of it is executed."""

from __future__ import annotations

from typing import Any

from ..building.flavour import Flavour
from ..building.log import MessageLog

__all__ = ["plan_refusal", "refusal"]


def plan_refusal(flavour: Flavour, plan: bytes) -> str | None:
    """Why a plan would be refused on this machine, in TensorRT's words, or None.

    Looks at the plan's header only. TensorRT has no such check, TensorRT-RTX has; where there is none, the
    answer is None and loading decides.

    Args:
        flavour: Whose plan it is.
        plan: Its bytes, verified.
    """
    log = MessageLog.over(flavour.api)
    return refusal(flavour.api.Runtime(log), flavour, plan, log)


def refusal(runtime: Any, flavour: Flavour, plan: bytes, log: Any) -> str | None:
    """As `plan_refusal`, with a runtime and its logger at hand."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != flavour.api.EngineValidity.INVALID:
        return None
    causes = [
        name.replace("CC", "COMPUTE_CAPABILITY").lower().replace("_", " ")
        for name, bit in flavour.api.EngineInvalidityDiagnostics.__members__.items()
        if int(bit) & int(diagnostics)
    ]
    words = ": ".join(filter(None, (", ".join(causes), log.why()))) or "no reason was given"
    return f"{flavour} refuses the plan on this machine: {words}"
