"""Looks for few nodes to keep in single precision so that a quantized network passes.

Every candidate is measured on the sample. First each node alone: the network with only that node quantized
shows what it contributes. Nodes are then excluded from the worst down: one, two, four, ... until the network
passes, and halving back to the fewest of this order that pass. Last, members that are not needed are put
back, those that contribute least first, until none can be. The result is minimal in that sense: no member can
be dropped. A smaller set of other nodes may exist; finding it for sure would take trying all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..quantization.placement import Site
from .parity import Parity

__all__ = ["Contribution", "Suggestion", "find_exclusion"]

Sites = tuple[Site, ...]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one quantized node loses by itself.

    Attributes:
        node: Its name.
        op_type: Its operator.
        parity: Of the network in which only this node is quantized.
    """

    node: str
    op_type: str
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """What to exclude.

    Attributes:
        exclude: Names of nodes; empty when nothing need be, or nothing helps.
        passes: Whether the network passes with that.
        max_drop: What may be lost.
        before: Without any exclusion beyond those that were given.
        after: With the suggested one; as ``before`` where nothing helps.
        contributions: Of each node, the worst first; empty when the network passes as it is.
        trials: How many selections were measured.
    """

    exclude: tuple[str, ...]
    passes: bool
    max_drop: float
    before: Parity
    after: Parity
    contributions: tuple[Contribution, ...]
    trials: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The command line's options that say so."""
        return tuple(part for node in self.exclude for part in ("--exclude", node))

    def as_json(self) -> dict[str, Any]:
        """The suggestion as plain values."""
        return {
            "exclude": list(self.exclude),
            "passes": self.passes,
            "max_drop": self.max_drop,
            "before": self.before.sentence,
            "after": self.after.sentence,
            "contributions": [
                {
                    "node": one.node,
                    "op_type": one.op_type,
                    "top1_agreement": one.parity.top1_agreement,
                    "relative_error": one.parity.relative_error,
                }
                for one in self.contributions
            ],
            "trials": self.trials,
        }


def find_exclusion(
    sites_without: Callable[[frozenset[str]], Sites | None],
    measure: Callable[[Sequence[Sites]], Sequence[Parity]],
    max_drop: float,
    say: Callable[[str], None] = lambda text: None,
) -> Suggestion:
    """Looks for the nodes to exclude; see above.

    Args:
        sites_without: What reads quantized values when these nodes are excluded; None when nothing would.
        measure: Of each selection, how well the network does; they may be measured at once.
        max_drop: What ``Parity.drop`` may be.
        say: Told how far the search is.
    """
    return _Search(sites_without, measure, max_drop, say).run()


class _Search:
    def __init__(
        self,
        sites_without: Callable[[frozenset[str]], Sites | None],
        measure: Callable[[Sequence[Sites]], Sequence[Parity]],
        max_drop: float,
        say: Callable[[str], None],
    ) -> None:
        self._sites_without = sites_without
        self._measure = measure
        self._max_drop = max_drop
        self._say = say
        self._known: dict[Sites, Parity] = {}

    def run(self) -> Suggestion:
        whole = self._sites_without(frozenset()) or ()
        (before,) = self._parities([whole])
        if not before.exceeds(self._max_drop):
            return self._made((), before, before, (), passes=True)
        ranked = self._ranked(whole)
        order = [one.node for one in ranked]
        fewest = self._fewest(order)
        if fewest is None:
            return self._made((), before, before, ranked, passes=False)
        chosen = self._shrunk(order[:fewest])
        after = self._parity_without(chosen)
        assert after is not None
        return self._made(tuple(chosen), before, after, ranked, passes=True)

    def _made(
        self,
        exclude: tuple[str, ...],
        before: Parity,
        after: Parity,
        contributions: tuple[Contribution, ...],
        *,
        passes: bool,
    ) -> Suggestion:
        return Suggestion(
            exclude=exclude,
            passes=passes,
            max_drop=self._max_drop,
            before=before,
            after=after,
            contributions=contributions,
            trials=len(self._known),
        )

    def _ranked(self, whole: Sites) -> tuple[Contribution, ...]:
        """Every node with what it loses when it alone is quantized, the worst first."""
        kinds = {site.node: site.op_type for site in whole}
        self._say(f"measuring each of {len(kinds)} quantized nodes alone")
        alone = self._parities([tuple(site for site in whole if site.node == node) for node in kinds])
        found = [
            Contribution(node=node, op_type=kinds[node], parity=parity)
            for node, parity in zip(kinds, alone, strict=True)
        ]
        # Sorting keeps the order of the network among equals.
        return tuple(sorted(found, key=lambda one: (-one.parity.drop, -one.parity.relative_error)))

    def _fewest(self, order: Sequence[str]) -> int | None:
        """How many of the worst nodes must go at least, as far as halving finds out."""
        most = len(order)
        while most and self._sites_without(frozenset(order[:most])) is None:
            most -= 1
        if not most:
            return None
        fails, passes = 0, 1
        while not self._passes(order[:passes]):
            if passes == most:
                return None
            fails, passes = passes, min(2 * passes, most)
        while passes - fails > 1:
            middle = (fails + passes) // 2
            fails, passes = (fails, middle) if self._passes(order[:middle]) else (middle, passes)
        return passes

    def _shrunk(self, chosen: Sequence[str]) -> list[str]:
        """Without the members that are not needed."""
        kept = list(chosen)
        again = True
        while again:
            again = False
            for node in reversed(kept):
                without = [other for other in kept if other != node]
                if without and self._passes(without):
                    kept, again = without, True
        return kept

    def _passes(self, exclude: Sequence[str]) -> bool:
        parity = self._parity_without(exclude)
        passes = parity is not None and not parity.exceeds(self._max_drop)
        if parity is not None:
            self._say(f"without {len(exclude)} nodes: {parity.sentence}")
        return passes

    def _parity_without(self, exclude: Sequence[str]) -> Parity | None:
        sites = self._sites_without(frozenset(exclude))
        return None if sites is None else self._parities([sites])[0]

    def _parities(self, selections: Sequence[Sites]) -> list[Parity]:
        new = list(dict.fromkeys(sites for sites in selections if sites not in self._known))
        if new:
            self._known.update(zip(new, self._measure(new), strict=True))
        return [self._known[sites] for sites in selections]
