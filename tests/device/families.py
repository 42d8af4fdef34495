"""`bench` of the fusion encoders on the device: re-ranking and answer ranking against the official way of working."""

from __future__ import annotations

from checks import Piece, Settings
from speed import bench

FAMILIES = ("albef", "blip")
QUICK = ("--preset", "tiny", "--image-size", "32", "--repeats", "1", "--samples", "2", "--same-process")


def main() -> None:
    settings = Settings.parse()
    piece = Piece("families")
    for family in FAMILIES:
        report = settings.out.with_name(f"bench-{family}-bf16.json")
        size = QUICK if settings.quick else ("--repeats", "3")
        piece.figures[family] = bench(piece, settings, report, "--family", family, *size)
        settings.write(piece)


if __name__ == "__main__":
    main()
