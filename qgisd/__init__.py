"""qgisd: one daemon that serves QGIS projects from a supervised tree of QGIS processes."""

__version__ = "0.1.0"
