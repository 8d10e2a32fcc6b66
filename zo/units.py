"""Quantities as people say them; bytes are `rich.filesize.decimal`'s."""


def spell_seconds(seconds: float | None) -> str:
    """A duration as people say it: 12 s, 3 min 20 s, 5 h 02 min, 3 d 04 h."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    for unit, below, size in (("d", "h", 3600), ("h", "min", 60), ("min", "s", 1)):
        big = size * (24 if unit == "d" else 60)
        if whole >= big:
            return f"{whole // big} {unit} {whole % big // size:02d} {below}"
    return f"{whole} s"
