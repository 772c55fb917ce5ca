"""Pictures: sheets of images, turntables, and the drawing of figures."""

from mvczigal_ref.pictures.sheets import as_grid, contact_sheet, save_png, view_scale
from mvczigal_ref.pictures.turntable import save_turntable

__all__ = ["as_grid", "contact_sheet", "save_png", "save_turntable", "view_scale"]
