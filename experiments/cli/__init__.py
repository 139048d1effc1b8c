"""What all commands share: options, mistakes in one line, tables, quiet libraries."""

from experiments.cli.command import TRACEBACK, main, quiet_libraries
from experiments.cli.options import nearest, parse, parse_preset
from experiments.cli.table import print_table

__all__ = ["TRACEBACK", "main", "nearest", "parse", "parse_preset", "print_table", "quiet_libraries"]
