"""How large everything in the GPU benchmark is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Scale"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is.

    Attributes:
        device: ``cuda`` or ``cpu``; the tiny network goes with ``cpu``.
        side: Height and width that the network takes.
        distinct: Images of one file.
        copies: Files of the FixedSizeBinary images.
        slow_copies: Files of the tensor images and of the JPEG images, which take longer to read.
        peer_copies: Files that Ray Data's settings are tried with; the fastest and the plain loop get
            four times as many.
        peer_settings: How many settings of Ray Data are tried.
        jpegs: Distinct JPEG images; a file repeats them to ``distinct`` rows.
        jpeg_size: Their height and width.
        jpeg_bytes: About how large each is.
        batch_rows: Rows a batch of the images.
        table_rows: Rows of one file of numbers.
        table_copies: Files of numbers as one column each; other layouts get a quarter.
        columns: Of the table.
        rounds: Runs of trtfleet on the FixedSizeBinary images; others get fewer.
        is_full: Whether these are the sizes that the goals are set for.
    """

    device: Literal["cuda", "cpu"]
    side: int = 224
    distinct: int = 2048
    copies: int = 40
    slow_copies: int = 32
    peer_copies: int = 2
    peer_settings: int = 4
    jpegs: int = 256
    jpeg_size: tuple[int, int] = (375, 500)
    jpeg_bytes: int = 100_000
    batch_rows: int = 256
    table_rows: int = 1_000_000
    table_copies: int = 10
    columns: int = 256
    rounds: int = 3
    is_full: bool = True

    @classmethod
    def of(cls, device: Literal["cuda", "cpu"], *, quick: bool, rows_scale: float = 1.0) -> Scale:
        """The sizes of a device: full ones, quick ones, or for the CPU those that two cores can do.

        Args:
            device: Where networks execute.
            quick: Whether a few seconds a workload must do.
            rows_scale: Fraction of the table's rows and of the files of images.
        """
        if device == "cpu":
            rows = 32 if quick else 1024
            return cls(
                device=device,
                side=32,
                distinct=rows,
                copies=2,
                slow_copies=2,
                peer_copies=1,
                peer_settings=1 if quick else 4,
                jpegs=8,
                jpeg_size=(48, 64),
                jpeg_bytes=4_000,
                batch_rows=8,
                table_rows=8 * rows,
                table_copies=2,
                columns=16,
                rounds=1 if quick else 2,
                is_full=False,
            )
        share = rows_scale * (0.25 if quick else 1.0)
        return cls(
            device=device,
            copies=max(1, round(cls.copies * share)),
            slow_copies=max(1, round(cls.slow_copies * share)),
            peer_copies=1 if quick else cls.peer_copies,
            peer_settings=2 if quick else cls.peer_settings,
            table_copies=max(1, round(cls.table_copies * share)),
            rounds=1 if quick else cls.rounds,
            is_full=share >= 1,
        )
