"""Data sets: UCI regression with published splits, scikit-learn's embedded sets, and tables of the user."""

from natgrad_apps.bayes.data.embedded import EMBEDDED
from natgrad_apps.bayes.data.scaling import Scaling
from natgrad_apps.bayes.data.sources import load
from natgrad_apps.bayes.data.table import Split, Table, random_split
from natgrad_apps.bayes.data.tables import TableFile, read_frame, read_inputs, read_table
from natgrad_apps.bayes.data.uci import UCI, load_uci

__all__ = [
    "EMBEDDED",
    "UCI",
    "Scaling",
    "Split",
    "Table",
    "TableFile",
    "load",
    "load_uci",
    "random_split",
    "read_frame",
    "read_inputs",
    "read_table",
]
