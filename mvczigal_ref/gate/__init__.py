"""The gates of the shipped weights: do samples rank where good ones must?"""

from mvczigal_ref.gate.flow import gate_flow
from mvczigal_ref.gate.multiview import gate
from mvczigal_ref.gate.verdict import Claim, Gate, GateRow

__all__ = ["Claim", "Gate", "GateRow", "gate", "gate_flow"]
