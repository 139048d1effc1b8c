"""What all commands share: options, mistakes in one line, networks by name, tables, figures, programs that are kept."""

from experiments.cli.command import TRACEBACK, main, quiet_libraries
from experiments.cli.nearest import nearest
from experiments.cli.networks import network_named, networks_with
from experiments.cli.options import parse, parse_preset
from experiments.cli.output import check_figure_file, print_rows, print_table, save_figure, write_csv
from experiments.cli.programs import keep_programs

__all__ = [
    "TRACEBACK",
    "check_figure_file",
    "keep_programs",
    "main",
    "nearest",
    "network_named",
    "networks_with",
    "parse",
    "parse_preset",
    "print_rows",
    "print_table",
    "quiet_libraries",
    "save_figure",
    "write_csv",
]
