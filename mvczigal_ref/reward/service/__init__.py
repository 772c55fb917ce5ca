"""Scorers in another process or on another machine: a service, and clients that are scorers."""

from mvczigal_ref.errors import ScorerUnavailableError
from mvczigal_ref.reward.service.cache import ScoreCache
from mvczigal_ref.reward.service.client import RemoteJointView, RemotePerView
from mvczigal_ref.reward.service.connection import Patience
from mvczigal_ref.reward.service.server import ScorerServer, serve, serving
from mvczigal_ref.reward.service.terms import Limits, RefusedError, ScorerInfo

__all__ = [
    "Limits",
    "Patience",
    "RefusedError",
    "RemoteJointView",
    "RemotePerView",
    "ScoreCache",
    "ScorerInfo",
    "ScorerServer",
    "ScorerUnavailableError",
    "serve",
    "serving",
]
