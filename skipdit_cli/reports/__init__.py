"""HTML reports: one self-contained file that opens from disk, made from the description of a report."""

from skipdit_cli.reports.charts import Plot, Point, Series
from skipdit_cli.reports.comparison import Comparison, make_comparison
from skipdit_cli.reports.description import Axis, Column, Command, HeatMap, HeatMaps, Report, Schedule, Table
from skipdit_cli.reports.loss_curves import make_loss_plot
from skipdit_cli.reports.render import render, save

__all__ = [
    "Axis",
    "Column",
    "Command",
    "Comparison",
    "HeatMap",
    "HeatMaps",
    "Plot",
    "Point",
    "Report",
    "Schedule",
    "Series",
    "Table",
    "make_comparison",
    "make_loss_plot",
    "render",
    "save",
]
