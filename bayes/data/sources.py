"""From the name of a data set to the data."""

from __future__ import annotations

from pathlib import Path

from natgrad_apps.bayes.data.embedded import EMBEDDED, load_embedded
from natgrad_apps.bayes.data.table import Table
from natgrad_apps.bayes.data.tables import SUFFIXES, TableFile, is_table, read_table
from natgrad_apps.bayes.data.uci import UCI, load_uci
from natgrad_apps.errors import unknown_name


def load(name: str, how: TableFile | None = None) -> Table:
    """An embedded set, a UCI set, or a table of the user.

    Args:
        name: A name of `EMBEDDED` or `UCI`, or the path of a CSV, TSV or Parquet file.
        how: How a file is read.

    Raises:
        ConfigError: There is no such set, or it cannot be used.
    """
    if is_table(name):
        return read_table(Path(name), how or TableFile())
    if name in EMBEDDED:
        return load_embedded(name)
    if name in UCI or name in UCI.values():
        return load_uci(name)
    raise unknown_name(f"data set (or file ending in {', '.join(SUFFIXES)})", name, [*EMBEDDED, *UCI])
